"""Layers with one input: fewer bytes read, and the golden model's bits with every mode."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulated import CONFIGS
from systolora.config import AcceleratorConfig, preset
from systolora_sim import sharing
from systolora_sim.bench.cases import random_state
from systolora_sim.lowering import compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.numerics import Scale
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, mismatches, run_on_rtl
from systolora_sim.runner import BUILD_DIR
from systolora_sim.schedules import step_schedule
from systolora_sim.step_program import read_back
from systolora_sim.system_machine import Memory, SystemMachine
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from test_lowering import ODD, check_training
from test_training import same

SEED = 5200
TINY, DEFAULT = preset("tiny"), preset("default")
OUTPUTS = frozenset({"H", "Y", "dH", "dX"})
WIDE = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", "H", "Y", "dH", "dX"), 16)
#: Records that are small enough for values to be clipped.
RECORDS = {"H": 9000, "Y": 40000, "dH": 9000, "dX": 40000}


def shared_state(
    shapes: list[tuple[int, int]],
    n: int = 21,
    d: int = 37,
    kind: str = "momentum",
    apart: int | None = None,
    **fields: Any,
) -> TrainingState:
    """Layers of k outputs and rank r, all with the x of the first one but number `apart`."""
    state = random_state(SEED, [(n, d, k, r) for k, r in shapes], kind, **fields)
    first = next(iter(state.layers.values())).layer
    layers = {}
    for number, (name, each) in enumerate(state.layers.items()):
        scales = each.layer.scales | {"x": first.scales["x"]}
        own = each.layer if number == apart else replace(each.layer, x=first.x, scales=scales)
        layers[name] = replace(each, layer=own)
    return replace(state, layers=layers)


def bytes_read(
    state: TrainingState, config: AcceleratorConfig, phase: str = "step", together: bool = True
) -> int:
    schedule = replace(step_schedule("auto", state.layers), together=together)
    program = compile_training(state, config, phase, schedule=schedule)
    memory = Memory(program.base, program.memory())
    machine = SystemMachine(config, memory, program.read_window, program.write_window)
    return machine.run(program.address, program.length, 1, program.word_base, 0).counters.bytes_read


@pytest.mark.parametrize("config", [TINY, DEFAULT, *ODD.values()])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"delayed": OUTPUTS},
        {"delayed": OUTPUTS, "amax": RECORDS},
        {"delayed": OUTPUTS, "amax": RECORDS, "stochastic": OUTPUTS},
        {"stochastic": OUTPUTS, "bias": True},
        {"bits": WIDE},
        {"bits": {"H": 16, "dH": 16}},
    ],
    ids=["plain", "delayed", "records", "words", "stochastic", "int16", "mixed"],
)
def test_shared_inputs_give_the_golden_bits(fields, config):
    check_training(shared_state([(18, 3), (9, 5), (30, 1)], **fields), config, runs=2)


def test_a_group_among_others():
    """Groups are of those with the same x, wherever they stand."""
    state = shared_state([(18, 3), (9, 5), (7, 2), (11, 4)], apart=1)
    # The largest one comes last
    names = [f"layer{n}" for n in (2, 3, 0)]
    assert sharing.input_groups(state) == [tuple(names), ("layer1",)]
    program = check_training(state, TINY, runs=2)
    assert len({program.symbols[f"{name}/x"] for name in names}) == 1
    assert program.symbols["layer1/x"] != program.symbols["layer0/x"]


def test_sticky_bits_stay_with_their_layer():
    """Only the second of three layers clips, in H and in dX; the third one's Scale saturates."""
    state = shared_state([(18, 3), (9, 5), (7, 2)], delayed=OUTPUTS)
    records = dict.fromkeys(OUTPUTS, 1 << 30)
    layers = {}
    for number, (name, each) in enumerate(state.layers.items()):
        amax = records | ({"H": 100, "dX": 100} if number == 1 else {})
        scales = each.layer.scales | ({"dy": Scale(40000, -510)} if number == 2 else {})
        layers[name] = replace(each, layer=replace(each.layer, amax=amax, scales=scales))
    state = replace(state, layers=layers)
    sticky = [result.sticky for result in run_steps(state, 1).results.values()]
    assert sticky == [set(), {"clip_delayed"}, {"scale_range"}]
    for config in (TINY, DEFAULT, ODD["least"]):
        check_training(state, config)


def test_another_scale_is_another_input():
    state = shared_state([(18, 3), (9, 5)])
    second = state.layers["layer1"]
    scales = second.layer.scales | {"x": Scale(40000, -3)}
    other = replace(second, layer=replace(second.layer, scales=scales))
    state = replace(state, layers=state.layers | {"layer1": other})
    assert sharing.input_groups(state) == [("layer0",), ("layer1",)]
    check_training(state, TINY)


@pytest.mark.parametrize("schedule", ["ws", "os", "mixed"])
def test_schedules_of_shared_inputs(schedule):
    state = shared_state([(18, 3), (9, 5)], delayed=OUTPUTS)
    for config in (TINY, ODD["least"]):
        program = compile_training(state, config, schedule=schedule)
        got = read_back(program, run_program(program, 1), 1)
        assert isinstance(got, TrainingResult)
        assert same(got, run_steps(state, 1))


def test_phases_of_shared_inputs_are_a_step():
    state = shared_state([(18, 3), (9, 5)], delayed=OUTPUTS, amax=RECORDS)
    image = None
    for phase in ("forward", "backward", "update"):
        program = compile_training(state, TINY, phase)
        image = run_program(program, image=image)
    whole = compile_training(state, TINY)
    expected = run_program(whole)[: whole.image.size]
    assert image is not None
    np.testing.assert_array_equal(image[: whole.image.size], expected)


def test_shared_inputs_are_read_less():
    """An x that fits no buffer is read once for each product, which several layers share."""
    state = shared_state([(8, 4)] * 3, n=150, d=260)
    size = state.layers["layer0"].layer.x.size
    apart = bytes_read(state, TINY, together=False)
    # H and dA of three layers are two products each
    assert apart - bytes_read(state, TINY) > 0.9 * 2 * size


def check_rtl(state: TrainingState, config: AcceleratorConfig, runs: int, stall: int) -> None:
    program = compile_training(state, config, base=IMAGE_BASE)
    options = RtlOptions(stall_seed=stall)
    result = run_on_rtl(program, runs, options, Path(BUILD_DIR), progress=False)
    assert mismatches(program, result, runs, run_steps(state, runs)) == []
    np.testing.assert_array_equal(run_program(program, runs), result.image)


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_inputs_on_rtl(name):
    print(f"seed {SEED}, stall seed 6")
    check_rtl(shared_state([(18, 3), (9, 5), (30, 1)], delayed=OUTPUTS), CONFIGS[name], 2, 6)


def test_more_rows_than_a_bank_on_rtl():
    fields = {"delayed": OUTPUTS, "amax": RECORDS, "stochastic": OUTPUTS}
    check_rtl(shared_state([(5, 40), (6, 33)], **fields), CONFIGS["8x4s4"], 2, 7)
