"""Random layers for tests and benches: the same vectors for every backend, from a seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate
from systolora_sim.golden import Master
from systolora_sim.layer import Layer
from systolora_sim.numerics import Scale
from systolora_sim.training import LayerState, TrainingState, has_momentum

__all__ = ["random_layer", "random_state"]


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
    """A layer of integers with plausible scales; with r = 0 a frozen one.

    dy of a frozen layer is there only with `want_dx`. bits : width of inputs and outputs by name, 8
    where not named; extremes : operands full of the most negative and most positive values; further
    fields go to `Layer`.
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

    operands = {"x": tensor("x", n, d), "weight": tensor("weight", k, d)}
    exponents = {"x": (-7, -4), "weight": (-10, -7)}
    if r:
        operands |= {"lora_A": tensor("lora_A", r, d), "lora_B": tensor("lora_B", k, r)}
        exponents |= {"lora_A": (-10, -7), "lora_B": (-10, -5)}
    if r or fields.get("want_dx"):
        operands["dy"], exponents["dy"] = tensor("dy", n, k), (-14, -10)
    return Layer(
        name=f"random-{seed}",
        **operands,
        scales={name: scale(*ends) for name, ends in exponents.items()},
        gain=scale(-1, 2) if r else None,
        bias=rng.integers(-(1 << 14), 1 << 14, k).astype(np.int32) if bias else None,
        bits={name: width for name, width in bits.items() if name in ("H", "Y", "dH", "dX")},
        **fields,
    )


def random_state(
    seed: int, shapes: Sequence[tuple[int, int, int, int]], kind: str, **fields: Any
) -> TrainingState:
    """A training run of random layers with dX, in the middle of it.

    shapes : (N, d, k, r) of each layer; kind : optimizer; fields : of `random_layer`
    """
    states = {}
    for index, shape in enumerate(shapes):
        rng = np.random.default_rng([seed, index])
        layer = random_layer(seed + index, *shape, want_dx=True, index=index, **fields)

        def master(name: str, number: int, rng: np.random.Generator = rng) -> Master:
            shape = getattr(layer, name).shape  # noqa: B023
            momentum = rng.integers(-3000, 3000, shape).astype(np.int16)
            return Master(
                w=np.clip(rng.normal(0, 9000, shape), -32767, 32767).astype(np.int16),
                scale=Scale(int(rng.integers(1 << 15, 1 << 16)), -17),
                tensor_id=number,
                v=momentum if has_momentum(kind) else None,
                v_scale=Scale(50000, -24) if has_momentum(kind) else None,
            )

        a, b = master("lora_A", 2 * index), master("lora_B", 2 * index + 1)
        states[f"layer{index}"] = LayerState(layer=layer, a=a, b=b)
    optimizer = calibrate.make_optimizer(kind, 1e-3, weight_decay=0.01)
    return TrainingState(layers=states, optimizer=optimizer, seed=seed, step=3)
