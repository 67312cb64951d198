"""The arithmetic against plain big integers, exhaustively where the domain allows."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import big_integers as ref
from systolora.contract import COL_STEP, ROW_STEP
from systolora_sim import calibrate, numerics
from systolora_sim.numerics import ONE, ZERO, Scale

SEED = 20261
MANTISSAS = (32768, 32769, 43690, 43691, 65534, 65535)
WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WIDE = (0, 1, 2, 3, (1 << 31) - 1, 1 << 31, (1 << 46) + 1, (1 << 47) - 1, 1 << 47)

exact = settings(derandomize=True, deadline=None, max_examples=400)
scales = st.builds(Scale, st.integers(32768, 65535), st.integers(-512, 511)) | st.just(ZERO)
near_scales = st.builds(Scale, st.integers(32768, 65535), st.integers(-64, 40))
wide_values = st.integers(-(1 << 47), 1 << 47)


def words_of(word: int | None, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if word is None else np.full(shape, word, np.uint32)


def expect(v: np.ndarray, r: Scale, low: int, high: int, words: list[int] | None) -> None:
    """rescale equals the reference, element by element, and reports saturation."""
    free = [ref.scaled(int(x), r, None if words is None else words[i]) for i, x in enumerate(v)]
    given_words = None if words is None else np.array(words, np.uint32)
    got, saturated = numerics.rescale(v, r, low, high, given_words)
    wanted = [ref.clamp(x, low, high) for x in free]
    assert got.dtype == np.int64
    assert got.tolist() == wanted, (r, low, high, words)
    assert saturated == (wanted != free)


# Check values of the page ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "step", "tensor", "row", "col", "word"),
    [
        (1, 2, 3, 4, 5, 0xE2270AE4),
        (0, 0, 0, 0, 0, 0),
        (-1, 0, 1, 2, 3, 0x915DB0DA),
    ],
)
def test_check_values_of_the_words(seed, step, tensor, row, col, word):
    start = numerics.seed_word(seed, step, tensor)
    assert numerics.random_words(start, row + 1, col + 1)[row, col] == word
    assert ref.word_at(seed, step, tensor, 0, row, col) == word


def test_check_values_of_scales():
    a, b = Scale(40000, 3), Scale(50000, -2)
    assert numerics.mul(a, b) == (61035, 1)
    assert numerics.div(a, b) == (52428, 4)
    assert numerics.div(Scale(50000, 0), Scale(40000, 0)) == (40960, 0)
    assert numerics.from_int(65537) == (32768, 16)
    assert numerics.from_int(131071) == (65535, 16)
    assert calibrate.from_float(0.1) == (52429, -4)


def test_check_values_of_rescale():
    half = Scale(32768, -1)
    v = np.array([-5, -3, -1, 1, 3, 5])
    assert numerics.rescale(v, half, -9, 9)[0].tolist() == [-2, -2, 0, 0, 2, 2]
    v, r = np.array([-7, -1, 1, 7]), Scale(43690, -2)
    for word, wanted in ((0x80000000, [-2, 0, 0, 2]), (0xFFFFFFFF, [-2, 0, 1, 3])):
        assert numerics.rescale(v, r, -9, 9, words_of(word, v.shape))[0].tolist() == wanted


# Scales ---------------------------------------------------------------------------------------


def test_from_int_small_integers():
    for n in range(1 << 17):
        assert numerics.from_int(n) == ref.truncate(Fraction(n))


@pytest.mark.parametrize("bit", range(16, 512))
def test_from_int_around_powers_of_two(bit):
    for n in ((1 << bit) - 1, 1 << bit, (1 << bit) + 1, 3 << (bit - 1)):
        assert numerics.from_int(n) == ref.truncate(Fraction(n))


def test_from_int_refuses_what_it_cannot_hold():
    for n in (-1, 1 << 512):
        with pytest.raises(ValueError, match=r"from_int: n = -?[0-9]+: must be from 0 to"):
            numerics.from_int(n)


def test_mantissa_corners_of_mul_and_div():
    corners = [*MANTISSAS, 46340, 46341, 46342]
    for a, b in itertools.product(corners, corners):
        for e in (-3, 0, 7):
            x, y = Scale(a, e), Scale(b, 2)
            assert numerics.mul(x, y) == ref.multiply(x, y)
            assert numerics.div(x, y) == ref.divide(x, y)


@exact
@given(scales, scales)
@example(Scale(65535, 511), Scale(65535, 511))
@example(Scale(32768, -512), Scale(65535, 511))
@example(Scale(32768, 511), Scale(32768, 0))
def test_mul_and_div_truncate_the_exact_result(a, b):
    for operation, reference in ((numerics.mul, ref.multiply), (numerics.div, ref.divide)):
        sticky: set[str] = set()
        result = operation(a, b, sticky)
        assert result == reference(a, b)
        assert result.check() is result
        exact_value = ref.value(a) * ref.value(b)
        if operation is numerics.div:
            exact_value = ref.value(a) / ref.value(b) if a.m and b.m else Fraction(0)
        outside = exact_value != 0 and not (Fraction(2) ** -512 <= exact_value < Fraction(2) ** 512)
        assert sticky == ({"scale_range"} if outside else set())
        assert operation(a, b) == result  # the set is optional


def test_scale_check_names_the_rule():
    for bad, message in (
        (Scale(0, 1), r"scale \(0, 1\): the zero scale is \(0, 0\) and nothing else"),
        (Scale(32767, 0), "scale m = 32767: must be 0 or from 32768 to 65535"),
        (Scale(65536, 0), "scale m = 65536: must be 0 or from 32768 to 65535"),
        (Scale(-40000, 0), "scale m = -40000: must be 0 or"),
        (Scale(40000, 512), "scale e = 512: must be from -512 to 511"),
        (Scale(40000, -513), "scale e = -513: must be from -512 to 511"),
    ):
        with pytest.raises(ValueError, match=message):
            bad.check()
    for good in (ZERO, ONE, Scale(32768, -512), Scale(65535, 511)):
        assert good.check() is good
    assert ZERO.is_zero
    assert not ONE.is_zero


# rescale --------------------------------------------------------------------------------------


@pytest.mark.parametrize("e", range(-60, 24))
def test_rescale_every_int8_at_every_shift_that_rounds(e):
    v = np.arange(-128, 128, dtype=np.int8)
    for m in MANTISSAS:
        expect(v, Scale(m, e), *ref.INT48, None)
        for word in WORDS:
            expect(v, Scale(m, e), -127, 127, [word] * v.size)


def test_rescale_all_exponents_and_corner_values():
    v = np.array([sign * x for x in WIDE for sign in (1, -1)])
    for e, m in itertools.product(range(-512, 512), (32768, 43691, 65535)):
        for low, high in ((-127, 127), (-32767, 32767), ref.INT32, ref.INT48):
            expect(v, Scale(m, e), low, high, None)
        expect(v, Scale(m, e), *ref.INT48, [0xFFFFFFFF] * v.size)


def test_rescale_rounds_ties_to_even_at_every_shift():
    for shift in range(1, 47):
        odd = np.array([1, 3, 5, -1, -3, -5], np.int64)
        v = odd[abs(odd) << (shift - 1) <= numerics.V_LIMIT] << (shift - 1)  # v / 2^shift = n + 1/2
        got = numerics.rescale(v, Scale(32768, -shift), *ref.INT48)[0]
        assert (got % 2 == 0).all()
        assert (2 * np.abs((got << shift) - v) == 1 << shift).all()


@exact
@given(
    st.lists(st.tuples(wide_values, st.integers(0, (1 << 32) - 1)), min_size=1, max_size=8),
    near_scales | scales,
    st.sampled_from([(-127, 127), ref.INT32, ref.INT48, (0, 0), (-(1 << 62), 1 << 62)]),
    st.booleans(),
)
def test_rescale_equals_the_exact_fraction(pairs, r, limits, stochastic):
    v = np.array([pair[0] for pair in pairs], np.int64)
    words = [pair[1] for pair in pairs] if stochastic else None
    expect(v, r, limits[0], limits[1], words)


def test_rescale_passes_63_bits_only_in_the_sum_with_the_word():
    # P near 2^63, and a word that carries it past: what wraps in naive 64-bit software.
    v = np.array([1 << 47, -(1 << 47), (1 << 47) - 1])
    for e in range(-48, 16):
        expect(v, Scale(65535, e), *ref.INT48, [0xFFFFFFFF] * 3)


def test_rescale_saturates_exactly_at_the_ends_when_it_shifts_left():
    for left in range(1, 20):
        shifted = 32768 << left  # of v = 1
        for bound in (shifted - 1, shifted, shifted + 1):
            expect(np.array([-1, 1]), Scale(32768, 15 + left), -bound, bound, None)


def test_rescale_keeps_shape_and_input():
    for v in (np.int16(-300), np.array(-300), np.full((2, 3, 4), -300), np.zeros((0, 5), np.int8)):
        before = np.array(v)
        got, _ = numerics.rescale(v, ONE, -127, 127)
        assert np.shape(got) == np.shape(v)
        assert np.array_equal(np.array(v), before)
        words = words_of(1, np.shape(v))
        assert np.shape(numerics.rescale(v, Scale(40000, -3), -127, 127, words)[0]) == np.shape(v)


def test_rescale_refuses_what_is_outside_its_domain():
    for v in (np.array([(1 << 47) + 1]), np.array([-(1 << 47) - 1]), np.array([-(1 << 63)])):
        with pytest.raises(ValueError, match=r"rescale: magnitude [0-9]+: must be at most 2\^47"):
            numerics.rescale(v, ONE, -127, 127)
    with pytest.raises(ValueError, match=r"an unsigned value of 2\^63 or more"):
        numerics.rescale(np.array([1 << 63], np.uint64), ONE, -127, 127)
    with pytest.raises(ValueError, match=r"rescale: range 1\.\.5: must hold 0"):
        numerics.rescale(np.array([1]), ONE, 1, 5)
    with pytest.raises(TypeError, match="an integer array is required, not float64"):
        numerics.rescale(np.array([1.0]), ONE, -127, 127)
    with pytest.raises(TypeError, match="rescale: words are int64: must be uint32"):
        numerics.rescale(np.array([1]), ONE, -127, 127, np.array([1]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"words have shape \(2,\): must be \(1,\)"):
        numerics.rescale(np.array([1]), ONE, -127, 127, np.zeros(2, np.uint32))


def test_stochastic_rounding_is_unbiased_and_between_floor_and_ceiling():
    r = Scale(43690, -3)
    v = np.full((256, 256), 7)
    got = numerics.rescale(v, r, -127, 127, numerics.random_words(SEED, 256, 256))[0]
    truth = float(7 * ref.value(r))
    assert set(np.unique(got)) == {int(truth), int(truth) + 1}
    # 65536 draws of a variable with standard deviation below 1/2: five sigmas are 0.01.
    assert abs(got.mean() - truth) < 0.01


# Sums, maxima, widths -------------------------------------------------------------------------


def test_add_sat_saturates_once_and_at_the_end():
    for bits in (32, 48):
        low, high = numerics.int_range(bits)
        acc = np.array([high, low, high, 5, low, 0])
        extra = np.array([1, -1, high, 6, high, 0])
        third = np.array([-1, 0, low, -7, 1, 0])
        got, saturated = numerics.add_sat(acc, extra, third, bits=bits)
        exact_sums = [int(a) + int(b) + int(c) for a, b, c in zip(acc, extra, third, strict=True)]
        assert got.tolist() == [ref.clamp(x, low, high) for x in exact_sums]
        assert saturated
        assert got[0] == high  # no saturation on the way
        assert numerics.add_sat(acc, -np.sign(acc), bits=bits)[1] is False
    row = numerics.add_sat(np.zeros((2, 3), np.int64), np.array([1, 2, 3], np.int32), bits=32)[0]
    assert row.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_amax_is_exact_for_the_most_negative_values():
    assert numerics.amax(np.array([-128, 127], np.int8)) == 128
    assert numerics.amax(np.array([-(1 << 31)], np.int32)) == 1 << 31
    assert numerics.amax(np.array([-(1 << 47), 5])) == 1 << 47
    assert numerics.amax(np.array([-(1 << 63)])) == 1 << 63
    assert numerics.amax(np.zeros((0, 3), np.int32)) == 0


def test_byte_planes_of_every_int16():
    v = np.arange(-32768, 32768, dtype=np.int16)
    hi, lo = numerics.byte_planes(v)
    assert hi.min() == -128
    assert hi.max() == 127
    assert lo.min() == 0
    assert lo.max() == 255
    assert np.array_equal(256 * hi + lo, v)
    assert np.array_equal(numerics.join_planes(hi, lo), v)


def test_widths():
    assert [numerics.qmax(bits) for bits in (8, 16)] == [127, 32767]
    assert [numerics.acc_bits(a, b) for a, b in ((8, 8), (8, 16), (16, 8), (16, 16))] == [
        32, 48, 48, 48,
    ]  # fmt: skip
    assert numerics.operand_dtype(8) == np.int8
    assert numerics.operand_dtype(16) == np.int16
    with pytest.raises(ValueError, match="bits = 12: must be 8 or 16"):
        numerics.operand_dtype(12)


# Quantization ---------------------------------------------------------------------------------


@exact
@given(
    st.lists(wide_values | st.integers(-300, 300), min_size=1, max_size=6),
    scales,
    st.sampled_from([8, 16]),
    st.sampled_from([None, 0, 1, 100, 1 << 31, 1 << 47]),
    st.booleans(),
)
@example([0, 0], ONE, 8, None, False)
@example([0, 0], ONE, 8, 100, False)
@example([5, -5], ZERO, 8, None, False)
def test_quantize_equals_the_reference(values, scale, bits, previous, stochastic):
    acc = np.array([values])
    words = numerics.random_words(7, 1, len(values)) if stochastic else None
    sticky: set[str] = set()
    got = numerics.quantize(acc, scale, bits, words=words, previous_amax=previous, sticky=sticky)
    given_words = words.tolist() if words is not None else None
    q, new_scale, record, clipped = ref.quantized([values], scale, bits, previous or 0, given_words)
    assert got.q.dtype == numerics.operand_dtype(bits)
    assert got.q.tolist() == q
    assert got.scale == new_scale
    assert got.amax == max(abs(v) for v in values)
    assert got.record == record
    assert got.clipped == clipped
    assert ("clip_delayed" in sticky) == bool(clipped and previous)


def test_truncated_ratio_clips_some_int16_maxima_without_an_error():
    rng = random.Random(SEED)
    clipped = 0
    for _ in range(2000):
        sticky: set[str] = set()
        maximum = rng.randrange(1 << 20, 1 << 31)
        result = numerics.quantize(np.array([-maximum, 1]), ONE, 16, sticky=sticky)
        assert result.q[0] in (-32767, -32766)
        assert sticky == set()
        clipped += result.clipped
    assert 0.03 < clipped / 2000 < 0.09  # the page says some 6%


# Random words ---------------------------------------------------------------------------------


def test_mix_equals_the_reference():
    rng = random.Random(SEED)
    words = [rng.getrandbits(32) for _ in range(5000)] + list(WORDS)
    got = numerics.mix(np.array(words, np.uint32))
    assert got.dtype == np.uint32
    # word_at mixes seed + 0: the seed alone is the word.
    assert got.tolist() == [ref.word_at(word, 0, 0, 0, 0, 0) for word in words]
    assert int(numerics.mix(0xFFFFFFFF)) == ref.word_at(-1, 0, 0, 0, 0, 0)


@exact
@given(
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(0, 1 << 20),
    st.integers(0, 0x10000 + 800),
    st.integers(0, 3),
)
def test_words_are_a_function_of_the_position(seed, step, tensor, stream):
    start = numerics.seed_word(seed, step, tensor, stream)
    assert 0 <= start < 1 << 32
    words = numerics.random_words(start, 3, 4)
    assert words.dtype == np.uint32
    assert words.tolist() == [
        [ref.word_at(seed, step, tensor, stream, row, col) for col in range(4)] for row in range(3)
    ]
    # A tile of the tensor starts at its own seed word.
    tile = numerics.random_words(start + 1 * ROW_STEP + 2 * COL_STEP, 2, 2)
    assert np.array_equal(tile, words[1:3, 2:4])


def test_words_far_from_the_origin():
    start = numerics.seed_word(3, 1, 2)
    assert int(numerics.random_words(start, 1, 131071)[0, -1]) == ref.word_at(3, 1, 2, 0, 0, 131070)
    assert int(numerics.random_words(start, 131071, 1)[-1, 0]) == ref.word_at(3, 1, 2, 0, 131070, 0)


# Floats ---------------------------------------------------------------------------------------


@exact
@given(st.floats(2.0**-500, 2.0**500))
@example(1.0)
@example(1.9999999999)
@example(32768.5 / 32768)
@example(32769.5 / 32768)
def test_from_float_is_the_nearest_scale(x):
    scale = calibrate.from_float(x).check()
    exponent = ref.truncate(Fraction(x))[1]
    m = round(Fraction(x) / Fraction(2) ** (exponent - 15))
    assert scale == ((m, exponent) if m < 1 << 16 else (1 << 15, exponent + 1))
    assert Fraction(calibrate.to_float(scale)) == ref.value(scale)


def test_from_float_at_its_ends():
    assert calibrate.from_float(0.0) == ZERO
    assert calibrate.from_float(-0.0) == ZERO
    assert calibrate.to_float(ZERO) == 0.0
    for x, wanted in ((2.0**600, 511), (2.0**-600, -512), (5e-324, -512)):
        sticky: set[str] = set()
        assert calibrate.from_float(x, sticky) == (32768, wanted)
        assert sticky == {"scale_range"}
        assert calibrate.from_float(x).e == wanted
    for x in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"from_float: x = .*: must be finite and not"):
            calibrate.from_float(x)


@pytest.mark.parametrize("bits", [8, 16])
def test_quantize_float(bits):
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(50, 40)).astype(np.float32)
    q, scale = calibrate.quantize_float(x, bits)
    limit = 2 ** (bits - 1) - 1
    assert q.dtype == numerics.operand_dtype(bits)
    assert numerics.amax(q) == limit
    wanted = [
        ref.clamp(round(Fraction(float(v)) / ref.value(scale)), -limit, limit)
        for v in x.reshape(-1)
    ]
    assert q.reshape(-1).tolist() == wanted
    zero, one = calibrate.quantize_float(np.zeros((2, 2), np.float32), bits)
    assert one == ONE
    assert not zero.any()


def test_quantize_float_refuses_what_is_not_finite():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="1 of 3 values are NaN or infinite: must be finite"):
            calibrate.quantize_float(np.array([1.0, bad, 2.0]), 8)
