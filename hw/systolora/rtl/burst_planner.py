"""Cuts regions of memory into bursts."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.axi import BOUNDARY
from systolora.rtl.regions import ROW_BYTES_BITS, ROWS_BITS, STRIDE_BITS, CheckedLayout, MemoryCode

__all__ = ["BurstLayout", "BurstPlanner"]


def BurstLayout(bus_bytes: int, address_bits: int) -> data.StructLayout:
    """One burst, or (`end`) the end of a request, with its `code`."""
    word_bits = bus_bytes.bit_length() - 1
    return data.StructLayout(
        {
            "end": 1,
            "code": MemoryCode,
            "address": address_bits,  # where its bytes start, inside its first word
            "length": 8,  # beats less one
            "row_last": 1,  # the last burst of its row
            "last": 1,  # the last burst of its request
            "tail": word_bits,  # bytes of a row's last word, less one
            "wide": 1,  # rows are longer than one word
        }
    )


class BurstPlanner(wiring.Component):
    """Turns each checked region into its bursts, in order, and an end.

    One burst per cycle, across rows too. A burst ends with its row or at a multiple of its
    greatest length, `burst_beats` words or 4 KiB: so none crosses 4 KiB, and only the first of a
    row may be short though its row goes on. A region whose code is not OK has an end only, with
    that code.

    The first burst is valid two cycles after the cycle that takes the region, the next region is
    taken in the cycle in which the end is, at the earliest.

    Parameters
    ----------
    bus_bytes : width of the bus
    address_bits : width of an address
    burst_beats : beats of a burst at most, a power of two

    Members
    -------
    request : In(stream.Signature(CheckedLayout))
    stop : ends the request in work: a burst that is offered is withdrawn, no other comes, and the
        end says ABORTED unless all bursts were taken
    burst : Out(stream.Signature(BurstLayout))
    busy : a request is in work
    """

    def __init__(self, *, bus_bytes: int, address_bits: int, burst_beats: int) -> None:
        self.design_key: Hashable = (bus_bytes, address_bits, burst_beats)
        self._word_bits = bus_bytes.bit_length() - 1
        self._beat_bits = min(burst_beats, BOUNDARY // bus_bytes).bit_length() - 1
        self._address_bits = address_bits
        self._burst = BurstLayout(bus_bytes, address_bits)
        super().__init__(
            {
                "request": In(stream.Signature(CheckedLayout(address_bits))),
                "stop": In(1),
                "burst": Out(stream.Signature(self._burst)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word_bits, beat_bits = self._word_bits, self._beat_bits
        region = self.request.payload.region

        code = Signal(MemoryCode, reset_less=True)
        row_words = Signal(ROW_BYTES_BITS - word_bits, reset_less=True)  # less one
        tail = Signal(word_bits, reset_less=True)
        stride = Signal(STRIDE_BITS, reset_less=True)
        address = Signal(self._address_bits, reset_less=True)
        next_row = Signal(self._address_bits, reset_less=True)
        words_left = Signal(row_words.shape(), reset_less=True)  # of the row, less one
        rows_left = Signal(ROWS_BITS, reset_less=True)  # less one

        # Stage 1: the present burst. `room` is what is left to the multiple, less one beat.
        room = Signal(beat_bits)
        row_last, last = Signal(), Signal()
        m.d.comb += [
            room.eq(~address[word_bits : word_bits + beat_bits]),
            row_last.eq(words_left <= room),
            last.eq(row_last & (rows_left == 0)),
        ]
        unit = word_bits + beat_bits
        beyond = Cat(Const(0, unit), (address[unit:] + 1)[: self._address_bits - unit])
        step = Signal()
        with m.If(step):
            with m.If(row_last):
                m.d.sync += [
                    address.eq(next_row),
                    next_row.eq(next_row + stride),
                    words_left.eq(row_words),
                    rows_left.eq(rows_left - 1),
                ]
            with m.Else():
                m.d.sync += [address.eq(beyond), words_left.eq(words_left - room - 1)]

        # Stage 2: the burst that is offered
        offered = Signal(self._burst, reset_less=True)
        valid = Signal()
        free = Signal()
        withdrawn = Signal()
        m.d.comb += [
            withdrawn.eq(valid & ~offered.end & self.stop),
            self.burst.payload.eq(offered),
            self.burst.valid.eq(valid & ~withdrawn),
            free.eq(~valid | withdrawn | self.burst.ready),
        ]
        with m.If(free):
            m.d.sync += valid.eq(0)
        with m.If(step):
            m.d.sync += [
                valid.eq(1),
                offered.end.eq(0),
                offered.address.eq(address),
                offered.length.eq(Mux(row_last, words_left[:8], room)),
                offered.row_last.eq(row_last),
                offered.last.eq(last),
                offered.tail.eq(tail),
                offered.wide.eq(row_words != 0),
            ]
        with m.If(withdrawn):
            m.d.sync += code.eq(MemoryCode.ABORTED)

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(valid | ~fsm.ongoing("TAKE"))
            with m.State("TAKE"):
                m.d.comb += self.request.ready.eq(free)
                m.d.sync += [
                    code.eq(self.request.payload.code),
                    Cat(tail, row_words).eq(region.row_bytes - 1),
                    words_left.eq((region.row_bytes - 1) >> word_bits),
                    rows_left.eq(region.rows - 1),
                    stride.eq(region.stride),
                    address.eq(region.address),
                    next_row.eq(region.address + region.stride),
                ]
                with m.If(free & self.request.valid):
                    m.next = "END"
                    with m.If(self.request.payload.code == MemoryCode.OK):
                        m.next = "PLAN"
            with m.State("PLAN"):
                m.d.comb += step.eq(free & ~self.stop)
                with m.If(self.stop):
                    m.d.sync += code.eq(MemoryCode.ABORTED)
                    m.next = "END"
                with m.Elif(free & last):
                    m.next = "END"
            # Not in the cycle that withdraws a burst: its code comes first
            with m.State("END"), m.If(free & ~withdrawn):
                m.d.sync += [valid.eq(1), offered.end.eq(1), offered.code.eq(code)]
                m.next = "TAKE"
        return m
