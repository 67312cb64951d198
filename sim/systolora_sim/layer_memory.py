"""The tensors of layers in memory: names, shapes, widths and what they hold at the start.

Tensors have the names that files give them; beside those

- `<tensor>.sums` of H, dH, dX: sums that wait for their maximum,
- `<tensor>.running` of what is quantized in pieces: its maximum over those so far,
- `Y_base`: the sums of X.W^T, where they are computed once and kept,
- `<tensor>.turned` of H, dH: the same as [N, r], where the schedule needs it,
- `identity`: the identity matrix, as large as the array has rows, that turns them,
- `sticky`, `results.sticky`: the sticky bits of copies and updates, and of the products.

Rank-r tensors lie r-major: lora_A [r,d], lora_B^T [r,k], H^T and dH^T [r,N], dB^T [r,k].
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from systolora.contract import STICKY
from systolora_sim import numerics as nx
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import ADAPTERS, Layer
from systolora_sim.memory_map import MemoryMap
from systolora_sim.product import Product
from systolora_sim.training import FACTORS, LayerState, TrainingState

__all__ = [
    "FACTOR_NAMES", "STACKED", "add_base", "add_layer", "add_product", "add_training", "add_turned",
]  # fmt: skip

#: The factors of all rules, which an `Optimizer` has whether its rule uses them or not.
FACTOR_NAMES = tuple(name for names in FACTORS.values() for name in names)

#: Tensors of layers with one input that lie one behind the other.
STACKED = ("lora_A", "H.sums", "dH", "dA")

#: Tensors that memory holds transposed.
TRANSPOSED = ("lora_B", "H", "dH", "dB")


def _sum_type(bits: int) -> type[np.integer[Any]]:
    return np.int32 if bits == nx.NARROW_BITS else np.int64


def add_layer(
    memory: MemoryMap,
    layer: Layer,
    prefix: str = "",
    *,
    trained: bool = False,
    pieces: int = 1,
) -> None:
    """A layer's inputs, results, records and status words; its adapter where it is not trained.

    pieces : the batch's.
    """
    axes = {"N": layer.batch, "d": layer.inputs, "k": layer.outputs, "r": layer.rank}
    for name in layer.present:
        if (trained and name in ADAPTERS) or memory.has(prefix + name):
            continue
        memory.add(
            prefix + name,
            layer.operand(name).shape,
            layer.operand(name).dtype,
            data=layer.operand(name),
            transposed=name in TRANSPOSED,
        )
        memory.add_scale(prefix + name, layer.scales[name])
    if layer.gain is not None:
        memory.add_scale(prefix + "gain", layer.gain)
    if layer.bias is not None:
        memory.add(prefix + "bias", layer.bias.shape, layer.bias.dtype, data=layer.bias)

    shapes = {"H": "Nr", "Y": "Nk", "dH": "Nr", "dX": "Nd"}
    for name in layer.results:
        shape = tuple(axes[axis] for axis in shapes[name])
        transposed = name in TRANSPOSED
        dtype = nx.operand_dtype(layer.bits_of(name))
        held = {
            "writable": True,
            "transposed": transposed,
            "lines": transposed,
            "pieces": pieces if transposed else 1,
        }
        memory.add(prefix + name, shape, dtype, **held)
        memory.add_scale(prefix + name, writable=True)
        if name in layer.delayed:
            memory.add_word(f"{prefix}{name}.amax", layer.amax.get(name, 0))
            if pieces > 1:
                memory.add_word(f"{prefix}{name}.running")
        product = {
            "H": ("x", "lora_A"),
            "Y": ("x", "weight"),
            "dH": ("dy", "lora_B"),
            "dX": ("dy", "weight"),
        }[name]
        sums = "Y_acc" if name == "Y" else f"{name}.sums"
        memory.add(prefix + sums, shape, _sum_type(layer.acc_bits(*product)), **held)
    memory.add_scale(prefix + "Y_acc", writable=True)
    if not layer.is_frozen:
        for name, shape, product in (("dA", "rd", ("x", "dH")), ("dB", "kr", ("H", "dy"))):
            memory.add(
                prefix + name,
                tuple(axes[axis] for axis in shape),
                _sum_type(layer.acc_bits(*product)),
                writable=True,
                transposed=name in TRANSPOSED,
            )
            memory.add_scale(prefix + name, writable=True)
    memory.add_word(f"{prefix}results.sticky")


def add_turned(
    memory: MemoryMap, layer: Layer, prefix: str, tensors: Iterable[str], rows: int
) -> None:
    """Places for tensors among H and dH as [N, r], and the identity of an array of that many rows.

    A frozen layer has no such tensors.
    """
    for name in () if layer.is_frozen else tensors:
        shape, dtype = (layer.batch, layer.rank), nx.operand_dtype(layer.bits_of(name))
        memory.add(f"{prefix}{name}.turned", shape, dtype, writable=True)
        if not memory.has("identity"):
            memory.add("identity", (rows, rows), np.int8, data=np.eye(rows, dtype=np.int8))


def add_base(memory: MemoryMap, layer: Layer, prefix: str) -> None:
    """The sums of X.W^T, as an earlier step left them."""
    shape, dtype = (layer.batch, layer.outputs), _sum_type(layer.acc_bits("x", "weight"))
    data = None
    if layer.x.any() and layer.weight.any():
        # Exact: no sum reaches 2^53.
        data = (layer.x.astype(np.float64) @ layer.weight.astype(np.float64).T).astype(dtype)
    memory.add(f"{prefix}Y_base", shape, dtype, data=data)


def add_product(memory: MemoryMap, product: Product) -> None:
    """A bare product's operands, results, record and status word; what is added is `c.addend`."""
    sums = _sum_type(product.acc_bits)
    for name in ("a", "b"):
        tensor = getattr(product, name)
        memory.add(name, tensor.shape, tensor.dtype, data=tensor)
        memory.add_scale(name, product.scales[name])
    if product.bias is not None:
        memory.add("bias", product.bias.shape, product.bias.dtype, data=product.bias)
    shape = (product.m, product.n)
    if product.c is not None:
        memory.add("c.addend", shape, sums, data=product.c)
    memory.add("c", shape, sums, writable=True)
    memory.add("q", shape, nx.operand_dtype(product.bits_of("q")), writable=True)
    for name in ("c", "q"):
        memory.add_scale(name, writable=True)
    if product.delayed:
        memory.add_word("q.amax", product.amax)
    memory.add_word("results.sticky")


