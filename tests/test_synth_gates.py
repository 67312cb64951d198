"""Gates that compute: netlists of the array run the Core's benches, and units are proven equal."""

import os
import re
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


def proof(
    name: str,
    unit: str,
    directory: Path,
    *faults: tuple[str, str],
    products: str = "whole",
    registers: str = "found",
    **parameters: bool,
) -> str:
    """The verdict on a unit of a configuration and its netlist, with faults put into that."""
    config = AcceleratorConfig(
        rows=4, cols=4, segments=1, acc_depth=64, bus_bits=64, act_bytes=1 << 13,
        wgt_bytes=1 << 12, outstanding=8, **{"int16": False, **parameters},
    )  # fmt: skip
    design = generate(config, unit)
    mapped = technology(name), find_yosys(), workspace(), registers == "named"
    netlist = gates(design.verilog, design.top, *mapped)
    for pattern, replacement in faults:
        netlist, number = re.subn(pattern, replacement, netlist, count=1)
        assert number == 1, pattern
    first, second = directory / "rtl.v", directory / "gates.v"
    first.write_text(design.verilog, encoding="utf-8")
    second.write_text(netlist, encoding="utf-8")
    return prove_designs(first, second, design.top, products, registers)


@pytest.mark.parametrize("name", TECHNOLOGIES)
@pytest.mark.parametrize("unit", ["pe", "scale_unit"])
def test_the_netlist_is_equivalent(name, unit, tmp_path):
    products = "cut" if (name, unit) == ("ecp5-85k", "scale_unit") else "whole"
    assert proof(name, unit, tmp_path, products=products) == "equal"


LANES = (
    {"int16": False},
    pytest.param({"int16": True}, marks=pytest.mark.slow),
    pytest.param({"int16": True, "fused_quantize": True}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("parameters", LANES)
def test_the_netlist_of_a_lane_is_equivalent(parameters, tmp_path):
    """Its products of 32 or 48 by 16 bits are cut out, in the slices that ECP5 multiplies."""
    assert proof("ecp5-85k", "post_lane", tmp_path, products="cut", **parameters) == "equal"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "int16"), [("ihp-sg13g2", False), ("ihp-sg13g2", True), ("asap7", False)]
)
def test_the_gates_of_a_lane_are_equivalent(name, int16, tmp_path):
    """Its multiplier of standard cells is in the proof; its registers are matched by name."""
    assert proof(name, "post_lane", tmp_path, registers="named", int16=int16) == "equal"


#: In the netlist of a lane: an adder of slices, the operand and the shape of a multiplier, the
#: registers of a product and of what is rounded.
FAULTS = {
    "adder": (r"(DI_CCU2C_S0\.S1  = .*) \^ ", r"\1 | "),
    "operand": (r"(value_TRELLIS_FF_Q_3)\.Q (.*\* rescale\[15:0\])", r"\1.DI \2"),
    "multiplier": (r"\* rescale\[15:0\]", r"* rescale[14:0]"),
    "product": (r"(rescale_1\.product_TRELLIS_FF_Q_5\.Q  <= )", r"\1 ~ "),
    "rounded": (r"(rescale_1\.rounded_TRELLIS_FF_Q_3\.Q  <= )", r"\1 ~ "),
}


@pytest.mark.parametrize(
    "fault",
    [name if name == "adder" else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS],
)
def test_a_fault_in_a_lane_is_found(fault, tmp_path):
    found = proof("ecp5-85k", "post_lane", tmp_path, FAULTS[fault], products="cut")
    # A product of other operands matches none: that is no proof, of neither
    assert found == ("undecided" if fault == "multiplier" else "different")


#: In the standard cells of a scale unit: a gate of an adder, an operand of a multiplier (of the
#: product of two bits one is left), a register.
CELL_FAULTS = {
    "adder": (r" \^ ", " | "),
    "operand": (r"(assign \S+ = \S+\.IQ) +& \S+\.IQ ;", r"\1 ;"),
    "register": (r"(\.IQ +<= )", r"\1~ "),
}


@pytest.mark.parametrize("fault", [None, *CELL_FAULTS])
def test_registers_by_name(fault, tmp_path):
    faults = [CELL_FAULTS[fault]] if fault else []
    found = proof("ihp-sg13g2", "scale_unit", tmp_path, *faults, registers="named")
    assert found == ("different" if fault else "equal")


@pytest.mark.parametrize("unit", ["pe", "scale_unit"])
def test_a_wrong_gate_is_found(unit, tmp_path):
    """The proof must be able to fail: an exclusive or becomes an or."""
    fault = (r" \^ ", " | ")
    assert proof("ecp5-85k", unit, tmp_path, fault, products="cut") == "different"


WIDTHS = [(7, 5), (3, 8), (4, 4)]


@pytest.mark.parametrize("signed", ["", "signed"])
@pytest.mark.parametrize(("a", "b"), WIDTHS)
def test_slices_make_the_product(a, b, signed, tmp_path):
    """What cutting rests on: slices times the other operand, shifted, are the whole product."""
    operands = f"input {signed} [{a - 1}:0] a, input {signed} [{b - 1}:0] b"
    text = (
        f"module m({operands}, output {signed} [{{}}:0] y);\n  assign y = a * b{{}};\nendmodule\n"
    )
    whole, wrong = tmp_path / "whole.v", tmp_path / "wrong.v"
    whole.write_text(text.format(a + b - 1, ""), encoding="utf-8")
    wrong.write_text(text.format(a + b - 1, " + (b == 3)"), encoding="utf-8")
    assert prove_designs(whole, whole, "m", "sliced") == "equal"
    assert prove_designs(whole, wrong, "m", "sliced") == "different"


def test_what_has_no_models():
    with pytest.raises(SynthError, match="xilinx7: no models of its cells"):
        gates("", "x", target("xilinx7"), find_yosys(), workspace())
    with pytest.raises(SynthError, match="module none: not in the design"):
        replace_module("module a();\nendmodule\n", "none", "")
