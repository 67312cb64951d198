"""The golden layer and its updates against float mathematics and plain big integers."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import big_integers as ref
from systolora.contract import COL_STEP, ROW_STEP, STICKY
from systolora_sim import calibrate, numerics
from systolora_sim.golden import (
    Master,
    Optimizer,
    exact_product,
    momentum_scale,
    run_layer,
    update,
    working_copy,
)
from systolora_sim.layer import ADAPTERS, INPUTS, OUTPUTS, Layer, LayerError, LayerResult
from systolora_sim.numerics import ONE, ZERO, Scale

SEED = 4711
Reals = dict[str, np.ndarray]


def gaussian(n: int, d: int, k: int, r: int, seed: int = SEED) -> Reals:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(n, d)),
        "weight": rng.normal(size=(k, d)) / np.sqrt(d),
        "lora_A": rng.normal(size=(r, d)) / np.sqrt(d),
        "lora_B": 0.3 * rng.normal(size=(k, r)),
        "dy": 1e-4 * rng.normal(size=(n, k)),
    }


def quantized_layer(
    reals: Reals, widths: dict[str, int] | int = 8, gain: float = 2.0, **fields: Any
) -> Layer:
    if isinstance(widths, int):
        widths = dict.fromkeys(INPUTS, widths)
    pairs = {name: calibrate.quantize_float(reals[name], widths[name]) for name in INPUTS}
    return Layer(
        name="test",
        **{name: pair[0] for name, pair in pairs.items()},
        **{
            "scales": {name: pair[1] for name, pair in pairs.items()},
            "gain": calibrate.from_float(gain),
            **fields,
        },
    )


def float_layer(reals: Reals, gain: float, bias: np.ndarray | float = 0.0) -> Reals:
    x, w, a, b, dy = (reals[name] for name in INPUTS)
    h = x @ a.T
    y = x @ w.T + gain * h @ b.T + bias
    dh = gain * dy @ b
    return {
        "H": h,
        "Y": y,
        "Y_acc": y,
        "dH": dh,
        "dA": dh.T @ x,
        "dB": gain * dy.T @ h,
        "dX": dy @ w + dh @ a,
    }


def decibels(truth: np.ndarray, got: np.ndarray) -> float:
    return 10 * np.log10((truth**2).sum() / ((truth - got) ** 2).sum())


# Against float mathematics --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "least"),
    [
        (8, 30.0),
        (16, 70.0),
        ({"x": 16, "weight": 8, "lora_A": 16, "lora_B": 16, "dy": 16}, 30.0),
        ({"x": 8, "weight": 8, "lora_A": 16, "lora_B": 8, "dy": 16}, 30.0),
    ],
)
@pytest.mark.parametrize("gain", [0.25, 2.0])
def test_signal_to_noise_on_gaussian_data(widths, least, gain):
    reals = gaussian(64, 192, 96, 8)
    result = run_layer(quantized_layer(reals, widths, gain, want_dx=True))
    truth = float_layer(reals, gain)
    assert set(result.tensors) == set(result.scales) == set(truth)
    assert result.sticky == set()
    for name, tensor in result.tensors.items():
        ratio = decibels(truth[name], tensor * calibrate.to_float(result.scales[name]))
        assert ratio > least, (name, ratio, SEED)


def test_bias_joins_the_output():
    reals = gaussian(40, 96, 64, 4)
    layer = quantized_layer(reals, want_dx=True)
    unit = calibrate.to_float(numerics.mul(layer.scales["x"], layer.scales["weight"]))
    bias = np.random.default_rng(SEED).normal(size=64)
    with_bias = run_layer(replace(layer, bias=np.rint(bias / unit).astype(np.int32)))
    truth = float_layer(reals, 2.0, bias)
    scale = calibrate.to_float(with_bias.scales["Y"])
    assert decibels(truth["Y"], with_bias.tensors["Y"] * scale) > 30
    without = run_layer(layer)
    for name in set(without.tensors) - {"Y", "Y_acc"}:
        assert np.array_equal(without.tensors[name], with_bias.tensors[name])


def test_large_layer():
    """77 x 768 x 320, rank 8, int8, forward and backward: the size the two-second goal is for."""
    reals = gaussian(77, 768, 320, 8)
    result = run_layer(quantized_layer(reals, want_dx=True))
    truth = float_layer(reals, 2.0)
    for name, tensor in result.tensors.items():
        assert tensor.shape == truth[name].shape
        assert decibels(truth[name], tensor * calibrate.to_float(result.scales[name])) > 30
    assert result.tensors["Y_acc"].dtype == np.int32


# Against big integers -------------------------------------------------------------------------


def reference_layer(layer: Layer) -> tuple[dict[str, list], dict[str, tuple], dict, set[str]]:
    """Section 5 with nested loops over Python integers."""
    x, w, a, b, dy = (getattr(layer, name).tolist() for name in INPUTS)
    sx, sw, sa, sb, sdy = (layer.scales[name] for name in INPUTS)
    g = layer.gain
    records: dict[str, int] = {}
    sticky: set[str] = set()

    def q(name: str, acc: list, scale: tuple) -> tuple[list, tuple]:
        words = None
        if name in layer.stochastic:
            tensor = 0x10000 + 8 * layer.index + ["H", "Y", "dH", "dX"].index(name)
            words = [
                [ref.word_at(layer.seed, layer.step, tensor, 0, i, j) for j in range(len(row))]
                for i, row in enumerate(acc)
            ]
        record = layer.amax.get(name, 0) if name in layer.delayed else 0
        followed = layer.operand("x" if name in ("H", "Y") else "dy")
        bits = layer.bits.get(name) or 8 * followed.dtype.itemsize
        out, s, new_record, clipped = ref.quantized(acc, scale, bits, record, words)
        if name in layer.delayed:
            records[name] = new_record
            if clipped and record:
                sticky.add("clip_delayed")
        return out, s

    def join(main: list, low_rank: list, r: tuple, bounds: tuple, bias: list | None) -> list:
        out = []
        for main_row, extra_row in zip(main, low_rank, strict=True):
            row = []
            for j, (p, t) in enumerate(zip(main_row, extra_row, strict=True)):
                free = ref.scaled(t, r)
                kept = ref.clamp(free, *bounds)
                total = p + kept + (bias[j] if bias else 0)
                row.append(ref.clamp(total, *bounds))
                if kept != free or row[-1] != total:
                    sticky.add("acc_sat")
            out.append(row)
        return out

    def bounds(*names: str) -> tuple[int, int]:
        narrow = all(getattr(layer, name).dtype == np.int8 for name in names)
        return ref.INT32 if narrow else ref.INT48

    t = ref.transpose
    bias = None if layer.bias is None else layer.bias.tolist()
    h, sh = q("H", ref.product(x, t(a)), ref.multiply(sx, sa))
    sy = ref.multiply(sx, sw)
    r = ref.divide(ref.multiply(ref.multiply(g, sh), sb), sy)
    y_acc = join(ref.product(x, t(w)), ref.product(h, t(b)), r, bounds("x", "weight"), bias)
    y, s_quantized = q("Y", y_acc, sy)
    dh, sdh = q("dH", ref.product(dy, b), ref.multiply(ref.multiply(g, sdy), sb))
    tensors = {"H": h, "Y": y, "Y_acc": y_acc, "dH": dh}
    tensors["dA"] = ref.product(t(dh), x)
    tensors["dB"] = ref.product(t(dy), h)
    scales = {"H": sh, "Y": s_quantized, "Y_acc": sy, "dH": sdh}
    scales["dA"] = ref.multiply(sx, sdh)
    scales["dB"] = ref.multiply(ref.multiply(g, sh), sdy)
    if layer.want_dx:
        s = ref.multiply(sdy, sw)
        r = ref.divide(ref.multiply(sdh, sa), s)
        dx_acc = join(ref.product(dy, w), ref.product(dh, a), r, bounds("dy", "weight"), None)
        tensors["dX"], scales["dX"] = q("dX", dx_acc, s)
    return tensors, scales, records, sticky


def check_against_reference(layer: Layer) -> set[str]:
    tensors, scales, records, sticky = reference_layer(layer)
    result = run_layer(layer)
    assert {name: tensor.tolist() for name, tensor in result.tensors.items()} == tensors
    assert result.scales == scales
    assert result.amax == records
    assert result.sticky - {"scale_range"} == sticky
    assert result.sticky <= set(STICKY)
    return result.sticky


SMALL = [(1, 1, 1, 1), (5, 7, 3, 2), (3, 1, 4, 1), (1, 6, 5, 3)]


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("mixed", range(32))
def test_every_mix_of_widths(shape, mixed):
    widths = {name: 16 if mixed >> i & 1 else 8 for i, name in enumerate(INPUTS)}
    layer = quantized_layer(gaussian(*shape, seed=mixed), widths, 1.5, want_dx=bool(mixed & 1))
    check_against_reference(layer)
    result = run_layer(layer)
    wide = {
        "Y_acc": max(widths["x"], widths["weight"]) == 16,
        "dA": max(widths["x"], widths["dy"]) == 16,  # dH follows dy
        "dB": max(widths["x"], widths["dy"]) == 16,  # H follows x
    }
    for name, is_wide in wide.items():
        assert result.tensors[name].dtype == (np.int64 if is_wide else np.int32)
    for name, source in (("H", "x"), ("Y", "x"), ("dH", "dy"), ("dX", "dy")):
        if name in result.tensors:
            assert result.tensors[name].dtype == getattr(layer, source).dtype


@pytest.mark.parametrize("chosen", list(itertools.product((8, 16), repeat=4)))
def test_widths_of_quantized_tensors_can_be_chosen(chosen):
    bits = dict(zip(OUTPUTS, chosen, strict=True))
    layer = quantized_layer(gaussian(4, 6, 5, 2), want_dx=True, bits=bits)
    check_against_reference(layer)
    result = run_layer(layer)
    for name, width in bits.items():
        assert result.tensors[name].dtype == numerics.operand_dtype(width)
    assert result.tensors["dA"].dtype == (np.int64 if bits["dH"] == 16 else np.int32)
    assert result.tensors["dB"].dtype == (np.int64 if bits["H"] == 16 else np.int32)
    assert result.tensors["Y_acc"].dtype == np.int32


@pytest.mark.parametrize("widths", [8, 16])
@pytest.mark.parametrize("modes", range(16))
def test_modes_of_each_tensor(widths, modes):
    rng = np.random.default_rng(modes)
    chosen = frozenset(name for i, name in enumerate(OUTPUTS) if modes >> i & 1)
    others = frozenset(OUTPUTS) - chosen
    bias = rng.integers(-3000, 3000, 5).astype(np.int32)
    for delayed, stochastic in ((chosen, others), (others, chosen), (chosen, chosen)):
        layer = quantized_layer(
            gaussian(6, 9, 5, 2, seed=modes),
            widths,
            want_dx=True,
            bias=bias,
            delayed=delayed,
            stochastic=stochastic,
            seed=int(rng.integers(-(1 << 31), 1 << 31)),
            step=modes,
            index=modes % 3,
        )
        first = run_layer(layer)
        check_against_reference(layer)
        assert first.sticky == set()  # no record yet: just in time
        assert set(first.amax) == set(delayed)
        # The next step: half of the records too small, the others too large.
        records = {
            name: record // 3 if i % 2 else record * 2
            for i, (name, record) in enumerate(sorted(first.amax.items()))
        }
        sticky = check_against_reference(replace(layer, step=layer.step + 1, amax=records))
        assert ("clip_delayed" in sticky) == (len(records) > 1)


def test_delayed_tensor_of_zeros_keeps_its_record_and_scale():
    reals = gaussian(4, 6, 5, 2)
    reals["lora_B"][:] = 0.0
    layer = quantized_layer(reals, delayed=frozenset({"dH"}), amax={"dH": 1000})
    check_against_reference(layer)
    result = run_layer(layer)
    assert not result.tensors["dH"].any()
    assert not result.scales["dH"].is_zero
    assert result.amax == {"dH": 1000}
    first = run_layer(replace(layer, amax={}))
    assert first.scales["dH"] == ZERO
    assert first.amax == {"dH": 0}


def test_stochastic_rounding_depends_on_seed_and_step_only_where_asked():
    layer = quantized_layer(gaussian(8, 16, 8, 2), stochastic=frozenset({"Y"}), seed=1)
    base = run_layer(layer)
    for changed in (replace(layer, seed=2), replace(layer, step=1), replace(layer, index=1)):
        other = run_layer(changed)
        assert not np.array_equal(base.tensors["Y"], other.tensors["Y"])
        for name in set(base.tensors) - {"Y"}:
            assert np.array_equal(base.tensors[name], other.tensors[name])


def test_adapter_that_starts_at_zero_has_zero_gradient_of_a():
    reals = gaussian(6, 8, 5, 2)
    layer = quantized_layer(reals, want_dx=True)
    zero_b = np.zeros_like(layer.lora_B)
    for scale in (ONE, ZERO):  # a float tensor of zeros, and a working copy of a zero master
        scales = {**layer.scales, "lora_B": scale}
        started = replace(layer, lora_B=zero_b, scales=scales)
        check_against_reference(started)
        result = run_layer(started)
        assert not result.tensors["dA"].any()
        assert result.tensors["dB"].any()
        assert np.array_equal(result.tensors["Y_acc"], exact_product(layer.x, layer.weight.T))


def test_gain_of_zero_switches_the_adapter_off():
    layer = quantized_layer(gaussian(6, 8, 5, 2), gain=0.0, want_dx=True)
    check_against_reference(layer)
    result = run_layer(layer)
    assert np.array_equal(result.tensors["Y_acc"], exact_product(layer.x, layer.weight.T))


@pytest.mark.parametrize(
    "wide", [(), tuple(INPUTS), ("lora_A",), ("lora_B",), ("weight",), ("dy",)]
)
def test_accumulators_saturate_with_the_sticky_bit(wide):
    widths = {name: 16 if name in wide else 8 for name in INPUTS}
    layer = quantized_layer(gaussian(4, 6, 5, 2), widths, want_dx=True, bits={"H": 8, "dH": 8})
    for e in (20, 30, 40, 60):  # from 40 on, the low-rank terms pass any accumulator's range
        sticky = check_against_reference(replace(layer, gain=Scale(40000, e)))
        assert "acc_sat" in sticky or e < 40
    edge = np.full(5, (1 << 31) - 1, np.int32)
    sticky = check_against_reference(replace(layer, bias=edge))
    # In 32 bits the bias at its largest passes the range; in 48 it does not.
    assert ("acc_sat" in sticky) == (widths["x"] == widths["weight"] == 8)


def test_term_and_sum_saturate_each_for_itself():
    """The term alone passes 32 bits, the exact sum would not: the term is cut first."""
    layer = Layer(
        name="cut",
        x=np.array([[-100]], np.int8),
        weight=np.array([[100]], np.int8),
        lora_A=np.array([[-1]], np.int8),
        lora_B=np.array([[127]], np.int8),
        dy=np.array([[1]], np.int8),
        scales=dict.fromkeys(INPUTS, ONE),
        gain=Scale(32768, 25),
        bias=np.array([-(1 << 31)], np.int32),
    )
    result = run_layer(layer)
    # H = 127; the term 127 * 127 * (100/127) * 2^25 is cut to 2^31 - 1 before the sum.
    assert result.tensors["Y_acc"].tolist() == [[(1 << 31) - 1 - 10000 - (1 << 31)]]
    assert "acc_sat" in result.sticky
    check_against_reference(layer)


def test_scale_range():
    layer = quantized_layer(gaussian(4, 6, 5, 2))
    for e in (-512, 511):
        scales = {**layer.scales, "x": Scale(40000, e), "weight": Scale(50000, e)}
        assert "scale_range" in check_against_reference(replace(layer, scales=scales))
    assert run_layer(layer).sticky == set()


def test_most_negative_operands():
    """-128 and -32768 are accepted as inputs: sums of their squares are exact."""
    for dtype in (np.int8, np.int16):
        low = np.iinfo(dtype).min
        shapes = {"x": (2, 3), "weight": (4, 3), "lora_A": (2, 3), "lora_B": (4, 2), "dy": (2, 4)}
        operands: dict[str, Any] = {n: np.full(shape, low, dtype) for n, shape in shapes.items()}
        layer = Layer(
            name="corner",
            **operands,
            scales=dict.fromkeys(INPUTS, ONE),
            gain=Scale(32768, -20),
            want_dx=True,
        )
        check_against_reference(layer)


# Frozen layers ---------------------------------------------------------------------------------


def frozen(layer: Layer, **fields: Any) -> Layer:
    """The layer without its adapter."""
    scales = {n: s for n, s in layer.scales.items() if n not in ADAPTERS}
    return replace(layer, lora_A=None, lora_B=None, gain=None, scales=scales, **fields)


@pytest.mark.parametrize("widths", [8, 16, {"x": 8, "weight": 16, "dy": 8}])
@pytest.mark.parametrize("modes", range(4))
def test_frozen_layer_is_a_layer_whose_gain_is_zero(widths, modes):
    """All modes of Y and dX: the same bits as with the adapter switched off."""
    full = dict.fromkeys(INPUTS, 8) | widths if isinstance(widths, dict) else widths
    chosen = frozenset(name for i, name in enumerate(("Y", "dX")) if modes >> i & 1)
    layer = quantized_layer(
        gaussian(5, 7, 6, 2),
        full,
        gain=0.0,
        want_dx=True,
        bias=np.arange(-900, 900, 300).astype(np.int32),
        bits={"dX": 16} if modes == 3 else {},
        delayed=chosen,
        stochastic=frozenset({"Y", "dX"}) - chosen if modes % 2 else chosen,
        amax=dict.fromkeys(chosen, 7000),
        seed=-9,
        step=2,
        index=1,
    )
    with_adapter, alone = check_frozen(layer)
    assert alone.tensors["dX"].dtype == with_adapter.tensors["dX"].dtype
    # With the gain 0, S_dh is 0 too, so that dX loses its low-rank term as well.
    for name in ("Y", "Y_acc", "dX"):
        assert np.array_equal(alone.tensors[name], with_adapter.tensors[name])
        assert alone.scales[name] == with_adapter.scales[name]
    assert set(alone.tensors) == set(alone.scales) == {"Y", "Y_acc", "dX"}
    assert alone.amax == with_adapter.amax


def check_frozen(layer: Layer) -> tuple[LayerResult, LayerResult]:
    """(with the adapter, without); both have the same sticky bits."""
    with_adapter, alone = run_layer(layer), run_layer(frozen(layer))
    assert with_adapter.sticky == alone.sticky
    return with_adapter, alone


def test_frozen_layer_without_dx_needs_no_dy():
    layer = frozen(quantized_layer(gaussian(5, 7, 6, 2)))
    assert layer.is_frozen and layer.rank == 0
    assert layer.present == ("x", "weight", "dy") and layer.results == ("Y",)
    result = run_layer(layer)
    assert set(result.tensors) == {"Y", "Y_acc"}
    scales = {name: layer.scales[name] for name in ("x", "weight")}
    bare = replace(layer, dy=None, scales=scales)
    assert bare.present == ("x", "weight")
    again = run_layer(bare)
    assert all(np.array_equal(again.tensors[n], tensor) for n, tensor in result.tensors.items())
    with pytest.raises(KeyError, match="dy"):
        bare.operand("dy")


def test_bias_of_a_frozen_layer_saturates():
    layer = quantized_layer(gaussian(4, 6, 5, 2), gain=0.0)
    edge = np.full(5, (1 << 31) - 1, np.int32)
    _, alone = check_frozen(replace(layer, bias=edge))
    assert alone.sticky == {"acc_sat"}
    assert alone.tensors["Y_acc"].max() == (1 << 31) - 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_A": None}, "lora_A: missing tensor: lora_B is there"),
        ({"lora_B": None}, "lora_B: missing tensor: lora_A is there"),
        ({"gain": None}, "gain: missing: must be there with lora_A and lora_B"),
        ({"dy": None}, "dy: missing tensor: must be there with lora_A and lora_B"),
        (
            {"lora_A": None, "lora_B": None},
            "gain: must not be there without lora_A and lora_B",
        ),
        (
            {"lora_A": None, "lora_B": None, "gain": None},
            "scales: must be those of x, weight, dy",
        ),
    ],
)
def test_halves_of_an_adapter_are_refused(change, message):
    layer = quantized_layer(gaussian(4, 6, 5, 2))
    with pytest.raises(LayerError) as caught:
        replace(layer, **change)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": None, "want_dx": True}, "dy: missing tensor: must be there with want_dx = 1"),
        ({"delayed": frozenset({"H"})}, "delayed: names H: needs lora_A and lora_B"),
        ({"stochastic": frozenset({"dH"})}, "stochastic: names dH: needs lora_A and lora_B"),
        ({"bits": {"H": 8}}, "bits: names H: needs lora_A and lora_B"),
        ({"bits": {"dX": 8}}, "bits: names dX: needs want_dx = 1"),
    ],
)
def test_what_a_frozen_layer_has_not_is_refused(change, message):
    layer = frozen(quantized_layer(gaussian(4, 6, 5, 2)))
    with pytest.raises(LayerError) as caught:
        replace(layer, **change)
    assert str(caught.value) == message


# Products and the schedule --------------------------------------------------------------------


def test_product_is_exact_at_the_longest_reduction():
    for dtype in (np.int8, np.int16):
        low = int(np.iinfo(dtype).min)
        for depth in (131071, 65536, 1):
            a, b = np.full((1, depth), low, dtype), np.full((depth, 1), low, dtype)
            a[0, 0] = low + 1
            assert exact_product(a, b).tolist() == [[low * low * depth + low]]
    for depth in (1024, 1025, 1041, 2047):  # about where float32 ends; the last sums are odd
        a = np.full((1, depth), -127, np.int8)
        assert exact_product(a, a.T).tolist() == [[127 * 127 * depth]]
    with pytest.raises(ValueError, match="reduction length 131072: must be below 131072"):
        exact_product(np.zeros((1, 131072), np.int8), np.zeros((131072, 1), np.int8))
    with pytest.raises(TypeError, match="operand of type int64: must be int8 or int16"):
        exact_product(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int8))


def test_product_by_byte_planes_equals_the_exact_product():
    rng = np.random.default_rng(SEED)
    a = rng.integers(-32768, 32768, (9, 33)).astype(np.int16)
    b = rng.integers(-32768, 32768, (33, 7)).astype(np.int16)
    (a_hi, a_lo), (b_hi, b_lo) = numerics.byte_planes(a), numerics.byte_planes(b)
    passes = ((a_hi, b_hi, 16), (a_hi, b_lo, 8), (a_lo, b_hi, 8), (a_lo, b_lo, 0))
    total = sum((p @ q) << shift for p, q, shift in passes)
    assert np.array_equal(total, exact_product(a, b))


@pytest.mark.parametrize("tile", [(4, 4, 4), (5, 3, 7), (16, 8, 2)])
@pytest.mark.parametrize("widths", [8, 16])
def test_schedule_invariance(tile, widths):
    """Y by tiles, in a random order, reductions in pieces: the same bits as the whole layer."""
    rng = np.random.default_rng(SEED)
    layer = quantized_layer(
        gaussian(13, 21, 11, 3), widths, stochastic=frozenset({"Y"}), seed=5, step=2
    )
    whole = run_layer(layer)
    rows, depth, cols = tile
    s_y = numerics.mul(layer.scales["x"], layer.scales["weight"])
    s_term = numerics.mul(numerics.mul(layer.gain, whole.scales["H"]), layer.scales["lora_B"])
    ratio = numerics.div(s_term, s_y)
    bits = layer.acc_bits("x", "weight")

    blocks = list(itertools.product(range(0, 13, rows), range(0, 11, cols)))
    acc = np.zeros((13, 11), np.int64)
    maximum = 0
    for row, col in rng.permutation(blocks):
        here = np.s_[row : row + rows, col : col + cols]
        main = np.zeros(acc[here].shape, np.int64)
        for k in rng.permutation(range(0, 21, depth)):
            x, w = layer.x[row : row + rows, k : k + depth], layer.weight[col : col + cols]
            main += exact_product(x, w[:, k : k + depth].T)
        low_rank = exact_product(
            whole.tensors["H"][row : row + rows], layer.operand("lora_B")[col : col + cols].T
        )
        extra, _ = numerics.rescale(low_rank, ratio, *numerics.int_range(bits))
        acc[here], _ = numerics.add_sat(main, extra, bits=bits)
        maximum = max(maximum, numerics.amax(acc[here]))
    assert np.array_equal(acc, whole.tensors["Y_acc"])

    r = numerics.quant_ratio(maximum, widths)
    limit = numerics.qmax(widths)
    start = numerics.seed_word(5, 2, 0x10001)
    for row, col in rng.permutation(blocks):
        here = np.s_[row : row + rows, col : col + cols]
        word = start + int(row) * ROW_STEP + int(col) * COL_STEP
        words = numerics.random_words(word, *acc[here].shape)
        q, _ = numerics.rescale(acc[here], r, -limit, limit, words)
        assert np.array_equal(q, whole.tensors["Y"][here])
    assert numerics.div(s_y, r) == whole.scales["Y"]


# The layer's own checks -----------------------------------------------------------------------


def broken(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    layer = quantized_layer(gaussian(4, 6, 5, 2))
    fields = {name: getattr(layer, name) for name in ("name", *INPUTS, "gain")}
    fields["scales"] = dict(layer.scales)
    change(fields)
    return fields


def setter(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setter("x", np.zeros((4, 6))), "x: dtype float64: must be int8 or int16"),
        (setter("scales", {}), "scales: must be those of x, weight, lora_A, lora_B, dy"),
        (setter("bias", np.zeros(5)), "bias: dtype float64: must be int32"),
        (setter("delayed", {"Z"}), "delayed: unknown tensor 'Z': must be among H, Y, dH, dX"),
        (setter("bits", {"x": 8}), "bits: unknown tensor 'x': must be among H, Y, dH, dX"),
        (setter("stochastic", {"dX"}), "stochastic: names dX: needs want_dx = 1"),
        (setter("bits", {"H": 12}), "bits.H: 12: must be 8 or 16"),
        (setter("amax", {"H": 1}), "H.amax: H must be in `delayed` to have a record"),
        (setter("seed", 1.5), "seed: 1.5: must be an integer"),
        (setter("step", 1 << 31), "step: 2147483648: must be from -2147483648 to 2147483647"),
        (setter("index", -1), "index: -1: must be from 0 to 268435455"),
    ],
)
def test_layer_in_memory_is_checked(change, message):
    with pytest.raises(LayerError) as caught:
        Layer(**broken(change))
    assert str(caught.value) == message


@pytest.mark.parametrize("axis", ["N", "d", "k", "r"])
def test_long_reductions_are_refused(axis):
    sizes = {"N": 1, "d": 1, "k": 1, "r": 1, axis: 131072}
    fields = broken(lambda _: None)
    for name, axes in Layer.AXES.items():
        fields[name] = np.zeros([sizes[a] for a in axes], np.int8)
    with pytest.raises(LayerError) as caught:
        Layer(**fields)
    named = next(name for name, axes in Layer.AXES.items() if axis in axes)
    assert str(caught.value) == (
        f"{named}: layer 'test' has {axis} = 131072: a reduction must be shorter than 131072"
    )


def test_longest_reduction_runs():
    layer = quantized_layer(gaussian(1, 1, 1, 1))
    long = {"x": np.full((1, 131071), -128, np.int8), "weight": np.full((1, 131071), -128, np.int8)}
    long["lora_A"] = np.full((1, 131071), 127, np.int8)
    result = run_layer(replace(layer, **long, gain=ZERO))
    assert result.tensors["Y_acc"].tolist() == [[131071 << 14]]
    assert result.sticky == set()


# Updates --------------------------------------------------------------------------------------


def master_of(rng: np.random.Generator, shape: tuple[int, int], tensor_id: int, v: bool) -> Master:
    return Master(
        w=rng.integers(-32767, 32768, shape).astype(np.int16),
        scale=Scale(43000, -16),
        tensor_id=tensor_id,
        v=rng.integers(-32767, 32768, shape).astype(np.int16) if v else None,
        v_scale=Scale(51000, -21) if v else None,
    )


def reference_update(
    master: Master, gradient: np.ndarray, s_g: tuple, opt: Optimizer, seed: int, step: int
) -> tuple[list, list | None, set[str]]:
    """Section 6 one element at a time."""
    sticky: set[str] = set()
    s_w, s_v = master.scale, master.v_scale or ZERO
    lr, wd = opt.lr, opt.weight_decay
    rows, cols = master.w.shape
    w_out, v_out = [], []

    def sat(x: int, bit: str) -> int:
        if abs(x) > 32767:
            sticky.add(bit)
        return ref.clamp(x, -32767, 32767)

    for i, j in itertools.product(range(rows), range(cols)):
        w, g = int(master.w[i, j]), int(gradient[i, j])
        v = 0 if master.v is None else int(master.v[i, j])

        def rs(x: int, r: tuple, stream: int, i: int = i, j: int = j) -> int:
            word = ref.word_at(seed, step, master.tensor_id, stream, i, j)
            return ref.clamp(ref.scaled(x, r, word), *ref.INT32)

        def near(x: int, r: tuple) -> int:
            return ref.clamp(ref.scaled(x, r), *ref.INT32)

        if wd[0]:
            w = sat(w - rs(w, ref.multiply(lr, wd), 1), "master_range")
        if opt.kind == "sgd":
            w = sat(w - rs(g, ref.divide(ref.multiply(lr, s_g), s_w), 0), "master_range")
        elif opt.kind == "momentum":
            v = sat(rs(v, opt.beta, 2) + rs(g, ref.divide(s_g, s_v), 3), "momentum_range")
            w = sat(w - rs(v, ref.divide(ref.multiply(lr, s_v), s_w), 0), "master_range")
        else:
            unit = ref.divide(s_g, s_v)
            c = near(v, opt.b1) + near(g, ref.multiply(opt.b1c, unit))
            v = sat(
                rs(v, opt.b2, 2) + rs(g, ref.multiply(opt.b2c, unit), 3),
                "momentum_range",
            )
            w = sat(w - rs((c > 0) - (c < 0), ref.divide(lr, s_w), 0), "master_range")
        w_out.append(w)
        v_out.append(v)
    return w_out, None if master.v is None else v_out, sticky


@pytest.mark.parametrize("kind", ["sgd", "momentum", "lion"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 60.0])
@pytest.mark.parametrize("largest", [100, 1 << 31, 1 << 47])
def test_updates_equal_the_reference(kind, weight_decay, largest):
    rng = np.random.default_rng([SEED, largest])
    seen: set[str] = set()
    gradient_scales = (Scale(45000, -25), Scale(60000, -40), Scale(33000, 12), ZERO)
    for tensor_id, (lr, s_g) in enumerate(itertools.product((1e-4, 0.05), gradient_scales)):
        opt = calibrate.make_optimizer(kind, lr, weight_decay=weight_decay)
        master = master_of(rng, (7, 5), tensor_id, kind != "sgd")
        before = master.w.copy()
        gradient = rng.integers(-largest, largest, (7, 5), endpoint=True)
        gradient[0] = 0
        sticky: set[str] = set()
        after = update(master, gradient, s_g, opt, seed=-9, step=tensor_id, sticky=sticky)
        w, v, wanted = reference_update(master, gradient, s_g, opt, -9, tensor_id)
        assert after.w.dtype == np.int16
        assert after.w.reshape(-1).tolist() == w
        assert (None if after.v is None else after.v.reshape(-1).tolist()) == v
        assert sticky == wanted
        assert np.array_equal(master.w, before)
        assert np.array_equal(
            after.w, update(master, gradient, s_g, opt, seed=-9, step=tensor_id).w
        )
        seen |= sticky
    if weight_decay == 60.0:  # lr * wd = 3: the decay overshoots
        assert "master_range" in seen
    if kind != "sgd" and largest == 1 << 47:
        assert "momentum_range" in seen


def test_lion_steps_against_the_sign_of_c():
    """c = 0.9 v + 0.1 g has g's sign, v's or none, where v = 0.99 v + 0.01 g keeps v's own."""
    lion = calibrate.make_optimizer("lion", 4.0)
    v = np.array([[100, 100, -100, 100, 0, 0]], np.int16)
    gradient = np.array([[-2000, 10, 2000, -950, 0, 7]])
    master = Master(w=np.zeros_like(v), scale=ONE, tensor_id=0, v=v, v_scale=ONE)
    after = update(master, gradient, ONE, lion, seed=SEED, step=0)
    assert after.w.tolist() == [[4, -4, -4, 4, 0, -4]]
    assert after.v is not None
    assert np.sign(after.v[0, :4]).tolist() == [1, 1, -1, 1]


