"""The queue between the post-processor's lanes and the two output streams."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["OutputQueue"]


class OutputQueue(wiring.Component):
    """Holds rows until `acc_out` or `result` takes them, in order.

    The lanes cannot wait, so whoever pushes must know that there is a place: `depth` rows less
    those pushed and not yet popped. One queue serves both streams, because an operation sends
    on one of them only.

    Parameters
    ----------
    cols, acc_bits, result_bits : a row is C values; a result is the low bits of its value
    depth : rows

    Members
    -------
    push, row, is_result : a row comes, and where it is to leave
    pop : a row leaves
    acc_out, result : output streams, the first beat two cycles after its push
    level : rows held
    """

    def __init__(self, *, cols: int, acc_bits: int, result_bits: int, depth: int) -> None:
        self.design_key: Hashable = (cols, acc_bits, result_bits, depth)
        self._cols, self._acc_bits, self._result_bits = cols, acc_bits, result_bits
        self._depth = depth
        row = data.ArrayLayout(signed(acc_bits), cols)
        super().__init__(
            {
                "push": In(1),
                "row": In(row),
                "is_result": In(1),
                "pop": Out(1),
                "acc_out": Out(stream.Signature(row)),
                "result": Out(stream.Signature(data.ArrayLayout(signed(result_bits), cols))),
                "level": Out(range(depth + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = queue = fifo.SyncFIFOBuffered(
            width=1 + self._acc_bits * self._cols, depth=self._depth
        )
        is_result = queue.r_data[-1]
        m.d.comb += [
            queue.w_data.eq(Cat(self.row, self.is_result)),
            queue.w_en.eq(self.push),
            self.acc_out.payload.eq(queue.r_data[:-1]),
            self.acc_out.valid.eq(queue.r_rdy & ~is_result),
            self.result.valid.eq(queue.r_rdy & is_result),
            queue.r_en.eq(Mux(is_result, self.result.ready, self.acc_out.ready)),
            self.pop.eq(queue.r_rdy & queue.r_en),
            self.level.eq(queue.level),
        ]
        for col in range(self._cols):
            low = queue.r_data[col * self._acc_bits :][: self._result_bits]
            m.d.comb += self.result.payload[col].eq(low.as_signed())
        return m
