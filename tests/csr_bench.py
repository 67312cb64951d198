"""cocotb tests of the register file; run inside the simulator by test_rtl_csr.

The registers are compared with a model that knows only the tables of the contract; every cycle the
two channels that the slave drives are looked at: what is offered stays until it is taken.
"""

import json
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# cocotbext-axi 0.1.28 is written for cocotb 1 and uses names that cocotb 2 deprecates.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\.")

import cocotb  # noqa: E402
from cocotb.clock import Clock  # noqa: E402
from cocotb.triggers import RisingEdge  # noqa: E402
from cocotbext.axi import AxiLiteBus, AxiLiteMaster  # noqa: E402

from systolora.config import AcceleratorConfig  # noqa: E402
from systolora.contract import (  # noqa: E402
    COUNTERS,
    REGISTER_ADDRESS_BITS,
    REGISTERS,
    STEP_WORD,
    Fault,
    Field,
    Register,
    existing_bits,
    pack,
    register_constants,
    unpack,
)

CONFIG = AcceleratorConfig(**json.loads(os.environ["SYSTOLORA_CONFIG"]))
SEED = int(os.environ["SYSTOLORA_SEED"])
TIMEOUT = 1000
OKAY, SLVERR = 0, 2
MASK = 0xFFFFFFFF

ADDRESS = CONFIG.address_bits
#: The ports' layouts as csr.py documents them, lowest bits first.
SETTINGS = tuple(
    Field(name, bits, "")
    for name, bits in (
        ("program_address", ADDRESS),
        ("program_length", 22),
        ("read_base", ADDRESS),
        ("read_limit", ADDRESS + 1),
        ("write_base", ADDRESS),
        ("write_limit", ADDRESS + 1),
    )
)
FAULT = (Field("code", 4, ""), Field("index", 22, ""))
EVENTS = tuple(
    Field(name, bits, "")
    for name, bits in (
        *(("array_busy", 1), ("stall_load", 1), ("stall_post", 1), ("stall_store", 1)),
        *(("read_bytes", 9), ("write_bytes", 9), ("macs", 17), ("descriptors", 1)),
    )
)
COUNTER_OF = {"read_bytes": "BYTES_READ", "write_bytes": "BYTES_WRITTEN"}

WRITABLE = [r for r in REGISTERS.values() if r.access == "rw"]