def test_sgd_moves_as_float_mathematics_on_average():
    """A step far below one unit of the master still moves it, by stochastic rounding."""
    master = Master(w=np.zeros((100, 100), np.int16), scale=ONE, tensor_id=0)
    opt = calibrate.make_optimizer("sgd", 0.01)
    gradient = np.full((100, 100), 5)
    for step in range(50):
        master = update(master, gradient, ONE, opt, seed=SEED, step=step)
    # 50 steps of 0.05 units: 2.5 with a standard deviation of 1.54, in the mean 0.0154: 5 sigmas.
    assert abs(float(master.w.mean()) + 2.5) < 0.08


def test_momentum_decays_to_zero_without_gradient():
    opt = calibrate.make_optimizer("momentum", 1e-3, beta=0.99)
    start = np.full((8, 8), 50, np.int16)
    master = Master(w=start, scale=ONE, tensor_id=1, v=start, v_scale=ONE)
    for step in range(2000):
        master = update(master, np.zeros((8, 8), np.int64), ONE, opt, seed=1, step=step)
    assert master.v is not None
    assert np.abs(master.v).mean() < 5


def test_training_reduces_a_real_loss():
    """SGD on the device's arithmetic alone brings an adapter towards a low-rank teacher."""
    rng = np.random.default_rng(SEED)
    n, d, k, r = 32, 24, 16, 2
    x, w = rng.normal(size=(n, d)), rng.normal(size=(k, d)) / np.sqrt(d)
    delta = 0.5 * rng.normal(size=(k, r)) @ rng.normal(size=(r, d)) / np.sqrt(d)
    target = x @ (w + delta).T
    a = calibrate.load_master(rng.normal(size=(r, d)) / np.sqrt(d), 0)
    b = calibrate.load_master(np.zeros((k, r)), 1)
    opt = calibrate.make_optimizer("sgd", 2.0)
    (qx, sx), (qw, sw) = calibrate.quantize_float(x, 8), calibrate.quantize_float(w, 8)

    def step_with(dy: np.ndarray) -> LayerResult:
        copy_a, copy_b = working_copy(a, 8), working_copy(b, 8)
        q_dy, s_dy = calibrate.quantize_float(dy, 8)
        scales = {"lora_A": copy_a.scale, "lora_B": copy_b.scale}
        return run_layer(
            Layer(
                name="train",
                x=qx,
                weight=qw,
                lora_A=copy_a.q,
                lora_B=copy_b.q,
                dy=q_dy,
                scales={**scales, "x": sx, "weight": sw, "dy": s_dy},
                gain=ONE,
            )
        )

    losses = []
    for step in range(60):
        forward = step_with(np.zeros((n, k)))
        y = forward.tensors["Y_acc"] * calibrate.to_float(forward.scales["Y_acc"])
        losses.append(0.5 * float(((y - target) ** 2).mean()))
        got = step_with((y - target) / y.size)
        a = update(a, got.tensors["dA"], got.scales["dA"], opt, seed=SEED, step=step)
        b = update(b, got.tensors["dB"], got.scales["dB"], opt, seed=SEED, step=step)
    assert losses[-1] < 0.1 * losses[0], losses


