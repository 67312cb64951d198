"""The processing element: one multiplier, two dataflows."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.layouts import PEControl

__all__ = ["PE"]


class PE(wiring.Component):
    """Multiplies the passing operand by the stationary one and adds.

    ``s[t+2] = (0 if clear else s_in[t+1] if ws else s[t+1]) + a_in[t] * w[t]``

    Weight-stationary: `w` holds a tile's element, sums move down through `s`. Output-stationary:
    `w` follows `b` every cycle, the sum stays in `s`; `d_load` copies it to the drain chain `d`,
    which leaves downwards while `s` accumulates the next tile.

    Timing: `a`, `b` and the control words advance one PE per cycle; `s` has the product of `a_in`
    two cycles later (registered product, then the adder). No reset: every register is written
    before it matters, because the control words are made from reset state at the array's edge.

    Parameters
    ----------
    operand_bits : int
        Width of the signed operands: 9 for byte planes of both signs, 8 for int8 alone.
    psum_bits : int
        Width of a partial sum; wraps when the caller breaks numerics section 9.

    Members
    -------
    a_in, a_out : streamed operand, moving right
    b_top, b_left, b_out : stationary operand, from above or from the left; `b_out` feeds both ways
    s_in, s_out : partial sum from above, own sum
    d_in, d_out : drain chain
    ctl_in, ctl_out : PEControl, moving right
    left_in, left_out : b takes `b_left`; moves down
    """

    LATENCY = 2

    def __init__(self, *, operand_bits: int, psum_bits: int) -> None:
        if operand_bits < 2 or psum_bits < 2 * operand_bits:
            raise ValueError(
                f"psum_bits must be at least twice operand_bits, not {psum_bits} for {operand_bits}"
            )
        self.design_key: Hashable = (operand_bits, psum_bits)
        operand, psum = signed(operand_bits), signed(psum_bits)
        super().__init__(
            {
                "a_in": In(operand),
                "a_out": Out(operand),
                "b_top": In(operand),
                "b_left": In(operand),
                "b_out": Out(operand),
                "s_in": In(psum),
                "s_out": Out(psum),
                "d_in": In(psum),
                "d_out": Out(psum),
                "ctl_in": In(PEControl),
                "ctl_out": Out(PEControl),
                "left_in": In(1),
                "left_out": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        operand, psum = self.a_in.shape(), self.s_in.shape()
        a = Signal(operand, reset_less=True)
        b = Signal(operand, reset_less=True)
        w = Signal(operand, reset_less=True)
        product = Signal(signed(2 * operand.width), reset_less=True)
        s = Signal(psum, reset_less=True)
        d = Signal(psum, reset_less=True)
        ctl = Signal(PEControl, reset_less=True)
        left = Signal(reset_less=True)

        m.d.sync += [a.eq(self.a_in), ctl.eq(self.ctl_in), left.eq(self.left_in)]
        with m.If(self.left_in):
            m.d.sync += b.eq(self.b_left)
        with m.Elif(self.ctl_in.b_shift):
            m.d.sync += b.eq(self.b_top)
        with m.If(self.ctl_in.w_load):
            m.d.sync += w.eq(b)

        # Stage 1: multiply
        m.d.sync += product.eq(self.a_in * w)

        # Stage 2: add. One LUT a bit: two sums to choose from, and zero.
        addend = Signal(psum)
        m.d.comb += addend.eq(Mux(ctl.clear, 0, Mux(ctl.ws, self.s_in, s)))
        m.d.sync += s.eq(addend + product)

        with m.If(self.ctl_in.d_load):
            m.d.sync += d.eq(s)
        with m.Elif(self.ctl_in.d_shift):
            m.d.sync += d.eq(self.d_in)

        m.d.comb += [
            self.a_out.eq(a),
            self.b_out.eq(b),
            self.s_out.eq(s),
            self.d_out.eq(d),
            self.ctl_out.eq(ctl),
            self.left_out.eq(left),
        ]
        return m
