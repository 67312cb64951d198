"""`systolora synth`: area of small units, the report, the cache, and what bad input says."""

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest

from systolora.cli import main
from systolora.config import preset
from systolora.synth import dsp_registers, tools
from systolora.synth.baselines.tied import ABILITIES
from systolora.synth.designs import UNITS, generate
from systolora.synth.fpga import NETLIST, synthesize
from systolora.synth.liberty import read_library
from systolora.synth.regression import regressions
from systolora.synth.targets import TARGETS, target
from systolora.synth.tools import SynthError, find_yosys, run_tool
from systolora.synth.workspace import Progress, Workspace
from systolora_sim.runner import BUILD_DIR

CELLS = """library (toy) {
  time_unit : "1ns";
  capacitive_load_unit (1,pf);
  cell (TBUF) { area : 2;
    pin (A) { direction : input; }
    pin (Y) { direction : output;
      function : "A"; }
  }
  cell (TINV) { area : 1;
    pin (A) { direction : input; }
    pin (Y) { direction : output;
      function : "!A"; }
  }
  cell (TNAND) { area : 1.5;
    pin (A) { direction : input; }
    pin (B) { direction : input; }
    pin (Y) { direction : output;
      function : "!(A B)"; }
  }
"""
FLIP_FLOP = """  cell (TDFF) { area : 5;
    ff (IQ, IQN) { clocked_on : "C";
      next_state : "D"; }
    pin (C) { direction : input;
      clock : true; }
    pin (D) { direction : input; }
    pin (Q) { direction : output;
      function : "IQ"; }
  }
"""


def workspace(root: Path = BUILD_DIR / "synth") -> Workspace:
    return Workspace(root, Progress(1, quiet=True))


def synth(*arguments: str) -> int:
    return main(["synth", "-q", "--build-dir", str(BUILD_DIR), *arguments])


def test_the_pe_on_ecp5():
    """The budget of the PE: one multiplier, at most 90 LUTs."""
    entry, _ = synthesize(
        generate(preset("ecp5"), "pe"), target("ecp5-85k"), find_yosys(), workspace()
    )
    assert entry["area"]["MULT18X18D"] == 1
    assert entry["area"]["LUT4"] <= 90
    assert entry["area"]["COMB"] == entry["area"]["LUT4"] + 2 * entry["area"]["CCU2C"]
    assert entry["overflow"] == []


def test_every_target_counts_what_it_maps_to(tmp_path, capsys):
    """No cell of a PE is left out of every count."""
    report = tmp_path / "report.json"
    names = [name for name in TARGETS if name not in ("ecp5-45k", "ecp5-25k")]
    assert (
        synth("--target", ",".join(names), "--unit", "pe", "--no-pnr", "--json", str(report)) == 0
    )
    fpga = json.loads(report.read_text())["fpga"]
    assert list(fpga) == names
    uncounted = {"INV", "GND", "VCC", "PFUMX", "L6MUX21", "MUXF7"}
    uncounted |= {f"MUX2_LUT{n}" for n in (5, 6, 7, 8)}
    for name, (entry,) in fpga.items():
        counted = {kind for kinds in target(name).counts.values() for kind in kinds}
        left = set(entry["cells"]) - counted - uncounted
        assert not {kind for kind in left if not kind.startswith("$_")}, (name, left)
    text = capsys.readouterr().out
    assert "ecp5-85k" in text and "LUT4/PE" in text


def test_a_unit_that_does_not_fit(capsys):
    assert synth("--target", "ecp5-25k", "--unit", "array", "--no-pnr") == 2
    line = capsys.readouterr().err
    expected = "array does not fit ecp5-25k: MULT18X18D 64 of 28 (36 too many)"
    assert line == f"systolora: error: {expected}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--target, --liberty or --all: one of them is needed"),
        (("--target", "virtex2"), "target = 'virtex2': must be one of ecp5-85k, "),
        (("--target", "ecp5-85k", "--unit", "lut"), "unit = 'lut': must be all or of pe, "),
        (("--target", "ecp5-85k", "--unit", "pe", "--pnr", "core"), "--pnr core: is not among"),
        (("--target", "ecp5-85k", "--seeds", "0"), "--seeds: '0': must be a number"),
        (("--liberty", "x.lib", "--clock", "0MHz"), "--clock: '0MHz': must be a frequency"),
        (("--liberty", "none.lib"), "none.lib: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_input(arguments, message, capsys):
    try:
        status = synth(*arguments)
    except SystemExit as error:  # argparse's own way
        status = error.code
    text = capsys.readouterr().err
    assert status == 2 and message in text and text.count("\n") == 1


def test_liberty_files(tmp_path):
    """Several files are one library; gzipped ones too."""
    whole = tmp_path / "whole.lib"
    whole.write_text(CELLS + FLIP_FLOP + "}\n")
    library = read_library([whole])
    assert {name: cell.area for name, cell in library.cells.items()} == {
        "TBUF": 2, "TINV": 1, "TNAND": 1.5, "TDFF": 5,
    }  # fmt: skip
    assert library.driver.name == "TBUF" and library.constant("1") is None
    assert [cell.name for cell in library.cells.values() if cell.flip_flop] == ["TDFF"]
    logic, registers = tmp_path / "logic.lib", tmp_path / "registers.lib.gz"
    logic.write_text(CELLS + "}\n")
    head = "".join(CELLS.splitlines(keepends=True)[:3])
    registers.write_bytes(gzip.compress((head + FLIP_FLOP + "}\n").encode()))
    assert read_library([logic, registers]).cells == library.cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module x;", "not a Liberty file: no library group"),
        (CELLS + "}\n", "no flip-flop among 3 cells"),
        ("library (toy) {\n" + FLIP_FLOP + "}\n", "no logic among 1 cells"),
    ],
)
def test_bad_liberty_files(text, message, tmp_path):
    file = tmp_path / "bad.lib"
    file.write_text(text)
    with pytest.raises(SynthError, match=message):
        read_library([file])