def test_working_copy_follows_the_quantizer():
    rng = np.random.default_rng(SEED)
    master = master_of(rng, (3, 4), 0, False)
    for bits in (8, 16):
        copy = working_copy(master, bits)
        q, scale, _, _ = ref.quantized(master.w.tolist(), master.scale, bits)
        assert copy.q.tolist() == q
        assert copy.scale == scale
    zero = working_copy(replace(master, w=np.zeros((3, 4), np.int16)), 8)
    assert zero.scale == ZERO
    assert not zero.q.any()


def test_master_scale_leaves_room():
    for x, wanted in ((np.zeros((2, 2)), 0.25), (np.full((2, 2), -0.5), 2.0)):
        master = calibrate.load_master(x, 4, ONE)
        assert master.scale == calibrate.from_float(wanted / 32767)
        assert np.allclose(master.w * calibrate.to_float(master.scale), x, atol=1e-4)
        assert master.v is not None
        assert not master.v.any()
    assert calibrate.load_master(np.zeros((2, 2)), 0).v is None


def test_momentum_scale_puts_the_largest_gradient_at_8192():
    steps = [(100, Scale(40000, -3)), (7, Scale(50000, 2)), (0, ONE), (1000, ZERO)]
    scale = momentum_scale(steps)
    largest = 7 * calibrate.to_float(Scale(50000, 2))
    assert abs(largest / calibrate.to_float(scale) / 8192 - 1) < 1e-4
    assert momentum_scale([]) == momentum_scale([(0, ONE)]) == ONE


