"""One unit on one FPGA: Yosys for area, nextpnr for frequency."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from systolora.synth.designs import Design
from systolora.synth.harness import PREFIX, wrap
from systolora.synth.targets import Target
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["DoesNotFit", "count", "netlist_directory", "overflow", "place_and_route"]
__all__ += ["refuse_overflow", "synthesize", "too_many"]

NETLIST, STAT = "netlist.json", "stat.json"

#: What a read gives of a word that is written in the same cycle matters to no memory of ours
#: (tests/test_black_boxes.py): without this, block RAMs get logic that makes it the old word.
_MEMORIES = ("proc", "setattr -set no_rw_check 1 m:*")


class DoesNotFit(SynthError):
    """nextpnr found too few places; a phrase for everything that it has too few of."""

    def __init__(self, phrases: list[str]) -> None:
        super().__init__(", ".join(phrases))
        self.phrases = phrases


def count(cells: Mapping[str, int], target: Target) -> dict[str, int]:
    """What the target's report counts, from numbers of cells by type."""
    return {
        name: sum(weight * cells.get(kind, 0) for kind, weight in kinds.items())
        for name, kinds in target.counts.items()
    }


def overflow(counts: Mapping[str, int], target: Target) -> list[str]:
    """A phrase for everything of which there is more than the device has."""
    return [
        f"{name} {counts[name]} of {capacity} ({counts[name] - capacity} too many)"
        for name, capacity in target.capacity.items()
        if counts[name] > capacity
    ]


def netlist_directory(design: Design, target: Target, yosys: Tool, workspace: Workspace) -> Path:
    """The directory with the flat netlist as JSON and Verilog, and its numbers of cells."""
    script = "\n".join(
        (
            "read_verilog design.v",
            f"hierarchy -check -top {design.top}",
            *_MEMORIES,
            target.synth.format(top=design.top),
            f"tee -q -o {STAT} stat -json",
            f"write_json {NETLIST}",
            "write_verilog -noattr netlist.v",
            "",
        )
    )

    def run(directory: Path) -> None:
        (directory / "design.v").write_text(design.verilog, encoding="utf-8")
        (directory / "script.ys").write_text(script, encoding="utf-8")
        run_tool(yosys, ["script.ys"], directory, "yosys.log", workspace.progress.tick)

    return workspace.step(
        f"yosys {target.name} {design.unit}", (yosys.description, script, design.verilog), run
    )


def synthesize(
    design: Design, target: Target, yosys: Tool, workspace: Workspace
) -> tuple[dict[str, Any], Path]:
    """The area of a unit, and the directory of its netlist (`netlist_directory`).

    The entry holds `area` (what the target counts), `cells` (numbers by type), `per_pe` (area over
    PEs, where there are any) and `overflow` (see that function).
    """
    place = netlist_directory(design, target, yosys, workspace)
    stat = json.loads((place / STAT).read_text(encoding="utf-8"))
    cells = {
        kind.removeprefix("\\"): number
        for kind, number in stat["design"]["num_cells_by_type"].items()
        if kind != "$scopeinfo"
    }
    area = count(cells, target)
    entry: dict[str, Any] = {
        "unit": design.unit,
        "pes": design.pes,
        "area": area,
        "cells": dict(sorted(cells.items())),
        "overflow": overflow(area, target),
    }
    if design.pes:
        entry["per_pe"] = {name: round(value / design.pes, 2) for name, value in area.items()}
    return entry, place


