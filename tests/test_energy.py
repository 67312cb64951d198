"""The account of a step's energy: counts of a program, and sums by hand."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from systolora.config import PRESETS
from systolora.emit import emit_component
from systolora.rtl.edge import ArrayEdge
from systolora_sim.cycle_model import time_program
from systolora_sim.energy import Memories, Step, skew_registers, step_energy
from systolora_sim.energy_report import render
from systolora_sim.energy_steps import Technology, figures, steps
from systolora_sim.runner import RunError
from systolora_sim.step_traffic import Traffic, traffic
from systolora_sim.utilization_cases import CASES, LATENCY, compiled, training


@pytest.fixture(scope="module")
def block():
    """K and V of one layer at batch 1, rank 4, ours and the textbook's."""
    case = next(c for c in CASES if c.batch == 1 and c.rank == 4)
    state = training(case, "block")
    return {name: compiled(case, state, name) for name in ("systolora", "textbook-ws")}


@pytest.mark.parametrize("name", ["systolora", "textbook-ws"])
def test_counts_are_those_of_the_cycle_model(block, name):
    program = block[name]
    found = traffic(program.program, program.config)
    counters = time_program(program.config, program.program, memory_latency=LATENCY).counters
    assert found.ws_beats + found.os_beats == counters["ARRAY_BUSY"]
    assert found.narrow_read <= counters["BYTES_READ"]
    assert found.narrow_write <= counters["BYTES_WRITTEN"]
    assert found.buffer_write > 0.8 * counters["BYTES_READ"]
    assert bool(found.os_beats) == (name == "systolora")
    # Whatever leaves the array is written; a sum is added to what was written before
    assert found.acc_write >= found.ws_beats * program.config.cols
    assert 0 < found.acc_read <= 2 * found.acc_write


def test_registers_of_the_edge():
    config = PRESETS["ecp5"]
    edge = ArrayEdge(
        rows=config.rows, cols=config.cols, segments=config.segments,
        operand_bits=config.operand_bits,
    )  # fmt: skip
    verilog = emit_component(edge, "array_edge").verilog
    # Chains are of 9 bits a stage; windows and control words have other widths
    widths = [int(top) + 1 for top in re.findall(r"reg \[(\d+):0\]", verilog)]
    assert config.operand_bits == 9
    assert sum(width for width in widths if width % 9 == 0) == sum(skew_registers(config))


def mode(pj: float) -> dict[str, float]:
    return {
        "pj_total": pj,
        "pj_registers": pj,
        "pj_logic": 0.0,
        "pj_leakage": 0.0,
        "pj_per_mac": pj,
    }


def report() -> dict:
    modes = {"ws": mode(1), "os": mode(2), "idle": mode(0.5), "load": mode(0.25)}
    arrays = {n: {"area": 1.0, "fmax_mhz": 1.0, "modes": modes} for n in ("systolora", "int8")}
    arrays |= {
        name: {"area": 1.0, "fmax_mhz": 1.0, "modes": {k: mode(10) for k in modes}}
        for name in ("bf16", "fp32")
    }
    arrays["skew"] = {"area": 1.0, "fmax_mhz": 1.0, "modes": {"busy": mode(0.1), "idle": mode(0.0)}}
    return {
        "arrays": arrays, "period_ns": 1.0, "size": 4, "tools": {"sta": "sta 0"}, "data": "none",
        "seed": 0,
    }  # fmt: skip


def test_sums_by_hand():
    config = PRESETS["ecp5"].with_fields(rows=4, cols=4, segments=1)
    counts = Traffic(
        ws_beats=100, os_beats=20, ws_tiles=5, act_read=1000, wgt_read=200, buffer_write=300,
        acc_read=400, acc_write=500, post_rows=7, narrow_read=600, narrow_write=50,
    )  # fmt: skip
    ours = Step("systolora", 150, 700, 100, counts, config, 1, 6)
    found = step_energy(ours, report(), Memories(1.0, 2.0, 10.0))
    assert found["multiplying"] == pytest.approx(16 * (100 * 1 + 20 * 2) * 1e-6, abs=1e-3)
    memory = 1000 + 200 + 6 * 400 + 2 * (300 + 6 * 500)
    many = replace(ours, traffic=counts, bytes_read=700_000_000)
    assert step_energy(many, report(), Memories(0, 0, 10.0))["DRAM"] == pytest.approx(7000.001)
    big = Memories(1e6, 2e6, 1e6)
    assert step_energy(ours, report(), big)["SRAM"] == pytest.approx(memory)
    assert step_energy(ours, report(), big)["DRAM"] == 800
    scaled = {**report(), "arrays": json.loads(json.dumps(report()["arrays"]))}
    for array in scaled["arrays"].values():
        for each in array["modes"].values():
            each["pj_total"] *= 1e6
    found = step_energy(ours, scaled, Memories(0, 0, 0))
    assert found["multiplying"] == 16 * 140 and found["other cycles"] == 16 * 30 * 0.5
    act, wgt = skew_registers(config)
    assert found["edge"] == pytest.approx(0.1 * (act * 120 + wgt * (20 + 5 * 4)))
    assert found["all"] == pytest.approx(sum(v for k, v in found.items() if k != "all"))
    # A textbook array of fp32: four times the operands, loads of 4 cycles, its own energies
    wide = Step("int8", 150, 700, 100, replace(counts, os_beats=0), config, 4, 4)
    found = step_energy(wide, scaled, Memories(0, 0, 1e6))
    assert found["multiplying"] == 1600
    assert found["other cycles"] == pytest.approx(16 * (20 * 0.25 + 30 * 0.5))
    assert found["edge"] == pytest.approx(0.1 * 32 * 10 * 100)
    assert found["DRAM"] == 800 + 3 * 650


def test_the_page(block):
    programs = {"ours": block["systolora"], "textbook": block["textbook-ws"]}
    counts = {name: traffic(p.program, p.config) for name, p in programs.items()}
    columns = {
        column: Step(array, 1000, 64, 64, counts[name], programs[name].config, 1, 4)
        for column, (array, name) in {
            "ours": ("systolora", "ours"), "int8": ("int8", "textbook"),
            "bf16": ("bf16", "textbook"), "fp32": ("fp32", "textbook"),
        }.items()
    }  # fmt: skip
    technology = Technology("T", report(), report(), 1.0, 2.0, "a source")
    found = figures([technology], {"a case": columns}, command="c", versions={"v": "1"})
    assert json.loads(json.dumps(found)) == found
    page = render(found)
    assert "a case | textbook WS, fp32" in page and "64.0 pJ per byte" in page
    assert "with glitches | a case" in page and "a source" in page
    assert not np.isnan(found["technologies"]["T"]["steps"]["a case"]["ours"]["all"])


def test_bad_files(tmp_path):
    file = tmp_path / "utilization.json"
    with pytest.raises(RunError, match="No such file"):
        steps(file)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="no figures of utilization"):
        steps(file)
    file.write_text('{"cases": []}', encoding="utf-8")
    with pytest.raises(RunError, match="no case"):
        steps(file)
