# amaranth: UnusedElaboratable=no
"""Both streams with their memory engines behind AXI4, and their Verilog."""

import random
from dataclasses import dataclass

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from axi_memory import AxiMemory
from stream_patterns import PATTERNS, never, send, watchdog
from systolora.emit import emit_component
from systolora.rtl.flow import link
from systolora.rtl.layouts import StreamReadLayout, StreamWriteLayout
from systolora.rtl.memory_reader import MemoryReader
from systolora.rtl.memory_writer import MemoryWriter
from systolora.rtl.read_arbiter import ReadArbiter
from systolora.rtl.stream_reader import StreamReader
from systolora.rtl.stream_writer import StreamWriter
from verilator_lint import assert_clean

SEED = 20260814
ADDRESS_BITS = 20

#: cols, acc_bits, data_bits
SHAPES = [(4, 48, 64), (4, 48, 512), (16, 48, 512), (32, 48, 128)]


@dataclass
class Move:
    """Rows of elements from memory to memory, maybe in another width; addresses in bytes."""

    rows: int
    cols: int
    widths: tuple[int, int]
    addresses: tuple[int, int]
    strides: tuple[int, int]
    again: bool  # it reads what an earlier one wrote

    def item(self, side: int, index: int) -> int:
        fields = {
            "address": self.addresses[side],
            "stride": self.strides[side],
            "rows": self.rows,
            "cols": self.cols,
            "width": self.widths[side],
            "index": index,
        }
        if side == 0:
            layout = StreamReadLayout(ADDRESS_BITS)
            fields["wait_store"] = self.again
        else:
            layout = StreamWriteLayout(ADDRESS_BITS)
            fields |= {"writes": 1, "signal_stream": not self.again}
        return layout.const(fields).as_value().value

    def apply(self, memory: bytearray, acc_bits: int) -> None:
        sizes = [1 << width for width in self.widths]
        for row in range(self.rows):
            for col in range(self.cols):
                source, target = (
                    address + row * stride + col * size
                    for address, stride, size in zip(
                        self.addresses, self.strides, sizes, strict=True
                    )
                )
                value = int.from_bytes(memory[source : source + sizes[0]], "little", signed=True)
                half = 1 << (acc_bits - 1)
                value = (value + half) % (2 * half) - half
                low = value.to_bytes(8, "little", signed=True)[: sizes[1]]
                memory[target : target + sizes[1]] = low