class Bench:
    """The register file, a master, and the part of the accelerator that runs programs."""

    def __init__(self, dut: Any, seed: int) -> None:
        self.dut = dut
        self.random = random.Random(seed)
        self.cycle = 0
        self.model = {r.name: r.reset for r in WRITABLE}
        #: cycles in which the ports were 1
        self.starts: list[int] = []
        self.aborts: list[int] = []
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.ERROR)  # a line for each access

    async def start(self) -> None:
        dut = self.dut
        Clock(dut.clk, 2, "ns").start()
        for name in ("runs_left", "step_tick", "busy", "finished", "fault", "sticky", "events"):
            getattr(dut, name).value = 0
        dut.rst.value = 1
        master: Any = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.aw, self.w = master.write_if.aw_channel, master.write_if.w_channel
        self.b = master.write_if.b_channel
        self.ar, self.r = master.read_if.ar_channel, master.read_if.r_channel
        for channel in (self.aw, self.w, self.b, self.ar, self.r):
            channel.queue_occupancy_limit = -1  # none: the tests queue as much as they want
        await self.cycles(4)
        dut.rst.value = 0
        cocotb.start_soon(self._watch())
        await self.cycles(2)

    def stalls(self, probability: float | None) -> None:
        """Random pauses on every channel, or none."""
        for channel in (self.aw, self.w, self.b, self.ar, self.r):
            channel.clear_pause_generator()
            channel.pause = False
            if probability is not None:
                source = random.Random(self.random.random())
                channel.set_pause_generator(self._pauses(source, probability))

    @staticmethod
    def _pauses(source: random.Random, probability: float) -> Iterator[bool]:
        while True:
            yield source.random() < probability

    async def _watch(self) -> None:
        dut, edge = self.dut, RisingEdge(self.dut.clk)
        held: dict[str, int] = {}
        while True:
            await edge
            self.cycle += 1
            if int(dut.rst.value):
                held.clear()
                continue
            if int(dut.start.value):
                self.starts.append(self.cycle)
            if int(dut.soft_abort.value):
                self.aborts.append(self.cycle)
            for way in "br":
                valid = int(getattr(dut, f"s_axil_{way}valid").value)
                now = int(getattr(dut, f"s_axil_{way}resp").value)
                if way == "r":
                    now = now << 32 | int(dut.s_axil_rdata.value)
                if way in held:
                    assert valid and now == held.pop(way), f"{way}: what was offered changed"
                if valid and not int(getattr(dut, f"s_axil_{way}ready").value):
                    held[way] = now

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            await RisingEdge(self.dut.clk)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(TIMEOUT):
            if condition():
                return
            await RisingEdge(self.dut.clk)
        raise AssertionError(f"{what}: not within {TIMEOUT} cycles")

    def send_write(self, offset: int, value: int, strobe: int = 15) -> None:
        address, data = self.aw._transaction_obj(), self.w._transaction_obj()
        address.awaddr, address.awprot = offset, 0
        data.wdata, data.wstrb = value, strobe
        self.aw.send_nowait(address)
        self.w.send_nowait(data)

    async def write(self, target: str | int, value: int, strobe: int = 15) -> int:
        """The answer to one write."""
        offset = REGISTERS[target].offset if isinstance(target, str) else target
        self.send_write(offset, value, strobe)
        return int((await self.b.recv()).bresp)

    def send_read(self, offset: int) -> None:
        address = self.ar._transaction_obj()
        address.araddr, address.arprot = offset, 0
        self.ar.send_nowait(address)

    async def read_offset(self, offset: int) -> tuple[int, int]:
        """Data of one read, and the answer."""
        self.send_read(offset)
        beat = await self.r.recv()
        return int(beat.rdata), int(beat.rresp)

    async def read(self, name: str) -> int:
        value, answer = await self.read_offset(REGISTERS[name].offset)
        assert answer == OKAY, name
        return value

    async def fields(self, name: str) -> dict[str, int]:
        return unpack(REGISTERS[name].fields, await self.read(name))

    async def counter(self, name: str) -> int:
        return await self.read(f"{name}_LO") | await self.read(f"{name}_HI") << 32

    async def finish(self, fault: Fault = Fault.NONE, index: int = 0) -> None:
        """Ends the run: one cycle of `finished`."""
        self.dut.finished.value = 1
        self.dut.fault.value = pack(FAULT, {"code": fault, "index": index})
        await self.cycles(1)
        self.dut.finished.value = 0
        self.dut.fault.value = 0
        self.dut.busy.value = 0
        await self.cycles(2)

    async def begin(self) -> None:
        """Starts a run; the program is busy from the cycle after `start`."""
        before = len(self.starts)
        assert await self.write("CONTROL", 1) == OKAY
        await self.until(lambda: len(self.starts) > before, "start")
        self.dut.busy.value = 1
        await self.cycles(1)

    def expected(self, name: str, value: int, strobe: int, busy: bool) -> int:
        """The answer to a write of a rw register; changes the model."""
        register = REGISTERS[name]
        mask = sum(0xFF << 8 * n for n in range(4) if strobe >> n & 1)
        if (register.locked and busy) or value & mask & ~existing_bits(register, CONFIG):
            return SLVERR
        self.model[name] = (self.model[name] & ~mask) | (value & mask)
        return OKAY

    def quantity(self, name: str) -> int:
        """What the model holds of a 64-bit setting, with a limit's bit 64."""
        value = self.model[f"{name}_LO"] | self.model[f"{name}_HI"] << 32
        top = unpack(REGISTERS["LIMIT_TOP"].fields, self.model["LIMIT_TOP"])
        if name.endswith("_LIMIT"):
            value |= top[name.split("_")[0].lower()] << 64
        return value

    def check_outputs(self) -> None:
        settings = unpack(SETTINGS, int(self.dut.settings.value))
        length = self.model["PROGRAM_LENGTH"]
        for name, value in settings.items():
            if name == "program_length":
                assert value == (length if length < 1 << 22 else 0)
            else:
                assert value == self.quantity(name.upper()), name
        assert int(self.dut.runs.value) == max(1, self.model["RUNS"])
        assert int(self.dut.word_base.value) == self.model["WORD_BASE"]


