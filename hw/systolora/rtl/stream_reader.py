"""Rows of memory as rows of accumulators."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import ADDRESS_BITS, DATA_BITS
from systolora.rtl.layouts import StreamReadLayout
from systolora.rtl.memory_reader import BeatLayout
from systolora.rtl.placement import place
from systolora.rtl.regions import MemoryCode, RegionLayout
from systolora.rtl.token_counter import TokenCounter

__all__ = ["StreamReader"]

#: Bytes of an element at most, 1 << 3.
_WIDEST = 8


class StreamReader(wiring.Component):
    """Requests the rows of items from a MemoryReader, which the parent places, and unpacks them.

    Element i of a row is the ``1 << width`` bytes from ``address + row * stride + (i << width)``,
    little-endian, sign-extended to `acc_bits` or cut to its low `acc_bits` bits; it becomes lane i
    of a beat of `rows`. Lanes from the item's `cols` on are undefined. With a = min(B, C <<
    width), B the bytes of a bus word, `address` must be a multiple of a, and `stride` of B if there
    are more rows than one; ``1 <= cols <= C``.

    An item is taken, and its request sent in the same cycle, when a token is there for its
    `wait_store` and fewer than `depth` items are in work; so requests go out while rows of earlier
    items are still coming. An item is done when its response came.

    A row is valid in the cycle after its last beat was taken. One row per cycle where it fits in a
    word, else one per ``ceil((cols << width) / B)`` cycles, unless a stream stalls.

    After a response other than OK the rows of its item are incomplete: whoever ends the run resets
    this component (`placement.place` with `reset`) when the MemoryReader is no longer `busy`.

    Parameters
    ----------
    cols : lanes C, a power of two from 4 to 256
    acc_bits : bits of a lane, at most 64
    data_bits, address_bits : widths of the bus; B = data_bits / 8
    depth : items in work at most, at least 2

    Members
    -------
    items : In(stream.Signature(StreamReadLayout))
    token : a token comes, see TokenCounter
    hold : no item is taken; an offered request is withdrawn
    request : Out(stream.Signature(RegionLayout)), valid depends on `items`
    beats : In(stream.Signature(BeatLayout))
    response : In(stream.Signature(MemoryCode)), always ready
    rows : Out(stream.Signature(ArrayLayout(signed(acc_bits), cols)))
    fault_valid : a response other than OK came in this cycle, with
    fault_code : its MemoryCode
    fault_index : its item's `index`
    busy : an item is in work, or a row was not taken
    """

    def __init__(
        self,
        *,
        cols: int,
        acc_bits: int,
        data_bits: int,
        address_bits: int = ADDRESS_BITS,
        depth: int = 4,
    ) -> None:
        if not 4 <= cols <= 256 or cols & (cols - 1):
            raise ValueError(f"cols must be a power of two from 4 to 256, not {cols!r}")
        if not 1 <= acc_bits <= 8 * _WIDEST:
            raise ValueError(f"acc_bits must be 1 to {8 * _WIDEST}, not {acc_bits!r}")
        if data_bits not in DATA_BITS:
            raise ValueError(f"data_bits must be one of {DATA_BITS}, not {data_bits!r}")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth!r}")
        self.design_key: Hashable = (cols, acc_bits, data_bits, address_bits, depth)
        self._cols, self._acc_bits, self._depth = cols, acc_bits, depth
        self._word_bits = (data_bits // 8).bit_length() - 1
        item = StreamReadLayout(address_bits)
        self._work = data.StructLayout(
            {"width": 2, "offset": self._word_bits, "index": item["index"].shape}
        )
        super().__init__(
            {
                "items": In(stream.Signature(item)),
                "token": In(1),
                "hold": In(1),
                "request": Out(stream.Signature(RegionLayout(address_bits))),
                "beats": In(stream.Signature(BeatLayout(data_bits))),
                "response": In(stream.Signature(MemoryCode)),
                "rows": Out(stream.Signature(data.ArrayLayout(signed(acc_bits), cols))),
                "fault_valid": Out(1),
                "fault_code": Out(MemoryCode),
                "fault_index": Out(item["index"].shape),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.work = work = fifo.SyncFIFOBuffered(width=self._work.size, depth=self._depth)
        tokens = TokenCounter()
        place(m, platform, "tokens", tokens)
        self._take_items(m, work, tokens)
        row_valid = self._unpack(m, work)

        # Beats and responses come in one order, so the oldest item is the response's
        head = data.View(self._work, work.r_data)
        m.d.comb += [
            self.response.ready.eq(1),
            work.r_en.eq(self.response.valid),
            self.fault_valid.eq(self.response.valid & (self.response.payload != MemoryCode.OK)),
            self.fault_code.eq(self.response.payload),
            self.fault_index.eq(head.index),
            self.busy.eq((work.level != 0) | row_valid),
        ]
        return m

    def _take_items(self, m: Module, work, tokens: TokenCounter) -> None:
        """Requests, each with its place in `work`."""
        item, region = self.items.payload, self.request.payload
        may, taken = Signal(), Signal()
        offset = Signal(self._word_bits)
        entry = Signal(self._work)
        m.d.comb += [
            may.eq(~self.hold & work.w_rdy & (~item.wait_store | tokens.any)),
            self.request.valid.eq(self.items.valid & may),
            self.items.ready.eq(self.request.ready & may),
            taken.eq(self.items.valid & self.items.ready),
            offset.eq(item.address[: self._word_bits]),
            region.address.eq(item.address - offset),
            region.rows.eq(item.rows),
            region.row_bytes.eq(offset + (item.cols << item.width)),
            region.stride.eq(item.stride),
            entry.width.eq(item.width),
            entry.offset.eq(offset),
            entry.index.eq(item.index),
            work.w_data.eq(entry),
            work.w_en.eq(taken),
            tokens.give.eq(self.token),
            tokens.take.eq(taken & item.wait_store),
        ]

    def _unpack(self, m: Module, work) -> Signal:
        """Beats to rows; returns: a row is there that was not taken."""
        head, beat = data.View(self._work, work.r_data), self.beats.payload
        bus_bytes, row_bytes = 1 << self._word_bits, _WIDEST * self._cols
        step = min(bus_bytes, row_bytes)
        segments = row_bytes // step

        # Stage 1: the beat to its place in the row; a row shorter than a word to byte 0. Lower
        # bits of the offset are 0: it is a multiple of C << width.
        placed = beat.data
        for bit in reversed(range(self._cols.bit_length() - 1, self._word_bits)):
            half = 8 << bit
            shifted = Signal(bus_bytes * 8, name=f"shifted_{1 << bit}")
            m.d.comb += shifted.eq(Mux(head.offset[bit], placed[half:], placed))
            placed = shifted
        placed = placed[: 8 * step]

        segment = Signal(range(segments))
        row_valid = Signal()
        width = Signal(2, reset_less=True)
        words = [Signal(8 * step, reset_less=True, name=f"word_{n}") for n in range(segments)]
        fire = Signal(name="beat_taken")
        m.d.comb += [
            # `work` knows the item long before its first beat comes; without an item a beat is
            # nobody's
            self.beats.ready.eq(work.r_rdy & (~row_valid | self.rows.ready)),
            fire.eq(self.beats.valid & self.beats.ready),
        ]
        with m.If(fire):
            m.d.sync += width.eq(head.width)
            if segments > 1:
                m.d.sync += segment.eq(Mux(beat.last_of_row, 0, segment + 1))
        with m.If(self.response.valid):
            m.d.sync += segment.eq(0)  # an error may have ended the item inside a row
        for number, word in enumerate(words):
            with m.If(fire & (segment == number)):
                m.d.sync += word.eq(placed)
        with m.If(self.rows.ready):
            m.d.sync += row_valid.eq(0)
        with m.If(fire):
            m.d.sync += row_valid.eq(beat.last_of_row)

        # Stage 2: elements of any width to lanes
        row = Cat(words)
        m.d.comb += self.rows.valid.eq(row_valid)
        for lane in range(self._cols):
            wide = Signal(signed(self._acc_bits), name=f"lane_{lane}")
            with m.Switch(width):
                for code in range(4):
                    bits = 8 << code
                    element = row[lane * bits : (lane + 1) * bits].as_signed()
                    with m.Case(code):
                        m.d.comb += wide.eq(element)  # cut to acc_bits: docs/system.md, POST
            m.d.comb += self.rows.payload[lane].eq(wide)
        return row_valid
