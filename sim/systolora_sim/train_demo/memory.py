"""How many bytes training the LoRA layers takes: tensor by tensor, from shapes and widths.

It counts what one step must keep of the adapted layers, not what a process allocates: W, the
adapters, X, H, Y and their gradients, momenta. Layers that read the same X keep it once. The sums
of a product that is quantized just in time wait for their maximum: room for the largest layer's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from systolora_sim.train_demo.recipes import Way

__all__ = ["PARTS", "Widths", "count", "device_widths", "float_widths"]

#: Parts of the sum, in the order they are shown.
PARTS = ("weights", "adapters", "activations", "gradients", "optimizer", "sums")


@dataclass(frozen=True)
class Widths:
    """Bytes of an element of each tensor.

    master, copy : of the adapters; copy is 0 where a step computes with the masters themselves.
    gradient : of dA and dB. sums : of products before they are quantized, 0 where none wait.
    """

    weight: int
    x: int
    h: int
    y: int
    dy: int
    dh: int
    master: int
    copy_a: int
    copy_b: int
    gradient: int
    momentum: int
    sums: int


def float_widths(half: bool) -> Widths:
    """float32, or float16 as mixed precision has it: float32 adapters, gradients and momenta."""
    if half:
        return Widths(2, 2, 2, 2, 2, 2, 4, 2, 2, 4, 4, 0)
    return Widths(4, 4, 4, 4, 4, 4, 4, 0, 0, 4, 4, 0)


def device_widths(way: Way) -> Widths:
    """A recipe of the accelerator: masters and momenta int16, working copies beside them.

    Sums are int32, or int64 in memory where an operand of the product is int16.
    """
    size = {name: way.bits_of(name) // 8 for name in ("x", "weight", "H", "Y", "dy", "dH")}
    gradient = max(
        8 if 2 in pair else 4
        for pair in ((size["x"], size["dH"]), (size["H"], size["dy"]))
    )  # fmt: skip
    waits = not {"H", "Y", "dH"} <= way.delayed
    wide = any(each == 2 for each in size.values())
    return Widths(
        weight=size["weight"], x=size["x"], h=size["H"], y=size["Y"], dy=size["dy"],
        dh=size["dH"], master=2, copy_a=way.bits_of("lora_A") // 8,
        copy_b=way.bits_of("lora_B") // 8, gradient=gradient, momentum=2,
        sums=(8 if wide else 4) if waits else 0,
    )  # fmt: skip


def count(layers: Iterable[Mapping[str, Any]], rank: int, widths: Widths) -> dict[str, int]:
    """Bytes by part (PARTS) and "total".

    layers : each with "input" (layers of the same input share X), "rows", "d" and "k".
    """
    found = dict.fromkeys(PARTS, 0)
    inputs: dict[str, int] = {}
    for layer in layers:
        n, d, k = layer["rows"], layer["d"], layer["k"]
        adapter = rank * (d + k)
        found["weights"] += d * k * widths.weight
        found["adapters"] += adapter * widths.master
        found["adapters"] += rank * (d * widths.copy_a + k * widths.copy_b)
        inputs[layer["input"]] = max(inputs.get(layer["input"], 0), n * d * widths.x)
        found["activations"] += n * (rank * widths.h + k * widths.y)
        found["gradients"] += n * (k * widths.dy + rank * widths.dh) + adapter * widths.gradient
        found["optimizer"] += adapter * widths.momentum
        found["sums"] = max(found["sums"], n * max(k, rank) * widths.sums)
    found["activations"] += sum(inputs.values())
    return found | {"total": sum(found.values())}
