"""Power from activity: OpenSTA's answer against known energies, arrays against themselves."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from systolora.cli import main
from systolora.synth import flow, mac_energy
from systolora.synth.activity import LANES, simulate
from systolora.synth.asic import map_to_cells, time_cells
from systolora.synth.designs import Design
from systolora.synth.mac_energy import EnergyOptions, measure, text
from systolora.synth.netlist import read_netlist
from systolora.synth.power import power
from systolora.synth.power_liberty import internal_factor, power_text, reduced
from systolora.synth.saif import saif_text
from systolora.synth.sram import sram_energy
from systolora.synth.tools import SynthError, find_sta, find_yosys
from systolora.synth.workspace import Progress, Workspace
from systolora_sim.runner import BUILD_DIR
from tiny_library import LIBERTY, tiny_library

needs_sta = pytest.mark.skipif(shutil.which("sta") is None, reason="OpenSTA is not installed")


TOGGLE = """module t(input clk, input a, output y, output r);
  reg q; assign y = a & q; assign r = q;
  always @(posedge clk) q <= ~q; endmodule"""


def workspace() -> Workspace:
    return Workspace(BUILD_DIR / "synth", Progress(1, quiet=True))


def pdk(name: str) -> list[Path]:
    folder = os.environ.get("SYSTOLORA_PDK")
    if not folder:
        pytest.skip("SYSTOLORA_PDK names no folder with Liberty files")
    files = sorted(f for f in (Path(folder) / name).glob("*.lib*") if not f.name.startswith("RM_"))
    if not files:
        pytest.skip(f"SYSTOLORA_PDK holds no {name}")
    return files


def test_energies_that_would_count_twice():
    rails = """cell (X) { pg_pin (V) { pg_type : primary_power; }
      pg_pin (G) { pg_type : primary_ground; }
      leakage_power () { value : 1; related_pg_pin : G; }
      pin (A) { internal_power () { related_pg_pin : V; rise_power (s) { values ("5"); } }
                internal_power () { related_pg_pin : "G"; rise_power (s) { values ("6"); } } } }
    """
    kept = power_text(rails)
    assert '"5"' in kept and '"6"' not in kept and "leakage" not in kept
    assert kept.count("{") == kept.count("}")
    kept = power_text(LIBERTY)
    assert '"9, 9"' not in kept and kept.count('"1, 1"') == 2
    # Without one with `when` the energy is for all states
    assert power_text(rails.replace("related_pg_pin : V; ", "")).count("internal_power") == 1


def test_a_library_of_few_cells():
    few = reduced(LIBERTY, {"INV", "DFF"})
    assert few.count("cell (") == 2 and few.count("{") == few.count("}")
    assert few.rstrip().endswith("}") and "operating_conditions" in few


@needs_sta
def test_power_by_hand(tmp_path):
    """A toggling flip-flop and what follows it: 2 V, 100 MHz, pins of 2 fF, 4 pJ a clock cycle."""
    library, yosys, sta = tiny_library(tmp_path), find_yosys(), find_sta()
    space = workspace()
    assert 0.9 < internal_factor(sta, space) < 2.1
    _, place = map_to_cells(Design("t", "t", TOGGLE, 0), library, 10, yosys, space)
    netlist = read_netlist(place, "t", library, yosys, space)
    kinds = sorted(cell.kind for cell in netlist.cells)
    assert "DFF" in kinds and "AND2" in kinds
    stream = {"a": np.ones((50, LANES), int)}
    activity = simulate(netlist, library, stream, skip=10)
    factor = internal_factor(sta, space)
    found = power(netlist, library, place, saif_text(netlist, activity), 10, factor, sta, space)
    # 1 pJ for the rise and 3 pJ for the fall of the clock
    assert found["registers"]["internal_w"] == pytest.approx(4e-12 * 1e8, rel=0.02)
    # q changes every cycle and drives inputs of 2 fF; half C V^2 for each change
    loads = sum(pin_net == netlist.ports["r"][1][0] and pin not in "YQ"
                for cell in netlist.cells for pin, pin_net in cell.pins.items())  # fmt: skip
    expected = loads * 0.5 * 2e-15 * 4 * 1e8
    assert found["registers"]["switching_w"] == pytest.approx(expected, rel=0.02)


@needs_sta
def test_power_of_a_report_by_hand(tmp_path):
    """Of the one flip-flop's clock pin: 4 pJ a cycle, once; the loads of 2 fF take under 1%."""
    library, yosys, sta = tiny_library(tmp_path), find_yosys(), find_sta()
    space = workspace()
    design = Design("t", "t", TOGGLE, 0)
    entry, place = map_to_cells(design, library, 10, yosys, space)
    factor = internal_factor(sta, space)
    found = time_cells(design, library, 10, place, entry["cells"], factor, sta, space)
    assert found["power_w"] == pytest.approx(4e-12 * 1e8, rel=0.01)
    # Two arcs of 0.01 ns: through the flip-flop, and one gate at least
    assert 0.015 < 10 - found["slack_ns"] < 0.05


