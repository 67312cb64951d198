"""Reads 2-D regions of memory over AXI4."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import (
    ADDRESS_BITS,
    CACHE,
    PROT,
    Burst,
    ReadSignature,
    Response,
    check_engine,
)
from systolora.rtl.burst_planner import BurstPlanner
from systolora.rtl.flow import link
from systolora.rtl.placement import place
from systolora.rtl.regions import MemoryCode, RegionCheck, RegionLayout

__all__ = ["BeatLayout", "MemoryReader"]


def BeatLayout(data_bits: int) -> data.StructLayout:
    """One bus word of a row; bytes beyond the row's end are whatever memory holds there."""
    return data.StructLayout({"data": data_bits, "last_of_row": 1, "last": 1})


def _burst_layout() -> data.StructLayout:
    return data.StructLayout({"end": 1, "code": MemoryCode, "row_last": 1, "last": 1})


class MemoryReader(wiring.Component):
    """Streams the rows of a region, each from the start of a beat.

    A row of `row_bytes` bytes is ``ceil(row_bytes / (data_bits / 8))`` beats; every row must start
    at a multiple of the bus's width (RegionCheck with whole words). The whole request is checked
    before its first burst; one that is refused never reaches the bus.

    Each request has exactly one response, after its last beat was taken, in order. Requests
    overlap: the next one is checked and its bursts are sent while beats of the one before are still
    under way, so `response` must be taken for the next request's beats to come.

    A burst is only sent when the queue has a place for each of its beats, so the bus never waits
    for whoever takes the beats: `rready` is low only where nothing is outstanding, and for one
    cycle between two requests.

    An error of the memory ends the request: no burst of it is sent any more, beats from the first
    bad one on are dropped (so none comes with `last`), and the response has the first error's code.

    `soft_abort`: no burst is sent any more, what is outstanding is taken and dropped with all beats
    in the queue, and every request that was accepted is answered, ABORTED unless it had another
    code or was complete. Hold it until `busy` is 0. The beat that is offered when it rises is
    withdrawn.

    The first address is valid 6 + n cycles after the cycle that takes its request, n being the bits
    of `rows` - 1; for a request that waits behind another, the check is over by then. From there
    on one beat per cycle as long as memory sends one and there is room: beats under way and not
    taken are at most `queue_beats`, so that should be more than the memory's latency in cycles; and
    bursts under way are at most `outstanding`, so rows of b beats, which are bursts of their own,
    give at most ``outstanding * b`` beats per latency. Each request takes one place and one cycle
    of `rready` more.

    Parameters
    ----------
    data_bits : width of the bus, 64 to 2048
    address_bits : width of an address
    outstanding : bursts under way (and ends of requests among them) at most
    burst_beats : beats of a burst at most, a power of two up to 256; and at most 4 KiB
    queue_beats : beats that the queue holds, by default four times a burst's; at least one
        burst's

    Members
    -------
    base, limit : the window: its first address, and the first after it (one bit wider); a
        region's last word counts whole. Stable while `busy`.
    soft_abort : see above
    busy : a request is in work, or its beats or its response were not taken
    request : In(stream.Signature(RegionLayout))
    beats : Out(stream.Signature(BeatLayout))
    response : Out(stream.Signature(MemoryCode))
    m_axi : Out(ReadSignature)
    """

    def __init__(
        self,
        *,
        data_bits: int,
        address_bits: int = ADDRESS_BITS,
        outstanding: int = 8,
        burst_beats: int = 16,
        queue_beats: int | None = None,
    ) -> None:
        if queue_beats is None:
            queue_beats = 4 * burst_beats
        check_engine(data_bits, address_bits, outstanding, burst_beats, queue_beats)
        self.design_key: Hashable = (
            data_bits,
            address_bits,
            outstanding,
            burst_beats,
            queue_beats,
        )
        self._data_bits, self._address_bits = data_bits, address_bits
        self._outstanding, self._burst_beats = outstanding, burst_beats
        self._queue_beats = queue_beats
        super().__init__(
            {
                "base": In(address_bits),
                "limit": In(address_bits + 1),
                "soft_abort": In(1),
                "busy": Out(1),
                "request": In(stream.Signature(RegionLayout(address_bits))),
                "beats": Out(stream.Signature(BeatLayout(data_bits))),
                "response": Out(stream.Signature(MemoryCode)),
                "m_axi": Out(ReadSignature(data_bits, address_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus_bytes = self._data_bits // 8
        check = RegionCheck(
            bus_bytes=bus_bytes,
            address_bits=self._address_bits,
            align=bus_bytes,
            whole_words=True,
        )
        planner = BurstPlanner(
            bus_bytes=bus_bytes, address_bits=self._address_bits, burst_beats=self._burst_beats
        )
        place(m, platform, "region_check", check)
        place(m, platform, "planner", planner)
        link(m, wiring.flipped(self.request), check.request)
        link(m, check.response, planner.request)
        m.d.comb += [check.base.eq(self.base), check.limit.eq(self.limit)]

        layout = _burst_layout()
        m.submodules.bursts = bursts = fifo.SyncFIFOBuffered(
            width=layout.size, depth=self._outstanding
        )
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(
            width=self._data_bits + 3, depth=self._queue_beats
        )
        failed = Signal(MemoryCode)  # of the request that is being received
        taken = Signal(range(self._burst_beats + 1))  # places that leave `free`
        returned = Signal(range(3))
        same = Signal()  # the planner works on the request that is being received
        self._send(m, planner, bursts, failed, taken, returned, same)
        dropped = self._receive(m, bursts, queue, failed)
        left = self._deliver(m, queue)
        m.d.comb += [
            returned.eq(dropped + left),
            self.busy.eq(
                check.busy
                | planner.busy
                | self.m_axi.arvalid
                | (bursts.level != 0)
                | (queue.level != 0)
            ),
        ]
        return m

    def _send(self, m: Module, planner, bursts, failed, taken, returned, same) -> None:
        """Bursts to the bus, each with places in the queue and an entry in `bursts`."""
        axi = self.m_axi
        burst = planner.burst.payload
        free = Signal(range(self._queue_beats + 1), init=self._queue_beats)
        m.d.sync += free.eq(free - taken + returned)

        issue = Signal()
        with m.If(burst.end):
            m.d.comb += planner.burst.ready.eq(bursts.w_rdy & (free != 0))
        with m.Else():
            m.d.comb += [
                planner.burst.ready.eq(
                    bursts.w_rdy & (free > burst.length) & (~axi.arvalid | axi.arready)
                ),
                issue.eq(planner.burst.valid & planner.burst.ready),
            ]
        entry = Signal(_burst_layout())
        m.d.comb += [
            entry.end.eq(burst.end),
            entry.code.eq(burst.code),
            entry.row_last.eq(burst.row_last),
            entry.last.eq(burst.last),
            bursts.w_data.eq(entry),
            bursts.w_en.eq(planner.burst.valid & planner.burst.ready),
        ]
        with m.If(bursts.w_en):
            m.d.comb += taken.eq(Mux(burst.end, 0, burst.length) + 1)

        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.araddr.eq(burst.address),
                axi.arlen.eq(burst.length),
            ]
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        m.d.comb += [
            axi.arid.eq(0),
            axi.arsize.eq((self._data_bits // 8).bit_length() - 1),
            axi.arburst.eq(Burst.INCR),
            axi.arcache.eq(CACHE),
            axi.arprot.eq(PROT),
        ]

        ends = Signal(range(self._outstanding + 1))
        head = data.View(_burst_layout(), bursts.r_data)
        comes = Signal(name="end_comes")
        goes = Signal(name="end_goes")
        m.d.comb += [
            comes.eq(bursts.w_en & burst.end),
            goes.eq(bursts.r_rdy & bursts.r_en & head.end),
            same.eq(ends == 0),
            planner.stop.eq(self.soft_abort | (same & (failed != MemoryCode.OK))),
        ]
        with m.If(comes & ~goes):
            m.d.sync += ends.eq(ends + 1)
        with m.Elif(goes & ~comes):
            m.d.sync += ends.eq(ends - 1)

    def _receive(self, m: Module, bursts, queue, failed) -> Signal:
        """Beats and ends into the queue; returns: a beat was dropped."""
        axi = self.m_axi
        head = data.View(_burst_layout(), bursts.r_data)
        fire, bad, dropped = Signal(), Signal(), Signal()
        is_end = Signal()
        m.d.comb += [
            is_end.eq(bursts.r_rdy & head.end),
            axi.rready.eq(bursts.r_rdy & ~head.end),
            fire.eq(axi.rvalid & axi.rready),
            bad.eq((axi.rresp == Response.SLVERR) | (axi.rresp == Response.DECERR)),
            dropped.eq(fire & (bad | (failed != MemoryCode.OK))),
            bursts.r_en.eq(is_end | (fire & axi.rlast)),
            queue.w_en.eq(is_end | (fire & ~dropped)),
        ]
        with m.If(is_end):
            m.d.sync += failed.eq(MemoryCode.OK)
        with m.Elif(fire & bad & (failed == MemoryCode.OK)):
            m.d.sync += failed.eq(
                Mux(axi.rresp == Response.DECERR, MemoryCode.DECODE, MemoryCode.SLAVE)
            )
        code = Signal(MemoryCode, name="received_code")
        m.d.comb += code.eq(Mux(failed == MemoryCode.OK, head.code, failed))
        entry = Signal(self._entry(), name="received")
        m.d.comb += [
            entry.beat.data.eq(Mux(is_end, code, axi.rdata)),
            entry.beat.last_of_row.eq(head.row_last & axi.rlast),
            entry.beat.last.eq(head.last & axi.rlast),
            entry.end.eq(is_end),
            queue.w_data.eq(entry),
        ]
        return dropped

    def _deliver(self, m: Module, queue) -> Signal:
        """The queue's entries to their streams; returns: one left."""
        head = data.View(self._entry(), queue.r_data)
        drops, lost = Signal(), Signal()
        code = Signal(MemoryCode, name="queued_code")
        left = Signal()
        m.d.comb += [
            drops.eq(self.soft_abort | lost),
            code.eq(head.beat.data[: len(code.as_value())]),
            self.beats.payload.eq(head.beat),
            self.beats.valid.eq(queue.r_rdy & ~head.end & ~drops),
            self.response.payload.eq(Mux(lost & (code == MemoryCode.OK), MemoryCode.ABORTED, code)),
            self.response.valid.eq(queue.r_rdy & head.end),
            queue.r_en.eq(Mux(head.end, self.response.ready, drops | self.beats.ready)),
            left.eq(queue.r_rdy & queue.r_en),
        ]
        with m.If(left):
            m.d.sync += lost.eq(~head.end & drops)
        return left

    def _entry(self) -> data.StructLayout:
        return data.StructLayout({"beat": BeatLayout(self._data_bits), "end": 1})
