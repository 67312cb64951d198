"""cocotb tests of the memory engines; run inside the simulator by test_rtl_memory.

Every transfer of every channel is looked at: AXI's rules (what is offered stays, bursts inside
4 KiB, as many beats as announced), and the whole memory after each group of requests, so that a
byte written anywhere else is found.
"""

import logging
import os
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

# cocotbext-axi 0.1.28 is written for cocotb 1 and uses names that cocotb 2 deprecates.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"cocotbext\.axi\.")

import cocotb  # noqa: E402
from cocotb.clock import Clock  # noqa: E402
from cocotb.triggers import RisingEdge  # noqa: E402
from cocotbext.axi import AxiBus, AxiRam  # noqa: E402
from cocotbext.axi.stream import define_stream  # noqa: E402

DATA_BITS = int(os.environ["SYSTOLORA_DATA_BITS"])
ADDRESS_BITS = int(os.environ["SYSTOLORA_ADDRESS_BITS"])
OUTSTANDING = int(os.environ["SYSTOLORA_OUTSTANDING"])
BURST_BEATS = int(os.environ["SYSTOLORA_BURST_BEATS"])
ALIGN = int(os.environ["SYSTOLORA_ALIGN"])
SEED = int(os.environ["SYSTOLORA_SEED"])

BUS = DATA_BITS // 8
SIZE = 1 << 17  # bytes of memory; addresses above repeat it
HALF = SIZE // 2
#: The memory appears here; the upper bits of the address are looked at on the bus.
ORIGIN = 0xA5 << (ADDRESS_BITS - 8)
TIMEOUT = 20_000

OK, EMPTY, UNALIGNED, OUTSIDE, ABORTED, SLAVE, DECODE = range(7)
SLVERR, DECERR = 2, 3
CODE = {SLVERR: SLAVE, DECERR: DECODE}

PortBus, PortItem, PortSource, PortSink, _ = define_stream(
    "Port", signals=["payload", "valid", "ready"]
)


