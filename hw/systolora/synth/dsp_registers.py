"""Moves registers around ECP5 multipliers into the multipliers' own, which are there anyway.

Yosys leaves every register of `MULT18X18D` unused: operands and product then lie in slices that the
placer puts somewhere between the multiplier and the logic, and the ways there and back are half of
the longest path. The pass works on Yosys' JSON netlist:

- the product goes to the output register if each of its bits feeds one flip-flop and nothing else;
- an operand goes to the input register if each of its bits comes from a flip-flop, or is constant
  zero. A flip-flop that feeds others too stays for them.

All flip-flops of one side must have the same clock and enable, and no reset. Values are the same in
every cycle, from power-up (zero in both) on.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Moved", "absorb_registers"]

Bit = int | str
_WIDTH = {"A": 18, "B": 18, "P": 36}


@dataclass(frozen=True)
class Moved:
    """How many operands and products went into multipliers, how many flip-flops that saved."""

    operands: int
    products: int
    flip_flops: int


def _control(cell: dict[str, Any]) -> tuple[Bit, Bit] | None:
    """Clock and enable of a flip-flop that a multiplier's register can stand for, else None."""
    ports, parameters = cell["connections"], cell["parameters"]
    usual = {"GSR": "AUTO", "CEMUX": "CE", "CLKMUX": "CLK", "LSRMUX": "LSR", "REGSET": "RESET"}
    if any(parameters.get(name, value) not in (value, "DISABLED") for name, value in usual.items()
           if name != "CEMUX"):  # fmt: skip
        return None
    if ports.get("LSR", ["0"])[0] not in ("0", "x"):
        return None
    # Yosys ends a text with a space where it could be taken for a number
    mux = parameters.get("CEMUX", "1").strip()
    if mux not in ("1", "CE"):
        return None
    return ports["CLK"][0], "1" if mux == "1" else ports.get("CE", ["1"])[0]


class _Netlist:
    """One flat module: who drives and who reads each bit."""

    def __init__(self, module: dict[str, Any]) -> None:
        self.cells: dict[str, dict[str, Any]] = module["cells"]
        self.readers: dict[Bit, list[tuple[str, str]]] = defaultdict(list)
        self.drivers: dict[Bit, str] = {}
        for name, cell in self.cells.items():
            for port, bits in cell["connections"].items():
                for bit in bits:
                    if cell["port_directions"][port] == "output":
                        self.drivers[bit] = name
                    else:
                        self.readers[bit].append((name, port))
        for port in module["ports"].values():
            if port["direction"] != "input":
                for bit in port["bits"]:
                    self.readers[bit].append(("", ""))

    def flip_flop(self, name: str | None) -> dict[str, Any] | None:
        cell = self.cells.get(name) if name is not None else None
        return cell if cell is not None and cell["type"] == "TRELLIS_FF" else None


def _one(controls: Iterable[tuple[Bit, Bit] | None]) -> tuple[Bit, Bit] | None:
    """The control that all share, if they do."""
    different = set(controls)
    return different.pop() if len(different) == 1 else None


def _use(cell: dict[str, Any], register: str, control: tuple[Bit, Bit]) -> bool:
    """Turns on a register of a multiplier; False if it has another clock, or no enable is left."""
    ports, parameters = cell["connections"], cell["parameters"]
    clock, enable = control
    if ports.setdefault("CLK0", [clock])[0] != clock:
        return False
    for number in range(4):
        if ports.setdefault(f"CE{number}", [enable])[0] == enable:
            break
    else:
        return False
    cell["port_directions"].update({"CLK0": "input", "RST0": "input", f"CE{number}": "input"})
    ports["RST0"] = ["0"]
    parameters[f"REG_{register}_CLK"] = "CLK0"
    parameters[f"REG_{register}_CE"] = f"CE{number}"
    parameters[f"REG_{register}_RST"] = "RST0"
    return True


def _product(net: _Netlist, cell: dict[str, Any]) -> bool:
    ports = cell["connections"]
    used = {i: ports[f"P{i}"][0] for i in range(_WIDTH["P"])
            if ports.get(f"P{i}") and net.readers[ports[f"P{i}"][0]]}  # fmt: skip
    registers: dict[int, str] = {}
    for i, bit in used.items():
        readers = net.readers[bit]
        if len(readers) != 1 or readers[0][1] != "DI" or not net.flip_flop(readers[0][0]):
            return False
        registers[i] = readers[0][0]
    control = _one(_control(net.cells[name]) for name in registers.values())
    if control is None or not _use(cell, "OUTPUT", control):
        return False
    for i, name in registers.items():
        ports[f"P{i}"] = net.cells.pop(name)["connections"]["Q"]
    return True


def _operand(net: _Netlist, name: str, cell: dict[str, Any], side: str) -> bool:
    ports = cell["connections"]
    bits = {f"{side}{i}": ports[f"{side}{i}"][0] for i in range(_WIDTH[side])}
    registers: dict[str, str] = {}
    for port, bit in bits.items():
        if bit in ("0", "x"):
            continue
        driver = net.drivers.get(bit)
        if driver is None or net.flip_flop(driver) is None:
            return False
        registers[port] = driver
    control = _one(_control(net.cells[driver]) for driver in registers.values())
    if control is None or not _use(cell, f"INPUT{side}", control):
        return False
    for port, driver in registers.items():
        data = net.cells[driver]["connections"]["DI"][0]
        net.readers[bits[port]].remove((name, port))
        net.readers[data].append((name, port))
        ports[port] = [data]
    for driver in set(registers.values()):
        if not net.readers[net.cells[driver]["connections"]["Q"][0]]:
            gone = net.cells.pop(driver)
            for port, (bit,) in gone["connections"].items():
                if gone["port_directions"][port] == "input":
                    net.readers[bit].remove((driver, port))
    return True


def absorb_registers(netlist: dict[str, Any], top: str) -> Moved:
    """Changes a netlist (Yosys' JSON, flat, top module `top`) in place; says what it moved."""
    module = netlist["modules"][top]
    net = _Netlist(module)
    before = sum(cell["type"] == "TRELLIS_FF" for cell in net.cells.values())
    products = operands = 0
    for name, cell in [c for c in net.cells.items() if c[1]["type"] == "MULT18X18D"]:
        # A multiplier with registers of its own was placed by hand
        if any(key.startswith("REG_") for key in cell["parameters"]):
            continue
        products += _product(net, cell)
        operands += sum(_operand(net, name, cell, side) for side in "AB")
    after = sum(cell["type"] == "TRELLIS_FF" for cell in net.cells.values())
    return Moved(operands, products, before - after)
