"""A whole run of `systolora synth`: which steps, in which order, into one report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolora.config import AcceleratorConfig
from systolora.synth.designs import generate
from systolora.synth.fpga import place_and_route, refuse_overflow, synthesize
from systolora.synth.report import VERSION, Report
from systolora.synth.targets import Target
from systolora.synth.tools import find_nextpnr, find_yosys
from systolora.synth.workspace import Progress, Workspace

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run.

    Parameters
    ----------
    config : what is generated
    units : of `designs.UNITS`
    timed : those of `units` that are placed and routed
    targets : FPGAs; with one target a unit that does not fit it is an error, with several a line
    seeds : of nextpnr; frequencies are their median
    yosys : which one, see `tools.find_yosys`
    build_dir : where results of the tools are kept and found again
    """

    config: AcceleratorConfig
    units: Sequence[str]
    timed: Sequence[str] = ()
    targets: Sequence[Target] = ()
    seeds: Sequence[int] = ()
    yosys: str = "auto"
    build_dir: Path = Path("build")
    quiet: bool = False


def run(options: Options) -> Report:
    """The report of everything that the options name.

    Raises
    ------
    SynthError
        If a tool is missing or fails, or the only target is too small.
    """
    yosys = find_yosys(options.yosys)
    nextpnr = {
        t.pnr.family: find_nextpnr(t.pnr.family)
        for t in options.targets
        if t.pnr is not None and t.pnr.free_ports and options.timed
    }
    timed = len([unit for unit in options.units if unit in options.timed])
    steps = len(options.targets) * len(options.units) + timed * len(options.seeds) * sum(
        t.pnr is not None and t.pnr.family in nextpnr for t in options.targets
    )
    progress = Progress(steps, options.quiet)
    workspace = Workspace(options.build_dir / "synth", progress)
    tools = {tool.name: tool.description for tool in (yosys, *nextpnr.values())}
    report: Report = {
        "version": VERSION,
        "configuration": options.config.to_dict(),
        "digest": options.config.digest,
        "tools": tools,
        "fpga": {},
        "cells": {},
    }
    try:
        designs = [generate(options.config, unit) for unit in options.units]
        for target in options.targets:
            entries: list[Any] = []
            for design in designs:
                entry, netlist = synthesize(design, target, yosys, workspace)
                entries.append(entry)
                if len(options.targets) == 1:
                    refuse_overflow(entry, target)
                pnr = target.pnr
                routed = pnr is not None and pnr.family in nextpnr and design.unit in options.timed
                if routed and not entry["overflow"]:
                    tool = nextpnr[pnr.family]  # type: ignore[union-attr]
                    entry |= place_and_route(design, pnr, netlist, tool, options.seeds, workspace)  # type: ignore[arg-type]
            report["fpga"][target.name] = entries
    finally:
        progress.close()
    return report
