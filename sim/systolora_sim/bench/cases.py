"""Random layers for tests and benches: the same vectors for every backend, from a seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim.layer import Layer
from systolora_sim.numerics import Scale

__all__ = ["random_layer"]


def random_layer(
    seed: int,
    n: int,
    d: int,
    k: int,
    r: int,
    /,
    *,
    bits: dict[str, int] | None = None,
    bias: bool = False,
    extremes: bool = False,
    **fields: Any,
) -> Layer:
    """A layer of integers with plausible scales.

    bits : width of inputs and outputs by name, 8 where not named; extremes : operands full of the
    most negative and most positive values; further fields go to `Layer`.
    """
    rng = np.random.default_rng(seed)
    bits = bits or {}

    def tensor(name: str, *shape: int) -> NDArray[Any]:
        width = bits.get(name, 8)
        limit = 1 << (width - 1)
        if extremes:
            values = rng.choice([-limit, limit - 1, -1, 0], shape)
        else:
            values = np.clip(np.rint(rng.normal(0, limit / 4, shape)), -limit, limit - 1)
        return values.astype(np.int8 if width == 8 else np.int16)

    def scale(low: int, high: int) -> Scale:
        return Scale(int(rng.integers(1 << 15, 1 << 16)), int(rng.integers(low, high)))

    return Layer(
        name=f"random-{seed}",
        x=tensor("x", n, d),
        weight=tensor("weight", k, d),
        lora_A=tensor("lora_A", r, d),
        lora_B=tensor("lora_B", k, r),
        dy=tensor("dy", n, k),
        scales={
            "x": scale(-7, -4),
            "weight": scale(-10, -7),
            "lora_A": scale(-10, -7),
            "lora_B": scale(-10, -5),
            "dy": scale(-14, -10),
        },
        gain=scale(-1, 2),
        bias=rng.integers(-(1 << 14), 1 << 14, k).astype(np.int32) if bias else None,
        bits={name: width for name, width in bits.items() if name in ("H", "Y", "dH", "dX")},
        **fields,
    )
