"""The whole accelerator in Verilog runs random programs: the same bits as the functional machine."""

import numpy as np
import pytest

from simulated import CONFIGS
from system_rtl import Case, compare, rtl_run, system_simulator
from systolora.contract import Fault
from systolora_sim.bench.script import MemoryModel
from systolora_sim.bench.system import SystemResult

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
    assert 0 < counters["ARRAY_BUSY"]
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


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_several_runs(runs):
    """Each run goes on with the registers of the one before; CONTROL STEP moved them."""
    case = Case.random("tiny", SEED + 20, runs=runs, word_base=0xFFFF_0000, step=0xFFFF_FFFF)
    result = rtl_run(system_simulator("tiny"), case, MemoryModel(stall_seed=runs))
    expected = compare(case, result)
    assert expected.runs == max(runs, 1) and result.runs_left == 0
    plausible(result)


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
