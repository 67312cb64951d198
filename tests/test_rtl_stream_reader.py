# amaranth: UnusedElaboratable=no
"""StreamReader against bytes of memory, with a model of the MemoryReader behind it."""

import random
from collections import deque
from dataclasses import dataclass

import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from stream_patterns import Pattern, never, randomly, rarely, send, silent, take, watchdog
from systolora.rtl.layouts import StreamReadLayout
from systolora.rtl.memory_reader import BeatLayout
from systolora.rtl.regions import MemoryCode, RegionLayout
from systolora.rtl.stream_reader import StreamReader

SEED = 20260812
ADDRESS_BITS = 20

#: cols, acc_bits, data_bits: rows of every width in one word, in several, and mixed
SHAPES = [(4, 48, 64), (4, 32, 512), (4, 48, 1024), (16, 48, 128), (8, 48, 256)]


@dataclass
class Item:
    """One item; `beats` of it come (None: all) before its response `code`."""

    address: int
    stride: int
    rows: int
    cols: int
    width: int
    index: int
    wait_store: int = 0
    code: MemoryCode = MemoryCode.OK
    beats: int | None = None

    @property
    def packed(self) -> int:
        fields = {k: v for k, v in vars(self).items() if k not in ("code", "beats")}
        return StreamReadLayout(ADDRESS_BITS).const(fields).as_value().value

    def region(self, bus: int) -> int:
        offset = self.address % bus
        region = {
            "address": self.address - offset,
            "rows": self.rows,
            "row_bytes": offset + (self.cols << self.width),
            "stride": self.stride,
        }
        return RegionLayout(ADDRESS_BITS).const(region).as_value().value

    def words(self, content: bytes, bus: int) -> list[tuple[int, int, int]]:
        """(data, last_of_row, last) of every beat."""
        result = []
        base = self.address // bus * bus
        count = -(-(self.address % bus + (self.cols << self.width)) // bus)
        for row in range(self.rows):
            for n in range(count):
                place = base + row * self.stride + n * bus
                word = int.from_bytes(content[place : place + bus], "little")
                ends = n == count - 1
                result.append((word, int(ends), int(ends and row == self.rows - 1)))
        return result

    def values(self, content: bytes, acc_bits: int) -> list[list[int]]:
        size = 1 << self.width
        result = []
        for row in range(self.rows):
            first = self.address + row * self.stride
            lanes = []
            for col in range(self.cols):
                place = first + col * size
                value = int.from_bytes(content[place : place + size], "little", signed=True)
                lanes.append(value & (1 << acc_bits) - 1)
            result.append(lanes)
        return result


class Bench:
    """A StreamReader, the memory's content, and what was seen."""

    def __init__(self, shape: tuple[int, int, int], depth: int = 4) -> None:
        self.cols, self.acc_bits, data_bits = shape
        self.bus = data_bits // 8
        self.dut = StreamReader(
            cols=self.cols,
            acc_bits=self.acc_bits,
            data_bits=data_bits,
            address_bits=ADDRESS_BITS,
            depth=depth,
        )
        self.content = random.Random(SEED).randbytes(1 << 14)
        self.regions: deque[int] = deque()
        self.row_cycles: list[int] = []
        self.faults: list[tuple[int, int]] = []
        self.busy = 0

    def item(self, rng: random.Random, index: int, wait_store: int = 0) -> Item:
        cols, width = rng.randint(1, self.cols), rng.randrange(4)
        align = min(self.bus, self.cols << width)
        stride = self.bus * rng.randint(0, 40)
        return Item(
            align * rng.randrange(16), stride, rng.randint(1, 7), cols, width, index, wait_store
        )

    def run(
        self,
        items: list[Item],
        *,
        producing: Pattern = never,
        memory: Pattern = never,
        consuming: Pattern = never,
        rows_expected: list[list[int]] | None = None,
        tokens_after: int = 0,
    ) -> None:
        dut, content = self.dut, self.content
        if rows_expected is None:
            rows_expected = [row for item in items for row in item.values(content, self.acc_bits)]
        queue = deque(items)
        patterns = iter(
            pattern(random.Random(SEED + n))
            for n, pattern in enumerate((producing, memory, memory, memory, consuming))
        )
        go_items, go_requests, go_beats, go_tokens, go_rows = patterns
        given = [0]  # tokens

        async def produce(ctx):
            for item in items:
                await send(ctx, dut.items, item.packed, go_items)

        async def give_tokens(ctx):
            for _ in range(tokens_after):
                await ctx.tick()
            for _ in range(sum(item.wait_store for item in items)):
                while not next(go_tokens):
                    await ctx.tick()
                ctx.set(dut.token, 1)
                await ctx.tick()
                given[0] += 1
                ctx.set(dut.token, 0)

        async def take_requests(ctx):
            used = 0
            for number, item in enumerate(items):
                region = await take(ctx, dut.request, go_requests)
                used += item.wait_store
                assert region == item.region(self.bus), f"item {number}, seed {SEED}"
                # `given` may already count the token of this cycle's edge
                assert used <= given[0], f"item {number}: its token had not come"
                self.regions.append(region)
            await silent(ctx, dut.request, 20)

        async def answer(ctx):
            while queue:
                if not self.regions:
                    await ctx.tick()
                    continue
                self.regions.popleft()
                item = queue.popleft()
                for word, last_of_row, last in item.words(content, self.bus)[: item.beats]:
                    beat = {"data": word, "last_of_row": last_of_row, "last": last}
                    value = BeatLayout(8 * self.bus).const(beat).as_value().value
                    await send(ctx, dut.beats, value, go_beats)
                ctx.set(dut.response.payload, item.code)
                ctx.set(dut.response.valid, 1)
                *_, ready = await ctx.tick().sample(dut.response.ready)
                assert ready
                ctx.set(dut.response.valid, 0)

        async def take_rows(ctx):
            now = 0
            for number, row in enumerate(rows_expected):
                held = None
                while True:
                    ready = next(go_rows)
                    ctx.set(dut.rows.ready, ready)
                    *_, valid, got = await ctx.tick().sample(
                        dut.rows.valid, Value.cast(dut.rows.payload)
                    )
                    now += 1
                    assert held is None or (valid and got == held)
                    held = got if valid else None
                    if valid and ready:
                        break
                mask = (1 << self.acc_bits) - 1
                lanes = [got >> (self.acc_bits * n) & mask for n in range(len(row))]
                assert lanes == row, f"row {number}, seed {SEED}"
                self.row_cycles.append(now - 1)
            await silent(ctx, dut.rows, 60)
            assert not ctx.get(dut.busy)

        async def watch(ctx):
            async for *_, valid, code, index in ctx.tick().sample(
                dut.fault_valid, Value.cast(dut.fault_code), dut.fault_index
            ):
                if valid:
                    self.faults.append((code, index))

        sim = Simulator(dut)
        sim.add_clock(1e-8)
        for bench in (produce, give_tokens, take_requests, answer, take_rows):
            sim.add_testbench(bench)
        sim.add_testbench(watch, background=True)
        sim.add_testbench(watchdog(20_000), background=True)
        sim.run()


@pytest.mark.parametrize("consuming", [never, randomly, rarely])
@pytest.mark.parametrize("memory", [never, randomly])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_items(shape, memory, consuming):
    rng = random.Random(SEED)
    bench = Bench(shape)
    items = [bench.item(rng, n, rng.randrange(2)) for n in range(24)]
    bench.run(items, producing=memory, memory=memory, consuming=consuming)
    assert not bench.faults


@pytest.mark.parametrize("width", range(4))
@pytest.mark.parametrize("shape", SHAPES)
def test_rate(shape, width):
    """A row per cycle, or per its beats; no gap between items but the response's cycle."""
    bench = Bench(shape)
    cols, bus = bench.cols, bench.bus
    beats = -(-(cols << width) // bus)
    rows = 8
    items = [Item(0, beats * bus, rows, cols, width, n) for n in range(3)]
    bench.run(items)
    steps = [b - a for a, b in zip(bench.row_cycles, bench.row_cycles[1:], strict=False)]
    expected = [beats] * len(steps)
    for first in range(rows - 1, len(steps), rows):
        expected[first] += 1
    assert steps == expected


@pytest.mark.parametrize("depth", [2, 4])
def test_requests_run_ahead(depth):
    """With rows stalled, `depth` requests go out and no more."""
    bench = Bench((4, 48, 64), depth=depth)
    dut = bench.dut
    counts = []

    async def drive(ctx):
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.items.payload, {"rows": 1, "cols": 1})
        ctx.set(dut.request.ready, 1)
        count = 0
        for _ in range(30):
            *_, valid = await ctx.tick().sample(dut.request.valid)
            count += valid
        counts.append(count)

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(drive)
    sim.run()
    assert counts == [depth]


def test_wait_store_needs_its_token():
    """No request before its token; tokens that come early are kept, 255 of them."""
    items = [Item(0, 8, 1, 4, 1, n, 1) for n in range(3)]
    bench = Bench((4, 48, 64))
    bench.run(items, tokens_after=40)
    assert bench.row_cycles[0] > 40

    dut = Bench((4, 48, 64)).dut

    async def drive(ctx):
        ctx.set(dut.token, 1)
        for _ in range(255):
            await ctx.tick()
        ctx.set(dut.token, 0)
        ctx.set(dut.items.payload, {"rows": 1, "cols": 1, "wait_store": 1})
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.request.ready, 1)
        taken = 0
        for _ in range(600):  # every item is answered at once
            *_, valid, working = await ctx.tick().sample(dut.request.valid, dut.busy)
            taken += valid
            ctx.set(dut.response.valid, working)
        assert taken == 255

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(drive)
    sim.run()


