"""The accelerator: registers, memory engines and the engine that a program drives."""

from collections.abc import Hashable

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora.config import AcceleratorConfig
from systolora.contract import REGISTER_ADDRESS_BITS, REGISTER_BITS
from systolora.rtl.axi import MemorySignature, ReadSignature, WriteSignature
from systolora.rtl.axi_lite import LiteSignature
from systolora.rtl.channels import ChannelGang
from systolora.rtl.core import Core
from systolora.rtl.csr import Csr
from systolora.rtl.engine import CLIENTS, Engine
from systolora.rtl.flow import link
from systolora.rtl.memory_reader import MemoryReader
from systolora.rtl.memory_writer import MemoryWriter
from systolora.rtl.placement import place
from systolora.rtl.read_arbiter import ReadArbiter
from systolora.rtl.run_control import RunControl

__all__ = ["Top"]


class Top(wiring.Component):
    """Runs programs from memory (docs/system.md); structure only.

    Three readers (program, operands, streams) share the read channels; one writer has the write
    channels.

    Members
    -------
    s_axil : registers (docs/contract.md)
    m_axi : memory; with several channels an array of them, which ChannelGang joins
    irq : a run ended, until software clears it
    """

    module_name = "systolora_top"

    #: Words of a program that are fetched ahead.
    FETCH_BEATS = 64
    BURST_BEATS = 16

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.design_key: Hashable = config
        memory = Out(MemorySignature(config.bus_bits, config.address_bits))
        super().__init__(
            {
                "s_axil": In(LiteSignature(REGISTER_ADDRESS_BITS, REGISTER_BITS)),
                "m_axi": memory.array(config.channels) if config.channels > 1 else memory,
                "irq": Out(1),
            }
        )

    @property
    def latencies(self) -> dict[str, int]:
        """Cycles, for the manifest."""
        return {**Core(self.config).latencies, "register_access": Csr.LATENCY}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        bits = {"data_bits": config.beat_bits, "address_bits": config.address_bits}
        csr = Csr(config)
        control = RunControl(**bits)
        engine = Engine(config)
        fetch_bursts = min(4, config.outstanding)
        fetch = MemoryReader(
            **bits,
            outstanding=fetch_bursts,
            burst_beats=self.BURST_BEATS,
            queue_beats=self.FETCH_BEATS,
        )
        readers = [
            MemoryReader(
                **bits,
                outstanding=config.outstanding,
                burst_beats=self.BURST_BEATS,
                queue_beats=max(2 * config.outstanding, 2 * self.BURST_BEATS, ahead),
            )
            for ahead in (0, config.stream_beats)
        ]
        writer = MemoryWriter(
            **bits,
            outstanding=config.outstanding,
            burst_beats=self.BURST_BEATS,
            align=min(config.cols, 8),  # bytes of the narrowest row
        )
        arbiter = ReadArbiter(
            clients=3, **bits, depth=2 * config.outstanding + fetch_bursts
        )  # fmt: skip
        place(m, platform, "csr", csr)
        place(m, platform, "run_control", control)
        place(m, platform, "engine", engine, reset=control.engine_reset)
        place(m, platform, "fetch_reader", fetch)
        place(m, platform, "load_reader", readers[0])
        place(m, platform, "stream_reader", readers[1])
        place(m, platform, "writer", writer)
        place(m, platform, "arbiter", arbiter)

        # Bus
        lite = LiteSignature(REGISTER_ADDRESS_BITS, REGISTER_BITS)
        self._channels(m, csr.s_axil, self.s_axil, lite)
        for number, reader in enumerate((fetch, *readers)):
            self._channels(
                m, reader.m_axi, arbiter.clients[number], ReadSignature(*bits.values()), inner=False
            )
        axi = self._memory(m, platform)
        self._channels(m, arbiter.m_axi, axi, ReadSignature(*bits.values()), inner=False)
        self._channels(m, writer.m_axi, axi, WriteSignature(*bits.values()), inner=False)

        # Memory engines
        settings = csr.settings
        for reader in (fetch, *readers):
            m.d.comb += [
                reader.base.eq(settings.read_base),
                reader.limit.eq(settings.read_limit),
            ]
        m.d.comb += [
            writer.base.eq(settings.write_base),
            writer.limit.eq(settings.write_limit),
            fetch.soft_abort.eq(control.fetch_abort),
        ]
        link(m, control.fetch_request, fetch.request)
        link(m, fetch.response, control.fetch_response)
        link(m, fetch.beats, engine.program)
        for client, part in zip(CLIENTS, (*readers, writer), strict=True):
            link(m, getattr(engine, f"{client}_request"), part.request)
            link(m, part.response, getattr(engine, f"{client}_response"))
            m.d.comb += part.soft_abort.eq(control.soft_abort)
        link(m, readers[0].beats, engine.load_beats)
        link(m, readers[1].beats, engine.reads_beats)
        link(m, engine.writes_beats, writer.beats)

        # Control
        for name in ("read_base", "read_limit", "write_base", "write_limit"):
            m.d.comb += getattr(engine, name).eq(settings[name])
        m.d.comb += [
            engine.length.eq(settings.program_length),
            engine.word_base.eq(csr.word_base),
            engine.hold.eq(control.soft_abort),
            csr.step_tick.eq(engine.step_tick),
            control.start.eq(csr.start),
            control.abort.eq(csr.soft_abort),
            control.settings.eq(settings),
            control.runs.eq(csr.runs),
            control.engine_busy.eq(engine.busy),
            control.engine_takes.eq(engine.program.ready),
            control.engine_ended.eq(engine.ended),
            control.engine_fault.eq(engine.fault),
            control.received.eq(engine.received),
            control.fetch_busy.eq(fetch.busy),
            control.memory_busy.eq(readers[0].busy | readers[1].busy | writer.busy),
            csr.runs_left.eq(control.runs_left),
            csr.busy.eq(control.busy),
            csr.finished.eq(control.finished),
            csr.fault.eq(control.fault),
            # Between runs a bit stays as software left it; what the engine still holds of the
            # run before goes with its reset
            csr.sticky.eq(Mux(control.busy & ~control.engine_reset, engine.sticky, 0)),
            self.irq.eq(csr.irq),
        ]
        for number, fault in enumerate(engine.memory_fault):
            m.d.comb += control.memory_fault[number].eq(fault)

        # Counters of the bus
        strobes = Signal(config.beat_bytes)
        wrote = Signal()
        read = Signal()
        m.d.sync += [
            strobes.eq(axi.wstrb),
            wrote.eq(axi.wvalid & axi.wready),
            read.eq(axi.rvalid & axi.rready),
        ]
        m.d.comb += csr.events.eq(engine.events)
        m.d.comb += [csr.events.read_bytes.eq(0), csr.events.write_bytes.eq(0)]
        with m.If(read):
            m.d.comb += csr.events.read_bytes.eq(config.beat_bytes)
        with m.If(wrote):
            written: Value = Const(0, 1)
            for lane in range(config.beat_bytes):
                written = written + strobes[lane]
            m.d.comb += csr.events.write_bytes.eq(written)
        return m

    def _memory(self, m: Module, platform: object):
        """Memory as the engines see it: one port, as wide as all channels."""
        config = self.config
        if config.channels == 1:
            return self.m_axi
        gang = ChannelGang(
            channels=config.channels, data_bits=config.bus_bits, address_bits=config.address_bits
        )
        place(m, platform, "channel_gang", gang)
        bus = MemorySignature(config.bus_bits, config.address_bits)
        for inner, outer in zip(gang.m_axi, self.m_axi, strict=True):
            self._channels(m, inner, outer, bus, inner=False)
        return gang.wide

    def _channels(self, m: Module, one, other, signature, *, inner: bool = True) -> None:
        """Joins the channels of `one` and `other`, which both lead away from the master.

        inner : `one` is the slave below, `other` the port of this component; else `one` is the
        master.
        """
        for name, member in signature.members.items():
            a, b = getattr(one, name), getattr(other, name)
            forward = (member.flow == Out) != inner
            m.d.comb += b.eq(a) if forward else a.eq(b)
