# amaranth: UnusedElaboratable=no
"""StreamWriter: beats, requests and tokens, with a model of the MemoryWriter behind it."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from stream_patterns import Pattern, never, randomly, rarely, send, silent, take, watchdog
from systolora.rtl.layouts import InfoLayout, StreamWriteLayout
from systolora.rtl.regions import MemoryCode, RegionLayout
from systolora.rtl.stream_writer import StreamWriter

SEED = 20260813
ADDRESS_BITS = 20

#: cols, acc_bits, result_bits, data_bits
SHAPES = [(4, 48, 16, 64), (4, 32, 8, 512), (4, 48, 16, 1024), (16, 48, 16, 128), (8, 48, 16, 256)]


@dataclass
class Item:
    """One item, its rows on the stream `source`, and the memory's response."""

    rows: int
    cols: int
    width: int
    index: int
    address: int = 0
    stride: int = 0
    writes: int = 1
    info: int = 0
    scale: int = 0
    signal_load: int = 0
    signal_stream: int = 0
    source: str = "acc_out"
    values: list[list[int]] = field(default_factory=list)
    code: MemoryCode = MemoryCode.OK

    @property
    def packed(self) -> int:
        own = ("source", "values", "code")
        fields = {k: v for k, v in vars(self).items() if k not in own}
        return StreamWriteLayout(ADDRESS_BITS).const(fields).as_value().value

    @property
    def region(self) -> int:
        region = {
            "address": self.address,
            "rows": self.rows,
            "row_bytes": self.cols << self.width,
            "stride": self.stride,
        }
        return RegionLayout(ADDRESS_BITS).const(region).as_value().value

    def row_bytes(self, row: int) -> bytes:
        values = self.values[row]
        if self.info and self.scale:
            _, m, e = values
            return m.to_bytes(4, "little") + e.to_bytes(4, "little", signed=True)
        if self.info:
            return values[0].to_bytes(8, "little")
        size = 1 << self.width
        return b"".join(
            value.to_bytes(8, "little", signed=True)[:size] for value in values[: self.cols]
        )


