"""Everything that a program drives, behind the memory engines: a reset of it ends any program."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.config import AcceleratorConfig
from systolora.contract import QUEUE_DEPTHS, STICKY, Kind
from systolora.rtl.array_feeder import ArrayFeeder
from systolora.rtl.core import Core
from systolora.rtl.csr import EventsLayout, FaultLayout
from systolora.rtl.dispatcher import Dispatcher
from systolora.rtl.flow import link
from systolora.rtl.layouts import INDEX_BITS
from systolora.rtl.loader import Loader
from systolora.rtl.memory_reader import BeatLayout
from systolora.rtl.operand_buffer import OperandBuffer
from systolora.rtl.placement import place
from systolora.rtl.regions import MemoryCode, RegionLayout
from systolora.rtl.stream_reader import StreamReader
from systolora.rtl.stream_writer import StreamWriter

__all__ = ["Engine", "MemoryFaultLayout"]

#: The parts that speak to memory, in the order of the engine's lists.
CLIENTS = ("load", "reads", "writes")


#: A request that failed: its code, and the descriptor that it was for.
MemoryFaultLayout = data.StructLayout({"valid": 1, "code": MemoryCode, "index": INDEX_BITS})


class Engine(wiring.Component):
    """Dispatcher, queues, loader, feeder, buffers, Core and memory streams; structure only.

    Members
    -------
    program : In(stream.Signature(BeatLayout)): the program's beats
    length, read_base, read_limit, write_base, write_limit, word_base : see Dispatcher
    step_tick, ended, fault, received : see Dispatcher
    hold : no memory request and no beat to write is offered
    load_request, load_beats, load_response : of the MemoryReader for LOADs
    reads_request, reads_beats, reads_response : of the one for POSTs
    writes_request, writes_beats, writes_response : of the MemoryWriter
    memory_fault : MemoryFaultLayout, by CLIENTS
    sticky : the Core's status bits
    events : for the counters, without the bytes
    busy : something is in work
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.design_key: Hashable = config
        bits, address = config.beat_bits, config.address_bits
        members: dict[str, wiring.Member] = {
            "program": In(stream.Signature(BeatLayout(bits))),
            "length": In(INDEX_BITS),
            "word_base": In(32),
            "step_tick": Out(1),
            "ended": Out(1),
            "fault": Out(FaultLayout),
            "received": Out(INDEX_BITS),
            "hold": In(1),
            "memory_fault": Out(MemoryFaultLayout).array(len(CLIENTS)),
            "sticky": Out(len(STICKY)),
            "events": Out(EventsLayout),
            "busy": Out(1),
        }
        for way in ("read", "write"):
            members[f"{way}_base"] = In(address)
            members[f"{way}_limit"] = In(address + 1)
        for client in CLIENTS:
            members[f"{client}_request"] = Out(stream.Signature(RegionLayout(address)))
            members[f"{client}_response"] = In(stream.Signature(MemoryCode))
        members["load_beats"] = In(stream.Signature(BeatLayout(bits)))
        members["reads_beats"] = In(stream.Signature(BeatLayout(bits)))
        members["writes_beats"] = Out(stream.Signature(bits))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        array = {"rows": config.rows, "cols": config.cols, "segments": config.segments}
        bus = {"data_bits": config.beat_bits, "address_bits": config.address_bits}
        sizes = {
            "act_entry_bytes": config.act_entry_bytes,
            "act_entries": config.act_entries,
            "wgt_entry_bytes": config.wgt_entry_bytes,
            "wgt_entries": config.wgt_entries,
        }
        dispatcher = Dispatcher(
            **array,
            **bus,
            **sizes,
            int16=config.int16,
            fused=config.fused_quantize,
            acc_depth=config.acc_depth,
        )
        loader = Loader(**array, **bus, **sizes)
        act = OperandBuffer(
            banks=1,
            entries=config.act_entries,
            entry_bytes=config.act_entry_bytes,
            bus_bytes=config.beat_bytes,
            unit_bytes=config.act_unit,
            line_bytes=config.rows,
            planes=config.int16,
            masked=True,
        )
        wgt = OperandBuffer(
            banks=config.segments,
            entries=config.wgt_entries,
            entry_bytes=config.wgt_entry_bytes,
            bus_bytes=config.beat_bytes,
            unit_bytes=config.wgt_unit,
            line_bytes=config.lanes,
            planes=config.int16,
            masked=False,
        )
        feeder = ArrayFeeder(
            **array,
            act_unit_bits=len(act.command.payload.base),
            wgt_unit_bits=len(wgt.command.payload.base),
        )
        core = Core(config)
        lanes = {"cols": config.cols, "acc_bits": config.acc_bits, **bus}
        reader = StreamReader(**lanes, depth=8)
        writer = StreamWriter(**lanes, result_bits=config.result_bits, depth=16)
        for name, component in (
            ("dispatcher", dispatcher),
            ("loader", loader),
            ("act_buffer", act),
            ("wgt_buffer", wgt),
            ("feeder", feeder),
            ("core", core),
            ("stream_reader", reader),
            ("stream_writer", writer),
        ):
            place(m, platform, name, component)

        # Program
        link(m, wiring.flipped(self.program), dispatcher.beats)
        for name in (
            "length", "read_base", "read_limit", "write_base", "write_limit", "word_base",
        ):  # fmt: skip
            m.d.comb += getattr(dispatcher, name).eq(getattr(self, name))
        for name in ("step_tick", "ended", "fault", "received"):
            m.d.comb += getattr(self, name).eq(getattr(dispatcher, name))

        # Queues
        load, execute, post = (QUEUE_DEPTHS[kind] for kind in (Kind.LOAD, Kind.EXEC, Kind.POST))
        waiting = [
            self._queue(m, "load_queue", load, dispatcher.load, loader.items),
            self._queue(m, "exec_queue", execute, dispatcher.exec, feeder.items),
            self._queue(m, "post_queue", post, dispatcher.post, core.post),
            self._queue(m, "reads_queue", post, dispatcher.reads, reader.items),
            self._queue(m, "writes_queue", post, dispatcher.writes, writer.items),
        ]

        # Operands
        m.d.comb += [
            act.write_en.eq(loader.act_en),
            act.write.eq(loader.act_write),
            wgt.write_en.eq(loader.wgt_en),
            wgt.write.eq(loader.wgt_write),
            feeder.act_done.eq(act.done),
            feeder.wgt_done.eq(wgt.done),
        ]
        link(m, feeder.act, act.command)
        link(m, feeder.wgt, wgt.command)
        link(m, feeder.tile, core.tile)
        m.d.comb += [
            core.act.valid.eq(act.lines.valid),
            core.act.payload.eq(act.lines.payload[0]),
            act.lines.ready.eq(core.act.ready),
        ]
        link(m, wgt.lines, core.wgt)
        link(m, reader.rows, core.acc_in)
        link(m, core.acc_out, writer.acc_out)
        link(m, core.result, writer.result)
        link(m, core.info, writer.info)

        # Tokens; those between tiles and post commands are the Core's own
        m.d.comb += [
            feeder.load_token.eq(loader.token_out),
            loader.exec_token.eq(feeder.token_out),
            loader.store_token.eq(writer.token_load),
            reader.token.eq(writer.token_stream),
        ]

        # Memory
        for number, (client, part) in enumerate(
            zip(CLIENTS, (loader, reader, writer), strict=True)
        ):
            link(m, part.request, wiring.flipped(getattr(self, f"{client}_request")))
            link(m, wiring.flipped(getattr(self, f"{client}_response")), part.response)
            fault = self.memory_fault[number]
            m.d.comb += [
                part.hold.eq(self.hold),
                fault.valid.eq(part.fault_valid),
                fault.code.eq(part.fault_code),
                fault.index.eq(part.fault_index),
            ]
        link(m, wiring.flipped(self.load_beats), loader.beats)
        link(m, wiring.flipped(self.reads_beats), reader.beats)
        link(m, writer.beats, wiring.flipped(self.writes_beats))

        # MACs: what counts of the lines that enter the array
        macs = Signal(self.events.macs.shape(), reset_less=True)
        counts = Signal()
        m.d.sync += [
            macs.eq(act.line_lanes * act.line_cols),
            counts.eq(act.lines.valid & act.lines.ready),
        ]
        with m.If(counts):
            m.d.comb += self.events.macs.eq(macs)
        m.d.comb += [
            self.sticky.eq(core.sticky),
            self.events.array_busy.eq(core.array_active),
            self.events.stall_load.eq(feeder.waits),
            self.events.stall_post.eq(core.waits_post),
            self.events.stall_store.eq(core.waits_output),
            self.events.descriptors.eq(dispatcher.dispatched),
            self.busy.eq(
                Cat(
                    *waiting,
                    *(part.busy for part in (loader, feeder, act, wgt, core, reader, writer)),
                ).any()
            ),
        ]
        return m

    def _queue(self, m: Module, name: str, depth: int, source, sink):
        """A queue between two streams; returns: it holds something."""
        shape = source.signature.members["payload"].shape
        if shape != sink.signature.members["payload"].shape:
            raise TypeError(f"{name}: streams of different payloads")
        m.submodules[name] = queue = fifo.SyncFIFOBuffered(width=shape.size, depth=depth)
        m.d.comb += [
            queue.w_data.eq(source.payload),
            queue.w_en.eq(source.valid),
            source.ready.eq(queue.w_rdy),
            sink.payload.eq(queue.r_data),
            sink.valid.eq(queue.r_rdy),
            queue.r_en.eq(sink.ready),
        ]
        return queue.level.any()
