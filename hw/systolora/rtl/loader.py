"""Executes LOADs: rows of memory into the operand buffers."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.contract import Buffer, Layout
from systolora.rtl.layouts import INDEX_BITS, LoadLayout
from systolora.rtl.memory_reader import BeatLayout
from systolora.rtl.operand_buffer import BufferWriteLayout
from systolora.rtl.placement import place
from systolora.rtl.regions import MemoryCode, RegionLayout
from systolora.rtl.token_counter import TokenCounter

__all__ = ["Loader"]


class Loader(wiring.Component):
    """Takes LOADs in order, asks a MemoryReader for their rows, stores the beats (docs/system.md).

    A request goes out as soon as the LOAD has its tokens, while rows of earlier ones still come: up
    to DEPTH of them. A beat is stored in the cycle in which it comes.

    Parameters
    ----------
    rows, cols, segments : the array
    data_bits, address_bits : the bus
    act_entry_bytes, act_entries : the activation buffer
    wgt_entry_bytes, wgt_entries : the stationary buffer, entries of one bank

    Members
    -------
    items : In(stream.Signature(LoadLayout))
    hold : no request is sent
    exec_token, store_token : tokens given by EXEC and by POST
    token_out : a LOAD with signal_exec is complete
    request, beats, response : of the MemoryReader
    act_en, act_write, wgt_en, wgt_write : to the buffers
    fault_valid, fault_code, fault_index : a request failed
    waits : a LOAD waits for a token
    busy : LOADs are in work
    """

    DEPTH = 4

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        segments: int,
        data_bits: int,
        address_bits: int,
        act_entry_bytes: int,
        act_entries: int,
        wgt_entry_bytes: int,
        wgt_entries: int,
    ) -> None:
        self.design_key: Hashable = (
            rows, cols, segments, data_bits, address_bits,
            act_entry_bytes, act_entries, wgt_entry_bytes, wgt_entries,
        )  # fmt: skip
        self._segments = segments
        self._groups = {Layout.LEFT: cols // segments, Layout.TOP: rows // segments}
        self._item = LoadLayout(address_bits)
        bus_bytes = data_bits // 8
        self._parts = [size // bus_bytes for size in (act_entry_bytes, wgt_entry_bytes)]
        writes = [
            BufferWriteLayout(
                (banks - 1).bit_length(),
                (entries - 1).bit_length(),
                parts.bit_length() - 1,
                data_bits,
            )
            for banks, entries, parts in zip(
                (1, segments), (act_entries, wgt_entries), self._parts, strict=True
            )
        ]
        super().__init__(
            {
                "items": In(stream.Signature(self._item)),
                "hold": In(1),
                "exec_token": In(1),
                "store_token": In(1),
                "token_out": Out(1),
                "request": Out(stream.Signature(RegionLayout(address_bits))),
                "beats": In(stream.Signature(BeatLayout(data_bits))),
                "response": In(stream.Signature(MemoryCode)),
                "act_en": Out(1),
                "act_write": Out(writes[0]),
                "wgt_en": Out(1),
                "wgt_write": Out(writes[1]),
                "fault_valid": Out(1),
                "fault_code": Out(MemoryCode),
                "fault_index": Out(INDEX_BITS),
                "waits": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        item = self.items.payload
        m.submodules.pending = pending = fifo.SyncFIFOBuffered(
            width=self._item.size, depth=self.DEPTH
        )
        exec_tokens, store_tokens = TokenCounter(), TokenCounter()
        place(m, platform, "exec_tokens", exec_tokens)
        place(m, platform, "store_tokens", store_tokens)

        may, go = Signal(), Signal()
        m.d.comb += [
            exec_tokens.give.eq(self.exec_token),
            store_tokens.give.eq(self.store_token),
            may.eq((~item.wait_exec | exec_tokens.any) & (~item.wait_store | store_tokens.any)),
            self.waits.eq(self.items.valid & ~may),
            self.request.valid.eq(self.items.valid & may & pending.w_rdy & ~self.hold),
            self.request.payload.address.eq(item.address),
            self.request.payload.rows.eq(item.rows),
            self.request.payload.row_bytes.eq(item.row_bytes),
            self.request.payload.stride.eq(item.stride),
            go.eq(self.request.valid & self.request.ready),
            self.items.ready.eq(go),
            exec_tokens.take.eq(go & item.wait_exec),
            store_tokens.take.eq(go & item.wait_store),
            pending.w_data.eq(item),
            pending.w_en.eq(go),
        ]

        head = Signal(self._item)
        m.d.comb += head.eq(pending.r_data)
        self._store(m, head, pending.r_rdy)
        good = Signal()
        m.d.comb += [
            self.response.ready.eq(1),
            pending.r_en.eq(self.response.valid),
            good.eq(self.response.payload == MemoryCode.OK),
            self.token_out.eq(self.response.valid & good & head.signal_exec),
            self.fault_valid.eq(self.response.valid & ~good),
            self.fault_code.eq(self.response.payload),
            self.fault_index.eq(head.index),
            self.busy.eq(self.items.valid | (pending.level != 0)),
        ]
        return m

    def _store(self, m: Module, head, valid: Signal) -> None:
        """Where each beat goes: counters of the row in its group, of the bank and of the entry."""
        take = Signal()
        m.d.comb += [self.beats.ready.eq(valid), take.eq(valid & self.beats.valid)]
        begun = Signal()
        place_ = data.StructLayout(
            {
                "row": head.base.shape(),  # entry of the present row
                "group": head.base.shape(),  # entry of the first row of the group
                "entry": head.base.shape(),  # in the row
                "part": max(self._parts).bit_length() - 1,
                "inner": range(max(self._groups.values())),
                "bank": (self._segments - 1).bit_length(),
            }
        )
        saved = Signal(place_, name="saved", reset_less=True)
        now = Signal(place_, name="now")
        after = Signal(place_, name="after")
        with m.If(begun):
            m.d.comb += now.eq(saved)
        with m.Else():
            m.d.comb += [now.row.eq(head.base), now.group.eq(head.base)]

        is_wgt = Signal()
        m.d.comb += is_wgt.eq(head.buffer == Buffer.WGT)
        next_row = Signal.like(now.row)
        group_last, part_last = Signal(), Signal()
        m.d.comb += [
            next_row.eq(now.row + head.row_step),
            group_last.eq(
                Mux(
                    head.layout == Layout.LEFT,
                    now.inner == self._groups[Layout.LEFT] - 1,
                    now.inner == self._groups[Layout.TOP] - 1,
                )
            ),
            part_last.eq(
                Mux(is_wgt, now.part == self._parts[1] - 1, now.part == self._parts[0] - 1)
            ),
            after.eq(now),
        ]
        with m.If(~self.beats.payload.last_of_row):
            with m.If(part_last):
                m.d.comb += [after.part.eq(0), after.entry.eq(now.entry + 1)]
            with m.Else():
                m.d.comb += after.part.eq(now.part + 1)
        with m.Else():
            m.d.comb += [after.part.eq(0), after.entry.eq(0), after.row.eq(next_row)]
            with m.If(head.layout != Layout.PLAIN):
                m.d.comb += after.inner.eq(now.inner + 1)
                with m.If(group_last):
                    m.d.comb += [after.inner.eq(0), after.bank.eq(now.bank + 1)]
                    with m.If(now.bank == self._segments - 1):
                        m.d.comb += [after.bank.eq(0), after.group.eq(next_row)]
                    with m.Else():
                        m.d.comb += after.row.eq(now.group)
        with m.If(take):
            m.d.sync += [saved.eq(after), begun.eq(~self.beats.payload.last)]
        for number, (enable, write) in enumerate(
            ((self.act_en, self.act_write), (self.wgt_en, self.wgt_write))
        ):
            m.d.comb += [
                enable.eq(take & (is_wgt == number)),
                write.bank.eq(now.bank),
                write.entry.eq(now.row + now.entry),
                write.part.eq(now.part),
                write.data.eq(self.beats.payload.data),
            ]
