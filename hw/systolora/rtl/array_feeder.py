"""Executes EXECs: tile commands for the Core, and the lines that they need."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.contract import Dataflow, Edge
from systolora.rtl.layouts import ExecLayout, TileLayout
from systolora.rtl.operand_buffer import Plane, ReadLayout
from systolora.rtl.placement import place
from systolora.rtl.token_counter import TokenCounter

__all__ = ["ArrayFeeder"]


class ArrayFeeder(wiring.Component):
    """Turns each EXEC into its passes (docs/system.md), one per cycle.

    A pass is a tile command for the Core and a run of lines from each buffer that it reads. The
    Core, the buffers and their small queues say how fast; a buffer may be several passes ahead of
    the array.

    Parameters
    ----------
    rows, cols, segments : the array
    act_unit_bits, wgt_unit_bits : bits of a place in a buffer

    Members
    -------
    items : In(stream.Signature(ExecLayout))
    load_token : a LOAD gives a token
    token_out : the buffers have been read for an EXEC with signal_load
    tile, act, wgt : commands to the Core and to the two buffers
    act_done, wgt_done : the buffers' `done`
    waits : an EXEC waits for a token
    busy : EXECs are in work here
    """

    def __init__(
        self, *, rows: int, cols: int, segments: int, act_unit_bits: int, wgt_unit_bits: int
    ) -> None:
        self.design_key: Hashable = (rows, cols, segments, act_unit_bits, wgt_unit_bits)
        self._rows = rows
        self._top_bits = (rows // segments).bit_length() - 1
        self._left_bits = (cols // segments).bit_length() - 1
        self._act_bits, self._wgt_bits = act_unit_bits, wgt_unit_bits
        super().__init__(
            {
                "items": In(stream.Signature(ExecLayout)),
                "load_token": In(1),
                "token_out": Out(1),
                "tile": Out(stream.Signature(TileLayout)),
                "act": Out(stream.Signature(ReadLayout(act_unit_bits))),
                "wgt": Out(stream.Signature(ReadLayout(wgt_unit_bits))),
                "act_done": In(1),
                "wgt_done": In(1),
                "waits": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        head = self.items.payload
        tokens = TokenCounter()
        place(m, platform, "load_tokens", tokens)
        item = Signal(ExecLayout, reset_less=True)
        active = Signal()
        take, finish = Signal(), Signal()
        may = Signal()
        m.d.comb += [
            tokens.give.eq(self.load_token),
            tokens.take.eq(take & head.wait_load),
            may.eq(~head.wait_load | tokens.any),
            self.items.ready.eq(may & (~active | finish)),
            take.eq(self.items.valid & self.items.ready),
            self.waits.eq(self.items.valid & ~may & ~active),
            self.busy.eq(active | self.items.valid),
        ]
        self._passes(m, item, active, take, finish)

        # A buffer's `done` may come before the other's: the token needs one of each
        act_seen, wgt_seen = TokenCounter(), TokenCounter()
        place(m, platform, "act_seen", act_seen)
        place(m, platform, "wgt_seen", wgt_seen)
        both = Signal()
        m.d.comb += [
            both.eq(act_seen.any & wgt_seen.any),
            self.token_out.eq(both),
            act_seen.give.eq(self.act_done),
            wgt_seen.give.eq(self.wgt_done),
            act_seen.take.eq(both),
            wgt_seen.take.eq(both),
        ]
        return m

    def _passes(self, m: Module, item, active: Signal, take: Signal, finish: Signal) -> None:
        """The loops over tiles and byte planes."""
        head = self.items.payload
        tiles_left = Signal(item.repeat.shape(), reset_less=True)
        act_base = Signal(self._act_bits, reset_less=True)
        wgt_base = Signal(self._wgt_bits, reset_less=True)
        acc_base = Signal(item.acc_base.shape(), reset_less=True)
        first_pass, first_tile = Signal(), Signal()  # of the EXEC; the tile's sums are fresh
        tile_begins = Signal()
        act_low, wgt_low = Signal(), Signal()  # the second plane's turn

        is_os = Signal()
        last_tile, act_last, wgt_last, last = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            is_os.eq(item.dataflow == Dataflow.OS),
            last_tile.eq(tiles_left == 1),
            act_last.eq(~item.act_wide | act_low),
            wgt_last.eq(~item.wgt_wide | wgt_low),
            last.eq(last_tile & act_last & wgt_last),
        ]

        # All three commands of a pass leave together
        needs_wgt = Signal()
        ready, fire = Signal(), Signal()
        m.d.comb += [
            needs_wgt.eq(is_os | ~act_low),
            ready.eq(self.tile.ready & self.act.ready & (self.wgt.ready | ~needs_wgt)),
            fire.eq(active & ready),
            self.tile.valid.eq(active & self.act.ready & (self.wgt.ready | ~needs_wgt)),
            self.act.valid.eq(active & self.tile.ready & (self.wgt.ready | ~needs_wgt)),
            self.wgt.valid.eq(active & needs_wgt & self.tile.ready & self.act.ready),
            finish.eq(fire & last),
        ]

        lanes = Signal(range(self._rows + 1))
        m.d.comb += lanes.eq(Mux(last_tile, item.last, self._rows))
        tile = self.tile.payload
        m.d.comb += [
            tile.dataflow.eq(item.dataflow),
            tile.load.eq(~is_os & ~act_low),
            tile.edge.eq(item.edge),
            tile.act_low.eq(item.act_wide & act_low),
            tile.wgt_low.eq(item.wgt_wide & wgt_low),
            tile.accumulate.eq(~(tile_begins & first_tile) | item.accumulate),
            tile.shift.eq((item.act_wide & ~act_low) + (item.wgt_wide & ~wgt_low)),
            tile.wait.eq(item.wait_post & first_pass),
            tile.signal.eq(item.signal_post & last),
            tile.length.eq(item.length),
            tile.out_rows.eq(lanes),
            tile.acc_base.eq(acc_base),
            tile.fence.eq(item.fence),
        ]

        def plane(wide, low):
            return Mux(wide, Mux(low, Plane.LOW, Plane.HIGH), Plane.BYTES)

        act, wgt = self.act.payload, self.wgt.payload
        lines = Signal(item.length.shape())
        with m.If(is_os):
            m.d.comb += [lines.eq(item.length), wgt.delta.eq(item.wgt_stride)]
        with m.Else():
            # The line that travels furthest enters first: from the last one down
            m.d.comb += wgt.delta.eq(-item.wgt_stride)
            with m.If(item.edge == Edge.LEFT):
                m.d.comb += lines.eq(1 << self._left_bits)
            with m.Else():
                m.d.comb += lines.eq(1 << self._top_bits)
        m.d.comb += [
            act.base.eq(act_base),
            act.delta.eq(item.act_stride),
            act.count.eq(item.length),
            act.plane.eq(plane(item.act_wide, act_low)),
            act.lanes.eq(lanes),
            act.cols.eq(item.cols),
            act.signal.eq(item.signal_load & last),
            wgt.base.eq(wgt_base),
            wgt.count.eq(lines),
            wgt.plane.eq(plane(item.wgt_wide, wgt_low)),
            # The last pass that reads the stationary buffer
            wgt.signal.eq(item.signal_load & last_tile & wgt_last & Mux(is_os, act_last, ~act_low)),
        ]

        with m.If(fire):
            m.d.sync += [first_pass.eq(0), tile_begins.eq(0), act_low.eq(~act_last)]
            with m.If(act_last):
                m.d.sync += wgt_low.eq(~wgt_last)
                with m.If(wgt_last):
                    m.d.sync += [
                        tile_begins.eq(1),
                        first_tile.eq(item.acc_step != 0),
                        tiles_left.eq(tiles_left - 1),
                        act_base.eq(act_base + item.act_step),
                        wgt_base.eq(wgt_base + item.wgt_step),
                        acc_base.eq(acc_base + item.acc_step),
                    ]
            with m.If(last):
                m.d.sync += active.eq(0)
        with m.If(take):
            stride = head.wgt_stride

            def beyond(bits: int):
                """From the first line of 1 << bits to the last; of one width, or Yosys leaves a bit
                of the shorter difference undriven where it extends its sign."""
                return ((stride << bits) - stride)[: self._wgt_bits]

            left = head.edge == Edge.LEFT
            over = Mux(left, beyond(self._left_bits), beyond(self._top_bits))
            m.d.sync += [
                item.eq(head),
                active.eq(1),
                tiles_left.eq(head.repeat),
                act_base.eq(head.act_base),
                wgt_base.eq(head.wgt_base + Mux(head.dataflow == Dataflow.OS, 0, over)),
                acc_base.eq(head.acc_base),
                first_pass.eq(1),
                first_tile.eq(1),
                tile_begins.eq(1),
                act_low.eq(0),
                wgt_low.eq(0),
            ]
