"""Layer files: what is read, what is refused and with which words, what is written."""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from file_changes import Change, Tensors, drop, put, say
from systolora_sim import calibrate, layerfile
from systolora_sim.examples import SD15_FILE, SD15_SEED, sd15_layer, write_sd15_layer
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import (
    Layer,
    LayerFileError,
    load_layer,
    save_tensors,
    write_layer,
    write_result,
)
from systolora_sim.numerics import ONE, ZERO, Scale

SEED = 97
N, D, K, R = 4, 6, 5, 2
SHAPES = {"x": (N, D), "weight": (K, D), "lora_A": (R, D), "lora_B": (K, R), "dy": (N, K)}
EXAMPLE = Path(__file__).parent.parent / "examples" / SD15_FILE


def integer_file(dtype: Any = np.int8) -> Tensors:
    rng = np.random.default_rng(SEED)
    tensors: Tensors = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        tensors[name] = rng.integers(-100, 100, shape).astype(dtype)
        tensors[f"{name}.scale"] = np.array([40000 + i, -7 - i], np.int32)
    tensors["gain.scale"] = np.array([32768, 1], np.int32)
    return tensors


def float_file(dtype: Any = np.float32) -> Tensors:
    rng = np.random.default_rng(SEED)
    tensors = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    tensors["gain"] = np.array([0.5], np.float32)
    return tensors


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Written by the library, not by this package."""
    save_file(tensors, path, metadata)
    return path


def raw(path: Path, entries: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """A safetensors file by hand, for types that NumPy has not."""
    header, data = {}, b""
    for name, (dtype, shape, content) in entries.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def same(a: Layer, b: Layer) -> bool:
    if a.present != b.present:
        return False
    arrays = [*a.present, *(["bias"] if a.bias is not None else [])]
    rest = [name for name in a.__dataclass_fields__ if name not in (*SHAPES, "bias", "name")]
    return all(
        getattr(a, name).dtype == getattr(b, name).dtype
        and np.array_equal(getattr(a, name), getattr(b, name))
        for name in arrays
    ) and all(getattr(a, name) == getattr(b, name) for name in rest)


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_integers_are_taken_as_they_are(tmp_path, dtype):
    tensors = integer_file(dtype)
    tensors["lora_A"] = tensors["lora_A"].astype(np.int16)
    tensors["weight"][0, 0] = np.iinfo(dtype).min
    layer = load_layer(saved(tmp_path / "some.layer.safetensors", tensors))
    assert layer.name == "some.layer"
    for i, name in enumerate(SHAPES):
        assert np.array_equal(getattr(layer, name), tensors[name])
        assert getattr(layer, name).dtype == tensors[name].dtype
        assert layer.scales[name] == Scale(40000 + i, -7 - i)
    assert layer.gain == Scale(32768, 1)
    assert layer.bias is None
    assert (layer.want_dx, layer.seed, layer.step, layer.index) == (False, 0, 0, 0)
    assert layer.delayed == layer.stochastic == frozenset()
    assert layer.bits == layer.amax == {}
    assert (layer.batch, layer.inputs, layer.outputs, layer.rank) == (N, D, K, R)


def test_everything_optional_is_read(tmp_path):
    tensors = integer_file()
    tensors["bias"] = np.arange(-2, 3).astype(np.int32)
    tensors["seed"], tensors["step"] = np.array([-5], np.int32), np.array(9, np.int32)
    tensors["dX.amax"] = np.array([1 << 40], np.int64)
    metadata = {
        "want_dx": "1",
        "delayed": "dX, H",
        "stochastic": "Y",
        "bits": "16",  # of float tensors; there are none
        "bits.dX": "16",
        "bits.x": "8",
        "format": "np",  # somebody else's
    }
    layer = load_layer(saved(tmp_path / "a", tensors, metadata))
    assert layer.bias is not None
    assert layer.bias.tolist() == [-2, -1, 0, 1, 2]
    assert (layer.want_dx, layer.seed, layer.step) == (True, -5, 9)
    assert layer.delayed == {"H", "dX"}
    assert layer.stochastic == {"Y"}
    assert layer.bits == {"dX": 16}
    assert layer.amax == {"dX": 1 << 40}
    run_layer(layer)


@pytest.mark.parametrize("bits", [None, "8", "16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_floats_are_quantized(tmp_path, bits, dtype):
    tensors = float_file(dtype)
    layer = load_layer(saved(tmp_path / "a", tensors, {"bits": bits} if bits else None))
    for name in SHAPES:
        q, scale = calibrate.quantize_float(tensors[name].astype(np.float64), int(bits or 8))
        assert getattr(layer, name).dtype == q.dtype
        assert np.array_equal(getattr(layer, name), q)
        assert layer.scales[name] == scale
    assert layer.gain == calibrate.from_float(0.5)


def test_bfloat16_is_widened_exactly(tmp_path):
    rng = np.random.default_rng(SEED)
    narrow: dict[str, tuple[str, list[int], bytes]] = {}
    wide: Tensors = {"gain": np.array([1.25], np.float32)}
    for name, shape in SHAPES.items():
        values = rng.normal(size=shape).astype(ml_dtypes.bfloat16)
        values[0, 0] = -1e-40  # a subnormal
        narrow[name] = ("BF16", list(shape), values.tobytes())
        wide[name] = values.astype(np.float32)
    gain = np.array(1.25, ml_dtypes.bfloat16)
    narrow["gain"] = ("BF16", [], gain.tobytes())
    assert same(load_layer(raw(tmp_path / "a", narrow)), load_layer(saved(tmp_path / "b", wide)))


def test_every_bfloat16_widens_as_ml_dtypes_says():
    bits = np.arange(1 << 16, dtype=np.uint16)
    got = layerfile.Stored("BF16", (256, 256), bits.tobytes()).array()
    wanted = bits.view(ml_dtypes.bfloat16).astype(np.float32).reshape(256, 256)
    assert got.dtype == np.float32
    assert np.array_equal(got, wanted, equal_nan=True)


def test_mixed_files_and_widths_of_single_tensors(tmp_path):
    tensors = float_file()
    integers = integer_file(np.int16)
    for name in ("weight", "lora_B"):
        tensors[name], tensors[f"{name}.scale"] = integers[name], integers[f"{name}.scale"]
    layer = load_layer(saved(tmp_path / "a", tensors, {"bits.x": "16", "bits.lora_B": "16"}))
    assert [layer.bits_of(name) for name in SHAPES] == [16, 16, 16, 16, 8]  # lora_A follows x
    layer = load_layer(saved(tmp_path / "b", tensors, {"bits": "16", "bits.x": "8"}))
    assert [layer.bits_of(name) for name in SHAPES] == [8, 16, 8, 16, 16]
    layer = load_layer(saved(tmp_path / "c", tensors, {"bits.lora_A": "16", "bits.H": "16"}))
    assert [layer.bits_of(name) for name in SHAPES] == [8, 16, 16, 16, 8]
    assert layer.bits == {"H": 16}


def test_zeros_load(tmp_path):
    tensors = {name: np.zeros_like(tensor) for name, tensor in float_file().items()}
    layer = load_layer(saved(tmp_path / "a", tensors))
    assert set(layer.scales.values()) == {ONE}
    assert layer.gain == ZERO
    assert not run_layer(layer).tensors["Y"].any()
    tensors = integer_file()  # the working copies of a fresh adapter, and a gain of 0
    for name in ("lora_A", "lora_B", "gain"):
        tensors[f"{name}.scale"] = np.zeros(2, np.int32)
    assert load_layer(saved(tmp_path / "b", tensors)).scales["lora_B"] == ZERO


def frozen_file(tensors: Tensors) -> Tensors:
    """The file without everything of an adapter."""
    return {n: t for n, t in tensors.items() if n.split(".")[0] not in ("lora_A", "lora_B", "gain")}


def test_frozen_layers_load(tmp_path):
    for tensors in (integer_file(), float_file(), integer_file(np.int16)):
        whole = load_layer(saved(tmp_path / "whole", tensors, {"want_dx": "1"}))
        tensors = frozen_file(tensors)
        layer = load_layer(saved(tmp_path / "a", tensors, {"want_dx": "1"}))
        assert layer.is_frozen and layer.gain is None and layer.rank == 0
        for name in ("x", "weight", "dy"):
            assert np.array_equal(layer.operand(name), whole.operand(name))
            assert layer.scales[name] == whole.scales[name]
        write_layer(tmp_path / "again", layer)
        assert same(load_layer(tmp_path / "again"), layer)
        del tensors["dy"]
        tensors.pop("dy.scale", None)
        layer = load_layer(saved(tmp_path / "b", tensors))
        assert layer.dy is None and set(layer.scales) == {"x", "weight"}
        write_layer(tmp_path / "again", layer)
        assert same(load_layer(tmp_path / "again"), layer)
        write_result(tmp_path / "out", run_layer(layer))
        assert set(load_file(tmp_path / "out")) == {"Y", "Y.scale", "Y_acc", "Y_acc.scale"}


# Refusing -------------------------------------------------------------------------------------


def both(*changes: Change) -> Change:
    return lambda tensors, metadata: [change(tensors, metadata) for change in changes]


i32, f32 = np.int32, np.float32


def ints(values: list[int]) -> np.ndarray:
    return np.array(values, i32)


def reals(values: list[float]) -> np.ndarray:
    return np.array(values, f32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((drop(name), f"{name}: missing tensor") for name in SHAPES),
        *((drop(f"{name}.scale"), f"{name}.scale: missing tensor") for name in SHAPES),
        (drop("gain.scale"), "gain: missing tensor"),
        (put("wieght", np.zeros((K, D), np.int8)), "wieght: unknown tensor"),
        (put("Z.amax", np.zeros(1, np.int64)), "Z.amax: unknown tensor"),
        (
            put("x", np.zeros((N, D), np.int32)),
            "x: dtype I32: must be I8 or I16 or F32 or F16 or BF16",
        ),
        (put("dy", np.zeros((N, K))), "dy: dtype F64: must be I8 or I16 or F32 or F16 or BF16"),
        (put("x", np.zeros((N, D, 1), np.int8)), "x: rank 3: must be 2, [N, d]"),
        (put("weight", np.int8(1)), "weight: rank 0: must be 2, [k, d]"),
        (
            put("weight", np.zeros((K, D + 1), np.int8)),
            "weight: shape (5, 7): must be [k, d] with d = 6 as in x",
        ),
        (
            put("lora_A", np.zeros((R, D - 1), np.int8)),
            "lora_A: shape (2, 5): must be [r, d] with d = 6 as in x",
        ),
        (
            put("lora_B", np.zeros((R, K), np.int8)),
            "lora_B: shape (2, 5): must be [k, r] with k = 5 as in weight",
        ),
        (
            put("lora_B", np.zeros((K, 3), np.int8)),
            "lora_B: shape (5, 3): must be [k, r] with r = 2 as in lora_A",
        ),
        (
            put("dy", np.zeros((N + 1, K), np.int8)),
            "dy: shape (5, 5): must be [N, k] with N = 4 as in x",
        ),
        (put("x", np.zeros((0, D), np.int8)), "x: shape (0, 6): N must not be 0"),
        (put("lora_A", np.zeros((0, D), np.int8)), "lora_A: shape (0, 6): r must not be 0"),
        (
            put("x", np.zeros((131072, D), np.int8)),
            "x: layer 'bad' has N = 131072: a reduction must be shorter than 131072",
        ),
        (
            put("x.scale", ints([32767, 0])),
            "x.scale: scale m = 32767: must be 0 or from 32768 to 65535",
        ),
        (
            put("x.scale", ints([65536, 0])),
            "x.scale: scale m = 65536: must be 0 or from 32768 to 65535",
        ),
        (
            put("lora_A.scale", ints([-1, 0])),
            "lora_A.scale: scale m = -1: must be 0 or from 32768 to 65535",
        ),
        (put("dy.scale", ints([40000, 512])), "dy.scale: scale e = 512: must be from -512 to 511"),
        (
            put("gain.scale", ints([40000, -513])),
            "gain.scale: scale e = -513: must be from -512 to 511",
        ),
        (
            put("lora_B.scale", ints([0, 3])),
            "lora_B.scale: scale (0, 3): the zero scale is (0, 0) and nothing else",
        ),
        *(
            (
                put(f"{name}.scale", ints([0, 0])),
                f"{name}.scale: the scale of {name} must not be zero",
            )
            for name in ("x", "weight", "dy")
        ),
        (put("x.scale", np.zeros(2)), "x.scale: dtype F64: must be I32"),
        (put("x.scale", ints([40000])), "x.scale: shape [1]: must be [2], m and e"),
        (put("x", np.zeros((N, D), f32)), "x.scale: x is F32: must not have a scale"),
        (put("gain", reals([1])), "gain: gain.scale is there too: must be one of the two"),
        (
            both(drop("gain.scale"), put("gain", reals([1, 2]))),
            "gain: shape [2]: must be [1]",
        ),
        (
            both(drop("gain.scale"), put("gain", ints([1]))),
            "gain: dtype I32: must be F32 or F16 or BF16",
        ),
        *(
            (
                both(drop("gain.scale"), put("gain", reals([value]))),
                f"gain: {value}: must be finite and not negative",
            )
            for value in (-1.0, float("nan"), float("inf"))
        ),
        (put("bias", np.zeros(K, f32)), "bias: dtype F32: must be I32"),
        (
            put("bias", np.zeros(K + 1, i32)),
            "bias: shape (6,): must be [k] with k = 5 as in weight",
        ),
        (
            put("bias", np.zeros((1, K), i32)),
            "bias: shape (1, 5): must be [k] with k = 5 as in weight",
        ),
        (put("seed", np.zeros(1, np.int64)), "seed: dtype I64: must be I32"),
        (put("step", np.zeros(2, i32)), "step: shape [2]: must be [1]"),
        (put("H.amax", np.zeros(1, np.int64)), "H.amax: H must be in `delayed` to have a record"),
        (
            both(say("delayed", "H"), put("H.amax", np.zeros(1, i32))),
            "H.amax: dtype I32: must be I64",
        ),
        (
            both(say("delayed", "H"), put("H.amax", np.array([-1]))),
            "H.amax: -1: must be from 0 to 140737488355328",
        ),
        (
            both(say("delayed", "H"), put("H.amax", np.array([(1 << 47) + 1]))),
            "H.amax: 140737488355329: must be from 0 to 140737488355328",
        ),
        (say("want_dx", "yes"), "metadata want_dx = 'yes': must be 0 or 1"),
        (say("bits", "12"), "metadata bits = '12': must be 8 or 16"),
        (say("bits.H", "4"), "metadata bits.H = '4': must be 8 or 16"),
        (
            say("bits.z", "8"),
            "metadata bits.z: unknown tensor 'z': must be among "
            "x, weight, lora_A, lora_B, dy, H, Y, dH, dX",
        ),
        (say("bits.x", "16"), "metadata bits.x = 16: x is stored as int8"),
        (say("bits.dX", "16"), "bits: names dX: needs want_dx = 1"),
        (
            say("delayed", "H,Q"),
            "metadata delayed: unknown tensor 'Q': must be among H, Y, dH, dX",
        ),
        (
            say("stochastic", "h"),
            "metadata stochastic: unknown tensor 'h': must be among H, Y, dH, dX",
        ),
        (
            say("stochastic", "H,"),
            "metadata stochastic: unknown tensor '': must be among H, Y, dH, dX",
        ),
        (say("delayed", "dX"), "delayed: names dX: needs want_dx = 1"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, change, message):
    tensors, metadata = integer_file(), {}
    change(tensors, metadata)
    path = saved(tmp_path / "bad.safetensors", tensors, metadata)
    with pytest.raises(LayerFileError) as caught:
        load_layer(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("gain", reals([1])), "gain: must not be there without lora_A and lora_B"),
        (put("gain.scale", ints([32768, 0])), "gain.scale: must not be there without lora_A and "
         "lora_B"),
        (put("lora_B.scale", ints([32768, 0])), "lora_B.scale: must not be there without lora_A "
         "and lora_B"),
        (put("H.amax", np.zeros(1, np.int64)), "H.amax: must not be there without lora_A and "
         "lora_B"),
        (say("bits.lora_A", "8"), "metadata bits.lora_A: there is no lora_A"),
        (both(drop("dy"), drop("dy.scale"), say("bits.dy", "8")), "metadata bits.dy: there is no "
         "dy"),
        (both(drop("dy"), drop("dy.scale"), say("want_dx", "1")), "dy: missing tensor: must be "
         "there with want_dx = 1"),
        (drop("dy"), "dy: missing tensor"),
        (drop("dy.scale"), "dy.scale: missing tensor"),
        (say("delayed", "H"), "delayed: names H: needs lora_A and lora_B"),
        (put("dy.scale", ints([0, 0])), "dy.scale: the scale of dy must not be zero"),
        (put("lora_A", np.zeros((R, D), np.int8)), "lora_A.scale: missing tensor"),
        (
            both(put("lora_A", np.zeros((R, D), f32))),
            "lora_B: missing tensor",
        ),
    ],
)  # fmt: skip
def test_bad_frozen_files_are_refused_in_one_line(tmp_path, change, message):
    tensors, metadata = frozen_file(integer_file()), {}
    change(tensors, metadata)
    path = saved(tmp_path / "bad.safetensors", tensors, metadata)
    with pytest.raises(LayerFileError) as caught:
        load_layer(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_finite_are_refused(tmp_path, name, bad, dtype):
    tensors = float_file(dtype)
    tensors[name][0, 1] = bad
    path = saved(tmp_path / "a", tensors)
    with pytest.raises(LayerFileError) as caught:
        load_layer(path)
    total = tensors[name].size
    assert str(caught.value) == (
        f"{path}: {name}: 1 of {total} values are NaN or infinite: must be finite"
    )


def test_signalling_nan_is_refused_without_a_warning(tmp_path):
    tensors = float_file()
    tensors["x"].view(np.uint32)[0, 0] = 0x7F800001
    with pytest.raises(LayerFileError, match="x: 1 of 24 values are NaN or infinite"):
        load_layer(saved(tmp_path / "a", tensors))


def test_broken_files_are_refused_in_one_line(tmp_path):
    whole = saved(tmp_path / "whole", integer_file()).read_bytes()
    path = tmp_path / "broken"
    cuts = [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]
    contents = [whole[:cut] for cut in cuts]
    contents += [whole + b"x", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{}\n"]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(LayerFileError) as caught:
            load_layer(path)
        assert str(caught.value).startswith(f"{path}: not a complete safetensors file: ")
        assert "\n" not in str(caught.value)
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(LayerFileError, match="x: missing tensor"):
        load_layer(path)


def test_unreadable_paths_are_refused(tmp_path):
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "none" / "below", "No such file or directory"),
    ):
        with pytest.raises(LayerFileError) as caught:
            load_layer(path)
        assert str(caught.value) == f"{path}: cannot be read: {reason}"
    assert issubclass(LayerFileError, ValueError)


# Writing --------------------------------------------------------------------------------------


def full_layer() -> Layer:
    rng = np.random.default_rng(SEED)
    tensors = {
        name: rng.integers(-9000, 9000, shape).astype(np.int16 if name == "x" else np.int8)
        for name, shape in SHAPES.items()
    }
    return Layer(
        name="full",
        x=tensors["x"],
        weight=tensors["weight"],
        lora_A=tensors["lora_A"],
        lora_B=tensors["lora_B"],
        dy=tensors["dy"],
        scales={name: Scale(40000, -i) for i, name in enumerate(SHAPES)},
        gain=Scale(50000, -1),
        bias=rng.integers(-100, 100, K).astype(np.int32),
        want_dx=True,
        delayed=frozenset({"Y", "dX"}),
        stochastic=frozenset({"H"}),
        bits={"dX": 16, "H": 8},
        amax={"Y": 10},
        seed=-3,
        step=4,
    )


def test_layer_survives_a_round_trip(tmp_path):
    layer = full_layer()
    write_layer(tmp_path / "a", layer, {"about": "a test"})
    assert same(load_layer(tmp_path / "a"), layer)
    with safe_open(tmp_path / "a", "np") as file:
        assert file.metadata()["about"] == "a test"
    bare = replace(layer, bias=None, amax={}, bits={}, delayed=frozenset(), stochastic=frozenset())
    write_layer(tmp_path / "b", bare)
    assert same(load_layer(tmp_path / "b"), bare)


def test_result_as_the_library_reads_it(tmp_path):
    layer = full_layer()
    result = run_layer(layer)
    path = tmp_path / "out.safetensors"
    write_result(path, result)
    tensors = load_file(path)
    names = {"H", "Y", "Y_acc", "dH", "dA", "dB", "dX"}
    assert set(tensors) == names | {f"{name}.scale" for name in names} | {"Y.amax", "dX.amax"}
    for name in names:
        assert tensors[name].dtype == result.tensors[name].dtype
        assert np.array_equal(tensors[name], result.tensors[name])
        assert tensors[f"{name}.scale"].dtype == np.int32
        assert tuple(tensors[f"{name}.scale"]) == result.scales[name]
    assert tensors["Y_acc"].dtype == np.int64
    assert tensors["Y.amax"].dtype == np.int64
    assert tensors["Y.amax"].tolist() == [result.amax["Y"]]
    with safe_open(path, "np") as file:
        assert file.metadata() == {"sticky": "clip_delayed"}
    result.sticky |= {"scale_range", "acc_sat"}
    write_result(path, result)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"sticky": "acc_sat,clip_delayed,scale_range"}
    write_result(path, replace(result, sticky=set()))
    with safe_open(path, "np") as file:
        assert file.metadata() == {"sticky": ""}


def test_bytes_depend_on_the_values_alone(tmp_path):
    result = run_layer(full_layer())
    write_result(tmp_path / "a", result)
    shuffled = replace(
        result,
        tensors={n: np.asfortranarray(t) for n, t in reversed(result.tensors.items())},
        scales=dict(reversed(result.scales.items())),
        amax=dict(reversed(result.amax.items())),
    )
    write_result(tmp_path / "b", shuffled)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0  # tensors are aligned
    text = {"b": "2", "a": "1", "c": "3"}
    save_tensors(tmp_path / "c", {}, text)
    save_tensors(tmp_path / "d", {}, dict(reversed(text.items())))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "d").read_bytes()


def test_writing_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old")
    old_mask = os.umask(0o022)
    try:
        write_result(path, run_layer(full_layer()))
    finally:
        os.umask(old_mask)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert load_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path, monkeypatch, step, error):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file is beside it
        raise error

    monkeypatch.setattr(layerfile.os, step, fail)
    result = run_layer(full_layer())
    wanted = LayerFileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as caught:
        write_result(path, result)
    if wanted is LayerFileError:
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert path.read_bytes() == b"old"


def test_unwritable_outputs_are_refused(tmp_path):
    result = run_layer(full_layer())
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "must be a regular file"),
        (tmp_path / "pipe", "must be a regular file"),
        (tmp_path / "none" / "out", "No such file or directory"),
        (tmp_path / "file" / "out", "Not a directory"),
    ):
        with pytest.raises(LayerFileError) as caught:
            write_result(path, result)
        assert str(caught.value) == f"{path}: cannot be written: {reason}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "pipe"]


# The shipped example --------------------------------------------------------------------------


def test_shipped_example_is_what_its_script_makes(tmp_path):
    write_sd15_layer(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == EXAMPLE.read_bytes(), f"seed {SD15_SEED}"
    write_sd15_layer(tmp_path / "other", SD15_SEED + 1)
    assert (tmp_path / "other").read_bytes() != EXAMPLE.read_bytes()


def test_shipped_example_is_a_real_shape_with_realistic_spread():
    layer = load_layer(EXAMPLE)
    assert same(layer, sd15_layer())
    assert (layer.batch, layer.inputs, layer.outputs, layer.rank) == (77, 768, 320, 4)
    assert layer.want_dx
    assert layer.operand("lora_B").any()
    assert EXAMPLE.stat().st_size < 1 << 20
    for name in ("x", "weight"):
        values = getattr(layer, name).astype(np.float64)
        kurtosis = ((values - values.mean()) ** 4).mean() / values.var() ** 2
        assert kurtosis > 4  # a Gaussian has 3
    result = run_layer(layer)
    assert result.sticky == set()
    assert all(tensor.any() for tensor in result.tensors.values())