async def make(dut: Any, number: int) -> Bench:
    bench = Bench(dut, SEED + number)
    await bench.start()
    return bench


def candidate(bench: Bench, register: Register) -> int:
    """A value to write: one that fits, mostly."""
    value = bench.random.choice((0, 1, MASK, bench.random.getrandbits(32)))
    return value & existing_bits(register, CONFIG) if bench.random.random() < 0.7 else value


@cocotb.test()
async def the_map(dut: Any) -> None:
    """Every word of the page after reset; nothing writable where nothing should be."""
    bench = await make(dut, 1)
    constants = register_constants(CONFIG)
    words = {r.offset: r for r in REGISTERS.values()}
    assert len(words) == len(REGISTERS)
    page = range(0, 1 << REGISTER_ADDRESS_BITS, 4)
    for offset in page:
        register = words.get(offset)
        # The lowest bits of an address do not matter
        value, answer = await bench.read_offset(offset + bench.random.randrange(4))
        if register is None:
            assert (value, answer) == (0, SLVERR), hex(offset)
        else:
            assert answer == OKAY
            assert value == constants.get(register.name, register.reset), register.name
    for offset in page:
        register = words.get(offset)
        if register is None or register.access == "ro":
            assert await bench.write(offset, MASK, bench.random.choice((0, 8, 15))) == SLVERR
    for register in REGISTERS.values():
        wanted = constants.get(register.name, register.reset)
        assert await bench.read(register.name) == wanted, register.name
    bench.check_outputs()
    assert bench.starts == bench.aborts == []
    assert not int(dut.irq.value)


@cocotb.test()
async def settings(dut: Any) -> None:
    """Random writes with random strobes, idle and busy, against the model."""
    bench = await make(dut, 2)
    refused = 0
    for group in range(6):
        bench.stalls((None, 0.3, 0.7)[group % 3])
        busy = group >= 3
        if group == 3:
            await bench.begin()
        for _ in range(120):
            register = bench.random.choice(WRITABLE)
            value = candidate(bench, register)
            strobe = bench.random.choice((15, 15, bench.random.randrange(16)))
            answer = await bench.write(register.name, value, strobe)
            assert answer == bench.expected(register.name, value, strobe, busy), register.name
            refused += answer == SLVERR
            other = bench.random.choice(WRITABLE).name
            assert await bench.read(other) == bench.model[other], other
        for name, value in bench.model.items():
            assert await bench.read(name) == value, name
        bench.check_outputs()
    assert refused > 50
    assert len(bench.starts) == 1


@cocotb.test()
async def overlap(dut: Any) -> None:
    """Many writes and reads under way, every channel stalled on its own: all answered in order."""
    bench = await make(dut, 3)
    names = ["WORD_BASE", "STEP", "RUNS"]
    for probability in (None, 0.2, 0.5, 0.8):
        bench.stalls(probability)
        writes = []
        for n in range(60):
            if n % 5 == 4:
                bench.send_write(REGISTERS["ID"].offset, n)
                writes.append(SLVERR)
            else:
                name, value = bench.random.choice(names), bench.random.getrandbits(32)
                bench.send_write(REGISTERS[name].offset, value)
                writes.append(bench.expected(name, value, 15, False))
            bench.send_read(REGISTERS["ID" if n % 2 else "VERSION"].offset)
        for answer in writes:
            assert int((await bench.b.recv()).bresp) == answer
        constants = register_constants(CONFIG)
        for n in range(60):
            beat = await bench.r.recv()
            assert int(beat.rdata) == constants["ID" if n % 2 else "VERSION"]
        for name in names:
            assert await bench.read(name) == bench.model[name]
        bench.check_outputs()
        await bench.cycles(10)
        assert bench.b.empty() and bench.r.empty()


