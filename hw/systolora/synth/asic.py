"""One unit in standard cells of any Liberty files: Yosys and ABC for area, OpenSTA for timing."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from systolora.synth.designs import Design
from systolora.synth.liberty import Library
from systolora.synth.power_liberty import corrected, power_texts
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["ACTIVITY", "NETLIST", "map_to_cells", "time_cells"]

NETLIST, STAT, TIMING = "netlist.v", "stat.json", "timing.json"
#: Transitions per cycle of every net where no simulation says better.
ACTIVITY = 0.2
#: What an output drives: this many inputs of the driving buffer.
_LOAD_INPUTS = 4
_CLOCK = "clk"


def _files(library: Library) -> list[str]:
    return [f"lib{number}.lib" for number in range(len(library.texts))]


def _script(design: Design, library: Library, period_ps: float) -> str:
    liberty = " ".join(f"-liberty {name}" for name in _files(library))
    unusable = " ".join(f"-dont_use {c.name}" for c in library.cells.values() if not c.usable)
    lines = [
        "read_verilog design.v",
        f"hierarchy -check -top {design.top}",
        # Module by module, so that 64 PEs are one: what they drive is buffered inside each
        f"synth {'-flatten ' if design.flat else ''}-top {design.top}",
        f"dfflibmap {liberty}",
        "opt_clean",
        f"abc -D {period_ps:.0f} -constr abc.constr {liberty} {unusable}",
        "flatten",
        "setundef -zero",
        "opt_clean -purge",
    ]
    high, low = library.constant("1"), library.constant("0")
    if high and low:
        lines.append(f"hilomap -singleton -hicell {high[0]} {high[1]} -locell {low[0]} {low[1]}")
    lines += [
        "opt_clean -purge",
        f"tee -q -o {STAT} stat -json {liberty}",
        f"write_verilog -noattr -noexpr -nohex {NETLIST}",
        "",
    ]
    return "\n".join(lines)


def map_to_cells(
    design: Design, library: Library, period_ns: float, yosys: Tool, workspace: Workspace
) -> tuple[dict[str, Any], Path]:
    """The area of a unit, and the directory of its netlist.

    The entry holds `area` and `sequential_area` (the library's unit, um2 as a rule), `cells` by
    type, `area_per_pe` where there are PEs. ABC aims at `period_ns`, sizes gates and buffers what
    drives many.

    Raises
    ------
    SynthError
        If Yosys fails, or cells are left that the library does not have.
    """
    script = _script(design, library, 1e3 * period_ns)
    load = _LOAD_INPUTS * 1.0 if library.farad == 1e-15 else _LOAD_INPUTS * 1e-3
    constraints = f"set_driving_cell {library.driver.name}\nset_load {load:g}\n"

    def run(directory: Path) -> None:
        for name, text in zip(_files(library), library.texts, strict=True):
            (directory / name).write_text(text, encoding="latin-1")
        (directory / "design.v").write_text(design.verilog, encoding="utf-8")
        (directory / "script.ys").write_text(script, encoding="utf-8")
        (directory / "abc.constr").write_text(constraints, encoding="utf-8")
        run_tool(yosys, ["script.ys"], directory, "yosys.log", workspace.progress.tick)
        for name in _files(library):
            (directory / name).unlink()  # large, and the user has them

    parts = (yosys.description, script, constraints, design.verilog, *library.texts)
    place = workspace.step(f"yosys cells {design.unit}", parts, run)
    stat = json.loads((place / STAT).read_text(encoding="utf-8"))["design"]
    cells = {
        kind.removeprefix("\\"): number
        for kind, number in stat["num_cells_by_type"].items()
        if kind != "$scopeinfo"
    }
    if left := [kind for kind in cells if kind not in library.cells]:
        raise SynthError(f"{design.unit}: the libraries have nothing for {', '.join(left)}")
    entry: dict[str, Any] = {
        "unit": design.unit,
        "pes": design.pes,
        "area": round(sum(library.cells[kind].area * n for kind, n in cells.items()), 4),
        "sequential_area": round(
            sum(library.cells[kind].area * n for kind, n in cells.items()
                if library.cells[kind].flip_flop), 4),
        "cells": dict(sorted(cells.items())),
    }  # fmt: skip
    if design.pes:
        entry["area_per_pe"] = round(entry["area"] / design.pes, 3)
    return entry, place


def _tcl(design: Design, library: Library, period: float, netlist: Path, clocked: bool) -> str:
    """The timing script; `period` in the unit of the library."""
    clock = f"create_clock -name clk -period {period:g} [get_ports {_CLOCK}]"
    if not clocked:
        clock = f"create_clock -name clk -period {period:g}"
    return "\n".join(
        (
            *(f"read_liberty {name}" for name in _files(library)),
            f"read_verilog {{{netlist / NETLIST}}}",
            f"link_design {design.top}",
            clock,
            # Not the clock: one buffer for all registers would have absurd edges, and power
            "set inputs {}",
            "foreach port [all_inputs] { "
            f'if {{[get_property $port full_name] ne "{_CLOCK}"}} {{lappend inputs $port}} }}',
            f"set_driving_cell -lib_cell {library.driver.name} $inputs",
            "set_input_delay 0 -clock clk $inputs",
            "set_output_delay 0 -clock clk [all_outputs]",
            "set path [lindex [find_timing_paths -path_delay max] 0]",
            "set slack [get_property $path slack]",
            "set from [get_property [get_property $path startpoint] full_name]",
            "set to [get_property [get_property $path endpoint] full_name]",
            "report_checks -path_delay max -format full > path.txt",
            f"set_power_activity -global -activity {ACTIVITY}",
            "set power [join [lrange [sta::design_power [sta::cmd_corner]] 0 3] ,]",
            f"set out [open {TIMING} w]",
            r'puts $out "{\"slack\": $slack, \"power\": \[$power\], '
            r'\"from\": \"$from\", \"to\": \"$to\"}"',
            "close $out",
            "exit 0",
            "",
        )
    )


def time_cells(
    design: Design,
    library: Library,
    period_ns: float,
    netlist: Path,
    cells: Collection[str],
    factor: float | None,
    sta: Tool,
    workspace: Workspace,
) -> dict[str, Any]:
    """Timing and power of a netlist of `cells` before layout: an ideal clock, no wires.

    The result has `period_ns`, `slack_ns`, `fmax_mhz` (of the worst path, from and to ports too:
    both have no delay of their own), the ends of the `critical_path`, and with a `factor` (that of
    `power_liberty.internal_factor`) `power_w` at that period with `ACTIVITY` at every net.
    """
    unit = library.second * 1e9
    clocked = any(line.strip().rstrip(";") == f"input {_CLOCK}"
                  for line in (netlist / NETLIST).read_text().splitlines())  # fmt: skip
    texts = power_texts(library, cells)
    tcl = _tcl(design, library, period_ns / unit, netlist, clocked)

    def run(directory: Path) -> None:
        for name, text in zip(_files(library), texts, strict=True):
            (directory / name).write_text(text, encoding="latin-1")
        (directory / "timing.tcl").write_text(tcl, encoding="utf-8")
        said = run_tool(sta, ["timing.tcl"], directory, "sta.log", workspace.progress.tick)
        for name in _files(library):
            (directory / name).unlink()
        if not (directory / TIMING).is_file():
            errors = [line for line in said.splitlines() if "rror" in line] or ["no result"]
            raise SynthError(f"sta failed: {errors[0]}")

    parts = (sta.description, tcl.replace(str(netlist), ""), netlist.name, *texts)
    place = workspace.step(f"sta {design.unit}", parts, run)
    found = json.loads((place / TIMING).read_text(encoding="utf-8"))
    slack = found["slack"] * unit
    entry: dict[str, Any] = {
        "period_ns": period_ns,
        "slack_ns": round(slack, 5),
        "fmax_mhz": round(1e3 / (period_ns - slack), 2),
        "critical_path": {"from": found["from"], "to": found["to"]},
    }
    if factor is not None:
        entry["power_w"] = corrected(found["power"], factor)["total_w"]
    return entry
