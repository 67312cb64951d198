"""A whole run of `systolora synth`: which steps, in which order, into one report."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolora.config import AcceleratorConfig
from systolora.synth.asic import map_to_cells, time_cells
from systolora.synth.designs import Design, generate
from systolora.synth.fpga import DoesNotFit, place_and_route, refuse_overflow, synthesize
from systolora.synth.liberty import Library, read_library
from systolora.synth.power_liberty import internal_factor
from systolora.synth.report import VERSION, Report
from systolora.synth.targets import Target
from systolora.synth.tools import SynthError, Tool, find_nextpnr, find_sta, find_yosys
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
    liberty : files of one technology, for standard cells; none: no standard cells
    period_ns : of the clock that standard cells are mapped and timed for
    sta : time standard cells
    yosys : which one, see `tools.find_yosys`
    build_dir : where results of the tools are kept and found again
    """

    config: AcceleratorConfig
    units: Sequence[str]
    timed: Sequence[str] = ()
    targets: Sequence[Target] = ()
    seeds: Sequence[int] = ()
    liberty: Sequence[Path] = ()
    period_ns: float = 1.0
    sta: bool = True
    yosys: str = "auto"
    build_dir: Path = Path("build")
    quiet: bool = False


def run(options: Options) -> Report:
    """The report of everything that the options name.

    Raises
    ------
    SynthError
        If a tool is missing or fails, a library lacks something, or the only target is too small.
    """
    library = read_library(options.liberty) if options.liberty else None
    yosys = find_yosys(options.yosys)
    sta = find_sta() if library is not None and options.sta else None
    timed = [unit for unit in options.units if unit in options.timed]
    nextpnr = {
        t.name: find_nextpnr(t.pnr.family) for t in options.targets if t.pnr is not None and timed
    }
    steps = len(options.targets) * len(options.units)
    steps += len(nextpnr) * len(timed) * len(options.seeds)
    steps += len(options.units) * ((library is not None) + (sta is not None))
    steps += sta is not None  # its known energies
    progress = Progress(steps, options.quiet)
    workspace = Workspace(options.build_dir / "synth", progress)
    found = [yosys, *nextpnr.values(), *([sta] if sta is not None else [])]
    report: Report = {
        "version": VERSION,
        "configuration": options.config.to_dict(),
        "digest": options.config.digest,
        "tools": {tool.name: tool.description for tool in found},
        "fpga": {},
        "cells": {},
    }
    try:
        designs = [generate(options.config, unit) for unit in options.units]
        for target in options.targets:
            report["fpga"][target.name] = [
                _fpga(options, design, target, yosys, nextpnr.get(target.name), workspace)
                for design in designs
            ]
        if library is not None:
            factor = None if sta is None else _power_factor(sta, workspace)
            entries = [
                _cells(options, design, library, yosys, sta, factor, workspace)
                for design in designs
            ]
            _share(entries)
            report["cells"][", ".join(library.names)] = entries
    finally:
        progress.close()
    return report


def _fpga(
    options: Options,
    design: Design,
    target: Target,
    yosys: Tool,
    nextpnr: Tool | None,
    workspace: Workspace,
) -> Any:
    entry, netlist = synthesize(design, target, yosys, workspace)
    if len(options.targets) == 1:
        refuse_overflow(entry, target)
    if nextpnr is not None and target.pnr is not None and design.unit in options.timed:
        before = workspace.progress.done
        if not entry["overflow"]:
            try:
                entry |= place_and_route(design, target, netlist, nextpnr, options.seeds, workspace)
            except DoesNotFit as error:
                entry["overflow"] = error.phrases
                entry["seeds"] = {str(seed): None for seed in options.seeds}
                if len(options.targets) == 1:
                    refuse_overflow(entry, target)
        while workspace.progress.done < before + len(options.seeds):
            workspace.progress.finish()
    return entry


def _cells(
    options: Options,
    design: Design,
    library: Library,
    yosys: Tool,
    sta: Tool | None,
    factor: float | None,
    workspace: Workspace,
) -> Any:
    entry, netlist = map_to_cells(design, library, options.period_ns, yosys, workspace)
    if sta is not None:
        entry |= time_cells(
            design, library, options.period_ns, netlist, entry["cells"], factor, sta, workspace
        )
    return entry


def _power_factor(sta: Tool, workspace: Workspace) -> float | None:
    """`internal_factor`; None, and a line that says so, with an OpenSTA that it does not know:
    timing does without."""
    try:
        return internal_factor(sta, workspace)
    except SynthError as error:
        print(f"no power in the report: {error}", file=sys.stderr)
        return None


def _share(entries: Sequence[Any]) -> None:
    """Which part of the PEs and of the array multiplies, where a multiplier alone was mapped."""
    alone = next((e["area"] for e in entries if e["unit"] == "multiplier"), None)
    for entry in entries:
        if alone is not None and entry["pes"] and entry["unit"] != "os_pe":
            entry["multiplier_share"] = round(alone * entry["pes"] / entry["area"], 4)