class Bench:
    """A StreamWriter, its streams' models, and what was seen."""

    def __init__(self, shape: tuple[int, int, int, int], depth: int = 4) -> None:
        self.cols, self.acc_bits, self.result_bits, data_bits = shape
        self.bus = data_bits // 8
        self.dut = StreamWriter(
            cols=self.cols,
            acc_bits=self.acc_bits,
            result_bits=self.result_bits,
            data_bits=data_bits,
            address_bits=ADDRESS_BITS,
            depth=depth,
        )
        self.beat_cycles: list[int] = []
        #: ("token_load" | "token_stream" | "fault", code, index), in order
        self.events: list[tuple[str, int, int]] = []

    def item(self, rng: random.Random, index: int) -> Item:
        tokens = {"signal_load": rng.randrange(2), "signal_stream": rng.randrange(2)}
        kind = rng.choice(["acc_out", "acc_out", "result", "result", "info", "nothing"])
        if kind == "nothing":
            return Item(rng.randrange(9), rng.randrange(9), 0, index, writes=0, **tokens)
        place = {"address": rng.randrange(1 << 16), "stride": rng.randrange(1 << 12)}
        if kind == "info":
            scale = rng.randrange(2)
            values = [rng.getrandbits(48), rng.getrandbits(16), rng.randint(-512, 511)]
            cols, width = (2, 2) if scale else (1, 3)
            return Item(
                1, cols, width, index, **place, info=1, scale=scale, source="info",
                values=[values], **tokens,
            )  # fmt: skip
        rows, width = rng.randint(1, 6), rng.randrange(4)
        item = Item(rows, rng.randint(1, self.cols), width, index, **place, source=kind, **tokens)
        return self.fill(rng, item)

    def fill(self, rng: random.Random, item: Item) -> Item:
        bits = self.acc_bits if item.source == "acc_out" else self.result_bits
        item.values = [
            [rng.getrandbits(bits) - (1 << (bits - 1)) for _ in range(self.cols)]
            for _ in range(item.rows)
        ]
        return item

    def _payload(self, item: Item, values: list[int]) -> int:
        if item.info:
            amax, m, e = values
            return InfoLayout.const({"amax": amax, "m": m, "e": e}).as_value().value
        bits = self.acc_bits if item.source == "acc_out" else self.result_bits
        mask = (1 << bits) - 1
        return sum((value & mask) << (bits * n) for n, value in enumerate(values))

    def run(
        self,
        items: list[Item],
        *,
        producing: Pattern = never,
        sources: Pattern = never,
        memory: Pattern = never,
        response_delay: int = 0,
    ) -> None:
        dut = self.dut
        go_items, go_rows, go_requests, go_beats, go_answers = (
            pattern(random.Random(SEED + n))
            for n, pattern in enumerate((producing, sources, memory, memory, memory))
        )
        writing = [item for item in items if item.writes]
        requests: deque[Item] = deque()
        written: deque[Item] = deque()

        async def produce(ctx):
            for item in items:
                await send(ctx, dut.items, item.packed, go_items)

        async def give_rows(ctx):
            for item in writing:
                port = getattr(dut, item.source)
                for values in item.values:
                    await send(ctx, port, self._payload(item, values), go_rows)

        async def take_requests(ctx):
            for number, item in enumerate(writing):
                region = await take(ctx, dut.request, go_requests)
                assert region == item.region, f"request {number}, seed {SEED}"
                requests.append(item)
            await silent(ctx, dut.request, 30)

        async def take_beats(ctx):
            now = 0
            for number, item in enumerate(writing):
                for row in range(item.rows):
                    expected = item.row_bytes(row)
                    got = b""
                    while len(got) < len(expected):
                        held = None
                        while True:
                            ready = next(go_beats)
                            ctx.set(dut.beats.ready, ready)
                            *_, valid, word = await ctx.tick().sample(
                                dut.beats.valid, dut.beats.payload
                            )
                            now += 1
                            assert held is None or (valid and word == held)
                            held = word if valid else None
                            if valid and ready:
                                break
                        self.beat_cycles.append(now - 1)
                        got += word.to_bytes(self.bus, "little")
                    assert got[: len(expected)] == expected, f"{number}.{row}, seed {SEED}"
                written.append(item)
            await silent(ctx, dut.beats, 60)
            assert not ctx.get(dut.busy)

        async def answer(ctx):
            left = len(writing)
            while left:
                if not (requests and written and next(go_answers)):
                    await ctx.tick()
                    continue
                item = written.popleft()
                requests.popleft()
                for _ in range(response_delay):
                    await ctx.tick()
                await send(ctx, dut.response, item.code.value, never(random.Random(0)))
                self.events.append(("answered", 0, item.index))
                left -= 1

        async def watch(ctx):
            async for *_, load, stream, valid, code, index in ctx.tick().sample(
                dut.token_load,
                dut.token_stream,
                dut.fault_valid,
                Value.cast(dut.fault_code),
                dut.fault_index,
            ):
                if load:
                    self.events.append(("token_load", 0, index))
                if stream:
                    self.events.append(("token_stream", 0, index))
                if valid:
                    self.events.append(("fault", code, index))

        sim = Simulator(dut)
        sim.add_clock(1e-8)
        sim.add_testbench(watch, background=True)
        for bench in (produce, give_rows, take_requests, take_beats, answer):
            sim.add_testbench(bench)
        sim.add_testbench(watchdog(20_000), background=True)
        sim.run()

    def check_events(self, items: list[Item]) -> None:
        """Tokens and faults in the items' order, none before the answers it stands for."""
        expected = []
        for item in items:
            if item.code != MemoryCode.OK:
                expected.append(("fault", item.code.value, item.index))
                continue
            expected += [("token_load", 0, item.index)] * item.signal_load
            expected += [("token_stream", 0, item.index)] * item.signal_stream
        assert [event for event in self.events if event[0] != "answered"] == expected
        answered = 0
        writing = [item.index for item in items if item.writes]
        for kind, _, index in self.events:
            if kind == "answered":
                answered += 1
                continue
            # In the cycle of its own answer an item's token comes first
            before = sum(1 for n in writing if n < index)
            assert answered >= before, f"{kind} of item {index} after {answered} answers"


@pytest.mark.parametrize("memory", [never, randomly, rarely])
@pytest.mark.parametrize("sources", [never, randomly])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_items(shape, sources, memory):
    rng = random.Random(SEED)
    bench = Bench(shape)
    items = [bench.item(rng, n) for n in range(30)]
    assert len({item.source for item in items}) == 3
    bench.run(items, producing=sources, sources=sources, memory=memory)
    bench.check_events(items)


