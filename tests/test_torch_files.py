"""Adapter files that PEFT and diffusers write themselves: in, and out again to be loaded."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")

from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

from systolora.cli import main  # noqa: E402
from systolora_sim import calibrate  # noqa: E402
from systolora_sim.adapters import real_values  # noqa: E402
from systolora_sim.torch import Recipe, quantize_lora  # noqa: E402
from torch_nets import batches, lora_net, masters_of, plain_net  # noqa: E402

SEED = 20262
ALPHA = 8.0
LAYERS = 8  # K and V of four cross-attentions


def small_unet() -> Any:
    torch.manual_seed(SEED)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def lora_unet() -> Any:
    unet = small_unet()
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=ALPHA, target_modules=["attn2.to_k", "attn2.to_v"]))
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return unet


def noise_loss(unet: Any) -> Any:
    generator = torch.Generator().manual_seed(SEED)
    x, context = torch.randn(2, 1, 8, 8, generator=generator), torch.randn(2, 3, 12)
    return (unet(x, torch.tensor([3, 500]), encoder_hidden_states=context).sample ** 2).mean()


def run(*words: Any) -> None:
    assert main([str(word) for word in words]) == 0


def check_masters(path: Path, handle: Any, prefix: str = "") -> None:
    """The file has exactly the masters with which the handle's layers begin."""
    got = load_file(path)
    for name, layer in handle.layers.items():
        for tensor, master in zip(("lora_A", "lora_B"), masters_of(layer), strict=True):
            key = f"{prefix}{name}/{tensor}.master"
            np.testing.assert_array_equal(got[key], master.w)
            assert tuple(got[f"{key}.scale"]) == tuple(master.scale)


@pytest.mark.parametrize("command", [("adapter",), ()])
def test_peft(tmp_path, command):
    """PEFT writes, we read what we quantize ourselves; we write, PEFT reads the masters' values."""
    net = lora_net(SEED)
    net.save_pretrained(tmp_path / "peft")
    file, masters = tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "masters"
    run(*command, "import", file, "-o", masters, "--alpha", 6)
    handle = quantize_lora(net, Recipe(lr=0.5))
    check_masters(masters, handle)
    run(*command, "export", masters, "-o", file)
    loaded = PeftModel.from_pretrained(plain_net(SEED), str(tmp_path / "peft"))
    x = batches(SEED, 1)[0]
    handle.restore()
    assert torch.equal(loaded(x), net(x))
    assert sum("lora" in name for name, _ in loaded.named_parameters()) == 4


def test_peft_saves_what_was_trained(tmp_path):
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe(lr=0.5))
    for x in batches(SEED, 3):
        (net(x) ** 2).mean().backward()
        handle.step()
    net.save_pretrained(tmp_path)  # while the layers are quantized
    loaded = PeftModel.from_pretrained(plain_net(SEED), str(tmp_path))
    for name, layer in handle.layers.items():
        for tensor, master in zip(("lora_A", "lora_B"), masters_of(layer), strict=True):
            held = loaded.get_parameter(f"base_model.model.{name}.{tensor}.default.weight")
            np.testing.assert_array_equal(
                held.detach().numpy(), real_values(master.w, master.scale)
            )


def test_diffusers(tmp_path):
    unet = lora_unet()
    handle = quantize_lora(unet, Recipe(lr=0.5))
    assert len(handle.layers) == LAYERS and all(".attn2.to_" in name for name in handle.layers)
    noise_loss(unet).backward()
    handle.step()
    unet.save_lora_adapter(tmp_path / "lora")
    (file,) = (tmp_path / "lora").iterdir()
    # Both choose the scale anew from what was trained.
    run("adapter", "import", file, "-o", tmp_path / "masters", "--alpha", ALPHA)
    handle.restore()
    check_masters(tmp_path / "masters", quantize_lora(unet, Recipe()))
    run("adapter", "export", tmp_path / "masters", "-o", file)
    loaded = small_unet()
    loaded.load_lora_adapter(str(file.parent), prefix=None, weight_name=file.name)
    quantized = {name: each for name, each in unet.named_parameters() if "lora" in name}
    found = {name: each for name, each in loaded.named_parameters() if "lora" in name}
    assert len(found) == 2 * LAYERS
    for (_, one), (_, other) in zip(sorted(quantized.items()), sorted(found.items()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scheme", ["diffusers", "kohya"])
def test_pipelines_of_diffusers_read_our_files(tmp_path, scheme):
    """What a Stable Diffusion pipeline takes from an exported file, alpha too."""
    unet = lora_unet()
    unet.save_lora_adapter(tmp_path / "lora")
    handle = quantize_lora(unet, Recipe(lr=0.5))
    (file,) = (tmp_path / "lora").iterdir()
    run("adapter", "import", file, "-o", tmp_path / "masters", "--alpha", ALPHA)
    out = tmp_path / "out.safetensors"
    run("adapter", "export", tmp_path / "masters", "-o", out, "--format", scheme)
    tensors, alphas, *_ = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(tmp_path), weight_name=out.name, unet_config=unet.config
    )
    found = {}
    for name, tensor in tensors.items():
        path = name.removeprefix("unet.")
        for place, end in (("down", "lora_A"), ("up", "lora_B")):  # as kohya's are translated
            path = re.sub(rf"\.processor\.(to_[kv])_lora\.{place}\.", rf".\1.{end}.", path)
        found[path] = tensor.numpy()
    assert len(found) == 2 * LAYERS
    for name, layer in handle.layers.items():
        for tensor, master in zip(("lora_A", "lora_B"), masters_of(layer), strict=True):
            np.testing.assert_array_equal(
                found[f"{name}.{tensor}.weight"], real_values(master.w, master.scale)
            )
    if scheme == "kohya":
        assert set((alphas or {}).values()) == {ALPHA} and len(alphas or {}) == LAYERS
    gains = {calibrate.to_float(layer.calls.gain) for layer in handle.layers.values()}
    assert gains == {ALPHA / 4}


class Picture(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)


# PEFT takes the bias that it has been asked for as the shard of a matrix.
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.* have invalid shape")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("DoRA", "lora_magnitude_vector: belongs to DoRA: must be a plain LoRA adapter"),
        ("convolution", "conv.lora_A.weight: shape [8, 3, 3, 3]: belongs to a convolution"),
        ("bias", "lora_B.bias: belongs to a bias of lora_B"),
        ("NaN", "lora_B.weight: 1 of 18 values are NaN or infinite: must be finite"),
        ("broken", "not a complete safetensors file"),
    ],
)
def test_files_that_peft_writes_and_the_device_cannot_take(tmp_path, capsys, kind, message):
    options = {"DoRA": {"use_dora": True}, "bias": {"lora_bias": True, "target_modules": ["0"]}}
    if kind == "convolution":
        net: Any = get_peft_model(Picture(), LoraConfig(target_modules=["conv"]))
    else:
        net = lora_net(SEED, **options.get(kind, {}))
    if kind == "NaN":
        net.get_submodule("base_model.model.2").lora_B["default"].weight.data[1, 1] = float("nan")
    net.save_pretrained(tmp_path)
    file, out = tmp_path / "adapter_model.safetensors", tmp_path / "out"
    if kind == "broken":
        file.write_bytes(file.read_bytes()[:-5])
    before = sorted(tmp_path.iterdir())
    for command in (["adapter", "import"], ["import"], ["export"]):
        assert main([*command, str(file), "-o", str(out)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"systolora: error: {file}: ") and error.count("\n") == 1
        assert message in error
    assert sorted(tmp_path.iterdir()) == before
