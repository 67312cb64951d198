"""The options of what computes a layer, which `run` and `replay` share."""

import argparse
from pathlib import Path

__all__ = ["add_backend", "add_build_dir"]


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds the option --backend."""
    parser.add_argument(
        "--backend",
        choices=("golden", "machine", "rtl"),
        default="golden",
        help="what computes: the golden model (default), the functional machine or the simulated "
        "Verilog",
    )


def add_build_dir(parser: argparse.ArgumentParser) -> None:
    """Adds the options --build-dir and --quiet."""
    parser.add_argument(
        "--build-dir",
        metavar="DIR",
        type=Path,
        help="rtl: where Verilog and built simulators are kept and found again",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
