"""Where a two-dimensional region ends, and whether that is too far."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["BoundsCheck", "BoundsLayout"]

COUNT_BITS, STRIDE_BITS, TAIL_BITS = 16, 32, 26


def BoundsLayout(bits: int) -> data.StructLayout:
    """`base + outer * outer_stride + inner * inner_stride + tail` is to be at most `limit`.

    The counts are one less than the rows that they stand for.
    """
    return data.StructLayout(
        {
            "base": bits,
            "outer": COUNT_BITS,
            "outer_stride": STRIDE_BITS,
            "inner": COUNT_BITS,
            "inner_stride": STRIDE_BITS,
            "tail": TAIL_BITS,
            "limit": bits + 1,
        }
    )


class BoundsCheck(wiring.Component):
    """Computes a region's end by shifting and adding, without overflow.

    Started in cycle t, `done` is 1 for one cycle at t + 3 + a + b at the latest, a and b being the
    bits of the two counts; the answer stays until the next start. Not to be started before that.

    Parameters
    ----------
    bits : width of the base

    Members
    -------
    start, region : a region is to be checked
    done : the answer has come
    over : the end is beyond the limit
    end : the end, the first place that does not belong to the region
    """

    def __init__(self, bits: int) -> None:
        self.design_key: Hashable = (bits,)
        self._bits = bits
        self._end_bits = max(bits, COUNT_BITS + STRIDE_BITS + 1) + 2
        super().__init__(
            {
                "start": In(1),
                "region": In(BoundsLayout(bits)),
                "done": Out(1),
                "over": Out(1),
                "end": Out(self._end_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        region = self.region
        outer = Signal(COUNT_BITS, reset_less=True)
        inner = Signal(COUNT_BITS, reset_less=True)
        outer_step = Signal(COUNT_BITS + STRIDE_BITS, reset_less=True)
        inner_step = Signal(COUNT_BITS + STRIDE_BITS, reset_less=True)
        term = Signal(COUNT_BITS + STRIDE_BITS)
        total = Signal(self._end_bits, reset_less=True)
        m.d.sync += total.eq(total + term)
        m.d.comb += self.end.eq(total)

        with m.FSM():
            with m.State("START"), m.If(self.start):
                m.d.sync += [
                    total.eq(region.base),
                    outer.eq(region.outer),
                    inner.eq(region.inner),
                    outer_step.eq(region.outer_stride),
                    inner_step.eq(region.inner_stride),
                ]
                m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += [inner.eq(inner >> 1), inner_step.eq(inner_step << 1)]
                with m.If(inner != 0):
                    m.d.comb += term.eq(Mux(inner[0], inner_step, 0))
                with m.Elif(outer != 0):
                    m.d.comb += term.eq(Mux(outer[0], outer_step, 0))
                    m.d.sync += [outer.eq(outer >> 1), outer_step.eq(outer_step << 1)]
                with m.Else():
                    m.d.comb += term.eq(region.tail)
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += self.over.eq(total > region.limit)
                m.next = "ANSWER"
            with m.State("ANSWER"):
                m.d.comb += self.done.eq(1)
                m.next = "START"
        return m
