"""The command line as a user meets it: help, exit status, one line for bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).parent.parent
LAYER = ROOT / "examples" / "sd15_attn2_to_k.safetensors"


def systolora(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "hw"), str(ROOT / "sim"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "systolora", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )


def assert_refused(run: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2, one line on stderr that holds the parts, nothing else."""
    assert run.returncode == 2, run.stderr
    assert run.stderr.count("\n") == 1 and run.stderr.startswith("systolora"), run.stderr
    assert "Traceback" not in run.stderr and run.stdout == ""
    for part in parts:
        assert part in run.stderr


@pytest.mark.parametrize("command", [[], ["generate"], ["run"], ["info"], ["adapter"]])
def test_help(command):
    run = systolora(*command, "--help")
    assert run.returncode == 0 and run.stderr == ""
    assert "usage: systolora" in run.stdout
    if command:
        assert f"systolora {command[0]}" in run.stdout.split("examples:")[1]


def test_info():
    run = systolora("info")
    assert run.returncode == 0
    for name in ("tiny", "ecp5", "default", "paper", "amaranth"):
        assert name in run.stdout
    one = systolora("info", "--preset", "paper", "--segments", "8")
    assert one.returncode == 0 and "64" in one.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["generate"], ["-o"]),
        (["generate", "-o", "x", "--rows", "12"], ["rows = 12", "power of two"]),
        (["generate", "-o", "x", "--rows", "abc"], ["--rows", "abc"]),
        (["generate", "-o", "x", "--preset", "huge"], ["huge", "tiny"]),
        (["generate", "-o", "x", "--preset", "tiny", "--config", "a.toml"], ["--config"]),
        (["generate", "-o", "x", "--config", "missing.toml"], ["missing.toml"]),
        (["generate", "-o", "x", "--colour"], ["--colour"]),
        (["polish"], ["polish"]),
        (["run", "nothing.safetensors", "-o", "y"], ["nothing.safetensors"]),
        (["run", str(LAYER), "-o", "missing/dir/y"], ["missing/dir/y"]),
        (["run", str(LAYER), "-o", "y", "--backend", "fpga"], ["fpga"]),
        (["adapter", "import", "none", "-o", "y"], ["none: cannot be read"]),
        (["adapter", "import", "none", "-o", "y", "--format", "peft"], ["--format"]),
        (["adapter", "export", "none", "-o", "y", "--format", "zip"], ["zip", "kohya"]),
        (["adapter", "export", "none", "-o", "y", "--form", "int8"], ["int8", "float32"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_input(arguments, parts, tmp_path):
    assert_refused(systolora(*arguments, cwd=tmp_path), *parts)
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_a_file(tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    assert_refused(systolora("generate", "--preset", "tiny", "-o", file), str(file))
    assert file.read_text() == "mine"


def test_bad_layer_names_file_and_tensor(tmp_path):
    tensors = load_file(LAYER)
    tensors["dy"] = tensors["dy"][:-1].copy()
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    assert_refused(systolora("run", file, "-o", tmp_path / "out"), str(file), "dy")
    assert not (tmp_path / "out").exists()


def test_generate_is_deterministic(tmp_path):
    """The same configuration gives the same bytes, wherever and however it was named."""
    config = tmp_path / "a.toml"
    config.write_text('preset = "tiny"\n')
    first, second = tmp_path / "1", tmp_path / "elsewhere" / "2"
    runs = [
        systolora("generate", "--preset", "tiny", "-o", first),
        systolora("generate", "--config", config, "-o", second, cwd=tmp_path),
    ]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    names = (
        "systolora_top.v",
        "systolora_axi.v",
        "systolora_regs.h",
        "systolora.rdl",
        "manifest.json",
    )
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["configuration"]["rows"] == 4
    assert str(tmp_path) not in (first / "systolora_top.v").read_text()


def test_run_golden(tmp_path):
    out, cycles = tmp_path / "out.safetensors", tmp_path / "out.json"
    run = systolora("run", LAYER, "-o", out, "--json", cycles)
    assert run.returncode == 0, run.stderr
    tensors = load_file(out)
    shapes = {name: tensors[name].shape for name in ("H", "Y", "Y_acc", "dH", "dA", "dB", "dX")}
    assert shapes == {
        "H": (77, 4), "Y": (77, 320), "Y_acc": (77, 320), "dH": (77, 4),
        "dA": (4, 768), "dB": (320, 4), "dX": (77, 768),
    }  # fmt: skip
    assert tensors["Y_acc"].dtype == np.int32 and tensors["Y"].dtype == np.int8
    assert json.loads(cycles.read_text())
