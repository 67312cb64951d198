"""Runs the tile commands: when a beat may enter the array, and where its sums go."""

from collections.abc import Hashable
from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.rtl.accumulator import AccumulatorLane, one_bank
from systolora.rtl.layouts import SumControl, TileLayout

__all__ = ["Sequencer"]


class Sequencer(wiring.Component):
    """Two engines in command order, the load engine at most one tile (or OS beat) ahead.

    The load engine sends stationary tiles (and the top operand of OS) into the array's `b`
    registers; the compute engine sends streamed rows and swaps `b` into `w`. One bit joins them:
    `b_full`, set when a tile (OS: a beat) is complete in `b`, cleared by the swap; a load may
    enter in the cycle of the swap. So WS tiles follow each other every max(load, rows) cycles and
    OS tiles every max(depth, R) cycles (the drain's length).

    A compute beat of cycle t leaves the bottom of column 0 in cycle t + R + 3; its SumControl word
    leaves `sums` one cycle earlier, when the accumulator is read. The drain of an OS tile whose
    last beat fired in cycle t leaves like beats of the cycles t + 1 .. t + R, its words on
    `drains`. WS tiles follow meanwhile, in other banks: rows of the two paths reach one bank at
    least AccumulatorLane.APART cycles after each other.

    Members
    -------
    tile : the command stream
    act_valid, act_ready, wgt_valid, wgt_ready : handshakes of the operand streams
    load_valid ... drain_row : see ArrayEdge
    sums, drains : to accumulator lane 0
    done : banks in which the last sum of a tile has become readable in all lanes
    bank_claimed : banks that a post command owns or wants
    bank_busy : banks that tiles in flight write
    token : a post command gives a token
    busy : commands are queued or in flight
    waits : a tile waits for a token, or for a bank that a post command owns
    """

    QUEUE_DEPTH = 4

    def __init__(self, *, rows: int, cols: int, segments: int, acc_depth: int) -> None:
        self.design_key: Hashable = (rows, cols, segments, acc_depth)
        self._rows, self._cols = rows, cols
        self._top_load, self._left_load = rows // segments, cols // segments
        self._address_bits = (acc_depth - 1).bit_length()
        self._bank_bits = (acc_depth // ACC_BANKS - 1).bit_length()
        self._sum = SumControl(self._address_bits)
        super().__init__(
            {
                "tile": In(stream.Signature(TileLayout)),
                "act_valid": In(1),
                "act_ready": Out(1),
                "wgt_valid": In(1),
                "wgt_ready": Out(1),
                "load_valid": Out(1),
                "load_all": Out(1),
                "load_left": Out(1),
                "load_offset": Out(range(max(self._top_load, self._left_load))),
                "wgt_low": Out(1),
                "compute_valid": Out(1),
                "w_load": Out(1),
                "clear": Out(1),
                "ws": Out(1),
                "capture": Out(1),
                "act_low": Out(1),
                "drain_valid": Out(1),
                "drain_row": Out(range(rows)),
                "sums": Out(self._sum),
                "drains": Out(self._sum),
                "done": In(ACC_BANKS),
                "bank_claimed": In(ACC_BANKS),
                "bank_busy": Out(ACC_BANKS),
                "token": In(1),
                "busy": Out(1),
                "waits": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.load_queue = loads = fifo.SyncFIFOBuffered(
            width=TileLayout.size, depth=self.QUEUE_DEPTH
        )
        m.submodules.compute_queue = computes = fifo.SyncFIFOBuffered(
            width=TileLayout.size, depth=self.QUEUE_DEPTH
        )
        command = self.tile.payload
        needs_wgt = command.load | (command.dataflow == contract.Dataflow.OS)
        m.d.comb += [
            self.tile.ready.eq(loads.w_rdy & computes.w_rdy),
            loads.w_data.eq(command.as_value()),
            computes.w_data.eq(command.as_value()),
            loads.w_en.eq(self.tile.valid & computes.w_rdy & needs_wgt),
            computes.w_en.eq(self.tile.valid & loads.w_rdy),
        ]

        b_full = Signal()
        swap = Signal()
        fence_open = Signal()
        self._load(m, loads, b_full, swap, fence_open)
        drained = Signal(self._sum, name="drain_entry")
        drain_row = Signal(range(self._rows))
        fired = Signal(self._sum, name="fired_word")
        drain_active = Signal()
        self._compute(
            m, computes, b_full, swap, fence_open, fired, drained, drain_row, drain_active
        )
        self._sums(m, fired, drained, drain_row, drain_active)
        return m

    def _load(
        self,
        m: Module,
        queue: fifo.SyncFIFOBuffered,
        b_full: Signal,
        swap: Signal,
        fence_open: Signal,
    ) -> None:
        head = Signal(TileLayout, name="load_head")
        m.d.comb += head.eq(queue.r_data)
        is_os = Signal(name="load_os")
        m.d.comb += is_os.eq(head.dataflow == contract.Dataflow.OS)
        left = ~is_os & (head.edge == contract.Edge.LEFT)

        # Beats of this command so far: the reduction's depth for OS, the load's for WS.
        count = Signal(head.length.shape(), name="load_count")
        fire = Signal(name="load_fire")
        may = Signal(name="load_may")
        held = Signal()
        m.d.comb += [
            held.eq(head.fence & (count == 0) & (~fence_open | b_full)),
            may.eq(queue.r_rdy & (~b_full | swap) & ~held),
            fire.eq(may & self.wgt_valid),
            self.wgt_ready.eq(may),
        ]

        beats = Signal(head.length.shape(), name="load_beats")
        m.d.comb += beats.eq(Mux(is_os, head.length, Mux(left, self._left_load, self._top_load)))
        last = Signal(name="load_last")
        m.d.comb += last.eq(count + 1 == beats)
        with m.If(fire):
            m.d.sync += count.eq(Mux(last, 0, count + 1))
        m.d.comb += queue.r_en.eq(fire & last)

        with m.If(fire & (last | is_os)):
            m.d.sync += b_full.eq(1)
        with m.Elif(swap):
            m.d.sync += b_full.eq(0)

        m.d.comb += [
            self.load_valid.eq(fire),
            self.load_all.eq(is_os),
            self.load_left.eq(left),
            self.load_offset.eq(count),  # below R/S or C/S where it matters
            self.wgt_low.eq(head.wgt_low),
        ]

    def _compute(
        self,
        m: Module,
        queue: fifo.SyncFIFOBuffered,
        b_full: Signal,
        swap: Signal,
        fence_open: Signal,
        fired,
        drained,
        drain_row: Signal,
        drain_active: Signal,
    ) -> None:
        head = Signal(TileLayout, name="compute_head")
        m.d.comb += head.eq(queue.r_data)
        is_os = Signal(name="compute_os")
        m.d.comb += is_os.eq(head.dataflow == contract.Dataflow.OS)

        count = Signal(head.length.shape(), name="compute_count")
        started = Signal()
        last = Signal(name="compute_last")
        m.d.comb += last.eq(count + 1 == head.length)

        tokens = Signal(range(contract.TOKENS_MAX + 1))
        bank = Signal(range(ACC_BANKS), name="compute_bank")
        m.d.comb += bank.eq(head.acc_base >> self._bank_bits)
        takes_b = Signal()
        m.d.comb += takes_b.eq(is_os | (head.load & ~started))
        may_start = Signal()
        m.d.comb += may_start.eq(
            (~head.wait | (tokens != 0)) & ~self.bank_claimed.bit_select(bank, 1)
        )
        # A fenced tile finds the array empty; while it is the next one here and `b` is free, it is
        # also the next one to load.
        quiet = Signal()
        m.d.comb += [
            quiet.eq(self.bank_busy == 0),
            fence_open.eq(queue.r_rdy & head.fence & takes_b & ~started & quiet),
        ]
        # WS sums keep off the bank of a drain, whose last row comes in the last cycle of
        # `drain_active`. A drain's first row may come in the second cycle after the last WS row,
        # if the tile is one beat deep: it waits one more. A second drain needs the chain free.
        drain_last = Signal()
        m.d.comb += drain_last.eq(drain_row == 0)
        drain_bank, ws_bank = Signal(ACC_BANKS), Signal(ACC_BANKS)
        near = drain_bank | _recent(m, "drain_bank", drain_bank, AccumulatorLane.APART - 1)
        fresh = _recent(m, "ws_bank", ws_bank, AccumulatorLane.APART - 2)
        chain_free = Signal()
        m.d.comb += chain_free.eq(~drain_active | drain_last)
        path_free = Signal()
        m.d.comb += path_free.eq(
            Mux(
                is_os,
                ~last | (chain_free & ~fresh.bit_select(bank, 1)),
                ~near.bit_select(bank, 1),
            )
        )
        may = Signal(name="compute_may")
        fire = Signal(name="compute_fire")
        m.d.comb += [
            may.eq(
                queue.r_rdy
                & (~takes_b | b_full)
                & (started | (may_start & (quiet | ~head.fence)))
                & path_free
            ),
            fire.eq(may & self.act_valid),
            self.act_ready.eq(may),
            self.waits.eq(queue.r_rdy & ~started & ~may_start),
            swap.eq(fire & takes_b),
            queue.r_en.eq(fire & last),
        ]
        start = Signal()
        m.d.comb += [start.eq(fire & ~started), ws_bank.eq(one_bank(fire & ~is_os, bank))]
        with m.If(fire):
            m.d.sync += [count.eq(Mux(last, 0, count + 1)), started.eq(~last)]

        taken = start & head.wait
        with m.If(self.token & ~taken):
            m.d.sync += tokens.eq(tokens + 1)
        with m.Elif(~self.token & taken):
            m.d.sync += tokens.eq(tokens - 1)

        # Tiles in flight per bank: at most one per cycle of the array's depth and width.
        for index in range(ACC_BANKS):
            flying = Signal(range(self._rows + self._cols + 16), name=f"flying_{index}")
            comes = Signal(name=f"comes_{index}")
            goes = Signal(name=f"goes_{index}")
            m.d.comb += [
                comes.eq(start & (bank == index)),
                goes.eq(self.done[index]),
                self.bank_busy[index].eq(flying != 0),
            ]
            with m.If(comes & ~goes):
                m.d.sync += flying.eq(flying + 1)
            with m.Elif(goes & ~comes):
                m.d.sync += flying.eq(flying - 1)
        m.d.comb += self.busy.eq(queue.r_rdy | ~(self.bank_busy == 0) | (queue.level != 0))

        m.d.comb += [
            self.compute_valid.eq(fire),
            self.w_load.eq(takes_b),
            self.clear.eq(is_os & ~started),
            self.ws.eq(~is_os),
            self.capture.eq(is_os & last),
            self.act_low.eq(head.act_low),
        ]

        # A WS row's sums, and the drain of an OS tile: the bottom row leaves first
        address = Signal(self._address_bits, name="compute_address")
        m.d.comb += [
            address.eq(head.acc_base + count),
            fired.valid.eq(fire & ~is_os),
            fired.accumulate.eq(head.accumulate),
            fired.shift.eq(head.shift),
            fired.address.eq(address),
            fired.last.eq(last),
            fired.signal.eq(head.signal),
        ]
        drain = Signal(self._sum, name="drain_word")
        base = Signal(self._address_bits)
        out_rows = Signal(head.out_rows.shape())
        with m.If(fire & is_os & last):
            m.d.sync += [
                drain_active.eq(1),
                drain_row.eq(self._rows - 1),
                base.eq(head.acc_base),
                out_rows.eq(head.out_rows),
                drain.accumulate.eq(head.accumulate),
                drain.shift.eq(head.shift),
                drain.signal.eq(head.signal),
            ]
        with m.Elif(drain_active):
            m.d.sync += [drain_active.eq(~drain_last), drain_row.eq(drain_row - 1)]
        m.d.comb += [
            drain_bank.eq(one_bank(drain_active, base >> self._bank_bits)),
            drained.eq(drain),
            drained.valid.eq(drain_active & (drain_row < out_rows)),
            drained.address.eq(base + drain_row),
            drained.last.eq(drain_last),
        ]

    def _sums(self, m: Module, fired, drained, drain_row: Signal, drain_active: Signal) -> None:
        """Both paths' words, until their sums are at the bottom of column 0."""
        layout = data.StructLayout(
            {"active": 1, "row": drain_row.shape(), "sum": self._sum, "drain": self._sum}
        )
        entry = Signal(layout, name="sum_entry")
        m.d.comb += [
            entry.active.eq(drain_active),
            entry.row.eq(drain_row),
            entry.sum.eq(fired),
            entry.drain.eq(drained),
        ]
        # R + 2 registers in all
        chain = Signal(layout.size * (self._rows + 1), name="sum_chain")
        m.d.sync += chain.eq(Cat(entry.as_value(), chain))
        end = Signal(layout, name="sum_end")
        m.d.comb += end.eq(chain[-layout.size :])
        m.d.sync += [self.drain_valid.eq(end.active), self.drain_row.eq(end.row)]
        for word, out, name in ((end.sum, self.sums, "sum"), (end.drain, self.drains, "drain")):
            # The last register also learns whether its accumulator is still on the way through
            # the lanes' pipeline.
            older = Signal(self._sum, name=f"{name}_older")
            m.d.sync += [
                older.eq(out),
                out.eq(word),
                out.forward_1.eq(out.valid & (out.address == word.address)),
                out.forward_2.eq(older.valid & (older.address == word.address)),
            ]


def _recent(m: Module, name: str, value: Signal, cycles: int) -> Value:
    """The bits that were 1 in any of the last `cycles` cycles, this one not counted."""
    chain = [value]
    for stage in range(cycles):
        chain.append(Signal.like(value, name=f"{name}_{stage}"))
        m.d.sync += chain[-1].eq(chain[-2])
    return reduce(or_, chain[1:])
