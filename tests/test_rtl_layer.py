"""Whole layers through the generated Verilog in a simulator: bit-exact with the golden model.

Configurations and simulators are those of test_rtl_core, so that each is built once.
"""

import numpy as np
import pytest

from simulated import CACHE, CONFIGS, core_verilog
from systolora_sim.bench.build import BenchError
from systolora_sim.bench.cases import random_layer
from systolora_sim.bench.run import run_program, run_rtl
from systolora_sim.compiler import product_records
from systolora_sim.demo import differences
from systolora_sim.golden import run_layer
from systolora_sim.machine import Machine
from systolora_sim.program import Program

OUTPUTS = ("H", "Y", "dH", "dX")
WIDE = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", *OUTPUTS), 16)
SLOW = {
    "stochastic": frozenset(OUTPUTS),
    "delayed": frozenset({"H", "dX"}),
    "amax": {"H": 900, "dX": 70000},
    "seed": 11,
}

#: Configuration, N, d, k, r, stall seed, fields of the layer.
CASES = {
    "tiny": ("tiny", 13, 20, 17, 3, None, {}),
    "tiny-stalls": ("tiny", 13, 20, 17, 3, 1, {"bias": True}),
    "tiny-ones": ("tiny", 1, 1, 1, 1, 2, {}),
    "tiny-int16": ("tiny", 9, 10, 6, 5, 3, {"bits": WIDE, "extremes": True}),
    "tiny-modes": ("tiny", 6, 9, 11, 2, 4, SLOW),
    # Longer row operations than the output queue: its stalls reach the reads of the accumulators.
    "tiny-long-rows": ("tiny", 60, 9, 14, 3, 8, {"bias": True}),
    "tiny-spilled": ("tiny", 150, 5, 6, 2, None, {"bits": {"x": 16, "Y": 16}}),
    "8x4": ("8x4s4", 11, 19, 13, 9, None, {"bias": True}),
    "8x4-mixed": ("8x4s4", 37, 10, 9, 4, 5, {"bits": {"dy": 16, "dX": 16}, "bias": True}),
    "8x4-modes": ("8x4s4", 10, 17, 5, 3, 6, SLOW),
    "4x8-int8": ("4x8s2-int8", 11, 13, 21, 5, 7, {"bias": True}),
    "4x8-int8-modes": ("4x8s2-int8", 40, 6, 9, 3, None, SLOW),
}


@pytest.mark.parametrize("case", CASES)
def test_layers(case):
    name, n, d, k, r, stall_seed, fields = CASES[case]
    config = CONFIGS[name]
    layer = random_layer(31, n, d, k, r, **({"want_dx": True} | fields))
    print(f"seed 31, stall seed {stall_seed}, configuration {config.digest}")
    verilog = core_verilog(config)
    reports: list[int] = []
    result, records = run_rtl(layer, config, verilog, stall_seed, reports.append, cache=CACHE)
    assert differences(result, run_layer(layer)) == {}
    for record, expected in zip(records, product_records(layer), strict=True):
        assert record.cycles is not None
        assert record.cycles * config.rows * config.cols >= record.macs
        expected.cycles = record.cycles
        assert record == expected
    assert reports == sorted(reports)
    assert reports[-1] > 0


def test_no_bubble_between_the_blocks_of_a_product():
    """One more column block costs its tiles, nothing else.

    Tiles of 12 rows of the low-rank operand take 12 cycles each, dA's per block of 4 columns: 5.
    """
    config = CONFIGS["tiny"]
    verilog = core_verilog(config)
    cycles = []
    for columns in (160, 240):
        layer = random_layer(32, 20, columns, 4, 12)
        result, records = run_rtl(layer, config, verilog, cache=CACHE)
        assert differences(result, run_layer(layer)) == {}
        cycles.append(next(r.cycles for r in records if r.name == "dA"))
    assert cycles[1] - cycles[0] == (240 - 160) // 4 * 5 * 12


def test_a_stuck_core_is_reported():
    """A program without the token that it waits for ends with a sentence, not a hang."""
    config = CONFIGS["tiny"]
    machine = Machine(config)
    machine.tile(np.zeros((1, 4), np.uint8), np.zeros((4, 4), np.uint8), length=1, load=1, wait=1)
    program = Program(machine.pending.tiles, [])
    with pytest.raises(BenchError, match=r"nothing moved for .* beats wait at act"):
        run_program(config, program, core_verilog(config), cache=CACHE)


def test_verilog_that_does_not_build(tmp_path):
    broken = tmp_path / "broken.v"
    broken.write_text("module systolora_core(input clk)\n", encoding="utf-8")
    with pytest.raises(BenchError, match="could not build it"):
        run_program(CONFIGS["tiny"], Program(), broken, cache=tmp_path / "sim")
    assert list((tmp_path / "sim").iterdir()) == []
    with pytest.raises(BenchError, match=r"missing\.v: No such file"):
        run_program(CONFIGS["tiny"], Program(), tmp_path / "missing.v", cache=tmp_path / "sim")


def test_verilog_of_another_configuration(tmp_path):
    """Ports of other widths stop the build: padding them silently would hang or lie."""
    verilog = core_verilog(CONFIGS["tiny"])
    with pytest.raises(BenchError, match="could not build it"):
        run_program(CONFIGS["8x4s4"], Program(), verilog, cache=tmp_path)


def test_an_unknown_simulator(monkeypatch, tmp_path):
    monkeypatch.setenv("SIM", "other")
    with pytest.raises(BenchError, match="SIM = other: must be one of verilator, icarus"):
        run_program(CONFIGS["tiny"], Program(), tmp_path / "any.v", cache=tmp_path)
