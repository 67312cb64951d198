# amaranth: UnusedElaboratable=no
"""ReadArbiter between three MemoryReaders and a memory: order, fairness, no gaps."""

import random

import pytest
from amaranth.hdl import Module, Value
from amaranth.lib import wiring
from amaranth.sim import Simulator

from axi_memory import AxiMemory
from stream_patterns import PATTERNS, Pattern, never, randomly, send, watchdog
from systolora.rtl.memory_reader import MemoryReader
from systolora.rtl.read_arbiter import ReadArbiter
from systolora.rtl.regions import MemoryCode, RegionLayout

SEED = 20260811
BUS, ADDRESS_BITS, CLIENTS = 8, 16, 3


def run(
    requests: list[list[tuple[int, int, int, int]]],
    *,
    memory_stalls: Pattern = never,
    consuming: Pattern = never,
    outstanding: int = 4,
    depth: int = 12,
) -> AxiMemory:
    """Each client's requests (address, rows, row_bytes, stride); every beat is compared."""
    m = Module()
    m.submodules.arbiter = arbiter = ReadArbiter(
        clients=CLIENTS, data_bits=8 * BUS, address_bits=ADDRESS_BITS, depth=depth
    )
    readers = []
    for number in range(CLIENTS):
        reader = MemoryReader(
            data_bits=8 * BUS, address_bits=ADDRESS_BITS, outstanding=outstanding, burst_beats=4
        )
        m.submodules[f"reader_{number}"] = reader
        wiring.connect(m, reader.m_axi, arbiter.clients[number])
        m.d.comb += reader.limit.eq(1 << ADDRESS_BITS)
        readers.append(reader)
    content = random.Random(SEED).randbytes(1 << ADDRESS_BITS)
    memory = AxiMemory(bytearray(content), memory_stalls, SEED)
    sim = Simulator(m)
    sim.add_clock(1e-8)

    def add(number: int) -> None:
        reader, mine = readers[number], requests[number]
        go = consuming(random.Random(SEED + number))

        async def produce(ctx):
            for address, rows, row_bytes, stride in mine:
                region = {
                    "address": address,
                    "rows": rows,
                    "row_bytes": row_bytes,
                    "stride": stride,
                }
                value = RegionLayout(ADDRESS_BITS).const(region).as_value().value
                await send(ctx, reader.request, value, never(random.Random(0)))

        async def consume(ctx):
            expected = []
            for address, rows, row_bytes, stride in mine:
                for row in range(rows):
                    first = address + row * stride
                    for place in range(first, first + row_bytes, BUS):
                        expected.append(int.from_bytes(content[place : place + BUS], "little"))
                expected.append(None)  # the response
            got = []
            quiet = 0
            while quiet < 40:
                ready = next(go)
                ctx.set(reader.beats.ready, ready)
                ctx.set(reader.response.ready, 1)
                _, _, valid, word, answered, code = await ctx.tick().sample(
                    reader.beats.valid,
                    reader.beats.payload.data,
                    reader.response.valid,
                    Value.cast(reader.response.payload),
                )
                if valid and ready:
                    got.append(word)
                if answered:
                    assert code == MemoryCode.OK.value
                    got.append(None)
                quiet = quiet + 1 if len(got) >= len(expected) else 0
            assert got == expected, f"client {number}, seed {SEED}"

        sim.add_testbench(produce)
        sim.add_testbench(consume)

    for number in range(CLIENTS):
        add(number)
    sim.add_testbench(memory.reader(arbiter.m_axi), background=True)
    sim.add_testbench(watchdog(20_000), background=True)
    sim.run()
    return memory


@pytest.mark.parametrize("memory_stalls", PATTERNS)
@pytest.mark.parametrize("consuming", PATTERNS)
def test_every_client_has_its_beats(memory_stalls, consuming):
    rng = random.Random(SEED)
    requests = [
        [
            (8 * rng.randrange(1 << 12), rng.randint(1, 6), rng.randint(1, 90), 96)
            for _ in range(rng.randint(2, 6))
        ]
        for _ in range(CLIENTS)
    ]
    run(requests, memory_stalls=memory_stalls, consuming=consuming)


def test_order_queue_full():
    """Fewer places than the clients' bursts: they wait, none is lost."""
    run([[(n << 12, 12, 8, 8)] for n in range(CLIENTS)], memory_stalls=randomly, depth=2)


def test_no_gaps_and_turns():
    """Bursts of one beat from all clients: a beat each cycle, the clients in turn."""
    rows = 40
    memory = run([[(n << 12, rows, 8, 64)] for n in range(CLIENTS)], outstanding=8, depth=24)
    cycles, order = memory.beat_cycles, [address >> 12 for address, _ in memory.reads]
    assert len(cycles) == CLIENTS * rows
    steady = slice(CLIENTS, CLIENTS * (rows - 1))
    assert all(b - a == 1 for a, b in zip(cycles[steady], cycles[steady][1:], strict=False))
    turns = order[steady]
    assert all(len({*turns[i : i + CLIENTS]}) == CLIENTS for i in range(len(turns) - CLIENTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 1}, "clients must be at least 2, not 1"),
        ({"data_bits": 96}, r"data_bits must be one of \(64, 128, 256, 512, 1024, 2048\), not 96"),
        ({"depth": 1}, "depth must be at least 2, not 1"),
    ],
)
def test_parameters(change, message):
    with pytest.raises(ValueError, match=message):
        ReadArbiter(**{"data_bits": 64, "depth": 4, **change})