@cocotb.test()
async def order(dut: Any) -> None:
    """Address and data far apart, either first; answers that nobody takes; the latency."""
    bench = await make(dut, 4)
    for late, early in ((bench.aw, bench.w), (bench.w, bench.aw)):
        late.pause, early.pause = True, False
        bench.send_write(REGISTERS["STEP"].offset, bench.random.getrandbits(32))
        before = await bench.read("STEP")
        await bench.cycles(20)
        assert bench.b.empty() and await bench.read("STEP") == before
        late.pause = False
        assert int((await bench.b.recv()).bresp) == OKAY
        assert await bench.read("STEP") != before

    # A second write is not executed while the answer to the first one waits
    bench.b.pause = True
    bench.send_write(REGISTERS["STEP"].offset, 11)
    bench.send_write(REGISTERS["STEP"].offset, 22)
    await bench.cycles(20)
    assert await bench.read("STEP") == 11
    bench.b.pause = False
    for _ in range(2):
        assert int((await bench.b.recv()).bresp) == OKAY
    assert await bench.read("STEP") == 22

    bench.r.pause = True
    bench.send_read(REGISTERS["STEP"].offset)
    bench.send_read(REGISTERS["ID"].offset)
    await bench.cycles(20)
    bench.r.pause = False
    assert int((await bench.r.recv()).rdata) == 22
    assert int((await bench.r.recv()).rdata) == register_constants(CONFIG)["ID"]

    for send, taken, valid in (
        (lambda: bench.send_write(REGISTERS["STEP"].offset, 1), dut.s_axil_wvalid, "b"),
        (lambda: bench.send_read(REGISTERS["STEP"].offset), dut.s_axil_arvalid, "r"),
    ):
        send()
        await bench.until(lambda taken=taken: bool(int(taken.value)), "taken")
        first = bench.cycle
        handle = getattr(dut, f"s_axil_{valid}valid")
        await bench.until(lambda handle=handle: bool(int(handle.value)), "answer")
        assert bench.cycle - first == int(os.environ["SYSTOLORA_LATENCY"])
        await bench.cycles(4)
    # A write without strobes does nothing, but is answered
    assert await bench.write("CONTROL", MASK, 0) == OKAY
    assert await bench.write("STEP", MASK, 0) == OKAY
    assert bench.starts == bench.aborts == []


