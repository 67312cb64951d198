"""Starts and ends runs of a program."""

from collections.abc import Hashable

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.contract import Fault
from systolora.rtl.csr import FaultLayout, SettingsLayout
from systolora.rtl.engine import CLIENTS, MemoryFaultLayout
from systolora.rtl.regions import ROWS_BITS, MemoryCode, RegionLayout

__all__ = ["RunControl"]

#: Program addresses are multiples of it, and of a word of the bus.
ALIGN_BITS = contract.DESCRIPTOR_BYTES.bit_length() - 1
#: Descriptors of a page of 4 KiB, as bits.
PAGE_BITS = 6


class RunControl(wiring.Component):
    """Runs the program `runs` times, and ends a run that failed so that the next one can start.

    A run: the engine is reset, the program's region is requested, the engine works until it has
    ended and everything is quiet. A failed request or an abort ends it at once: `soft_abort` lets
    the memory engines finish what is on the bus, then the engine is reset.

    Parameters
    ----------
    data_bits, address_bits : widths of the bus

    Members
    -------
    start, abort, settings, runs, runs_left, busy, finished, fault : see Csr
    engine_reset : resets everything but the memory engines
    engine_busy, engine_ended, engine_fault, received : of the Engine
    engine_takes : the engine waits for the program's next beat
    memory_fault : its failed requests
    fetch_request, fetch_response : of the MemoryReader for programs
    fetch_busy, memory_busy : of that one, and of the others
    fetch_abort, soft_abort : to that one, and to all others (and the Engine's hold)
    """

    #: Cycles of quiet after which nothing is on its way any more.
    QUIET = 8

    def __init__(self, *, data_bits: int, address_bits: int) -> None:
        self.design_key: Hashable = (data_bits, address_bits)
        self._address_bits = address_bits
        self._word_bits = (data_bits // 8).bit_length() - 1
        super().__init__(
            {
                "start": In(1),
                "abort": In(1),
                "settings": In(SettingsLayout(address_bits)),
                "runs": In(32),
                "runs_left": Out(32),
                "busy": Out(1),
                "finished": Out(1),
                "fault": Out(FaultLayout),
                "engine_reset": Out(1),
                "engine_busy": In(1),
                "engine_takes": In(1),
                "engine_ended": In(1),
                "engine_fault": In(FaultLayout),
                "received": In(FaultLayout["index"].shape),
                "memory_fault": In(MemoryFaultLayout).array(len(CLIENTS)),
                "fetch_request": Out(stream.Signature(RegionLayout(address_bits))),
                "fetch_response": In(stream.Signature(MemoryCode)),
                "fetch_busy": In(1),
                "memory_busy": In(1),
                "fetch_abort": Out(1),
                "soft_abort": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address, length = self.settings.program_address, self.settings.program_length

        # Whole pages first, then what is left: a region's row has too few bits for long programs
        pages, rest = length >> PAGE_BITS, length[:PAGE_BITS]
        assert length.shape().width - PAGE_BITS <= ROWS_BITS
        wants_pages, wants_rest = Signal(), Signal()
        region = self.fetch_request.payload
        with m.If(wants_pages):
            m.d.comb += [
                region.address.eq(address),
                region.rows.eq(pages),
                region.row_bytes.eq(1 << (PAGE_BITS + ALIGN_BITS)),
                region.stride.eq(1 << (PAGE_BITS + ALIGN_BITS)),
            ]
        with m.Else():
            m.d.comb += [
                region.address.eq(address + (pages << (PAGE_BITS + ALIGN_BITS))),
                region.rows.eq(1),
                region.row_bytes.eq(rest << ALIGN_BITS),
            ]
        # All of it is checked before any of it is fetched
        end = Signal(self._address_bits + 2, reset_less=True)
        outside = Signal()
        # Whole words of the bus are read, and the first one begins with a descriptor
        align_bits = max(ALIGN_BITS, self._word_bits)
        more = (1 << align_bits) - 1
        m.d.sync += end.eq(((address + (length << ALIGN_BITS) + more) >> align_bits) << align_bits)
        m.d.comb += outside.eq(
            (address < self.settings.read_base) | (end > self.settings.read_limit)
        )

        failed = Signal()
        failure = Signal(FaultLayout)
        self._failures(m, failed, failure)
        fault = Signal(FaultLayout, reset_less=True)
        m.d.comb += self.fault.eq(fault)

        idle = Signal()
        quiet = Signal(range(self.QUIET + 1))
        settled = Signal()
        m.d.comb += [
            idle.eq(~self.engine_busy & ~self.memory_busy & ~self.fetch_busy),
            settled.eq(quiet == self.QUIET),
        ]

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += self.runs_left.eq(self.runs)
                m.next = "RESET"
            with m.State("RESET"):
                m.d.comb += self.engine_reset.eq(1)
                m.d.sync += fault.eq(0)
                m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.sync += [quiet.eq(0), wants_pages.eq(pages != 0), wants_rest.eq(rest != 0)]
                m.next = "RUN"
                with m.If(length == 0):
                    pass  # the engine says that END is missing
                with m.Elif(address[:align_bits].any()):
                    m.d.sync += [fault.code.eq(Fault.ALIGN), fault.index.eq(0)]
                    m.next = "ABORT"
                with m.Elif(outside):
                    m.d.sync += [fault.code.eq(Fault.WINDOW), fault.index.eq(0)]
                    m.next = "ABORT"
            with m.State("RUN"):
                m.d.comb += self.fetch_request.valid.eq(wants_pages | wants_rest)
                with m.If(self.fetch_request.valid & self.fetch_request.ready):
                    m.d.sync += wants_pages.eq(0)
                    with m.If(~wants_pages):
                        m.d.sync += wants_rest.eq(0)
                with m.If(failed):
                    m.d.sync += fault.eq(failure)
                    m.next = "ABORT"
                with m.Elif(self.engine_ended):
                    m.d.sync += fault.eq(self.engine_fault)
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                # What is left of the program is not wanted; all else finishes
                m.d.comb += self.fetch_abort.eq(1)
                m.d.sync += quiet.eq(Mux(idle, quiet + 1, 0))
                with m.If(failed):
                    m.d.sync += [fault.eq(failure), quiet.eq(0)]
                    m.next = "ABORT"
                with m.Elif(settled):
                    m.next = "FINISH"
                    # As after an abort: a run that failed is left
                    with m.If(fault.code == Fault.NONE):
                        m.d.sync += self.runs_left.eq(self.runs_left - 1)
                        with m.If(self.runs_left != 1):
                            m.next = "RESET"
            with m.State("ABORT"):
                m.d.comb += [self.fetch_abort.eq(1), self.soft_abort.eq(1)]
                m.d.sync += quiet.eq(
                    Mux(self.memory_busy | self.fetch_busy | settled, 0, quiet + 1)
                )
                with m.If(settled):
                    m.d.comb += self.engine_reset.eq(1)
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.d.comb += self.finished.eq(1)
                m.next = "IDLE"
        return m

    def _failures(self, m: Module, failed: Signal, failure) -> None:
        """What ends a run at once: requests that memory refused, and an abort."""

        def bus_fault(code, decode: Fault, slave: Fault):
            return Mux(code == MemoryCode.DECODE, decode, slave)

        code = self.fetch_response.payload
        aborting = self.fetch_abort | self.soft_abort
        # An error behind END, or behind another fault, is none: it counts when the engine wants
        # what is missing
        m.d.comb += self.fetch_response.ready.eq(self.engine_takes | aborting)
        aborted = Signal()  # kept until the run is where it can end
        with m.If(~self.busy):
            m.d.sync += aborted.eq(0)
        with m.Elif(self.abort):
            m.d.sync += aborted.eq(1)
        with m.If(aborted):
            m.d.comb += [failed.eq(1), failure.code.eq(Fault.ABORTED)]
            m.d.comb += failure.index.eq(self.received)
        with m.If(
            self.fetch_response.valid & (code != MemoryCode.OK) & self.engine_takes & ~aborting
        ):
            m.d.comb += failed.eq(1)
            m.d.comb += [
                failure.code.eq(bus_fault(code, Fault.READ_DECODE, Fault.READ_SLAVE)),
                failure.index.eq(self.received),
            ]
        for client, each in zip(CLIENTS, self.memory_fault, strict=True):
            writes = client == "writes"
            decode = Fault.WRITE_DECODE if writes else Fault.READ_DECODE
            slave = Fault.WRITE_SLAVE if writes else Fault.READ_SLAVE
            with m.If(each.valid):
                m.d.comb += [
                    failed.eq(1),
                    failure.code.eq(bus_fault(each.code, decode, slave)),
                    failure.index.eq(each.index),
                ]
