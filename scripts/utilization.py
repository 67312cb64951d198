"""Measures docs/results/utilization.* and writes them there.

Every run is kept below the build directory: a second call measures only what has changed since. A
first one builds four simulators of 64 x 64 and simulates 9 million cycles: more than an hour on two
cores.
"""

import argparse
import sys
from pathlib import Path

from systolora_sim.results_script import write_results
from systolora_sim.utilization import measure
from systolora_sim.utilization_cases import LATENCY
from systolora_sim.utilization_report import render
from systolora_sim.utilization_runs import Runs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build-dir", type=Path, default=Path("build"))
    parser.add_argument("--long", action="store_true", help="simulate every step of ours whole")
    parser.add_argument(
        "--no-simulation", action="store_true", help="only what was simulated before is shown"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs") / "results")
    arguments = parser.parse_args()
    simulate = not arguments.no_simulation
    runs = Runs(arguments.build_dir, LATENCY, simulate=simulate, progress=True)
    return write_results(
        arguments.output, "utilization", lambda: measure(runs, long=arguments.long), render
    )


if __name__ == "__main__":
    sys.exit(main())
