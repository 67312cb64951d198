"""`compile` and `run` of training files with the best schedule, and with X.W^T kept."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from systolora.cli import main
from systolora.config import preset
from systolora_sim.compile_file import compile_file
from systolora_sim.cycle_model import time_program
from systolora_sim.machine_backend import run_program
from systolora_sim.schedule_choice import CHOICES
from systolora_sim.schedules import SCHEDULES
from systolora_sim.statefile import Options
from systolora_sim.step_file import load_step
from systolora_sim.step_program import read_back
from systolora_sim.training import TrainingResult

SEED = 20260801
TINY = preset("tiny")
LR = ("--optimizer", "sgd", "--lr", 0.01)


def written(folder: Path, want_dx: bool) -> Path:
    """Two layers of float32 tensors with one x; the rows are more than a bank of tiny's."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(45, 24)).astype(np.float32)
    tensors = {}
    for name, k in (("q", 16), ("v", 9)):
        shapes = {"weight": (k, 24), "lora_A": (2, 24), "lora_B": (k, 2), "dy": (45, k)}
        tensors |= {
            f"{name}/{tensor}": rng.normal(size=shape).astype(np.float32)
            for tensor, shape in shapes.items()
        }
        tensors |= {f"{name}/x": x, f"{name}/gain": np.array([0.5], np.float32)}
    modes = {"want_dx": "1" if want_dx else "0", "delayed": "Y,dX" if want_dx else "Y"}
    path = folder / f"layers{want_dx}.safetensors"
    save_file(
        tensors,
        path,
        {f"{name}/{key}": value for name in ("q", "v") for key, value in modes.items()},
    )
    return path


@pytest.fixture(name="layers")
def _layers(tmp_path) -> Path:
    return written(tmp_path, want_dx=False)


def command(name: str, *arguments: object) -> int:
    return main([name, *map(str, arguments)])


@pytest.mark.parametrize("options", [("--schedule", "best"), ("--cache-base",)])
def test_the_results_stay_the_same(layers, tmp_path, options):
    out, want = tmp_path / "out", tmp_path / "want"
    assert command("run", layers, "-o", want, *LR, "--steps", 3) == 0
    for backend in ("golden", "machine"):
        more = ["--backend", backend, "--preset", "tiny", "-q"]
        assert command("run", layers, "-o", out, *LR, "--steps", 3, *options, *more) == 0
        assert out.read_bytes() == want.read_bytes()


def test_both_on_rtl(layers, tmp_path):
    out, want = tmp_path / "out", tmp_path / "want"
    assert command("run", layers, "-o", want, *LR, "--steps", 2) == 0
    more = ["--backend", "rtl", "--preset", "tiny", "-q", "--schedule", "best", "--cache-base"]
    assert command("run", layers, "-o", out, *LR, "--steps", 2, *more) == 0
    assert out.read_bytes() == want.read_bytes()


def test_the_best_schedule_is_the_fastest(layers, tmp_path):
    def cycles(name: str) -> int:
        options = Options(optimizer="sgd", lr=0.01)
        program = compile_file(
            layers, tmp_path / f"{name}.slp", TINY, schedule=name, options=options, trains=True
        )
        assert load_step(tmp_path / f"{name}.slp").schedule == program.schedule == name
        return time_program(TINY, program.program).cycles

    found = {name: cycles(name) for name in CHOICES}
    assert found["best"] == min(found.values()) < max(found.values())
    assert tuple(found) == (*SCHEDULES, "best")


def test_phases_of_the_best_schedule_have_one_image(layers, tmp_path):
    images, program = set(), None
    for phase in ("forward", "backward", "update"):
        out = tmp_path / f"{phase}.slp"
        options = ["--phase", phase, "--preset", "tiny", "--schedule", "best", "--cache-base", "-q"]
        assert command("compile", layers, "-o", out, *LR, *options) == 0
        program = load_step(out)
        images.add(program.image.tobytes())
    assert program is not None and len(images) == 1 and "q/Y_base" in program.symbols


def test_a_compiled_file_keeps_the_sums(layers, tmp_path):
    out = tmp_path / "step.slp"
    assert command("compile", layers, "-o", out, *LR, "--cache-base", "--preset", "tiny") == 0
    program = load_step(out)
    base = program.symbols["v/Y_base"].read(program.image, program.base)
    got = read_back(program, run_program(program, 2), 2)
    assert isinstance(got, TrainingResult)
    layer = got.state.layers["v"].layer
    want = layer.x.astype(np.int64) @ layer.weight.T.astype(np.int64)
    np.testing.assert_array_equal(base, want)
    assert command("compile", layers, "-o", out, *LR, "--preset", "tiny") == 0
    assert "v/Y_base" not in load_step(out).symbols


def test_best_without_training_is_auto(tmp_path):
    rng = np.random.default_rng(SEED)
    shapes = {"x": (5, 6), "weight": (4, 6), "lora_A": (2, 6), "lora_B": (4, 2), "dy": (5, 4)}
    path, out = tmp_path / "layer.safetensors", tmp_path / "layer.slp"
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors | {"gain": np.array([0.5], np.float32)}, path)
    assert command("compile", path, "-o", out, "--schedule", "best", "--preset", "tiny") == 0
    assert load_step(out).schedule == "auto"
    machine = ["--backend", "machine", "--preset", "tiny", "--schedule", "best"]
    assert command("run", path, "-o", tmp_path / "out", *machine) == 0
    assert command("run", path, "-o", tmp_path / "want") == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "want").read_bytes()


def test_what_is_refused(layers, tmp_path, capsys):
    moving, out = written(tmp_path, want_dx=True), tmp_path / "out"
    machine = ("--backend", "machine", "--preset", "tiny")
    cases = [
        (("run", moving, "-o", out, *LR, "--cache-base", *machine), "layer q: cache_base: dX is"),
        (("run", moving, "-o", out, *LR, "--cache-base"), "layer q: cache_base: dX is asked"),
        (("compile", moving, "-o", out, *LR, "--cache-base"), "layer q: cache_base: dX is asked"),
        (("run", layers, "-o", out, *LR, "--schedule", "fast"), "schedule = 'fast': must be one"),
    ]
    one = tmp_path / "one.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones((4, 3), np.float32)}, one,
              {"product": "nt"})  # fmt: skip
    for name in ("run", "compile"):
        cases.append(((name, one, "-o", out, "--cache-base"), "cache-base: only of training"))
    for arguments, message in cases:
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error and not out.exists()
