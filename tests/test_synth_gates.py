"""Gates that compute: netlists of the array run the Core's benches, and units are proven equal."""

import os
from pathlib import Path

import pytest

from simulated import CACHE, CONFIGS, core_verilog
from systolora.config import AcceleratorConfig
from systolora.synth.designs import generate
from systolora.synth.gates import gates, replace_module
from systolora.synth.liberty import Library, read_library
from systolora.synth.targets import target
from systolora.synth.tools import SynthError, find_yosys
from systolora.synth.workspace import Progress, Workspace
from systolora_sim.bench.run import run_program
from systolora_sim.runner import BUILD_DIR
from test_rtl_core import assert_same, random_program
from yosys_equal import prove_designs

TECHNOLOGIES = ("ecp5-85k", "ihp-sg13g2", pytest.param("asap7", marks=pytest.mark.slow))


def workspace() -> Workspace:
    return Workspace(BUILD_DIR / "synth", Progress(1, quiet=True))


def technology(name: str):
    """A target, or the standard cells of that name in the folder that SYSTOLORA_PDK names."""
    if name.startswith("ecp5"):
        return target(name)
    return pdk(name)


def pdk(name: str) -> Library:
    folder = os.environ.get("SYSTOLORA_PDK")
    if not folder:
        pytest.skip("SYSTOLORA_PDK names no folder with Liberty files")
    files = sorted(
        file for file in (Path(folder) / name).glob("*.lib*") if not file.name.startswith("RM_")
    )
    if not files:
        pytest.skip(f"SYSTOLORA_PDK holds no {name}")
    return read_library(files)


@pytest.mark.parametrize("name", TECHNOLOGIES)
def test_gates_of_the_array_run_the_bench(name, tmp_path):
    """A 4 x 4 array of gates inside the Core: random programs, bit for bit."""
    config = CONFIGS["tiny"]
    core = core_verilog(config).read_text(encoding="utf-8")
    netlist = gates(core, "systolic_array", technology(name), find_yosys(), workspace())
    assert " * " not in netlist or name.startswith("ecp5"), "a multiplier is not of gates"
    verilog = tmp_path / "core_of_gates.v"
    verilog.write_text(replace_module(core, "systolic_array", netlist), encoding="utf-8")
    for seed in (3, 4):
        program, expected = random_program(config, seed, groups=10)
        assert len(expected.result) + len(expected.acc_out) > 20
        assert_same(run_program(config, program, verilog, seed, cache=CACHE), expected)


def proof(name: str, unit: str, directory: Path, fault: tuple[str, str] | None = None) -> str:
    """The verdict on a unit of an int8 configuration and its netlist, with a fault put into it."""
    config = AcceleratorConfig(
        rows=4, cols=4, segments=1, int16=False, acc_depth=64,
        bus_bits=64, act_bytes=1 << 13, wgt_bytes=1 << 12, outstanding=8,
    )  # fmt: skip
    design = generate(config, unit)
    netlist = gates(design.verilog, design.top, technology(name), find_yosys(), workspace())
    if fault is not None:
        assert fault[0] in netlist
        netlist = netlist.replace(*fault, 1)
    first, second = directory / "rtl.v", directory / "gates.v"
    first.write_text(design.verilog, encoding="utf-8")
    second.write_text(netlist, encoding="utf-8")
    return prove_designs(first, second, design.top)


@pytest.mark.parametrize("name", TECHNOLOGIES)
def test_the_netlist_of_a_pe_is_equivalent(name, tmp_path):
    assert proof(name, "pe", tmp_path) == "equal"


def test_a_wrong_gate_is_found(tmp_path):
    """The proof must be able to fail: an exclusive or becomes an or."""
    assert proof("ecp5-85k", "pe", tmp_path, (" ^ ", " | ")) == "different"


def test_what_has_no_models():
    with pytest.raises(SynthError, match="xilinx7: no models of its cells"):
        gates("", "x", target("xilinx7"), find_yosys(), workspace())
    with pytest.raises(SynthError, match="module none: not in the design"):
        replace_module("module a();\nendmodule\n", "none", "")
