"""cocotb tests of the whole accelerator; run inside the simulator by test_rtl_system_protocol.

The module is `systolora_axi`, so that its reset is tested with it. Memory and the master of the
registers are cocotbext-axi's; a monitor of its own looks at every transfer of every port. Several
memory ports have a memory each: word w of port c of n is word w * n + c of the image.
"""

import json
import logging
import os
import random
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# cocotbext-axi 0.1.28 is written for cocotb 1 and uses names that cocotb 2 deprecates.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\.")

import cocotb  # noqa: E402
import numpy as np  # noqa: E402
from cocotb.clock import Clock  # noqa: E402
from cocotb.triggers import RisingEdge, Timer, with_timeout  # noqa: E402
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam  # noqa: E402

from random_programs import SIZE, random_program  # noqa: E402
from system_rtl import Case, boundary_case, machine_run  # noqa: E402
from systolora.config import AcceleratorConfig  # noqa: E402
from systolora.contract import COUNTERS, REGISTERS, Fault, register_constants  # noqa: E402
from systolora_sim.bench.system import start_commands  # noqa: E402

CONFIG = AcceleratorConfig(**json.loads(os.environ["SYSTOLORA_CONFIG"]))
SEED = int(os.environ["SYSTOLORA_SEED"])
BUS = CONFIG.bus_bytes
CHANNELS = CONFIG.channels
PORTS = ["m_axi"] if CHANNELS == 1 else [f"m_axi_{n}" for n in range(CHANNELS)]
PERIOD_NS = 2
TIMEOUT = 60_000  # cycles of a run
OKAY = 0
#: Cycles of aclk after which the reset acts, and is released.
RESET_LATENCY = 2
#: Shares of the cycles in which a channel rests: now one, now another; and of a slow port.
MOODS, SLOW = (0.0, 0.0, 0.25, 0.5, 0.9), (0.75, 0.9)
#: What the master offers on a channel, and what must not change while it does.
OFFERED = {
    "ar": ("araddr", "arlen", "arsize", "arburst", "arid"),
    "aw": ("awaddr", "awlen", "awsize", "awburst", "awid"),
    "w": ("wdata", "wstrb", "wlast"),
}


@dataclass
class Totals:
    """What has moved since the beginning of a run."""

    read_beats: int = 0
    written_bytes: int = 0
    read_bursts: int = 0
    write_bursts: int = 0
    longest: int = 0
    #: Cycles in which it stood still, by port and channel of it.
    waits: Counter[tuple[int, str]] = field(default_factory=Counter)


