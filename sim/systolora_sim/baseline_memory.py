"""Memory of a baseline's step: what a training step has, and operands that lie another way.

Results lie as their product leaves them. Where a way to compute wants an operand in the other
order, memory has a second copy of it that nobody writes, its *image*: `<tensor>.<axes>`, the tensor
as [first axis, second axis]. It holds what the golden model computes in the step, so that the
program's results are right, and costs the program nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import golden
from systolora_sim import numerics as nx
from systolora_sim.baseline_ways import Ways
from systolora_sim.layer import INPUTS, OUTPUTS, Layer
from systolora_sim.layer_memory import TRANSPOSED, add_training
from systolora_sim.memory_map import MemoryMap, Symbol
from systolora_sim.training import TrainingState

__all__ = ["FILES", "GRADIENTS", "image_name", "place_baseline"]

Array = NDArray[Any]

#: The order of the axes in which files hold each tensor.
FILES = {
    "x": "Nd", "weight": "kd", "dy": "Nk", "lora_A": "rd", "lora_B": "kr",
    "H": "Nr", "Y": "Nk", "dH": "Nr", "dX": "Nd", "dA": "rd", "dB": "kr",
}  # fmt: skip
#: The order in which updates read the gradients.
GRADIENTS = {"dA": "rd", "dB": "rk"}


def image_name(tensor: str, order: str) -> str:
    """The name of an image among the symbols, without the layer's prefix."""
    return f"{tensor}.{order}"


def _is_blank(layer: Layer) -> bool:
    """Whether its tensors are one zero each, repeated: nothing to compute with."""
    return not any(layer.weight.strides)


class _Values:
    """The tensors of a layer in its next step, as files hold them; computed when asked for."""

    def __init__(self, state: TrainingState, name: str) -> None:
        self._state, self._name = state, name
        self._computed: dict[str, Array] = {}

    def __getitem__(self, tensor: str) -> Array:
        each = self._state.layers[self._name]
        if tensor in ("x", "weight", "dy"):
            return each.layer.operand(tensor)
        if not self._computed:
            copies = [
                golden.working_copy(master, each.layer.bits_of(name), set())
                for name, master in (("lora_A", each.a), ("lora_B", each.b))
            ]
            a, b = ((copy.q, copy.scale) for copy in copies)
            result = golden.run_layer(self._state.operands(self._name, a, b))
            self._computed = {"lora_A": a[0], "lora_B": b[0], **result.tensors}
        return self._computed[tensor]


def _dtype(layer: Layer, tensor: str) -> Any:
    if tensor in (*INPUTS, *OUTPUTS):
        return nx.operand_dtype(layer.bits_of(tensor))
    factors = {"dA": ("x", "dH"), "dB": ("H", "dy")}[tensor]
    return np.int32 if layer.acc_bits(*factors) == nx.NARROW_BITS else np.int64


def _shape(layer: Layer, tensor: str) -> tuple[int, ...]:
    axes = {"N": layer.batch, "d": layer.inputs, "k": layer.outputs, "r": layer.rank}
    return tuple(axes[axis] for axis in FILES[tensor])


def _standard(tensor: str) -> str:
    """The order of a tensor's axes in the memory of any other program."""
    return FILES[tensor][::-1] if tensor in TRANSPOSED else FILES[tensor]


def _turned(ways: Ways) -> list[str]:
    """Results that lie the other way than in other programs."""
    results = ("H", "Y", "dH", "dX", "dA", "dB")
    return [name for name in results if ways.stored.get(name, _standard(name)) != _standard(name)]


def _add_turned(memory: MemoryMap, layer: Layer, prefix: str, ways: Ways) -> None:
    """Places for results that lie the other way, and for their sums."""
    for name in _turned(ways):
        transposed = name not in TRANSPOSED
        shape, held = _shape(layer, name), f"{prefix}{name}.held"
        memory.add(held, shape, _dtype(layer, name), writable=True, transposed=transposed)
        if name in OUTPUTS:
            wide = layer.acc_bits("dy" if name.startswith("d") else "x", "weight")
            dtype = np.int32 if wide == nx.NARROW_BITS else np.int64
            memory.add(f"{held}.sums", shape, dtype, writable=True, transposed=transposed)


def _add_images(
    memory: MemoryMap, state: TrainingState, name: str, ways: Ways, seen: dict[int, str]
) -> None:
    """A layer's images; layers with one x share those of it."""
    each, prefix, values = state.layers[name], f"{name}/" if name else "", _Values(state, name)
    for tensor, order in ways.images:
        image = prefix + image_name(tensor, order)
        if tensor == "x":
            other = seen.setdefault(id(each.layer.x), image)
            if other != image:
                memory.alias(image, other)
                continue
        memory.add(
            image,
            _shape(each.layer, tensor),
            _dtype(each.layer, tensor),
            data=None if _is_blank(each.layer) else values[tensor],
            transposed=order != FILES[tensor],
        )


def _rename(symbols: dict[str, Symbol], prefix: str, ways: Ways) -> None:
    """Gives results that lie the other way the names that other programs have for them."""
    for name in _turned(ways):
        symbols[prefix + name] = replace(symbols.pop(f"{prefix}{name}.held"), name=prefix + name)
        if name in OUTPUTS:
            sums = prefix + ("Y_acc" if name == "Y" else f"{name}.sums")
            symbols[sums] = replace(symbols.pop(f"{prefix}{name}.held.sums"), name=sums)


def place_baseline(
    memory: MemoryMap, state: TrainingState, ways: Mapping[str, Ways]
) -> NDArray[np.uint8]:
    """Lays out the memory of a step of all layers and returns its image.

    ways : of each layer, by its name; what they need of gradients in updates among their images
    """
    add_training(memory, state)
    seen: dict[int, str] = {}
    for name, each in state.layers.items():
        prefix = f"{name}/" if name else ""
        _add_turned(memory, each.layer, prefix, ways[name])
        _add_images(memory, state, name, ways[name], seen)
    image = memory.place()
    for name in state.layers:
        prefix = f"{name}/" if name else ""
        _rename(memory.symbols, prefix, ways[name])
    return image
