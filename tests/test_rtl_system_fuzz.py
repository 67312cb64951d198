"""Mutated programs on the accelerator in Verilog: what the functional machine says, and no harm.

Every one ends as the machine says, changes nothing outside its write window, and leaves the
accelerator such that a good program runs without a reset.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulated import CONFIGS
from system_rtl import Case, End, Script, compare_end, machine_run, system_simulator
from systolora.contract import DESCRIPTOR_BYTES, Fault
from systolora_sim.bench.mutate import cost, mutate
from systolora_sim.bench.sample import sample
from systolora_sim.bench.script import MemoryModel
from systolora_sim.machine import MachineError
from systolora_sim.system_machine import Memory, SystemMachine

SEED = 7300
#: What a mutated program may take, in the cycles that `cost` estimates.
BUDGET = 20_000
#: Programs of one simulation.
BLOCK = 25


def good_case(name: str, seed: int) -> Case:
    """A random program, or the one that uses everything."""
    config = CONFIGS[name]
    if seed % 4:
        return Case.random(name, seed)
    one = sample(config, seed)
    image = np.full(-(-one.memory.data.size // 4096) * 4096, 0x77, np.uint8)
    image[: one.memory.data.size] = one.memory.data
    return Case(
        config, image, one.address, one.length, one.read_window, one.write_window, one.memory.base
    )


def mutated(case: Case, seed: int) -> Case:
    """A case with a broken program."""
    windows = case.read_window, case.write_window
    program = mutate(case.config, b"".join(case.descriptors), *windows, seed, BUDGET)
    assert cost(case.config, program, *windows) <= BUDGET
    parts = [program[at : at + DESCRIPTOR_BYTES] for at in range(0, len(program), DESCRIPTOR_BYTES)]
    return case.with_program(parts)


def has_one_result(case: Case) -> bool:
    """Whether every order that its tokens allow gives the same bits."""
    memory = Memory(case.base, case.image.copy())
    machine = SystemMachine(case.config, memory, case.read_window, case.write_window)
    try:
        machine.run(case.address, case.length, case.runs, case.word_base, case.step)
    except MachineError:  # a race, or something undefined
        return False
    return True


def check(case: Case, end: End) -> bool:
    """Asserts that a broken program did what it may; returns whether its bits were compared."""
    if has_one_result(case):
        compare_end(case, end)
        return True
    expected, _ = machine_run(case)
    assert (end.fault, end.index) == (expected.fault, expected.index)
    assert (end.macs, end.descriptors) == (expected.counters.macs, expected.counters.descriptors)
    assert (end.word_base, end.step) == (expected.word_base, expected.step)
    assert end.idle and end.image is not None
    inside = np.zeros(case.image.size, bool)
    inside[case.write_window[0] - case.base : case.write_window[1] - case.base] = True
    assert not ((end.image != case.image) & ~inside).any()
    return False


def fuzz(name: str, block: int, directory: Path, stall_seed: int | None) -> Counter[str]:
    """One simulation of BLOCK broken programs, each with a good one after it."""
    good = good_case(name, SEED + block)
    cases = [mutated(good, 1000 * block + n) for n in range(BLOCK)]
    script = Script(directory)
    for case in cases:
        # Where nothing moves for long it hangs; random stalls take a multiple
        script.run(case, 10 * BUDGET)
        script.run(good, 10 * BUDGET)
    memory = MemoryModel(
        read_latency=1 + 13 * block % 50, write_latency=1 + 17 * block % 60, stall_seed=stall_seed
    )
    ends, _ = script.execute(system_simulator(name), good, memory, watchdog=50_000)
    seen: Counter[str] = Counter()
    for n, case in enumerate(cases):
        print(f"block {block}, program {n}")
        compared = check(case, ends[2 * n])
        seen[ends[2 * n].fault.name] += 1
        seen["compared"] += compared
        compare_end(good, ends[2 * n + 1])
    return seen


@pytest.mark.parametrize("part", range(4))
def test_mutated_programs(part, tmp_path):
    seen: Counter[str] = Counter()
    for block in range(3 * part, 3 * part + 3):
        seen += fuzz("tiny", block, tmp_path, SEED + block if block % 2 else None)
    print(dict(seen))
    assert seen["compared"] >= BLOCK and seen["NONE"] >= BLOCK
    assert {Fault.FIELD.name, Fault.TOKEN.name, Fault.END.name} <= set(seen)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"tiny"}))
def test_mutated_programs_of_other_configurations(name, tmp_path):
    print(dict(fuzz(name, 40, tmp_path, SEED)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_many_mutated_programs(name, tmp_path):
    seen: Counter[str] = Counter()
    for block in range(100, 130):
        seen += fuzz(name, block, tmp_path, SEED + block if block % 2 else None)
    print(dict(seen))
    assert {fault.name for fault in Fault if fault <= Fault.END} <= set(seen)


def test_two_runs_of_a_mutated_program(tmp_path):
    """With RUNS, too: a second run of what the first one left."""
    good = good_case("tiny", SEED + 1)
    cases = [replace(mutated(good, 90_000 + n), runs=2) for n in range(BLOCK)]
    script = Script(tmp_path)
    for case in cases:
        script.run(case, 10 * BUDGET)
    ends, _ = script.execute(system_simulator("tiny"), good)
    for case, end in zip(cases, ends, strict=True):
        check(case, end)
