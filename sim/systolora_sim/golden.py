"""The golden model: what a LoRA layer, a frozen layer and an update compute, to the bit.

Sums are exact integers, every rounding is in `numerics`; nothing here depends on how the
accelerator tiles or orders the work. Tensors are in the ecosystem's layout: x [N,d], weight [k,d],
lora_A [r,d], lora_B [k,r], dy [N,k].
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import numerics
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.numerics import K_LIMIT, ONE, ZERO, Quantized, Scale, div, mul, term

__all__ = [
    "OPTIMIZERS",
    "Forward",
    "Master",
    "Optimizer",
    "exact_product",
    "momentum_scale",
    "run_backward",
    "run_forward",
    "run_layer",
    "update",
    "working_copy",
]

OPTIMIZERS = ("sgd", "momentum", "lion")

#: Longest reduction of int8 that float32 holds exactly: 2^10 products of at most 2^14.
FLOAT32_LIMIT = 1 << 10

#: tensor_id of the quantized tensors' random words (numerics section 4).
_WORDS_BASE = 0x10000
_WORDS_OFFSET = {"H": 0, "Y": 1, "dH": 2, "dX": 3}


def exact_product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    """out[M,N] int64 = a[M,K] int8/int16 @ b[K,N] int8/int16, exact.

    Computed in floating point, where it is exact: every partial sum, in whatever order, is an
    integer of magnitude below 2^17 * 2^15 * 2^15 = 2^47, and float64 holds all integers up to 2^53.
    float32, which is twice as fast, holds those up to 2^24: enough for 1024 products of int8.

    Raises
    ------
    TypeError
        If an operand is neither int8 nor int16.
    ValueError
        If K is 131072 or more (numerics section 9).
    """
    for operand in (a, b):
        if operand.dtype not in (np.int8, np.int16):
            raise TypeError(f"operand of type {operand.dtype}: must be int8 or int16")
    if a.shape[-1] >= K_LIMIT:
        raise ValueError(f"reduction length {a.shape[-1]}: must be below {K_LIMIT}")
    narrow = a.dtype == b.dtype == np.int8 and a.shape[-1] <= FLOAT32_LIMIT
    real = np.float32 if narrow else np.float64
    return (a.astype(real) @ b.astype(real)).astype(np.int64)


# The layer (numerics section 5) ---------------------------------------------------------------


@dataclass
class _Run:
    """One layer's pass: its inputs, and what it has recorded so far."""

    layer: Layer
    sticky: set[str] = field(default_factory=set)
    amax: dict[str, int] = field(default_factory=dict)

    def mul(self, a: Scale, b: Scale) -> Scale:
        return mul(a, b, self.sticky)

    def div(self, a: Scale, b: Scale) -> Scale:
        return div(a, b, self.sticky)

    def quantize(self, name: str, acc: NDArray[np.int64], scale: Scale) -> Quantized:
        """`Q` of the page, in the modes that the layer asks for this tensor."""
        layer = self.layer
        words = None
        if name in layer.stochastic:
            tensor_id = _WORDS_BASE + 8 * layer.index + _WORDS_OFFSET[name]
            seed = numerics.seed_word(layer.seed, layer.step, tensor_id)
            words = numerics.random_words(seed, *acc.shape)
        delayed = name in layer.delayed
        result = numerics.quantize(
            acc,
            scale,
            layer.bits_of(name),
            words=words,
            previous_amax=layer.amax.get(name) if delayed else None,
            sticky=self.sticky,
        )
        if delayed:
            self.amax[name] = result.record
        return result

    def join(
        self, main: NDArray[np.int64], low_rank: NDArray[np.int64], ratio: Scale, bits: int,
        bias: NDArray[np.int32] | None = None,
    ) -> NDArray[np.int64]:  # fmt: skip
        """The main product plus the rescaled low-rank product (and a bias): one addition."""
        extra, saturated_term = numerics.rescale(low_rank, ratio, *numerics.int_range(bits))
        terms = [extra] if bias is None else [extra, bias]
        acc, saturated_sum = numerics.add_sat(main, *terms, bits=bits)
        if saturated_term or saturated_sum:
            self.sticky.add("acc_sat")
        return acc

    def add_bias(
        self, main: NDArray[np.int64], bias: NDArray[np.int32] | None, bits: int
    ) -> NDArray[np.int64]:
        """The main product plus a bias [k]: one addition that saturates."""
        if bias is None:
            return main
        acc, saturated = numerics.add_sat(main, bias, bits=bits)
        if saturated:
            self.sticky.add("acc_sat")
        return acc


