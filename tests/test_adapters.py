"""Adapters: float32 to masters and back, exactly where the scale is the same."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from systolora.cli import main
from systolora_sim import calibrate
from systolora_sim.adapters import convert_adapters, real_values
from systolora_sim.layerfile import LayerFileError
from systolora_sim.numerics import Scale
from systolora_sim.statefile import Options, load_state, write_training
from systolora_sim.training import run_steps

SEED = 88
SHAPES = {"up/lora_A": (3, 40), "up/lora_B": (20, 3), "mid.to_k/lora_A": (1, 8)}
SHAPES["mid.to_k/lora_B"] = (5, 1)

Tensors = dict[str, np.ndarray]


def adapters() -> Tensors:
    rng = np.random.default_rng(SEED)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    tensors["mid.to_k/lora_B"][:] = 0  # as an adapter begins
    return tensors


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


def test_import_chooses_the_scale_of_section_6(tmp_path):
    tensors = adapters()
    convert_adapters(saved(tmp_path / "in", tensors), tmp_path / "out", "int16")
    got = load_file(tmp_path / "out")
    assert set(got) == {f"{name}.master{suffix}" for name in SHAPES for suffix in ("", ".scale")}
    for name, values in tensors.items():
        scale = Scale(*got[f"{name}.master.scale"].tolist())
        largest = float(np.abs(values).max())
        assert scale == calibrate.from_float(max(4 * largest, 0.25) / 32767)
        unit = calibrate.to_float(scale)
        assert got[f"{name}.master"].dtype == np.int16
        assert np.abs(got[f"{name}.master"] * unit - values).max() <= 0.5 * unit


def test_a_round_trip_through_float32_keeps_every_bit(tmp_path):
    """All 16-bit values in a few scales, exported, and imported in the scale they had."""
    w = np.arange(-32767, 32768, dtype=np.int16).reshape(5, -1)
    for scale in (Scale(32768, -16), Scale(65535, -30), Scale(41234, 5), Scale(50001, -100)):
        tensors = {"lora_A.master": w, "lora_A.master.scale": np.array(scale, np.int32)}
        tensors |= {"lora_B.master": np.ascontiguousarray(w[:, :5])}
        tensors |= {"lora_B.master.scale": np.array(scale, np.int32)}
        convert_adapters(saved(tmp_path / "int16", tensors), tmp_path / "float32", "float32")
        real = load_file(tmp_path / "float32")
        assert {name: array.dtype for name, array in real.items()} == {
            "lora_A": np.float32, "lora_B": np.float32,
        }  # fmt: skip
        exact = w.astype(np.float64) * calibrate.to_float(scale)
        assert np.array_equal(real["lora_A"], exact.astype(np.float32))
        for name in ("lora_A", "lora_B"):
            real[f"{name}.master.scale"] = np.array(scale, np.int32)
        convert_adapters(saved(tmp_path / "named", real), tmp_path / "again", "int16")
        again = load_file(tmp_path / "again")
        assert set(again) == set(tensors)
        assert all(np.array_equal(again[name], array) for name, array in tensors.items())


def test_trained_adapters_leave_and_come_back(tmp_path):
    """A state is exported; imported again it differs by the new masters' rounding at most."""
    rng = np.random.default_rng(SEED)
    tensors = adapters()
    sizes = {"up": (4, 40, 20), "mid.to_k": (2, 8, 5)}
    for name, (n, d, k) in sizes.items():
        tensors[f"{name}/x"] = rng.normal(size=(n, d)).astype(np.float32)
        tensors[f"{name}/weight"] = rng.normal(size=(k, d)).astype(np.float32)
        tensors[f"{name}/dy"] = rng.normal(size=(n, k)).astype(np.float32)
        tensors[f"{name}/gain"] = np.array([1.0], np.float32)
    layers = saved(tmp_path / "layers", tensors)
    result = run_steps(load_state(layers, Options(optimizer="sgd", lr=1e-3)), 2)
    write_training(tmp_path / "state", result)
    assert main(["adapter", "export", str(tmp_path / "state"), "-o", str(tmp_path / "real")]) == 0
    real = load_file(tmp_path / "real")
    assert set(real) == set(SHAPES)
    for name, each in result.state.layers.items():
        assert np.array_equal(real[f"{name}/lora_A"], real_values(each.a.w, each.a.scale))
        assert np.array_equal(real[f"{name}/lora_B"], real_values(each.b.w, each.b.scale))
    assert main(["adapter", "import", str(tmp_path / "real"), "-o", str(tmp_path / "again")]) == 0
    options = Options(optimizer="lion", lr=1e-3)
    state = load_state(layers, options, resume=tmp_path / "again")
    for name, each in state.layers.items():
        for tensor, master in (("lora_A", each.a), ("lora_B", each.b)):
            values, unit = real[f"{name}/{tensor}"], calibrate.to_float(master.scale)
            assert np.abs(master.w * unit - values).max() <= 0.5 * unit


def test_what_is_refused(tmp_path, capsys):
    path, out = tmp_path / "in", tmp_path / "out"

    def refused(message: str, tensors: Tensors, action: str = "export") -> None:
        assert main(["adapter", action, str(saved(path, tensors)), "-o", str(out)]) == 2
        assert capsys.readouterr() == ("", f"systolora: error: {path}: {message}\n")
        assert not out.exists()

    good = adapters()
    refused(
        "mid.to_k/lora_B: missing tensor: must be there unless lora_B.master is",
        {name: good[name] for name in SHAPES if name != "mid.to_k/lora_B"},
    )
    refused("up/lora_B: rank 1: must be 2, [k, r]", good | {"up/lora_B": np.zeros(3, np.float32)})
    refused(
        "up/lora_B: shape (20, 2): must be [k, r] with r = 3 as in lora_A",
        good | {"up/lora_B": np.zeros((20, 2), np.float32)},
    )
    refused("up/lora_C: unknown tensor", good | {"up/lora_C": np.zeros(3, np.float32)}, "import")
    refused("x.y: unknown tensor", {"x.y": np.zeros(3, np.float32)})
    nan = np.full((1, 8), np.nan, np.float32)
    refused(
        "mid.to_k/lora_A: 8 of 8 values are NaN or infinite: must be finite",
        good | {"mid.to_k/lora_A": nan},
    )
    ones = {f"lora_{x}.master": np.ones((1, 1), np.int16) for x in "AB"}
    for e, value in ((140, "1.7e+42"), (-127, "7.17e-39")):
        scales = {f"lora_{x}.master.scale": np.array([40000, e], np.int32) for x in "AB"}
        rule = f"scale {value}: the values do not fit float32"
        refused(f"lora_A.master: {rule}", ones | scales)
    with pytest.raises(LayerFileError) as caught:
        convert_adapters(saved(path, good), path, "int16")
    assert str(caught.value) == f"{path}: cannot be written: it is also {path}"
    with pytest.raises(ValueError, match=r"^form 'int4': must be one of float32, int16$"):
        convert_adapters(path, out, "int4")