def place_and_route(
    design: Design,
    target: Target,
    netlist: Path,
    nextpnr: Tool,
    seeds: Sequence[int],
    workspace: Workspace,
) -> dict[str, Any]:
    """Frequencies of a unit after placing and routing, one for each seed.

    The result has `fmax_mhz` (the median), `seeds` (MHz by seed, None where nothing lies between
    two registers), `used` (what nextpnr placed, harness included), `critical_path` of the median's
    seed, and where there are such: `harness` (its parts, see `harness.Harness`) and `untimed`
    (numbers of cells that the frequency leaves the paths through out of, by type).

    Raises
    ------
    DoesNotFit
        If the device has too few of something.
    SynthError
        If nextpnr fails otherwise.
    """
    pnr = target.pnr
    if pnr is None:
        raise ValueError(f"{target.name}: has no nextpnr")
    text = (netlist / NETLIST).read_text(encoding="utf-8")
    unit = json.loads(text)
    entry: dict[str, Any] = {}
    if untimed := _untimed(unit["modules"][design.top], pnr.untimed):
        entry["untimed"] = untimed
    if pnr.harness is not None:
        wrapped, harness = wrap(unit, design.top, pnr.harness)
        text = json.dumps(wrapped)
        entry["harness"] = asdict(harness)
    results: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        arguments = [
            *pnr.arguments,
            *("--json", NETLIST, "--freq", str(pnr.freq), "--seed", str(seed)),
            *("--report", "report.json", "--timing-allow-fail"),
            *(("--out-of-context",) if pnr.harness is None else ()),
        ]

        def run(directory: Path, arguments: Sequence[str] = arguments) -> None:
            # A copy: a tool in WebAssembly sees nothing outside of its directory
            copy = directory / NETLIST
            copy.write_text(text, encoding="utf-8")
            try:
                run_tool(nextpnr, arguments, directory, "nextpnr.log", workspace.progress.tick)
            except SynthError:
                log = (directory / "nextpnr.log").read_text(encoding="utf-8", errors="replace")
                if phrases := too_many(log, ", the harness included" if pnr.harness else ""):
                    raise DoesNotFit(phrases) from None
                raise
            copy.unlink()

        place = workspace.step(
            f"{nextpnr.name} {design.unit} seed {seed}",
            (nextpnr.description, *arguments, text),
            run,
        )
        results[seed] = json.loads((place / "report.json").read_text(encoding="utf-8"))
    fmax = {seed: _fmax(report) for seed, report in results.items()}
    timed = sorted((value, seed) for seed, value in fmax.items() if value is not None)
    entry["seeds"] = {str(seed): value for seed, value in fmax.items()}
    if timed:
        median = timed[(len(timed) - 1) // 2][1]
        entry["fmax_mhz"] = round(statistics.median(value for value, _ in timed), 2)
        entry["critical_path"] = _critical(results[median])
    entry["used"] = {
        name: row["used"]
        for name, row in results[next(iter(results))]["utilization"].items()
        if row["used"]
    }
    return entry


def _untimed(module: Mapping[str, Any], kinds: frozenset[str]) -> dict[str, int]:
    """How many cells of those types a module has."""
    found = [cell["type"] for cell in module["cells"].values() if cell["type"] in kinds]
    return {kind: found.count(kind) for kind in sorted(set(found))}


def too_many(log: str, remark: str = "") -> list[str]:
    """A phrase for everything of which a log of nextpnr says that it is over 100% of the device."""
    rows = re.findall(r"^Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%$", log, re.MULTILINE)
    return [
        f"{name} {used} of {most} ({int(used) - int(most)} too many{remark})"
        for name, used, most in dict.fromkeys(rows)
        if int(used) > int(most)
    ]


def _fmax(report: Mapping[str, Any]) -> float | None:
    """MHz of the unit's clock; None without one (nothing between two registers)."""
    values = [
        clock["achieved"] for name, clock in report["fmax"].items() if not name.startswith(PREFIX)
    ]
    return round(min(values), 2) if values else None


def _critical(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The longest path from clock to clock: its ends, and how its delay is made up, in ns."""
    paths = [
        path
        for path in report["critical_paths"]
        if path["from"] == path["to"] and PREFIX not in path["from"]
    ]
    if not paths:
        return None
    path = max(paths, key=lambda p: sum(step["delay"] for step in p["path"]))["path"]
    parts: dict[str, float] = {}
    for step in path:
        parts[step["type"]] = parts.get(step["type"], 0.0) + step["delay"]
    return {
        "from": path[0]["from"]["cell"],
        "to": path[-1]["to"]["cell"],
        "ns": {kind: round(delay, 2) for kind, delay in parts.items()},
        "through": [step["from"]["cell"] for step in path if step["type"] == "logic"],
    }


def refuse_overflow(entry: Mapping[str, Any], target: Target) -> None:
    """SynthError if a unit does not fit."""
    if entry["overflow"]:
        raise SynthError(
            f"{entry['unit']} does not fit {target.name}: {', '.join(entry['overflow'])}"
        )
