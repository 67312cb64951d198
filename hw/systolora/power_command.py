"""The command `systolora power`: its options, and what they start."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .arguments import clock_period

__all__ = ["add_power", "power"]

_DESCRIPTION = """\
Energy of a multiply-accumulate from the activity of simulated gates: an array of ours and textbook
arrays (int8, bf16, fp32) are mapped to standard cells, their netlists multiply tiles of a layer,
and OpenSTA makes power of what changes. Before layout: an ideal clock, no wires; no measurement.
docs/synthesis.md says what it rests on."""

_EXAMPLE = """\
examples:
  systolora power --liberty cells.lib --clock 500MHz
  systolora power --liberty A.lib B.lib.gz --array systolora,fp32 --unit-delay --json power.json"""


def add_power(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "power",
        help="energy of a MAC in standard cells, from simulated activity",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    parser.add_argument(
        "--liberty", metavar="FILE", type=Path, nargs="+", action="extend", required=True,
        help="Liberty files, gzipped or not, of one technology",
    )  # fmt: skip
    parser.add_argument(
        "--clock",
        metavar="FREQUENCY",
        type=clock_period,
        default=1.0,
        help="as 500MHz; default 1GHz",
    )
    parser.add_argument(
        "--size", metavar="N", type=int, default=4, help="rows and columns: 4 (default) or 8"
    )
    parser.add_argument(
        "--array", metavar="NAMES",
        help="of systolora, int8, bf16, fp32, skew, with commas between them; default all",
    )  # fmt: skip
    parser.add_argument(
        "--unit-delay", action="store_true",
        help="count glitches as if every cell took the same time: more than there will be",
    )  # fmt: skip
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the data, default 0")
    parser.add_argument(
        "--yosys", choices=("auto", "pyosys", "yowasp", "system"), default="auto",
        help="as of `systolora synth`",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report")
    parser.add_argument(
        "--build-dir", metavar="DIR", type=Path, default=Path("build"),
        help="where results of the tools are kept and found again, default build",
    )  # fmt: skip
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress line")
    parser.set_defaults(function=power)


def power(args: argparse.Namespace) -> None:
    """Runs the command."""
    from .synth.mac_energy import ARRAYS, EnergyOptions, measure, text
    from .synth.tools import SynthError

    if args.seed < 0:
        raise SynthError(f"--seed {args.seed}: must be 0 or more")
    report = measure(
        EnergyOptions(
            liberty=args.liberty,
            period_ns=args.clock,
            size=args.size,
            arrays=tuple(dict.fromkeys(args.array.split(","))) if args.array else ARRAYS,
            unit_delay=args.unit_delay,
            seed=args.seed,
            yosys=args.yosys,
            build_dir=args.build_dir,
            quiet=args.quiet,
        )
    )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(text(report))
