"""The register file behind the AXI4-Lite slave."""

from collections.abc import Hashable, Mapping

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolora.config import AcceleratorConfig
from systolora.contract import (
    COUNTERS,
    REGISTER_ADDRESS_BITS,
    REGISTER_BITS,
    REGISTERS,
    STEP_WORD,
    STICKY,
    Fault,
    Register,
    existing_bits,
    register_constants,
    width,
)
from systolora.rtl.axi import Response
from systolora.rtl.axi_lite import LiteSignature

__all__ = ["Csr", "EventsLayout", "FaultLayout", "SettingsLayout"]

INDEX_BITS = width(REGISTERS["ERROR_INDEX"].fields, "index")
COUNTER_BITS = 2 * REGISTER_BITS

#: How a run ended: a contract.Fault, and the descriptor that has it.
FaultLayout = data.StructLayout(
    {"code": width(REGISTERS["ERROR"].fields, "code"), "index": INDEX_BITS}
)

#: What the counters add in a cycle. Bytes: 0 to 256; macs: 0 to R * C.
EventsLayout = data.StructLayout(
    {
        "array_busy": 1,
        "stall_load": 1,
        "stall_post": 1,
        "stall_store": 1,
        "read_bytes": 9,
        "write_bytes": 9,
        "macs": 17,
        "descriptors": 1,
    }
)

#: The counter of each field of EventsLayout; CYCLES counts without one.
_COUNTER_OF = {"read_bytes": "BYTES_READ", "write_bytes": "BYTES_WRITTEN"}


def SettingsLayout(address_bits: int) -> data.StructLayout:
    """What a run needs to know; a limit is the first address after its window."""
    return data.StructLayout(
        {
            "program_address": address_bits,
            "program_length": INDEX_BITS,
            "read_base": address_bits,
            "read_limit": address_bits + 1,
            "write_base": address_bits,
            "write_limit": address_bits + 1,
        }
    )


