"""Plain pipelined float arithmetic, for comparison PEs: a multiplier and an fp32 adder.

Results round to nearest, ties to even. Subnormal operands count as zero and subnormal results
become zero of their sign (seen after rounding). What is too large becomes the largest finite
number of its sign: there are no infinities and no NaN, an exponent of 255 is an exponent. All of
this makes the units smaller than IEEE 754's.
"""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["FloatAdder", "FloatMultiplier"]

_EXPONENT, _FRACTION = 8, 23
_BIAS, _LARGEST = 127, 254


def _parts(number: Any, fraction: int) -> tuple[Any, Any, Any]:
    """Sign, exponent and significand with its leading one, which is 0 for zero and subnormals."""
    exponent = number[fraction : fraction + _EXPONENT]
    return number[-1], exponent, Cat(number[:fraction], exponent.any())


def _pack(m: Module, sign: Value, exponent: Value, fraction: Value) -> Any:
    """The fp32 number of a signed exponent with its bias and 23 bits."""
    low, high = Signal(name="low"), Signal(name="high")
    m.d.comb += [low.eq(exponent < 1), high.eq(exponent > _LARGEST)]
    body = Cat(fraction, exponent[:_EXPONENT])
    largest = Const((_LARGEST << _FRACTION) | ((1 << _FRACTION) - 1), _EXPONENT + _FRACTION)
    return Cat(Mux(low, 0, Mux(high, largest, body))[: _EXPONENT + _FRACTION], sign)


