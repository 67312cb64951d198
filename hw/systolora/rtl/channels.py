"""Several AXI4 masters side by side as one wide memory."""

from collections.abc import Hashable, Iterator

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import (
    ADDRESS_BITS,
    CACHE,
    DATA_BITS,
    PROT,
    Burst,
    MemorySignature,
    Response,
)
from systolora.rtl.placement import place

__all__ = ["ChannelGang", "FallThrough"]


class FallThrough(wiring.Component):
    """A queue that costs no cycle while it is empty: a beat passes in the cycle in which it comes.

    `source.ready` comes from a register, `sink.valid` depends on `source.valid` and on registers,
    so that a valid never depends on a ready, and `source.ready` on nothing outside. What is offered
    stays offered until it is taken.

    Parameters
    ----------
    width : bits of a beat
    depth : beats that it holds, at least 2

    Members
    -------
    source : In(stream.Signature(width))
    sink : Out(stream.Signature(width))
    """

    def __init__(self, width: int, depth: int) -> None:
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth!r}")
        self.design_key: Hashable = (width, depth)
        self._width, self._depth = width, depth
        super().__init__(
            {"source": In(stream.Signature(width)), "sink": Out(stream.Signature(width))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFO(width=self._width, depth=self._depth)
        m.d.comb += [
            self.source.ready.eq(queue.w_rdy),
            self.sink.valid.eq(queue.r_rdy | self.source.valid),
            self.sink.payload.eq(Mux(queue.r_rdy, queue.r_data, self.source.payload)),
            queue.r_en.eq(self.sink.ready),
            queue.w_data.eq(self.source.payload),
            queue.w_en.eq(self.source.valid & (queue.r_rdy | ~self.sink.ready)),
        ]
        return m


class ChannelGang(wiring.Component):
    """One memory, `channels` times as wide as a bus, made of that many buses.

    With b = data_bits / 8, byte a of the wide side lies in channel ``(a // b) % channels`` at ``(a
    // (b * channels)) * b + a % b``. So every burst goes to all channels, with its length and its
    address divided by `channels`; a burst within 4 KiB stays within a part of it in each.

    Channels need not move together: each has queues of DEPTH addresses, beats and answers, which
    cost no cycle while all channels keep the same pace. A wide beat or answer is there when its
    part is there in every channel, with the worst of their responses; RLAST is channel 0's, since
    every channel has bursts of the same length. One wide beat per cycle each way as long as every
    channel moves one; a channel's `rready` and `bready` are low only while it is DEPTH ahead of
    the slowest. No output of a bus depends on an input of a bus in the same cycle.

    Parameters
    ----------
    channels : 2 or more, a power of two
    data_bits : width of one bus; `channels` of them at most as wide as the widest of DATA_BITS
    address_bits : width of an address, on both sides

    Members
    -------
    wide : In(MemorySignature(channels * data_bits)), what a master's `m_axi` connects to; addresses
        are multiples of its width
    m_axi : Out(MemorySignature(data_bits)).array(channels)
    """

    #: Beats that a channel may be ahead of another: a burst.
    DEPTH = 16

    def __init__(self, *, channels: int, data_bits: int, address_bits: int = ADDRESS_BITS) -> None:
        if channels < 2 or channels & (channels - 1):
            raise ValueError(f"channels must be a power of two, at least 2, not {channels!r}")
        if data_bits not in DATA_BITS or channels * data_bits > max(DATA_BITS):
            raise ValueError(f"data_bits = {data_bits!r}: {channels} channels are too wide")
        self.design_key: Hashable = (channels, data_bits, address_bits)
        self._count, self._data_bits, self._address_bits = channels, data_bits, address_bits
        super().__init__(
            {
                "wide": In(MemorySignature(channels * data_bits, address_bits)),
                "m_axi": Out(MemorySignature(data_bits, address_bits)).array(channels),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._addresses(m, platform, "ar")
        self._addresses(m, platform, "aw")
        self._written(m, platform)
        self._read(m, platform)
        self._answered(m, platform)
        return m

    def _queues(self, m: Module, platform: object, name: str, width: int) -> list[FallThrough]:
        queues = [FallThrough(width, self.DEPTH) for _ in range(self._count)]
        for number, queue in enumerate(queues):
            place(m, platform, f"{name}_{number}", queue)
        return queues

    def _spread(self, m: Module, queues: list[FallThrough], valid, ready) -> None:
        """What is offered goes into all queues in one cycle."""
        m.d.comb += ready.eq(Cat(queue.source.ready for queue in queues).all())
        for queue in queues:
            m.d.comb += queue.source.valid.eq(valid & ready)

    def _join(self, m: Module, queues: list[FallThrough], valid, ready) -> None:
        """What all queues offer leaves them in one cycle."""
        m.d.comb += valid.eq(Cat(queue.sink.valid for queue in queues).all())
        for queue in queues:
            m.d.comb += queue.sink.ready.eq(valid & ready)

    def _addresses(self, m: Module, platform: object, way: str) -> None:
        wide, shift = self.wide, self._count.bit_length() - 1
        address, length = getattr(wide, f"{way}addr"), getattr(wide, f"{way}len")
        divided = address[shift:]
        queues = self._queues(m, platform, way, len(divided) + len(length))
        self._spread(m, queues, getattr(wide, f"{way}valid"), getattr(wide, f"{way}ready"))
        for queue, bus in zip(queues, self.m_axi, strict=True):
            sink = queue.sink
            m.d.comb += [
                queue.source.payload.eq(Cat(length, divided)),
                Cat(getattr(bus, f"{way}len"), getattr(bus, f"{way}addr")).eq(sink.payload),
                getattr(bus, f"{way}valid").eq(sink.valid),
                sink.ready.eq(getattr(bus, f"{way}ready")),
                getattr(bus, f"{way}size").eq((self._data_bits // 8).bit_length() - 1),
                # What all bursts have does not go through the queue
                getattr(bus, f"{way}id").eq(0),
                getattr(bus, f"{way}burst").eq(Burst.INCR),
                getattr(bus, f"{way}cache").eq(CACHE),
                getattr(bus, f"{way}prot").eq(PROT),
            ]

    def _parts(self, value) -> Iterator:
        """The channels' parts of a wide word or of its strobes."""
        size = len(value) // self._count
        return (value[size * n : size * (n + 1)] for n in range(self._count))

    def _written(self, m: Module, platform: object) -> None:
        wide = self.wide
        queues = self._queues(m, platform, "w", 1 + self._data_bits // 8 + self._data_bits)
        self._spread(m, queues, wide.wvalid, wide.wready)
        words = zip(self._parts(wide.wstrb), self._parts(wide.wdata), strict=True)
        for queue, bus, (strobes, word) in zip(queues, self.m_axi, words, strict=True):
            m.d.comb += [
                queue.source.payload.eq(Cat(wide.wlast, strobes, word)),
                Cat(bus.wlast, bus.wstrb, bus.wdata).eq(queue.sink.payload),
                bus.wvalid.eq(queue.sink.valid),
                queue.sink.ready.eq(bus.wready),
            ]

    def _read(self, m: Module, platform: object) -> None:
        wide = self.wide
        queues = self._queues(m, platform, "r", 3 + self._data_bits)
        self._join(m, queues, wide.rvalid, wide.rready)
        words, responses = [], []
        for number, (queue, bus) in enumerate(zip(queues, self.m_axi, strict=True)):
            last = Signal(name=f"rlast_{number}")
            response = Signal(Response, name=f"rresp_{number}")
            word = Signal(self._data_bits, name=f"rdata_{number}")
            m.d.comb += [
                queue.source.payload.eq(Cat(bus.rlast, bus.rresp, bus.rdata)),
                queue.source.valid.eq(bus.rvalid),
                bus.rready.eq(queue.source.ready),
                Cat(last, response, word).eq(queue.sink.payload),
            ]
            if number == 0:
                m.d.comb += wide.rlast.eq(last)
            words.append(word)
            responses.append(response)
        m.d.comb += [wide.rdata.eq(Cat(*words)), wide.rresp.eq(self._worst(m, "r", responses))]

    def _answered(self, m: Module, platform: object) -> None:
        wide = self.wide
        queues = self._queues(m, platform, "b", 2)
        self._join(m, queues, wide.bvalid, wide.bready)
        responses = []
        for number, (queue, bus) in enumerate(zip(queues, self.m_axi, strict=True)):
            response = Signal(Response, name=f"bresp_{number}")
            m.d.comb += [
                queue.source.payload.eq(bus.bresp),
                queue.source.valid.eq(bus.bvalid),
                bus.bready.eq(queue.source.ready),
                response.eq(queue.sink.payload),
            ]
            responses.append(response)
        m.d.comb += wide.bresp.eq(self._worst(m, "b", responses))

    def _worst(self, m: Module, way: str, responses: list[Signal]):
        """The greatest: OKAY, EXOKAY, SLVERR, DECERR."""
        worst = responses[0].as_value()
        for number, response in enumerate(responses[1:], start=1):
            next_worst = Signal(2, name=f"{way}_worst_{number}")
            m.d.comb += next_worst.eq(Mux(response.as_value() > worst, response.as_value(), worst))
            worst = next_worst
        return worst
