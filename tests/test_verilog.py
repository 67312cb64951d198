"""The generated Verilog as tools see it: lint, structure, one multiplier per PE."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.emit import emit
from verilator_lint import assert_clean, lint

CONFIGS = {
    "tiny": preset("tiny"),
    "ecp5": preset("ecp5"),
    "default": preset("default"),
    "int8-4x16": AcceleratorConfig(rows=4, cols=16, segments=2, int16=False, acc_depth=64),
}


@pytest.fixture(scope="module", params=CONFIGS)
def verilog(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    emit(CONFIGS[request.param], directory, "core")
    return directory / "systolora_core.v"


def yosys(*commands: str) -> dict:
    """Runs Yosys in a process of its own; the last command is `stat -json`."""
    program = (
        "import sys\n"
        "from pyosys import libyosys as ys\n"
        "design = ys.Design()\n"
        "for command in sys.argv[1:]:\n"
        "    ys.run_pass(command, design)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *commands], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    return json.loads(run.stdout[run.stdout.rindex('\n{\n   "creator"') :].split("\n\n")[0])


def test_verilator_lint(verilog):
    """Nothing beyond the waivers, each of which says why it is one."""
    assert_clean(str(verilog))


def accelerator(config: AcceleratorConfig, directory: Path) -> list[str]:
    """Files of the whole accelerator and its wrapper."""
    emit(config, directory)
    return [str(directory / file) for file in ("systolora_top.v", "systolora_axi.v")]


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["tiny"],
        CONFIGS["default"],
        CONFIGS["tiny"].with_fields(channels=4, cols=8, segments=1),
    ],
    ids=["tiny", "default", "channels"],
)
def test_lint_of_the_accelerator(config, tmp_path):
    """Nothing beyond the waivers, but for UNOPTFLAT: Verilator takes a vector of several fields for
    a loop where one field depends on another; `test_loops_of_the_accelerator` looks at every bit.
    """
    files = accelerator(config, tmp_path)
    for arguments in (files[:1], [*files, "--top-module", "systolora_axi"]):
        assert_clean("-Wno-UNOPTFLAT", *arguments)


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["tiny"],
        CONFIGS["int8-4x16"].with_fields(bus_bits=64, act_bytes=1 << 13, wgt_bytes=1 << 13),
        CONFIGS["tiny"].with_fields(channels=2),
        pytest.param(CONFIGS["default"], marks=pytest.mark.slow),
    ],
    ids=lambda config: config.digest,
)
def test_loops_of_the_accelerator(config, tmp_path):
    """No latch, no loop, no undriven signal, no conflicting drivers."""
    files = accelerator(config, tmp_path)
    read = [f"read_verilog {file}" for file in files]
    read += ["hierarchy -check -top systolora_axi", "proc"]
    stat = yosys(*read, "check -assert", "flatten", "check -assert", "stat -json")
    cells = stat["design"]["num_cells_by_type"]
    assert not [kind for kind in cells if "latch" in kind or kind.startswith("$sr")]


def test_lint_would_fail(tmp_path):
    """The waivers leave the rules that matter: an undriven signal, a latch, a loop."""
    faults = {
        "UNDRIVEN": "module m(output wire y); wire a; assign y = a; endmodule",
        "LATCH": "module m(input wire e, d, output reg y); always @* if (e) y = d; endmodule",
        "UNOPTFLAT": "module m(input wire e, output wire y); assign y = e ? ~y : y; endmodule",
    }
    for rule, text in faults.items():
        file = tmp_path / "m.v"
        file.write_text(text + "\n")
        assert rule in lint(str(file)).stderr


def test_yosys_check(verilog):
    """No latch, no loop, no undriven signal, no conflicting drivers."""
    read = [f"read_verilog {verilog}", "hierarchy -check -top systolora_core", "proc"]
    stat = yosys(*read, "check -assert", "flatten", "check -assert", "stat -json")
    cells = stat["design"]["num_cells_by_type"]
    assert not [name for name in cells if "latch" in name or name.startswith("$sr")]
    assert any(name.startswith("$mem") for name in cells), "the buffers are not memories"


def test_one_pe_with_one_multiplier(verilog):
    """Identical PEs are one module, and it multiplies once."""
    text = verilog.read_text()
    names = [line.split()[1].split("(")[0] for line in text.splitlines() if line[:7] == "module "]
    assert [name for name in names if name == "pe" or name.endswith(("_pe", ".pe"))] == ["pe"]
    stat = yosys(
        f"read_verilog {verilog}",
        "synth -run begin:fine -top systolora_core",
        "stat -json",
    )
    cells = stat["modules"]["\\pe"]["num_cells_by_type"]
    multipliers = {
        name: count for name, count in cells.items() if name.startswith(("$mul", "$macc"))
    }
    print(multipliers)
    assert sum(multipliers.values()) == 1