@pytest.mark.parametrize("width", range(4))
@pytest.mark.parametrize("source", ["acc_out", "result"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rate(shape, source, width):
    """A beat each cycle, within items and from one to the next."""
    bench = Bench(shape)
    rng = random.Random(SEED)
    items = [bench.fill(rng, Item(6, bench.cols, width, n, source=source)) for n in range(3)]
    bench.run(items)
    beats = -(-(bench.cols << width) // bench.bus)
    first = bench.beat_cycles[0]
    assert bench.beat_cycles == list(range(first, first + 18 * beats))


def test_tokens_wait_for_their_answers():
    """Without `writes`: after the answers of all before; and no token but with an answer."""
    rng = random.Random(SEED)
    bench = Bench((4, 48, 16, 64))
    items = [
        Item(0, 0, 0, 0, writes=0, signal_load=1, signal_stream=1),
        bench.fill(rng, Item(2, 4, 1, 1, signal_load=1)),
        Item(0, 0, 0, 2, writes=0, signal_stream=1),
        Item(0, 0, 0, 3, writes=0, signal_load=1),
        bench.fill(rng, Item(2, 4, 1, 4, signal_stream=1)),
    ]
    bench.run(items, response_delay=20)
    bench.check_events(items)


def test_faults():
    """The fault has its item's index and gives no token; later items go on."""
    rng = random.Random(SEED)
    bench = Bench((4, 48, 16, 64))
    codes = [MemoryCode.OK, MemoryCode.DECODE, MemoryCode.OK, MemoryCode.SLAVE]
    items = [
        bench.fill(rng, Item(2, 4, 1, n + 131072, signal_load=1, signal_stream=1, code=code))
        for n, code in enumerate(codes)
    ]
    bench.run(items, memory=randomly)
    bench.check_events(items)
    assert [event[0] for event in bench.events].count("fault") == 2


@pytest.mark.parametrize("depth", [2, 4])
def test_requests_run_ahead(depth):
    """Without answers `depth` requests go out and no more."""
    dut = Bench((4, 48, 16, 64), depth=depth).dut

    async def drive(ctx):
        ctx.set(dut.items.payload, {"rows": 1, "cols": 1, "writes": 1})
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.request.ready, 1)
        ctx.set(dut.acc_out.valid, 1)
        ctx.set(dut.beats.ready, 1)
        count = beats = 0
        for _ in range(40):
            *_, valid, beat = await ctx.tick().sample(dut.request.valid, dut.beats.valid)
            count, beats = count + valid, beats + beat
        assert (count, beats) == (depth, depth)

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(drive)
    sim.run()


def test_hold():
    """Under `hold` nothing is offered or taken; afterwards all goes on where it was."""
    dut = Bench((4, 48, 16, 64)).dut

    async def drive(ctx):
        ctx.set(dut.items.payload, {"rows": 3, "cols": 4, "width": 1, "writes": 1})
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.request.ready, 1)
        await ctx.tick()
        ctx.set(dut.items.valid, 0)
        ctx.set(dut.result.payload, [1, 2, 3, 4])
        ctx.set(dut.result.valid, 1)
        await ctx.tick().until(dut.result.ready)
        ctx.set(dut.result.payload, [-1, -2, -3, -4])
        ctx.set(dut.items.valid, 1)
        ctx.set(dut.beats.ready, 1)
        ctx.set(dut.hold, 1)
        for _ in range(5):
            *_, request, item, row, beat, busy = await ctx.tick().sample(
                dut.request.valid, dut.items.ready, dut.result.ready, dut.beats.valid, dut.busy
            )
            assert not (request or item or row or beat) and busy
        ctx.set(dut.items.valid, 0)
        ctx.set(dut.hold, 0)
        got = []
        for _ in range(10):
            *_, beat, word, row = await ctx.tick().sample(
                dut.beats.valid, dut.beats.payload, dut.result.ready
            )
            got += [word] * beat
        assert got == [0x0004000300020001, *([0xFFFCFFFDFFFEFFFF] * 2)]
        assert not row

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(drive)
    sim.run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cols": 512}, "cols must be a power of two from 4 to 256, not 512"),
        ({"acc_bits": 65}, "acc_bits must be 1 to 64, not 65"),
        ({"result_bits": 0}, "result_bits must be 1 to 64, not 0"),
        ({"data_bits": 32}, r"data_bits must be one of \(64, 128, 256, 512, 1024, 2048\), not 32"),
        ({"depth": 1}, "depth must be at least 2, not 1"),
    ],
)
def test_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        StreamWriter(**{"cols": 4, "acc_bits": 48, "result_bits": 16, "data_bits": 64, **change})
