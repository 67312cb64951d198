"""Training steps on the simulated accelerator while the outside misbehaves: errors on the bus,
aborts, resets in the middle of bursts; and the same steps by the C driver."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from systolora.config import preset
from systolora.contract import Fault
from systolora_sim import rtl_backend
from systolora_sim.bench import script
from systolora_sim.bench.cases import random_layer
from systolora_sim.bench.script import BusError, MemoryModel, run_script
from systolora_sim.bench.system import SystemJob, run_system, start_commands
from systolora_sim.bench.system_build import build_system
from systolora_sim.layerfile import write_layer
from systolora_sim.lowering import compile_training
from systolora_sim.rtl_backend import IMAGE_BASE, check_results
from systolora_sim.runner import BUILD_DIR, ensure_verilog
from systolora_sim.statefile import Options, load_state
from systolora_sim.training import run_steps

SEED = 20263
STEPS = 2
TINY = preset("tiny")
DRIVER = Path(__file__).parent.parent / "sw" / "systolora.c"


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("layer") / "layer.safetensors"
    write_layer(path, random_layer(SEED, 30, 40, 25, 3, want_dx=True, bias=True))
    return load_state(path, Options(optimizer="momentum", lr=0.01, weight_decay=0.1), None, None)


@pytest.fixture(scope="module")
def program(state):
    return compile_training(state, TINY, base=IMAGE_BASE)


@pytest.fixture(scope="module")
def golden(state):
    return run_steps(state, STEPS)


@pytest.fixture(scope="module")
def simulator():
    return rtl_backend.simulator(TINY, BUILD_DIR, None)


def _job(program, **fields) -> SystemJob:
    return SystemJob(
        image=program.memory(),
        base=program.base,
        program_address=program.address,
        length=program.length,
        read_window=program.read_window,
        write_window=program.write_window,
        runs=STEPS,
        word_base=program.word_base,
        step=program.step,
        **fields,
    )


@pytest.mark.parametrize("stall_seed", [None, SEED])
@pytest.mark.parametrize("response", ["slave", "decode"])
@pytest.mark.parametrize("tensor", ["x", "Y", "dA", "lora_B.master", "program"])
def test_errors_on_the_bus(simulator, program, tensor, response, stall_seed):
    """The run ends with the error's code, with the bus quiet (run_system looks at that)."""
    if tensor == "program":
        address, ways = program.address + 64 * (program.length // 2), ["read"]
    else:
        symbol = program.symbols[tensor]
        address, ways = symbol.at(symbol.rows // 2), ["read"] if tensor == "x" else ["write"]
    for way in ways:
        error = BusError(way, response, address, address + 1)
        job = _job(program, memory=MemoryModel(stall_seed=stall_seed, errors=(error,)))
        assert run_system(simulator, TINY, job).fault is Fault[f"{way}_{response}".upper()]


@pytest.mark.parametrize("stall_seed", [None, 1, 2])
def test_aborts_and_resets(simulator, program, golden, stall_seed):
    """Aborted and reset at many places, then run to its end on a fresh image: the same bits."""
    start = start_commands(_job(program))
    resets = [
        command
        for way in ("read", "write")
        for cycles in (1, 50, 700, 4000)
        for command in (
            *start,
            script.wait(cycles),
            script.wait_burst(way, 50_000),
            script.reset(2),
        )
    ]
    aborts = [
        command
        for cycles in (0, 1, 7, 40, 200, 1500, 3000, 5000)
        for command in (
            *start,
            script.wait(cycles),
            script.write("CONTROL", 0b10),
            script.wait_irq(100_000),
            script.read("ERROR"),
        )
    ]
    whole = [
        script.load(program.base, program.memory().tobytes()),
        *start,
        script.wait_irq(10_000_000),
        script.read("ERROR"),
    ]
    result = run_script(
        simulator,
        program.memory(),
        program.base,
        [*resets, *aborts, *whole],
        memory=MemoryModel(stall_seed=stall_seed),
        windows=[("read", *program.read_window), ("write", *program.write_window)],
    ).require()
    ends = [event for event in result.events if event["do"] == "wait_irq"]
    assert all(event["idle"] for event in ends)
    faults = [Fault(event["value"]) for event in result.events if event["do"] == "read"]
    assert faults == [Fault.ABORTED] * (len(faults) - 1) + [Fault.NONE]
    undisturbed = run_system(simulator, TINY, _job(program))
    after = dataclasses.replace(undisturbed, image=result.image, last_writes=result.last_writes)
    check_results(program, after, STEPS, golden)
    np.testing.assert_array_equal(result.image, undisturbed.image)


@pytest.mark.parametrize("stall_seed", [None, 4])
def test_driver(program, golden, stall_seed):
    """The C driver trains: registers, counters and results are as with Python at the registers."""
    verilog = ensure_verilog(TINY, BUILD_DIR).file
    driven = build_system(verilog, BUILD_DIR / "sim", driver=DRIVER)
    job = _job(program, driver=True, memory=MemoryModel(stall_seed=stall_seed))
    result = run_system(driven, TINY, job)
    check_results(program, result, STEPS, golden)
    assert (result.step, result.runs_left) == (program.step + STEPS, 0)