@cocotb.test()
async def a_run(dut: Any) -> None:
    """Start, refusals, end, error, interrupts, abort."""
    bench = await make(dut, 5)
    idle = {"busy": 0, "done": 0, "error": 0, "start_ignored": 0}
    for group, probability in enumerate((None, 0.5)):
        bench.stalls(probability)
        assert await bench.write("IRQ_MASK", 0b01) == OKAY
        assert await bench.write("CONTROL", 0b10) == OKAY  # idle: nothing to abort
        await bench.begin()
        assert len(bench.starts) == 1 + 3 * group and len(bench.aborts) == 2 * group
        assert await bench.fields("STATUS") == {**idle, "busy": 1}
        assert await bench.read("CONTROL") == 0

        # Again, while busy
        assert await bench.write("CONTROL", 1, 0b1110) == OKAY  # without its strobe: no start
        assert await bench.fields("STATUS") == {**idle, "busy": 1}
        assert await bench.write("CONTROL", 1) == SLVERR
        assert await bench.fields("STATUS") == {**idle, "busy": 1, "start_ignored": 1}
        assert await bench.write("STATUS", 0b0111) == OKAY
        assert (await bench.fields("STATUS"))["start_ignored"] == 1
        assert await bench.write("STATUS", MASK) == OKAY
        assert await bench.fields("STATUS") == {**idle, "busy": 1}
        dut.runs_left.value = 0xDEADBEEF
        assert await bench.read("RUNS_LEFT") == 0xDEADBEEF

        await bench.finish()
        assert await bench.fields("STATUS") == {**idle, "done": 1}
        assert await bench.read("IRQ_STATUS") == 0b01
        assert int(dut.irq.value)
        assert await bench.write("IRQ_STATUS", 0b10) == OKAY
        assert int(dut.irq.value)
        assert await bench.write("IRQ_STATUS", 0b01) == OKAY
        await bench.cycles(2)
        assert not int(dut.irq.value) and await bench.read("IRQ_STATUS") == 0

        # Every fault; an interrupt that is not enabled waits
        await bench.begin()
        assert await bench.fields("STATUS") == {**idle, "busy": 1}
        assert await bench.write("CONTROL", 0b10) == OKAY
        fault = bench.random.choice([f for f in Fault if f])
        await bench.finish(fault, 0x2FACE)
        assert len(bench.aborts) == 2 * group + 1
        assert await bench.fields("STATUS") == {**idle, "error": 1}
        assert await bench.read("ERROR") == fault
        assert await bench.read("ERROR_INDEX") == 0x2FACE
        assert await bench.read("IRQ_STATUS") == 0b10 and not int(dut.irq.value)
        assert await bench.write("IRQ_MASK", 0b10) == OKAY
        await bench.cycles(2)
        assert int(dut.irq.value)

        # An abort counts in the write whose start is refused; a start clears the error, not the
        # interrupt
        await bench.begin()
        assert await bench.read("ERROR") == await bench.read("ERROR_INDEX") == 0
        assert await bench.write("CONTROL", 0b11) == SLVERR
        await bench.finish(Fault.ABORTED)
        assert len(bench.aborts) == 2 * group + 2
        assert await bench.fields("STATUS") == {**idle, "error": 1, "start_ignored": 1}
        assert await bench.write("STATUS", MASK) == OKAY
        assert await bench.write("IRQ_STATUS", MASK) == OKAY
        await bench.cycles(2)
        assert not int(dut.irq.value)

    # Between start and the rise of `busy` the run counts as busy
    assert await bench.write("CONTROL", 1) == OKAY
    assert (await bench.fields("STATUS"))["busy"] == 1
    assert await bench.write("RUNS", 5) == SLVERR
    assert await bench.write("CONTROL", 1) == SLVERR
    await bench.finish()
    assert await bench.write("RUNS", 5) == OKAY
    # As long as `busy` is 1, nothing new can start
    dut.busy.value = 1
    assert await bench.write("CONTROL", 1) == SLVERR
    assert await bench.write("STATUS", MASK) == OKAY
    assert len(bench.starts) == 7


@cocotb.test()
async def steps_and_sticky(dut: Any) -> None:
    """CONTROL STEP advances the random word; sticky bits stay until cleared, and setting wins."""
    bench = await make(dut, 6)
    word, step = bench.random.getrandbits(32), MASK - 1
    assert await bench.write("WORD_BASE", word) == await bench.write("STEP", step) == OKAY
    await bench.begin()
    for count in (1, 2, 3):
        dut.step_tick.value = 1
        await bench.cycles(count)
        dut.step_tick.value = 0
        word, step = (word + count * STEP_WORD) & MASK, (step + count) & MASK
        assert await bench.read("STEP") == step
        assert await bench.read("WORD_BASE") == int(dut.word_base.value) == word
    assert await bench.write("WORD_BASE", 0) == await bench.write("STEP", 0) == SLVERR
    assert await bench.read("WORD_BASE") == word

    expected = 0
    for _ in range(10):
        bits = bench.random.getrandbits(5)
        dut.sticky.value = bits
        await bench.cycles(1)
        dut.sticky.value = 0
        expected |= bits
        assert await bench.read("STICKY") == expected
        clear = bench.random.getrandbits(5)
        assert await bench.write("STICKY", clear) == OKAY
        expected &= ~clear
        assert await bench.read("STICKY") == expected
    # A bit set in the very cycle that clears it stays
    stays = []
    for moment in range(8):
        assert await bench.write("STICKY", MASK) == OKAY
        bench.send_write(REGISTERS["STICKY"].offset, MASK)
        executed = 0
        for cycle in range(16):
            dut.sticky.value = cycle == moment
            await bench.cycles(1)
            if int(dut.s_axil_bvalid.value):
                executed = cycle - 1  # the answer is seen one cycle later
        assert int((await bench.b.recv()).bresp) == OKAY
        stays.append(await bench.read("STICKY"))
        assert stays[-1] == (moment >= executed), (moment, executed)
    assert set(stays) == {0, 1}
    dut.sticky.value = 0b01010
    assert await bench.write("STICKY", MASK) == OKAY
    assert await bench.read("STICKY") == 0b01010
    await bench.finish()
    await bench.begin()  # a start leaves them
    assert await bench.read("STICKY") == 0b01010


