"""The gate: what is synthesized may not grow by 5% or slow down by 10% from what is recorded.

After a change that is meant to, the reports are made again with the commands in
docs/results/synthesis.md and committed with it.
"""

import copy
import json
from pathlib import Path

import pytest

from systolora.cli import main
from systolora.config import PRESETS, AcceleratorConfig
from systolora.synth.regression import AREA_LIMIT, SPEED_LIMIT, figures, read_report, regressions
from systolora_sim.runner import BUILD_DIR

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "synthesis"
#: Reports of FPGAs by name: the preset that they are of.
REPORTS = {
    "ecp5": "ecp5",
    "units": "ecp5",
    "core": "ecp5",
    "tiny": "tiny",
    "ice40": "ecp5",
    "gowin": "ecp5",
    "gowin-array": "tiny",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_worse_than_recorded(name, tmp_path, capsys):
    """Every figure of the report, made again with the same tools and seeds: LUTs, registers,
    multipliers, block RAMs, and the median frequency."""
    file = RESULTS / f"{name}.json"
    recorded = read_report(file)
    entries = [entry for target in recorded["fpga"].values() for entry in target]
    timed = dict.fromkeys(entry["unit"] for entry in entries if "seeds" in entry)
    seeds = max((len(entry["seeds"]) for entry in entries if "seeds" in entry), default=1)
    again = tmp_path / "again.json"
    status = main(
        [
            *("synth", "-q", "--build-dir", str(BUILD_DIR), "--preset", REPORTS[name]),
            *("--target", ",".join(recorded["fpga"])),
            *("--unit", ",".join(dict.fromkeys(entry["unit"] for entry in entries))),
            *("--pnr", ",".join(timed) or "none", "--seeds", str(seeds)),
            *("--json", str(again), "--against", str(file)),
        ]
    )
    said = capsys.readouterr().err
    tools = json.loads(again.read_text())["tools"] if again.exists() else {}
    assert status == 0, f"{said}\nrecorded with {recorded['tools']}, now {tools}"
    assert figures(json.loads(again.read_text())).keys() == figures(recorded).keys()


@pytest.mark.parametrize("name", REPORTS)
def test_the_reports_are_of_what_is_generated(name):
    recorded = read_report(RESULTS / f"{name}.json")
    assert AcceleratorConfig(**recorded["configuration"]) == PRESETS[REPORTS[name]]
    assert recorded["digest"] == PRESETS[REPORTS[name]].digest
    assert figures(recorded)


def planted():
    """Every kind of figure of every report, and just how much worse it would be an error."""
    for name in REPORTS:
        recorded = read_report(RESULTS / f"{name}.json")
        for target, entries in recorded["fpga"].items():
            entry = next((e for e in entries if "fmax_mhz" in e), entries[-1])
            kinds = [kind for kind, value in entry["area"].items() if value]
            for kind in (*kinds, *(["fmax_mhz"] if "fmax_mhz" in entry else [])):
                yield pytest.param(name, target, entry["unit"], kind, id=f"{name}-{target}-{kind}")


@pytest.mark.parametrize(("name", "target", "unit", "kind"), list(planted()))
def test_the_gate_would_fail(name, target, unit, kind):
    before = read_report(RESULTS / f"{name}.json")

    def changed(factor: float) -> dict:
        now = copy.deepcopy(before)
        (entry,) = [e for e in now["fpga"][target] if e["unit"] == unit]
        figures = entry if kind == "fmax_mhz" else entry["area"]
        figures[kind] *= factor
        return now

    better, worse = (1, 1 - SPEED_LIMIT) if kind == "fmax_mhz" else (1, 1 + AREA_LIMIT)
    assert regressions(changed(better), before) == []
    assert regressions(changed(worse + (0.01 if worse < 1 else -0.01)), before) == []
    (phrase,) = regressions(changed(worse + (-0.01 if worse < 1 else 0.01)), before)
    assert phrase.startswith(f"{target} {unit}: {'MHz' if kind == 'fmax_mhz' else kind} ")


def test_a_unit_that_no_longer_routes():
    before = read_report(RESULTS / "ecp5.json")
    now = copy.deepcopy(before)
    (entry,) = [e for e in now["fpga"]["ecp5-85k"] if "seeds" in e]
    del entry["fmax_mhz"]
    (phrase,) = regressions(now, before)
    assert phrase == "ecp5-85k array: MHz none, was 115.17"