def _add_master(memory: MemoryMap, name: str, master: Master) -> None:
    transposed = name.rpartition("/")[2] in TRANSPOSED
    held = {"writable": True, "transposed": transposed, "lines": True}
    memory.add(f"{name}.master", master.w.shape, np.int16, data=master.w, **held)
    memory.add_scale(f"{name}.master", master.scale)
    if master.v is not None:
        memory.add(f"{name}.momentum", master.v.shape, np.int16, data=master.v, **held)
        memory.add_scale(f"{name}.momentum", master.v_scale)


def _share_x(memory: MemoryMap, layer: Layer, prefix: str, seen: dict[str, Layer]) -> None:
    """Gives a layer the x of an earlier one that has the same with the same Scale."""
    for other, earlier in seen.items():
        same = earlier.x.dtype == layer.x.dtype and earlier.scales["x"] == layer.scales["x"]
        if same and np.array_equal(earlier.x, layer.x):
            memory.alias(f"{prefix}x", f"{other}x")
            memory.alias(f"{prefix}x.scale", f"{other}x.scale")
            return


def add_training(
    memory: MemoryMap,
    state: TrainingState,
    groups: Sequence[Sequence[str]] = (),
    pieces: int = 1,
) -> None:
    """All layers of a training run with their masters, and the optimizer's Scales.

    groups : names of layers that share their input (`sharing`); pieces : of each batch.
    """
    seen: dict[str, Layer] = {}
    for name, each in state.layers.items():
        prefix = f"{name}/" if name else ""
        _share_x(memory, each.layer, prefix, seen)
        add_layer(memory, each.layer, prefix, trained=True, pieces=pieces)
        seen[prefix] = each.layer
        _add_adapter(memory, each, prefix)
        word = sum(1 << position for position, bit in enumerate(STICKY) if bit in each.sticky)
        memory.add_word(f"{prefix}sticky", word)
    _add_optimizer(memory, state.optimizer)
    for names in groups:
        for tensor in STACKED if len(names) > 1 else ():
            memory.stack([f"{name}/{tensor}" for name in names])


def _add_adapter(memory: MemoryMap, state: LayerState, prefix: str) -> None:
    for name, master in zip(ADAPTERS, (state.a, state.b), strict=True):
        _add_master(memory, prefix + name, master)
        dtype = state.layer.operand(name).dtype
        memory.add(
            prefix + name,
            master.w.shape,
            dtype,
            writable=True,
            transposed=name in TRANSPOSED,
            lines=True,
        )
        memory.add_scale(prefix + name, writable=True)


def _add_optimizer(memory: MemoryMap, optimizer: Optimizer) -> None:
    memory.add_scale("lr", optimizer.lr)
    memory.add_scale("wd", optimizer.weight_decay)
    for name in FACTOR_NAMES:
        memory.add_scale(name, getattr(optimizer, name))
