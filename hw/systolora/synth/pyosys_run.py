"""Runs a Yosys script in the Yosys of the package pyosys: `python -m ... SCRIPT`."""

import sys


def _main(script: str) -> None:
    from pyosys import libyosys  # pyright: ignore[reportAttributeAccessIssue]

    libyosys.run_pass(f"script {script}", libyosys.Design())


if __name__ == "__main__":
    _main(sys.argv[1])