def _stored(acc: NDArray[np.int64], bits: int) -> NDArray[Any]:
    """Accumulators as files hold them: int32, or int64 for 48 bits."""
    return acc.astype(np.int32 if bits == numerics.NARROW_BITS else np.int64)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What the forward pass of a LoRA layer gives, and what its backward pass needs of it.

    h, y : H [N,r] and Y [N,k], quantized; y_acc : the sums of Y with their Scale y_acc_scale; amax,
    sticky : the delayed tensors' records and the sticky bits of this pass.
    """

    h: Quantized
    y: Quantized
    y_acc: NDArray[Any]
    y_acc_scale: Scale
    amax: dict[str, int]
    sticky: frozenset[str]


def run_forward(layer: Layer) -> Forward:
    """Steps 1 to 3 of a layer with an adapter (numerics section 5); `dy` is not looked at."""
    run = _Run(layer)
    x, w = layer.x, layer.weight
    a, b = layer.operand("lora_A"), layer.operand("lora_B")
    s_x, s_w, s_a, s_b = (layer.scales[name] for name in ("x", "weight", "lora_A", "lora_B"))
    g = layer.gain
    assert g is not None  # Layer has checked it
    h = run.quantize("H", exact_product(x, a.T), run.mul(s_x, s_a))
    s_y = run.mul(s_x, s_w)
    ratio = run.div(run.mul(run.mul(g, h.scale), s_b), s_y)
    bits = layer.acc_bits("x", "weight")
    y_acc = run.join(
        exact_product(x, w.T), exact_product(h.q, b.T), ratio, bits, layer.bias
    )  # fmt: skip
    y = run.quantize("Y", y_acc, s_y)
    return Forward(
        h=h,
        y=y,
        y_acc=_stored(y_acc, bits),
        y_acc_scale=s_y,
        amax=run.amax,
        sticky=frozenset(run.sticky),
    )


def run_backward(layer: Layer, forward: Forward) -> LayerResult:
    """Steps 4 to 7 after `run_forward` of the same layer: the whole step's results."""
    run = _Run(layer, sticky=set(forward.sticky), amax=dict(forward.amax))
    x, w = layer.x, layer.weight
    a, b, dy = (layer.operand(name) for name in ("lora_A", "lora_B", "dy"))
    s_x, s_w, s_a, s_b, s_dy = (
        layer.scales[name] for name in ("x", "weight", "lora_A", "lora_B", "dy")
    )
    g, h = layer.gain, forward.h
    assert g is not None  # Layer has checked it

    # Steps 4 to 6. The gradients are stored as the ecosystem stores A and B.
    dh = run.quantize("dH", exact_product(dy, b), run.mul(run.mul(g, s_dy), s_b))
    d_a = exact_product(dh.q.T, x)
    d_b = exact_product(dy.T, h.q)

    tensors: dict[str, NDArray[Any]] = {
        "H": h.q,
        "Y": forward.y.q,
        "Y_acc": forward.y_acc,
        "dH": dh.q,
        "dA": _stored(d_a, layer.acc_bits("x", "dH")),
        "dB": _stored(d_b, layer.acc_bits("H", "dy")),
    }
    scales = {
        "H": h.scale,
        "Y": forward.y.scale,
        "Y_acc": forward.y_acc_scale,
        "dH": dh.scale,
        "dA": run.mul(s_x, dh.scale),
        "dB": run.mul(run.mul(g, h.scale), s_dy),
    }
    if layer.want_dx:  # Step 7; the gain is in S_dh already.
        s_dx = run.mul(s_dy, s_w)
        ratio = run.div(run.mul(dh.scale, s_a), s_dx)
        dx_bits = layer.acc_bits("dy", "weight")
        dx_acc = run.join(exact_product(dy, w), exact_product(dh.q, a), ratio, dx_bits)
        dx = run.quantize("dX", dx_acc, s_dx)
        tensors["dX"], scales["dX"] = dx.q, dx.scale
    return LayerResult(tensors=tensors, scales=scales, amax=run.amax, sticky=run.sticky)


