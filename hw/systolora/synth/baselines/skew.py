"""A chain of registers, as the edges of systolic arrays are made of."""

from collections.abc import Hashable

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Skew"]


class Skew(wiring.Component):
    """`a_0` comes out as `out` after `depth` cycles."""

    def __init__(self, *, width: int, depth: int) -> None:
        self.design_key: Hashable = (width, depth)
        self._depth = depth
        super().__init__({"a_0": In(signed(width)), "out": Out(signed(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        value = self.a_0
        for place in range(self._depth):
            stage = Signal(value.shape(), name=f"stage_{place}", reset_less=True)
            m.d.sync += stage.eq(value)
            value = stage
        m.d.comb += self.out.eq(value)
        return m
