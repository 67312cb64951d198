"""The PyTorch wrapper against the golden model, bit for bit, and against torch's own gradients."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from systolora_sim import calibrate, golden, numerics  # noqa: E402
from systolora_sim.layer import INPUTS, OUTPUTS, Layer, LayerError, LayerResult  # noqa: E402
from systolora_sim.torch import QuantizedLoRALinear, Recipe, quantize_lora  # noqa: E402
from systolora_sim.training import (  # noqa: E402
    LayerState,
    TrainingState,
    dry_run_momentum,
    has_momentum,
    new_master,
    run_steps,
)
from torch_nets import NAMES, Seen, batches, lora_net, masters_of  # noqa: E402

SEED = 20260
STEPS = 4

ALL = frozenset(OUTPUTS)
WIDE = dict.fromkeys((*INPUTS, *OUTPUTS), 16)
MODES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int16": {"bits": WIDE},
    "one by one": {"bits": {"dy": 16, "dH": 16, "lora_B": 16}},
    "outputs": {"bits": {"H": 16, "Y": 16, "dX": 16}},
    "delayed": {"delayed": ALL},
    "stochastic": {"stochastic": ALL, "seed": -77},
    "both": {"delayed": {"Y", "dH"}, "stochastic": {"H", "dX"}, "bits": {"x": 16, "Y": 16}},
}
LR = {"sgd": 0.5, "momentum": 0.1, "lion": 0.01}


def value(q: np.ndarray, scale: numerics.Scale) -> np.ndarray:
    return (q.astype(np.float64) * calibrate.to_float(scale)).astype(np.float32)


def given(
    recipe: Recipe, name: str, net: Any, seen: Seen, adapters: dict[str, np.ndarray]
) -> Layer:
    """The layer that must have run, from the float tensors that went in and out."""
    base = net.get_submodule(f"base_model.model.{name}").base_layer
    reals = {
        "x": seen.x[name],
        "weight": base.weight.detach().numpy(),
        **adapters,
        "dy": seen.dy[name],
    }
    pairs = {
        tensor: calibrate.quantize_float(values, recipe.bits.get(tensor, 8))
        for tensor, values in reals.items()
    }
    bias = None
    if base.bias is not None:
        unit = numerics.mul(pairs["x"][1], pairs["weight"][1])
        q = np.rint(base.bias.detach().numpy() / calibrate.to_float(unit))
        bias = q.astype(np.int32)
    there = ALL if name in seen.dx else ALL - {"dX"}
    return Layer(
        name=name,
        **{tensor: pair[0] for tensor, pair in pairs.items()},
        scales={tensor: pair[1] for tensor, pair in pairs.items()},
        gain=calibrate.from_float(2.0),
        bias=bias,
        want_dx=name in seen.dx,
        delayed=recipe.delayed & there,
        stochastic=recipe.stochastic & there,
        bits={tensor: recipe.bits.get(tensor, 8) for tensor in there},
        seed=recipe.seed,
        index=NAMES.index(name),
    )


def check_call(name: str, seen: Seen, result: LayerResult) -> None:
    """What torch saw against the golden result."""
    pairs = [(seen.y, "Y")] + ([(seen.dx, "dX")] if name in seen.dx else [])
    for held, tensor in pairs:
        wanted = value(result.tensors[tensor], result.scales[tensor])
        np.testing.assert_array_equal(held[name], wanted, f"{name} {tensor}")


def watched(net: Any, handle: Any) -> Seen:
    seen = Seen()
    for name, layer in handle.layers.items():
        seen.watch(name, layer)
    return seen


def loss_of(net: Any, x: Any) -> Any:
    return (net(x) ** 2).mean()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", LR)
def test_steps_are_those_of_the_golden_model(optimizer, mode):
    recipe = Recipe(optimizer=optimizer, lr=LR[optimizer], weight_decay=0.01, **MODES[mode])
    net = lora_net(SEED)
    floats = {
        name: [
            net.get_parameter(f"base_model.model.{name}.{each}.default.weight").detach().numpy()
            for each in ("lora_A", "lora_B")
        ]
        for name in NAMES
    }
    floats = copy.deepcopy(floats)
    handle = quantize_lora(net, recipe)
    seen = watched(net, handle)
    rule = calibrate.make_optimizer(optimizer, LR[optimizer], weight_decay=0.01)
    state = None
    for number, x in enumerate(batches(SEED, STEPS)):
        loss_of(net, x).backward()
        handle.step()
        layers = {}
        for index, name in enumerate(NAMES):
            adapters = dict(zip(("lora_A", "lora_B"), floats[name], strict=True))
            layer = given(recipe, name, net, seen, adapters)
            if state is None:
                masters = [
                    calibrate.load_master(values, 2 * index + offset)
                    for offset, values in enumerate(floats[name])
                ]
                if has_momentum(optimizer):
                    masters = [
                        new_master(each.w, each.scale, each.tensor_id, numerics.ONE)
                        for each in masters
                    ]
                layers[name] = LayerState(layer=layer, a=masters[0], b=masters[1])
            else:
                before = state.layers[name]
                layers[name] = replace(before, layer=replace(layer, amax=before.layer.amax))
        state = TrainingState(layers=layers, optimizer=rule, seed=recipe.seed, step=number)
        if number == 0 and has_momentum(optimizer):
            wanted = [(name, each) for name in NAMES for each in ("lora_A", "lora_B")]
            for (name, each), scale in dry_run_momentum(state, wanted).items():
                held = "a" if each == "lora_A" else "b"
                master = replace(getattr(state.layers[name], held), v_scale=scale)
                state.layers[name] = replace(state.layers[name], **{held: master})
        done = run_steps(state, 1)
        state = done.state
        for name in NAMES:
            check_call(name, seen, done.results[name])
            calls, wanted = handle.layers[name].calls, state.layers[name]
            assert calls.amax == wanted.layer.amax
            assert handle.sticky[name] == wanted.sticky
            for master, golden_master, parameter in zip(
                masters_of(handle.layers[name]),
                (wanted.a, wanted.b),
                handle.layers[name].adapters,
                strict=True,
            ):
                np.testing.assert_array_equal(master.w, golden_master.w)
                assert master.scale == golden_master.scale
                np.testing.assert_array_equal(
                    parameter.detach().numpy(), value(master.w, master.scale)
                )
                if has_momentum(optimizer):
                    np.testing.assert_array_equal(master.v, golden_master.v)
                    assert master.v_scale == golden_master.v_scale
        assert not np.array_equal(state.layers["0"].a.w, layers["0"].a.w)
    assert handle.step_number == STEPS


@pytest.mark.parametrize("mode", MODES)
def test_gradients_for_torch_are_those_of_the_golden_model(mode):
    recipe = Recipe(optimizer=None, **MODES[mode])
    net = lora_net(SEED)
    handle = quantize_lora(net, recipe)
    seen = watched(net, handle)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    amax: dict[str, dict[str, int]] = {name: {} for name in NAMES}
    for number, x in enumerate(batches(SEED, STEPS)):
        optimizer.zero_grad()
        loss_of(net, x).backward()
        for name in NAMES:
            parameters = dict(zip(("lora_A", "lora_B"), handle.layers[name].adapters, strict=True))
            adapters = {each: value.detach().numpy() for each, value in parameters.items()}
            layer = given(recipe, name, net, seen, adapters)
            result = golden.run_layer(replace(layer, step=number, amax=amax[name]))
            check_call(name, seen, result)
            amax[name] = result.amax
            for each, parameter in parameters.items():
                assert parameter.grad is not None
                tensor = f"d{each[-1]}"
                np.testing.assert_array_equal(
                    parameter.grad.numpy(), value(result.tensors[tensor], result.scales[tensor])
                )
        optimizer.step()


@pytest.mark.parametrize(("bits", "within"), [(8, 0.05), (16, 3e-4)])
def test_gradients_are_near_those_of_torch(bits, within):
    """Float layers of PEFT on the same batch; the distance is that of the operands' rounding."""
    net, x = lora_net(SEED), batches(SEED, 1, (8, 32))[0]
    floats, seen = copy.deepcopy(net), Seen()
    for name in NAMES:
        seen.watch(name, floats.get_submodule(f"base_model.model.{name}"))
    loss_of(floats, x).backward()
    recipe = Recipe(optimizer=None, bits=dict.fromkeys((*INPUTS, *OUTPUTS), bits))
    handle = quantize_lora(net, recipe)
    mine = watched(net, handle)
    loss_of(net, x).backward()
    pairs = [(mine.y[name], seen.y[name]) for name in NAMES] + [(mine.dx["2"], seen.dx["2"])]
    for (name, one), (_, other) in zip(
        net.named_parameters(), floats.named_parameters(), strict=True
    ):
        if "lora" in name:
            pairs.append((one.grad.numpy(), other.grad.numpy()))
    assert len(pairs) == 7
    for one, other in pairs:
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert 0 < error < within


