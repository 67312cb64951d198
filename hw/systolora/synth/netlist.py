"""A mapped netlist as cells, pins and nets."""

import json
from dataclasses import dataclass
from pathlib import Path

from systolora.synth.asic import NETLIST
from systolora.synth.liberty import Library
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["Instance", "Netlist", "read_netlist"]

_JSON = "netlist.json"
#: Nets of the constants; all others count from 2.
LOW, HIGH = 0, 1


@dataclass(frozen=True)
class Instance:
    """A cell: its name, its type, the net at each pin."""

    name: str
    kind: str
    pins: dict[str, int]


@dataclass(frozen=True)
class Netlist:
    """A flat module of cells. Nets are numbers; 0 and 1 are the constants.

    Members
    -------
    top : name of the module
    names : of each net, as Verilog has them without escapes ("a[3]")
    ports : direction and nets of each port, lowest bit first
    cells : what is between
    """

    top: str
    names: list[str]
    ports: dict[str, tuple[str, list[int]]]
    cells: list[Instance]


def read_netlist(
    place: Path, top: str, library: Library, yosys: Tool, workspace: Workspace
) -> Netlist:
    """The netlist that `asic.map_to_cells` left in the directory `place`.

    Raises
    ------
    SynthError
        If Yosys fails, or a cell is not of the library.
    """

    def run(directory: Path) -> None:
        text = (place / NETLIST).read_text(encoding="utf-8")
        (directory / NETLIST).write_text(text, encoding="utf-8")
        (directory / "script.ys").write_text(
            f"read_verilog {NETLIST}\nwrite_json {_JSON}\n", encoding="utf-8"
        )
        run_tool(yosys, ["script.ys"], directory, "yosys.log", workspace.progress.tick)

    parts = (yosys.description, "netlist as json", (place / NETLIST).read_text(encoding="utf-8"))
    found = workspace.step(f"netlist of {top}", parts, run)
    module = json.loads((found / _JSON).read_text(encoding="utf-8"))["modules"][top]
    return _netlist(module, top, library)


def _netlist(module: dict, top: str, library: Library) -> Netlist:
    numbers: dict[int | str, int] = {"0": LOW, "1": HIGH, "x": LOW}
    names = ["0", "1"]

    def net(bit: int | str) -> int:
        if bit not in numbers:
            numbers[bit] = len(names)
            names.append("")
        return numbers[bit]

    ports = {
        name: (port["direction"], [net(bit) for bit in port["bits"]])
        for name, port in module["ports"].items()
    }
    cells = []
    for name, cell in module["cells"].items():
        if cell["type"] not in library.cells:
            raise SynthError(f"{top}: cell {name}: the libraries have no {cell['type']}")
        pins = {pin: net(bits[0]) for pin, bits in cell["connections"].items() if bits}
        cells.append(Instance(name, cell["type"], pins))
    for name, wire in module["netnames"].items():
        first = wire.get("offset", 0)
        for position, bit in enumerate(wire["bits"]):
            number = net(bit)
            if number > HIGH and not names[number]:
                single = len(wire["bits"]) == 1 and not first
                names[number] = name if single else f"{name}[{first + position}]"
    return Netlist(top, names, ports, cells)