def run_layer(layer: Layer) -> LayerResult:
    """A LoRA layer's training step up to its gradients (numerics section 5).

    Returns H, Y, dH, (dX) quantized, Y_acc, dA, dB as accumulators, each with its Scale, the
    delayed tensors' records and the sticky bits. A frozen layer gives Y, Y_acc and (dX): the same
    products without their low-rank terms.
    """
    if layer.is_frozen:
        return _run_frozen(layer)
    return run_backward(layer, run_forward(layer))


def _run_frozen(layer: Layer) -> LayerResult:
    """Y, and dX where asked for, of a layer without an adapter."""
    run = _Run(layer)
    s_y = run.mul(layer.scales["x"], layer.scales["weight"])
    bits = layer.acc_bits("x", "weight")
    y_acc = run.add_bias(exact_product(layer.x, layer.weight.T), layer.bias, bits)
    y = run.quantize("Y", y_acc, s_y)
    tensors: dict[str, NDArray[Any]] = {"Y": y.q, "Y_acc": _stored(y_acc, bits)}
    scales = {"Y": y.scale, "Y_acc": s_y}
    if layer.want_dx:
        s_dx = run.mul(layer.scales["dy"], layer.scales["weight"])
        dx = run.quantize("dX", exact_product(layer.operand("dy"), layer.weight), s_dx)
        tensors["dX"], scales["dX"] = dx.q, dx.scale
    return LayerResult(tensors=tensors, scales=scales, amax=run.amax, sticky=run.sticky)


# The update (numerics section 6) --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Settings of one update rule, as Scales; `calibrate.make_optimizer` makes them from floats.

    Parameters
    ----------
    kind : str
        "sgd", "momentum" or "lion".
    lr : Scale
        Learning rate, not zero.
    beta : Scale
        SGD's momentum factor.
    b1, b1c, b2, b2c : Scale
        Lion's factors and their complements 1 - b1, 1 - b2.
    weight_decay : Scale
        Decoupled weight decay; zero is off.

    Raises
    ------
    ValueError
        On an unknown kind, an invalid scale, or a zero lr.
    """

    kind: str
    lr: Scale
    beta: Scale = ZERO
    b1: Scale = ZERO
    b1c: Scale = ZERO
    b2: Scale = ZERO
    b2c: Scale = ZERO
    weight_decay: Scale = ZERO

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.kind!r}: must be one of {', '.join(OPTIMIZERS)}")
        for name in ("lr", "beta", "b1", "b1c", "b2", "b2c", "weight_decay"):
            try:
                getattr(self, name).check()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.lr.is_zero:
            raise ValueError("lr: scale is zero: must not be")


@dataclass(frozen=True, kw_only=True)
class Master:
    """The state that an update changes: a master copy and, where its rule has one, a momentum.

    Parameters
    ----------
    w : int16 array [rows, cols]
        The master copy, as the ecosystem stores it (lora_A [r,d], lora_B [k,r]).
    scale : Scale
        Its fixed scale, not zero.
    tensor_id : int
        2 * layer for lora_A, 2 * layer + 1 for lora_B: seeds the random words.
    v, v_scale : int16 array [rows, cols] and Scale, or None
        The momentum and its fixed scale, not zero.

    Raises
    ------
    ValueError
        On a wrong type or shape, or a scale that is invalid or zero.
    """

    w: NDArray[Any]
    scale: Scale
    tensor_id: int
    v: NDArray[Any] | None = None
    v_scale: Scale | None = None

    def __post_init__(self) -> None:
        if (self.v is None) != (self.v_scale is None):
            raise ValueError("momentum: v and v_scale must come together")
        held = [("master", self.w, self.scale)]
        if self.v is not None and self.v_scale is not None:
            held.append(("momentum", self.v, self.v_scale))
        for name, tensor, scale in held:
            if tensor.dtype != np.int16 or tensor.ndim != 2:
                raise ValueError(
                    f"{name}: {tensor.dtype} of rank {tensor.ndim}: must be int16 of rank 2"
                )
            try:
                scale.check()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if scale.is_zero:
                raise ValueError(f"{name}: scale is zero: must not be")
        if self.v is not None and self.v.shape != self.w.shape:
            raise ValueError(f"momentum: shape {self.v.shape}: must be {self.w.shape}")


def working_copy(master: Master, bits: int, sticky: set[str] | None = None) -> Quantized:
    """The operand that a step computes with: the master quantized by section 4's rule."""
    return numerics.quantize(master.w, master.scale, bits, sticky=sticky)


