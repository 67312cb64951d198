"""The arithmetic of the accelerator, integers only: the one software home of rounding.

Every function here is exact and total over the domain it states (numerics sections 1 to 4, 7, 8
and the rescaled terms of section 6). Tensors are NumPy integer arrays; everything that describes a
whole tensor (a `Scale`, a maximum, a seed word) is Python integers. Floats become integers in
`systolora_sim.calibrate` and nowhere else.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora.contract import COL_STEP, ROW_STEP

__all__ = [
    "E_MAX",
    "E_MIN",
    "K_LIMIT",
    "M_MAX",
    "M_MIN",
    "NARROW_BITS",
    "ONE",
    "TERM_BITS",
    "V_LIMIT",
    "WIDE_BITS",
    "ZERO",
    "Quantized",
    "Scale",
    "acc_bits",
    "add_sat",
    "amax",
    "byte_planes",
    "div",
    "from_int",
    "int_range",
    "join_planes",
    "mix",
    "mul",
    "operand_dtype",
    "qmax",
    "quant_ratio",
    "quantize",
    "random_words",
    "rescale",
    "saturate",
    "seed_word",
    "term",
]

IntArray = NDArray[np.int64]
WordArray = NDArray[np.uint32]

M_MIN, M_MAX = 1 << 15, (1 << 16) - 1
E_MIN, E_MAX = -512, 511

#: Largest magnitude `rescale` takes: the most negative 48-bit accumulator.
V_LIMIT = 1 << 47
#: Reduction lengths from here on are refused: the sum could overflow (numerics section 9).
K_LIMIT = 1 << 17
#: Accumulator widths (numerics section 1) and the width of a rescaled term of the update.
NARROW_BITS, WIDE_BITS, TERM_BITS = 32, 48, 32

_STEP_SEED, _TENSOR_SEED, _STREAM_SEED = 0xC2B2AE35, 0x27D4EB2F, 0x165667B1
_WORD = (1 << 32) - 1


class Scale(NamedTuple):
    """A positive real number m * 2^(e-15), or zero (numerics section 1).

    Parameters
    ----------
    m : int
        Mantissa, 2^15 to 2^16-1; 0 only in the zero scale (0, 0).
    e : int
        Exponent, -512 to 511.
    """

    m: int
    e: int

    @property
    def is_zero(self) -> bool:
        return self.m == 0

    def check(self) -> "Scale":
        """This scale if it is valid.

        Raises
        ------
        ValueError
            Naming the rule that (m, e) breaks.
        """
        if self.m == 0:
            if self.e != 0:
                raise ValueError(f"scale (0, {self.e}): the zero scale is (0, 0) and nothing else")
        elif not M_MIN <= self.m <= M_MAX:
            raise ValueError(f"scale m = {self.m}: must be 0 or from {M_MIN} to {M_MAX}")
        elif not E_MIN <= self.e <= E_MAX:
            raise ValueError(f"scale e = {self.e}: must be from {E_MIN} to {E_MAX}")
        return self


ZERO = Scale(0, 0)
ONE = Scale(M_MIN, 0)


# Scale arithmetic (numerics section 2) --------------------------------------------------------


def _scale(m: int, e: int, sticky: set[str] | None) -> Scale:
    """(m, e) with e saturated to its range; a saturation adds `scale_range` to `sticky`."""
    if not E_MIN <= e <= E_MAX:
        if sticky is not None:
            sticky.add("scale_range")
        e = min(max(e, E_MIN), E_MAX)
    return Scale(m, e)


def from_int(n: int) -> Scale:
    """The integer n >= 0 as a Scale, truncated to 16 bits; 0 gives zero (numerics section 2).

    Raises
    ------
    ValueError
        If n is negative or does not fit the exponent (2^512 and above).
    """
    n = int(n)
    if n < 0 or n.bit_length() > E_MAX + 1:
        raise ValueError(f"from_int: n = {n}: must be from 0 to 2^{E_MAX + 1} - 1")
    if n == 0:
        return ZERO
    top = n.bit_length() - 1
    return Scale(n << (15 - top) if top <= 15 else n >> (top - 15), top)


def mul(a: Scale, b: Scale, sticky: set[str] | None = None) -> Scale:
    """a * b, truncated (numerics section 2); a saturated e adds `scale_range` to `sticky`."""
    if a.m == 0 or b.m == 0:
        return ZERO
    product = a.m * b.m
    if product >= 1 << 31:
        return _scale(product >> 16, a.e + b.e + 1, sticky)
    return _scale(product >> 15, a.e + b.e, sticky)


def div(a: Scale, b: Scale, sticky: set[str] | None = None) -> Scale:
    """a / b, truncated (numerics section 2); zero if either is zero.

    A saturated e adds `scale_range` to `sticky`.
    """
    if a.m == 0 or b.m == 0:
        return ZERO
    quotient = (a.m << 16) // b.m
    if a.m >= b.m:
        return _scale(quotient >> 1, a.e - b.e, sticky)
    return _scale(quotient, a.e - b.e - 1, sticky)


# Integers times scales (numerics section 3) ---------------------------------------------------


def _int64(v: Any) -> IntArray:
    """v as int64.

    Raises
    ------
    TypeError
        If v is not of an integer type: a float here would be a rounding outside this module.
    ValueError
        If an unsigned value does not fit.
    """
    array = np.asarray(v)
    if array.dtype.kind not in "iu":
        raise TypeError(f"an integer array is required, not {array.dtype}")
    if array.dtype == np.uint64 and amax(array) >= 1 << 63:
        raise ValueError("an unsigned value of 2^63 or more does not fit 64 signed bits")
    return array.astype(np.int64, copy=False)


def rescale(
    v: Any, r: Scale, low: int, high: int, words: WordArray | None = None
) -> tuple[IntArray, bool]:
    """v * r rounded to integers, then saturated to low..high (numerics section 3).

    Rounds to nearest, ties to even; with `words`, stochastically, one word for each element.

    Parameters
    ----------
    v : integer array
        Any shape, magnitudes up to 2^47.
    r : Scale
        The factor; any valid scale.
    low, high : int
        Range of the destination, low <= 0 <= high, magnitudes up to 2^62.
    words : uint32 array of v's shape, or None
        The random words of section 7.

    Returns
    -------
    (int64 array, bool)
        The integers, and whether any of them was saturated.

    Raises
    ------
    ValueError
        If a magnitude of v or of the range is too large, or the shapes disagree.
    TypeError
        If v is not of an integer type, or `words` not uint32.
    """
    v = _int64(v)
    if not -(1 << 62) <= low <= 0 <= high <= 1 << 62:
        raise ValueError(f"rescale: range {low}..{high}: must hold 0, at most 2^62 either way")
    if words is not None:
        if words.dtype != np.uint32:
            raise TypeError(f"rescale: words are {words.dtype}: must be uint32")
        if words.shape != v.shape:
            raise ValueError(f"rescale: words have shape {words.shape}: must be {v.shape}")
    if amax(v) > V_LIMIT:
        raise ValueError(f"rescale: magnitude {amax(v)}: must be at most 2^47")

    shift = 15 - r.e
    if r.m == 0 or shift > 63:
        return np.zeros(v.shape, np.int64), False
    product = v * np.int64(r.m)  # |v| <= 2^47 and m < 2^16: below 2^63
    if shift <= 0:
        # Saturate before shifting, which could pass 63 bits. The range's own ends become
        # ceil(low / 2^left) and floor(high / 2^left); from 62 on only 0 stays inside.
        left = min(-shift, 62)
        over, under = product > high >> left, product < -(-low >> left)
        rounded = np.where(over | under, 0, product) << np.int64(left)
        rounded = np.where(over, high, np.where(under, low, rounded))
        return rounded, bool(over.any() or under.any())

    # The product is floor * 2^shift + fraction. fraction + word needs up to 64 bits, which
    # unsigned arithmetic has; product + word in 64 signed bits would wrap.
    floor = product >> np.int64(shift)
    fraction = product.view(np.uint64) & np.uint64((1 << shift) - 1)
    if words is None:
        half = np.uint64(1 << (shift - 1))
        carry = (fraction > half) | ((fraction == half) & ((floor & 1) == 1))
    else:
        word = words.astype(np.uint64)
        word = word >> np.uint64(32 - shift) if shift <= 32 else word << np.uint64(shift - 32)
        carry = ((fraction + word) >> np.uint64(shift)) != 0
    return saturate(floor + carry, low, high)


def saturate(v: IntArray, low: int, high: int) -> tuple[IntArray, bool]:
    """v limited to low..high, and whether any element was outside."""
    if v.size == 0 or (int(v.min()) >= low and int(v.max()) <= high):
        return v, False
    return np.clip(v, low, high), True


def int_range(bits: int) -> tuple[int, int]:
    """The full two's complement range of that width."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def add_sat(acc: Any, *terms: Any, bits: int) -> tuple[IntArray, bool]:
    """acc + all terms as one exact sum, saturated once to `bits` signed bits.

    Operands broadcast (a bias row [k] joins [N, k]); each is at most 2^48 in magnitude, so that a
    few of them cannot pass 64 bits. Returns the sums and whether any was saturated (numerics
    section 5, step 2).
    """
    total = _int64(acc)
    for extra in terms:
        total = total + _int64(extra)
    return saturate(total, *int_range(bits))