@needs_sta
def test_an_opensta_of_unknown_energies(tmp_path, monkeypatch, capsys):
    """Timing is reported all the same, power is not."""

    def unknown(sta, workspace):
        raise SynthError("sta: its power of known energies is (1, 2) times theirs")

    monkeypatch.setattr(flow, "internal_factor", unknown)
    file = tmp_path / "tiny.lib"
    file.write_text(LIBERTY, encoding="utf-8")
    command = ["synth", "-q", "--liberty", str(file), "--unit", "multiplier", "--preset", "tiny"]
    assert main([*command, "--build-dir", str(BUILD_DIR)]) == 0
    said = capsys.readouterr()
    assert said.err.strip() == "no power in the report: sta: its power of known energies is "\
        "(1, 2) times theirs"  # fmt: skip
    (row,) = [line.split() for line in said.out.splitlines() if line.startswith("multiplier")]
    assert float(row[-1]) > 1 and "." not in row[-1]


@needs_sta
def test_an_array_of_gates():
    """Every result is right; random operands take more than zeros."""
    options = EnergyOptions(
        liberty=pdk("ihp-sg13g2"), period_ns=6, arrays=("systolora", "skew"),
        modes=("ws", "os", "zeros", "busy"), build_dir=BUILD_DIR, quiet=True,
    )  # fmt: skip
    report = measure(options)
    modes = {name: m["pj_total"] for name, m in report["arrays"]["systolora"]["modes"].items()}
    assert modes["os"] > modes["zeros"] and modes["ws"] > 2 * modes["zeros"] > 1
    assert report["arrays"]["skew"]["modes"]["busy"]["pj_total"] < modes["zeros"] / 50
    assert report["arrays"]["systolora"]["modes"]["ws"]["pj_per_mac"] == modes["ws"]
    assert "um2/PE" in text(report) and "skew" in text(report)


@needs_sta
@pytest.mark.slow
def test_all_modes():
    """int16 in four passes, and textbook arrays of bf16: every result right."""
    options = EnergyOptions(
        liberty=pdk("ihp-sg13g2"), period_ns=6, arrays=("systolora", "bf16"),
        build_dir=BUILD_DIR, quiet=True,
    )  # fmt: skip
    arrays = measure(options)["arrays"]
    wide = arrays["systolora"]["modes"]["ws int16"]
    assert wide["pj_per_mac"] == pytest.approx(4 * wide["pj_total"], rel=1e-4)
    modes = arrays["bf16"]["modes"]
    assert modes["ws"]["pj_total"] > modes["load"]["pj_total"] > modes["idle"]["pj_total"] > 0


@needs_sta
def test_gates_that_compute_something_else(monkeypatch):
    """The check of results can fail: an adder that gets a wrong operand."""
    original = mac_energy.read_netlist

    def broken(*args):
        netlist = original(*args)
        cell = next(cell for cell in netlist.cells if cell.kind.startswith("sg13g2_xnor2"))
        cell.pins["A"] = cell.pins["B"]
        return netlist

    monkeypatch.setattr(mac_energy, "read_netlist", broken)
    options = EnergyOptions(
        liberty=pdk("ihp-sg13g2"), period_ns=6, arrays=("int8",), modes=("ws",),
        build_dir=BUILD_DIR, quiet=True,
    )  # fmt: skip
    with pytest.raises(SynthError, match=r"int8, ws: .* results of the gates are wrong"):
        measure(options)


def test_sram():
    folder = pdk("ihp-sg13g2")[0].parent
    read, write = sram_energy(folder / "RM_IHPSG13_1P_1024x64_c2_bm_bist_typ_1p20V_25C.lib")
    assert (read, write) == (pytest.approx(91.8272 / 8), pytest.approx(110.9189 / 8))
    with pytest.raises(SynthError, match="no SRAM macro"):
        sram_energy(pdk("ihp-sg13g2")[0])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--liberty", "none.lib"], "none.lib: No such file"),
        (["--liberty", "none.lib", "--size", "5"], "size = 5: must be 4 or 8"),
        (["--liberty", "none.lib", "--array", "int8,fp8"], "array = 'fp8': must be of"),
        (["--liberty", "none.lib", "--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--liberty", "none.lib", "--clock", "9"], "'9': must be a frequency"),
    ],
)
def test_bad_input(arguments, words, capsys):
    try:
        status = main(["power", *arguments])
    except SystemExit as end:  # argparse
        status = end.code
    error = capsys.readouterr().err
    assert status == 2 and words in error and error.strip().count("\n") == 0
