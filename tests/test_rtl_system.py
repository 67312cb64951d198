"""The whole accelerator in Verilog runs random programs to the functional machine's bits."""

from dataclasses import replace

import numpy as np
import pytest

from random_programs import BASE, HALF, SIZE
from simulated import CONFIGS
from system_rtl import Case, boundary_case, compare, rtl_run, system_simulator
from systolora.config import AcceleratorConfig
from systolora.contract import Action, Fault, Mode, Opcode, Source
from systolora_sim.bench.sample import ProgramBuilder
from systolora_sim.bench.script import MemoryModel
from systolora_sim.bench.system import SystemResult
from systolora_sim.numerics import Scale
from systolora_sim.program import scale_imm

SEED = 5100

#: How the memory behaves, by name; `stalls` takes the case's own seed.
MEMORIES = {
    "plain": MemoryModel(),
    "fast": MemoryModel(read_latency=1, write_latency=1),
    "slow": MemoryModel(read_latency=300, write_latency=500, write_late=True),
    "narrow": MemoryModel(read_outstanding=1, write_outstanding=1, read_latency=7),
    "late": MemoryModel(read_latency=3, write_latency=400, write_late=True, stall_seed=1),
}


def plausible(result: SystemResult) -> None:
    """What counters must keep to whatever the program is."""
    counters = result.counters
    assert counters["ARRAY_BUSY"] > 0
    for name in ("ARRAY_BUSY", "STALL_LOAD", "STALL_POST", "STALL_STORE"):
        assert counters[name] <= counters["CYCLES"], name
    assert 0 <= result.cycles - counters["CYCLES"] <= 8


@pytest.mark.parametrize("seed", range(SEED, SEED + 6))
@pytest.mark.parametrize("memory", ["plain", "stalls"])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name, memory, seed):
    case = Case.random(name, seed)
    model = MemoryModel(stall_seed=seed) if memory == "stalls" else MEMORIES[memory]
    result = rtl_run(system_simulator(name), case, model)
    assert compare(case, result).fault is Fault.NONE
    plausible(result)


@pytest.mark.parametrize("memory", sorted(MEMORIES))
def test_memories(memory):
    for name, seed in (("tiny", SEED + 10), ("8x4s4", SEED + 11)):
        case = Case.random(name, seed)
        result = rtl_run(system_simulator(name), case, MEMORIES[memory])
        compare(case, result)
        plausible(result)


@pytest.mark.parametrize("name", CONFIGS)
def test_boundaries(name):
    """No burst crosses 4 KiB (the harness looks), and no byte is lost or written beside a row."""
    case = boundary_case(CONFIGS[name], SEED)
    for model in (MemoryModel(), MemoryModel(stall_seed=SEED)):
        result = rtl_run(system_simulator(name), case, model)
        assert compare(case, result).fault is Fault.NONE


@pytest.mark.parametrize("skew", [1, 50])
@pytest.mark.parametrize("name", ["tiny-2x64", "4x8s2-4x512"])
def test_channels_of_different_latency(name, skew):
    """Memory is as slow as its slowest channel, and no slower: the others wait with their beats."""
    case = boundary_case(CONFIGS[name], SEED)
    slowest = 3 + (CONFIGS[name].channels - 1) * skew
    cycles = []
    for model in (MemoryModel(3, 3, skew=skew), MemoryModel(slowest, slowest)):
        result = rtl_run(system_simulator(name), case, model)
        assert compare(case, result).fault is Fault.NONE
        cycles.append(result.cycles)
    assert cycles[0] == cycles[1]


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_several_runs(runs):
    """Each run goes on with the registers of the one before; CONTROL STEP moved them."""
    case = Case.random("tiny", SEED + 20, runs=runs, word_base=0xFFFF_0000, step=0xFFFF_FFFF)
    result = rtl_run(system_simulator("tiny"), case, MemoryModel(stall_seed=runs))
    expected = compare(case, result)
    assert expected.runs == max(runs, 1) and result.runs_left == 0
    plausible(result)


