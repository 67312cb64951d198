"""An output-stationary integer PE as textbooks have it, and a multiplier alone."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Multiplier", "OutputStationaryPE"]


class OutputStationaryPE(wiring.Component):
    """``s = (0 if clear else s) + a_in * b_in``, two cycles later; operands pass on.

    The finished sum leaves through a chain of registers while the next one accumulates, as in our
    PE: what is missing is the other dataflow, the second load edge and the held operand.

    Members
    -------
    a_in, a_out, b_in, b_out : operands, moving right and down
    d_in, d_out : drain chain
    clear_in, load_in, shift_in and their outputs : control, moving right
    """

    def __init__(self, *, operand_bits: int, psum_bits: int) -> None:
        self.design_key: Hashable = (operand_bits, psum_bits)
        operand, psum = signed(operand_bits), signed(psum_bits)
        super().__init__(
            {
                "a_in": In(operand),
                "a_out": Out(operand),
                "b_in": In(operand),
                "b_out": Out(operand),
                "d_in": In(psum),
                "d_out": Out(psum),
                "clear_in": In(1),
                "clear_out": Out(1),
                "load_in": In(1),
                "load_out": Out(1),
                "shift_in": In(1),
                "shift_out": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        psum = self.d_in.shape()
        product = Signal(signed(2 * self.a_in.shape().width), reset_less=True)
        s = Signal(psum, reset_less=True)
        passed = [("a_in", "a_out"), ("b_in", "b_out"), ("clear_in", "clear_out")]
        passed += [("load_in", "load_out"), ("shift_in", "shift_out")]
        for source, sink in passed:
            register = Signal.like(getattr(self, source), name=source[:-3], reset_less=True)
            m.d.sync += register.eq(getattr(self, source))
            m.d.comb += getattr(self, sink).eq(register)
        d = Signal(psum, reset_less=True)
        m.d.sync += [product.eq(self.a_in * self.b_in)]
        m.d.sync += s.eq(Mux(self.clear_out, 0, s) + product)
        with m.If(self.load_in):
            m.d.sync += d.eq(s)
        with m.Elif(self.shift_in):
            m.d.sync += d.eq(self.d_in)
        m.d.comb += self.d_out.eq(d)
        return m


class Multiplier(wiring.Component):
    """``p = a * b``, signed, without a register: the share of a PE that multiplies."""

    def __init__(self, *, operand_bits: int) -> None:
        self.design_key: Hashable = (operand_bits,)
        operand = signed(operand_bits)
        super().__init__(
            {"a": In(operand), "b": In(operand), "p": Out(signed(2 * operand_bits))}
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.p.eq(self.a * self.b)
        return m
