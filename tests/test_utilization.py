"""The table of utilization: what is kept, what is shown, and whether the stored one is current."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from systolora.config import preset
from systolora_sim import utilization_runs
from systolora_sim.lowering import compile_training
from systolora_sim.rtl_backend import IMAGE_BASE
from systolora_sim.runner import BUILD_DIR, RunError
from systolora_sim.step_program import StepProgram
from systolora_sim.training import TrainingState, run_steps
from systolora_sim.utilization import figures
from systolora_sim.utilization_cases import BLOCK, CASES, LATENCY, OURS, compiled, training
from systolora_sim.utilization_report import cycles, missed, render
from systolora_sim.utilization_runs import Runs
from systolora_sim.utilization_sweep import BATCHES, RANKS, groups
from systolora_sim.workload import WORKLOADS, Workload, WorkloadLayer, state

RESULTS = Path("docs") / "results"
SCRIPT = Path("scripts") / "utilization.py"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((RESULTS / "utilization.json").read_text(encoding="utf-8"))


def layer(name: str, given: str, k: int = 8) -> WorkloadLayer:
    return WorkloadLayer(name=name, input=given, rows=5, d=12, k=k, dx=False)


def workload(*layers: WorkloadLayer) -> Workload:
    return Workload(name="small", title="", source="", layers=layers)


def small() -> tuple[TrainingState, StepProgram]:
    training = state(workload(layer("one", "x")), rank=2, batch=1)
    return training, compile_training(training, preset("tiny"), base=IMAGE_BASE, sums=False)


# What is stored -----------------------------------------------------------------------------------


def test_the_stored_table_is_made_from_the_stored_figures(stored: dict[str, Any]) -> None:
    assert (RESULTS / "utilization.md").read_text(encoding="utf-8") == render(stored)


def test_the_stored_cases_are_those_of_the_code(stored: dict[str, Any]) -> None:
    assert [row["name"] for row in stored["cases"]] == [case.name for case in CASES]
    for row, case in zip(stored["cases"], CASES, strict=True):
        assert row["digest"] == case.config.digest
        assert row["target"]["share"] == case.target.share
        assert row["target"]["over"] == dict(case.target.over)
    swept = [(row["workload"], row["rank"], row["batch"]) for row in stored["sweep"]["rows"]]
    assert swept == [(name, r, b) for name in WORKLOADS for r in RANKS for b in BATCHES]


def test_the_stored_cycles_add_up_and_the_model_is_near_rtl(stored: dict[str, Any]) -> None:
    for row in stored["cases"]:
        for found in filter(None, (row["model"], row["rtl"])):
            names = ("computed", "padding", "loads", "post", "other")
            assert abs(sum(found[name] for name in names) - found["cycles"]) <= 1
            assert found["share"] == pytest.approx(found["limit"] / found["cycles"], abs=1e-4)
        if row["rtl"]:
            assert row["model"]["cycles"] == pytest.approx(row["rtl"]["cycles"], rel=0.01)
        blocks = [row["block"], *(each["block"] for each in row["baselines"].values())]
        for block in blocks:
            if block["rtl"] is not None:
                assert block["model"] == pytest.approx(block["rtl"], rel=0.01)


def test_steps_of_int8_were_simulated_whole_and_the_others_in_blocks(
    stored: dict[str, Any],
) -> None:
    for row, case in zip(stored["cases"], CASES, strict=True):
        assert row["block"]["rtl"] is not None, case.name
        assert (row["rtl"] is not None) or not case.whole, case.name
        for name in case.blocks:
            assert row["baselines"][name]["block"]["rtl"] is not None, (case.name, name)


@pytest.mark.parametrize("case", CASES[4:6], ids=lambda case: case.name)
def test_the_stored_step_is_what_is_compiled_today(case: Any, stored: dict[str, Any]) -> None:
    """Otherwise the table is of another compiler: `python scripts/utilization.py`."""
    run = Runs(BUILD_DIR, LATENCY).model(compiled(case, training(case)))
    (row,) = [row for row in stored["cases"] if row["name"] == case.name]
    assert run["cycles"] == pytest.approx(row["model"]["cycles"], rel=0.005)


# What is kept -------------------------------------------------------------------------------------


def test_a_program_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = utilization_runs.time_program

    def counting(*args: Any, **fields: Any) -> Any:
        calls.append(1)
        return real(*args, **fields)

    monkeypatch.setattr(utilization_runs, "time_program", counting)
    _, program = small()
    first = Runs(tmp_path, 40).model(program)
    assert Runs(tmp_path, 40).model(program) == first and len(calls) == 1
    slower = Runs(tmp_path, 80).model(program)
    assert len(calls) == 2 and slower["cycles"] > first["cycles"]


def kept_in(directory: Path, simulate: bool = True) -> Runs:
    runs = Runs(BUILD_DIR, 40, simulate=simulate)
    runs.directory = directory
    return runs


def never() -> Any:
    raise AssertionError("it was simulated already, or must not be")


def test_a_run_in_verilog_is_kept_for_this_program_and_this_data(tmp_path: Path) -> None:
    runs, silent = kept_in(tmp_path), kept_in(tmp_path, simulate=False)
    training, program = small()
    blank = state(workload(layer("one", "x")), rank=2, batch=1, blank=True)
    asked = compile_training(blank, preset("tiny"), base=IMAGE_BASE, sums=False)
    assert silent.rtl(asked, "small", never, never) is None
    found = runs.rtl(asked, "small", lambda: program, lambda: run_steps(training, 1))
    assert found is not None
    assert found["cycles"] == pytest.approx(runs.model(program)["cycles"], rel=0.01)
    assert runs.rtl(asked, "small", never, never) == found
    assert silent.rtl(asked, "other data", never, never) is None
    wider = state(workload(layer("one", "x", 16)), rank=2, batch=1, blank=True)
    other = compile_training(wider, preset("tiny"), base=IMAGE_BASE, sums=False)
    assert silent.rtl(other, "small", never, never) is None


def test_what_is_not_golden_or_not_the_program_is_refused_and_not_kept(tmp_path: Path) -> None:
    runs = kept_in(tmp_path)
    _, program = small()
    other = state(workload(layer("one", "x")), rank=2, batch=1, seed=1)
    with pytest.raises(RunError, match="not as the golden model"):
        runs.rtl(program, "small", lambda: program, lambda: run_steps(other, 1))
    wider = state(workload(layer("one", "x", 16)), rank=2, batch=1)
    wrong = compile_training(wider, preset("tiny"), base=IMAGE_BASE, sums=False)
    with pytest.raises(ValueError, match="another program"):
        runs.rtl(program, "small", lambda: wrong, never)
    assert not list(tmp_path.rglob("*.json"))


# What is shown ------------------------------------------------------------------------------------


def test_figures_add_up() -> None:
    case = CASES[4]
    run = {
        "cycles": 1000, "ARRAY_BUSY": 700, "STALL_LOAD": 120, "STALL_POST": 80,
        "BYTES_READ": 32000, "BYTES_WRITTEN": 6400,
    }  # fmt: skip
    assert figures(run, case, 4096 * 600) == {
        "cycles": 1000, "macs": 4096 * 600, "limit": 600, "computed": 600, "share": 0.6,
        "padding": 100, "loads": 120, "post": 80, "other": 100,
        "bytes_read": 32000, "bytes_written": 6400, "read": 0.5, "write": 0.1,
    }  # fmt: skip


def test_targets_that_are_missed_are_named(stored: dict[str, Any]) -> None:
    row = json.loads(json.dumps(stored["cases"][0]))
    own = cycles(row)
    row["target"] = {"share": 0.999, "over": {"textbook-ws": 9, "overlapped-ws": 0.5}}
    row["baselines"]["textbook-ws"]["model"] = 2 * own
    texts = missed(row)
    assert len(texts) == 2 and texts[1] == "2.00x of 9x over textbook-ws"
    row["target"] = {"share": 0.5, "over": {}}
    assert missed(row) == []


def test_a_peer_that_is_faster_is_told(stored: dict[str, Any]) -> None:
    figures = json.loads(json.dumps(stored))
    row = next(r for r in figures["sweep"]["rows"] if r["widths"]["512"]["ratio"] > 1.01)
    before = render(figures).count("| NO |")
    row["widths"]["512"]["ratio"] = 0.98
    assert render(figures).count("| NO |") == before + 1
    row["widths"]["512"]["ratio"] = 1.005
    assert render(figures).count("| NO |") == before


def test_groups_are_layers_with_one_input_and_alike_ones_are_counted() -> None:
    layers = [layer("q.0", "x0"), layer("k.0", "x0", 16), layer("q.1", "x1")]
    layers += [layer("k.1", "x1", 16), layer("out", "y")]
    found = groups(workload(*layers))
    assert [([each.name for each in part.layers], n) for part, n in found] == [
        (["q.0", "k.0"], 2),
        (["out"], 1),
    ]


def test_a_block_is_two_layers_of_1280_outputs() -> None:
    state = training(CASES[1], BLOCK)
    assert [each.layer.weight.shape for each in state.layers.values()] == [(1280, 768)] * 2
    cached = next(case for case in CASES if case.cache_base)
    programs = [compiled(case, training(case, BLOCK), OURS) for case in (CASES[1], cached)]
    assert not np.array_equal(programs[0].program, programs[1].program)


def test_an_output_that_cannot_be_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "-o", str(tmp_path / "file" / "below")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
