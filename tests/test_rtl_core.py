"""The Core in a simulator: random programs, bit for bit against the functional machine.

Every command, mode, edge, shift, plane and order that docs/core.md allows, on both sides of the
tokens, with and without stalls on every stream; every beat that leaves is compared.
"""

import shutil

import numpy as np
import pytest

from simulated import CACHE, CONFIGS, core_verilog
from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Mode, Opcode, Source
from systolora_sim.bench.fuzz import queue_random_program
from systolora_sim.bench.run import run_program
from systolora_sim.machine import Machine
from systolora_sim.program import CoreDevice, Outputs, Program, run_sync, tile_beats


def random_program(
    config: AcceleratorConfig, seed: int, groups: int, **mix: int
) -> tuple[Program, Outputs]:
    """A program, and what the machine makes of it, the same in both extreme orders."""
    outputs = []
    for order in ("tile_first", "post_first"):
        machine = Machine(config, order)
        queue_random_program(machine, seed, groups, **mix)
        program = Program(list(machine.pending.tiles), list(machine.pending.posts))
        outputs.append(run_sync(machine.flush()))
    assert_same(*outputs)
    return program, outputs[0]


def assert_same(got: Outputs, expected: Outputs) -> None:
    assert got.result.shape == expected.result.shape
    assert got.acc_out.shape == expected.acc_out.shape
    np.testing.assert_array_equal(got.result, expected.result)
    np.testing.assert_array_equal(got.acc_out, expected.acc_out)
    assert got.info == expected.info
    assert got.sticky == expected.sticky


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name, seed):
    config = CONFIGS[name]
    print(f"seed {seed}, configuration {config.digest}")
    program, expected = random_program(config, seed, groups=10)
    assert len(expected.result) + len(expected.acc_out) > 20
    # Whatever is not stalled must not differ from what is
    stall_seed = None if seed % 4 == 0 else seed
    assert_same(
        run_program(config, program, core_verilog(config), stall_seed, cache=CACHE), expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
@pytest.mark.parametrize("name", CONFIGS)
def test_more_random_programs(name, seed):
    config = CONFIGS[name]
    print(f"seed {seed}, configuration {config.digest}")
    program, expected = random_program(config, seed, groups=24)
    stall_seed = None if seed % 4 == 0 else seed
    assert_same(
        run_program(config, program, core_verilog(config), stall_seed, cache=CACHE), expected
    )


@pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs_on_icarus(name, monkeypatch):
    """A second simulator, which starts with unknown registers where Verilator has numbers."""
    monkeypatch.setenv("SIM", "icarus")
    config = CONFIGS[name]
    print(f"seed 2, configuration {config.digest}")
    program, expected = random_program(config, 2, groups=5)
    assert_same(run_program(config, program, core_verilog(config), 2, cache=CACHE), expected)


def _cycles(config, rows: int, count: int, **fields: int) -> int:
    """Cycles of `count` row operations over rows that hold something."""

    def queue(device: CoreDevice) -> None:
        for base in range(0, config.acc_depth, config.bank_depth):
            device.post(
                np.ones((32, config.cols), np.int64),
                opcode=Opcode.ROWS,
                source=Source.STREAM,
                cols=config.cols,
                rows=32,
                write=1,
                dst_base=base,
            )
        for _ in range(count):
            beats = np.ones((rows, config.cols), np.int64) if fields.get("add_stream") else None
            device.post(beats, opcode=Opcode.ROWS, cols=config.cols, rows=rows, **fields)

    machine = Machine(config)
    queue(machine)
    program = Program([], list(machine.pending.posts))
    outputs = run_program(config, program, core_verilog(config), None, cache=CACHE)
    assert_same(outputs, run_sync(machine.flush()))
    assert outputs.cycles is not None
    return outputs.cycles


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"mode": Mode.RAW, "emit": 1}, 1),
        ({"mode": Mode.RAW, "amax": 1}, 1),
        ({"mode": Mode.RAW, "add": 1, "write": 1, "src_base": 0, "dst_base": 64}, 1),
        ({"mode": Mode.RAW, "add": 1, "write": 1, "src_base": 0, "dst_base": 16}, 2),
        ({"mode": Mode.RAW, "add": 1, "add_stream": 1, "write": 1, "dst_base": 16}, 1),
        ({"mode": Mode.RAW, "add": 1, "add_stream": 1, "emit": 1}, 1),
    ],
    ids=["emit", "amax", "add-across-banks", "add-in-a-bank", "join-in-a-bank", "join-emit"],
)
def test_row_rates(fields, rate):
    """One row per cycle; six in twelve where source and destination share a bank."""
    config = CONFIGS["tiny"]
    few = _cycles(config, rows=4, count=1, **fields)
    many = _cycles(config, rows=16, count=1, **fields)
    assert many - few == 12 * rate


def _beside(depth: int) -> int:
    """Cycles of six WS tiles in bank 0, with an OS tile of that depth (0: none) after each."""
    config, rng = CONFIGS["8x4s4"], np.random.default_rng(depth)
    machine = Machine(config)

    def tile(**fields: int) -> None:
        n_act, n_wgt = tile_beats(config, fields)
        act = rng.integers(0, 256, (n_act, config.rows), dtype=np.uint8)
        wgt = rng.integers(0, 256, (n_wgt, config.segments * config.lanes), dtype=np.uint8)
        machine.tile(act, wgt, **fields)

    for number in range(6):
        tile(length=12, load=1, accumulate=int(number > 0), signal=int(number == 5))
        if depth:
            base = (1 + number % 3) * config.bank_depth
            tile(dataflow=Dataflow.OS, length=depth, out_rows=config.rows, acc_base=base)
    machine.post(opcode=Opcode.ROWS, rows=12, cols=config.cols, wait=1, emit=1)
    program = Program(list(machine.pending.tiles), list(machine.pending.posts))
    outputs = run_program(config, program, core_verilog(config), None, cache=CACHE)
    assert_same(outputs, run_sync(machine.flush()))
    assert outputs.cycles is not None
    return outputs.cycles


@pytest.mark.parametrize("depth", [1, 3])
def test_drains_beside_ws(depth):
    """OS tiles between WS tiles of another bank cost their beats and a load, not the drain's R."""
    config = CONFIGS["8x4s4"]
    assert _beside(depth) - _beside(0) <= 6 * (depth + config.top_load + 2)


@pytest.mark.parametrize("seed", range(4))
def test_addition_in_a_bank_under_stalls(seed):
    """Rows that wait for the output queue must not move the two reads of a bank onto each other."""
    config = CONFIGS["tiny"]
    rng = np.random.default_rng(seed)
    device = Machine(config)
    depth, cols = config.bank_depth, config.cols
    common = {"opcode": Opcode.ROWS, "cols": cols}
    values = rng.integers(-(1 << 40), 1 << 40, (depth, cols))
    device.post(values, **common, source=Source.STREAM, rows=depth, write=1)
    for _ in range(6):
        half = {"rows": depth // 2, "src_base": depth // 2}
        device.post(**common, **half, mode=Mode.RAW, add=1, write=1, emit=1)
    program = Program([], list(device.pending.posts))
    expected = run_sync(device.flush())
    assert len(expected.acc_out) == 3 * depth
    assert_same(run_program(config, program, core_verilog(config), seed, cache=CACHE), expected)
