"""What the PyTorch wrapper refuses, and what it shows instead of passing over it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import nn  # noqa: E402

from systolora_sim.layer import LayerError  # noqa: E402
from systolora_sim.layerfile import LayerFileError  # noqa: E402
from systolora_sim.torch import Recipe, quantize_lora  # noqa: E402
from torch_nets import batches, lora_net, masters_of, plain_net  # noqa: E402

SEED = 20261


def loss_of(net: Any, x: Any) -> Any:
    return (net(x) ** 2).mean()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam': must be None or one of sgd, momentum, lion"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": 0.0}, "lr"),
        ({"beta": 2.0, "optimizer": "momentum"}, "beta = 2.0: must be from 0 to 1"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0"),
        ({"bits": {"z": 8}}, "bits: unknown tensor 'z'"),
        ({"bits": {"x": 4}}, "bits.x: 4: must be 8 or 16"),
        ({"delayed": {"x"}}, "delayed: unknown tensor 'x': must be among H, Y, dH, dX"),
        ({"stochastic": {"dA"}}, "stochastic: unknown tensor 'dA'"),
        ({"seed": 1 << 31}, "seed: 2147483648: must be from"),
    ],
)
def test_recipes(fields, message):
    with pytest.raises(LayerError) as caught:
        Recipe(**fields)
    assert message in str(caught.value)


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)


def conv_net() -> Any:
    return get_peft_model(Picture(), LoraConfig(target_modules=["conv", "fc"]))


def two_adapters() -> Any:
    net = lora_net(SEED)
    net.add_adapter("other", LoraConfig(r=2, target_modules=["0", "2"]))
    net.base_model.set_adapter(["default", "other"])
    return net


def merged() -> Any:
    net = lora_net(SEED)
    net.merge_adapter()
    return net


def thawed() -> Any:
    net = lora_net(SEED)
    net.get_submodule("base_model.model.2").base_layer.weight.requires_grad_(True)
    return net


def spoilt(value: float) -> Any:
    net = lora_net(SEED)
    net.get_submodule("base_model.model.2").base_layer.weight.data[1, 2] = value
    return net


def twice() -> Any:
    net = lora_net(SEED)
    quantize_lora(net)
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plain_net(SEED), "the model has no LoRA layers of PEFT: add an adapter first"),
        (conv_net, "conv: Conv2d on Conv2d: must be the LoRA adapter of a linear layer"),
        (lambda: lora_net(SEED, use_dora=True), "0: DoraLinearVariant: must be LoRA without"),
        (lambda: lora_net(SEED, lora_dropout=0.1), "0: lora_dropout: must be 0"),
        (lambda: lora_net(SEED, lora_alpha=-2), "0: scaling -0.66"),
        (lambda: lora_net(SEED, lora_bias=True, target_modules=["0"]), "0: lora_bias: must be off"),
        (two_adapters, "0: active adapters default, other: must be exactly one"),
        (merged, "0: the adapter is merged or disabled"),
        (thawed, "2: the base layer wants a gradient: must be frozen"),
        (lambda: spoilt(float("nan")), "2: weight: 1 of 60 values are NaN or infinite"),
        (lambda: spoilt(float("inf")), "2: weight: 1 of 60 values are NaN or infinite"),
        (twice, "0: is quantized already"),
        (lambda: lora_net(SEED).get_submodule("base_model.model.0"), "is itself a LoRA layer"),
    ],
)
def test_models(make, message):
    net = make()
    before = list(net.modules())
    with pytest.raises(LayerError) as caught:
        quantize_lora(net)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert list(net.modules()) == before


def test_a_directory_that_cannot_be_made(tmp_path):
    file = tmp_path / "file"
    file.touch()
    net = lora_net(SEED)
    before = list(net.modules())
    with pytest.raises(LayerFileError, match="file: cannot be made"):
        quantize_lora(net, record=file)
    assert list(net.modules()) == before


# While it trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(value):
    net = lora_net(SEED)
    handle = quantize_lora(net)
    before = str(handle.state_dict())
    (x,) = batches(SEED, 1)
    bad = x.clone()
    bad[0, 3, 1] = value
    with pytest.raises(LayerError, match="0: x: 1 of 168 values are NaN or infinite"):
        net(bad)
    with pytest.raises(LayerError, match="2: dy: 84 of 84 values are NaN or infinite"):
        (net(x) * value).sum().backward()
    assert str(handle.state_dict()) == before


def test_a_diverging_loss_shows():
    """A learning rate far too large: nothing wraps, masters and sums saturate and say so."""
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe(lr=1e4, rescale=True))
    (x,) = batches(SEED, 1)
    losses = []
    for _ in range(12):
        loss = (net(x) ** 4).sum()
        losses.append(loss.item())
        loss.backward()
        handle.step()
    assert losses == sorted(losses) and losses[-1] > 1e12 * losses[0]
    assert handle.sticky == {
        "0": frozenset({"master_range"}),
        "2": frozenset({"master_range", "acc_sat"}),
    }
    assert handle.zero_gradients["0"] == {"dA", "dB"}  # behind a tanh that has saturated
    for layer in handle.layers.values():
        for parameter in layer.adapters:
            assert torch.isfinite(parameter).all()
    with pytest.raises(LayerError, match="2: dy: 84 of 84 values are NaN or infinite"):
        (net(x) ** 16).sum().backward()


def test_a_saturating_master_is_reported_and_may_be_rescaled():
    xs = batches(SEED, 2)
    scales = {}
    for rescale in (False, True):
        net = lora_net(SEED)
        handle = quantize_lora(net, Recipe(lr=1000.0, rescale=rescale))
        begin = [each.scale.e for each in masters_of(handle.layers["2"])]
        loss_of(net, xs[0]).backward()
        handle.step()
        assert "master_range" in handle.sticky["2"]
        masters = masters_of(handle.layers["2"])
        scales[rescale] = [each.scale.e - e for each, e in zip(masters, begin, strict=True)]
        if not rescale:
            assert max(np.abs(each.w).max() for each in masters) == 32767
        loss_of(net, xs[1]).backward()  # goes on
        handle.step()
    assert scales[False] == [0, 0]
    assert max(scales[True]) == 1


def test_zero_gradients_are_reported():
    net = lora_net(SEED, zero_b=True)
    handle = quantize_lora(net, Recipe(lr=0.5))
    masters = [masters_of(layer) for layer in handle.layers.values()]
    (x,) = batches(SEED, 1)
    (net(x) * 0).sum().backward()
    assert set(handle.zero_gradients.values()) == {frozenset({"dA", "dB"})}
    handle.step()
    for pair, layer in zip(masters, handle.layers.values(), strict=True):
        for before, after in zip(pair, masters_of(layer), strict=True):
            np.testing.assert_array_equal(before.w, after.w)
    # With a lora_B of zeros lora_A has no gradient yet.
    loss_of(net, x).backward()
    assert set(handle.zero_gradients.values()) == {frozenset({"dA"})}
    handle.step()
    loss_of(net, x).backward()
    assert set(handle.zero_gradients.values()) == {frozenset()}


def test_steps_out_of_order():
    net = lora_net(SEED)
    handle = quantize_lora(net)
    (x,) = batches(SEED, 1)
    with pytest.raises(LayerError, match=r"step: no layer has a gradient"):
        handle.step()
    loss_of(net, x).backward()
    with pytest.raises(LayerError, match="2: a second backward pass before step"):
        loss_of(net, x).backward()
    handle.zero_grad()
    loss_of(net, x).backward()
    handle.step()
    with pytest.raises(LayerError, match="no layer has a gradient"):
        handle.step()
    handle.restore()
    floats = quantize_lora(net, Recipe(optimizer=None))
    with pytest.raises(LayerError, match="step: the recipe has no optimizer"):
        floats.step()
    with pytest.raises(LayerError, match="optimizer: the recipe has none"):
        floats.lr = 1.0


def optimizer_of_torch(net: Any) -> None:
    trained = [each for each in net.parameters() if each.requires_grad]
    loss_of(net, batches(SEED, 1)[0]).backward()
    torch.optim.SGD(trained, lr=1.0).step()


def load_weights(net: Any) -> None:
    net.load_state_dict(lora_net(SEED + 1).state_dict())


def other_scale(net: Any) -> None:
    net.get_submodule("base_model.model.0").set_scale("default", 0.5)


def disabled(net: Any) -> None:
    net.base_model.disable_adapter_layers()


def other_adapter(net: Any) -> None:
    net.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    net.set_adapter("other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (optimizer_of_torch, "lora_A: was changed from outside"),
        (load_weights, "0: weight: was changed from outside"),
        (other_scale, "0: scaling: was changed from 2.0 to 1.0"),
        (disabled, "0: adapter 'default' is not the active one any more"),
        (other_adapter, "0: adapter 'default' is not the active one any more"),
    ],
)
def test_changes_from_outside(change, message):
    net = lora_net(SEED)
    quantize_lora(net)
    change(net)
    with pytest.raises(LayerError) as caught:
        net(batches(SEED, 1)[0])
    assert message in str(caught.value)


def test_merging_while_quantized():
    net = lora_net(SEED)
    quantize_lora(net)
    with pytest.raises(LayerError, match=r"0: merge: restore\(\) of the handle must come first"):
        net.merge_adapter()


def test_a_bias_that_does_not_fit():
    net = lora_net(SEED)
    handle = quantize_lora(net)
    with pytest.raises(LayerError, match="0: bias: does not fit 32 bits"):
        handle.layers["0"](1e-12 * batches(SEED, 1)[0])
