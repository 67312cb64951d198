"""Small designs for the emission tests: a grid of PEs, in rows, with streams, a RAM and a FIFO."""

from typing import Any

from amaranth.hdl import Assert, Module, Signal, signed
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.placement import place

PAIR = data.StructLayout({"value": signed(4), "tag": 2})


class ToyPE(wiring.Component):
    """Multiplies what passes from left to right by what passes down; one cycle."""

    module_name = "pe"

    def __init__(self, width: int, *, offset: int = 0) -> None:
        self.width, self.offset = width, offset
        self.design_key = (width, offset)
        super().__init__(
            {
                "a": In(signed(width)),
                "a_next": Out(signed(width)),
                "sums": In(signed(2 * width)).array(2),
                "sums_next": Out(signed(2 * width)).array(2),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        product = Signal(signed(2 * self.width))
        m.d.comb += product.eq(self.a * self.sums[1][: self.width].as_signed())
        with m.If(self.a != 0):
            m.d.sync += self.sums_next[0].eq(self.sums[0] + product + self.offset)
        m.d.sync += [self.a_next.eq(self.a), self.sums_next[1].eq(self.sums[1])]
        return m


class ToyRow(wiring.Component):
    """A row of PEs, fed by an array of streams through a FIFO of Amaranth's library."""

    def __init__(self, cols: int, width: int, *, offset: int = 0) -> None:
        self.cols, self.width, self.offset = cols, width, offset
        self.design_key = (cols, width, offset)
        super().__init__(
            {
                "feed": In(stream.Signature(PAIR)).array(2),
                "above": In(signed(2 * width)).array(cols, 2),
                "below": Out(signed(2 * width)).array(cols, 2),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        value: Any = Signal(signed(self.width))
        for index, feed in enumerate(self.feed):
            queue = m.submodules[f"queue_{index}"] = fifo.SyncFIFO(width=6, depth=2)
            m.d.comb += [
                queue.w_data.eq(feed.payload),
                queue.w_en.eq(feed.valid),
                feed.ready.eq(queue.w_rdy),
                queue.r_en.eq(1),
            ]
            with m.If(queue.r_rdy):
                m.d.comb += value.eq(queue.r_data[:4].as_signed() + queue.r_data[4:])
        for col in range(self.cols):
            pe = ToyPE(self.width, offset=self.offset)
            place(m, platform, f"pe_{col}", pe)
            m.d.comb += pe.a.eq(value)
            for k in range(2):
                m.d.comb += [pe.sums[k].eq(self.above[col][k])]
                m.d.comb += self.below[col][k].eq(pe.sums_next[k])
            value = pe.a_next
        return m


class ToyGrid(wiring.Component):
    """Rows of PEs, the last one with a PE of its own kind, and a RAM of what comes out below."""

    def __init__(
        self, rows: int = 3, cols: int = 2, width: int = 3, *, fault: bool = False
    ) -> None:
        self.rows, self.cols, self.width, self.fault = rows, cols, width, fault
        self.latencies = {"below": rows}
        super().__init__(
            {
                "feed": In(stream.Signature(PAIR)).array(rows, 2),
                "address": In(2),
                "sum": Out(stream.Signature(signed(2 * width))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=signed(2 * self.width), depth=4, init=[])
        write, read = ram.write_port(), ram.read_port()
        above: Any = None
        for index in range(self.rows):
            offset = int(index == self.rows - 1) + int(self.fault and index == 0)
            row = ToyRow(self.cols, self.width, offset=offset)
            place(m, platform, f"row_{index}", row)
            for k in range(2):
                m.d.comb += [
                    row.feed[k].payload.eq(self.feed[index][k].payload),
                    row.feed[k].valid.eq(self.feed[index][k].valid),
                    self.feed[index][k].ready.eq(row.feed[k].ready),
                ]
                for col in range(self.cols):
                    source = read.data if above is None else above[col][k]
                    m.d.comb += row.above[col][k].eq(source)
            above = row.below
        m.d.comb += [
            write.addr.eq(self.address + 1),
            write.data.eq(above[self.cols - 1][0]),
            write.en.eq(self.sum.ready),
            read.addr.eq(self.address),
            self.sum.payload.eq(above[0][0]),
            self.sum.valid.eq(1),
        ]
        return m


class Asserting(wiring.Component):
    """A design that still has an assertion."""

    a: In(4)
    q: Out(4)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += [self.q.eq(self.a), Assert(self.a != 3)]
        return m