def test_optimizer_settings():
    opt = calibrate.make_optimizer("lion", 1e-3, b1=0.9, b2=0.99, weight_decay=0.01)
    assert opt.b1c == calibrate.from_float(1 - 0.9)
    assert opt.b2c == calibrate.from_float(1 - 0.99)
    assert calibrate.make_optimizer("sgd", 1.0).weight_decay == ZERO


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: calibrate.make_optimizer("adam", 1.0),
            "optimizer 'adam': must be one of sgd, mom",
        ),
        (lambda: calibrate.make_optimizer("sgd", 0.0), "lr: scale is zero: must not be"),
        (lambda: calibrate.make_optimizer("sgd", -1.0), "lr = -1.0: must be finite and not neg"),
        (lambda: calibrate.make_optimizer("sgd", np.nan), "lr = nan: must be finite"),
        (
            lambda: calibrate.make_optimizer("sgd", 1.0, weight_decay=np.inf),
            "weight_decay = inf: must be finite",
        ),
        (lambda: calibrate.make_optimizer("lion", 1.0, b1=1.5), "b1 = 1.5: must be from 0 to 1"),
        (lambda: calibrate.make_optimizer("lion", 1.0, b2=np.nan), "b2 = nan: must be from 0 to 1"),
        (lambda: Optimizer(kind="sgd", lr=Scale(1, 0)), "lr: scale m = 1: must be 0 or from"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_masters_are_refused():
    w = np.zeros((2, 3), np.int16)
    good: dict[str, Any] = {"w": w, "scale": ONE, "tensor_id": 0}
    for change, message in (
        ({"v": w}, "momentum: v and v_scale must come together"),
        ({"w": np.zeros((2, 3))}, "master: float64 of rank 2: must be int16 of rank 2"),
        ({"w": np.zeros(3, np.int16)}, "master: int16 of rank 1: must be int16 of rank 2"),
        ({"scale": ZERO}, "master: scale is zero: must not be"),
        ({"scale": Scale(0, 1)}, r"master: scale \(0, 1\): the zero scale is"),
        ({"v": w, "v_scale": ZERO}, "momentum: scale is zero: must not be"),
        ({"v": w[:1], "v_scale": ONE}, r"momentum: shape \(1, 3\): must be \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Master(**{**good, **change})
    sgd, lion = calibrate.make_optimizer("sgd", 1.0), calibrate.make_optimizer("lion", 1.0)
    gradient = np.zeros((2, 3), np.int32)
    with pytest.raises(ValueError, match=r"gradient: shape \(3, 2\): must be \(2, 3\)"):
        update(Master(**good), gradient.T, ONE, sgd, seed=0, step=0)
    with pytest.raises(ValueError, match="scale m = 5"):
        update(Master(**good), gradient, Scale(5, 0), sgd, seed=0, step=0)
    with pytest.raises(ValueError, match="optimizer 'lion': the master copy has no momentum"):
        update(Master(**good), gradient, ONE, lion, seed=0, step=0)
