"""TileEngine: random tile commands against plain matrix products, and the promised rates.

The expectation is written with NumPy's product on the logical tiles; the beats are laid out here,
from docs/core.md, independently of the compiler.
"""

import numpy as np
import pytest
from amaranth.sim import Simulator

from systolora.config import ACC_BANKS
from systolora.contract import TILE, Dataflow, Edge, pack
from systolora.rtl.tile_engine import TileEngine

DEPTH = 64
BANK = DEPTH // ACC_BANKS
#: Cycles of a fenced tile beyond its load, beats and way through the array (docs/core.md).
FENCE = 4


class Program:
    """Tile commands with their beats, and the accumulators they must leave."""

    def __init__(self, rows: int, cols: int, segments: int, planes: bool = True) -> None:
        self.rows, self.cols, self.segments = rows, cols, segments
        self.lanes = max(rows, cols)
        self.planes = planes
        self.commands: list[dict[str, int]] = []
        self.act: list[np.ndarray] = []
        self.wgt: list[np.ndarray] = []
        self.acc = np.zeros((DEPTH, cols), np.int64)
        self.stationary: np.ndarray | None = None
        self.fixed: dict[str, int] = {}  # fields of the next commands that are not random
        self.done = 0  # cycle of the last token

    def _bytes(self, rng: np.random.Generator, low: int, shape: tuple[int, int]) -> np.ndarray:
        span = (0, 256) if low else (-128, 128)
        values = rng.integers(*span, shape)
        if rng.integers(0, 4) == 0:  # corners
            values[...] = rng.choice([span[0], span[1] - 1], shape)
        return values

    def _write(self, out: np.ndarray, command: dict[str, int]) -> None:
        rows = slice(command["acc_base"], command["acc_base"] + len(out))
        out = out << (8 * command["shift"])
        self.acc[rows] = (self.acc[rows] if command["accumulate"] else 0) + out
        self.commands.append(command)

    def _common(self, rng: np.random.Generator, rows: int) -> dict[str, int]:
        bank = int(rng.integers(0, ACC_BANKS)) * BANK
        fields = {
            "act_low": int(rng.integers(0, 2)) if self.planes else 0,
            "wgt_low": int(rng.integers(0, 2)) if self.planes else 0,
            "shift": int(rng.integers(0, 3)) if self.planes else 0,
            "accumulate": int(rng.integers(0, 2)),
            "acc_base": bank + int(rng.integers(0, BANK - rows + 1)),
        }
        return fields | self.fixed

    def os(self, rng: np.random.Generator, depth: int, out_rows: int) -> None:
        command = self._common(rng, out_rows)
        command |= {"dataflow": Dataflow.OS, "length": depth, "out_rows": out_rows}
        left = self._bytes(rng, command["act_low"], (depth, self.rows))
        top = self._bytes(rng, command["wgt_low"], (depth, self.cols))
        for k in range(depth):
            lines = rng.integers(0, 256, (self.segments, self.lanes))  # other lines must not count
            lines[0, : self.cols] = top[k]
            self.wgt.append(lines)
        self.act += list(left)
        self.stationary = None
        self._write((left.T @ top)[:out_rows], command)

    def ws(self, rng: np.random.Generator, length: int, load: bool, edge: Edge) -> None:
        command = self._common(rng, length)
        command |= {"dataflow": Dataflow.WS, "length": length, "load": int(load), "edge": edge}
        if load or self.stationary is None:
            command["load"] = 1
            tile = self._bytes(rng, command["wgt_low"], (self.rows, self.cols))
            lines = tile.T if edge == Edge.LEFT else tile
            beats = len(lines) // self.segments
            for beat in range(beats):
                block = rng.integers(0, 256, (self.segments, self.lanes))
                for s in range(self.segments):
                    block[s, : lines.shape[1]] = lines[s * beats + beats - 1 - beat]
                self.wgt.append(block)
            self.stationary = tile
        rows = self._bytes(rng, command["act_low"], (length, self.rows))
        self.act += list(rows)
        self._write(rows @ self.stationary, command)


