"""Adapters with the names of PEFT, diffusers and kohya's scripts: in, through training, and out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from systolora.cli import main
from systolora_sim import calibrate
from systolora_sim.adapter_names import Part, layer_names, parse_name
from systolora_sim.adapters import convert_adapters
from systolora_sim.layerfile import LayerFileError
from systolora_sim.numerics import Scale

SEED = 616
BLOCK = "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
MODULE = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k"
R, D, K = 4, 12, 8

Tensors = dict[str, np.ndarray]


def matrices(*modules: tuple[str, str], dtype: Any = np.float32) -> Tensors:
    """lora_A and lora_B under those names, with values that int16 masters do not hold exactly."""
    rng = np.random.default_rng(SEED)
    tensors: Tensors = {}
    for a, b in modules:
        tensors[a] = rng.normal(size=(R, D)).astype(dtype)
        tensors[b] = rng.normal(size=(K, R)).astype(dtype)
    return tensors


def pair(stem: str, endings: Sequence[str]) -> tuple[str, str]:
    return f"{stem}.{endings[0]}.weight", f"{stem}.{endings[1]}.weight"


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as file:
        return file.metadata() or {}


#: (names in the file, the layer they become).
CASES = {
    "peft": (
        pair(f"base_model.model.{BLOCK}.to_k", ("lora_A", "lora_B")),
        f"{BLOCK}.to_k",
    ),
    "peft with the adapter's name": (
        pair("base_model.model.model.layers.0.q_proj", ("lora_A.default", "lora_B.default")),
        "model.layers.0.q_proj",
    ),
    "diffusers": (
        pair(f"unet.{BLOCK}.to_k", ("lora_A", "lora_B")),
        f"unet.{BLOCK}.to_k",
    ),
    "diffusers before PEFT": (
        pair(f"unet.{BLOCK}.to_k", ("lora.down", "lora.up")),
        f"unet.{BLOCK}.to_k",
    ),
    "diffusers' text encoder": (
        pair("text_encoder.a.q_proj", ("lora_linear_layer.down", "lora_linear_layer.up")),
        "text_encoder.a.q_proj",
    ),
    "diffusers' processors": (
        pair(f"unet.{BLOCK}.processor.to_out_lora", ("down", "up")),
        f"unet.{BLOCK}.to_out.0",
    ),
    "diffusers' processors without the model": (
        pair(f"{BLOCK}.processor.to_v_lora", ("down", "up")),
        f"{BLOCK}.to_v",
    ),
    "kohya": (pair(MODULE, ("lora_down", "lora_up")), MODULE),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_import_and_export_in_each_scheme(tmp_path, capsys, case, dtype):
    names, layer = CASES[case]
    tensors = matrices(names, dtype=dtype)
    path, masters, out = (tmp_path / name for name in ("in", "masters", "out"))
    assert main(["adapter", "import", str(saved(path, tensors)), "-o", str(masters)]) == 0
    got = load_file(masters)
    assert set(got) == {
        f"{layer}/lora_{x}.master{suffix}" for x in "AB" for suffix in ("", ".scale")
    }
    for role, name in zip(("lora_A", "lora_B"), names, strict=True):
        scale = Scale(*got[f"{layer}/{role}.master.scale"].tolist())
        assert scale == calibrate.master_scale(tensors[name])
        wanted = calibrate.quantize_with_scale(tensors[name], 16, scale)
        assert np.array_equal(got[f"{layer}/{role}.master"], wanted)
    # Out again: the same names, float32, within the masters' rounding.
    assert main(["adapter", "export", str(masters), "-o", str(out)]) == 0
    back = load_file(out)
    assert set(back) == set(tensors) and metadata(out) == {"format": "pt"}
    for name, array in back.items():
        assert array.dtype == np.float32
        unit = calibrate.to_float(calibrate.master_scale(tensors[name]))
        assert np.abs(array - tensors[name].astype(np.float64)).max() <= 0.5 * unit
    # As integers with scales, which come back as the very same masters.
    assert main(["adapter", "export", str(masters), "-o", str(out), "--form", "int16"]) == 0
    integers = load_file(out)
    assert set(integers) == {f"{name}{suffix}" for name in names for suffix in ("", ".scale")}
    assert main(["adapter", "import", str(out), "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == masters.read_bytes()
    assert capsys.readouterr() == ("", "")


def test_bfloat16(tmp_path):
    names, layer = CASES["kohya"]
    tensors = matrices(names, dtype=ml_dtypes.bfloat16)
    header, data = {}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "in").write_bytes(len(text).to_bytes(8, "little") + text + data)
    convert_adapters(tmp_path / "in", tmp_path / "out", "float32", scheme="plain")
    got = load_file(tmp_path / "out")
    assert np.array_equal(got[f"{layer}/lora_A"], tensors[names[0]].astype(np.float32))


def kohya_file(alpha: Any = 2.0) -> Tensors:
    tensors = matrices(CASES["kohya"][0])
    return tensors | {f"{MODULE}.alpha": np.array(alpha, np.float32)}


def test_alpha_becomes_the_gain_and_comes_back(tmp_path, capsys):
    path = saved(tmp_path / "in", kohya_file(3.0))
    convert_adapters(path, tmp_path / "masters", "int16", scheme="plain")
    got = load_file(tmp_path / "masters")
    assert tuple(got[f"{MODULE}/gain.scale"]) == calibrate.from_float(3 / R)
    convert_adapters(path, tmp_path / "plain", "float32", scheme="plain")
    assert load_file(tmp_path / "plain")[f"{MODULE}/gain"].tolist() == [0.75]
    for source in ("masters", "plain"):
        convert_adapters(tmp_path / source, tmp_path / "out", "float32")
        back = load_file(tmp_path / "out")
        assert back[f"{MODULE}.alpha"].shape == () and back[f"{MODULE}.alpha"] == 3.0
        assert set(back) == set(kohya_file())
    # Where the file does not tell alpha, the option does; where it does, the file wins.
    args = ["-o", str(tmp_path / "out"), "--alpha", "6"]
    peft = saved(tmp_path / "peft", matrices(CASES["peft"][0]))
    assert main(["adapter", "import", str(peft), *args]) == 0
    got = load_file(tmp_path / "out")
    assert tuple(got[f"{CASES['peft'][1]}/gain.scale"]) == calibrate.from_float(1.5)
    assert capsys.readouterr() == ("", "")
    assert main(["adapter", "import", str(path), *args]) == 0
    assert capsys.readouterr().err == (
        f"systolora: note: {path}: --alpha 6 is not used: the file tells it of every layer\n"
    )
    assert tuple(load_file(tmp_path / "out")[f"{MODULE}/gain.scale"]) == calibrate.from_float(0.75)
    # Whoever changes the gain beside the masters changes alpha.
    changed = load_file(tmp_path / "masters")
    changed[f"{MODULE}/gain.scale"] = np.array(calibrate.from_float(0.5), np.int32)
    save_file(changed, tmp_path / "masters", metadata(tmp_path / "masters"))
    convert_adapters(tmp_path / "masters", tmp_path / "out", "float32")
    assert load_file(tmp_path / "out")[f"{MODULE}.alpha"] == 2.0


def test_kohya_without_alpha_stays_without(tmp_path):
    tensors = matrices(CASES["kohya"][0])
    convert_adapters(saved(tmp_path / "in", tensors), tmp_path / "m", "int16", scheme="plain")
    convert_adapters(tmp_path / "m", tmp_path / "out", "float32")
    assert set(load_file(tmp_path / "out")) == set(tensors)


def test_other_schemes_are_other_names_for_the_same_values(tmp_path, capsys):
    """float32 to float32: nothing is rounded, and the way back gives the first file."""
    source = saved(tmp_path / "kohya", kohya_file())
    a, b = (kohya_file()[name] for name in CASES["kohya"][0])
    notes = {
        "peft": "alpha is 2: the file does not tell it, say lora_alpha in adapter_config.json",
        "diffusers": "alpha is 2: the file does not tell it, say lora_alpha where the adapter is "
        "loaded",
    }
    for scheme, stem in (
        ("peft", f"base_model.model.{BLOCK}.to_k"),
        ("diffusers", f"unet.{BLOCK}.to_k"),
    ):
        out = tmp_path / scheme
        command = ["adapter", "export", str(source), "-o", str(out), "--format", scheme]
        assert main(command) == 0
        got = load_file(out)
        assert set(got) == set(pair(stem, ("lora_A", "lora_B")))
        assert np.array_equal(got[f"{stem}.lora_A.weight"], a)
        assert np.array_equal(got[f"{stem}.lora_B.weight"], b)
        assert capsys.readouterr().err == f"systolora: note: {notes[scheme]}\n"
        command = ["adapter", "export", str(out), "-o", str(tmp_path / "back")]
        assert main([*command, "--format", "kohya", "--alpha", "2"]) == 0
        back = load_file(tmp_path / "back")
        assert set(back) == set(kohya_file())
        assert all(np.array_equal(back[name], array) for name, array in kohya_file().items())
    # An alpha that is the rank is what diffusers takes anyway.
    path = saved(tmp_path / "usual", kohya_file(float(R)))
    convert_adapters(path, tmp_path / "out", "float32", scheme="diffusers", note=pytest.fail)


def test_names_of_several_parts_of_a_model(tmp_path):
    modules = {
        f"unet.{BLOCK}.to_k": f"lora_unet_{BLOCK.replace('.', '_')}_to_k",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj": (
            "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
        ),
        "text_encoder_2.text_model.encoder.layers.3.mlp.fc1": (
            "lora_te2_text_model_encoder_layers_3_mlp_fc1"
        ),
        "unet.mid_block.attentions.0.transformer_blocks.2.ff.net.0.proj": (
            "lora_unet_mid_block_attentions_0_transformer_blocks_2_ff_net_0_proj"
        ),
        "unet.up_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0": (
            "lora_unet_up_blocks_1_attentions_0_transformer_blocks_1_attn1_to_out_0"
        ),
    }
    tensors = matrices(*(pair(stem, ("lora_A", "lora_B")) for stem in modules))
    path = saved(tmp_path / "diffusers", tensors)
    convert_adapters(path, tmp_path / "kohya", "float32", scheme="kohya", alpha=1.0)
    got = load_file(tmp_path / "kohya")
    endings = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(got) == {f"{module}.{end}" for module in modules.values() for end in endings}
    convert_adapters(tmp_path / "kohya", tmp_path / "back", "float32", scheme="diffusers")
    back = load_file(tmp_path / "back")
    assert set(back) == set(tensors)
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    # One text encoder alone has no number.
    names = layer_names(["text_encoder.text_model.encoder.layers.0.mlp.fc2"], "kohya", {})
    (only,) = names.values()
    assert only["lora_A"] == "lora_te_text_model_encoder_layers_0_mlp_fc2.lora_down.weight"


def test_names_go_through_training(tmp_path, capsys):
    """Import, run, resume, export: names and alpha are those of the file at the beginning."""
    rng = np.random.default_rng(SEED)
    masters, layers, state = (tmp_path / name for name in ("masters", "layers", "state"))
    source = saved(tmp_path / "in", kohya_file())
    assert main(["adapter", "import", str(source), "-o", str(masters)]) == 0
    tensors = {
        f"{MODULE}/x": rng.normal(size=(3, D)).astype(np.float32),
        f"{MODULE}/weight": rng.normal(size=(K, D)).astype(np.float32),
        f"{MODULE}/dy": rng.normal(size=(3, K)).astype(np.float32),
    }
    saved(layers, tensors)
    train = ["run", str(layers), "-q", "-o", str(state), "--optimizer", "sgd", "--lr", "0.5"]
    assert main([*train, "--resume", str(masters)]) == 0
    assert json.loads(metadata(state)["adapter"])["alpha"] == {MODULE: 2.0}
    # The gain came with the adapter: one in the layer file gives the same bytes.
    first = state.read_bytes()
    saved(layers, tensors | {f"{MODULE}/gain": np.array([2.0 / R], np.float32)})
    assert main([*train, "--resume", str(masters)]) == 0
    assert state.read_bytes() == first
    assert main([*train, "--resume", str(state)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["adapter", "export", str(state), "-o", str(tmp_path / "out")]) == 0
    got = load_file(tmp_path / "out")
    assert set(got) == set(kohya_file()) and got[f"{MODULE}.alpha"] == 2.0
    trained = load_file(state)
    for role, name in zip(("lora_A", "lora_B"), CASES["kohya"][0], strict=True):
        unit = calibrate.to_float(Scale(*trained[f"{MODULE}/{role}.master.scale"].tolist()))
        exact = trained[f"{MODULE}/{role}.master"] * unit
        assert np.array_equal(got[name], exact.astype(np.float32))
        assert not np.array_equal(got[name], kohya_file()[name])
    # Another gain in the layer file wins, and that is said.
    saved(layers, tensors | {f"{MODULE}/gain": np.array([2.0], np.float32)})
    assert main([*train, "--resume", str(masters)]) == 0
    assert capsys.readouterr().err == (
        f"systolora: note: {masters}: {MODULE}/gain 0.5 is not used: {layers} says 2\n"
    )


def test_a_plain_file_gets_names(tmp_path):
    rng = np.random.default_rng(SEED)
    tensors = {"a.to_q/lora_A": rng.normal(size=(R, D)), "a.to_q/lora_B": rng.normal(size=(K, R))}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    path = saved(tmp_path / "in", tensors | {"a.to_q/gain": np.array([0.5], np.float32)})
    for scheme, stem, endings in (
        ("peft", "base_model.model.a.to_q", ("lora_A.weight", "lora_B.weight")),
        ("diffusers", "unet.a.to_q", ("lora_A.weight", "lora_B.weight")),
        ("kohya", "lora_unet_a_to_q", ("lora_down.weight", "lora_up.weight", "alpha")),
    ):
        convert_adapters(path, tmp_path / "out", "float32", scheme=scheme)
        got = load_file(tmp_path / "out")
        assert set(got) == {f"{stem}.{ending}" for ending in endings}
    assert got["lora_unet_a_to_q.alpha"] == 0.5 * R


def test_what_names_say():
    assert parse_name("a.b.lora_A.x.weight") == Part("diffusers", "a.b", "lora_A")
    assert parse_name("m.alpha") == Part("kohya", "m", "alpha")
    for name in ("lora_A", "a/lora_A", "a/lora_B.master", "weight", "lora_A.weight", "alpha"):
        assert parse_name(name) is None


# Refusing -------------------------------------------------------------------------------------

GOOD = matrices(CASES["kohya"][0])
DOWN, UP = CASES["kohya"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {DOWN: np.zeros((R, 3, 3, 3), np.float32)},
            f"{DOWN}: shape [4, 3, 3, 3]: belongs to a convolution: must be the adapter of a "
            "linear layer",
        ),
        ({DOWN: np.zeros(3, np.float32)}, f"{DOWN}: shape [3]: must be 2-D, and no size 0"),
        ({UP: np.zeros((0, R), np.float32)}, f"{UP}: shape [0, 4]: must be 2-D, and no size 0"),
        (
            {UP: np.zeros((K, R + 1), np.float32)},
            f"{UP}: shape [8, 5]: must be [k, r] with r = 4 as in {DOWN}",
        ),
        ({UP: None}, f"{DOWN}: lora_B of its layer is missing"),
        ({"b.alpha": np.array(1, np.float32)}, "b.alpha: lora_A of its layer is missing"),
        (
            {UP: np.full((K, R), np.inf, np.float32)},
            f"{UP}: 32 of 32 values are NaN or infinite: must be finite",
        ),
        (
            {UP: np.zeros((K, R))},
            f"{UP}: dtype F64: must be F32 or F16 or BF16 or I16",
        ),
        ({UP: np.zeros((K, R), np.int16)}, f"{UP}.scale: missing tensor"),
        (
            {UP: np.zeros((K, R), np.int16), f"{UP}.scale": np.zeros(2, np.int32)},
            f"{UP}.scale: the scale must not be zero",
        ),
        (
            {f"{UP}.scale": np.array([32768, 0], np.int32)},
            f"{UP}.scale: {UP} is F32: must not have a scale",
        ),
        (
            {f"{MODULE}.alpha": np.array(-1, np.float32)},
            f"{MODULE}.alpha: -1.0: must be finite and not negative",
        ),
        (
            {f"{MODULE}.alpha": np.zeros(2, np.float32)},
            f"{MODULE}.alpha: shape [2]: must be [1]",
        ),
        (
            {f"{MODULE}.dora_scale": np.zeros(2, np.float32)},
            f"{MODULE}.dora_scale: belongs to DoRA: must be a plain LoRA adapter",
        ),
        (
            {f"{MODULE}.lora_mid.weight": np.zeros((2, 2, 3, 3), np.float32)},
            f"{MODULE}.lora_mid.weight: belongs to a Tucker decomposition: must be a plain LoRA "
            "adapter",
        ),
        (
            {"a.lora_embedding_A": np.zeros((2, 2), np.float32)},
            "a.lora_embedding_A: belongs to an embedding: must be the adapter of a linear layer",
        ),
        ({"x": np.zeros(2, np.float32)}, "x: unknown tensor: no name of a LoRA adapter"),
        (
            {"a/b.lora_down.weight": np.zeros((2, 2), np.float32)},
            "a/b.lora_down.weight: must not have a slash in it",
        ),
        (
            {"a.lora_A.weight": np.zeros((2, 2), np.float32)},
            f"names of diffusers (a.lora_A.weight), kohya ({UP}): must be of one scheme",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, capsys, change, message):
    tensors = {name: array for name, array in (GOOD | change).items() if array is not None}
    path, out = saved(tmp_path / "in", tensors), tmp_path / "out"
    assert main(["adapter", "import", str(path), "-o", str(out)]) == 2
    assert capsys.readouterr() == ("", f"systolora: error: {path}: {message}\n")
    assert not out.exists()


def test_two_adapters_of_one_layer_are_refused(tmp_path):
    stem = "base_model.model.a"
    tensors = matrices(*(pair(stem, (f"lora_A.{x}", f"lora_B.{x}")) for x in ("one", "two")))
    with pytest.raises(LayerFileError) as caught:
        convert_adapters(saved(tmp_path / "in", tensors), tmp_path / "out", "int16")
    assert str(caught.value) == (
        f"{tmp_path / 'in'}: {stem}.lora_A.two.weight: {stem}.lora_A.one.weight is lora_A of the "
        "same layer: must be one"
    )


@pytest.mark.parametrize(
    ("layers", "scheme", "message"),
    [
        (
            ["lora_unet_down_blocks_0_my_layer_to_k"],
            "peft",
            "down_blocks_0_my_layer_to_k: cannot tell dots from underscores at 'my_layer_to_k': "
            "kohya's names keep only underscores",
        ),
        (
            ["unet.a", "text_encoder.a"],
            "peft",
            "parts of the model text_encoder, unet: a file of PEFT is of one",
        ),
        (
            ["unet.a", "a"],
            "diffusers",
            "unet.a.lora_A.weight: 2 layers would have this name",
        ),
        (["a.b", "a_b"], "kohya", "lora_unet_a_b.lora_down.weight: 2 layers would have this name"),
        ([""], "kohya", "the layer has no name: kohya needs one, as <layer>/lora_A"),
    ],
)
def test_layers_without_a_name_in_a_scheme_are_refused(tmp_path, layers, scheme, message):
    tensors: Tensors = {}
    for layer in layers:
        prefix = f"{layer}/" if layer else ""
        tensors[f"{prefix}lora_A"] = np.ones((1, 2), np.float32)
        tensors[f"{prefix}lora_B"] = np.ones((3, 1), np.float32)
    path = saved(tmp_path / "in", tensors)
    with pytest.raises(LayerFileError) as caught:
        convert_adapters(path, tmp_path / "out", "float32", scheme=scheme, alpha=1.0)
    assert str(caught.value) == f"{path}: {message}"
    assert not (tmp_path / "out").exists()


def test_kohya_needs_alpha(tmp_path):
    path = saved(tmp_path / "in", matrices(CASES["peft"][0]))
    with pytest.raises(LayerFileError) as caught:
        convert_adapters(path, tmp_path / "out", "float32", scheme="kohya")
    layer = CASES["peft"][1]
    assert str(caught.value) == (
        f"{path}: {layer}: alpha is not known, kohya's files tell it: give --alpha"
    )


@pytest.mark.parametrize(
    "memory",
    [
        "[]",
        "{",
        '{"format": "zip", "names": {}, "alpha": {}}',
        '{"format": "peft", "names": {"a": 1}, "alpha": {}}',
        '{"format": "peft", "names": {}, "alpha": {"a": -1}}',
        '{"format": "peft", "names": []}',
    ],
)
def test_a_memory_that_is_none_is_refused(tmp_path, memory):
    tensors = {"lora_A": np.ones((1, 2), np.float32), "lora_B": np.ones((3, 1), np.float32)}
    save_file(tensors, tmp_path / "in", {"adapter": memory})
    with pytest.raises(LayerFileError) as caught:
        convert_adapters(tmp_path / "in", tmp_path / "out", "int16")
    assert str(caught.value) == (
        f"{tmp_path / 'in'}: metadata adapter: must be as `systolora adapter import` writes it"
    )


def test_bad_options(tmp_path, capsys):
    path = saved(tmp_path / "in", GOOD)
    with pytest.raises(ValueError, match="format 'zip': must be one of plain, peft, diffusers, "):
        convert_adapters(path, tmp_path / "out", "int16", scheme="zip")
    command = ["adapter", "import", str(path), "-o", str(tmp_path / "out"), "--alpha"]
    for value in ("-1", "inf", "nan"):
        assert main([*command[:-1], f"--alpha={value}"]) == 2
        assert capsys.readouterr().err == (
            f"systolora: error: alpha = {float(value)}: must be finite and not negative\n"
        )
    with pytest.raises(SystemExit):
        main([*command, "1", "--format", "peft"])  # an import is always plain
    assert "--format" in capsys.readouterr().err
