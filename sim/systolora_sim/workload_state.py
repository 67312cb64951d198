"""A training state with a workload's shapes and random data: what the compiler takes."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate, numerics
from systolora_sim.layer import OUTPUTS, Layer, LayerError
from systolora_sim.numerics import K_LIMIT, ONE, ZERO, Scale
from systolora_sim.training import LayerState, TrainingState, has_momentum, new_master
from systolora_sim.workload_layers import Workload, WorkloadError, WorkloadLayer, check_size

__all__ = ["state"]

#: Largest value of a tensor in standard deviations: data are normal, cut off there.
PEAK = 4.0
#: Room of a master above its largest value (numerics section 6).
HEADROOM = 4
#: Standard deviations of the real values; those of X are 1, of the weight and A those of their
#: usual initialization, variance 1/d and 1/(3d).
SIGMA_DY, SIGMA_B = 1e-3, 1e-2
#: So that masters move, but not far, in a few steps.
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.1, "lion": 1e-4}


class _Maker:
    """Makes the tensors of one workload's layers."""

    def __init__(self, rank: int, batch: int, bits: int, seed: int, blank: bool) -> None:
        self.rank, self.batch, self.bits, self.seed, self.blank = rank, batch, bits, seed, blank

    def values(
        self, shape: tuple[int, ...], bits: int, *key: int, headroom: int = 1
    ) -> NDArray[Any]:
        """Normal integers up to qmax / headroom; key : what the numbers depend on."""
        dtype = numerics.operand_dtype(bits)
        if self.blank:
            return np.broadcast_to(np.zeros((), dtype), shape)
        limit = numerics.qmax(bits) // headroom
        made = np.random.default_rng((self.seed, *key)).standard_normal(shape, np.float32)
        return np.rint(np.clip(made * (limit / PEAK), -limit, limit)).astype(dtype)

    def scale(self, sigma: float, bits: int) -> Scale:
        """The Scale that gives such integers that deviation."""
        return calibrate.from_float(sigma * PEAK / numerics.qmax(bits))

    def x(self, layer: WorkloadLayer, number: int) -> tuple[NDArray[Any], Scale]:
        """X of an input, by its number.

        Each input has a Scale of its own: the compiler takes layers with equal X and Scale for
        layers with one input, and blank tensors are all equal.
        """
        scale = self.scale(1.0, self.bits)
        room = numerics.M_MAX - numerics.M_MIN + 1
        place = scale.m - numerics.M_MIN + number
        x = self.values((layer.rows * self.batch, layer.d), self.bits, 0, number)
        return x, Scale(numerics.M_MIN + place % room, scale.e + place // room)

    def record(self, length: int) -> int:
        """About the largest sum of that many products of such integers."""
        return round(1.5 * PEAK * length**0.5 * (numerics.qmax(self.bits) / PEAK) ** 2)

    def momentum(self, layer: WorkloadLayer) -> tuple[Scale, Scale]:
        """Scales of the momenta of A and B that put a usual gradient's largest value near 2^13."""
        rows = (layer.rows * self.batch) ** 0.5
        d_h = SIGMA_DY * SIGMA_B * layer.k**0.5
        h = 3**-0.5  # X has variance 1, A 1/(3d)
        unit = 1.25 * PEAK * rows / (1 << 13)
        return calibrate.from_float(unit * d_h), calibrate.from_float(unit * SIGMA_DY * h)

    def layer(
        self,
        given: WorkloadLayer,
        index: int,
        x: tuple[NDArray[Any], Scale],
        delayed: frozenset[str],
        momentum: bool,
    ) -> LayerState:
        bits, rank, n = self.bits, self.rank, given.rows * self.batch
        d, k = given.d, given.k
        shape = {"lora_A": (rank, d), "lora_B": (k, rank)}
        here = delayed if given.dx else delayed - {"dX"}
        lengths = {"H": d, "Y": d, "dH": k, "dX": k}
        layer = Layer(
            name=given.name,
            x=x[0],
            weight=self.values((k, d), bits, 1, index),
            # Working copies come from the masters at each step; only the width counts here.
            lora_A=np.broadcast_to(np.zeros((), numerics.operand_dtype(bits)), shape["lora_A"]),
            lora_B=np.broadcast_to(np.zeros((), numerics.operand_dtype(bits)), shape["lora_B"]),
            dy=self.values((n, k), bits, 2, index),
            scales={
                "x": x[1],
                "weight": self.scale(d**-0.5, bits),
                "lora_A": ZERO,
                "lora_B": ZERO,
                "dy": self.scale(SIGMA_DY, bits),
            },
            gain=ONE,
            want_dx=given.dx,
            delayed=here,
            amax={name: self.record(lengths[name]) for name in here},
            index=index,
        )
        scales = self.momentum(given) if momentum else (None, None)
        masters = [
            new_master(
                self.values(shape[name], 16, 3 + offset, index, headroom=HEADROOM),
                self.scale(HEADROOM * sigma, 16),
                2 * index + offset,
                scales[offset],
            )
            for offset, (name, sigma) in enumerate(
                (("lora_A", (3 * d) ** -0.5), ("lora_B", SIGMA_B))
            )
        ]
        return LayerState(layer=layer, a=masters[0], b=masters[1])


def state(
    workload: Workload,
    *,
    rank: int,
    batch: int,
    bits: int = 8,
    seed: int = 0,
    delayed: Collection[str] = ("Y", "dX"),
    optimizer: str = "sgd",
    blank: bool = False,
) -> TrainingState:
    """A state that trains the workload's layers: random data of plausible ranges.

    Layers with one input have the same array as x. The layers come in sorted order of their
    names, as everywhere. The same arguments give the same state, bit for bit.

    Parameters
    ----------
    rank : the adapters'; batch : samples, so that N of a layer is rows * batch
    bits : 8 or 16, the width of all operands
    seed : of the data and of the random words, 0 to 2^31 - 1
    delayed : tensors among H, Y, dH, dX that are quantized with the maximum of the step before,
        of which they have a record; dX only where it is computed
    optimizer : "sgd", "momentum" or "lion"
    blank : all tensors are zero and take no memory: for what depends on shapes alone

    Raises
    ------
    WorkloadError
        On an argument that is none of those, or a batch that makes N 131072 or more.
    """
    for name, value in (("rank", rank), ("batch", batch)):
        check_size(name, value)
    if bits not in (8, 16):
        raise WorkloadError(f"bits: {bits!r}: must be 8 or 16")
    if not 0 <= seed < 1 << 31:
        raise WorkloadError(f"seed: {seed}: must be from 0 to {(1 << 31) - 1}")
    for name in sorted(delayed):
        if name not in OUTPUTS:
            raise WorkloadError(f"delayed: {name!r}: must be among {', '.join(OUTPUTS)}")
    for each in workload.layers:
        if each.rows * batch >= K_LIMIT:
            raise WorkloadError(
                f"batch: {batch}: layer {each.name} would have {each.rows * batch} rows: must be "
                f"below {K_LIMIT}"
            )
    try:
        rule = calibrate.make_optimizer(optimizer, LEARNING_RATES.get(optimizer, 1.0))
    except ValueError as error:
        raise WorkloadError(str(error)) from None
    maker = _Maker(rank, batch, bits, seed, blank)
    inputs: dict[str, tuple[NDArray[Any], Scale]] = {}
    layers: dict[str, LayerState] = {}
    for index, each in enumerate(sorted(workload.layers, key=lambda layer: layer.name)):
        if each.input not in inputs:
            inputs[each.input] = maker.x(each, len(inputs))
        x, momentum = inputs[each.input], has_momentum(optimizer)
        try:
            layers[each.name] = maker.layer(each, index, x, frozenset(delayed), momentum)
        except LayerError as error:
            raise WorkloadError(f"layer {each.name}: {error}") from None
    return TrainingState(layers=layers, optimizer=rule, seed=seed)
