"""Updates of masters in the shadow of the array's work: where they are, and whose bits they set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulated import CONFIGS
from systolora.config import AcceleratorConfig
from systolora.contract import Kind, Opcode
from systolora_sim.bench.cases import random_state
from systolora_sim.descriptor import decode
from systolora_sim.lowering import compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.numerics import ZERO
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, mismatches, run_on_rtl
from systolora_sim.runner import BUILD_DIR
from systolora_sim.step_program import StepProgram, read_back
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from test_schedules import ARRAYS
from test_training import same

SEED = 5300
#: Enough work for the array that the post-processor has time.
SHAPES = [(60, 110, 60, 3), (40, 70, 90, 5), (70, 40, 90, 2)]


def saturating(kind: str) -> TrainingState:
    """Three layers, of which the middle one's masters and momenta leave their range."""
    state = random_state(SEED, SHAPES, kind)
    each = state.layers["layer1"]

    def full(master):
        v = None if master.v is None else np.full_like(master.v, 32767)
        return replace(master, w=np.where(master.w < 0, -32767, 32767).astype(np.int16), v=v)

    layers = state.layers | {"layer1": replace(each, a=full(each.a), b=full(each.b))}
    lr = state.optimizer.lr._replace(e=2)
    optimizer = replace(state.optimizer, lr=lr, weight_decay=ZERO)
    return replace(state, layers=layers, optimizer=optimizer)


def in_shadow(program: StepProgram) -> float:
    """The share of the row operations that store a master before the last EXEC."""
    masters = [s for name, s in program.symbols.items() if name.endswith(".master")]
    stores, last = [], 0
    for index, data in enumerate(program.program):
        kind, fields = decode(data.tobytes())
        if kind == Kind.EXEC:
            last = index
        if kind == Kind.POST and fields["opcode"] == Opcode.ROWS and fields["emit"]:
            address = fields["out_address"]
            if any(m.address <= address < m.address + m.size for m in masters):
                stores.append(index)
    return sum(index < last for index in stores) / len(stores)


def check(config: AcceleratorConfig, state: TrainingState) -> StepProgram:
    program = compile_training(state, config)
    got, want = read_back(program, run_program(program, 2), 2), run_steps(state, 2)
    assert isinstance(got, TrainingResult)
    for name, result in want.results.items():
        got.results[name].sticky = result.sticky
    assert same(got, want)
    return program


@pytest.mark.parametrize("kind", ["sgd", "momentum", "lion"])
@pytest.mark.parametrize("config", [ARRAYS["4x4s1"], ARRAYS["8x16s1"], ARRAYS["16x16s4"]])
def test_updates_do_not_move_bits_or_status(config, kind):
    state = saturating(kind)
    want = run_steps(state, 1).state.layers
    assert "master_range" in want["layer1"].sticky
    check(config, state)


@pytest.mark.parametrize("kind", ["sgd", "momentum", "lion"])
def test_updates_are_in_the_shadow(kind):
    state = random_state(SEED, [(70, 140, 120, 3)] * 2, kind)
    for name in ("4x4s1", "16x16s4"):
        assert in_shadow(check(ARRAYS[name], state)) > 0.7


def test_enough_scale_registers():
    """Lion with decay holds four Scales while tensors of three layers wait for quantization."""
    state = random_state(SEED, [(9, 21, 18, 2), (12, 18, 25, 3)] * 4, "lion")
    assert not state.optimizer.weight_decay.is_zero
    for name in ("4x4s1", "4x4s4"):
        check(ARRAYS[name], state)


@pytest.mark.parametrize("kind", ["sgd", "lion"])
@pytest.mark.parametrize("name", ["tiny", "8x16s8"])
def test_updates_on_the_accelerator(name, kind):
    state = saturating(kind)
    program = compile_training(state, CONFIGS[name], base=IMAGE_BASE)
    options = RtlOptions(stall_seed=7 if kind == "lion" else None)
    result = run_on_rtl(program, 2, options, Path(BUILD_DIR), progress=False)
    assert mismatches(program, result, 2, run_steps(state, 2)) == []
    np.testing.assert_array_equal(run_program(program, 2), result.image)
