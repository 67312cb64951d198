"""Rows of accumulators, results and registers as rows of memory."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import ADDRESS_BITS, DATA_BITS
from systolora.rtl.layouts import InfoLayout, StreamWriteLayout
from systolora.rtl.regions import ROWS_BITS, MemoryCode, RegionLayout

__all__ = ["StreamWriter"]

#: Bytes of an element at most, 1 << 3.
_WIDEST = 8


def _pick(words: list[Value], index: Signal) -> Value:
    """``words[index]`` as a tree of multiplexers; their number is a power of two."""
    bit = 0
    while len(words) > 1:
        words = [Mux(index[bit], b, a) for a, b in zip(words[::2], words[1::2], strict=True)]
        bit += 1
    return words[0]


def _extend(value: Signal, bits: int):
    """The low bits of `value`, its sign extended; a wider Signal would feed its own upper bits."""
    return Cat(value[:bits], value[-1].replicate(max(0, bits - len(value))))


class StreamWriter(wiring.Component):
    """Packs rows for a MemoryWriter, which the parent places, and tells when they are in memory.

    Element i of a row is the low ``1 << width`` bytes of lane i, sign-extended to 64 bits; element
    0 is in the lowest byte of the row's first beat, and a row is ``ceil((cols << width) / B)``
    beats, B the bytes of a bus word. Bytes after its end are undefined. An item with `info` has one
    row of 8 bytes, taken from the `info` stream: m and e as int32 each with `scale`, else amax as
    int64. An item without `writes` has no rows and no request.

    ``1 <= cols <= C``; an item with `info` has rows = 1 and ``cols << width`` = 8. At most one
    of `acc_out` and `result` is valid at a time (they leave the Core by one queue): the rows of
    an item without `info` are taken from whichever is.

    An item is taken, and its request sent in the same cycle, when fewer than `depth` items are in
    work. Rows are taken for requests that were sent, in order; one row per cycle where it fits in a
    word, else one per its number of beats, unless a stream stalls. A beat is valid in the cycle
    after its row was offered.

    The item's tokens are given when its response came, or, without `writes`, when the responses of
    all items before it came: at most one item per cycle, in order. A response other than OK gives
    no tokens. After it rows may be left over: whoever ends the run sets `hold`, which withdraws
    the beat that is offered, and resets this component (`placement.place` with `reset`) when the
    MemoryWriter is no longer `busy`.

    Parameters
    ----------
    cols : lanes C, a power of two from 4 to 256
    acc_bits, result_bits : bits of a lane of either stream, at most 64
    data_bits, address_bits : widths of the bus; B = data_bits / 8
    depth : items in work at most, at least 2

    Members
    -------
    items : In(stream.Signature(StreamWriteLayout))
    acc_out : In(stream.Signature(ArrayLayout(signed(acc_bits), cols)))
    result : In(stream.Signature(ArrayLayout(signed(result_bits), cols)))
    info : In(stream.Signature(InfoLayout))
    hold : no item and no row is taken; an offered request and an offered beat are withdrawn (and
        come again when `hold` ends)
    request : Out(stream.Signature(RegionLayout)), valid depends on `items`
    beats : Out(stream.Signature(data_bits))
    response : In(stream.Signature(MemoryCode)), ready but for the cycles in which items without
        `writes` are done
    token_load, token_stream : an item with `signal_load`, `signal_stream` is done in this cycle
    fault_valid : a response other than OK is taken in this cycle, with
    fault_code : its MemoryCode
    fault_index : its item's `index`
    busy : an item is in work, or a beat was not taken
    """

    def __init__(
        self,
        *,
        cols: int,
        acc_bits: int,
        result_bits: int,
        data_bits: int,
        address_bits: int = ADDRESS_BITS,
        depth: int = 4,
    ) -> None:
        if not 4 <= cols <= 256 or cols & (cols - 1):
            raise ValueError(f"cols must be a power of two from 4 to 256, not {cols!r}")
        for name, bits in (("acc_bits", acc_bits), ("result_bits", result_bits)):
            if not 1 <= bits <= 8 * _WIDEST:
                raise ValueError(f"{name} must be 1 to {8 * _WIDEST}, not {bits!r}")
        if data_bits not in DATA_BITS:
            raise ValueError(f"data_bits must be one of {DATA_BITS}, not {data_bits!r}")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, not {depth!r}")
        self.design_key: Hashable = (cols, acc_bits, result_bits, data_bits, address_bits, depth)
        self._cols, self._data_bits, self._depth = cols, data_bits, depth
        self._word_bits = (data_bits // 8).bit_length() - 1
        self._lane_bits = max(acc_bits, result_bits)
        # Beats of the longest row
        self._segments = max(1, _WIDEST * cols >> self._word_bits)
        item = StreamWriteLayout(address_bits)
        index = item["index"].shape
        self._packing = data.StructLayout(
            {
                "last_row": ROWS_BITS,
                "last_segment": range(self._segments),
                "width": 2,
                "info": 1,
                "scale": 1,
            }
        )
        self._answer = data.StructLayout(
            {"writes": 1, "signal_load": 1, "signal_stream": 1, "index": index}
        )
        super().__init__(
            {
                "items": In(stream.Signature(item)),
                "acc_out": In(stream.Signature(data.ArrayLayout(signed(acc_bits), cols))),
                "result": In(stream.Signature(data.ArrayLayout(signed(result_bits), cols))),
                "info": In(stream.Signature(InfoLayout)),
                "hold": In(1),
                "request": Out(stream.Signature(RegionLayout(address_bits))),
                "beats": Out(stream.Signature(data_bits)),
                "response": In(stream.Signature(MemoryCode)),
                "token_load": Out(1),
                "token_stream": Out(1),
                "fault_valid": Out(1),
                "fault_code": Out(MemoryCode),
                "fault_index": Out(index),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.packing = packing = fifo.SyncFIFOBuffered(
            width=self._packing.size, depth=self._depth
        )
        m.submodules.answers = answers = fifo.SyncFIFOBuffered(
            width=self._answer.size, depth=self._depth
        )
        self._take_items(m, packing, answers)
        beat_valid = self._pack(m, packing)
        self._finish(m, answers)
        m.d.comb += self.busy.eq((answers.level != 0) | (packing.level != 0) | beat_valid)
        return m

    def _take_items(self, m: Module, packing, answers) -> None:
        """Requests, each with its places in both queues."""
        item, region = self.items.payload, self.request.payload
        may, taken = Signal(), Signal()
        row_bytes = Signal(region.shape()["row_bytes"].shape)
        rows, answer = Signal(self._packing), Signal(self._answer)
        m.d.comb += [
            may.eq(~self.hold & packing.w_rdy & answers.w_rdy),
            self.request.valid.eq(self.items.valid & item.writes & may),
            self.items.ready.eq((self.request.ready | ~item.writes) & may),
            taken.eq(self.items.valid & self.items.ready),
            row_bytes.eq(item.cols << item.width),
            region.address.eq(item.address),
            region.rows.eq(item.rows),
            region.row_bytes.eq(row_bytes),
            region.stride.eq(item.stride),
            rows.last_row.eq(item.rows - 1),
            rows.last_segment.eq((row_bytes - 1) >> self._word_bits),
            rows.width.eq(item.width),
            rows.info.eq(item.info),
            rows.scale.eq(item.scale),
            packing.w_data.eq(rows),
            packing.w_en.eq(taken & item.writes),
            answer.writes.eq(item.writes),
            answer.signal_load.eq(item.signal_load),
            answer.signal_stream.eq(item.signal_stream),
            answer.index.eq(item.index),
            answers.w_data.eq(answer),
            answers.w_en.eq(taken),
        ]

    def _pack(self, m: Module, packing) -> Signal:
        """Rows to beats; returns: a beat is there that was not taken."""
        head = data.View(self._packing, packing.r_data)
        row = Signal(ROWS_BITS)
        segment = Signal(range(self._segments))
        beat = Signal(self._data_bits, reset_less=True)
        beat_valid = Signal()
        may, there, move, last = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            may.eq(packing.r_rdy & ~self.hold & (~beat_valid | self.beats.ready)),
            there.eq(Mux(head.info, self.info.valid, self.acc_out.valid | self.result.valid)),
            move.eq(may & there),
            last.eq(segment == head.last_segment),
            # The streams keep a row in place until its last beat
            self.info.ready.eq(may & head.info & last),
            self.acc_out.ready.eq(may & ~head.info & last),
            self.result.ready.eq(may & ~head.info & last),
            packing.r_en.eq(move & last & (row == head.last_row)),
            self.beats.valid.eq(beat_valid & ~self.hold),
            self.beats.payload.eq(beat),
        ]
        with m.If(move):
            if self._segments > 1:
                m.d.sync += segment.eq(Mux(last, 0, segment + 1))
            with m.If(last):
                m.d.sync += row.eq(Mux(row == head.last_row, 0, row + 1))

        lanes = [Signal(signed(self._lane_bits), name=f"lane_{lane}") for lane in range(self._cols)]
        for lane, value in enumerate(lanes):
            m.d.comb += value.eq(
                Mux(self.result.valid, self.result.payload[lane], self.acc_out.payload[lane])
            )
        packed = Signal(self._data_bits)
        with m.If(head.info):
            info = self.info.payload
            amax, mantissa, exponent = Signal(64), Signal(32), Signal(signed(32))
            m.d.comb += [amax.eq(info.amax), mantissa.eq(info.m), exponent.eq(info.e)]
            m.d.comb += packed.eq(Mux(head.scale, Cat(mantissa, exponent), amax))
        with m.Else(), m.Switch(head.width):
            for code in range(4):
                bits = 8 << code
                per_beat = min(self._cols, self._data_bits // bits)
                words = [
                    Cat(_extend(value, bits) for value in lanes[first : first + per_beat])
                    for first in range(0, self._cols, per_beat)
                ]
                with m.Case(code):
                    m.d.comb += packed.eq(_pick(words, segment))
        with m.If(move):
            m.d.sync += [beat.eq(packed), beat_valid.eq(1)]
        with m.Elif(self.beats.ready & ~self.hold):
            m.d.sync += beat_valid.eq(0)
        return beat_valid

    def _finish(self, m: Module, answers) -> None:
        """Responses to tokens and faults, in the items' order."""
        head = data.View(self._answer, answers.r_data)
        done, bad = Signal(), Signal()
        m.d.comb += [
            self.response.ready.eq(answers.r_rdy & head.writes),
            done.eq(answers.r_rdy & (self.response.valid | ~head.writes)),
            bad.eq(head.writes & (self.response.payload != MemoryCode.OK)),
            answers.r_en.eq(done),
            self.token_load.eq(done & ~bad & head.signal_load),
            self.token_stream.eq(done & ~bad & head.signal_stream),
            self.fault_valid.eq(done & bad),
            self.fault_code.eq(self.response.payload),
            self.fault_index.eq(head.index),
        ]
