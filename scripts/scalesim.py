"""Measures docs/results/scalesim.* with the real SCALE-Sim, in an environment of its own.

The environment and all runs are kept below the build directory: a second call resumes.
"""

import argparse
import sys
from pathlib import Path

from systolora_sim.results_script import write_results
from systolora_sim.scalesim_report import render
from systolora_sim.scalesim_runs import measure


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build-dir", type=Path, default=Path("build") / "scalesim")
    parser.add_argument("--max-cycles", type=int, help="leave out what takes longer")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs") / "results")
    arguments = parser.parse_args()
    command = " ".join(["python scripts/scalesim.py", *sys.argv[1:]])
    return write_results(
        arguments.output,
        "scalesim",
        lambda: measure(arguments.build_dir, arguments.max_cycles, command),
        render,
    )


if __name__ == "__main__":
    sys.exit(main())