# State -------------------------------------------------------------------------------------------


def trained(net: Any, handle: Any, optimizer: Any, xs: Any) -> None:
    for x in xs:
        loss_of(net, x).backward()
        if optimizer is None:
            handle.step()
        else:
            optimizer.step()
            optimizer.zero_grad()


def torch_sgd(net: Any, recipe: Recipe) -> Any:
    """Without momentum, which would be a state of its own."""
    if recipe.optimizer is not None:
        return None
    return torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.5)


@pytest.mark.parametrize("optimizer", [*LR, None])
def test_resumes_bit_for_bit(optimizer, tmp_path):
    recipe = Recipe(
        optimizer=optimizer, lr=LR.get(optimizer or "", 0.1), delayed=ALL, stochastic=ALL, seed=3
    )
    xs = batches(SEED, 6)
    whole = lora_net(SEED)
    handle = quantize_lora(whole, recipe)
    trained(whole, handle, torch_sgd(whole, recipe), xs)

    first = lora_net(SEED)
    begun = quantize_lora(first, recipe)
    trained(first, begun, torch_sgd(first, recipe), xs[:3])
    torch.save(begun.state_dict(), tmp_path / "state.pt")

    second = lora_net(SEED)
    resumed = quantize_lora(second, recipe)
    trained(second, resumed, torch_sgd(second, recipe), xs[4:5])  # to be overwritten
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    trained(second, resumed, torch_sgd(second, recipe), xs[3:])
    assert str(resumed.state_dict()) == str(handle.state_dict())
    for one, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.step_number == 6