class Csr(wiring.Component):
    """Holds the registers of contract.REGISTERS and answers AXI4-Lite accesses to them.

    Reads and writes are independent; of each, one is worked on at a time. Address and data of a
    write may come in any order. A write is answered two cycles after the later of both was taken, a
    read two cycles after its address; the next access of that kind is taken in the cycle after.
    Whatever a write does it does in the cycle before its answer is valid.

    SLVERR is the answer to an address without a register, a write to a read-only register, a write
    to a setting while busy, a set bit that does not exist in a `rw` register, and a start while
    busy. Such a write changes nothing, except that a start while busy sets STATUS.start_ignored,
    and that an abort in the same write counts. Bytes without a strobe keep their value, and are 0
    to `w1c` and `wo` registers. The lowest two address bits are not looked at.

    A run is from the cycle with `start` to the cycle with `finished`: busy is 1 meanwhile, and
    beyond while `busy` is. Whoever runs the program raises `finished` once for each `start`.
    An abort comes only during a run; one in the cycle of `finished` or after may be ignored.

    Counters are cleared by a start and add what `events` says while busy, one cycle late.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    s_axil : the bus
    start, soft_abort : one cycle each
    settings : change only while not busy; program_length is 0 if the register is beyond 22 bits
    runs : how often the program runs, at least 1
    runs_left : register RUNS_LEFT
    word_base : register WORD_BASE
    step_tick : WORD_BASE += STEP_WORD, STEP += 1
    busy : a program runs
    finished, fault : one cycle; the run ended, and why: code NONE if well
    sticky : in the order of contract.STICKY; a 1 sets the bit, also against a write that clears it
    events : for the counters
    irq : a pending interrupt is enabled, until software clears it
    """

    LATENCY = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self.design_key: Hashable = config
        super().__init__(
            {
                "s_axil": In(LiteSignature(REGISTER_ADDRESS_BITS, REGISTER_BITS)),
                "start": Out(1),
                "soft_abort": Out(1),
                "settings": Out(SettingsLayout(config.address_bits)),
                "runs": Out(REGISTER_BITS),
                "runs_left": In(REGISTER_BITS),
                "word_base": Out(REGISTER_BITS),
                "step_tick": In(1),
                "busy": In(1),
                "finished": In(1),
                "fault": In(FaultLayout),
                "sticky": In(len(STICKY)),
                "events": In(EventsLayout),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config

        # Storage of the rw registers, as wide as they exist; a limit's or address's parts are
        # those of one signal.
        quantities = {
            name.upper(): Signal(field.width, name=name)
            for name, field in SettingsLayout(config.address_bits)
            if name != "program_length"
        }
        storage: dict[str, Value] = {}
        for register in REGISTERS.values():
            if register.access != "rw":
                continue
            bits = existing_bits(register, config).bit_length()
            if register.quantity:
                whole = quantities[register.quantity]
                storage[register.name] = whole[register.shift : register.shift + bits]
            elif register.name == "LIMIT_TOP":
                tops = (quantities[name][64:] for name in ("READ_LIMIT", "WRITE_LIMIT"))
                storage[register.name] = Cat(*tops)
            else:
                storage[register.name] = Signal(
                    bits, name=register.name.lower(), init=register.reset
                )
        for name, quantity in quantities.items():
            m.d.comb += self.settings[name.lower()].eq(quantity)
        length = storage["PROGRAM_LENGTH"]
        runs = storage["RUNS"]
        m.d.comb += [
            # Too long is as wrong as empty, and must not be taken for short
            self.settings.program_length.eq(Mux(length[INDEX_BITS:].any(), 0, length)),
            self.runs.eq(Mux(runs == 0, 1, runs)),
            self.word_base.eq(storage["WORD_BASE"]),
        ]
        with m.If(self.step_tick):
            m.d.sync += [
                storage["WORD_BASE"].eq(storage["WORD_BASE"] + STEP_WORD),
                storage["STEP"].eq(storage["STEP"] + 1),
            ]

        # The run, as seen from outside
        running = Signal()
        busy = Signal()
        done = Signal()
        error = Signal()
        start_ignored = Signal()
        code = Signal(FaultLayout["code"].shape)
        index = Signal(INDEX_BITS)
        pending = Signal(len(REGISTERS["IRQ_STATUS"].fields))
        sticky = Signal(len(STICKY))
        failed = Signal()
        m.d.comb += [
            busy.eq(running | self.busy),
            failed.eq(self.fault.code != Fault.NONE),
        ]
        m.d.sync += [
            self.irq.eq((pending & storage["IRQ_MASK"]).any()),
            self.start.eq(0),
            self.soft_abort.eq(0),
        ]

        # The write: taken, then executed when both parts are there
        bus = self.s_axil
        write_address = Signal(REGISTER_ADDRESS_BITS)
        write_data = Signal(REGISTER_BITS)
        write_strobe = Signal(REGISTER_BITS // 8)
        address_taken = Signal()
        data_taken = Signal()
        execute = Signal()
        refused = Signal()
        m.d.comb += [
            bus.awready.eq(~address_taken),
            bus.wready.eq(~data_taken),
            execute.eq(address_taken & data_taken & (~bus.bvalid | bus.bready)),
        ]
        with m.If(bus.awvalid & bus.awready):
            m.d.sync += [address_taken.eq(1), write_address.eq(bus.awaddr)]
        with m.If(bus.wvalid & bus.wready):
            m.d.sync += [
                data_taken.eq(1),
                write_data.eq(bus.wdata),
                write_strobe.eq(bus.wstrb),
            ]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(execute):
            m.d.sync += [
                address_taken.eq(0),
                data_taken.eq(0),
                bus.bvalid.eq(1),
                bus.bresp.eq(Mux(refused, Response.SLVERR, Response.OKAY)),
            ]

        mask = Signal(REGISTER_BITS)
        ones = Signal(REGISTER_BITS)
        m.d.comb += [
            mask.eq(Cat(strobe.replicate(8) for strobe in write_strobe)),
            ones.eq(write_data & mask),
        ]
        written = {
            name: Signal(_layout(register), name=f"write_{name.lower()}")
            for name, register in REGISTERS.items()
            if register.access in ("w1c", "wo")
        }
        with m.Switch(_word(write_address)):
            for register in REGISTERS.values():
                with m.Case(_word(register.offset)):
                    if register.access == "ro":
                        m.d.comb += refused.eq(1)
                    elif register.access in ("w1c", "wo"):
                        with m.If(execute):
                            m.d.comb += written[register.name].eq(ones)
                        if register.name == "CONTROL":
                            m.d.comb += refused.eq(written["CONTROL"].start & busy)
                    else:
                        missing = Const(~existing_bits(register, config), REGISTER_BITS)
                        m.d.comb += refused.eq((ones & missing).any() | (register.locked & busy))
                        place = storage[register.name]
                        with m.If(execute & ~refused):
                            m.d.sync += place.eq((place & ~mask) | ones)
            with m.Default():
                m.d.comb += refused.eq(1)

        control = written["CONTROL"]
        begin = Signal()
        m.d.comb += begin.eq(control.start & ~busy)
        for target, clear, events in (
            (start_ignored, written["STATUS"].start_ignored, control.start & busy),
            (
                pending,
                written["IRQ_STATUS"].as_value(),
                Mux(self.finished, Cat(~failed, failed), 0),
            ),
            (sticky, written["STICKY"].as_value(), self.sticky),
        ):
            m.d.sync += target.eq((target & ~clear) | events)
        with m.If(control.abort & running):
            m.d.sync += self.soft_abort.eq(1)
        with m.If(begin):
            m.d.sync += [
                self.start.eq(1),
                running.eq(1),
                done.eq(0),
                error.eq(0),
                code.eq(0),
                index.eq(0),
            ]
        with m.If(self.finished):
            m.d.sync += [
                running.eq(0),
                done.eq(~failed),
                error.eq(failed),
                code.eq(self.fault.code),
                index.eq(self.fault.index),
            ]

        # Counters. Two stages: what happens is registered first, the adders are long.
        counters = {name: Signal(COUNTER_BITS, name=name.lower()) for name in COUNTERS}
        events = {"CYCLES": Const(1, 1)} | {
            _COUNTER_OF.get(name, name.upper()): self.events[name] for name, _ in EventsLayout
        }
        for name, counter in counters.items():
            event = Signal(len(events[name]), name=f"event_{name.lower()}")
            with m.If(begin):
                m.d.sync += [event.eq(0), counter.eq(0)]
            with m.Else():
                m.d.sync += [event.eq(Mux(busy, events[name], 0)), counter.eq(counter + event)]

        # The read: taken, then answered
        high = Signal(REGISTER_BITS)
        special: dict[str, Value] = {
            "CONTROL": Const(0),
            "STATUS": _pack(
                REGISTERS["STATUS"],
                {"busy": busy, "done": done, "error": error, "start_ignored": start_ignored},
            ),
            "ERROR": code,
            "ERROR_INDEX": index,
            "IRQ_STATUS": pending,
            "RUNS_LEFT": self.runs_left,
            "STICKY": sticky,
        }
        constants = {name: Const(value) for name, value in register_constants(config).items()}
        values = special | constants | storage
        read_address = Signal(REGISTER_ADDRESS_BITS)
        read_taken = Signal()
        answer = Signal()
        m.d.comb += [
            bus.arready.eq(~read_taken),
            answer.eq(read_taken & (~bus.rvalid | bus.rready)),
        ]
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [read_taken.eq(1), read_address.eq(bus.araddr)]
        with m.If(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        with m.If(answer):
            m.d.sync += [
                read_taken.eq(0),
                bus.rvalid.eq(1),
                bus.rresp.eq(Response.OKAY),
            ]
            with m.Switch(_word(read_address)):
                for register in REGISTERS.values():
                    with m.Case(_word(register.offset)):
                        if register.quantity in counters:
                            counter = counters[register.quantity]
                            if register.shift:
                                m.d.sync += bus.rdata.eq(high)
                            else:
                                m.d.sync += bus.rdata.eq(counter[:REGISTER_BITS])
                                m.d.sync += high.eq(counter[REGISTER_BITS:])
                        else:
                            m.d.sync += bus.rdata.eq(values[register.name])
                with m.Default():
                    m.d.sync += [bus.rdata.eq(0), bus.rresp.eq(Response.SLVERR)]
        return m


def _word(address: int | Value) -> int | Value:
    """The number of the word at a byte address."""
    return address >> 2


def _layout(register: Register) -> data.StructLayout:
    return data.StructLayout({field.name: field.width for field in register.fields})


def _pack(register: Register, values: Mapping[str, Value]) -> Value:
    """The register's fields as one value; KeyError if one is missing."""
    return Value.cast(Cat(*(values[field.name] for field in register.fields)))
