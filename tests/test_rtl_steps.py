"""Whole training steps, compiled, through the Verilog of the accelerator: the golden model's bits.

Shapes, ranks, optimizers, widths, modes and several layers, on arrays, buses and buffers of many
sizes; the machine computes the same from the same program, and proves its order.
"""

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
from systolora_sim.training import TrainingState, run_steps

SEED = 4100
WIDE = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", "H", "Y", "dH", "dX"), 16)
OUTPUTS = frozenset({"H", "Y", "dH", "dX"})

#: Shapes (N, d, k, r) of the layers, optimizer, fields of the layers, runs, stall seed.
CASES = {
    "sgd": ([(13, 20, 17, 3)], "sgd", {}, 2, None),
    "momentum-stalls": ([(9, 33, 12, 5)], "momentum", {"bias": True}, 2, 1),
    "lion": ([(30, 19, 26, 4)], "lion", {}, 3, None),
    "ones": ([(1, 1, 1, 1)], "lion", {}, 2, 2),
    "int16": ([(6, 11, 9, 2)], "momentum", {"bits": WIDE}, 1, 3),
    "mixed": ([(7, 10, 9, 4)], "sgd", {"bits": {"dy": 16, "dX": 16, "H": 16}}, 1, None),
    "delayed": ([(8, 14, 10, 3)], "sgd", {"delayed": OUTPUTS}, 3, None),
    "stochastic": ([(8, 14, 10, 3)], "lion", {"stochastic": OUTPUTS}, 2, 4),
    "layers": ([(5, 9, 7, 2), (12, 6, 21, 3), (3, 30, 5, 9)], "momentum", {}, 2, 5),
    "rank": ([(11, 8, 13, 37)], "sgd", {}, 1, None),
}
INT8_ONLY = ("int16", "mixed")


def state_of(case: str) -> TrainingState:
    shapes, kind, fields, _, _ = CASES[case]
    return random_state(SEED, shapes, kind, **fields)


def check(state: TrainingState, config: AcceleratorConfig, runs: int, stall: int | None) -> None:
    print(f"seed {SEED}, stall seed {stall}, configuration {config.digest}")
    program = compile_training(state, config, base=IMAGE_BASE)
    options = RtlOptions(stall_seed=stall)
    result = run_on_rtl(program, runs, options, Path(BUILD_DIR), progress=False)
    assert mismatches(program, result, runs, run_steps(state, runs)) == []
    memory = run_program(program, runs)
    # Everything in memory, what nobody names as well
    np.testing.assert_array_equal(memory, result.image)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CONFIGS)
def test_steps(name, case):
    config = CONFIGS[name]
    if not config.int16 and case in INT8_ONLY:
        config = CONFIGS["tiny"].with_fields(bus_bits=64)
    check(state_of(case), config, *CASES[case][3:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        preset("default"),
        preset("default").with_fields(segments=1, bus_bits=128),
        AcceleratorConfig(
            rows=8, cols=16, segments=1, acc_depth=64, bus_bits=128,
            act_bytes=1 << 13, wgt_bytes=1 << 12, outstanding=4,
        ),
        preset("default").with_fields(bus_bits=128, channels=2),
        preset("default").with_fields(bus_bits=64, channels=4),
    ],
    ids=["16x16s4", "16x16s1", "8x16s1", "16x16s4-2x128", "16x16s4-4x64"],
)  # fmt: skip
def test_larger_arrays(config):
    """The same steps on arrays, segments and buses of other sizes."""
    for case in CASES:
        check(state_of(case), config, *CASES[case][3:])