def test_hold():
    """Nothing is taken under `hold`, and nothing is lost by it."""
    dut = Bench((4, 48, 64)).dut

    async def drive(ctx):
        ctx.set(dut.items.payload, {"rows": 1, "cols": 1})
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.request.ready, 1)
        ctx.set(dut.hold, 1)
        for _ in range(5):
            *_, ready, valid = await ctx.tick().sample(dut.items.ready, dut.request.valid)
            assert not ready and not valid
        assert not ctx.get(dut.busy)
        ctx.set(dut.hold, 0)
        *_, ready, valid = await ctx.tick().sample(dut.items.ready, dut.request.valid)
        assert ready and valid

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(drive)
    sim.run()


def test_faults():
    """An item that ends inside a row: its fault is told, and the next one starts a new row."""
    bench = Bench((4, 48, 64))
    items = [
        Item(64, 64, 2, 4, 3, 5),
        Item(128, 64, 2, 4, 3, 6, code=MemoryCode.SLAVE, beats=6),
        Item(256, 64, 2, 3, 3, 7),
        Item(320, 64, 2, 4, 0, 200000, code=MemoryCode.ABORTED, beats=0),
    ]
    rows = [item.values(bench.content, 48) for item in items]
    bench.run(items, consuming=randomly, rows_expected=[*rows[0], rows[1][0], *rows[2]])
    assert bench.faults == [(MemoryCode.SLAVE.value, 6), (MemoryCode.ABORTED.value, 200000)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cols": 6}, "cols must be a power of two from 4 to 256, not 6"),
        ({"acc_bits": 65}, "acc_bits must be 1 to 64, not 65"),
        ({"data_bits": 96}, r"data_bits must be one of \(64, 128, 256, 512, 1024, 2048\), not 96"),
        ({"depth": 1}, "depth must be at least 2, not 1"),
    ],
)
def test_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        StreamReader(**{"cols": 4, "acc_bits": 48, "data_bits": 64, **change})
