"""Rescale: an accumulator times a Scale, rounded and saturated (numerics section 3).

Two components: `Rescale` is the datapath of one lane, `RescaleControl` computes once, for all
lanes, what depends on the operation only.
"""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Limit", "Rescale", "RescaleControl", "control_layout"]

#: Bits of r's mantissa, hence how much wider than the value the product is.
MANTISSA_BITS = 16
#: Fraction bits of the aligned product: the width of a random word.
FRACTION_BITS = 32
#: A product that is not zero has a magnitude of at least 2**15 (m >= 2**15), so it always differs
#: from its sign in bit 14 or above: overflow need not look lower.
OVERFLOW_FROM = 14
#: Right shifts beyond this give zero by definition.
SHIFT_MAX = 63
ROTATION_BITS = 6
#: Levels of the rotator in its first stage; the others are in the second.
COARSE_LEVELS = 3


class Limit(enum.Enum, shape=2):
    """Destination of a rescaled value, to which it saturates."""

    ACC48 = 0  # -2**47..2**47 - 1
    ACC32 = 1  # -2**31..2**31 - 1
    INT8 = 2  # -127..127
    INT16 = 3  # -32767..32767


#: Bits of the destination's two's complement.
LIMIT_BITS = {Limit.ACC48: 48, Limit.ACC32: 32, Limit.INT8: 8, Limit.INT16: 16}
SYMMETRIC = (Limit.INT8, Limit.INT16)


def _limits(acc_bits: int) -> tuple[Limit, ...]:
    """The destinations of a design with accumulators of `acc_bits` bits, narrowest first.

    Raises
    ------
    ValueError
        If `acc_bits` is neither 32 nor 48.
    """
    if acc_bits == 32:
        return (Limit.INT8, Limit.ACC32)
    if acc_bits == 48:
        return (Limit.INT8, Limit.INT16, Limit.ACC32, Limit.ACC48)
    raise ValueError(f"acc_bits must be 32 or 48, not {acc_bits!r}")


def _product_bits(acc_bits: int) -> int:
    return acc_bits + MANTISSA_BITS


def _aligned_bits(acc_bits: int) -> int:
    """Fraction and integer; one bit above the accumulator, for -2**(bits - 1) - 1 rounded up."""
    return FRACTION_BITS + acc_bits + 1


def control_layout(acc_bits: int) -> data.StructLayout:
    """The signals from `RescaleControl` to every `Rescale` of the same `acc_bits`.

    With s = 15 - e the shift of numerics section 3, p an index of a product bit, and k an index
    of the product aligned to 32 fraction bits (aligned bit k is product bit k + s - 32):

    - ``multiplier``: m, or 0 where every result is 0
    - ``rotation``: (s - 32) modulo the product's width
    - ``keep``: bit k is set where aligned bit k is a bit of the product
    - ``fill``: aligned bits that are not kept take the sign, where a shift to the right may bring
      it, instead of 0
    - ``overflow_mask``: bit p - 14 is set where product bit p is above the destination's sign bit
    - ``sticky_mask``: bit p is set where product bit p is below the aligned fraction
    - ``limit``: destination
    - ``stochastic``: round by the random word, else to nearest, half to even

    Raises
    ------
    ValueError
        If `acc_bits` is neither 32 nor 48.
    """
    _limits(acc_bits)
    return data.StructLayout(
        {
            "multiplier": MANTISSA_BITS,
            "rotation": ROTATION_BITS,
            "keep": _aligned_bits(acc_bits),
            "fill": 1,
            "overflow_mask": _product_bits(acc_bits) - 1 - OVERFLOW_FROM,
            "sticky_mask": SHIFT_MAX - FRACTION_BITS,
            "limit": Limit,
            "stochastic": 1,
        }
    )


