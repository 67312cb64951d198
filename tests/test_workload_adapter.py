"""Workloads from files of adapters: three namings, shared inputs, files that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from systolora_sim.adapter_names import layer_names
from systolora_sim.workload import Workload, WorkloadError, from_adapter, state

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
OTHER = "up_blocks.1.attentions.2.transformer_blocks.0"
#: (d, k) of each layer.
LAYERS = {
    f"{BLOCK}.attn1.to_q": (32, 32),
    f"{BLOCK}.attn1.to_k": (32, 32),
    f"{BLOCK}.attn1.to_v": (32, 32),
    f"{BLOCK}.attn1.to_out.0": (32, 32),
    f"{BLOCK}.attn2.to_q": (32, 32),
    f"{BLOCK}.attn2.to_k": (24, 32),
    f"{BLOCK}.attn2.to_v": (24, 32),
    f"{OTHER}.attn2.to_k": (24, 64),
    f"{OTHER}.attn1.to_k": (64, 64),
}
RANK = 4

Shapes = dict[str, tuple[int, ...]]


def shapes(scheme: str, layers: dict[str, tuple[int, int]] = LAYERS) -> Shapes:
    names = layer_names(layers, scheme, {})
    made: Shapes = {}
    for layer, (d, k) in layers.items():
        made[names[layer]["lora_A"]] = (RANK, d)
        made[names[layer]["lora_B"]] = (k, RANK)
        if scheme == "kohya":
            made[names[layer]["alpha"]] = ()
    return made


def saved(folder: Path, held: Shapes) -> Path:
    path = folder / "adapter.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in held.items()}, path)
    return path


def groups(workload: Workload) -> set[frozenset[str]]:
    """Sets of layers with one input, each by what its name ends with."""
    made: dict[str, set[str]] = {}
    for layer in workload.layers:
        words = layer.name.replace(".", "_").split("transformer_blocks_0_")
        place = "other" if "up_blocks" in words[0] else "block"
        made.setdefault(layer.input, set()).add(f"{place}_{words[1]}")
    return {frozenset(names) for names in made.values()}


@pytest.mark.parametrize("scheme", ["peft", "diffusers", "kohya"])
def test_the_three_namings(tmp_path, scheme):
    workload = from_adapter(saved(tmp_path, shapes(scheme)), 16, text_rows=7)
    assert (workload.name, workload.rank) == ("adapter", RANK)
    assert sorted((layer.d, layer.k) for layer in workload.layers) == sorted(LAYERS.values())
    assert groups(workload) == {
        frozenset({"block_attn1_to_q", "block_attn1_to_k", "block_attn1_to_v"}),
        frozenset({"block_attn1_to_out_0"}),
        frozenset({"block_attn2_to_q"}),
        frozenset({"block_attn2_to_k", "block_attn2_to_v", "other_attn2_to_k"}),
        frozenset({"other_attn1_to_k"}),
    }
    for layer in workload.layers:
        text = layer.d == 24
        assert (layer.rows, layer.dx) == ((7, False) if text else (16, True))
        assert layer.constant == text
    assert workload.rank is not None
    assert state(workload, rank=workload.rank, batch=2).layers.keys() == {
        layer.name for layer in workload.layers
    }


def test_language_models_and_joint_attention(tmp_path):
    held = {
        "model.layers.0.self_attn.q_proj": (32, 32),
        "model.layers.0.self_attn.v_proj": (32, 8),
        "model.layers.1.self_attn.q_proj": (32, 32),
        "model.layers.0.mlp.gate_proj": (32, 80),
        "model.layers.0.mlp.up_proj": (32, 80),
        "model.layers.0.mlp.down_proj": (80, 32),
        "decoder.layers.0.encoder_attn.q_proj": (32, 32),
        "decoder.layers.0.encoder_attn.k_proj": (32, 32),
        "decoder.layers.1.encoder_attn.v_proj": (32, 32),
        "transformer_blocks.0.attn.to_q": (32, 32),
        "transformer_blocks.0.attn.add_q_proj": (32, 32),
        "transformer_blocks.0.attn.add_k_proj": (32, 32),
        "transformer_blocks.0.attn.to_add_out": (32, 32),
    }
    workload = from_adapter(saved(tmp_path, shapes("peft", held)), 16, text_rows=7)
    found: dict[str, list[str]] = {}
    for layer in workload.layers:
        found.setdefault(layer.input, []).append(layer.name)
    shared = sorted(sorted(names) for names in found.values() if len(names) > 1)
    names = sorted(held)
    assert shared == [
        [name for name in names if "encoder_attn" in name and "q_proj" not in name],
        ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"],
        ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"],
        ["transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.add_q_proj"],
    ]
    few = {layer.name.split(".")[-1] for layer in workload.layers if layer.rows == 7}
    assert few == {"k_proj", "v_proj", "add_q_proj", "add_k_proj", "to_add_out"}
    assert {layer.name for layer in workload.layers if not layer.dx} == set(shared[0])
    assert {layer.rows for layer in from_adapter(tmp_path / "adapter.safetensors", 5).layers} == {5}


def test_a_convolution_of_1_x_1_is_a_linear_layer(tmp_path):
    held: Shapes = {
        "lora_unet_proj_in.lora_down.weight": (RANK, 20, 1, 1),
        "lora_unet_proj_in.lora_up.weight": (10, RANK, 1, 1),
    }
    (layer,) = from_adapter(saved(tmp_path, held), 4).layers
    assert (layer.d, layer.k) == (20, 10)


def test_only_the_header_is_read(tmp_path):
    """A file of 16 GiB, of which nearly all is a hole."""
    path = saved(tmp_path, {"a.lora_A.weight": (4, 8), "a.lora_B.weight": (16, 4)})
    content = path.read_bytes()
    big = content.replace(b'"F32"', b'"F64"')
    d = (1 << 34) // (8 * 4) - 16
    length = int.from_bytes(content[:8], "little")
    header = big[8 : 8 + length].replace(b"[4,8]", b"[4,%d]" % d)
    header = header.replace(b"[0,128]", b"[0,%d]" % (32 * d))
    header = header.replace(b"[128,384]", b"[%d,%d]" % (32 * d, 32 * d + 512))
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 32 * d + 512)
    with pytest.raises(WorkloadError) as caught:
        from_adapter(path, 4)
    assert str(caught.value) == f"{path}: a.lora_A.weight: d: {d}: must be from 1 to 131071"


A, B = "unet.a.lora_A.weight", "unet.a.lora_B.weight"


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({A: (4, 8)}, f"{A}: lora_B of its layer is missing"),
        ({A: (4, 8), B: (6, 3)}, f"{B}: shape [6, 3]: must be [k, r] with r = 4 as in {A}"),
        ({A: (4, 8), B: (6,)}, f"{B}: shape [6]: must be 2-D, and no size 0"),
        ({A: (4, 0), B: (6, 4)}, f"{A}: shape [4, 0]: must be 2-D, and no size 0"),
        ({A: (4, 8, 3, 3), B: (6, 4, 1, 1)}, f"{A}: shape [4, 8, 3, 3]: belongs to a convolution"),
        ({A: (4, 8), B: (6, 4), "x": (2, 2)}, "x: unknown tensor: no name of a LoRA adapter"),
        ({A: (4, 8), B: (6, 4), "unet.a.dora_scale": (6,)}, "unet.a.dora_scale: belongs to DoRA"),
        (
            {A: (4, 8), B: (6, 4), "b.lora_A.weight": (2, 8), "b.lora_B.weight": (6, 2)},
            f"ranks 2 (b.lora_A.weight), 4 ({A}): must be one for all layers",
        ),
        (
            {A: (4, 8), B: (6, 4), "unet.a.lora.down.weight": (4, 8)},
            f"{A}: unet.a.lora.down.weight is lora_A of the same layer: must be one",
        ),
        ({}, "0 layers: must be from 1 to 4096"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, held, message):
    path = saved(tmp_path, held)
    with pytest.raises(WorkloadError) as caught:
        from_adapter(path, 4)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_no_file_and_no_rows(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(WorkloadError, match="cannot be read: No such file or directory"):
        from_adapter(path, 4)
    path.write_bytes(b"nothing of that kind")
    with pytest.raises(WorkloadError, match="not a complete safetensors file"):
        from_adapter(path, 4)
    with pytest.raises(WorkloadError, match="rows: 0: must be from 1 to 131071"):
        from_adapter(path, 0)
    with pytest.raises(WorkloadError, match="text_rows: -1: must be from 1 to 131071"):
        from_adapter(path, 4, -1)
