"""Cuts the multipliers out of a flat design, for proofs: no engine compares wide ones bit by bit.

A product becomes an input, free and the same on both sides of a miter, and its operands become
outputs that the miter compares: with equal operands both sides multiply alike, whatever a product
is. An operand that is wider than a device's multiplier is cut into slices first: a * b is
the sum of (a's slices) * b * 2**(18 * i), the upper one with a's sign. A netlist whose
multipliers take the same slices then has the same products, and its adders are in the proof.

Works on the dictionary of `write_json`.
"""

import re
from dataclasses import dataclass
from typing import Any

from yosys_registers import Bit, Name, names_of_bits

__all__ = ["SLICE", "Shapes", "cut_products"]

#: Bits of an operand that one multiplier takes: ECP5's MULT18X18D, unsigned.
SLICE = 18

#: Both operands of a product: how wide, and whether signed.
Shapes = tuple[tuple[int, bool], tuple[int, bool]]


@dataclass(frozen=True)
class _Operand:
    """An integer: its bits, lowest first, without copies of the sign."""

    bits: tuple[Bit, ...]
    signed: bool

    @property
    def shape(self) -> tuple[int, bool]:
        return len(self.bits), self.signed

    def slices(self, width: int) -> list["_Operand"]:
        parts = [self.bits[at : at + width] for at in range(0, len(self.bits), width)]
        return [_Operand(part, False) for part in parts[:-1]] + [_Operand(parts[-1], self.signed)]


def _operand(bits: list[Bit], signed: bool) -> _Operand:
    """The least width that holds the integer."""
    while len(bits) > 1 and not signed and bits[-1] == "0":
        bits = bits[:-1]
    while len(bits) > 1 and signed and bits[-1] == bits[-2]:
        bits = bits[:-1]
    if signed and bits[-1] == "0" and len(bits) > 1:
        return _operand(bits[:-1], False)
    return _Operand(tuple(bits), signed)


def _key(names: dict[Bit, set[Name]], *operands: _Operand) -> list[list[str | int]]:
    """What operands sort by: the names of their bits, with numbers in them as numbers."""
    found = {name for operand in operands for bit in operand.bits for name in names.get(bit, ())}
    split = ((re.split(r"(\d+)", name), place) for name, place in found)
    return sorted([*(int(w) if w.isdigit() else w for w in words), place] for words, place in split)


def cut_products(
    design: dict[str, Any], top: str, slice_bits: int = SLICE, keep: bool = False
) -> list[Shapes]:
    """Replaces every `$mul` of module `top`; the result is the operands' shapes, (width, signed).

    Ports are named `cut_<number>_a`, `_b` (outputs) and `_p` (input) in the order of the result:
    by shape, then by the names of the operands' bits, which have to be alike on both sides of a
    miter. If they are not, the operands differ and the proof fails.

    `keep`: the products stay multipliers of these operands, and no port is made, so that the
    slices themselves can be proven.

    Raises
    ------
    ValueError
        If both operands of a multiplier are wider than a slice.
    """
    module = design["modules"][top]
    names = names_of_bits(module)
    fresh = _largest(module) + 1
    cuts: list[tuple[_Operand, _Operand, list[Bit]]] = []

    def new(width: int) -> list[Bit]:
        nonlocal fresh
        fresh += width
        return list(range(fresh - width, fresh))

    for name, cell in list(module["cells"].items()):
        if cell["type"] != "$mul":
            continue
        del module["cells"][name]
        ports = cell["connections"]
        signed = all(int(cell["parameters"][f"{port}_SIGNED"], 2) for port in "AB")
        a, b = (_operand(list(ports[port]), signed) for port in "AB")
        if len(a.bits) < len(b.bits):
            a, b = b, a
        if not keep and len(b.bits) > slice_bits:
            raise ValueError(f"{name}: operands of {len(a.bits)} and {len(b.bits)} bits")
        total: list[Bit] = ["0"] * len(ports["Y"])
        for number, part in enumerate(a.slices(slice_bits)):
            product = new(len(part.bits) + len(b.bits))
            first, second = sorted((part, b), key=lambda operand: operand.shape)
            cuts.append((first, second, product))
            sign = product[-1] if part.signed or b.signed else "0"
            shifted = ["0"] * (slice_bits * number) + product + [sign] * len(total)
            total = _sum(module, total, shifted[: len(total)], new)
        _connect(module, ports["Y"], total)
    cuts.sort(key=lambda cut: (cut[0].shape, cut[1].shape, _key(names, cut[0], cut[1])))
    for number, (a, b, product) in enumerate(cuts):
        if keep:
            _multiply(module, a, b, product)
            continue
        for kind, direction, bits in (
            ("a", "output", a.bits),
            ("b", "output", b.bits),
            ("p", "input", product),
        ):
            port = f"cut_{number}_{kind}"
            module["ports"][port] = {"direction": direction, "bits": list(bits)}
            module["netnames"][port] = {"hide_name": 0, "bits": list(bits), "attributes": {}}
    return [(a.shape, b.shape) for a, b, _ in cuts]


def _largest(module: dict[str, Any]) -> int:
    nets = (net["bits"] for net in module["netnames"].values())
    ends = (bits for cell in module["cells"].values() for bits in cell["connections"].values())
    return max(bit for bits in (*nets, *ends) for bit in bits if isinstance(bit, int))


def _cell(module: dict[str, Any], kind: str, signed: bool, **ports: list[Bit]) -> None:
    values = {f"{port}_WIDTH": len(bits) for port, bits in ports.items()}
    values |= {f"{port}_SIGNED": int(signed) for port in ports if port != "Y"}
    # Named by what it drives: the number of cells goes down as well as up
    module["cells"][f"$cut${ports['Y'][0]}"] = {
        "hide_name": 1,
        "type": kind,
        "parameters": {name: f"{value:032b}" for name, value in values.items()},
        "attributes": {},
        "port_directions": {port: "output" if port == "Y" else "input" for port in ports},
        "connections": ports,
    }


def _sum(module: dict[str, Any], a: list[Bit], b: list[Bit], new: Any) -> list[Bit]:
    if set(a) == {"0"}:
        return b
    result = new(len(a))
    _cell(module, "$add", False, A=a, B=b, Y=result)
    return result


def _connect(module: dict[str, Any], result: list[Bit], value: list[Bit]) -> None:
    _cell(module, "$pos", False, A=value, Y=result)


def _multiply(module: dict[str, Any], a: _Operand, b: _Operand, product: list[Bit]) -> None:
    def wide(operand: _Operand) -> list[Bit]:
        return [*operand.bits, operand.bits[-1] if operand.signed else "0"]

    _cell(module, "$mul", True, A=wide(a), B=wide(b), Y=product)
