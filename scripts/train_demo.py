"""Writes docs/results/training.* from the directory of a whole run of `systolora train-demo`.

The run goes on first, if it is not finished.
"""

import argparse
import shutil
import sys
from pathlib import Path

from systolora_sim.results_script import write_results
from systolora_sim.train_demo.presets import FULL
from systolora_sim.train_demo.results import PICTURES, render, shortened
from systolora_sim.train_demo.run import run_demo


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("build") / "train-demo")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs") / "results")
    arguments = parser.parse_args()
    command = f"systolora train-demo --jobs {arguments.jobs}"
    status = write_results(
        arguments.output,
        "training",
        lambda: shortened(run_demo(FULL, arguments.run, jobs=arguments.jobs)),
        lambda report: render(report, command),
    )
    if status == 0:
        pictures = arguments.output / "training"
        pictures.mkdir(exist_ok=True)
        for name in PICTURES:
            shutil.copyfile(arguments.run / name, pictures / name)
    return status


if __name__ == "__main__":
    sys.exit(main())