def broken(state: dict[str, Any], *path: str, to: Any = None) -> dict[str, Any]:
    """A copy of a state with one entry replaced, or left out."""
    state = copy.deepcopy(state)
    held = state
    for key in path[:-1]:
        held = held[key]
    if to is None:
        del held[path[-1]]
    else:
        held[path[-1]] = to
    return state


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("version",), 9, "version 9: must be 1"),
        (("optimizer",), "lion", "optimizer 'lion': must be 'sgd'"),
        (("seed",), 5, "seed 5: must be 0"),
        (("lr",), -1.0, "lr = -1.0"),
        (("lr",), None, "'lr' is missing"),
        (("layers", "2"), None, "layer '2' is only in one"),
        (("layers", "2", "step"), None, "layer '2': 'step' is missing"),
        (("layers", "2", "lora_A", "scale"), [1, 1], "scale m = 1"),
        (("layers", "2", "lora_A", "w"), torch.zeros(2, 2, dtype=torch.int16), r"shape \(2, 2\)"),
        (("layers", "2", "lora_A", "w"), torch.zeros(3, 10), "float32"),
        (("layers", "2", "sticky"), ["glue"], "unknown sticky"),
        (("layers", "2", "amax"), {"H": -1}, "amax"),
    ],
)
def test_refuses_a_wrong_state_and_keeps_its_own(path, to, message):
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe())
    trained(net, handle, None, batches(SEED, 1))
    before = str(handle.state_dict())
    with pytest.raises(LayerError, match=message):
        handle.load_state_dict(broken(handle.state_dict(), *path, to=to))
    assert str(handle.state_dict()) == before


