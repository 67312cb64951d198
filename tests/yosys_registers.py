"""Cuts the registers out of two flat designs, for proofs: what is left has no state.

Registers with a name in common get one free input for their values, and their next values become
outputs that a miter compares. If they start alike, and next values and outputs are alike whatever
the values, then both designs do the same for ever. That asks for more than equivalence: what
would happen in states that are never reached counts too.

Works on the dictionaries of `write_json`, in which every register is a `$dff`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Bit", "Name", "cut_registers", "names_of_bits"]

Bit = int | str
Name = tuple[str, int]
#: Numbers that Yosys takes for a name where there is none: they differ from file to file.
_MADE_UP = re.compile(r"(^|\.)_\d+_$")


@dataclass(frozen=True)
class _Register:
    """One bit: its design (0, 1), its value, its next value, how it starts, its names."""

    side: int
    value: Bit
    following: Bit
    starts: str
    names: frozenset[Name]


def names_of_bits(module: dict[str, Any]) -> dict[Bit, set[Name]]:
    """The names that somebody gave to a module's bits, with their places in them."""
    names: dict[Bit, set[Name]] = {}
    for name, net in module["netnames"].items():
        if not net.get("hide_name") and not _MADE_UP.search(name):
            for place, bit in enumerate(net["bits"]):
                names.setdefault(bit, set()).add((name, net.get("offset", 0) + place))
    return names


def _starts(module: dict[str, Any]) -> dict[Bit, str]:
    """Takes the power-up values, "0" or "1", out of a module."""
    starts: dict[Bit, str] = {}
    for net in module["netnames"].values():
        start = net["attributes"].pop("init", "")
        # Without leading zeros, perhaps
        starts |= {
            bit: value
            for bit, value in zip(net["bits"], start[::-1], strict=False)
            if value in "01"
        }
    return starts


def _registers(module: dict[str, Any], side: int) -> Iterator[_Register]:
    """Takes the registers out of a module; without a power-up value they start at 0."""
    names, starts = names_of_bits(module), _starts(module)
    clocks = set()
    for name, cell in list(module["cells"].items()):
        if "CLK" not in cell["connections"]:
            continue
        if cell["type"] != "$dff":
            raise ValueError(f"{name}: a {cell['type']}, not a $dff")
        clocks.add((*cell["connections"]["CLK"], cell["parameters"]["CLK_POLARITY"]))
        del module["cells"][name]
        ports = cell["connections"]
        for value, following in zip(ports["Q"], ports["D"], strict=True):
            start = starts.get(value, "0")
            yield _Register(side, value, following, start, frozenset(names.get(value, ())))
    if len(clocks) > 1:
        raise ValueError(f"{len(clocks)} clocks")


def _groups(registers: list[_Register]) -> list[list[_Register]]:
    """Registers that share names, also by way of others."""
    groups: list[list[_Register]] = []
    by_name: dict[Name, int] = {}
    for register in registers:
        group = [register]
        for number in sorted({by_name[name] for name in register.names if name in by_name}):
            group += groups[number]
            groups[number] = []
        by_name |= {name: len(groups) for member in group for name in member.names}
        groups.append(group)
    return [group for group in groups if group]


def _port(module: dict[str, Any], name: str, direction: str, bit: Bit) -> None:
    module["ports"][name] = {"direction": direction, "bits": [bit]}
    module["netnames"][name] = {"hide_name": 0, "bits": [bit], "attributes": {}}


def _replace(module: dict[str, Any], new: dict[Bit, Bit]) -> None:
    """Other nets in the place of some."""
    for part in (*module["ports"].values(), *module["netnames"].values()):
        part["bits"] = [new.get(bit, bit) for bit in part["bits"]]
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            cell["connections"][port] = [new.get(bit, bit) for bit in bits]


def cut_registers(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Replaces the registers of two modules by ports; the result is the number of pairs.

    Ports are named `value_<number>` (inputs) and `following_<number>` (outputs).

    Raises
    ------
    ValueError
        If a register has no counterpart, or starts otherwise than its counterpart.
    """
    modules = (first, second)
    same: list[dict[Bit, Bit]] = [{}, {}]
    pairs = 0
    registers = [*_registers(first, 0), *_registers(second, 1)]
    for number, group in enumerate(_groups(registers)):
        sides = [[register for register in group if register.side == side] for side in (0, 1)]
        name, place = min((name for register in group for name in register.names), default=("?", 0))
        if not all(sides):
            there = "first" if sides[0] else "second"
            raise ValueError(f"register {name}[{place}]: in the {there} design alone")
        if len({register.starts for register in group}) > 1:
            raise ValueError(f"register {name}[{place}]: starts at 0 and at 1")
        for side, module in enumerate(modules):
            _port(module, f"value_{number}", "input", sides[side][0].value)
            same[side] |= {register.value: sides[side][0].value for register in sides[side]}
        for row in range(max(map(len, sides))):
            for side, module in enumerate(modules):
                register = sides[side][min(row, len(sides[side]) - 1)]
                _port(module, f"following_{pairs}", "output", register.following)
            pairs += 1
    for module, new in zip(modules, same, strict=True):
        _replace(module, new)
    return pairs
