"""Writes 2-D regions of memory over AXI4."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import (
    ADDRESS_BITS,
    CACHE,
    PROT,
    Burst,
    Response,
    WriteSignature,
    check_engine,
)
from systolora.rtl.burst_planner import BurstPlanner
from systolora.rtl.flow import link
from systolora.rtl.placement import place
from systolora.rtl.regions import MemoryCode, RegionCheck, RegionLayout

__all__ = ["MemoryWriter"]

_EndLayout = data.StructLayout({"end": 1, "code": MemoryCode})


def _burst_layout(word_bits: int) -> data.StructLayout:
    return data.StructLayout(
        {"length": 8, "row_last": 1, "offset": word_bits, "tail": word_bits, "wide": 1}
    )


class MemoryWriter(wiring.Component):
    """Writes rows, each taken from the start of a beat, into a region.

    A row of `row_bytes` bytes is ``ceil(row_bytes / (data_bits / 8))`` beats of payload, its bytes
    from the lowest up; bytes beyond the row's end are ignored, and never written. Rows shorter than
    the bus may start at any multiple of the least power of two that is no less than `row_bytes`
    (and of `align`), others at a multiple of the bus's width (RegionCheck). The whole request is
    checked before its first burst; one that is refused never reaches the bus and takes no payload.

    Each request has exactly one response, after the answers to all its bursts, in order. Requests
    overlap: the next one is checked, and its bursts are sent, while answers are outstanding.

    A burst is only sent when all its payload is in the queue: once begun it never waits for
    anybody but the memory. Payload may come before its request.

    An error of the memory does not end the request: the rest is written, and the response has the
    first error's code.

    `soft_abort`: no burst is sent any more, those sent are finished with their data, all other
    payload in the queue is dropped and none is taken, and every request that was accepted is
    answered, ABORTED unless it had another code or all its bursts had been sent. Hold it until
    `busy` is 0. After any response but OK the payload that was meant for the request may still be
    offered, or in the queue: whoever sends it withdraws it under `soft_abort`.

    The first address is valid 6 + n cycles after the cycle that takes its request, n being the bits
    of `rows` - 1, if the burst's payload is there by then; its first data two cycles later. From
    there on one beat per cycle as long as memory and payload allow it. Bursts without an answer are
    at most `outstanding`, so rows of b beats, which are bursts of their own, give at most
    ``outstanding * b`` beats per latency of the memory plus 4 cycles. Data may come before its
    address where the memory takes it (AXI4 has no order there).

    Parameters
    ----------
    data_bits : width of the bus, 64 to 2048
    address_bits : width of an address
    outstanding : bursts without an answer (and ends of requests among them) at most
    burst_beats : beats of a burst at most, a power of two up to 256; and at most 4 KiB
    queue_beats : beats that the queue holds, by default twice a burst's; at least one burst's
    align : bytes of the smallest block that has a place of its own in a bus word, a power of two up
        to the bus's width; more costs fewer multiplexers

    Members
    -------
    base, limit : the window: its first address, and the first after it (one bit wider). Stable
        while `busy`.
    soft_abort : see above
    busy : a request or payload is in work, or a response was not taken
    request : In(stream.Signature(RegionLayout))
    beats : In(stream.Signature(data_bits))
    response : Out(stream.Signature(MemoryCode))
    m_axi : Out(WriteSignature)
    """

    def __init__(
        self,
        *,
        data_bits: int,
        address_bits: int = ADDRESS_BITS,
        outstanding: int = 8,
        burst_beats: int = 16,
        queue_beats: int | None = None,
        align: int = 1,
    ) -> None:
        if queue_beats is None:
            queue_beats = 2 * burst_beats
        check_engine(data_bits, address_bits, outstanding, burst_beats, queue_beats)
        if align < 1 or align > data_bits // 8 or align & (align - 1):
            raise ValueError(f"align must be a power of two up to {data_bits // 8}, not {align!r}")
        self.design_key: Hashable = (
            data_bits,
            address_bits,
            outstanding,
            burst_beats,
            queue_beats,
            align,
        )
        self._data_bits, self._address_bits = data_bits, address_bits
        self._outstanding, self._burst_beats = outstanding, burst_beats
        self._queue_beats, self._align = queue_beats, align
        self._word_bits = (data_bits // 8).bit_length() - 1
        super().__init__(
            {
                "base": In(address_bits),
                "limit": In(address_bits + 1),
                "soft_abort": In(1),
                "busy": Out(1),
                "request": In(stream.Signature(RegionLayout(address_bits))),
                "beats": In(stream.Signature(data_bits)),
                "response": Out(stream.Signature(MemoryCode)),
                "m_axi": Out(WriteSignature(data_bits, address_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus_bytes = self._data_bits // 8
        check = RegionCheck(
            bus_bytes=bus_bytes,
            address_bits=self._address_bits,
            align=self._align,
            whole_words=False,
        )
        planner = BurstPlanner(
            bus_bytes=bus_bytes, address_bits=self._address_bits, burst_beats=self._burst_beats
        )
        place(m, platform, "region_check", check)
        place(m, platform, "planner", planner)
        link(m, wiring.flipped(self.request), check.request)
        link(m, check.response, planner.request)
        m.d.comb += [
            check.base.eq(self.base),
            check.limit.eq(self.limit),
            planner.stop.eq(self.soft_abort),
        ]

        m.submodules.queue = queue = fifo.SyncFIFOBuffered(
            width=self._data_bits, depth=self._queue_beats
        )
        # Bursts whose data is to be sent, and those whose answer is to come
        m.submodules.bursts = bursts = fifo.SyncFIFOBuffered(
            width=_burst_layout(self._word_bits).size, depth=self._outstanding
        )
        m.submodules.answers = answers = fifo.SyncFIFOBuffered(
            width=_EndLayout.size, depth=self._outstanding
        )
        move = Signal(name="move_word")  # from the queue to the bus's register
        self._send_addresses(m, planner, queue, bursts, answers, move)
        self._send_data(m, queue, bursts, move)
        self._answer(m, answers)
        m.d.comb += self.busy.eq(
            check.busy
            | planner.busy
            | self.m_axi.awvalid
            | self.m_axi.wvalid
            | (bursts.level != 0)
            | (answers.level != 0)
            | (queue.level != 0)
        )
        return m

    def _send_addresses(self, m: Module, planner, queue, bursts, answers, move) -> None:
        """Bursts to the bus, each when its payload is there."""
        axi = self.m_axi
        word_bits = self._word_bits
        burst = planner.burst.payload
        take, drop = Signal(), Signal()
        m.d.comb += [
            self.beats.ready.eq(queue.w_rdy & ~self.soft_abort),
            take.eq(self.beats.valid & self.beats.ready),
            queue.w_data.eq(self.beats.payload),
            queue.w_en.eq(take),
            # Under `soft_abort` no burst is sent any more; what the last one leaves is nobody's
            drop.eq(self.soft_abort & queue.r_rdy & (bursts.level == 0)),
        ]

        # Beats in the queue that no burst has been sent for
        ready_beats = Signal(range(self._queue_beats + 1))
        issue = Signal()
        sent = Signal(range(self._burst_beats + 1))
        m.d.comb += sent.eq(Mux(issue, burst.length + 1, 0))
        m.d.sync += ready_beats.eq(ready_beats + take - drop - sent)

        with m.If(burst.end):
            m.d.comb += planner.burst.ready.eq(answers.w_rdy)
        with m.Else():
            m.d.comb += [
                planner.burst.ready.eq(
                    answers.w_rdy
                    & bursts.w_rdy
                    & (ready_beats > burst.length)
                    & (~axi.awvalid | axi.awready)
                ),
                issue.eq(planner.burst.valid & planner.burst.ready),
            ]
        entry = Signal(_burst_layout(word_bits))
        end = Signal(_EndLayout)
        m.d.comb += [
            entry.length.eq(burst.length),
            entry.row_last.eq(burst.row_last),
            entry.offset.eq(burst.address[:word_bits]),
            entry.tail.eq(burst.tail),
            entry.wide.eq(burst.wide),
            bursts.w_data.eq(entry),
            bursts.w_en.eq(issue),
            end.end.eq(burst.end),
            end.code.eq(burst.code),
            answers.w_data.eq(end),
            answers.w_en.eq(planner.burst.valid & planner.burst.ready),
        ]
        m.d.comb += queue.r_en.eq(drop | move)

        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(Cat(burst.address[:word_bits] & 0, burst.address[word_bits:])),
                axi.awlen.eq(burst.length),
            ]
        with m.Elif(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        m.d.comb += [
            axi.awid.eq(0),
            axi.awsize.eq(word_bits),
            axi.awburst.eq(Burst.INCR),
            axi.awcache.eq(CACHE),
            axi.awprot.eq(PROT),
        ]

    def _send_data(self, m: Module, queue, bursts, move: Signal) -> None:
        """Beats to the bus: placed in their word, with their strobes."""
        axi = self.m_axi
        bus_bytes, word_bits = self._data_bits // 8, self._word_bits
        head = Signal(_burst_layout(word_bits), name="sending")
        count = Signal(8)
        last = Signal(name="last_word")
        m.d.comb += [
            head.eq(bursts.r_data),
            last.eq(count == head.length),
            move.eq(bursts.r_rdy & queue.r_rdy & (~axi.wvalid | axi.wready)),
            bursts.r_en.eq(move & last),
        ]
        with m.If(move):
            m.d.sync += count.eq(Mux(last, 0, count + 1))

        # A block that is shorter than the word is repeated all over it: bit n of `own` is 0 where
        # the upper half of 2**(n + 1) bytes repeats the lower one.
        own = Signal(word_bits)
        m.d.comb += own.eq(
            Cat(
                head.wide | head.tail[bit:].any() | (self._align > 1 << bit)
                for bit in range(word_bits)
            )
        )
        placed = queue.r_data[:8]
        for bit in range(word_bits):
            bits = 8 << bit
            half = Signal(2 * bits, name=f"block_{2 << bit}")
            m.d.comb += half.eq(Cat(placed, Mux(own[bit], queue.r_data[bits : 2 * bits], placed)))
            placed = half

        # Only the last word of a row has bytes that are not the row's
        stop = Signal(word_bits, name="last_byte")
        m.d.comb += stop.eq(Mux(head.row_last & last, head.offset + head.tail, bus_bytes - 1))
        begun = [*(head.offset <= byte for byte in range(bus_bytes - 1)), Const(1)]
        going = [Const(1), *(stop >= byte for byte in range(1, bus_bytes))]
        with m.If(move):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(placed),
                axi.wstrb.eq(Cat(a & b for a, b in zip(begun, going, strict=True))),
                axi.wlast.eq(last),
            ]
        with m.Elif(axi.wready):
            m.d.sync += axi.wvalid.eq(0)

    def _answer(self, m: Module, answers) -> None:
        """Answers of the memory to responses."""
        axi = self.m_axi
        head = data.View(_EndLayout, answers.r_data)
        failed = Signal(MemoryCode)
        is_end, bad = Signal(), Signal()
        m.d.comb += [
            is_end.eq(answers.r_rdy & head.end),
            axi.bready.eq(answers.r_rdy & ~head.end),
            bad.eq((axi.bresp == Response.SLVERR) | (axi.bresp == Response.DECERR)),
            self.response.valid.eq(is_end),
            self.response.payload.eq(Mux(failed == MemoryCode.OK, head.code, failed)),
            answers.r_en.eq(Mux(is_end, self.response.ready, axi.bvalid)),
        ]
        with m.If(is_end & self.response.ready):
            m.d.sync += failed.eq(MemoryCode.OK)
        with m.Elif(axi.bvalid & axi.bready & bad & (failed == MemoryCode.OK)):
            m.d.sync += failed.eq(
                Mux(axi.bresp == Response.DECERR, MemoryCode.DECODE, MemoryCode.SLAVE)
            )