def test_restore_puts_the_layers_of_peft_back():
    from peft import get_peft_model_state_dict

    net = lora_net(SEED)
    keys, kinds = list(net.state_dict()), [type(each) for each in net.modules()]
    handle = quantize_lora(net, Recipe(lr=0.5))
    assert isinstance(net.get_submodule("base_model.model.0"), QuantizedLoRALinear)
    assert list(handle.layers) == list(NAMES)
    assert list(net.state_dict()) == keys
    trained(net, handle, None, batches(SEED, 2))
    quantized = get_peft_model_state_dict(net)
    x = batches(SEED, 1)[0]
    near = net(x)
    handle.restore()
    assert [type(each) for each in net.modules()] == kinds
    floats = get_peft_model_state_dict(net)
    assert quantized.keys() == floats.keys()
    for name, tensor in floats.items():
        assert torch.equal(tensor, quantized[name])
    for name, layer in handle.layers.items():
        for each, master in zip(("lora_A", "lora_B"), masters_of(layer), strict=True):
            held = floats[f"base_model.model.{name}.{each}.weight"]
            np.testing.assert_array_equal(held.numpy(), value(master.w, master.scale))
    error = (net(x) - near).norm() / near.norm()
    assert 0 < error < 0.05


# Passes ------------------------------------------------------------------------------------------


def test_passes_without_gradients_change_nothing():
    recipe = Recipe(delayed=ALL, stochastic=ALL)
    xs = batches(SEED, 3)
    one, two = lora_net(SEED), lora_net(SEED)
    first, second = quantize_lora(one, recipe), quantize_lora(two, recipe)
    for x in xs:
        with torch.no_grad():
            quiet = two(3 * xs[0])
        assert not quiet.requires_grad
        trained(one, first, None, [x])
        trained(two, second, None, [x])
    for (_, left), (_, right) in zip(first.layers.items(), second.layers.items(), strict=True):
        assert left.calls.amax == right.calls.amax
        np.testing.assert_array_equal(masters_of(left)[0].w, masters_of(right)[0].w)


def test_recomputed_passes_give_the_same_bits():
    from torch.utils.checkpoint import checkpoint

    recipe = Recipe(lr=0.5, delayed=ALL, stochastic=ALL)
    one, two = lora_net(SEED), lora_net(SEED)
    first, second = quantize_lora(one, recipe), quantize_lora(two, recipe)
    for x in batches(SEED, 3):
        trained(one, first, None, [x])
        (checkpoint(two, x, use_reentrant=False) ** 2).mean().backward()
        second.step()
    assert str(first.state_dict()) == str(second.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_type_of_its_input(dtype):
    net = lora_net(SEED)
    quantize_lora(net, Recipe(optimizer=None))
    layer: Any = net.get_submodule("base_model.model.2")
    x = torch.randn(4, 5, 10, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype and y.shape == (4, 5, 6)
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.shape == x.shape
    assert layer.adapters[0].grad.dtype == torch.float32


def test_a_layer_called_twice_gives_the_sum_of_both_gradients():
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe(optimizer=None))
    layer = handle.layers["0"]
    one, two = batches(SEED, 2)
    grads = []
    for xs in ([one], [two], [one, two]):
        for parameter in layer.adapters:
            parameter.grad = None
        sum((layer(x) ** 2).sum() for x in xs).backward()
        pair: list[Any] = [parameter.grad for parameter in layer.adapters]
        grads.append([grad.numpy().copy() for grad in pair])
    for first, second, both in zip(*grads, strict=True):
        np.testing.assert_array_equal(first + second, both)


def test_layers_without_a_gradient_stay():
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe(lr=0.5))
    before = masters_of(handle.layers["2"])
    layer = handle.layers["0"]
    (layer(batches(SEED, 1)[0]) ** 2).sum().backward()
    handle.step()
    assert masters_of(handle.layers["2"]) is before
    assert {each.calls.step for each in handle.layers.values()} == {1}


def test_the_learning_rate_may_change():
    net = lora_net(SEED)
    handle = quantize_lora(net, Recipe(lr=0.5))
    trained(net, handle, None, batches(SEED, 1))
    masters = [masters_of(layer) for layer in handle.layers.values()]
    handle.lr = 1e-30
    trained(net, handle, None, batches(SEED, 1))
    for (a, b), layer in zip(masters, handle.layers.values(), strict=True):
        np.testing.assert_array_equal(a.w, masters_of(layer)[0].w)
        np.testing.assert_array_equal(b.w, masters_of(layer)[1].w)
    with pytest.raises(LayerError, match="lr = nan"):
        handle.lr = float("nan")
    assert handle.lr == 1e-30
