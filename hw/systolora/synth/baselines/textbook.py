"""Weight-stationary PEs and arrays as textbooks have them: int8, bf16, fp32; for comparison."""

from collections.abc import Hashable
from dataclasses import dataclass

from amaranth.hdl import Module, Signal, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.placement import place
from systolora.synth.baselines.floating import FloatAdder, FloatMultiplier

__all__ = ["ARITHMETICS", "Arithmetic", "TextbookArray", "TextbookPE"]


@dataclass(frozen=True)
class Arithmetic:
    """What a PE computes with.

    Members
    -------
    operand, psum : bits
    fraction : bits of a float operand's fraction, None for integers
    product, add : cycles that the product and the sum take
    """

    operand: int
    psum: int
    fraction: int | None
    product: int
    add: int


ARITHMETICS = {
    "int8": Arithmetic(8, 32, None, 1, 1),
    "bf16": Arithmetic(16, 32, 7, FloatMultiplier.latency(7), FloatAdder.LATENCY),
    "fp32": Arithmetic(32, 32, 23, FloatMultiplier.latency(23), FloatAdder.LATENCY),
}


class TextbookPE(wiring.Component):
    """``s_out[t + product + add] = s_in[t + product] + a_in[t] * w[t]``, one a cycle.

    `w` takes the one from above while `load_in`; there is no second one to load ahead, no
    output-stationary mode and no drain. See `Arithmetic` for the latencies, `floating` for the
    rounding.

    Members
    -------
    a_in, a_out : streamed operand, moving right, one PE a cycle
    w_in, w_out : stationary operand, moving down while loaded
    load_in, load_out : moves right
    s_in, s_out : partial sum from above, own sum
    """

    def __init__(self, arithmetic: str) -> None:
        self.design_key: Hashable = (arithmetic,)
        self.arithmetic = ARITHMETICS[arithmetic]
        float_ = self.arithmetic.fraction is not None
        operand, psum = (
            (unsigned if float_ else signed)(bits)
            for bits in (self.arithmetic.operand, self.arithmetic.psum)
        )
        super().__init__(
            {
                "a_in": In(operand),
                "a_out": Out(operand),
                "w_in": In(operand),
                "w_out": Out(operand),
                "load_in": In(1),
                "load_out": Out(1),
                "s_in": In(psum),
                "s_out": Out(psum),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = Signal(self.a_in.shape(), reset_less=True)
        w = Signal(self.a_in.shape(), reset_less=True)
        load = Signal(reset_less=True)
        m.d.sync += [a.eq(self.a_in), load.eq(self.load_in)]
        with m.If(self.load_in):
            m.d.sync += w.eq(self.w_in)
        m.d.comb += [self.a_out.eq(a), self.w_out.eq(w), self.load_out.eq(load)]
        fraction = self.arithmetic.fraction
        if fraction is None:
            product = Signal(signed(2 * self.arithmetic.operand), reset_less=True)
            s = Signal(self.s_in.shape(), reset_less=True)
            m.d.sync += [product.eq(self.a_in * w), s.eq(self.s_in + product)]
            m.d.comb += self.s_out.eq(s)
            return m
        m.submodules.multiply = multiply = FloatMultiplier(fraction)
        m.submodules.add = add = FloatAdder()
        m.d.comb += [
            multiply.a.eq(self.a_in),
            multiply.b.eq(w),
            add.a.eq(self.s_in),
            add.b.eq(multiply.p),
            self.s_out.eq(add.s),
        ]
        return m


class TextbookArray(wiring.Component):
    """R x C textbook PEs. Row r sees everything `add` cycles after row r - 1, column c one after
    column c - 1; what enters has that skew.

    Members
    -------
    a[r], load[r] : enter at column 0
    w[c] : enters at row 0
    s_out[c] : bottom row's sums
    """

    def __init__(self, *, rows: int, cols: int, arithmetic: str) -> None:
        self.design_key: Hashable = (rows, cols, arithmetic)
        self._rows, self._cols, self._name = rows, cols, arithmetic
        pe = TextbookPE(arithmetic)
        operand, psum = pe.a_in.shape(), pe.s_in.shape()
        super().__init__(
            {
                "a": In(operand).array(rows),
                "load": In(1).array(rows),
                "w": In(operand).array(cols),
                "s_out": Out(psum).array(cols),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        above: list[TextbookPE] = []
        for row in range(self._rows):
            a, load, pes = self.a[row], self.load[row], []
            for col in range(self._cols):
                pe = TextbookPE(self._name)
                place(m, platform, f"pe_{row}_{col}", pe)
                m.d.comb += [pe.a_in.eq(a), pe.load_in.eq(load)]
                m.d.comb += pe.w_in.eq(above[col].w_out if above else self.w[col])
                if above:
                    m.d.comb += pe.s_in.eq(above[col].s_out)
                a, load = pe.a_out, pe.load_out
                pes.append(pe)
            above = pes
        m.d.comb += [self.s_out[col].eq(pe.s_out) for col, pe in enumerate(above)]
        return m
