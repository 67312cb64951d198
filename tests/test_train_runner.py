"""`systolora run` that trains: options, backends, resumed runs, one line for what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from systolora.cli import main
from systolora.config import PRESETS
from systolora_sim.examples import SD15_FILE
from systolora_sim.runner import RunError
from systolora_sim.train_runner import train_file

SEED = 67
EXAMPLE = Path(__file__).parent.parent / "examples" / SD15_FILE
SIZES = {"b": (3, 6, 5, 2), "a": (5, 4, 9, 1)}


@pytest.fixture
def layers(tmp_path) -> Path:
    """Two layers of float32 tensors, lora_B of zeros."""
    rng = np.random.default_rng(SEED)
    tensors = {}
    for name, (n, d, k, r) in SIZES.items():
        tensors[f"{name}/x"] = rng.normal(size=(n, d)).astype(np.float32)
        tensors[f"{name}/weight"] = rng.normal(size=(k, d)).astype(np.float32)
        tensors[f"{name}/lora_A"] = rng.normal(size=(r, d)).astype(np.float32)
        tensors[f"{name}/lora_B"] = np.zeros((k, r), np.float32)
        tensors[f"{name}/dy"] = rng.normal(size=(n, k)).astype(np.float32)
        tensors[f"{name}/gain"] = np.array([0.5], np.float32)
    path = tmp_path / "layers.safetensors"
    save_file(tensors, path, {"a/want_dx": "1", "b/delayed": "H", "a/stochastic": "Y,dX"})
    return path


def run(*args: object) -> int:
    return main(["run", *map(str, args), "--quiet"])


@pytest.mark.parametrize("kind", ["sgd", "momentum", "lion"])
def test_backends_and_split_runs_write_the_same_bytes(layers, tmp_path, kind, capsys):
    options = ["--optimizer", kind, "--lr", "0.01", "--weight-decay", "0.5"]
    whole, state, machine = (tmp_path / name for name in ("whole", "state", "machine"))
    assert run(layers, "-o", whole, *options, "--steps", 4) == 0
    assert run(layers, "-o", state, *options) == 0
    assert load_file(state)["step"].tolist() == [1]
    # The output takes the place of the state that it goes on from.
    again = ["--resume", state, "--steps", 3, "--backend", "machine", "--rows", 4, "--cols", 8]
    assert run(layers, "-o", state, *again) == 0
    assert state.read_bytes() == whole.read_bytes()
    args = ["--steps", 4, "--backend", "machine", "--preset", "tiny"]
    assert run(layers, "-o", machine, *options, *args) == 0
    assert machine.read_bytes() == whole.read_bytes()
    assert capsys.readouterr() == ("", "")


def test_report(layers, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    args = ["--optimizer", "lion", "--lr", 2**-7, "--steps", 2, "--json", report]
    assert run(layers, "-o", out, *args, "--backend", "machine") == 0
    got = json.loads(report.read_text())
    assert (got["backend"], got["optimizer"], got["lr"]) == ("machine", "lion", 2**-7)
    assert (got["first_step"], got["steps"], got["cycles"]) == (0, 2, None)
    assert got["digest"] == PRESETS["default"].digest
    assert got["layers"] == [{"name": name, "sticky": []} for name in ("a", "b")]
    assert run(layers, "-o", out, *args) == 0
    assert json.loads(report.read_text()) == got | {"backend": "golden"}


def test_rescale_goes_on_after_saturation(layers, tmp_path):
    """A master at the end of its range: the bit, then a scale twice as large, then none."""
    state, after = tmp_path / "state", tmp_path / "after"
    args = ["--optimizer", "sgd", "--lr", 1e-3]
    assert run(layers, "-o", state, *args) == 0
    held = load_file(state)
    held["b/lora_B.master"][:] = -32768
    save_file(held, state, {"optimizer": "sgd", "a/sticky": "", "b/sticky": "master_range"})
    assert run(layers, "-o", after, "--resume", state, "--rescale") == 0
    got = load_file(after)
    m, e = held["b/lora_B.master.scale"].tolist()
    assert got["b/lora_B.master.scale"].tolist() == [m, e + 1]
    for name in ("b/lora_A.master.scale", "a/lora_B.master.scale"):
        assert np.array_equal(got[name], held[name])
    assert np.abs(got["b/lora_B.master"] + 16384).max() < 2000
    with safe_open(after, "numpy") as file:
        assert file.metadata() == {"optimizer": "sgd", "a/sticky": "", "b/sticky": ""}


def test_a_plain_layer_stays_a_plain_run(tmp_path):
    """Without options and without anything of training in the file: no step, no state."""
    assert run(EXAMPLE, "-o", tmp_path / "out") == 0
    assert not {"step", "lora_A.master"} & set(load_file(tmp_path / "out"))
    assert run(EXAMPLE, "-o", tmp_path / "out", "--lr", 1e-3, "--optimizer", "sgd") == 0
    state = load_file(tmp_path / "out")
    assert {"step", "lora_A.master", "Y_acc"} <= set(state)
    # The state, beside its inputs, is a file for training: no option needed.
    merged = tmp_path / "merged.safetensors"
    save_file(load_file(EXAMPLE) | state, merged, {"optimizer": "sgd"})
    assert run(merged, "-o", tmp_path / "next") == 0
    assert load_file(tmp_path / "next")["step"].tolist() == [2]


def test_an_option_that_the_file_contradicts_is_noted(layers, tmp_path, capsys):
    state = tmp_path / "state"
    assert run(layers, "-o", state, "--optimizer", "sgd", "--lr", 0.5) == 0
    assert run(layers, "-o", tmp_path / "out", "--resume", state, "--lr", 0.25) == 0
    note = f"systolora: note: {state}: --lr 0.25 is not used: the file says 0.5\n"
    assert capsys.readouterr() == ("", note)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "{layers}: metadata optimizer: missing: must be there or given by --optimizer"),
        (["--optimizer", "sgd"], "{layers}: lr.scale: missing tensor: must be there or given by "
                                 "--lr"),
        (["--optimizer", "sgd", "--lr", "-1"], "lr = -1.0: must be finite and positive"),
        (["--optimizer", "sgd", "--lr", "1", "--steps", "0"], "steps = 0: must be at least 1"),
        (["--lr", "fast"], "argument --lr: 'fast': must be a number (see systolora run --help)"),
        (["--resume", "none"], "none: cannot be read: No such file or directory"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(layers, tmp_path, capsys, args, message):
    out = tmp_path / "out"
    try:
        status = run(layers, "-o", out, *args)
    except SystemExit as stopped:  # argparse's own errors
        status = stopped.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err == f"systolora: error: {message.format(layers=layers)}\n"
    assert not out.exists()


def test_a_configuration_without_int16(layers, tmp_path, capsys):
    """Masters are int16 on every configuration; only int16 operands of products are refused."""
    args = ["--optimizer", "momentum", "--lr", 0.01, "--steps", 2]
    assert run(layers, "-o", tmp_path / "golden", *args) == 0
    machine = ["--backend", "machine", "--preset", "tiny", "--no-int16"]
    assert run(layers, "-o", tmp_path / "machine", *args, *machine) == 0
    assert (tmp_path / "machine").read_bytes() == (tmp_path / "golden").read_bytes()
    wide = tmp_path / "wide.safetensors"
    save_file(load_file(layers), wide, {"b/bits.lora_B": "16"})
    assert run(wide, "-o", tmp_path / "out", *args, *machine) == 2
    rule = "lora_B is int16: the configuration was generated without int16"
    assert capsys.readouterr().err == f"systolora: error: {wide}: layer b: {rule}\n"
    assert not (tmp_path / "out").exists()


def test_what_is_refused_before_any_work(layers, tmp_path):
    config = PRESETS["tiny"]

    def refused(message: str, **changes: object) -> None:
        arguments = {"layer_path": layers, "out_path": tmp_path / "out", "backend": "golden"}
        with pytest.raises(RunError) as caught:
            train_file(**(arguments | changes), config=config)  # type: ignore[arg-type]
        assert str(caught.value) == message

    refused("backend = 'abacus': must be one of golden, machine, rtl", backend="abacus")
    tensors = load_file(layers) | {
        "lr.scale": np.array([32768, 0], np.int32),
        "step": np.array([(1 << 31) - 2], np.int32),
    }
    late = tmp_path / "late.safetensors"
    save_file(tensors, late, {"optimizer": "sgd"})
    refused(f"{late}: step: 2147483646 and 2 more: must stay below 2^31", layer_path=late, steps=2)
    train_file(late, tmp_path / "last", "golden", config)
    assert load_file(tmp_path / "last")["step"].tolist() == [(1 << 31) - 1]
    refused(f"{late}: cannot be written: it is also {late}", layer_path=late, out_path=late)
    refused(
        f"{late}: cannot be written: it is also {late}", layer_path=late, json_path=late
    )  # fmt: skip


def test_rtl_writes_the_same_bytes(layers, tmp_path):
    """Two layers, two steps of Lion with weight decay, stalls on every channel."""
    golden, rtl, report = (tmp_path / name for name in ("golden", "rtl", "report.json"))
    args = ["--optimizer", "lion", "--lr", 0.01, "--weight-decay", 0.5, "--steps", 2]
    assert run(layers, "-o", golden, *args) == 0
    simulated = ["--backend", "rtl", "--preset", "tiny", "--stall-seed", SEED, "--json", report]
    simulated += ["--check", "--memory-latency", 11]
    assert run(layers, "-o", rtl, *args, *simulated) == 0
    assert rtl.read_bytes() == golden.read_bytes()
    got = json.loads(report.read_text())
    assert got["cycles"] == got["counters"]["CYCLES"] > 0
