"""Verilator's lint of generated Verilog."""

import os
import subprocess
from pathlib import Path

from systolora_sim.bench.build import build_environment

#: What is said of the generated Verilog and is no defect; says why.
WAIVERS = Path(__file__).parent.parent / "hw" / "systolora" / "lint.vlt"


def lint(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What it says of files; `arguments` may be options, too."""
    return subprocess.run(
        ["verilator", "--lint-only", "-Wall", str(WAIVERS), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | build_environment("verilator"),
    )


def assert_clean(*arguments: str) -> None:
    """Nothing beyond the waivers."""
    run = lint(*arguments)
    assert run.returncode == 0 and "%" not in run.stderr + run.stdout, run.stderr[-3000:]
