"""What the Core's bench says when something is wrong."""

import numpy as np
import pytest

from simulated import CACHE, CONFIGS, core_verilog
from systolora_sim.bench.build import BenchError
from systolora_sim.bench.run import run_program
from systolora_sim.machine import Machine
from systolora_sim.program import Program


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