def join_case(config: AcceleratorConfig, joins: int, between: int) -> Case:
    """POSTs that add sums from memory to a bank, `between` other row operations before each."""
    rows = bank = config.bank_depth
    shape = {"rows": rows, "cols": config.cols}
    sums = {"in_width": 2, "in_stride": max(4 * config.cols, config.beat_bytes)}
    builder = ProgramBuilder()
    builder.post(
        Opcode.ROWS, source=Source.STREAM, write=1, dst_base=bank, **shape, **sums,
        in_address=BASE + 0x4000,
    )  # fmt: skip
    for number in range(joins):
        for _ in range(between):
            builder.post(Opcode.ROWS, **shape, src_base=bank, write=1, dst_base=bank)
        builder.post(
            Opcode.ROWS, **shape, src_base=bank, write=1, dst_base=bank, add=1, add_stream=1,
            **sums, in_address=BASE + 0x5000 + 0x400 * number,
        )  # fmt: skip
    builder.post(
        Opcode.ROWS, **shape, src_base=bank, emit=1,
        out_width=2, out_address=BASE + HALF, out_stride=sums["in_stride"],
    )  # fmt: skip
    builder.control(Action.END)
    image = np.random.default_rng(SEED).integers(0, 256, SIZE, dtype=np.uint8)
    blank = Case(config, image, BASE, 1, (BASE, BASE + SIZE), (BASE + HALF, BASE + SIZE))
    return blank.with_program(builder.parts)


def test_sums_of_the_next_post_are_read_ahead():
    """Memory's latency counts once: reads go on while the POST before them works."""
    config, joins = CONFIGS["tiny"], 6
    cycles = []
    for latency in (1, 60):
        case = join_case(config, joins, between=7)
        model = MemoryModel(read_latency=latency, write_latency=1)
        result = rtl_run(system_simulator("tiny"), case, model)
        compare(case, result)
        cycles.append(result.counters["CYCLES"])
    # Rows are bursts of their own, `outstanding` at a time
    alone = config.bank_depth // config.outstanding * 60
    assert cycles[1] - cycles[0] < 1.5 * alone


def test_what_stays_from_run_to_run():
    """A run begins with empty lanes and status bits; registers, buffers, accumulators stay."""
    config = CONFIGS["tiny"]
    out = iter(range(BASE + HALF, BASE + SIZE, 64))
    data = BASE + HALF // 2
    builder = ProgramBuilder()
    builder.post(Opcode.AMAX_SET, dst=1, imm=0)
    builder.post(Opcode.COLLECT, dst=1)
    empty = next(out)
    builder.post(Opcode.AMAX_READ, src_a=1, out_address=empty)
    builder.post(Opcode.STICKY_READ, out_address=next(out))
    kept = next(out)
    builder.post(Opcode.SCALE_READ, src_a=5, out_address=kept)
    builder.post(Opcode.SCALE_SET, dst=5, imm=scale_imm(Scale(0xABCD, 20)))
    quantize = {
        "opcode": Opcode.ROWS, "rows": 2, "cols": 4, "source": Source.STREAM, "mode": Mode.INT8,
        "src_a": 5, "delayed": 1, "amax": 1, "in_width": 2, "in_address": data, "in_stride": 16,
    }  # fmt: skip
    builder.post(**quantize, out_address=next(out), out_stride=8)
    builder.post(Opcode.STICKY_READ, out_address=next(out))
    builder.post(Opcode.AMAX_SELECT, dst=1, src_a=1, src_b=1)  # `delayed` rests from here on
    builder.post(**quantize, out_address=next(out), out_stride=8)
    # The accumulators of the run before
    rows = {"opcode": Opcode.ROWS, "rows": 2, "cols": 4, "src_base": 9}
    builder.post(**rows, emit=1, out_width=2, out_address=next(out), out_stride=16)
    source = {"source": Source.STREAM, "in_width": 2, "in_address": data, "in_stride": 16}
    builder.post(**rows | source, write=1, dst_base=9)
    builder.control(Action.END)
    image = np.random.default_rng(SEED).integers(0, 256, SIZE, dtype=np.uint8)
    blank = Case(config, image, BASE, 1, (BASE, BASE + SIZE), (BASE + HALF, BASE + SIZE))
    case = replace(blank.with_program(builder.parts), runs=2)
    result = rtl_run(system_simulator("tiny"), case)
    assert compare(case, result).sticky == {"clip_delayed"}
    at = empty - BASE
    assert result.image[at : at + 8].tobytes() == bytes(8)
    at = kept - BASE
    assert result.image[at : at + 8].view("<i4").tolist() == [0xABCD, 20]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("name", CONFIGS)
def test_many_random_programs(name, block):
    simulator = system_simulator(name)
    rng = np.random.default_rng((SEED, block))
    for seed in range(SEED + 100 + 10 * block, SEED + 110 + 10 * block):
        case = Case.random(name, seed)
        model = MemoryModel(
            read_latency=int(rng.integers(1, 80)),
            write_latency=int(rng.integers(1, 80)),
            read_outstanding=int(rng.integers(0, 4)),
            write_outstanding=int(rng.integers(0, 4)),
            write_late=bool(rng.integers(0, 2)),
            stall_seed=seed if rng.random() < 0.7 else None,
        )
        print(f"seed {seed}, {model}")
        result = rtl_run(simulator, case, model)
        compare(case, result)
        plausible(result)