@dataclass(frozen=True)
class Region:
    """A request; `address` counts from ORIGIN."""

    address: int
    rows: int
    row_bytes: int
    stride: int

    @property
    def packed(self) -> int:
        value, position = 0, 0
        for part, bits in (
            ((ORIGIN + self.address) % (1 << ADDRESS_BITS), ADDRESS_BITS),
            (self.rows, 16),
            (self.row_bytes, 24),
            (self.stride, 32),
        ):
            assert 0 <= part < 1 << bits
            value |= part << position
            position += bits
        return value

    @property
    def row_beats(self) -> int:
        return -(-self.row_bytes // BUS)

    @property
    def starts(self) -> Iterator[int]:
        return (self.address + row * self.stride for row in range(self.rows))

    @property
    def words(self) -> list[int]:
        """Addresses of the bus words, in order."""
        return [
            start // BUS * BUS + beat * BUS
            for start in self.starts
            for beat in range(self.row_beats)
        ]

    def bursts(self) -> list[list[int]]:
        """The bursts' words: each ends with its row or at a multiple of its greatest length."""
        unit = min(BURST_BEATS * BUS, 4096)
        result: list[list[int]] = []
        for start in self.starts:
            first = start // BUS * BUS
            for beat in range(self.row_beats):
                word = first + beat * BUS
                if beat == 0 or word % unit == 0:
                    result.append([])
                result[-1].append(word)
        return result


@dataclass
class Traffic:
    """What the monitor saw of one direction."""

    bursts: list[tuple[int, int]] = field(default_factory=list)  # address from ORIGIN, beats
    data: int = 0  # beats
    answers: int = 0
    active: int = 0  # cycles with any valid of the master
    first: int = 0  # cycle of the first beat since the last reset of it
    last: int = 0
    waits: int = 0  # cycles in which the memory offered and the master did not take
    most: int = 0  # bursts outstanding at once


class Bench:
    """The engines, a memory, and a monitor of every channel."""

    def __init__(self, dut: Any, seed: int) -> None:
        self.dut = dut
        self.random = random.Random(seed)
        self.cycle = 0
        self.reads, self.writes = Traffic(), Traffic()
        self.bad: dict[int, int] = {}  # answers of words of the memory, by their address
        logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.ERROR)  # a line for each burst

    async def start(self) -> None:
        dut = self.dut
        Clock(dut.clk, 2, "ns").start()
        for name in ("r_soft_abort", "w_soft_abort"):
            getattr(dut, name).value = 0
        self.window("r", 0, SIZE)
        self.window("w", 0, SIZE)
        dut.rst.value = 1
        self.ram: Any = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=SIZE)
        self.ports = {
            name: (PortSource if name in ("r_request", "w_request", "w_beats") else PortSink)(
                PortBus.from_prefix(dut, name), dut.clk, dut.rst
            )
            for name in ("r_request", "w_request", "w_beats", "r_beats", "r_response", "w_response")
        }
        self.ram.write(0, self.random.randbytes(SIZE))
        self._faults()
        for _ in range(4):
            await RisingEdge(dut.clk)
        dut.rst.value = 0
        cocotb.start_soon(self._watch())
        await RisingEdge(dut.clk)

    def window(self, way: str, base: int, limit: int) -> None:
        """Sets a window, from ORIGIN."""
        getattr(self.dut, f"{way}_base").value = ORIGIN + base
        getattr(self.dut, f"{way}_limit").value = ORIGIN + limit

    def stalls(self, probability: float | None) -> None:
        """Random pauses on every channel, or none."""
        read: Any = self.ram.read_if
        write: Any = self.ram.write_if
        channels = [read.ar_channel, read.r_channel]
        channels += [write.aw_channel, write.w_channel, write.b_channel]
        for channel in (*channels, *self.ports.values()):
            channel.clear_pause_generator()
            channel.pause = False
            if probability is not None:
                channel.set_pause_generator(self._pauses(random.Random(self.random.random())))

    @staticmethod
    def _pauses(source: random.Random) -> Iterator[bool]:
        while True:
            limit = source.choice((0.0, 0.0, 0.25, 0.5, 0.9))
            for _ in range(61):
                yield source.random() < limit

    def _faults(self) -> None:
        """Makes the memory answer as `bad` says; it knows SLVERR only, and by exception."""
        read: Any = self.ram.read_if
        write: Any = self.ram.write_if
        word = 0
        worst = 0
        load, store = read._read, write._write
        send_data, send_answer = read.r_channel.send, write.b_channel.send

        async def _read(address: int, length: int) -> bytes:
            nonlocal word
            word = address - ORIGIN
            return await load(address, length)

        async def _write(address: int, data: bytes) -> None:
            nonlocal worst
            worst = worst or self.bad.get((address - ORIGIN) // BUS * BUS, 0)
            await store(address, data)

        async def _data(item: Any) -> None:
            item.rresp = self.bad.get(word, 0)
            await send_data(item)

        async def _answer(item: Any) -> None:
            nonlocal worst
            item.bresp, worst = worst, 0
            await send_answer(item)

        read._read, write._write = _read, _write
        read.r_channel.send, write.b_channel.send = _data, _answer

    async def _watch(self) -> None:
        """Checks the channels once a cycle."""
        dut, edge = self.dut, RisingEdge(self.dut.clk)
        handles = {
            name: getattr(dut, f"m_axi_{name}")
            for name in (
                *("arvalid", "arready", "araddr", "arlen", "rvalid", "rready", "rlast"),
                *("awvalid", "awready", "awaddr", "awlen", "wvalid", "wready", "wdata"),
                *("wstrb", "wlast", "bvalid", "bready"),
            )
        }
        offered: dict[str, tuple[str, ...]] = {
            "ar": ("araddr", "arlen"),
            "aw": ("awaddr", "awlen"),
            "w": ("wlast", "wdata", "wstrb"),
        }
        held: dict[str, tuple[int, ...]] = {}
        open_reads: deque[int] = deque()
        # Write data may come before its address: bursts of which only one of both was seen yet
        addressed: deque[int] = deque()
        written: deque[int] = deque()
        beats_written = 0
        unanswered = 0

        def bit(name: str) -> bool:
            return bool(int(handles[name].value))

        def values(names: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(int(handles[name].value) for name in names)

        def moved(traffic: Traffic) -> None:
            traffic.data += 1
            traffic.last = self.cycle
            traffic.first = traffic.first or self.cycle

        for constant, value in (("size", BUS.bit_length() - 1), ("burst", 1), ("id", 0)):
            for way in ("ar", "aw"):
                assert int(getattr(dut, f"m_axi_{way}{constant}").value) == value
        while True:
            await edge
            self.cycle += 1
            if int(dut.rst.value):
                held.clear()
                for queue in (open_reads, addressed, written):
                    queue.clear()
                beats_written = unanswered = 0
                continue
            for way, payload in offered.items():
                valid = bit(f"{way}valid")
                traffic = self.reads if way == "ar" else self.writes
                traffic.active += valid
                now = values(payload if valid else ())
                if way in held:
                    assert now == held.pop(way), f"{way}: what was offered changed"
                if valid and not bit(f"{way}ready"):
                    held[way] = now
                elif valid and way != "w":
                    address, beats = now[0] - ORIGIN, now[1] + 1
                    assert address % BUS == 0
                    assert address // 4096 == (address + beats * BUS - 1) // 4096
                    traffic.bursts.append((address, beats))
                    (open_reads if way == "ar" else addressed).append(beats)
                    unanswered += way == "aw"
                elif valid:
                    moved(self.writes)
                    beats_written += 1
                    if now[0]:
                        written.append(beats_written)
                        beats_written = 0
            while addressed and written:
                assert addressed.popleft() == written.popleft()
            if addressed:
                assert beats_written < addressed[0]
            if bit("rvalid"):
                if bit("rready"):
                    moved(self.reads)
                    open_reads[0] -= 1
                    assert bit("rlast") == (open_reads[0] == 0)
                    if not open_reads[0]:
                        open_reads.popleft()
                        self.reads.answers += 1
                else:
                    self.reads.waits += 1
            if bit("bvalid"):
                if bit("bready"):
                    unanswered -= 1
                    self.writes.answers += 1
                else:
                    self.writes.waits += 1
            self.reads.most = max(self.reads.most, len(open_reads))
            self.writes.most = max(self.writes.most, unanswered)

    async def cycles(self, count: int) -> None:
        for _ in range(count):
            await RisingEdge(self.dut.clk)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        for _ in range(TIMEOUT):
            if condition():
                return
            await RisingEdge(self.dut.clk)
        raise AssertionError(f"{what}: not within {TIMEOUT} cycles")

    async def idle(self, way: str) -> None:
        busy = getattr(self.dut, f"{way}_busy")
        await self.until(lambda: not int(busy.value), f"{way}_busy falls")

    def request(self, way: str, region: Region) -> None:
        self.ports[f"{way}_request"].send_nowait(PortItem(payload=region.packed))

    def send(self, beats: list[int]) -> None:
        for beat in beats:
            self.ports["w_beats"].send_nowait(PortItem(payload=beat))

    def taken(self, name: str) -> list[int]:
        """What left a stream until now."""
        port = self.ports[name]
        return [int(port.recv_nowait().payload) for _ in range(port.count())]

    async def responses(self, way: str, count: int) -> list[int]:
        port = self.ports[f"{way}_response"]
        await self.until(lambda: port.count() >= count, f"{count} responses")
        await self.idle(way)
        await self.cycles(8)  # nothing more may come
        return self.taken(f"{way}_response")

    def memory(self) -> bytes:
        return self.ram.read(0, SIZE)

    def expected_beats(self, region: Region) -> tuple[list[int], int]:
        """Beats and code of a read."""
        memory, beats = self.memory(), []
        words = region.words
        for index, word in enumerate(words):
            if word in self.bad:
                return beats, CODE[self.bad[word]]
            beat = int.from_bytes(memory[word : word + BUS], "little")
            row_last = (index + 1) % region.row_beats == 0
            beats.append(beat | row_last << DATA_BITS | (index + 1 == len(words)) << DATA_BITS + 1)
        return beats, OK

    def payload(self, region: Region) -> tuple[list[int], list[bytes]]:
        """Beats of a write, with rubbish beyond the rows' ends, and the rows."""
        beats, rows = [], []
        for _ in range(region.rows):
            row = self.random.randbytes(region.row_beats * BUS)
            rows.append(row[: region.row_bytes])
            beats += [
                int.from_bytes(row[at : at + BUS], "little") for at in range(0, len(row), BUS)
            ]
        return beats, rows

    def write_code(self, region: Region) -> int:
        for burst in region.bursts():
            for word in burst:
                if word in self.bad:
                    return CODE[self.bad[word]]
        return OK

    # Random regions ---------------------------------------------------------------------------

    def unit(self, row_bytes: int, least: int) -> int:
        """Where a row of so many bytes may start: at multiples of this."""
        return min(BUS, max(least, 1 << (row_bytes - 1).bit_length()))

    def region(self, way: str, beats: int = 160) -> Region:
        """A legal region inside the direction's half of the memory, often about a boundary."""
        draw = self.random
        least = BUS if way == "r" else ALIGN
        row_bytes = draw.choice(
            (
                draw.randint(1, BUS),
                draw.randint(1, BUS),
                BUS,
                draw.randint(1, 8 * BUS),
                BUS * draw.randint(1, beats),
                draw.randint(1, BUS * beats),
            )
        )
        row_bytes = min(row_bytes, HALF // 2)
        unit = self.unit(row_bytes, least)
        most = max(1, beats * BUS // -(-row_bytes // BUS * BUS))
        rows = draw.choice((1, 2, draw.randint(1, most), most))
        rows = min(rows, most)
        space = HALF - -(-row_bytes // BUS) * BUS
        longest = space // (rows - 1) // unit * unit if rows > 1 else 3 * unit
        stride = draw.choice(
            (
                0,
                unit,
                -(-row_bytes // unit) * unit,
                -(-row_bytes // unit) * unit + unit * draw.randint(0, 9),
                draw.randint(0, longest // unit) * unit,
            )
        )
        stride = min(stride, longest)
        slack = space - (rows - 1) * stride if rows > 1 else space
        start = draw.choice((0, slack, draw.randint(0, slack), 4096 * draw.randint(1, 15)))
        if draw.random() < 0.5:
            start = 4096 * draw.randint(1, 15) - draw.randint(0, 4 * BUS)
        start = max(0, min(start, slack)) // unit * unit
        return Region((0 if way == "r" else HALF) + start, rows, row_bytes, stride)


async def make(dut: Any, offset: int = 0) -> Bench:
    seed = SEED + offset
    cocotb.log.info("seed %d, %d bits", seed, DATA_BITS)
    bench = Bench(dut, seed)
    await bench.start()
    return bench


async def both(bench: Bench, regions: dict[str, list[Region]]) -> None:
    """Reads and writes at the same time, back to back; checks beats, codes, bursts and memory."""
    expected = bytearray(bench.memory())
    beats, codes = [], {"r": [], "w": []}
    bench.reads.bursts.clear()
    bench.writes.bursts.clear()
    data_before = bench.writes.data
    for region in regions["r"]:
        some, code = bench.expected_beats(region)
        beats += some
        codes["r"].append(code)
        bench.request("r", region)
    for region in regions["w"]:
        payload, rows = bench.payload(region)
        for start, row in zip(region.starts, rows, strict=True):
            expected[start : start + len(row)] = row
        codes["w"].append(bench.write_code(region))
        bench.request("w", region)
        bench.send(payload)
    for way in "rw":
        assert await bench.responses(way, len(regions[way])) == codes[way]
    assert bench.taken("r_beats") == beats
    assert bench.memory() == bytes(expected)
    flat = {
        way: [(b[0], len(b)) for region in regions[way] for b in region.bursts()] for way in "rw"
    }
    assert bench.writes.bursts == flat["w"]
    assert bench.writes.data - data_before == sum(beats for _, beats in flat["w"])
    if set(codes["r"]) == {OK}:
        assert bench.reads.bursts == flat["r"]


@cocotb.test()
async def random_regions(dut: Any) -> None:
    """Any legal region, in both directions at once, with pauses everywhere."""
    bench = await make(dut)
    for group in range(9):
        bench.stalls(None if group == 0 else 0.5)
        await both(bench, {way: [bench.region(way) for _ in range(8)] for way in "rw"})
    cocotb.log.info(
        "%d cycles, %d beats read, %d written, %d and %d bursts outstanding",
        bench.cycle,
        bench.reads.data,
        bench.writes.data,
        bench.reads.most,
        bench.writes.most,
    )
    assert OUTSTANDING >= bench.reads.most > 1 and OUTSTANDING >= bench.writes.most > 1


@cocotb.test()
async def every_offset(dut: Any) -> None:
    """Each short row at each place in a word: the bytes beside it stay."""
    bench = await make(dut, 1)
    places = []
    for row_bytes in range(1, BUS + 1):
        unit = bench.unit(row_bytes, ALIGN)
        for offset in range(0, BUS, unit):
            places.append(Region(HALF + 4096 - BUS + offset, 2, row_bytes, BUS + unit))
    bench.random.shuffle(places)
    for at in range(0, min(len(places), 240), 20):
        await both(bench, {"r": [], "w": places[at : at + 20]})


@cocotb.test()
async def bus_errors(dut: Any) -> None:
    """SLVERR and DECERR in any beat: the right code, and the requests beside it untouched."""
    bench = await make(dut, 2)
    seen: set[tuple[str, int]] = set()
    for group in range(16):
        bench.stalls(None if group % 4 == 0 else 0.5)
        bench.bad.clear()
        regions = {way: [bench.region(way, 48) for _ in range(4)] for way in "rw"}
        for way in "rw":
            for region in bench.random.sample(regions[way], 2):
                word = bench.random.choice(region.words)
                bench.bad[word] = bench.random.choice((SLVERR, DECERR))
        for way in "rw":
            for region in regions[way]:
                code = bench.expected_beats(region)[1] if way == "r" else bench.write_code(region)
                seen.add((way, code))
        await both(bench, regions)
    assert seen == {(way, code) for way in "rw" for code in (OK, SLAVE, DECODE)}


@cocotb.test()
async def error_stops_reading(dut: Any) -> None:
    """After an error in the first beat only what was outstanding still comes."""
    bench = await make(dut, 3)
    region = Region(0, 1, 400 * BUS, 0)
    bench.bad[0] = SLVERR
    bench.request("r", region)
    assert await bench.responses("r", 1) == [SLAVE]
    assert bench.taken("r_beats") == []
    assert len(bench.reads.bursts) <= OUTSTANDING + 1
    bench.bad.clear()
    await both(bench, {"r": [region], "w": []})


@cocotb.test()
async def refused(dut: Any) -> None:
    """A request outside its window, or that cannot be done, never reaches the bus."""
    bench = await make(dut, 4)
    base, limit = 4096, 8192
    top = (1 << ADDRESS_BITS) - ORIGIN  # the end of the address space
    cases: list[tuple[str, Region, int]] = []
    for way in "rw":
        bench.window(way, base, limit)
        half = BUS // 2
        cases += [
            (way, Region(base, 0, BUS, BUS), EMPTY),
            (way, Region(base, 1, 0, BUS), EMPTY),
            (way, Region(base + 1, 1, BUS, BUS), UNALIGNED),
            (way, Region(base, 2, BUS, BUS + half), UNALIGNED),
            (way, Region(base + BUS - 1, 1, 2, 0), UNALIGNED),
            (way, Region(base - BUS, 1, BUS, 0), OUTSIDE),
            (way, Region(base - BUS, 2, BUS, BUS), OUTSIDE),
            (way, Region(limit, 1, 1, 0), OUTSIDE),
            (way, Region(limit - BUS, 1, BUS + 1, 0), OUTSIDE),
            (way, Region(base, 2, BUS, limit - base), OUTSIDE),
            (way, Region(base, 2, 1, limit - base), OUTSIDE),
            (way, Region(base, 3, BUS, (limit - base) // 2), OUTSIDE),
            (way, Region(base, 1, (1 << 24) - 1, 0), OUTSIDE),
            (way, Region(base, 0xFFFF, BUS, 0xFFFFFFFF // BUS * BUS), OUTSIDE),
            # Once round the address space, back into the window
            (way, Region(top - BUS, 2, BUS, BUS), OUTSIDE),
        ]
    # (rows - 1) * stride = 2**ADDRESS_BITS exactly
    cases += [
        (way, Region(base, (1 << 14) + 1, BUS, 1 << (ADDRESS_BITS - 14)), OUTSIDE) for way in "rw"
    ]
    for group in range(2):
        bench.stalls(None if group == 0 else 0.5)
        order = bench.random.sample(cases, len(cases))
        for way in "rw":
            mine = [(region, code) for w, region, code in order if w == way]
            for region, _ in mine:
                bench.request(way, region)
            assert await bench.responses(way, len(mine)) == [code for _, code in mine]
    assert bench.reads.active == bench.writes.active == 0
    assert bench.taken("r_beats") == []

    # What just fits is done: the whole window, its last byte, and, for reads, its last word
    good = {
        way: [
            Region(base, 1, limit - base, 0),
            Region(base, (limit - base) // BUS, BUS, BUS),
            Region(limit - BUS, 1, 1, BUS),
            Region(base, 2, BUS, limit - base - BUS),
            Region(base, 1, BUS, 1),  # one row: the stride does not matter
        ]
        for way in "rw"
    }
    bench.stalls(None)
    await both(bench, {"r": good["r"], "w": []})
    await both(bench, {"r": [], "w": [*good["w"], Region(limit - ALIGN, 1, ALIGN, 0)]})

    # A limit inside a word: no read touches that word, a write may up to the limit
    bench.window("r", base, limit - BUS + 1)
    bench.window("w", base, limit - BUS + 1)
    last = Region(limit - BUS, 1, 1, 0)
    active = bench.reads.active
    bench.request("r", last)
    assert await bench.responses("r", 1) == [OUTSIDE]
    assert bench.reads.active == active
    await both(bench, {"r": [], "w": [last]})

    # A window that ends with the address space
    bench.window("r", 0, top)
    end = Region(top - 2 * BUS, 2, BUS, BUS)
    bench.request("r", end)
    assert await bench.responses("r", 1) == [OK]
    assert len(bench.taken("r_beats")) == 2
    for way in "rw":
        bench.window(way, base, base)
        bench.request(way, Region(base, 1, 1, 0))
        assert await bench.responses(way, 1) == [OUTSIDE]


@cocotb.test()
async def abort(dut: Any) -> None:
    """In the middle of anything: bursts end whole, every request is answered, then all works."""
    bench = await make(dut, 5)
    codes: set[int] = set()
    for group in range(24):
        bench.stalls(None if group % 4 == 0 else 0.5)
        before = bench.memory()
        counts = {}
        reads, writes = bench.reads, bench.writes
        answered = reads.answers, writes.answers
        reads.bursts.clear()
        writes.bursts.clear()
        data_before = reads.data, writes.data
        read = [bench.region("r") for _ in range(2)] + [Region(0, 3, 200 * BUS, 200 * BUS)]
        write = Region(HALF, 2, 150 * BUS, 152 * BUS)
        for region in read:
            bench.request("r", region)
        payload, rows = bench.payload(write)
        bench.request("w", write)
        bench.send(payload)
        await bench.cycles(bench.random.choice((1, 20, 30, 60, 120, 200, 400)))
        if group % 3 == 0:  # nobody takes the beats any more
            bench.ports["r_beats"].clear_pause_generator()
            bench.ports["r_beats"].pause = True
            await bench.cycles(60)
        for way in "rw":
            getattr(dut, f"{way}_soft_abort").value = 1
        bench.ports["w_beats"].clear()
        # A beat that is still offered is withdrawn
        bench.ports["w_beats"].assert_reset()
        accepted = {"r": 3, "w": 1}
        for way in "rw":
            counts[way] = await bench.responses(way, accepted[way])
        for way in "rw":
            getattr(dut, f"{way}_soft_abort").value = 0
        await bench.cycles(2)
        # Taken are the first beats, all of a request that ended well
        beats = bench.taken("r_beats")
        complete = [bench.expected_beats(region)[0] for region in read]
        assert beats == [beat for some in complete for beat in some][: len(beats)]
        done = counts["r"].index(ABORTED) if ABORTED in counts["r"] else len(read)
        assert set(counts["r"][done:]) <= {ABORTED}
        assert len(beats) >= sum(len(some) for some in complete[:done])
        for way, traffic, data, answers in (
            ("r", reads, data_before[0], answered[0]),
            ("w", writes, data_before[1], answered[1]),
        ):
            assert len(counts[way]) == accepted[way]
            assert set(counts[way]) <= {OK, ABORTED}
            codes |= set(counts[way])
            # As many beats as the bursts that were begun announced, and all answered
            assert traffic.data - data == sum(beats for _, beats in traffic.bursts)
            assert traffic.answers - answers == len(traffic.bursts)
        # Written are whole bursts, the first ones, with their data; nothing else changed
        expected = bytearray(before)
        begun = write.bursts()[: len(writes.bursts)]
        assert writes.bursts == [(burst[0], len(burst)) for burst in begun]
        image = bytearray(before)
        for start, row in zip(write.starts, rows, strict=True):
            image[start : start + len(row)] = row
        for burst in begun:
            expected[burst[0] : burst[-1] + BUS] = image[burst[0] : burst[-1] + BUS]
        assert bench.memory() == bytes(expected)
        bench.stalls(None)
        await both(bench, {way: [bench.region(way, 24) for _ in range(2)] for way in "rw"})
    assert codes == {OK, ABORTED}

    # The only burst of a request, while it waits for its payload
    active = bench.writes.active
    bench.request("w", Region(HALF, 1, BUS, 0))
    await bench.cycles(20)
    assert int(dut.w_busy.value)
    dut.w_soft_abort.value = 1
    assert await bench.responses("w", 1) == [ABORTED]
    dut.w_soft_abort.value = 0
    assert bench.writes.active == active
    await both(bench, {"r": [], "w": [Region(HALF, 1, BUS, 0)]})


@cocotb.test()
async def beats_wait(dut: Any) -> None:
    """A consumer that stops does not hold up the bus: what was asked for has its place."""
    bench = await make(dut, 6)
    bench.ports["r_beats"].pause = True
    region = Region(0, 4, 30 * BUS, 32 * BUS)
    expected, _ = bench.expected_beats(region)
    bench.request("r", region)
    await bench.cycles(400)
    assert bench.reads.waits == 0
    assert bench.reads.data == sum(beats for _, beats in bench.reads.bursts) > 0
    # No address is sent without the data behind it
    bench.request("w", Region(HALF, 1, BURST_BEATS * BUS, 0))
    beats, _ = bench.payload(Region(HALF, 1, BURST_BEATS * BUS, 0))
    bench.send(beats[:-1])
    await bench.cycles(100)
    assert bench.writes.active == 0
    bench.send(beats[-1:])
    assert await bench.responses("w", 1) == [OK]
    bench.ports["r_beats"].pause = False
    assert await bench.responses("r", 1) == [OK]
    assert bench.taken("r_beats") == expected


@cocotb.test()
async def throughput(dut: Any) -> None:
    """Beats per cycle with a memory that never waits, from the first beat to the last."""
    bench = await make(dut, 7)
    for row_beats in (256, 8, 2, 1):
        # A burst is answered after some 10 cycles here; short rows cannot be faster than that
        least = min(0.95, OUTSTANDING * row_beats / 12)
        rows = min(512 // row_beats, HALF // (row_beats * BUS))
        for way, traffic, base in (("r", bench.reads, 0), ("w", bench.writes, HALF)):
            region = Region(base, rows, row_beats * BUS, row_beats * BUS)
            traffic.first = 0
            before = traffic.data
            if way == "w":
                bench.send(bench.payload(region)[0])
                await bench.cycles(64)
            bench.request(way, region)
            assert await bench.responses(way, 1) == [OK]
            beats = traffic.data - before
            assert beats == rows * row_beats
            rate = beats / (traffic.last - traffic.first + 1)
            cocotb.log.info(
                "throughput %s: rows of %d beats, %.3f beats per cycle", way, row_beats, rate
            )
            assert rate >= least, (way, row_beats, rate)
        bench.taken("r_beats")


@cocotb.test()
async def latency(dut: Any) -> None:
    """From the cycle that takes a request to its first address: 6 and the bits of rows - 1."""
    bench = await make(dut, 9)
    for rows, bits in ((1, 0), (2, 1), (9, 4), (64, 6)):
        bench.send(bench.payload(Region(HALF, rows, BUS, BUS))[0])
        await bench.cycles(BURST_BEATS + 8)
        for way, base, valid in (
            ("r", 0, dut.m_axi_arvalid),
            ("w", HALF, dut.m_axi_awvalid),
        ):
            request = getattr(dut, f"{way}_request_valid")
            bench.request(way, Region(base, rows, BUS, BUS))
            await bench.until(lambda request=request: bool(int(request.value)), "request_valid")
            assert int(getattr(dut, f"{way}_request_ready").value)
            start = bench.cycle
            await bench.until(lambda valid=valid: bool(int(valid.value)), "address valid")
            assert bench.cycle - start == 6 + bits, (way, rows, bench.cycle - start)
            if way == "w":
                await bench.until(lambda: bool(int(dut.m_axi_wvalid.value)), "data valid")
                assert bench.cycle - start == 8 + bits
            assert await bench.responses(way, 1) == [OK]
        bench.taken("r_beats")


@cocotb.test()
async def reset_in_a_burst(dut: Any) -> None:
    """A reset of engines and memory in the middle of bursts leaves nothing behind."""
    bench = await make(dut, 8)
    bench.request("w", Region(HALF, 1, 100 * BUS, 0))
    bench.send(bench.payload(Region(HALF, 1, 100 * BUS, 0))[0])
    await bench.cycles(BURST_BEATS + 10)
    bench.request("r", Region(0, 1, 100 * BUS, 0))
    await bench.cycles(30)
    assert int(dut.r_busy.value) and int(dut.w_busy.value)
    assert bench.reads.data and bench.writes.data
    dut.rst.value = 1
    bench.ports["w_beats"].clear()
    await bench.cycles(4)
    bench.taken("r_beats")
    dut.rst.value = 0
    await bench.cycles(20)
    assert not int(dut.r_busy.value) and not int(dut.w_busy.value)
    for name in ("r_beats", "r_response", "w_response"):
        assert bench.taken(name) == []
    bench.writes.data = 0
    await both(bench, {way: [bench.region(way) for _ in range(4)] for way in "rw"})