def test_liberty_files_of_different_units(tmp_path):
    first, second = tmp_path / "a.lib", tmp_path / "b.lib"
    first.write_text(CELLS + FLIP_FLOP + "}\n")
    second.write_text(CELLS.replace("1ns", "1ps") + "}\n")
    with pytest.raises(SynthError, match=r"b\.lib: its units differ from those of .*a\.lib"):
        read_library([first, second])


def test_a_missing_tool(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(tools, "_program", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SynthError, match=r"Yosys is not installed: pip install"):
        tools.find_yosys()
    with pytest.raises(SynthError, match=r"nextpnr-ecp5 is not installed: pip install yowasp-"):
        tools.find_nextpnr("ecp5")
    with pytest.raises(SynthError, match=r"OpenSTA is not installed .*--no-timing"):
        tools.find_sta()
    with pytest.raises(SynthError, match=r"yosys = 'other': must be one of auto, "):
        tools.find_yosys("other")


def test_a_failing_tool(tmp_path):
    tool = tools.Tool("toy", (sys.executable, "-c"), "1", "here")
    with pytest.raises(SynthError, match=r"toy failed \(status 3\): ERROR: no such thing"):
        run_tool(tool, ["print('ERROR: no such thing'); exit(3)"], tmp_path, "log")


def test_finished_steps_are_found_again(tmp_path):
    """A step that fails leaves nothing; one that ended is not done again; inputs count."""
    place, runs = workspace(tmp_path / "w"), []

    def action(directory: Path) -> None:
        runs.append(directory)
        (directory / "result").write_text("done")

    def failing(directory: Path) -> None:
        (directory / "result").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.step("x", ("a", "b"), failing)
    assert list((tmp_path / "w").iterdir()) == []
    first = place.step("x", ("a", "b"), action)
    assert place.step("x", ("a", "b"), action) == first and len(runs) == 1
    assert place.step("x", ("ab",), action) != first and len(runs) == 2
    assert (first / "result").read_text() == "done"


def test_registers_go_into_multipliers():
    """Product and stationary operand of a PE do; a register that others read stays."""
    design = generate(preset("ecp5"), "pe")
    _, place = synthesize(design, target("ecp5-85k"), find_yosys(), workspace())
    netlist = json.loads((place / NETLIST).read_text())
    assert dsp_registers.absorb_registers(netlist, design.top) == dsp_registers.Moved(1, 1, 27)
    cells = netlist["modules"][design.top]["cells"].values()
    (multiplier,) = [cell for cell in cells if cell["type"] == "MULT18X18D"]
    assert set(multiplier["parameters"]) == {
        f"REG_{register}_{what}"
        for register in ("OUTPUT", "INPUTB")
        for what in ("CLK", "CE", "RST")
    }
    # A second look finds nothing more to move
    assert dsp_registers.absorb_registers(netlist, design.top) == dsp_registers.Moved(0, 0, 0)


def test_a_regression_is_an_error(tmp_path, capsys):
    """Against the report in docs/results nothing is worse; against a better one, it says what."""
    recorded = Path(__file__).parent.parent / "docs" / "results" / "synthesis" / "ecp5.json"
    arguments = ("--target", "ecp5-85k", "--unit", "pe,edge", "--no-pnr", "--against")
    assert synth(*arguments, str(recorded)) == 0
    better = json.loads(recorded.read_text())
    for entry in better["fpga"]["ecp5-85k"]:
        entry["area"]["LUT4"] = int(entry["area"]["LUT4"] / 1.06)
    file = tmp_path / "better.json"
    file.write_text(json.dumps(better))
    capsys.readouterr()
    assert synth(*arguments, str(file)) == 2
    assert "worse than there: ecp5-85k pe: LUT4 75, was 70; " in capsys.readouterr().err
    assert synth(*arguments, str(file), "--segments", "1") == 2
    assert "the earlier report is of" in capsys.readouterr().err
    for text, message in (("{", "not JSON"), ("{}", "not a report of version 1")):
        file.write_text(text)
        assert synth(*arguments, str(file)) == 2
        assert message in capsys.readouterr().err


def test_frequency_regresses_at_ten_percent():
    def report(megahertz: float) -> dict:
        entry = {"unit": "pe", "area": {"LUT4": 10}, "fmax_mhz": megahertz}
        return {"digest": "d", "fpga": {"t": [entry]}, "cells": {}}

    assert regressions(report(91), report(100)) == []
    assert regressions(report(89), report(100)) == ["t pe: MHz 89, was 100"]


def test_every_unit_is_described():
    assert all(words and callable(make) for words, make in UNITS.values())


def test_abilities_that_are_taken_away_cost_something():
    """A PE without one is smaller in LUTs or registers, and still multiplies once."""
    areas = {}
    for unit in ("pe", *ABILITIES):
        entry, _ = synthesize(
            generate(preset("ecp5"), unit), target("ecp5-85k"), find_yosys(), workspace()
        )
        assert entry["area"]["MULT18X18D"] == 1 and entry["pes"] == 1, unit
        areas[unit] = entry["area"]["LUT4"] + entry["area"]["FF"]
    full = areas.pop("pe")
    assert all(area < full for area in areas.values()), areas
    assert areas["pe_ws_top_edge"] < min(areas["pe_ws"], areas["pe_top_edge"])
    # The sum's drain chain, 32 registers and more, goes with output-stationary tiles
    assert full - areas["pe_ws"] > 32