def update(
    master: Master,
    gradient: NDArray[Any],
    gradient_scale: Scale,
    optimizer: Optimizer,
    *,
    seed: int,
    step: int,
    sticky: set[str] | None = None,
) -> Master:
    """One update of a master copy (numerics section 6).

    Parameters
    ----------
    master : Master
        The state before; it is not changed.
    gradient : integer array [rows, cols]
        dA or dB accumulators, in the master's layout.
    gradient_scale : Scale
        Their scale.
    optimizer : Optimizer
        The rule; "momentum" and "lion" need the master's v.
    seed, step : int
        Of the random words; step is the file's plus the steps done since.
    sticky : set or None
        Gains `scale_range`, `master_range` (w was clipped), `momentum_range` (v was clipped).

    Raises
    ------
    ValueError
        If the shapes disagree, the gradient's scale is invalid, or the rule's momentum is missing.
    """
    gradient_scale.check()
    if gradient.shape != master.w.shape:
        raise ValueError(f"gradient: shape {gradient.shape}: must be {master.w.shape}")
    bits: set[str] = set() if sticky is None else sticky
    lr = optimizer.lr

    def words(stream: int) -> NDArray[np.uint32]:
        seed_word = numerics.seed_word(seed, step, master.tensor_id, stream)
        return numerics.random_words(seed_word, *master.w.shape)

    def sat(value: NDArray[np.int64], bit: str) -> NDArray[np.int64]:
        limit = numerics.qmax(16)
        value, clipped = numerics.saturate(value, -limit, limit)
        if clipped:
            bits.add(bit)
        return value

    w = master.w.astype(np.int64)
    if not optimizer.weight_decay.is_zero:
        decay = term(w, mul(lr, optimizer.weight_decay, bits), words(1))
        w = sat(w - decay, "master_range")

    if optimizer.kind == "sgd":
        ratio = div(mul(lr, gradient_scale, bits), master.scale, bits)
        w = sat(w - term(gradient, ratio, words(0)), "master_range")
        return replace(master, w=w.astype(np.int16))

    if master.v is None or master.v_scale is None:
        raise ValueError(f"optimizer {optimizer.kind!r}: the master copy has no momentum")
    v = master.v.astype(np.int64)
    into_v = div(gradient_scale, master.v_scale, bits)
    if optimizer.kind == "momentum":
        v = sat(
            term(v, optimizer.beta, words(2)) + term(gradient, into_v, words(3)), "momentum_range"
        )
        ratio = div(mul(lr, master.v_scale, bits), master.scale, bits)
        w = sat(w - term(v, ratio, words(0)), "master_range")
    else:
        c = term(v, optimizer.b1) + term(gradient, mul(optimizer.b1c, into_v, bits))
        v = sat(
            term(v, optimizer.b2, words(2))
            + term(gradient, mul(optimizer.b2c, into_v, bits), words(3)),
            "momentum_range",
        )
        ratio = div(lr, master.scale, bits)
        w = sat(w - term(np.sign(c), ratio, words(0)), "master_range")
    return replace(master, w=w.astype(np.int16), v=v.astype(np.int16))


def momentum_scale(gradients: Iterable[tuple[int, Scale]]) -> Scale:
    """S_v that puts the largest gradient of a dry run at 2^13 (numerics section 6).

    Takes each dry step's (amax(G), S_g). A dry run without any gradient gives 1, since a momentum
    scale must not be zero.
    """
    largest = ZERO
    for maximum, scale in gradients:
        value = mul(numerics.from_int(maximum), scale)
        # Valid scales order as (e, m); zero, which is (0, 0), is below all of them.
        if not value.is_zero and (
            largest.is_zero or (value.e, value.m) > (largest.e, largest.m)
        ):  # fmt: skip
            largest = value
    return ONE if largest.is_zero else div(largest, numerics.from_int(1 << 13))
