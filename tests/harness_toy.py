"""A stand-in for the accelerator with its ports and registers, to test the harness with.

A run reads PROGRAM_LENGTH blocks of 64 bytes at PROGRAM_ADDRESS and writes them, inverted, from
WRITE_BASE on. WORD_BASE plants an error in what the bus shows (Plant).
"""

from enum import IntEnum

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, flipped

from systolora.config import AcceleratorConfig
from systolora.contract import REGISTER_ADDRESS_BITS, Fault
from systolora.rtl.axi import MemorySignature, ReadSignature, WriteSignature
from systolora.rtl.axi_lite import LiteSignature
from systolora.rtl.csr import Csr
from systolora.rtl.memory_reader import MemoryReader
from systolora.rtl.memory_writer import MemoryWriter
from systolora.rtl.regions import MemoryCode

BLOCK = 64


class Plant(IntEnum):
    """What is wrong with the bus."""

    NOTHING = 0
    UNALIGNED = 1  # a read begins inside a word
    LONG = 2  # bursts of 256 beats, across 4 KiB
    SIZE = 3
    FIXED = 4
    WITHDRAW = 5  # arvalid falls while it waits
    WLAST = 6  # inverted
    WDATA = 7  # changes while it waits
    READ_OUTSIDE = 8  # reads 1 MiB further up
    WRITE_OUTSIDE = 9
    HANG = 10  # takes no beats
    IRQ_EARLY = 11  # the run ends with its bursts under way


class HarnessToy(wiring.Component):
    """Csr, a reader and a writer of memory."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "s_axil": In(LiteSignature(REGISTER_ADDRESS_BITS, 32)),
                "m_axi": Out(MemorySignature(config.bus_bits, config.address_bits)),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        sizes = {"data_bits": config.bus_bits, "address_bits": config.address_bits}
        m.submodules.csr = csr = Csr(config)
        m.submodules.reader = reader = MemoryReader(**sizes, outstanding=8)
        m.submodules.writer = writer = MemoryWriter(**sizes, outstanding=8)
        wiring.connect(m, flipped(self.s_axil), csr.s_axil)
        m.d.comb += self.irq.eq(csr.irq)
        for engine, side in (
            (reader, ReadSignature(*sizes.values())),
            (writer, WriteSignature(*sizes.values())),
        ):
            for name, member in side.members.items():
                inner, outer = getattr(engine.m_axi, name), getattr(self.m_axi, name)
                m.d.comb += outer.eq(inner) if member.flow == Out else inner.eq(outer)

        settings = csr.settings
        aborting = Signal()
        m.d.comb += [
            reader.base.eq(settings.read_base),
            reader.limit.eq(settings.read_limit),
            writer.base.eq(settings.write_base),
            writer.limit.eq(settings.write_limit),
        ]
        for engine, address in (
            (reader, settings.program_address),
            (writer, settings.write_base),
        ):
            m.d.comb += [
                engine.request.payload.address.eq(address),
                engine.request.payload.rows.eq(settings.program_length),
                engine.request.payload.row_bytes.eq(BLOCK),
                engine.request.payload.stride.eq(BLOCK),
                engine.soft_abort.eq(aborting),
            ]
            with m.If(csr.start):
                m.d.sync += engine.request.valid.eq(1)
            with m.Elif(engine.request.ready):
                m.d.sync += engine.request.valid.eq(0)
        m.d.comb += [
            writer.beats.payload.eq(~reader.beats.payload.data),
            writer.beats.valid.eq(reader.beats.valid),
            reader.beats.ready.eq(writer.beats.ready),
        ]
        self._finish(m, csr, reader, writer, aborting)
        self._plant(m, csr)
        return m

    def _finish(self, m: Module, csr: Csr, reader, writer, aborting: Signal) -> None:
        """The end of a run: both answers are there, and after an error the bus is quiet."""
        busy, read_done, write_done = Signal(), Signal(), Signal()
        code = Signal(Fault)
        m.d.comb += [
            csr.busy.eq(busy),
            reader.response.ready.eq(1),
            writer.response.ready.eq(1),
            csr.events.read_bytes.eq(
                Mux(self.m_axi.rvalid & self.m_axi.rready, self._config.beat_bytes, 0)
            ),
        ]
        with m.If(csr.start):
            m.d.sync += [
                busy.eq(1), read_done.eq(0), write_done.eq(0), code.eq(0), aborting.eq(0),
            ]  # fmt: skip
        with m.If(csr.soft_abort):
            m.d.sync += [aborting.eq(1), code.eq(Fault.ABORTED)]
        for engine, done, slave, decode in (
            (reader, read_done, Fault.READ_SLAVE, Fault.READ_DECODE),
            (writer, write_done, Fault.WRITE_SLAVE, Fault.WRITE_DECODE),
        ):
            with m.If(engine.response.valid):
                m.d.sync += done.eq(1)
                with m.If((engine.response.payload != MemoryCode.OK) & (code == 0)):
                    m.d.sync += aborting.eq(1)
                    with m.Switch(engine.response.payload):
                        for value, fault in (
                            (MemoryCode.UNALIGNED, Fault.ALIGN),
                            (MemoryCode.SLAVE, slave),
                            (MemoryCode.DECODE, decode),
                        ):
                            with m.Case(value):
                                m.d.sync += code.eq(fault)
                        with m.Default():
                            m.d.sync += code.eq(Fault.WINDOW)
        early = Signal()
        m.d.comb += early.eq((csr.word_base == Plant.IRQ_EARLY) & self.m_axi.rvalid)
        ended = read_done & write_done & ~reader.busy & ~writer.busy
        with m.If(busy & (ended | early)):
            m.d.sync += [busy.eq(0), aborting.eq(0)]
            m.d.comb += [csr.finished.eq(1), csr.fault.code.eq(code), csr.runs_left.eq(0)]

    def _plant(self, m: Module, csr: Csr) -> None:
        axi = self.m_axi
        toggle = Signal()
        m.d.sync += toggle.eq(~toggle)
        far = 1 << 20

        def planted(which: Plant):
            return m.If(csr.word_base == which)

        with planted(Plant.UNALIGNED):
            m.d.comb += axi.araddr[0].eq(1)
        with planted(Plant.LONG):
            m.d.comb += axi.arlen.eq(255)
        with planted(Plant.SIZE):
            m.d.comb += axi.arsize.eq(0)
        with planted(Plant.FIXED):
            m.d.comb += axi.awburst.eq(0)
        with planted(Plant.WITHDRAW), m.If(toggle):
            m.d.comb += axi.arvalid.eq(0)
        with planted(Plant.WLAST):
            m.d.comb += axi.wlast.eq(toggle)
        with planted(Plant.WDATA):
            m.d.comb += axi.wdata[0].eq(toggle)
        with planted(Plant.READ_OUTSIDE):
            m.d.comb += axi.araddr[far.bit_length() - 1].eq(1)
        with planted(Plant.WRITE_OUTSIDE):
            m.d.comb += axi.awaddr[far.bit_length() - 1].eq(1)
        with planted(Plant.HANG):
            m.d.comb += axi.rready.eq(0)