def moves(rng: random.Random, cols: int, bus: int, count: int) -> list[Move]:
    """From block n at 0x1000 to 0x3000, then from there to 0x5000."""
    result = []
    for again in (False, True):
        for number in range(count):
            before = result[number] if again else None
            rows = before.rows if before else rng.randint(1, 5)
            used = before.cols if before else rng.randint(1, cols)
            places = []
            for side in (0, 1):
                if before and side == 0:  # what `before` wrote
                    places.append((before.widths[1], before.addresses[1], before.strides[1]))
                    continue
                width = rng.randrange(4)
                step = cols << width
                base = 0x1000 + 0x2000 * (again + side) + 0x400 * number
                stride = -(-step // bus) * bus + bus * rng.randrange(2)
                places.append((width, base + min(bus, step) * rng.randrange(4), stride))
            widths, addresses, strides = zip(*places, strict=True)
            result.append(Move(rows, used, widths, addresses, strides, again))
    return result


@pytest.mark.parametrize("stalls", PATTERNS)
@pytest.mark.parametrize(("cols", "data_bits"), [(4, 64), (4, 256), (16, 128)])
def test_memory_to_memory(cols, data_bits, stalls):
    """Rows go from memory to memory twice; the second way waits for the first one's token.

    `rows` of the reader is `acc_out` of the writer. No byte beside the rows changes.
    """
    bus, acc_bits = data_bits // 8, 48
    ports = {"data_bits": data_bits, "address_bits": ADDRESS_BITS}
    m = Module()
    m.submodules.reader = reader = StreamReader(cols=cols, acc_bits=acc_bits, **ports)
    m.submodules.writer = writer = StreamWriter(
        cols=cols, acc_bits=acc_bits, result_bits=16, **ports
    )
    m.submodules.loads = loads = MemoryReader(**ports, outstanding=4, burst_beats=4)
    m.submodules.stores = stores = MemoryWriter(
        **ports, outstanding=4, burst_beats=4, align=min(bus, cols)
    )
    link(m, reader.request, loads.request)
    link(m, loads.beats, reader.beats)
    link(m, loads.response, reader.response)
    link(m, reader.rows, writer.acc_out)
    link(m, writer.request, stores.request)
    link(m, writer.beats, stores.beats)
    link(m, stores.response, writer.response)
    m.d.comb += [
        loads.limit.eq(1 << ADDRESS_BITS),
        stores.limit.eq(1 << ADDRESS_BITS),
        reader.token.eq(writer.token_stream),
    ]

    rng = random.Random(SEED)
    start = rng.randbytes(1 << 15)
    memory, want = AxiMemory(bytearray(start), stalls, SEED), bytearray(start)
    todo = moves(rng, cols, bus, 7)
    for move in todo:
        move.apply(want, acc_bits)

    sim = Simulator(m)
    sim.add_clock(1e-8)

    async def read(ctx):
        for index, move in enumerate(todo):
            await send(ctx, reader.items, move.item(0, index), never(rng))

    async def write(ctx):
        for index, move in enumerate(todo):
            await send(ctx, writer.items, move.item(1, index), never(rng))

    async def finish(ctx):
        quiet = 0
        while quiet < 100:
            *_, faults, working = await ctx.tick().sample(
                reader.fault_valid | writer.fault_valid, loads.busy | stores.busy | writer.busy
            )
            assert not faults
            quiet = 0 if working else quiet + 1

    sim.add_testbench(read)
    sim.add_testbench(write)
    sim.add_testbench(finish)
    sim.add_testbench(memory.reader(loads.m_axi), background=True)
    sim.add_testbench(memory.writer(stores.m_axi), background=True)
    sim.add_testbench(watchdog(20_000), background=True)
    sim.run()
    wrong = [n for n, (a, b) in enumerate(zip(memory.data, want, strict=True)) if a != b]
    assert not wrong, f"seed {SEED}: bytes {wrong[:8]}"


@pytest.mark.parametrize(
    "component",
    [
        ReadArbiter(data_bits=64, depth=24),
        ReadArbiter(clients=2, data_bits=512, address_bits=64, depth=512),
        *(
            StreamReader(cols=cols, acc_bits=acc_bits, data_bits=data_bits)
            for cols, acc_bits, data_bits in SHAPES
        ),
        *(
            StreamWriter(cols=cols, acc_bits=acc_bits, result_bits=acc_bits // 3, data_bits=bits)
            for cols, acc_bits, bits in SHAPES
        ),
    ],
    ids=lambda component: f"{type(component).__name__}{component.design_key}",
)
def test_lint(component, tmp_path):
    """Nothing beyond the waivers."""
    emitted = emit_component(component, check_keys=True)
    verilog = tmp_path / f"{emitted.name}.v"
    verilog.write_text(emitted.verilog, encoding="utf-8")
    assert_clean(str(verilog))


@pytest.mark.parametrize("kind", [ReadArbiter, StreamReader, StreamWriter])
def test_design_key(kind):
    """Every parameter is in the key."""
    parameters = {
        ReadArbiter: {"clients": 2, "depth": 8},
        StreamReader: {"cols": 8, "acc_bits": 32, "depth": 2},
        StreamWriter: {"cols": 8, "acc_bits": 32, "result_bits": 8, "depth": 2},
    }[kind] | {"data_bits": 128, "address_bits": 48}
    others = {"clients": 3, "depth": 9, "cols": 4, "acc_bits": 48, "result_bits": 16}
    others |= {"data_bits": 64, "address_bits": 40}
    keys = {kind(**parameters).design_key}
    keys |= {kind(**parameters | {name: others[name]}).design_key for name in parameters}
    assert len(keys) == len(parameters) + 1
    assert kind(**parameters).design_key in keys