class Bench:
    """The accelerator, a memory, a master of the registers, and a monitor of the memory's bus."""

    def __init__(self, dut: Any, seed: int) -> None:
        self.dut = dut
        self.random = random.Random(seed)
        self.totals = Totals()
        self.windows: dict[str, tuple[int, int]] = {"ar": (0, 0), "w": (0, 0)}
        self.quiet = True  # no address was ever valid
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.ERROR)  # a line for each burst

    async def start(self) -> None:
        dut = self.dut
        Clock(dut.aclk, PERIOD_NS, "ns").start()
        dut.aresetn.value = 0
        reset = {"reset_active_level": False}
        self.rams: list[Any] = [
            AxiRam(
                AxiBus.from_prefix(dut, port), dut.aclk, dut.aresetn, size=SIZE // CHANNELS, **reset
            )
            for port in PORTS
        ]
        master: Any = AxiLiteMaster(
            AxiLiteBus.from_prefix(dut, "s_axil"), dut.aclk, dut.aresetn, **reset
        )
        self.lite = master
        await self.cycles(5)
        for number in range(CHANNELS):
            cocotb.start_soon(self._watch(number))
        await self.release()

    async def release(self) -> None:
        self.dut.aresetn.value = 1
        await self.cycles(RESET_LATENCY + 2)

    def stalls(self, on: bool, only: int | None = None) -> None:
        """Random pauses on all channels of all ports, other ones on each, or none.

        only : the memory port that has them, which is slow all the time
        """
        for number, slave in enumerate((*self.rams, self.lite)):
            paused = on and only in (None, number)
            for channel in (
                slave.write_if.aw_channel,
                slave.write_if.w_channel,
                slave.write_if.b_channel,
                slave.read_if.ar_channel,
                slave.read_if.r_channel,
            ):
                channel.clear_pause_generator()
                channel.pause = False
                if paused:
                    source = random.Random(self.random.random())
                    moods = MOODS if only is None else SLOW
                    channel.set_pause_generator(self._pauses(source, moods))

    @staticmethod
    def _pauses(source: random.Random, moods: tuple[float, ...]) -> Iterator[bool]:
        while True:
            limit = source.choice(moods)
            for _ in range(61):
                yield source.random() < limit

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            await RisingEdge(self.dut.aclk)

    # Registers --------------------------------------------------------------------------------

    async def write(self, offset: int, value: int) -> None:
        answer = await self.lite.write(offset, value.to_bytes(4, "little"))
        assert int(answer.resp) == OKAY, hex(offset)

    async def read(self, name: str) -> int:
        answer = await self.lite.read(REGISTERS[name].offset, 4)
        assert int(answer.resp) == OKAY, name
        return int.from_bytes(answer.data, "little")

    async def counter(self, name: str) -> int:
        return await self.read(f"{name}_LO") | await self.read(f"{name}_HI") << 32

    async def begin(self, case: Case) -> None:
        """Gives the memory the case's content and starts it."""
        words = case.image.reshape(-1, CHANNELS, BUS)
        for number, ram in enumerate(self.rams):
            ram.write(0, words[:, number].tobytes())
        self.windows = {"ar": case.read_window, "w": case.write_window}
        self.totals = Totals()
        for command in start_commands(case.job()):
            _, offset, value, _ = command.line.split()
            await self.write(int(offset, 0), int(value, 0))

    async def check(self, case: Case) -> None:
        """A whole run: interrupt, registers, counters, every byte of memory."""
        await self.begin(case)
        await with_timeout(RisingEdge(self.dut.irq), TIMEOUT * PERIOD_NS, "ns")
        assert await self.read("STATUS") == 0b010
        assert await self.read("ERROR") == Fault.NONE
        expected, image = machine_run(case)
        assert expected.fault is Fault.NONE
        parts = [np.frombuffer(ram.read(0, SIZE // CHANNELS), np.uint8) for ram in self.rams]
        after = np.stack([part.reshape(-1, BUS) for part in parts], 1).reshape(-1)
        wrong = np.flatnonzero(after != image)
        assert wrong.size == 0, f"{wrong.size} bytes differ, from {case.base + wrong[0]:#x}"
        counters = {name: await self.counter(name) for name in COUNTERS}
        assert (
            counters["BYTES_READ"] == self.totals.read_beats * BUS == expected.counters.bytes_read
        )
        assert counters["BYTES_WRITTEN"] == self.totals.written_bytes
        assert self.totals.written_bytes == expected.counters.bytes_written
        assert counters["MACS"] == expected.counters.macs
        assert await self.read("WORD_BASE") == expected.word_base
        await self.write(REGISTERS["IRQ_STATUS"].offset, 0b11)
        await self.cycles(4)
        assert not int(self.dut.irq.value)
        cocotb.log.info("%s, %s", counters, self.totals)

    # Monitor ----------------------------------------------------------------------------------

    async def _watch(self, port: int) -> None:
        """Checks a memory port's channels once a cycle; after a reset it knows nothing."""
        dut, edge = self.dut, RisingEdge(self.dut.aclk)
        names = {name for payload in OFFERED.values() for name in payload}
        names |= {f"{way}{part}" for way in ("ar", "aw", "w", "r", "b") for part in _HANDSHAKE}
        handles = {name: getattr(dut, f"{PORTS[port]}_{name}") for name in (*names, "rlast")}

        def value(name: str) -> int:
            return int(handles[name].value)

        held: dict[str, tuple[int, ...]] = {}
        reads: deque[int] = deque()  # beats that are missing
        addressed: deque[tuple[int, int]] = deque()
        data: deque[tuple[int, bool]] = deque()  # strobes, last
        beat = unanswered = complete = 0
        in_reset = 0
        while True:
            await edge
            if not int(dut.aresetn.value):
                in_reset += 1
                held.clear()
                for queue in (reads, addressed, data):
                    queue.clear()
                beat = unanswered = complete = 0
                if in_reset > RESET_LATENCY + 1:
                    for way in ("ar", "aw", "w"):
                        assert not value(f"{way}valid"), f"{way}valid in reset"
                    assert not int(dut.irq.value)
                continue
            in_reset = 0
            for way, payload in OFFERED.items():
                valid, ready = value(f"{way}valid"), value(f"{way}ready")
                now = tuple(value(name) for name in payload) if valid else ()
                if way in held:
                    assert now == held.pop(way), f"{way}: what was offered changed"
                if not valid:
                    continue
                if not ready:
                    held[way] = now
                    self.totals.waits[port, way] += 1
                elif way == "w":
                    data.append((now[1], bool(now[2])))
                else:
                    self.quiet = False
                    address, beats = now[0], now[1] + 1
                    assert now[2:] == (BUS.bit_length() - 1, 1, 0), f"{way}: size, burst, id"
                    assert address % BUS == 0
                    assert address // 4096 == (address + beats * BUS - 1) // 4096
                    self.totals.longest = max(self.totals.longest, beats)
                    if way == "ar":
                        first, limit = self.windows["ar"]
                        assert first <= linear(port, address)
                        assert linear(port, address + (beats - 1) * BUS) + BUS <= limit
                        reads.append(beats)
                        self.totals.read_bursts += 1
                    else:
                        addressed.append((address, beats))
                        unanswered += 1
                        self.totals.write_bursts += 1
            while addressed and data:
                address, beats = addressed[0]
                strobes, last = data.popleft()
                self._written(linear(port, address + beat * BUS), strobes)
                beat += 1
                assert last == (beat == beats), "wlast"
                if last:
                    addressed.popleft()
                    beat = 0
                    complete += 1
            if value("rvalid") and value("rready"):
                self.totals.read_beats += 1
                reads[0] -= 1
                assert bool(value("rlast")) == (reads[0] == 0)
                if not reads[0]:
                    reads.popleft()
            if value("bvalid") and value("bready"):
                unanswered -= 1
                complete -= 1
                assert complete >= 0, "an answer to a burst that is not complete"
            assert len(reads) <= 2 * CONFIG.outstanding + 4 and unanswered <= CONFIG.outstanding

    def _written(self, address: int, strobes: int) -> None:
        """One beat: every byte that it writes is in the window."""
        first, limit = self.windows["w"]
        if strobes:
            assert first <= address + (strobes & -strobes).bit_length() - 1
            assert address + strobes.bit_length() <= limit
        self.totals.written_bytes += strobes.bit_count()


_HANDSHAKE = ("valid", "ready")


def linear(port: int, address: int) -> int:
    """Where a word of a port lies in the image."""
    return address // BUS * CONFIG.beat_bytes + port * BUS


async def make(dut: Any, offset: int = 0) -> Bench:
    cocotb.log.info("seed %d, configuration %s", SEED + offset, CONFIG.digest)
    bench = Bench(dut, SEED + offset)
    await bench.start()
    return bench


def case_of(seed: int, rounds: int = 4) -> Case:
    return Case.of(CONFIG, random_program(CONFIG, seed, rounds))


@cocotb.test()
async def registers_and_a_program(dut: Any) -> None:
    """Nothing happens before a start; then a program at full speed."""
    bench = await make(dut)
    for name, value in register_constants(CONFIG).items():
        assert await bench.read(name) == value
    await bench.cycles(50)
    assert bench.quiet and await bench.read("STATUS") == 0
    await bench.check(case_of(SEED))
    assert bench.totals.longest > 1


@cocotb.test()
async def programs_with_pauses(dut: Any) -> None:
    """Random pauses on all channels, the registers', too."""
    bench = await make(dut, 1)
    bench.stalls(True)
    for seed in (SEED + 1, SEED + 2):
        await bench.check(case_of(seed))
        for port in range(CHANNELS):
            assert min(bench.totals.waits[port, way] for way in OFFERED) > 10


@cocotb.test(skip=CHANNELS == 1)
async def a_slow_port(dut: Any) -> None:
    """One memory port rests most of the time, the others never: they wait, and nothing is lost."""
    bench = await make(dut, 4)
    for port in range(CHANNELS):
        bench.stalls(True, only=port)
        await bench.check(case_of(SEED + 5 + port, rounds=2))
        assert min(bench.totals.waits[port, way] for way in OFFERED) > 10
        assert not any(bench.totals.waits[n, "w"] for n in range(CHANNELS) if n != port)


@cocotb.test()
async def boundaries(dut: Any) -> None:
    """Rows about multiples of 4 KiB, which no burst crosses."""
    bench = await make(dut, 3)
    for stalls in (False, True):
        bench.stalls(stalls)
        await bench.check(boundary_case(CONFIG, SEED))


@cocotb.test()
async def resets(dut: Any) -> None:
    """aresetn falls and rises anywhere in a cycle, in the middle of a run; three cycles do."""
    bench = await make(dut, 2)
    middles = (40, 401, 902, 1403) if CHANNELS == 1 else (40, 151, 272, 393)
    for number, run in enumerate(middles):
        bench.stalls(number % 2 == 1)
        await bench.begin(case_of(SEED))
        await bench.cycles(run)
        assert not int(dut.irq.value), "the run is over already"
        await Timer(bench.random.randrange(1, PERIOD_NS * 1000), "ps")
        dut.aresetn.value = 0
        await Timer((3 + number) * PERIOD_NS * 1000 + bench.random.randrange(1000), "ps")
        await bench.release()
        bench.stalls(False)
        assert await bench.read("STATUS") == 0
        assert await bench.read("RUNS") == 1
        assert await bench.counter("CYCLES") == 0
        await bench.check(case_of(SEED + 4 + number, rounds=2))