def run(program: Program, stall: float, seed: int = 0) -> list[int]:
    """Runs the program in pysim, checks the accumulators, returns the cycles of `act` beats."""
    operand_bits, acc_bits = (9, 48) if program.planes else (8, 32)
    dut = TileEngine(
        rows=program.rows,
        cols=program.cols,
        segments=program.segments,
        operand_bits=operand_bits,
        psum_bits=32,
        acc_bits=acc_bits,
        acc_depth=DEPTH,
    )
    for command in program.commands:
        command["signal"] = 1
    rng = np.random.default_rng(seed)
    beats: list[int] = []
    cycle = 0

    def word(values: np.ndarray) -> int:
        return int.from_bytes(np.asarray(values).astype(np.uint8).tobytes(), "little")

    async def feed(ctx, port, words):
        for value in words:
            while rng.random() < stall:
                ctx.set(port.valid, 0)
                await ctx.tick()
            ctx.set(port.payload.as_value(), value)
            ctx.set(port.valid, 1)
            await ctx.tick().until(port.ready)
        ctx.set(port.valid, 0)

    async def tile(ctx):
        await feed(ctx, dut.tile, [pack(TILE, command) for command in program.commands])

    async def act(ctx):
        await feed(ctx, dut.act, [word(beat) for beat in program.act])

    async def wgt(ctx):
        await feed(ctx, dut.wgt, [word(beat) for beat in program.wgt])

    async def check(ctx):
        nonlocal cycle
        finished = 0
        while finished < len(program.commands):
            _, _, valid, ready, tokens = await ctx.tick().sample(
                dut.act.valid, dut.act.ready, dut.tokens_out
            )
            if valid and ready:
                beats.append(cycle)
            finished += tokens
            program.done = cycle
            cycle += 1
            assert cycle < 50_000, "no token: the engine hangs"
        assert ctx.get(dut.bank_busy) == 0
        for row in range(DEPTH):
            bank, index = divmod(row, BANK)
            ctx.set(dut.banks.own, (1 << ACC_BANKS) - 1)
            ctx.set(dut.banks.read, 1 << bank)
            ctx.set(dut.banks.read_row[bank], index)
            await ctx.tick()
            got = [ctx.get(dut.read_data[col][bank]) for col in range(program.cols)]
            assert got == program.acc[row].tolist(), f"row {row}"
        for _ in range(2 * (program.rows + program.cols)):
            *_, token = await ctx.tick().sample(dut.tokens_out)
            assert not token, "a token too many"

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench in (tile, act, wgt):
        simulator.add_testbench(bench, background=True)
    simulator.add_testbench(check)
    simulator.run()
    return beats


SHAPES = [(4, 4, 1), (4, 4, 4), (4, 8, 2), (8, 4, 4), (8, 8, 8), (4, 16, 1)]