class RescaleControl(wiring.Component):
    """Turns a Scale r and a destination into the control signals of all `Rescale` lanes.

    A new set may enter every cycle. It leaves field by field, `multiplier` first, each field in
    the cycle in which a value that enters `Rescale` with the multiplier needs it.

    Parameters
    ----------
    acc_bits : int
        Width of an accumulator, 48 or 32.

    Raises
    ------
    ValueError
        If `acc_bits` is neither 32 nor 48.

    Members
    -------
    m, e : In(16), In(signed(10))
        The Scale r; (0, 0) is zero. A mantissa that is not zero is at least 2**15.
    limit : In(Limit)
        Destination. With `acc_bits` = 32 only ACC32 and INT8: such a design has no int16.
    stochastic : In(1)
    controls : Out(control_layout(acc_bits))

    Notes
    -----
    numerics section 3.
    """

    #: Cycles from `m`, `e`, `limit`, `stochastic` to `controls.multiplier`, the cycle in which the
    #: first value may enter.
    LATENCY = 2

    def __init__(self, acc_bits: int):
        self._limits = _limits(acc_bits)
        self.acc_bits = acc_bits
        super().__init__(
            {
                "m": In(MANTISSA_BITS),
                "e": In(signed(10)),
                "limit": In(Limit),
                "stochastic": In(1),
                "controls": Out(control_layout(acc_bits)),
            }
        )

    @property
    def design_key(self) -> tuple[str, int]:
        """All constructor parameters."""
        return ("rescale_control", self.acc_bits)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        product_bits = _product_bits(self.acc_bits)
        aligned_bits = _aligned_bits(self.acc_bits)
        controls = Signal(control_layout(self.acc_bits), reset_less=True)
        m.d.comb += self.controls.eq(controls)

        # Stage 1: the shift, brought to the range in which results differ. From `least` down the
        # overflow mask is all ones. One above it every product but zero overflows already (2**15
        # becomes 2**acc_bits); it joins them, and so needs no rotation.
        least = OVERFLOW_FROM - self.acc_bits
        exact = Signal(signed(11))
        m.d.comb += exact.eq(15 - self.e)
        shift = Signal(range(least, SHIFT_MAX + 1), reset_less=True)
        multiplier = Signal(MANTISSA_BITS, reset_less=True)
        limit = Signal(Limit, reset_less=True)
        stochastic = Signal(reset_less=True)
        m.d.sync += [
            multiplier.eq(self.m),
            limit.eq(self.limit),
            stochastic.eq(self.stochastic),
            shift.eq(exact),
        ]
        with m.If(exact > SHIFT_MAX):
            # A multiplier of zero is all that zero results need; the shift is then irrelevant.
            m.d.sync += [multiplier.eq(0), shift.eq(SHIFT_MAX)]
        with m.Elif(exact <= least + 1):
            m.d.sync += shift.eq(least)

        # One or two cycles later for the second and third stage of Rescale; further on for the rest
        shift_2, shift_3 = Signal.like(shift), Signal.like(shift)
        limits = [limit, *(Signal(Limit, name=f"limit_{n}", reset_less=True) for n in (2, 3, 4, 5))]
        dithers = Signal(3, reset_less=True)
        m.d.sync += [
            shift_2.eq(shift),
            shift_3.eq(shift_2),
            *(late.eq(early) for early, late in pairwise(limits)),
            dithers.eq(Cat(stochastic, dithers)),
        ]

        def rotation(shift: Value) -> Value:
            return Mux(
                shift < FRACTION_BITS,
                shift + (product_bits - FRACTION_BITS),
                shift - FRACTION_BITS,
            )

        # Masks, each a shifted run of ones.
        # Aligned bit k is product bit k + s - 32; (63 - s) is how far the product moves up from
        # its lowest place, in which its 31 lowest bits are below the fraction.
        below = SHIFT_MAX - FRACTION_BITS
        keep_shift = Signal(range(SHIFT_MAX - least + 1))
        run = Signal(aligned_bits + below)
        m.d.comb += [
            keep_shift.eq(SHIFT_MAX - shift_3),
            run.eq(Const((1 << product_bits) - 1, product_bits) << keep_shift),
        ]

        # Product bits from s + (destination's bits) on overflow.
        first = Signal(signed(8))
        with m.Switch(limits[1]):
            for option in self._limits[:-1]:
                with m.Case(option):
                    m.d.comb += first.eq(shift_2 + (LIMIT_BITS[option] - OVERFLOW_FROM))
            with m.Default():
                widest = LIMIT_BITS[self._limits[-1]]
                m.d.comb += first.eq(shift_2 + (widest - OVERFLOW_FROM))
        overflow_bits = product_bits - 1 - OVERFLOW_FROM
        overflow_shift = Signal(7)
        m.d.comb += overflow_shift.eq(Mux(first < 0, 0, first))

        sticky_shift = Signal(5)
        m.d.comb += sticky_shift.eq(Mux(shift_2 < FRACTION_BITS, 0, shift_2 - FRACTION_BITS))

        fine = ROTATION_BITS - COARSE_LEVELS
        m.d.sync += [
            controls.multiplier.eq(multiplier),
            controls.limit.eq(limits[-1]),
            controls.stochastic.eq(dithers[-1]),
            controls.rotation[fine:].eq(rotation(shift_2)[fine:]),
            controls.rotation[:fine].eq(rotation(shift_3)[:fine]),
            controls.keep.eq(run >> below),
            controls.fill.eq(shift_3 >= 16),
            controls.overflow_mask.eq(Const(-1, signed(overflow_bits)) << overflow_shift),
            controls.sticky_mask.eq(~(Const((1 << below) - 1, below) << sticky_shift)),
        ]
        return m


