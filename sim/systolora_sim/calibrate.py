"""Where floats end: real numbers become Scales, integers and optimizer settings.

Everything before the accelerator that needs a float is here (numerics sections 2, 6 and 8); the
other models compute with integers only.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import numerics
from systolora_sim.golden import Master, Optimizer
from systolora_sim.numerics import ONE, ZERO, Scale

__all__ = [
    "from_float",
    "load_master",
    "make_optimizer",
    "master_scale",
    "quantize_float",
    "quantize_with_scale",
    "to_float",
]


def from_float(x: float, sticky: set[str] | None = None) -> Scale:
    """The Scale nearest to x >= 0, ties to even; 0 gives zero (numerics section 2).

    A saturated e adds `scale_range` to `sticky`; no finite float32 reaches that.

    Raises
    ------
    ValueError
        If x is negative, infinite or not a number.
    """
    x = float(x)
    if not math.isfinite(x) or x < 0:
        raise ValueError(f"from_float: x = {x}: must be finite and not negative")
    if x == 0:
        return ZERO
    fraction, exponent = math.frexp(x)  # x = fraction * 2^exponent, fraction in [0.5, 1)
    m, e = round(math.ldexp(fraction, 16)), exponent - 1
    if m > numerics.M_MAX:
        m, e = numerics.M_MIN, e + 1
    if not numerics.E_MIN <= e <= numerics.E_MAX:
        if sticky is not None:
            sticky.add("scale_range")
        e = min(max(e, numerics.E_MIN), numerics.E_MAX)
    return Scale(m, e)


def to_float(scale: Scale) -> float:
    """The value of a Scale, exact in float64 over its whole range."""
    return math.ldexp(scale.m, scale.e - 15)


def _finite64(x: Any) -> NDArray[np.float64]:
    """x in float64.

    Raises
    ------
    ValueError
        If x holds a NaN or an infinity; the message counts them.
    """
    with np.errstate(invalid="ignore"):  # widening a signalling NaN; refused below
        x = np.asarray(x).astype(np.float64)
    bad = x.size - int(np.count_nonzero(np.isfinite(x)))
    if bad:
        raise ValueError(f"{bad} of {x.size} values are NaN or infinite: must be finite")
    return x


def quantize_with_scale(x: Any, bits: int, scale: Scale) -> NDArray[Any]:
    """clip(rint(x / S), -qmax, qmax) as int8 or int16, in float64 (numerics section 8)."""
    limit = numerics.qmax(bits)
    q = np.clip(np.rint(_finite64(x) / to_float(scale)), -limit, limit)
    return q.astype(numerics.operand_dtype(bits))


def quantize_float(x: Any, bits: int) -> tuple[NDArray[Any], Scale]:
    """A float tensor as int8 or int16 with S = max|x| / qmax (numerics section 8).

    A tensor that is all zero gets the scale (2^15, 0) (numerics section 2).

    Raises
    ------
    ValueError
        If x holds a NaN or an infinity, or bits is neither 8 nor 16.
    """
    x = _finite64(x)
    largest = float(np.max(np.abs(x), initial=0.0))
    scale = from_float(largest / numerics.qmax(bits)) if largest else ONE
    return quantize_with_scale(x, bits, scale), scale


def master_scale(x: Any) -> Scale:
    """Fixed scale of an int16 master copy: max(4 max|x|, 0.25) / 32767 (numerics section 6)."""
    largest = float(np.max(np.abs(_finite64(x)), initial=0.0))
    return from_float(max(4 * largest, 0.25) / numerics.qmax(16))


def load_master(x: Any, tensor_id: int, v_scale: Scale | None = None) -> Master:
    """The int16 master copy of an adapter tensor [rows, cols], with zero momentum if asked for."""
    scale = master_scale(x)
    w = quantize_with_scale(x, 16, scale)
    v = None if v_scale is None else np.zeros(w.shape, np.int16)
    return Master(w=w, scale=scale, tensor_id=tensor_id, v=v, v_scale=v_scale)


def make_optimizer(
    kind: str,
    lr: float,
    *,
    beta: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
) -> Optimizer:
    """The update's settings from real numbers (numerics section 6).

    1 - b1 and 1 - b2 are Scales of their own, each rounded from float64.

    Raises
    ------
    ValueError
        If a number is not finite, lr is not positive, weight_decay is negative, a momentum factor
        is outside 0..1, or `kind` is unknown.
    """
    for name, value in (("beta", beta), ("b1", b1), ("b2", b2)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value}: must be from 0 to 1")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} = {value}: must be finite and not negative")
    return Optimizer(
        kind=kind,
        lr=from_float(lr),
        beta=from_float(beta),
        b1=from_float(b1),
        b1c=from_float(1 - b1),
        b2=from_float(b2),
        b2c=from_float(1 - b2),
        weight_decay=from_float(weight_decay),
    )