@pytest.mark.parametrize("stall", [0.0, 0.35])
@pytest.mark.parametrize("planes", [True, False], ids=["int16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_commands(shape, planes, stall):
    """WS and OS, both edges, every S, reuse of the stationary tile, byte planes, shifts, fences."""
    seed = 100 * sum(shape) + int(planes) + int(stall > 0) * 10
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    program = Program(*shape, planes=planes)
    for _ in range(45):
        program.fixed = {"fence": int(rng.integers(0, 6) == 0)}
        if rng.integers(0, 3) == 0:
            program.os(rng, int(rng.integers(1, 3 * shape[0])), int(rng.integers(1, shape[0] + 1)))
        else:
            edge = Edge(int(rng.integers(0, 2)))
            program.ws(rng, int(rng.integers(1, 7)), bool(rng.integers(0, 4)), edge)
    run(program, stall, seed)


@pytest.mark.parametrize("edge", list(Edge))
@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4), (4, 4, 4)], ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_ws_rate(shape, edge, length):
    """Back-to-back WS tiles cost max(load, rows streamed) cycles each."""
    rows, cols, segments = shape
    rng = np.random.default_rng(7)
    program = Program(*shape)
    for _ in range(8):
        program.ws(rng, length, True, edge)
    first = run(program, 0.0)[::length]
    load = (cols if edge == Edge.LEFT else rows) // segments
    assert np.diff(first).tolist() == [max(load, length)] * 7


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4)], ids=str)
@pytest.mark.parametrize("depth", [1, 3, 4, 8, 11])
def test_os_rate(shape, depth):
    """Back-to-back OS tiles cost max(depth, R) cycles each."""
    rng = np.random.default_rng(8)
    program = Program(*shape)
    for _ in range(7):
        program.os(rng, depth, shape[0])
    last = run(program, 0.0)[depth - 1 :: depth]
    assert np.diff(last).tolist() == [max(depth, shape[0])] * 6


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4)], ids=str)
def test_switching_in_a_bank(shape):
    """OS after WS has no gap; WS after OS waits R + 2 cycles for the drain."""
    rng = np.random.default_rng(9)
    program = Program(*shape)
    program.fixed = {"acc_base": 2 * BANK}
    for _ in range(4):
        program.ws(rng, 8, True, Edge.TOP)
        program.os(rng, 8, shape[0])
    beats = np.array(run(program, 0.0)).reshape(8, 8)
    gaps = (beats[1:, 0] - beats[:-1, -1]).tolist()
    assert gaps == [1, 3 + shape[0]] * 3 + [1]


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4)], ids=str)
def test_a_shallow_tile_after_ws_in_its_bank(shape):
    """An OS tile of one beat waits one cycle, and its accumulating drain meets the last rows."""
    rng = np.random.default_rng(11)
    program = Program(*shape)
    program.fixed = {"acc_base": BANK, "accumulate": 1}
    for _ in range(6):
        program.ws(rng, 4, True, Edge.TOP)
        program.os(rng, 1, shape[0])
    beats = np.array(run(program, 0.0)).reshape(6, 5)
    assert (beats[:, 4] - beats[:, 3]).tolist() == [2] * 6


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4), (8, 8, 2)], ids=str)
@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_drains_beside_ws(shape, depth):
    """An OS tile between WS tiles of other banks costs its beats and the next tile's load."""
    rows, _, segments = shape
    length, tiles = 12, 5
    rng = np.random.default_rng(12)
    program = Program(*shape)
    for _ in range(tiles):
        program.fixed = {"acc_base": 0}
        program.ws(rng, length, True, Edge.TOP)
        program.fixed = {"acc_base": BANK}
        program.os(rng, depth, rows)
    starts = run(program, 0.0)[:: length + depth]
    costs = np.diff(starts) - length
    assert costs.tolist() == [depth + rows // segments - 1] * (tiles - 1)
    assert max(costs) <= max(depth, 1) + rows // segments + 2


@pytest.mark.parametrize("edge", list(Edge))
@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4), (8, 8, 8)], ids=str)
@pytest.mark.parametrize("length", [1, 5])
def test_fenced_ws_rate(shape, edge, length):
    """Load, compute, drain, one after the other: load + length + R + C + FENCE cycles a tile."""
    rows, cols, segments = shape
    program = Program(*shape)
    program.fixed = {"fence": 1}
    rng = np.random.default_rng(13)
    for _ in range(5):
        program.ws(rng, length, True, edge)
    first = run(program, 0.0)[::length]
    load = (cols if edge == Edge.LEFT else rows) // segments
    assert np.diff(first).tolist() == [load + length + rows + cols + FENCE] * 4


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4)], ids=str)
@pytest.mark.parametrize("depth", [1, 7])
def test_fenced_os_rate(shape, depth):
    """depth + the drain's R + R + C + FENCE cycles a tile, and one for the first beat of `wgt`."""
    rows, cols, _ = shape
    program = Program(*shape)
    program.fixed = {"fence": 1}
    for _ in range(5):
        program.os(np.random.default_rng(14), depth, rows)
    first = run(program, 0.0)[::depth]
    assert np.diff(first).tolist() == [depth + 2 * rows + cols + FENCE + 1] * 4


def test_a_fence_holds_back_a_kept_tile():
    """WS without load: its rows wait for the array to be empty; what follows it loads no sooner."""
    rows, cols, _ = shape = (4, 8, 2)
    program = Program(*shape)
    rng = np.random.default_rng(15)
    program.ws(rng, 3, True, Edge.TOP)
    program.fixed = {"fence": 1}
    program.ws(rng, 3, False, Edge.TOP)
    program.ws(rng, 3, True, Edge.TOP)
    program.fixed = {"fence": 0}
    program.ws(rng, 3, True, Edge.TOP)
    first = run(program, 0.0)[::3]
    kept = 3 + rows + cols + FENCE
    assert np.diff(first).tolist() == [kept, kept + rows // 2, 3]


@pytest.mark.parametrize("shape", [(4, 4, 1), (4, 8, 2), (8, 4, 4)], ids=str)
def test_latency(shape):
    """The token comes when the last column can be read: the promised latency and the skew."""
    rows, cols, _ = shape
    program = Program(*shape)
    program.ws(np.random.default_rng(10), 1, True, Edge.TOP)
    (beat,) = run(program, 0.0)
    assert TileEngine.sum_latency(rows) == rows + 5
    assert program.done - beat == TileEngine.sum_latency(rows) + cols - 1