class Rescale(wiring.Component):
    """Multiplies an accumulator by a Scale, rounds, and saturates to a destination.

    ``result = sat(round(value * r.m / 2**(15 - r.e)))``, rounded to nearest, half to even, or
    stochastically, ``floor(value * r.m / 2**(15 - r.e) + word / 2**32)`` with the product first
    truncated to 32 fraction bits.

    Accepts one value per cycle; its result is there `LATENCY` cycles later; no back-pressure, no
    valid: the caller counts. `value` enters the multiplier directly: drive it from a register.

    Each field of `controls` acts in the stage that uses it, so that values with different controls
    may follow each other: `multiplier` in the value's own cycle, the coarse bits of `rotation`,
    `overflow_mask` and `sticky_mask` one cycle later, its fine bits, `keep` and `fill` two,
    `stochastic` three (`WORD_STAGE`), `limit` four.

    Parameters
    ----------
    acc_bits : int
        Width of an accumulator, 48 or 32.

    Raises
    ------
    ValueError
        If `acc_bits` is neither 32 nor 48.

    Members
    -------
    controls : In(control_layout(acc_bits))
        From a `RescaleControl` of the same `acc_bits`, which puts the fields in their cycles.
    value : In(signed(acc_bits))
    word : In(32)
        Random word of the value that was accepted `WORD_STAGE` cycles before; ignored in nearest
        rounding.
    result : Out(signed(acc_bits))
    clipped : Out(1)
        The saturation changed this result.

    Notes
    -----
    numerics section 3, and its last paragraph for aligning to 32 fraction bits. A rotation does
    for shifts both ways: product bits that leave the aligned window on one side come back on the
    other, where `controls.keep` hides them. The overflow and sticky bits are taken from the
    product before the rotation.
    """

    #: Cycles from `value` to `result` and `clipped`.
    LATENCY = 5
    #: Cycles from `value` to the cycle in which its `word` is taken.
    WORD_STAGE = 3

    def __init__(self, acc_bits: int):
        self._limits = _limits(acc_bits)
        self.acc_bits = acc_bits
        super().__init__(
            {
                "controls": In(control_layout(acc_bits)),
                "value": In(signed(acc_bits)),
                "word": In(FRACTION_BITS),
                "result": Out(signed(acc_bits)),
                "clipped": Out(1),
            }
        )

    @property
    def design_key(self) -> tuple[str, int]:
        """All constructor parameters."""
        return ("rescale", self.acc_bits)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        acc_bits = self.acc_bits
        product_bits = _product_bits(acc_bits)
        controls = self.controls

        # Stage 1: multiply.
        multiplier = Signal(signed(MANTISSA_BITS + 1))
        product = Signal(signed(product_bits), reset_less=True)
        m.d.comb += multiplier.eq(controls.multiplier)
        m.d.sync += product.eq(self.value * multiplier)

        # Stage 2: coarse half of the rotation; what is lost above and below.
        negative = product[-1]
        high = product[OVERFLOW_FROM:-1]
        low = product[: len(controls.sticky_mask)]
        sign_run = negative.replicate(len(high))
        coarse = Signal(product_bits, reset_less=True)
        negative_2 = Signal(reset_less=True)
        overflow_2 = Signal(reset_less=True)
        sticky_2 = Signal(reset_less=True)
        levels = list(reversed(range(ROTATION_BITS)))
        m.d.sync += [
            coarse.eq(self._rotate(m, product, levels[:COARSE_LEVELS], "coarse")),
            negative_2.eq(negative),
            overflow_2.eq(((high ^ sign_run) & controls.overflow_mask).any()),
            sticky_2.eq((low & controls.sticky_mask).any()),
        ]

        # Stage 3: fine half; bits that are not the product's become zero or sign.
        rotated = Signal(product_bits)
        m.d.comb += rotated.eq(self._rotate(m, coarse, levels[COARSE_LEVELS:], "fine"))
        fill = Signal()
        m.d.comb += fill.eq(negative_2 & controls.fill)
        aligned = []
        for k in range(_aligned_bits(acc_bits)):
            # No right shift is long enough to bring the sign below this bit.
            filled = k > product_bits + FRACTION_BITS - SHIFT_MAX - 1
            bit = rotated[k % product_bits]
            aligned.append(Mux(controls.keep[k], bit, fill if filled else 0))
        fraction = Signal(FRACTION_BITS, reset_less=True)
        integer = Signal(signed(acc_bits + 1), reset_less=True)
        negative_3 = Signal(reset_less=True)
        overflow_3 = Signal(reset_less=True)
        sticky_3 = Signal(reset_less=True)
        m.d.sync += [
            fraction.eq(Cat(aligned[:FRACTION_BITS])),
            integer.eq(Cat(aligned[FRACTION_BITS:])),
            negative_3.eq(negative_2),
            overflow_3.eq(overflow_2),
            sticky_3.eq(sticky_2),
        ]

        # Stage 4: round.
        dithered = Signal(FRACTION_BITS + 1)
        half, rest = fraction[-1], fraction[:-1]
        up = Signal()
        rounded = Signal(signed(acc_bits + 1), reset_less=True)
        negative_4 = Signal(reset_less=True)
        overflow_4 = Signal(reset_less=True)
        m.d.comb += [
            dithered.eq(fraction + self.word),
            up.eq(
                Mux(
                    controls.stochastic,
                    dithered[-1],
                    half & (integer[0] | rest.any() | sticky_3),
                )
            ),
        ]
        m.d.sync += [
            rounded.eq(integer + up),
            negative_4.eq(negative_3),
            overflow_4.eq(overflow_3),
        ]

        # Stage 5: saturate. Without overflow the unrounded value fits one bit more than its
        # destination. Rounding adds one at most: what was negative is 0 at most, and what was not
        # shows in one of the two bits if it is too large.
        past_limit = Signal()
        limit_value = Signal(acc_bits)
        clip = Signal()
        with m.Switch(controls.limit):
            for option in self._limits:
                bits = LIMIT_BITS[option]
                sign, above = rounded[bits - 1], rounded[bits]
                lowest = Signal(name=f"lowest_{option.name.lower()}")
                with m.Default() if option is self._limits[-1] else m.Case(option):
                    if option in SYMMETRIC:
                        m.d.comb += lowest.eq(~rounded[: bits - 1].any())
                    m.d.comb += [
                        past_limit.eq(Mux(negative_4, Mux(sign, lowest, above), sign | above)),
                        limit_value.eq(
                            Cat(
                                ~negative_4 | (option in SYMMETRIC),
                                (~negative_4).replicate(bits - 2),
                                negative_4.replicate(acc_bits - bits + 1),
                            )
                        ),
                    ]
        result = Signal(signed(acc_bits), reset_less=True)
        clipped = Signal(reset_less=True)
        m.d.comb += [
            clip.eq(overflow_4 | past_limit),
            self.result.eq(result),
            self.clipped.eq(clipped),
        ]
        m.d.sync += [
            result.eq(Mux(clip, limit_value, rounded)),
            clipped.eq(clip),
        ]
        return m

    def _rotate(self, m: Module, word: Value, levels: list[int], name: str) -> Value:
        """`word` rotated to the right by the sum of 2**level over the set bits of `rotation`."""
        for level in levels:
            turned = Signal(len(word), name=f"{name}_{1 << level}")
            m.d.comb += turned.eq(
                Mux(self.controls.rotation[level], word.rotate_right(1 << level), word)
            )
            word = turned
        return word