class FloatMultiplier(wiring.Component):
    """``p = a * b`` in fp32 of two numbers with a sign, 8 bits of exponent and `fraction` bits.

    With 7 bits (bf16) the product is exact and takes two cycles; with 23 it is rounded, in three.
    """

    @staticmethod
    def latency(fraction: int) -> int:
        """Cycles."""
        return 2 if 2 * fraction + 1 <= _FRACTION else 3

    def __init__(self, fraction: int) -> None:
        self._fraction = fraction
        width = 1 + _EXPONENT + fraction
        super().__init__({"a": In(width), "b": In(width), "p": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sign_a, exponent_a, a = _parts(self.a, self._fraction)
        sign_b, exponent_b, b = _parts(self.b, self._fraction)
        bits = 2 * (self._fraction + 1)
        sign, zero = Signal(reset_less=True), Signal(reset_less=True)
        exponent = Signal(signed(_EXPONENT + 2), reset_less=True)
        product = Signal(bits, reset_less=True)
        first_sign, first_zero = sign_a ^ sign_b, ~(exponent_a.any() & exponent_b.any())
        first_exponent = exponent_a + exponent_b - _BIAS
        if self.latency(self._fraction) == 2:
            m.d.sync += [
                sign.eq(first_sign),
                zero.eq(first_zero),
                exponent.eq(first_exponent),
                product.eq(a * b),
            ]
        else:
            # Two halves of the product, then their sum
            half = (self._fraction + 1) // 2
            low = Signal(len(a) + half, reset_less=True)
            high = Signal(len(a) + len(b) - half, reset_less=True)
            sign_1, zero_1 = Signal(reset_less=True), Signal(reset_less=True)
            exponent_1 = Signal(signed(_EXPONENT + 2), reset_less=True)
            m.d.sync += [
                sign_1.eq(first_sign),
                zero_1.eq(first_zero),
                exponent_1.eq(first_exponent),
                low.eq(a * b[:half]),
                high.eq(a * b[half:]),
                sign.eq(sign_1),
                zero.eq(zero_1),
                exponent.eq(exponent_1),
                product.eq(low + Cat(Const(0, half), high)),
            ]
        # Between 1 and 4: one place, then rounding
        top = product[-1]
        normal = Signal(bits)
        m.d.comb += normal.eq(Mux(top, product, product << 1))
        kept, rest = normal[-_FRACTION - 1 :], bits - _FRACTION - 1
        if rest > 0:
            up = normal[rest - 1] & (normal[: rest - 1].any() | normal[rest])
        else:
            kept, up = Cat(Const(0, -rest), normal), Const(0)
        rounded = Signal(_FRACTION + 2)
        final = Signal(signed(_EXPONENT + 3))
        result = Signal(32, reset_less=True)
        m.d.comb += [
            rounded.eq(kept + up),
            final.eq(exponent + top + rounded[-1]),
        ]
        # A carry out of the rounding leaves zeros below
        packed = _pack(m, sign, final, rounded[:_FRACTION])
        m.d.sync += result.eq(Mux(zero, Cat(Const(0, 31), sign), packed))
        m.d.comb += self.p.eq(result)
        return m


class FloatAdder(wiring.Component):
    """``s = a + b`` in fp32, four cycles later: order, align and add, normalize, round."""

    LATENCY = 4

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "s": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        (sign_a, exponent_a, a), (sign_b, exponent_b, b) = (
            _parts(number, _FRACTION) for number in (self.a, self.b)
        )
        # 1: the larger one first
        swap = Signal()
        m.d.comb += swap.eq(self.b[:31] > self.a[:31])
        large, small = Signal(24, reset_less=True), Signal(24, reset_less=True)
        exponent_1, distance = Signal(8, reset_less=True), Signal(8, reset_less=True)
        sign_1, minus, zero_sign_1 = (Signal(reset_less=True) for _ in range(3))
        m.d.sync += [
            large.eq(Mux(swap, b, a)),
            small.eq(Mux(swap, a, b)),
            exponent_1.eq(Mux(swap, exponent_b, exponent_a)),
            distance.eq(Mux(swap, exponent_b - exponent_a, exponent_a - exponent_b)),
            sign_1.eq(Mux(swap, sign_b, sign_a)),
            minus.eq(sign_a ^ sign_b),
            zero_sign_1.eq(sign_a & sign_b),
        ]
        # 2: three more places, the last for all that is shifted out
        value: Any = Cat(Const(0, 3), small & Cat(small[-1].replicate(24)))
        for place in range(5):
            step = 1 << place
            lost = value[:step].any()
            shifted = Cat(value[step] | lost, value[step + 1 :], Const(0, step))
            chosen = Signal(27, name=f"aligned_{place}")
            m.d.comb += chosen.eq(Mux(distance[place], shifted, value))
            value = chosen
        aligned = Signal(27)
        m.d.comb += aligned.eq(Mux(distance[5:].any(), small[-1], value))
        total, exponent_2 = Signal(28, reset_less=True), Signal(8, reset_less=True)
        sign_2, zero_sign_2 = Signal(reset_less=True), Signal(reset_less=True)
        base = large[-1].replicate(24) & large
        m.d.sync += [
            total.eq(Cat(Const(0, 3), base) + (aligned ^ minus.replicate(28)) + minus),
            exponent_2.eq(exponent_1),
            sign_2.eq(sign_1),
            zero_sign_2.eq(zero_sign_1),
        ]
        # 3: the leading one to the top
        value, places = total, []
        for place in reversed(range(5)):
            step = 1 << place
            empty = Signal(name=f"empty_{place}")
            chosen = Signal(28, name=f"normal_{place}")
            m.d.comb += empty.eq(~value[-step:].any())
            m.d.comb += chosen.eq(Mux(empty, Cat(Const(0, step), value[:-step]), value))
            value, places = chosen, [empty, *places]
        normal = Signal(28, reset_less=True)
        exponent_3 = Signal(signed(10), reset_less=True)
        sign_3 = Signal(reset_less=True)
        m.d.sync += [
            normal.eq(value),
            exponent_3.eq(exponent_2 + 1 - Cat(places)),
            sign_3.eq(Mux(total.any(), sign_2, zero_sign_2)),
        ]
        # 4: round
        rounded, final = Signal(25), Signal(signed(11))
        up = normal[3] & (normal[:3].any() | normal[4])
        m.d.comb += [rounded.eq(normal[4:] + up), final.eq(exponent_3 + rounded[-1])]
        result = Signal(32, reset_less=True)
        packed = _pack(m, sign_3, final, rounded[:_FRACTION])
        m.d.sync += result.eq(Mux(normal[-1], packed, Cat(Const(0, 31), sign_3)))
        m.d.comb += self.s.eq(result)
        return m
