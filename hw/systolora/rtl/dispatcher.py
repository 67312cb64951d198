"""Takes a program apart: descriptors are checked in order and sent to the queues."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.contract import Action, Buffer, Dataflow, Edge, Fault, Kind, Layout
from systolora.rtl.bounds import BoundsCheck, BoundsLayout
from systolora.rtl.csr import FaultLayout
from systolora.rtl.descriptor_check import WORD_BITS, DescriptorCheck
from systolora.rtl.layouts import (
    INDEX_BITS,
    ControlDescriptor,
    ExecDescriptor,
    ExecLayout,
    LoadDescriptor,
    LoadLayout,
    PostDescriptor,
    PostLayout,
    StreamReadLayout,
    StreamWriteLayout,
)
from systolora.rtl.memory_reader import BeatLayout
from systolora.rtl.placement import place

__all__ = ["Dispatcher"]

#: Channels of tokens: the descriptor that gives and its field, the one that takes and its field.
CHANNELS = (
    ((Kind.LOAD, "signal_exec"), (Kind.EXEC, "wait_load")),
    ((Kind.EXEC, "signal_load"), (Kind.LOAD, "wait_exec")),
    ((Kind.EXEC, "signal_post"), (Kind.POST, "wait_exec")),
    ((Kind.POST, "signal_exec"), (Kind.EXEC, "wait_post")),
    ((Kind.POST, "signal_load"), (Kind.LOAD, "wait_store")),
    ((Kind.POST, "signal_stream"), (Kind.POST, "wait_store")),
)


class Dispatcher(wiring.Component):
    """Receives a program's beats and executes its CONTROLs; the rest goes to the queues.

    One descriptor at a time: it is checked (docs/system.md, Errors) and leaves when every queue
    that it goes to has a place. A LOAD or POST takes about 12 cycles and the bits of its counts, an
    EXEC about 20. After END, or a fault, it takes nothing more until it is reset.

    Parameters
    ----------
    rows, cols, segments, int16, fused, acc_depth : the Core; fused : with fused_quantize
    data_bits, address_bits : the bus
    act_entry_bytes, act_entries, wgt_entry_bytes, wgt_entries : the buffers

    Members
    -------
    beats : In(stream.Signature(BeatLayout)): the program
    length : descriptors of the program
    read_base, read_limit, write_base, write_limit : the windows
    word_base : what stochastic ROWS add to their word
    step_tick : a STEP is executed
    load, exec, post, reads, writes : the queues
    ended : END or a fault was reached
    fault : why, and the number of the descriptor
    received : descriptors that have come
    dispatched : a descriptor leaves, or is executed here
    """

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        segments: int,
        int16: bool,
        fused: bool,
        acc_depth: int,
        data_bits: int,
        address_bits: int,
        act_entry_bytes: int,
        act_entries: int,
        wgt_entry_bytes: int,
        wgt_entries: int,
    ) -> None:
        self.design_key: Hashable = (
            rows, cols, segments, int16, fused, acc_depth, data_bits, address_bits,
            act_entry_bytes, act_entries, wgt_entry_bytes, wgt_entries,
        )  # fmt: skip
        self._check = {
            "rows": rows,
            "cols": cols,
            "segments": segments,
            "int16": int16,
            "fused": fused,
            "acc_depth": acc_depth,
            "bus_bytes": data_bits // 8,
            "address_bits": address_bits,
        }
        self._rows, self._cols, self._segments = rows, cols, segments
        self._acc_depth = acc_depth
        self._data_bits, self._address_bits = data_bits, address_bits
        self._entry_bytes = (act_entry_bytes, wgt_entry_bytes)
        self._entries = (act_entries, wgt_entries)
        super().__init__(
            {
                "beats": In(stream.Signature(BeatLayout(data_bits))),
                "length": In(INDEX_BITS),
                "read_base": In(address_bits),
                "read_limit": In(address_bits + 1),
                "write_base": In(address_bits),
                "write_limit": In(address_bits + 1),
                "word_base": In(32),
                "step_tick": Out(1),
                "load": Out(stream.Signature(LoadLayout(address_bits))),
                "exec": Out(stream.Signature(ExecLayout)),
                "post": Out(stream.Signature(PostLayout(fused))),
                "reads": Out(stream.Signature(StreamReadLayout(address_bits))),
                "writes": Out(stream.Signature(StreamWriteLayout(address_bits))),
                "ended": Out(1),
                "fault": Out(FaultLayout),
                "received": Out(INDEX_BITS),
                "dispatched": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(WORD_BITS, reset_less=True)
        check = DescriptorCheck(**self._check)
        bounds = BoundsCheck(self._address_bits)
        place(m, platform, "descriptor_check", check)
        place(m, platform, "bounds_check", bounds)
        m.d.comb += check.word.eq(word)
        verdict = check.verdict
        views = {}
        for kind, layout in (
            (Kind.LOAD, LoadDescriptor),
            (Kind.EXEC, ExecDescriptor),
            (Kind.POST, PostDescriptor(self._check["fused"])),
            (Kind.CONTROL, ControlDescriptor),
        ):
            views[kind] = Signal(layout, name=kind.name.lower())
            m.d.comb += views[kind].eq(word)
        kind = views[Kind.CONTROL].kind

        index = Signal(INDEX_BITS, reset_less=True)  # of the descriptor in work
        part = Signal(range(max(WORD_BITS // self._data_bits, 2)))
        job = Signal(2)
        job_last, too_low, split = Signal(), Signal(), Signal()
        job_fault = Signal(4)
        self._jobs(m, views, verdict, job, bounds, job_last, too_low, split, job_fault)
        token_bad, count = Signal(), Signal()
        self._tokens(m, kind, views, token_bad, count)
        all_ready, push = Signal(), Signal()
        self._queues(m, kind, views, verdict, index, all_ready, push)

        def fail(code) -> None:
            m.d.sync += [self.ended.eq(1), self.fault.code.eq(code), self.fault.index.eq(index)]
            m.next = "ENDED"

        # A descriptor is a beat or several; of the widest buses, a part of one
        whole = max(WORD_BITS // self._data_bits, 1)
        many = self._data_bits > WORD_BITS
        places = range(0, self._data_bits, WORD_BITS)
        rest = Signal(max(self._data_bits - WORD_BITS, WORD_BITS), reset_less=True)
        held = Signal(range(max(len(places), 2)))  # descriptors in `rest`
        with m.FSM():
            with m.State("TAKE"):
                with m.If(self.received == self.length):
                    m.d.sync += [
                        self.ended.eq(1),
                        self.fault.code.eq(Fault.END),
                        self.fault.index.eq(self.length),
                    ]
                    m.next = "ENDED"
                with m.Else():
                    m.d.comb += self.beats.ready.eq(held == 0)
                    m.d.sync += index.eq(self.received)
                    with m.If(self.beats.valid | (held != 0)):
                        data = self.beats.payload.data
                        if many:
                            come = [data[at : at + WORD_BITS] for at in places[1:]]
                            kept = [rest[at : at + WORD_BITS] for at in places[1:-1]]
                            moves = zip(kept, come[:-1], strict=True)
                            m.d.sync += [
                                word.eq(Mux(held != 0, rest, data)),
                                # Nothing has to follow the last one
                                rest.eq(Cat(*(Mux(held != 0, *move) for move in moves), come[-1])),
                                held.eq(held - 1),  # from 0 to all of a beat but the first
                            ]
                        else:
                            m.d.sync += word.eq(Cat(word, data)[self._data_bits :])
                        m.d.sync += part.eq(part + 1)
                        with m.If(part == whole - 1):
                            m.d.sync += [part.eq(0), self.received.eq(self.received + 1)]
                            m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += job.eq(0)
                m.next = "JUDGE"
            with m.State("JUDGE"):
                with m.If(verdict.kind):
                    fail(Fault.KIND)
                with m.Elif(verdict.field):
                    fail(Fault.FIELD)
                with m.Elif(verdict.buffer):
                    fail(Fault.BUFFER)
                with m.Elif((kind == Kind.POST) & verdict.align):
                    fail(Fault.ALIGN)
                with m.Elif((kind == Kind.POST) & verdict.outside):
                    fail(Fault.WINDOW)
                with m.Elif(kind == Kind.CONTROL):
                    m.next = "CONTROL"
                with m.Elif((kind == Kind.POST) & ~verdict.reads & ~verdict.writes):
                    m.next = "TOKENS"
                with m.Else():
                    with m.If((kind == Kind.POST) & ~verdict.reads):
                        m.d.sync += job.eq(1)
                    m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.comb += bounds.start.eq(1)
                m.next = "WAIT"
            with m.State("WAIT"), m.If(bounds.done):
                with m.If(bounds.over | too_low | split):
                    fail(job_fault)
                with m.Elif((kind == Kind.LOAD) & (job == 0) & verdict.align):
                    fail(Fault.ALIGN)
                with m.Elif((kind == Kind.LOAD) & (job == 0) & verdict.outside):
                    fail(Fault.WINDOW)
                with m.Elif(job_last):
                    m.next = "TOKENS"
                with m.Else():
                    m.d.sync += job.eq(job + 1)
                    m.next = "MEASURE"
            with m.State("TOKENS"):
                with m.If(token_bad):
                    fail(Fault.TOKEN)
                with m.Else():
                    m.d.comb += count.eq(1)
                    m.next = "PUSH"
            with m.State("PUSH"):
                m.d.comb += push.eq(all_ready)
                with m.If(all_ready):
                    m.d.comb += self.dispatched.eq(1)
                    m.next = "TAKE"
            with m.State("CONTROL"):
                m.d.comb += self.dispatched.eq(1)
                m.next = "TAKE"
                with m.If(views[Kind.CONTROL].action == Action.STEP):
                    m.d.comb += self.step_tick.eq(1)
                with m.Elif(views[Kind.CONTROL].action == Action.END):
                    m.d.sync += self.ended.eq(1)
                    m.next = "ENDED"
            with m.State("ENDED"):
                pass
        return m

    def _jobs(
        self, m: Module, views, verdict, job, bounds, job_last, too_low, split, job_fault
    ) -> None:
        """The regions whose ends must be computed: up to three of a descriptor."""
        region = Signal(BoundsLayout(self._address_bits), name="job_region")
        base_limit = Signal(self._address_bits, name="job_base")
        m.d.comb += [bounds.region.eq(region), too_low.eq(region.base < base_limit)]
        m.d.comb += job_fault.eq(Fault.BUFFER)
        load, item, post = views[Kind.LOAD], views[Kind.EXEC], views[Kind.POST]
        bus_bits = (self._data_bits // 8).bit_length() - 1
        unit = min(self._rows, self._cols)

        def words(size):
            """Bytes, rounded up to whole words of the bus."""
            count = (size + (self._data_bits // 8 - 1)) >> bus_bits
            return count << bus_bits

        with m.Switch(views[Kind.CONTROL].kind):
            with m.Case(Kind.LOAD):
                with m.If(job == 0):
                    self._load_buffer(m, load, region)
                with m.Else():
                    m.d.comb += [
                        job_last.eq(1),
                        job_fault.eq(Fault.WINDOW),
                        base_limit.eq(self.read_base),
                        region.base.eq(load.address),
                        region.outer.eq(load.rows - 1),
                        region.outer_stride.eq(load.stride),
                        region.tail.eq(words(load.row_bytes)),
                        region.limit.eq(self.read_limit),
                    ]
            with m.Case(Kind.EXEC):
                is_os = item.dataflow == Dataflow.OS
                left = ~is_os & (item.edge == Edge.LEFT)
                m.d.comb += region.inner.eq(item.repeat - 1)
                with m.If(job == 0):
                    m.d.comb += [
                        region.base.eq(item.act_base),
                        region.outer.eq(item.length - 1),
                        region.outer_stride.eq(item.act_stride),
                        region.inner_stride.eq(item.act_step),
                        region.tail.eq(1 + item.act_wide),
                        region.limit.eq(self._entries[0] * self._entry_bytes[0] // self._rows),
                    ]
                with m.Elif(job == 1):
                    line = Mux(left, self._rows // unit, self._cols // unit)
                    lines = Mux(
                        left, self._cols // self._segments - 1, self._rows // self._segments - 1
                    )
                    m.d.comb += [
                        region.base.eq(item.wgt_base),
                        region.outer.eq(Mux(is_os, item.length - 1, lines)),
                        region.outer_stride.eq(item.wgt_stride),
                        region.inner_stride.eq(item.wgt_step),
                        region.tail.eq(line << item.wgt_wide),
                        region.limit.eq(self._entries[1] * self._entry_bytes[1] // unit),
                    ]
                with m.Else():
                    bank_bits = (self._acc_depth // ACC_BANKS - 1).bit_length()
                    short = (item.repeat == 1) | (item.acc_step >= self._rows)
                    last_row = Signal(len(bounds.end), name="acc_last")
                    m.d.comb += [
                        job_last.eq(1),
                        region.base.eq(item.acc_base),
                        region.inner_stride.eq(item.acc_step),
                        region.tail.eq(Mux(is_os, Mux(short, item.last, self._rows), item.length)),
                        region.limit.eq(self._acc_depth),
                        last_row.eq(bounds.end - 1),
                        split.eq((last_row >> bank_bits) != (item.acc_base >> bank_bits)),
                    ]
            with m.Default():
                m.d.comb += [job_fault.eq(Fault.WINDOW), region.outer.eq(verdict.rows - 1)]
                with m.If(job == 0):
                    offset = post.in_address[:bus_bits]
                    m.d.comb += [
                        job_last.eq(~verdict.writes),
                        base_limit.eq(self.read_base),
                        region.base.eq(post.in_address - offset),
                        region.outer_stride.eq(post.in_stride),
                        region.tail.eq(words(verdict.in_bytes + offset)),
                        region.limit.eq(self.read_limit),
                    ]
                with m.Else():
                    m.d.comb += [
                        job_last.eq(1),
                        base_limit.eq(self.write_base),
                        region.base.eq(post.out_address),
                        region.outer_stride.eq(post.out_stride),
                        region.tail.eq(verdict.out_bytes),
                        region.limit.eq(self.write_limit),
                    ]

    def _load_buffer(self, m: Module, load, region) -> None:
        """The entries that a LOAD fills, of the fullest bank."""
        entries = [
            (load.row_bytes + (size - 1)) >> (size.bit_length() - 1) for size in self._entry_bytes
        ]
        is_wgt = load.buffer == Buffer.WGT
        rows = Signal(16, name="load_rows")
        m.d.comb += [
            rows.eq(load.rows - 1),
            region.base.eq(load.base),
            region.outer_stride.eq(load.row_step),
            region.tail.eq(Mux(is_wgt, entries[1], entries[0])),
            region.limit.eq(Mux(is_wgt, self._entries[1], self._entries[0])),
        ]
        with m.Switch(load.layout):
            for layout, group in (
                (Layout.LEFT, self._cols // self._segments),
                (Layout.TOP, self._rows // self._segments),
            ):
                bits = group.bit_length() - 1
                tiles = rows >> (bits + self._segments.bit_length() - 1)
                with m.Case(layout):
                    m.d.comb += region.outer.eq((tiles << bits) | (group - 1))
            with m.Default():
                m.d.comb += region.outer.eq(rows)

    def _tokens(self, m: Module, kind, views, bad: Signal, count: Signal) -> None:
        """Tokens in program order: what a wait may rely on."""
        wrong = []
        for (giver, signal), (taker, wait) in CHANNELS:
            name = f"{giver.name}_{taker.name}".lower()
            held = Signal(range(contract.TOKENS_MAX + 1), name=f"tokens_{name}")
            after = Signal(range(-1, contract.TOKENS_MAX + 2), name=f"after_{name}")
            gives = Signal(name=f"gives_{name}")
            takes = Signal(name=f"takes_{name}")
            m.d.comb += [
                gives.eq((kind == giver) & getattr(views[giver], signal)),
                takes.eq((kind == taker) & getattr(views[taker], wait)),
                after.eq(held + gives - takes),
            ]
            wrong.append((takes & (held == 0)) | (after > contract.TOKENS_MAX))
            with m.If(count):
                m.d.sync += held.eq(after)
        m.d.comb += bad.eq(Cat(*wrong).any())

    def _queues(
        self, m: Module, kind, views, verdict, index, all_ready: Signal, push: Signal
    ) -> None:
        """What each queue gets of a descriptor."""
        load, item, post = views[Kind.LOAD], views[Kind.EXEC], views[Kind.POST]
        stores, reads = Signal(), Signal()
        m.d.comb += [
            reads.eq(verdict.reads),
            stores.eq(verdict.writes | post.signal_load | post.signal_stream),
        ]
        with m.Switch(kind):
            with m.Case(Kind.LOAD):
                m.d.comb += [all_ready.eq(self.load.ready), self.load.valid.eq(push)]
            with m.Case(Kind.EXEC):
                m.d.comb += [all_ready.eq(self.exec.ready), self.exec.valid.eq(push)]
            with m.Default():
                m.d.comb += [
                    all_ready.eq(
                        self.post.ready
                        & (self.reads.ready | ~reads)
                        & (self.writes.ready | ~stores)
                    ),
                    self.post.valid.eq(push),
                    self.reads.valid.eq(push & reads),
                    self.writes.valid.eq(push & stores),
                ]
        for name in self.load.payload.shape().members:
            if name != "index":
                m.d.comb += self.load.payload[name].eq(load[name])
        for name in ExecLayout.members:
            m.d.comb += self.exec.payload[name].eq(item[name])
        for name in self.post.payload.shape().members:
            if name not in ("wait", "signal", "word0"):
                m.d.comb += self.post.payload[name].eq(post[name])
        m.d.comb += [
            self.load.payload.index.eq(index),
            self.post.payload.wait.eq(post.wait_exec),
            self.post.payload.signal.eq(post.signal_exec),
            self.post.payload.word0.eq(post.word0 + self.word_base),
        ]
        read, write = self.reads.payload, self.writes.payload
        scale_out = post.opcode == contract.Opcode.SCALE_READ
        m.d.comb += [
            read.address.eq(post.in_address),
            read.stride.eq(post.in_stride),
            read.rows.eq(verdict.rows),
            read.cols.eq(verdict.in_cols),
            read.width.eq(verdict.in_width),
            read.wait_store.eq(post.wait_store),
            read.index.eq(index),
            write.address.eq(post.out_address),
            write.stride.eq(post.out_stride),
            write.rows.eq(verdict.rows),
            write.cols.eq(verdict.out_cols),
            write.width.eq(verdict.out_width),
            write.writes.eq(verdict.writes),
            write.info.eq(post.opcode != contract.Opcode.ROWS),
            write.scale.eq(scale_out),
            write.signal_load.eq(post.signal_load),
            write.signal_stream.eq(post.signal_stream),
            write.index.eq(index),
        ]
