"""Mutated programs: every run of the functional accelerator ends, with END or a fault."""

from collections import Counter

import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import DESCRIPTOR_BYTES, PROGRAM_MAX, Fault
from systolora_sim.bench.mutate import cost, mutate
from systolora_sim.bench.sample import PROGRAM_ROOM, Sample, sample
from systolora_sim.machine import MachineError
from systolora_sim.system_machine import RunResult, SystemMachine

SEED = 20_000
TINY = preset("tiny")
SAMPLES: dict[str, tuple[AcceleratorConfig, Sample]] = {
    "tiny": (TINY, sample(TINY, 1)),
    "int8": (small := TINY.with_fields(int16=False, rows=8, segments=2), sample(small, 2)),
}


def run(name: str, seed: int, strict: bool) -> RunResult:
    config, s = SAMPLES[name]
    program = mutate(config, s.program, s.read_window, s.write_window, seed)
    assert 0 < len(program) <= PROGRAM_ROOM
    memory = s.copy()
    memory.write(s.address, program)
    machine = SystemMachine(config, memory, s.read_window, s.write_window, strict)
    result = machine.run(s.address, len(program) // DESCRIPTOR_BYTES)
    assert result.fault in tuple(Fault)
    assert 0 <= result.index <= len(program) // DESCRIPTOR_BYTES <= PROGRAM_MAX
    assert (result.fault == Fault.NONE) == (result.runs == 1)
    # The only bytes that changed are in the write window
    first = s.write_window[0] - s.memory.base
    before = s.copy()
    before.write(s.address, program)
    assert (memory.data[:first] == before.data[:first]).all()
    return result


def fuzz(name: str, first: int, count: int) -> None:
    faults = Counter(run(name, SEED + seed, False).fault for seed in range(first, first + count))
    print(f"{name}: {dict(faults)}")
    assert set(faults) == {fault for fault in Fault if fault <= Fault.END}


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("name", SAMPLES)
def test_ten_thousand_mutated_programs_end(name, part):
    fuzz(name, 2500 * part, 2500)


def test_strict_refuses_with_its_own_errors():
    """What is run to its end or a fault without proofs may be refused with them, and only that."""
    refused = 0
    for seed in range(300):
        try:
            result = run("tiny", SEED + seed, True)
        except MachineError as error:
            refused += 1
            assert "descriptor" in str(error) and "\n" not in str(error)
        else:
            assert result.fault == run("tiny", SEED + seed, False).fault
    assert refused > 20


def test_mutations_are_deterministic_and_bounded():
    config, s = SAMPLES["tiny"]
    windows = s.read_window, s.write_window
    assert cost(config, s.program, *windows) < 10_000
    for seed in range(100):
        program = mutate(config, s.program, *windows, seed, budget=10_000)
        assert program == mutate(config, s.program, *windows, seed, budget=10_000)
        assert cost(config, program, *windows) <= 10_000
