"""Every schedule through the Verilog of the accelerator: the golden model's bits, all of memory."""

from pathlib import Path

import numpy as np
import pytest

from simulated import CONFIGS
from systolora.config import AcceleratorConfig, preset
from systolora_sim.bench.cases import random_state
from systolora_sim.lowering import compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, mismatches, run_on_rtl
from systolora_sim.runner import BUILD_DIR
from systolora_sim.schedules import SCHEDULES
from systolora_sim.training import run_steps
from test_schedules import ARRAYS, CASES, SEED

#: Cases of each configuration, and the seed of the stalls.
SELECTION = {
    "tiny": {"sgd": None, "momentum": 1, "extremes": None, "stochastic": 2, "rank": None},
    "8x4s4": {"int16": 3, "delayed": None},
    "4x8s2-int8": {"lion": None, "ones": 4},
    "8x8s8": {"momentum": None, "h-int16": None},
    "8x16s8": {"dy-int16": 5, "sgd": None},
}


def check(config: AcceleratorConfig, case: str, schedule: str, stall: int | None) -> None:
    print(f"seed {SEED}, stall seed {stall}, configuration {config.digest}")
    shapes, kind, fields = CASES[case]
    state = random_state(SEED, shapes, kind, **fields)
    program = compile_training(state, config, base=IMAGE_BASE, schedule=schedule)
    options = RtlOptions(stall_seed=stall)
    result = run_on_rtl(program, 2, options, Path(BUILD_DIR), progress=False)
    assert mismatches(program, result, 2, run_steps(state, 2)) == []
    np.testing.assert_array_equal(run_program(program, 2), result.image)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULES if name != "auto"])
@pytest.mark.parametrize("name", SELECTION)
def test_schedules(name, schedule):
    for case, stall in SELECTION[name].items():
        check(CONFIGS[name], case, schedule, stall)


@pytest.mark.slow
@pytest.mark.parametrize("config", [ARRAYS["8x16s1"], preset("default")], ids=["8x16s1", "16x16s4"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_larger_arrays(config, schedule):
    for number, case in enumerate(CASES):
        check(config, case, schedule, number if number % 2 else None)
