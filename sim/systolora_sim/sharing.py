"""Layers with one input: products that read it are computed for all of them at once.

In memory the working copies of lora_A lie one behind the other, and so do the sums of H^T, dH^T and
dA: for the array each is one tensor with the rows of all layers. A tile of x that is in the
buffers, or in the array, then serves every layer. The rows have no more in common than that: each
layer's H is quantized by itself, from memory, with its own maximum, Scale and sticky bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from systolora_sim.layer import Layer
from systolora_sim.memory_map import Part, Symbol
from systolora_sim.training import TrainingState

__all__ = ["input_groups", "part", "stack"]


def _key(layer: Layer) -> tuple[object, ...]:
    """What layers of a group have in common: x with its Scale, and the types of their tensors."""
    data = hashlib.sha256(layer.x.tobytes()).digest()
    bits = tuple(layer.bits_of(name) for name in ("x", "lora_A", "dH"))
    return layer.x.shape, layer.scales["x"], bits, data


def input_groups(state: TrainingState) -> list[tuple[str, ...]]:
    """The names of the layers in groups with the same input, in the order of their first ones.

    A group ends with its largest layer: beside its long products there is time for all that is
    left to do.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, each in state.layers.items():
        groups.setdefault(_key(each.layer), []).append(name)
    for names in groups.values():
        largest = max(names, key=lambda name: state.layers[name].layer.outputs)
        names.append(names.pop(names.index(largest)))
    return [tuple(names) for names in groups.values()]


def part(whole: Symbol, name: str, first: int, rows: int) -> Part:
    """Rows of a tensor, under a name of their own."""
    own: dict[str, Any] = {each.name: getattr(whole, each.name) for each in fields(Symbol)}
    own |= {"name": name, "address": whole.at(first), "rows": rows}
    return Part(**own, whole=whole, first=first)


def stack(symbols: Sequence[Symbol]) -> tuple[Symbol, list[Symbol]]:
    """Tensors that lie one behind the other as one tensor, and each as a part of it."""
    first = symbols[0]
    name = f"{first.name} and {len(symbols) - 1} more"
    whole = replace(first, name=name, rows=sum(symbol.rows for symbol in symbols))
    members: list[Symbol] = []
    row = 0
    for symbol in symbols:
        assert symbol.address == whole.at(row) and symbol.stride == whole.stride, symbol
        members.append(part(whole, symbol.name, row, symbol.rows))
        row += symbol.rows
    return whole, members
