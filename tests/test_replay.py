"""Records of layer calls: bit-exact on every backend, and what is wrong is found and named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from systolora.cli import main
from systolora.config import preset
from systolora_sim import calibrate
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer
from systolora_sim.numerics import ZERO
from systolora_sim.records import result_path, write_call, write_step
from systolora_sim.replay import find_records, replay
from systolora_sim.runner import RunError
from systolora_sim.training import LayerState, TrainingState, run_steps

SEED = 1313
#: A number that no file without `index` could have, in sorted order or not.
INDEX = 5


def layer_of(**fields) -> Layer:
    rng = np.random.default_rng(SEED)
    shapes = {"x": (6, 9), "weight": (7, 9), "lora_A": (2, 9), "lora_B": (7, 2), "dy": (6, 7)}
    pairs = {
        name: calibrate.quantize_float(rng.normal(size=shape), 8) for name, shape in shapes.items()
    }
    options = {
        "want_dx": True,
        "stochastic": frozenset({"H", "dX"}),
        "delayed": frozenset({"Y"}),
        "amax": {"Y": 60_000},
        "seed": 11,
        "step": 3,
        "index": INDEX,
    }
    return Layer(
        name="block.to_k",
        **{name: pair[0] for name, pair in pairs.items()},
        scales={name: pair[1] for name, pair in pairs.items()},
        gain=calibrate.from_float(1.5),
        **(options | fields),
    )


def state_of(kind: str) -> TrainingState:
    layer, rng = layer_of(), np.random.default_rng(SEED)
    momentum = None if kind == "sgd" else calibrate.from_float(1e-3)
    a, b = (
        calibrate.load_master(rng.normal(size=shape), 2 * INDEX + offset, momentum)
        for offset, shape in enumerate(((2, 9), (7, 2)))
    )
    layer = replace(layer, scales=layer.scales | {"lora_A": ZERO, "lora_B": ZERO})
    return TrainingState(
        layers={"": LayerState(layer=layer, a=a, b=b)},
        optimizer=calibrate.make_optimizer(kind, 0.01, weight_decay=0.1),
        seed=11,
        step=3,
    )


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A call without an update, and a step with each optimizer."""
    layer = layer_of()
    write_call(tmp_path, 0, layer, run_layer(layer))
    for number, kind in enumerate(("sgd", "momentum", "lion"), start=1):
        state = state_of(kind)
        write_step(tmp_path, number, state, run_steps(state, 1))
    return tmp_path


def test_all_backends_without_time(records):
    for backend in ("golden", "machine"):
        calls = list(replay(records, backend, preset("tiny"), progress=False))
        assert [call.difference for call in calls] == [None] * 4
        assert [call.cycles for call in calls] == [None] * 4
        # H, Y, Y_acc, dH, dX, dA, dB with scales, Y's record; two masters with scales, lr, wd,
        # seed, step; two momenta with scales, beta; Lion's four factors.
        assert [call.tensors for call in calls] == [15, 23, 28, 31]


def test_a_run_writes_the_bytes_of_the_recorded_results(records, tmp_path):
    for record in find_records(records):
        out = tmp_path / "out"
        assert main(["run", str(record), "-o", str(out), "-q"]) == 0
        assert out.read_bytes() == result_path(record).read_bytes()


def test_the_layers_number_is_in_the_record(records):
    """Random words depend on it; so does every update."""
    for record in find_records(records):
        with safe_open(record, "np") as file:
            metadata = file.metadata()
        tensors = load_file(record)
        assert tensors.pop("index").tolist() == [INDEX]
        save_file(tensors, record, metadata)
    for call in replay(records, "golden", preset("tiny"), progress=False):
        assert call.difference is not None


def rewritten(path: Path, change) -> None:
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def change_values(tensors, _):
    tensors["dA"][1, 4] += 1
    tensors["dH"][2, 1] ^= 1
    tensors["dH"][5, 0] ^= 1


def change_scale(tensors, _):
    tensors["Y.scale"][1] += 1


def change_master(tensors, _):
    tensors["lora_B.master"][6, 1] -= 3


def leave_out(tensors, _):
    del tensors["dX"]


def change_type(tensors, _):
    tensors["H"] = tensors["H"].astype(np.int16)


def change_sticky(_, metadata):
    metadata["sticky"] = "acc_sat"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (change_values, ["dH[2, 1] = ", ": recorded ", "; 2 elements differ"]),
        (change_scale, ["Y.scale[1] = "]),
        (change_master, ["lora_B.master[6, 1] = "]),
        (leave_out, ["dX: not recorded"]),
        (change_type, ["H: I8 [6, 2]: recorded I16 [6, 2]"]),
        (change_sticky, ["metadata sticky = '", "': recorded 'acc_sat'"]),
    ],
)
def test_the_first_difference_is_shown(records, capsys, change, parts):
    record = find_records(records)[1]
    recorded = load_file(result_path(record))
    rewritten(result_path(record), change)
    assert main(["replay", str(records), "--backend", "machine", "-q"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith(": machine: bit-exact, 15 tensors")
    assert lines[1].startswith(f"{record}: machine: ")
    for part in parts:
        assert part in lines[1]
    if change is change_values:
        got, wanted = int(recorded["dH"][2, 1]), int(recorded["dH"][2, 1]) ^ 1
        assert f"dH[2, 1] = {got}: recorded {wanted}" in lines[1]


def test_limit(records, capsys):
    assert main(["replay", str(records), "--limit", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_bad_records(records, tmp_path, capsys):
    record = find_records(records)[0]
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(path: Path, message: str) -> None:
        assert main(["replay", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("systolora: error: ")
        assert message in error and str(path).removesuffix(".safetensors") in error

    refused(tmp_path / "nothing", "cannot be read: there is no such file")
    refused(empty, "holds no records")
    refused(result_path(record), "holds the results of a record")
    result = result_path(record).read_bytes()
    result_path(record).write_bytes(result[:-3])
    refused(record, f"{result_path(record).name}: not a complete safetensors file")
    result_path(record).unlink()
    refused(records, f"{result_path(record).name}: cannot be read")
    result_path(record).write_bytes(result)
    rewritten(record, lambda tensors, _: tensors.pop("weight"))
    refused(record, "weight: missing tensor")
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(record), "--limit", "0"])
    assert "must be a number from 1 on" in capsys.readouterr().err
    with pytest.raises(RunError, match="no such file"):
        find_records(tmp_path / "nothing")


def test_two_layers_may_not_have_one_number(tmp_path, capsys):
    """`index` in a file of several layers."""
    layer = layer_of()
    tensors = {}
    record = write_call(tmp_path, 0, layer, run_layer(layer))
    for name in ("a", "b"):
        tensors |= {f"{name}/{key}": array for key, array in load_file(record).items()}
    for key in ("seed", "step"):
        tensors[key] = tensors.pop(f"a/{key}")
        del tensors[f"b/{key}"]
    del tensors["a/Y.amax"], tensors["b/Y.amax"]
    path = tmp_path / "two.safetensors"
    save_file(tensors, path)
    words = ["run", str(path), "-o", str(tmp_path / "out"), "--optimizer", "sgd", "--lr", "1", "-q"]
    assert main(words) == 2
    assert f"{path}: layer 'b': index 5: layer 'a' has it too" in capsys.readouterr().err
    tensors["b/index"] = np.array([-1], np.int32)
    save_file(tensors, path)
    assert main(words) == 2
    assert f"{path}: b/index: -1: must be from 0" in capsys.readouterr().err
    tensors["b/index"] = np.array([0], np.int32)
    save_file(tensors, path)
    assert main(words) == 0