@cocotb.test()
async def counters(dut: Any) -> None:
    """Sums of the events while busy, cleared by start; a read pair is of one moment."""
    bench = await make(dut, 7)
    dut.events.value = (1 << sum(f.width for f in EVENTS)) - 1
    await bench.cycles(5)
    for name in COUNTERS:
        assert await bench.counter(name) == 0  # idle: nothing counts
    for _ in range(2):
        dut.events.value = 0
        await bench.begin()
        sums = dict.fromkeys((f.name for f in EVENTS), 0)
        for _ in range(100):
            values = {
                f.name: bench.random.choice((0, (1 << f.width) - 1, bench.random.getrandbits(16)))
                & ((1 << f.width) - 1)
                for f in EVENTS
            }
            dut.events.value = pack(EVENTS, values)
            await bench.cycles(1)
            sums = {name: sums[name] + values[name] for name in sums}
        dut.events.value = 0
        await bench.finish()
        ended = bench.cycle
        dut.events.value = 1
        for name, total in sums.items():
            assert await bench.counter(COUNTER_OF.get(name, name.upper())) == total, name
        # From the cycle with `start` to the one with `finished`, 2 cycles before `finish` returned
        assert await bench.counter("CYCLES") == ended - 2 - bench.starts[-1] + 1
        dut.events.value = 0

    # Over the carry: 2**32 / (2**17 - 1) cycles, and the halves of one moment
    await bench.begin()
    dut.events.value = pack(EVENTS, {"macs": (1 << 17) - 1})
    await bench.cycles((1 << 15) - 40)
    before = await bench.read("MACS_LO")
    await bench.cycles(80)  # the carry happens between the halves
    assert await bench.read("MACS_HI") == 0
    after = await bench.counter("MACS")
    assert before < 1 << 32 <= after
    assert before % ((1 << 17) - 1) == after % ((1 << 17) - 1) == 0
    await bench.finish()
    await bench.begin()
    dut.events.value = 0
    assert await bench.counter("MACS") < 1 << 32


@cocotb.test()
async def reset(dut: Any) -> None:
    """In the middle of everything: all is as at first, and nothing is answered late."""
    bench = await make(dut, 8)
    for register in WRITABLE:
        await bench.write(register.name, existing_bits(register, CONFIG))
    await bench.begin()
    await bench.finish(Fault.TOKEN, 9)
    await bench.begin()
    bench.b.pause = bench.r.pause = True
    bench.send_write(REGISTERS["IRQ_MASK"].offset, 3)
    bench.send_read(0)
    await bench.cycles(6)
    dut.busy.value = 0
    dut.rst.value = 1
    await bench.cycles(2)
    assert not int(dut.s_axil_bvalid.value) and not int(dut.s_axil_rvalid.value)
    dut.rst.value = 0
    bench.b.pause = bench.r.pause = False
    await bench.cycles(6)
    assert bench.b.empty() and bench.r.empty()
    constants = register_constants(CONFIG)
    for register in REGISTERS.values():
        wanted = constants.get(register.name, register.reset)
        assert await bench.read(register.name) == wanted, register.name
    bench.model = {r.name: r.reset for r in WRITABLE}
    bench.check_outputs()
