"""The training loop on the golden model: every bit of a run, split runs, several layers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import big_integers as ref
from systolora_sim import calibrate, golden, numerics
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import LayerError, LayerResult
from systolora_sim.numerics import ONE, ZERO, Scale
from systolora_sim.training import (
    GoldenBackend,
    LayerState,
    TrainingResult,
    TrainingState,
    dry_run_momentum,
    new_master,
    rescale_saturated,
    run_steps,
)
from test_golden import gaussian, quantized_layer, reference_layer, reference_update

SEED = 2024
#: Sizes N, d, k, r of the layers of a run; a run of n layers takes the first n.
SIZES = {"down/0": (5, 7, 3, 2), "mid": (4, 3, 6, 1), "up": (1, 5, 2, 3)}
KINDS = ("sgd", "momentum", "lion")


#: Learning rates that move the masters by some hundred units a step; dy is about 1e-4.
RATES = {"sgd": 20.0, "momentum": 10.0, "lion": 0.01}


def optimizer_of(kind: str, decay: float = 0.0, lr: float | None = None) -> Optimizer:
    """decay : the share that weight decay takes of a master in each step."""
    lr = RATES[kind] if lr is None else lr
    return calibrate.make_optimizer(kind, lr, weight_decay=decay / lr)


def state_of(
    kind: str = "sgd",
    layers: int = 1,
    decay: float = 0.0,
    widths: Any = 8,
    fresh: bool = False,
    seed: int = SEED,
    **modes: Any,
) -> TrainingState:
    """A run of Gaussian layers; with `fresh`, lora_B begins as zero."""
    states = {}
    for index, name in enumerate(list(SIZES)[:layers]):
        reals = gaussian(*SIZES[name], seed=seed + index)
        layer = quantized_layer(reals, widths, want_dx=True, index=index, **modes)
        if fresh:
            reals["lora_B"] = np.zeros_like(reals["lora_B"])
        v_scale = None if kind == "sgd" else Scale(50000, -24)
        masters = [
            calibrate.load_master(reals[tensor], 2 * index + offset, v_scale)
            for offset, tensor in enumerate(("lora_A", "lora_B"))
        ]
        states[name] = LayerState(layer=layer, a=masters[0], b=masters[1])
    return TrainingState(layers=states, optimizer=optimizer_of(kind, decay), seed=seed, step=5)


def same_master(a: Master, b: Master) -> bool:
    return (a.scale, a.v_scale, a.tensor_id) == (b.scale, b.v_scale, b.tensor_id) and all(
        (p is None and q is None) or (p is not None and q is not None and np.array_equal(p, q))
        for p, q in ((a.w, b.w), (a.v, b.v))
    )


def same_result(a: LayerResult, b: LayerResult) -> bool:
    return (
        list(a.tensors) == list(b.tensors)
        and all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        and (a.scales, a.amax, a.sticky) == (b.scales, b.amax, b.sticky)
    )


def same(a: TrainingResult, b: TrainingResult) -> bool:
    p, q = a.state, b.state
    return (
        (list(p.layers), p.optimizer, p.seed, p.step)
        == (list(q.layers), q.optimizer, q.seed, q.step)
        and all(same_result(a.results[name], b.results[name]) for name in p.layers)
        and all(
            same_master(p.layers[name].a, q.layers[name].a)
            and same_master(p.layers[name].b, q.layers[name].b)
            and p.layers[name].sticky == q.layers[name].sticky
            and p.layers[name].layer.amax == q.layers[name].layer.amax
            for name in p.layers
        )
    )


# Against big integers -------------------------------------------------------------------------


def reference_run(state: TrainingState, steps: int) -> TrainingResult:
    """The run with nested loops over Python integers, layer by layer: they share nothing."""
    layers, results = {}, {}
    for index, name in enumerate(sorted(state.layers)):
        layer = state.layers[name].layer
        masters = {"lora_A": state.layers[name].a, "lora_B": state.layers[name].b}
        sticky: set[str] = set()
        amax = dict(layer.amax)
        for step in range(state.step, state.step + steps):
            operands: dict[str, Any] = {}
            scales = dict(layer.scales)
            for tensor, master in masters.items():
                kept = getattr(layer, tensor).dtype
                bits = 8 * kept.itemsize
                q, scale, _, _ = ref.quantized(master.w.tolist(), master.scale, bits)
                operands[tensor], scales[tensor] = np.array(q, kept), Scale(*scale)
            running = replace(
                layer, **operands, scales=scales, amax=amax, seed=state.seed, step=step, index=index
            )
            tensors, result_scales, amax, bits_set = reference_layer(running)
            sticky |= bits_set
            results[name] = LayerResult(
                tensors={key: np.array(value) for key, value in tensors.items()},
                scales={key: Scale(*value) for key, value in result_scales.items()},
                amax=dict(amax),
                sticky=set(bits_set),
            )
            for tensor, gradient in (("lora_A", "dA"), ("lora_B", "dB")):
                w, v, bits_set = reference_update(
                    masters[tensor],
                    np.array(tensors[gradient]),
                    result_scales[gradient],
                    state.optimizer,
                    state.seed,
                    step,
                )
                shape = masters[tensor].w.shape
                masters[tensor] = Master(
                    w=np.array(w, np.int16).reshape(shape),
                    scale=masters[tensor].scale,
                    tensor_id=2 * index + (tensor == "lora_B"),
                    v=None if v is None else np.array(v, np.int16).reshape(shape),
                    v_scale=masters[tensor].v_scale,
                )
                sticky |= bits_set
        layers[name] = LayerState(
            layer=replace(layer, amax=amax),
            a=masters["lora_A"],
            b=masters["lora_B"],
            sticky=frozenset(sticky),
        )
    after = replace(state, layers=layers, step=state.step + steps)
    return TrainingResult(state=after, results=results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("fresh", [False, True])
def test_runs_equal_the_reference(kind, decay, fresh):
    state = state_of(kind, 3, decay, fresh=fresh, stochastic=frozenset({"H", "dX"}))
    got = run_steps(state, 3)
    wanted = reference_run(state, 3)
    for name, result in got.results.items():
        assert {key: tensor.tolist() for key, tensor in result.tensors.items()} == {
            key: tensor.tolist() for key, tensor in wanted.results[name].tensors.items()
        }
    assert same(got, wanted)
    for name in SIZES:  # the run has moved them
        assert not np.array_equal(got.state.layers[name].b.w, state.layers[name].b.w)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("widths", "bits"),
    [(16, {}), (8, {"H": 16, "dH": 16}), (16, {"Y": 8}), ({"x": 16, "lora_B": 16}, {})],
)
def test_runs_of_other_widths_equal_the_reference(kind, widths, bits):
    if isinstance(widths, dict):
        widths = {name: widths.get(name, 8) for name in ("x", "weight", "lora_A", "lora_B", "dy")}
    state = state_of(kind, 2, widths=widths, bits=bits, delayed=frozenset({"H", "Y", "dH"}))
    assert same(run_steps(state, 3), reference_run(state, 3))


def test_a_fresh_adapter_learns():
    """lora_B of zeros has the zero Scale as working copy, and lora_A no gradient in that step."""
    state = state_of("sgd", fresh=True)
    first = run_steps(state, 1)
    before, after = state.layers["down/0"], first.state.layers["down/0"]
    assert first.results["down/0"].scales["dA"] == ZERO
    assert not first.results["down/0"].tensors["dA"].any()
    assert np.array_equal(after.a.w, before.a.w)
    assert after.b.w.any()
    second = run_steps(first.state, 1)
    assert second.results["down/0"].tensors["dA"].any()
    assert not np.array_equal(second.state.layers["down/0"].a.w, before.a.w)


# What carries over ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_run_is_the_whole_run(kind):
    modes: Any = {"delayed": frozenset({"H", "dX"}), "stochastic": frozenset({"Y", "dH"})}
    state = state_of(kind, 3, 0.1, **modes)
    whole = run_steps(state, 5)
    half = run_steps(state, 2)
    assert same(run_steps(half.state, 3), whole)
    assert not same(run_steps(replace(half.state, step=state.step), 3), whole)
    assert whole.state.step == state.step + 5


def test_layers_do_not_depend_on_one_another_but_by_number():
    state = state_of("lion", 3)
    alone = {
        name: TrainingState(
            layers={name: each}, optimizer=state.optimizer, seed=state.seed, step=state.step
        )
        for name, each in state.layers.items()
        if each.a.tensor_id == 0
    }
    together = run_steps(state, 3)
    assert list(alone) == ["down/0"]
    single = run_steps(alone["down/0"], 3)
    assert same_result(single.results["down/0"], together.results["down/0"])
    assert same_master(single.state.layers["down/0"].a, together.state.layers["down/0"].a)

    # Whatever its number is, and whoever has the smaller ones.
    last = list(state.layers)[-1]
    other = replace(state, layers={last: state.layers[last]})
    assert other.layers[last].layer.index > 0
    assert same_master(run_steps(other, 3).state.layers[last].a, together.state.layers[last].a)

    # The same operands under other numbers have other random words.
    twins = {}
    for index, name in enumerate(("a", "b")):
        first = state.layers["down/0"]
        a, b = (
            replace(master, tensor_id=2 * index + offset)
            for offset, master in enumerate((first.a, first.b))
        )
        twins[name] = replace(first, layer=replace(first.layer, index=index), a=a, b=b)
    after = run_steps(replace(state, layers=twins), 1).state.layers
    first, second = (after[name].b.v for name in twins)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second)


def test_delayed_records_move_on():
    state = state_of("sgd", delayed=frozenset({"H"}), fresh=True)
    first = run_steps(state, 1)
    record = first.state.layers["down/0"].layer.amax["H"]
    assert record > 0
    layer = state.layers["down/0"].layer
    working = golden.working_copy(first.state.layers["down/0"].a, 8)
    acc = golden.exact_product(layer.x, working.q.T)
    r = numerics.quant_ratio(record, 8)
    h = run_steps(first.state, 1).results["down/0"].scales["H"]
    assert h == numerics.div(numerics.mul(layer.scales["x"], working.scale), r)
    assert numerics.amax(acc) > 0


def test_sticky_bits_are_collected():
    """A master at its end saturates in one step; the bit stays when later steps do not."""
    state = state_of("sgd")
    layer = state.layers["down/0"]
    full = replace(layer.b, w=np.full_like(layer.b.w, -32767))
    state = replace(
        state,
        layers={"down/0": replace(layer, b=full)},
        optimizer=optimizer_of("sgd", lr=1000.0),
    )
    first = run_steps(state, 1)
    assert "master_range" in first.state.layers["down/0"].sticky
    calm = replace(
        first.state.layers["down/0"], b=replace(full, w=np.zeros_like(full.w)), a=layer.a
    )
    quiet = replace(first.state, layers={"down/0": calm}, optimizer=optimizer_of("sgd", lr=1e-9))
    assert "master_range" in run_steps(quiet, 1).state.layers["down/0"].sticky
    cleared = replace(quiet, layers={"down/0": replace(calm, sticky=frozenset())})
    assert "master_range" not in run_steps(cleared, 1).state.layers["down/0"].sticky


def test_progress_counts_layers_and_the_state_stays():
    state = state_of("momentum", 2)
    before = [state.layers["mid"].a.w.copy(), state.layers["mid"].a.v]
    seen: list[int] = []
    run_steps(state, 3, GoldenBackend(), seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert np.array_equal(state.layers["mid"].a.w, before[0])
    assert before[1] is state.layers["mid"].a.v
    assert not before[1].any()
    assert state.step == 5


# Momentum scales ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["momentum", "lion"])
def test_dry_run_puts_the_largest_gradient_at_8192(kind):
    state = state_of(kind, 2, fresh=True)
    wanted = [("down/0", "lora_A"), ("down/0", "lora_B"), ("mid", "lora_B")]
    found = dry_run_momentum(state, wanted, steps=3)
    assert list(found) == wanted

    # By hand: steps from a momentum of zeros, in the scale of the gradients so far.
    running, seen = state, {key: [] for key in found}
    for _ in range(3):
        layers = dict(running.layers)
        gradients = run_steps(running, 1).results
        for (name, tensor), maxima in seen.items():
            field, gradient = ("a", "dA") if tensor == "lora_A" else ("b", "dB")
            result = gradients[name]
            maxima.append((numerics.amax(result.tensors[gradient]), result.scales[gradient]))
            old = getattr(layers[name], field)
            scale = golden.momentum_scale(maxima)
            new = new_master(old.w, old.scale, old.tensor_id, scale)
            layers[name] = replace(layers[name], **{field: new})
        running = run_steps(replace(running, layers=layers), 1).state
    assert found == {key: golden.momentum_scale(maxima) for key, maxima in seen.items()}
    for key, maxima in seen.items():
        largest = max(count * calibrate.to_float(scale) for count, scale in maxima)
        # Three truncations of 16-bit mantissas: within 2^-13.
        assert largest / calibrate.to_float(found[key]) == pytest.approx(8192, rel=2**-13)
    # lora_A's first gradient is zero; without the later steps it would have no scale of its own.
    assert seen[("down/0", "lora_A")][0][0] == 0
    assert found[("down/0", "lora_A")] != ONE


def test_dry_run_at_the_end_of_the_counter():
    state = replace(state_of("momentum"), step=(1 << 31) - 2)
    assert dry_run_momentum(state, [("down/0", "lora_B")])[("down/0", "lora_B")] != ONE


# Software's answer to saturation --------------------------------------------------------------


def test_saturated_masters_get_room():
    state = state_of("momentum", 2)
    down, mid = state.layers["down/0"], state.layers["mid"]
    w = down.a.w.copy()
    w[0, :4] = (32767, -32768, 16383, -5)
    v = np.full_like(w, 7)
    v[1, :2] = (-30001, 30003)
    low = np.full_like(down.b.w, 16383)  # half of the range is enough as it is
    down = replace(
        down,
        a=replace(down.a, w=w, v=v),
        b=replace(down.b, w=low),
        sticky=frozenset({"master_range", "momentum_range", "acc_sat"}),
    )
    mid = replace(mid, a=replace(mid.a, w=np.full_like(mid.a.w, 32767)))
    before = replace(state, layers={"down/0": down, "mid": mid})
    after = rescale_saturated(before)
    got = after.layers["down/0"]
    assert got.sticky == {"acc_sat"}
    assert got.a.scale == Scale(down.a.scale.m, down.a.scale.e + 1)
    assert got.a.w.dtype == np.int16
    assert got.a.w[0, :4].tolist() == [16384, -16384, 8192, -2]  # ties to even
    assert got.a.w.reshape(-1).tolist() == [ref.scaled(int(x), (32768, -1)) for x in w.reshape(-1)]
    assert got.a.v is not None
    assert got.a.v[1, :2].tolist() == [-15000, 15002]
    assert got.a.v[0, 0] == 4
    assert got.a.v_scale == Scale(50000, -23)
    assert same_master(got.b, down.b)
    # Without the sticky bit nothing has happened, whatever the master holds.
    assert same_master(after.layers["mid"].a, mid.a)
    # Values stay within half of the new unit.
    unit = calibrate.to_float(got.a.scale)
    old = w * calibrate.to_float(down.a.scale)
    assert np.abs(got.a.w * unit - old).max() <= 0.5 * unit

    last = replace(down, a=replace(down.a, scale=Scale(40000, 511)))
    with pytest.raises(LayerError) as caught:
        rescale_saturated(replace(state, layers={"down/0": last, "mid": mid}))
    assert str(caught.value) == "layer 'down/0': lora_A: scale e = 512: must be from -512 to 511"


# What is refused ------------------------------------------------------------------------------


def test_steps_and_counter_are_checked():
    state = state_of()
    with pytest.raises(LayerError, match=r"^steps = 0: must be at least 1$"):
        run_steps(state, 0)
    late = replace(state, step=(1 << 31) - 3)
    assert run_steps(late, 2).state.step == (1 << 31) - 1
    with pytest.raises(LayerError) as caught:
        run_steps(late, 3)
    assert str(caught.value) == "step: 2147483645 and 3 steps more: must stay up to 2147483647"


def test_states_are_checked():
    one, two = state_of("sgd", 1), state_of("sgd", 2)
    layer = one.layers["down/0"]

    def refused(message: str, **fields: Any) -> None:
        with pytest.raises(LayerError) as caught:
            replace(one, **fields)
        assert str(caught.value) == message

    order = "layers: must be at least one, in sorted order of their names"
    refused(order, layers={})
    refused(order, layers=dict(reversed(two.layers.items())))
    refused("seed: 2147483648: must be from -2147483648 to 2147483647", seed=1 << 31)
    refused("step: -2147483649: must be from -2147483648 to 2147483647", step=-(1 << 31) - 1)
    refused(
        "layer 'down/0': lora_A.momentum: optimizer 'lion' must have one",
        optimizer=optimizer_of("lion"),
    )
    b = replace(layer.b, v=np.zeros_like(layer.b.w), v_scale=ONE)
    refused(
        "layer 'down/0': lora_B.momentum: optimizer 'sgd' has none",
        layers={"down/0": replace(layer, b=b)},
    )
    refused(
        "layer 'down/0': lora_B: tensor_id 2: must be 1",
        layers={"down/0": replace(layer, b=replace(layer.b, tensor_id=2))},
    )
    with pytest.raises(LayerError) as caught:
        replace(layer, a=layer.b)
    assert str(caught.value) == "lora_A.master: shape (3, 2): must be (2, 7)"