def term(v: Any, r: Scale, words: WordArray | None = None) -> IntArray:
    """A term of the update: v * r saturated to signed 32 bits (numerics section 6).

    With words it is the page's `rs(v, r, n)`, without them a nearest-even rescale. Saturation here
    has no sticky bit: the sum that takes the term saturates too, and that one is reported.
    """
    return rescale(v, r, *int_range(TERM_BITS), words)[0]


def amax(v: Any) -> int:
    """max |v| as a Python integer, exact for the most negative values; 0 for an empty tensor."""
    v = np.asarray(v)
    return max(int(v.max()), -int(v.min())) if v.size else 0


# Widths (numerics section 1) ------------------------------------------------------------------


def qmax(bits: int) -> int:
    """Largest quantized value: 2^(bits-1) - 1."""
    return (1 << (bits - 1)) - 1


def operand_dtype(bits: int) -> np.dtype[Any]:
    """NumPy type of an 8-bit or 16-bit operand; ValueError for any other width."""
    if bits not in (8, 16):
        raise ValueError(f"bits = {bits}: must be 8 or 16")
    return np.dtype(np.int8 if bits == 8 else np.int16)


def acc_bits(a_bits: int, b_bits: int) -> int:
    """Accumulator width of a product: 32 if both operands are int8, else 48."""
    return NARROW_BITS if a_bits == b_bits == 8 else WIDE_BITS


