"""Power of a netlist from the activity of its nets, by OpenSTA: before layout, no wires."""

import json
from pathlib import Path
from typing import Any

from systolora.synth.asic import NETLIST
from systolora.synth.liberty import Library
from systolora.synth.netlist import HIGH, Netlist
from systolora.synth.power_liberty import corrected, power_texts
from systolora.synth.saif import NetActivity, read_saif
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["power"]

_POWER, _PINS = "power.json", "pins.tcl"
#: What `sta::design_power` returns: four figures for each of these.
_KINDS = ("total", "registers", "logic", "macros", "pads")
_CLOCK = "clk"


def _pin_script(netlist: Netlist, library: Library, nets: dict[str, NetActivity]) -> str:
    """Activity of every pin that is not on the clock.

    OpenSTA 2.0.17 reads neither VCD nor SAIF, and its `set_power_activity -pins` fails.
    """
    clock = set(netlist.ports.get(_CLOCK, ("", []))[1])
    lines, missing = [], []
    for name, (direction, bits) in netlist.ports.items():
        for position, net in enumerate(bits):
            if (
                direction == "input"
                and net not in clock
                and (found := nets.get(netlist.names[net]))
            ):
                port = f"{name}[{position}]" if len(bits) > 1 else name
                lines.append(
                    f"sta::set_power_input_port_activity [get_ports {{{port}}}]"
                    f" {found.toggles:.6g} {found.ones:.6g}"
                )
    for cell in netlist.cells:
        kind = library.cells[cell.kind]
        for pin, net in cell.pins.items():
            if net in clock:
                continue
            if net <= HIGH or (not kind.inputs):
                found = NetActivity(0.0, float(net == HIGH))
            elif (found := nets.get(netlist.names[net])) is None:
                missing.append(netlist.names[net])
                continue
            lines.append(f"a {{{cell.name}/{pin}}} {found.toggles:.6g} {found.ones:.6g}")
    if missing:
        raise SynthError(
            f"{netlist.top}: {len(missing)} nets without activity, as {sorted(missing)[0]}"
        )
    return "\n".join(
        ("proc a {p t d} {sta::set_power_pin_activity [get_pins $p] $t $d}", *lines, "")
    )


def power(
    netlist: Netlist,
    library: Library,
    place: Path,
    saif: str,
    period_ns: float,
    factor: float,
    sta: Tool,
    workspace: Workspace,
) -> dict[str, Any]:
    """W at a period, by "total", "registers", "logic"; each with "internal_w", "switching_w",
    "leakage_w", "total_w".

    `place` is the directory of the netlist, `saif` the text of a SAIF file with all of its nets, in
    cycles, `factor` that of `power_liberty.internal_factor`. `registers` include what their clock
    pins take; a clock tree is not there.

    Raises
    ------
    SynthError
        If a net has no activity, or OpenSTA fails.
    """
    texts = power_texts(library, {cell.kind for cell in netlist.cells})
    names = [f"lib{number}.lib" for number in range(len(texts))]
    text = (place / NETLIST).read_text(encoding="utf-8")
    period = period_ns * 1e-9 / library.second
    inputs = "set inputs {}\nforeach port [all_inputs] { "
    inputs += f'if {{[get_property $port full_name] ne "{_CLOCK}"}} {{lappend inputs $port}} }}'
    tcl = "\n".join(
        (
            *(f"read_liberty {name}" for name in names),
            f"read_verilog {NETLIST}",
            f"link_design {netlist.top}",
            f"create_clock -name clk -period {period:g} [get_ports {_CLOCK}]",
            inputs,
            f"set_driving_cell -lib_cell {library.driver.name} $inputs",
            # A cell that no clock reaches would have its changes counted per second, not per cycle
            "set_input_delay 0 -clock clk $inputs",
            f"source {_PINS}",
            f"set out [open {_POWER} w]",
            'puts $out "\\[[join [sta::design_power [sta::cmd_corner]] ,]\\]"',
            "close $out",
            "exit 0",
            "",
        )
    )

    def run(directory: Path) -> None:
        for name, content in zip(names, texts, strict=True):
            (directory / name).write_text(content, encoding="latin-1")
        (directory / NETLIST).write_text(text, encoding="utf-8")
        (directory / "activity.saif").write_text(saif, encoding="utf-8")
        nets = read_saif(directory / "activity.saif")
        (directory / _PINS).write_text(_pin_script(netlist, library, nets), encoding="utf-8")
        (directory / "power.tcl").write_text(tcl, encoding="utf-8")
        said = run_tool(sta, ["power.tcl"], directory, "sta.log", workspace.progress.tick)
        for name in names:
            (directory / name).unlink()
        errors = [line for line in said.splitlines() if "rror" in line]
        if errors or not (directory / _POWER).is_file():
            raise SynthError(f"sta failed: {(errors or ['no result'])[0]}")

    parts = (sta.description, tcl, text, saif, *texts)
    found = workspace.step(f"power of {netlist.top}", parts, run)
    values = json.loads((found / _POWER).read_text(encoding="utf-8"))
    return {
        kind: corrected(values[4 * number : 4 * number + 4], factor)
        for number, kind in enumerate(_KINDS[:3])
    }