def byte_planes(v: Any) -> tuple[IntArray, IntArray]:
    """(hi, lo) with v = 256 * hi + lo, hi signed, lo 0..255 (numerics section 8)."""
    v = _int64(v)
    return v >> 8, v & 255


def join_planes(hi: Any, lo: Any) -> IntArray:
    """The inverse of `byte_planes`."""
    return (_int64(hi) << 8) + _int64(lo)


# Quantization of accumulators (numerics section 4) --------------------------------------------


class Quantized(NamedTuple):
    """A quantized tensor.

    q : int8 or int16 array; scale : its Scale; amax : the maximum of this step's accumulators;
    record : the most recent non-zero maximum, what a delayed tensor keeps for its next step;
    clipped : whether any element was limited to +-qmax.
    """

    q: NDArray[Any]
    scale: Scale
    amax: int
    record: int
    clipped: bool


def quant_ratio(maximum: int, bits: int, sticky: set[str] | None = None) -> Scale:
    """r = div(from_int(qmax), from_int(amax)): from accumulator units to quantized units."""
    return div(from_int(qmax(bits)), from_int(maximum), sticky)


def quantize(
    acc: Any,
    acc_scale: Scale,
    bits: int,
    *,
    words: WordArray | None = None,
    previous_amax: int | None = None,
    sticky: set[str] | None = None,
) -> Quantized:
    """An accumulator tensor as int8 or int16 with its Scale (numerics section 4).

    Just in time, or delayed where `previous_amax` is the record of an earlier step (None and 0 mean
    that there is none: just in time, and clipping is not an error). Nearest even, or stochastic
    with `words`. May add `scale_range` and `clip_delayed` to `sticky`.
    """
    acc = _int64(acc)
    dtype = operand_dtype(bits)
    maximum = amax(acc)
    reference = previous_amax or maximum
    record = maximum or previous_amax or 0
    if reference == 0:
        return Quantized(np.zeros(acc.shape, dtype), ZERO, 0, 0, False)
    r = quant_ratio(reference, bits, sticky)
    limit = qmax(bits)
    q, clipped = rescale(acc, r, -limit, limit, words)
    if clipped and previous_amax and sticky is not None:
        sticky.add("clip_delayed")
    return Quantized(q.astype(dtype), div(acc_scale, r, sticky), maximum, record, clipped)


# Random words (numerics section 7) ------------------------------------------------------------


def mix(x: Any) -> WordArray:
    """The page's mixing of 32-bit words, elementwise, modulo 2^32."""
    given = np.asarray(x, np.uint32)
    word = given.reshape(-1).copy()  # never 0-d: NumPy warns of overflow in scalars only
    word ^= word >> np.uint32(16)
    word += word << np.uint32(10)
    word ^= word >> np.uint32(6)
    word += word << np.uint32(3)
    word ^= word >> np.uint32(11)
    word += word << np.uint32(15)
    word ^= word >> np.uint32(16)
    return word.reshape(given.shape)


def seed_word(seed: int, step: int, tensor_id: int, stream: int = 0) -> int:
    """The 32-bit seed word of one tensor in one step (any integers; taken modulo 2^32)."""
    total = seed + step * _STEP_SEED + tensor_id * _TENSOR_SEED + stream * _STREAM_SEED
    return int(total) & _WORD


def random_words(seed_word: int, rows: int, cols: int) -> WordArray:
    """The words of a logical tensor: uint32 [rows, cols], each a function of its own position."""
    start = np.uint64(seed_word & _WORD)
    row = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(ROW_STEP)
    col = np.arange(cols, dtype=np.uint64)[None, :] * np.uint64(COL_STEP)
    # uint64 wraps at a multiple of 2^32, so the low half is the sum modulo 2^32.
    return mix(((start + row + col) & np.uint64(_WORD)).astype(np.uint32))
