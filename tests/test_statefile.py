"""Training files: what is read, what fills the gaps, what is refused, and split runs by file."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from systolora_sim import calibrate, numerics
from systolora_sim.examples import SD15_FILE
from systolora_sim.golden import Optimizer, momentum_scale
from systolora_sim.layerfile import LayerFileError, write_result
from systolora_sim.numerics import ONE, ZERO, Scale
from systolora_sim.statefile import (
    Options,
    holds_training,
    load_masters,
    load_state,
    write_training,
)
from systolora_sim.training import dry_run_momentum, new_master, run_steps

SEED = 31
N, D, K, R = 4, 6, 5, 2
SHAPES = {"x": (N, D), "weight": (K, D), "lora_A": (R, D), "lora_B": (K, R), "dy": (N, K)}
EXAMPLE = Path(__file__).parent.parent / "examples" / SD15_FILE
LR = Scale(40000, 3)
SGD = Options(optimizer="sgd", lr=2.0)
FACTORS = {"momentum": ["beta"], "lion": ["b1", "b1c", "b2", "b2c"], "sgd": []}

Tensors = dict[str, np.ndarray]
Metadata = dict[str, str]


def scale_of(scale: tuple[int, int]) -> np.ndarray:
    return np.array(scale, np.int32)


def inputs(seed: int = SEED, adapters: bool = True) -> Tensors:
    """A layer of int8 tensors; lora_A and lora_B only where asked for."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        values = rng.integers(-100, 100, shape).astype(np.int8)
        if adapters or not name.startswith("lora"):
            tensors[name], tensors[f"{name}.scale"] = values, scale_of((40000 + i, -7 - i))
    tensors["gain.scale"] = scale_of((32768, 1))
    return tensors


def masters(seed: int = SEED, momentum: bool = True) -> Tensors:
    rng = np.random.default_rng(seed + 1)
    tensors: Tensors = {}
    for i, name in enumerate(("lora_A", "lora_B")):
        for kind, scale in (("master", (50000 + i, -16)), ("momentum", (60000 + i, -12))):
            if kind == "momentum" and not momentum:
                continue
            values = rng.integers(-9000, 9000, SHAPES[name]).astype(np.int16)
            tensors[f"{name}.{kind}"], tensors[f"{name}.{kind}.scale"] = values, scale_of(scale)
    return tensors


def training_file(kind: str = "lion") -> Tensors:
    """Everything that a file of one layer may hold for that optimizer."""
    tensors = inputs(adapters=False) | masters(momentum=kind != "sgd")
    tensors["seed"], tensors["step"] = np.array([-7], np.int32), np.array([11], np.int32)
    tensors["lr.scale"], tensors["wd.scale"] = scale_of(LR), scale_of((33000, -9))
    for i, name in enumerate(FACTORS[kind]):
        tensors[f"{name}.scale"] = scale_of((51000 + i, -1 - i))
    return tensors


def prefixed(layers: dict[str, Tensors], **shared: np.ndarray) -> Tensors:
    named = {
        f"{layer}/{name}": array for layer, each in layers.items() for name, array in each.items()
    }
    return named | {name.replace("_scale", ".scale"): array for name, array in shared.items()}


def saved(path: Path, tensors: Tensors, metadata: Metadata | None = None) -> Path:
    """Written by the library, not by this package."""
    save_file(tensors, path, metadata)
    return path


def metadata_of(path: Path) -> Metadata:
    with safe_open(path, "numpy") as file:
        return dict(file.metadata())


# Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sgd", "momentum", "lion"])
def test_everything_is_taken_as_it_is(tmp_path, kind):
    tensors = training_file(kind)
    tensors["H.amax"] = np.array([77], np.int64)
    tensors["bias"] = np.arange(K, dtype=np.int32)
    metadata = {
        "optimizer": kind,
        "want_dx": "1",
        "delayed": "H",
        "bits.dX": "16",
        "sticky": "acc_sat,master_range",
        "format": "np",
    }
    state = load_state(saved(tmp_path / "some.safetensors", tensors, metadata))
    assert list(state.layers) == [""]
    assert (state.seed, state.step) == (-7, 11)
    factors = {name: Scale(51000 + i, -1 - i) for i, name in enumerate(FACTORS[kind])}
    assert state.optimizer == Optimizer(kind=kind, lr=LR, weight_decay=Scale(33000, -9), **factors)
    one = state.layers[""]
    assert one.sticky == {"acc_sat", "master_range"}
    assert one.layer.name == "some"
    assert (one.layer.want_dx, one.layer.delayed, one.layer.bits) == (
        True, frozenset({"H"}), {"dX": 16},
    )  # fmt: skip
    assert one.layer.amax == {"H": 77}
    assert one.layer.bias is not None
    for name in ("x", "weight", "dy"):
        assert np.array_equal(getattr(one.layer, name), tensors[name])
        assert one.layer.scales[name] == tuple(tensors[f"{name}.scale"])
    for offset, (name, master) in enumerate((("lora_A", one.a), ("lora_B", one.b))):
        assert np.array_equal(master.w, tensors[f"{name}.master"])
        assert master.scale == tuple(tensors[f"{name}.master.scale"])
        assert master.tensor_id == offset
        if kind == "sgd":
            assert master.v is None
        else:
            assert master.v is not None
            assert np.array_equal(master.v, tensors[f"{name}.momentum"])
            assert master.v_scale == tuple(tensors[f"{name}.momentum.scale"])


def test_adapters_become_masters(tmp_path):
    rng = np.random.default_rng(SEED)
    tensors = inputs()
    real = rng.normal(size=SHAPES["lora_B"]).astype(np.float32)
    tensors["lora_B"] = real
    del tensors["lora_B.scale"]
    one = load_state(saved(tmp_path / "a", tensors), SGD).layers[""]
    value = tensors["lora_A"] * calibrate.to_float(Scale(*tensors["lora_A.scale"].tolist()))
    for master, wanted in ((one.a, value), (one.b, real)):
        assert master.scale == calibrate.master_scale(wanted)
        restored = master.w * calibrate.to_float(master.scale)
        assert np.abs(restored - wanted).max() <= 0.5001 * calibrate.to_float(master.scale)
    # A scale that the file names is used, and one under which the values do not fit is refused.
    tensors["lora_B.master.scale"] = scale_of((32768, -13))
    one = load_state(saved(tmp_path / "b", tensors), SGD).layers[""]
    assert one.b.scale == Scale(32768, -13)
    assert np.array_equal(one.b.w, np.rint(real.astype(np.float64) * 2**13))
    real[0, 0] = 32767.4 / 2**13
    largest = load_state(saved(tmp_path / "d", tensors), SGD).layers[""].b
    assert largest.w[0, 0] == 32767
    real[0, 0] = 4.0  # 32768 units
    with pytest.raises(LayerFileError) as caught:
        load_state(saved(tmp_path / "c", tensors), SGD)
    rule = "too small: the largest of lora_B does not fit int16"
    assert str(caught.value) == f"{tmp_path / 'c'}: lora_B.master.scale: {rule}"


def test_a_master_wins_over_its_adapter(tmp_path):
    tensors = inputs() | masters(momentum=False)
    with_both = load_state(saved(tmp_path / "a", tensors), SGD).layers[""]
    del tensors["lora_A"], tensors["lora_A.scale"], tensors["lora_B"], tensors["lora_B.scale"]
    alone = load_state(saved(tmp_path / "b", tensors), SGD).layers[""]
    assert np.array_equal(with_both.a.w, alone.a.w)
    assert with_both.a.scale == alone.a.scale == Scale(50000, -16)


@pytest.mark.parametrize(
    ("dtype", "metadata", "widths"),
    [
        (np.int8, {}, (8, 8)),
        (np.int16, {}, (16, 16)),
        (np.int8, {"bits.lora_A": "16"}, (16, 8)),
        (np.int16, {"bits.lora_B": "8"}, (16, 8)),
    ],
)
def test_working_copies_follow_x(tmp_path, dtype, metadata, widths):
    """Whatever the width in which the adapter is stored: it is only where the master is from."""
    tensors = inputs()
    tensors["x"] = tensors["x"].astype(dtype)
    tensors["lora_B"] = tensors["lora_B"].astype(np.int16)
    layer = load_state(saved(tmp_path / "a", tensors, metadata), SGD).layers[""].layer
    assert (layer.bits_of("lora_A"), layer.bits_of("lora_B")) == widths


def test_fresh_adapter_of_zeros(tmp_path):
    tensors = inputs()
    tensors["lora_B"][:] = 0
    tensors["lora_B.scale"] = scale_of(ZERO)
    state = load_state(saved(tmp_path / "a", tensors), SGD)
    assert state.layers[""].b.scale == calibrate.from_float(0.25 / 32767)
    result = run_steps(state, 2)
    assert result.state.layers[""].b.w.any()
    assert result.results[""].tensors["dA"].any()


# The optimizer --------------------------------------------------------------------------------


def test_options_and_defaults_fill_in(tmp_path):
    path = saved(tmp_path / "a", inputs())
    options = Options(optimizer="lion", lr=1e-4, weight_decay=0.01)
    wanted = calibrate.make_optimizer("lion", 1e-4, weight_decay=0.01)
    got = load_state(path, options).optimizer
    assert got == replace(wanted, beta=ZERO)
    got = load_state(path, Options(optimizer="momentum", lr=0.5)).optimizer
    assert got == Optimizer(kind="momentum", lr=Scale(32768, -1), beta=calibrate.from_float(0.9))
    assert load_state(path, SGD).optimizer == Optimizer(kind="sgd", lr=Scale(32768, 1))


def test_the_file_wins_and_says_so(tmp_path):
    path = saved(tmp_path / "a", training_file("lion"))
    notes: list[str] = []
    options = Options(optimizer="sgd", lr=0.5, weight_decay=0.25)
    state = load_state(path, options, note=notes.append)
    assert state.optimizer == load_state(path).optimizer
    assert state.optimizer.kind == "lion"
    assert notes == [
        f"{path}: --optimizer sgd is not used: the file says lion",
        f"{path}: --lr 0.5 is not used: the file says 9.76562",
        f"{path}: --weight-decay 0.25 is not used: the file says 0.00196695",
    ]
    notes.clear()
    load_state(path, Options(optimizer="lion", lr=9.765625), note=notes.append)
    assert notes == []


def test_complements_are_found(tmp_path):
    tensors = training_file("lion")
    del tensors["b1c.scale"], tensors["b2.scale"]
    tensors["b1.scale"], tensors["b2c.scale"] = scale_of((49152, -1)), scale_of((32768, -6))
    got = load_state(saved(tmp_path / "a", tensors)).optimizer
    assert (got.b1, got.b1c) == (Scale(49152, -1), Scale(32768, -2))  # 0.75, 0.25
    assert (got.b2c, got.b2) == (Scale(32768, -6), calibrate.from_float(1 - 2**-6))


def test_momentum_scales_come_from_a_dry_run(tmp_path):
    tensors = inputs()
    tensors["lora_A.momentum.scale"] = scale_of((44444, -3))
    state = load_state(saved(tmp_path / "a", tensors), Options(optimizer="momentum", lr=0.01))
    one = state.layers[""]
    assert one.a.v_scale == Scale(44444, -3)
    for master in (one.a, one.b):
        assert master.v is not None
        assert not master.v.any()
    # Not a function of the scale that stands in for it during the run.
    for stand_in in (ONE, Scale(40000, -20)):
        b = new_master(one.b.w, one.b.scale, 1, stand_in)
        before = replace(state, layers={"": replace(one, b=b)})
        assert dry_run_momentum(before, [("", "lora_B")]) == {("", "lora_B"): one.b.v_scale}
    # lora_B begins as zero: lora_A's gradient of the first step is none, and later ones count.
    tensors["lora_B"][:] = 0
    fresh = load_state(saved(tmp_path / "fresh", tensors), Options(optimizer="lion", lr=0.01))
    del tensors["lora_A.momentum.scale"]
    other = load_state(saved(tmp_path / "other", tensors), Options(optimizer="lion", lr=0.01))
    assert fresh.layers[""].a.v_scale == Scale(44444, -3)
    assert other.layers[""].a.v_scale == dry_run_momentum(other, [("", "lora_A")], 4)["", "lora_A"]
    assert other.layers[""].a.v_scale != ONE
    result = run_steps(state, 1).results[""]
    first = momentum_scale([(numerics.amax(result.tensors["dB"]), result.scales["dB"])])
    assert one.b.v_scale is not None
    assert calibrate.to_float(one.b.v_scale) >= calibrate.to_float(first)


# Several layers -------------------------------------------------------------------------------


def several() -> tuple[Tensors, Metadata]:
    """Three layers, one with masters; one name holds a slash, and order is by code point."""
    layers = {
        "up": inputs(1),
        "Zoo/0": inputs(2, adapters=False) | masters(2, momentum=False),
        "mid": inputs(3),
    }
    layers["mid"]["x"] = layers["mid"]["x"].astype(np.int16)
    metadata = {
        "Zoo/0/want_dx": "1",
        "mid/stochastic": "H,dH",
        "up/delayed": "Y",
        "mid/bits.lora_A": "8",
        "made_by": "hand",
        "vendor/key": "left alone",
    }
    return prefixed(layers, lr_scale=scale_of(LR), seed=np.array([5], np.int32)), metadata


def test_layers_are_numbered_in_order_of_their_names(tmp_path):
    tensors, metadata = several()
    state = load_state(saved(tmp_path / "a", tensors, metadata), Options(optimizer="momentum"))
    assert list(state.layers) == ["Zoo/0", "mid", "up"]
    assert (state.seed, state.step, state.optimizer.lr) == (5, 0, LR)
    for index, (name, each) in enumerate(state.layers.items()):
        assert (each.layer.name, each.layer.index) == (name, index)
        assert (each.a.tensor_id, each.b.tensor_id) == (2 * index, 2 * index + 1)
        assert np.array_equal(each.layer.x, tensors[f"{name}/x"])
    zoo, mid, up = state.layers.values()
    assert (zoo.layer.want_dx, mid.layer.want_dx, up.layer.want_dx) == (True, False, False)
    assert mid.layer.stochastic == {"H", "dH"}
    assert up.layer.delayed == {"Y"}
    assert (mid.layer.bits_of("lora_A"), mid.layer.bits_of("lora_B")) == (8, 16)
    assert np.array_equal(zoo.a.w, tensors["Zoo/0/lora_A.master"])


def test_order_is_of_names_not_of_tensors(tmp_path):
    """ "." sorts before "/", so the tensors of up.1 come before those of up."""
    tensors = prefixed({"up.1": inputs(1), "up": inputs(2), "up/x": inputs(3)})
    state = load_state(saved(tmp_path / "a", tensors), SGD)
    assert [(name, each.layer.index) for name, each in state.layers.items()] == [
        ("up", 0), ("up.1", 1), ("up/x", 2),
    ]  # fmt: skip
    assert np.array_equal(state.layers["up/x"].layer.x, inputs(3)["x"])


def test_one_layer_may_have_a_prefix(tmp_path):
    plain = saved(tmp_path / "plain", training_file("lion"))
    shared = {name: array for name, array in training_file("lion").items() if name in (
        "seed", "step", "lr.scale", "wd.scale", "b1.scale", "b1c.scale", "b2.scale", "b2c.scale",
    )}  # fmt: skip
    tensors = {
        name if name in shared else f"only/{name}": array
        for name, array in training_file("lion").items()
    }
    named = saved(tmp_path / "named", tensors)
    outs = []
    for path in (plain, named):
        result = run_steps(load_state(path), 2)
        outs.append(tmp_path / f"{path.name}.out")
        write_training(outs[-1], result)
    first, second = (load_file(out) for out in outs)
    assert {name if name in shared else f"only/{name}" for name in first} == set(second)
    for name, array in first.items():
        assert np.array_equal(array, second[name if name in shared else f"only/{name}"])
    assert metadata_of(outs[1]) == {
        "optimizer": "lion",
        "only/sticky": metadata_of(outs[0])["sticky"],
    }


# Masters alone as the state -------------------------------------------------------------------


def test_a_state_of_masters_leaves_the_rest_to_the_layer_file(tmp_path):
    tensors = training_file("momentum")
    layer = saved(tmp_path / "layer", tensors)
    alone = saved(tmp_path / "masters", masters(SEED + 5, momentum=False))
    state = load_state(layer, resume=alone)
    assert (state.seed, state.step, state.optimizer.lr) == (-7, 11, LR)
    one = state.layers[""]
    assert np.array_equal(one.a.w, masters(SEED + 5)["lora_A.master"])
    assert one.b.v is not None
    assert not one.b.v.any()
    notes: list[str] = []
    load_state(layer, SGD, resume=alone, note=notes.append)
    assert notes[0] == f"{layer}: --optimizer sgd is not used: the file says momentum"


def test_load_masters(tmp_path):
    tensors, metadata = several()
    path = saved(tmp_path / "a", tensors, metadata)
    state = load_state(path, SGD)
    got = load_masters(path)
    assert list(got) == list(state.layers)
    for name, each in state.layers.items():
        for tensor, master in (("lora_A", each.a), ("lora_B", each.b)):
            w, scale = got[name][tensor]
            assert scale == master.scale
            assert np.array_equal(w, master.w)


# What comes back ------------------------------------------------------------------------------


def test_output_holds_results_and_state(tmp_path):
    tensors = training_file("momentum")
    path = saved(tmp_path / "a", tensors, {"want_dx": "1", "delayed": "H"})
    result = run_steps(load_state(path), 3)
    write_training(tmp_path / "out", result)
    got = load_file(tmp_path / "out")
    write_result(tmp_path / "last", result.results[""])
    last = load_file(tmp_path / "last")
    assert {"H", "Y", "dH", "dX", "Y_acc", "dA", "dB", "H.amax", "dA.scale"} <= set(last)
    held = {f"{t}.{kind}" for t in ("lora_A", "lora_B") for kind in ("master", "momentum")}
    scales = {f"{name}.scale" for name in (*held, "lr", "wd", "beta")}
    assert set(got) == set(last) | held | scales | {"seed", "step"}
    assert all(np.array_equal(got[name], array) for name, array in last.items())
    assert all(got[name].dtype == np.int16 for name in held)
    assert (got["seed"].tolist(), got["step"].tolist()) == ([-7], [14])
    assert got["step"].dtype == np.int32
    after = result.state.layers[""]
    assert np.array_equal(got["lora_A.master"], after.a.w)
    assert after.b.v is not None
    assert np.array_equal(got["lora_B.momentum"], after.b.v)
    for name in ("lora_A.master.scale", "lora_B.momentum.scale", "lr.scale", "beta.scale"):
        assert np.array_equal(got[name], tensors[name])
    assert metadata_of(tmp_path / "out") == {
        "optimizer": "momentum",
        "sticky": ",".join(sorted(after.sticky)),
    }


CASES = list(itertools.product(["sgd", "momentum", "lion"], [False, True]))


@pytest.mark.parametrize(("kind", "many"), CASES)
@pytest.mark.parametrize("merged", [False, True])
def test_a_run_split_by_files_is_the_whole_run(tmp_path, kind, many, merged):
    if many:
        tensors, metadata = several()
        metadata |= {"optimizer": kind}
        options = Options(weight_decay=1e-3)
    else:
        tensors, metadata = inputs(), {"delayed": "H,dH", "stochastic": "Y"}
        options = Options(optimizer=kind, lr=30.0 if kind != "lion" else 0.01)
    path = saved(tmp_path / "layers.safetensors", tensors, metadata)
    start = load_state(path, options)
    write_training(tmp_path / "whole", run_steps(start, 5))
    write_training(tmp_path / "half", run_steps(start, 2))
    if merged:
        both = saved(
            tmp_path / "merged.safetensors",
            tensors | load_file(tmp_path / "half"),
            metadata | metadata_of(tmp_path / "half"),
        )
        again = load_state(both)
    else:
        # The options are there already; nothing but the state may decide.
        again = load_state(path, resume=tmp_path / "half")
    write_training(tmp_path / "joined", run_steps(again, 3))
    assert (tmp_path / "joined").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "half").read_bytes() != (tmp_path / "whole").read_bytes()


def test_sticky_bits_survive_a_split(tmp_path):
    tensors = training_file("sgd")
    tensors["lora_B.master"][:] = -32768
    path = saved(tmp_path / "a", tensors, {"optimizer": "sgd"})
    write_training(tmp_path / "one", run_steps(load_state(path), 1))
    assert "master_range" in metadata_of(tmp_path / "one")["sticky"]
    held = load_file(tmp_path / "one")
    held["lora_B.master"][:] = 0
    held["lr.scale"] = scale_of((32768, -400))
    one = saved(tmp_path / "calm", held, metadata_of(tmp_path / "one"))
    after = run_steps(load_state(path, resume=one), 1)
    assert "master_range" in after.state.layers[""].sticky


def test_the_shipped_layer_trains(tmp_path):
    state = load_state(EXAMPLE, Options(optimizer="lion", lr=1e-4))
    assert not holds_training(EXAMPLE)
    result = run_steps(state, 3)
    assert result.state.layers[""].sticky == frozenset()
    for before, after in (
        (state.layers[""].a, result.state.layers[""].a),
        (state.layers[""].b, result.state.layers[""].b),
    ):
        moved = np.abs(after.w.astype(int) - before.w).max() * calibrate.to_float(before.scale)
        assert 1e-4 < moved < 4e-4  # three steps of 1e-4, each rounded to a unit or so


# What is refused ------------------------------------------------------------------------------

Change = Callable[[Tensors, Metadata], Any]


def put(name: str, array: Any, dtype: Any = np.int32) -> Change:
    return lambda tensors, _: tensors.update({name: np.array(array, dtype)})


def drop(*names: str) -> Change:
    def change(tensors: Tensors, _: Metadata) -> None:
        for name in names:
            del tensors[name]

    return change


def meta(key: str, value: str) -> Change:
    return lambda _, metadata: metadata.update({key: value})


MUST = "must be there or given by"
AXES = "[k, r] with"
BAD: list[tuple[Change, str]] = [
    (put("lr.scale", ZERO), "lr.scale: the scale must not be zero"),
    (put("lr.scale", (3, 0)), "lr.scale: scale m = 3: must be 0 or from 32768 to 65535"),
    (put("b2.scale", (32768, 512)), "b2.scale: scale e = 512: must be from -512 to 511"),
    (put("wd.scale", [1]), "wd.scale: shape [1]: must be [2], m and e"),
    (drop("lr.scale"), f"lr.scale: missing tensor: {MUST} --lr"),
    (
        drop("b1.scale", "b1c.scale", "b2.scale", "b2c.scale"),
        f"metadata optimizer: missing: {MUST} --optimizer",
    ),
    (
        put("beta.scale", (32768, -1)),
        "b1.scale: beta.scale is there too: must be those of one optimizer, beta of momentum, "
        "b1, b1c, b2, b2c of lion",
    ),
    (meta("optimizer", "momentum"), "b1.scale: optimizer momentum has no such factor"),
    (
        meta("optimizer", "adam"),
        "metadata optimizer = 'adam': must be sgd or momentum or lion",
    ),
    (
        lambda t, m: (put("b1.scale", (32768, 1))(t, m), drop("b1c.scale")(t, m)),
        "b1.scale: is above 1: needs b1c.scale beside it",
    ),
    (
        lambda t, m: (drop(*(f"{n}.scale" for n in FACTORS["lion"]))(t, m),
                      meta("optimizer", "sgd")(t, m)),
        "lora_A.momentum: optimizer sgd has no momentum",
    ),
    (put("lora_A.master.scale", ZERO), "lora_A.master.scale: the scale must not be zero"),
    (put("lora_B.momentum.scale", ZERO), "lora_B.momentum.scale: the scale must not be zero"),
    (drop("lora_A.master.scale"), "lora_A.master.scale: missing tensor"),
    (drop("lora_B.momentum.scale"), "lora_B.momentum.scale: missing tensor"),
    (
        drop("lora_B.master"),
        "lora_B: missing tensor: must be there unless lora_B.master is",
    ),
    (put("lora_A.master", np.zeros((R, D)), np.int8), "lora_A.master: dtype I8: must be I16"),
    (put("lora_A.master", [0], np.int16), "lora_A.master: rank 1: must be 2, [r, d]"),
    (
        put("lora_A.master", np.zeros((R, 3)), np.int16),
        "lora_A.master: shape (2, 3): must be [r, d] with d = 6 as in x",
    ),
    (
        put("lora_B.master", np.zeros((7, R)), np.int16),
        f"lora_B.master: shape (7, 2): must be {AXES} k = 5 as in weight",
    ),
    (
        put("lora_B.master", np.zeros((K, 3)), np.int16),
        f"lora_B.master: shape (5, 3): must be {AXES} r = 2 as in lora_A.master",
    ),
    (
        put("lora_B.momentum", np.zeros((R, K)), np.int16),
        "lora_B.momentum: shape (2, 5): must be (5, 2) as the master has",
    ),
    (put("lora_A.momentum", np.zeros((R, D))), "lora_A.momentum: dtype I32: must be I16"),
    (drop("x"), "x: missing tensor"),
    (put("x.scale", ZERO), "x.scale: the scale of x must not be zero"),
    (put("seed", [1, 2]), "seed: shape [2]: must be [1]"),
    (put("step", [1], np.int64), "step: dtype I64: must be I32"),
    (put("lora_C.master", [0]), "lora_C.master: unknown tensor"),
    (put("H.amax", [3], np.int64), "H.amax: H must be in `delayed` to have a record"),
    (meta("bits.lora_A", "4"), "metadata bits.lora_A = '4': must be 8 or 16"),
    (
        meta("sticky", "acc_sat,oops"),
        "metadata sticky: unknown bit 'oops': must be among scale_range, acc_sat, clip_delayed, "
        "master_range, momentum_range",
    ),
    (meta("mid/want_dx", "1"), "metadata mid/want_dx: there is no such layer"),
    (
        put("a/x", np.zeros((N, D)), np.int8),
        "dy: has no layer's prefix, a/x has one: must be the same for all",
    ),
    (put("a/lr.scale", LR), "a/lr.scale: must stand once, without a layer's prefix"),
    (meta("a/optimizer", "sgd"), "metadata a/optimizer: must stand once, without a layer's prefix"),
    (put("/x", [0]), "/x: the layer's name before / must not be empty"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_files_are_one_line(tmp_path, change, message):
    tensors, metadata = training_file("lion"), {}
    path = saved(tmp_path / "good", tensors, metadata)
    load_state(path)
    change(tensors, metadata)
    path = saved(tmp_path / "bad", tensors, metadata)
    with pytest.raises(LayerFileError) as caught:
        load_state(path)
    assert str(caught.value) == f"{path}: {message}"


BAD_LAYERS: list[tuple[Change, str]] = [
    (drop("mid/weight"), "mid/weight: missing tensor"),
    (put("up/nonsense", [0]), "up/nonsense: unknown tensor"),
    (put("Zoo/0/lora_A.master.scale", ZERO),
     "Zoo/0/lora_A.master.scale: the scale must not be zero"),
    (meta("up/delayed", "Q"),
     "metadata up/delayed: unknown tensor 'Q': must be among H, Y, dH, dX"),
    (meta("want_dx", "1"), "metadata want_dx: must have a layer's prefix"),
    (put("gain", [1.0], np.float32),
     "gain: has no layer's prefix, Zoo/0/dy has one: must be the same for all"),
    (put("mid/dy", np.zeros((3, K)), np.int8),
     "mid/dy: shape (3, 5): must be [N, k] with N = 4 as in x"),
    (put("up/lora_A", np.zeros((R, 9)), np.int8),
     "up/lora_A: shape (2, 9): must be [r, d] with d = 6 as in x"),
    (lambda t, _: (t.update({"up/lora_A": np.full((R, D), np.nan, np.float32)}),
                   t.pop("up/lora_A.scale")),
     "up/lora_A: 12 of 12 values are NaN or infinite: must be finite"),
    (lambda t, _: t.update({"up/lora_A": np.ones((R, D), np.float32)}),
     "up/lora_A.scale: lora_A is F32: must not have a scale"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"), BAD_LAYERS, ids=[message[:40] for _, message in BAD_LAYERS]
)
def test_bad_layers_are_named(tmp_path, change, message):
    tensors, metadata = several()
    change(tensors, metadata)
    path = saved(tmp_path / "bad", tensors, metadata)
    with pytest.raises(LayerFileError) as caught:
        load_state(path, Options(optimizer="sgd"))
    assert str(caught.value) == f"{path}: {message}"


def test_bad_states_are_named(tmp_path):
    layer = saved(tmp_path / "layer", inputs())
    state = tmp_path / "state"
    write_training(state, run_steps(load_state(layer, SGD), 1))
    good = load_file(state)

    def refused(message: str, path: Path = layer) -> None:
        with pytest.raises(LayerFileError) as caught:
            load_state(path, resume=state)
        assert str(caught.value) == f"{state}: {message}"

    metadata = {"optimizer": "sgd"}
    for name in ("lora_A.master", "lora_B.master"):
        saved(state, {key: array for key, array in good.items() if key != name}, metadata)
        refused(f"{name}: missing tensor")
    saved(state, good, metadata)
    tensors = inputs()
    tensors["x"], tensors["weight"] = tensors["x"][:, :5], tensors["weight"][:, :5]
    other = saved(tmp_path / "other", {n: np.ascontiguousarray(a) for n, a in tensors.items()})
    refused("lora_A.master: shape (2, 6): must be [r, d] with d = 5 as in x", other)
    saved(state, good | {"dH.amax": np.array([1], np.int64)}, metadata)
    refused("dH.amax: dH must be in `delayed` to have a record")
    many, _ = several()
    refused(
        f"layers (no prefix): must be those of {tmp_path / 'many'}: Zoo/0, mid, up",
        saved(tmp_path / "many", many),
    )
    state.write_bytes(b"nonsense")
    with pytest.raises(LayerFileError, match="not a complete safetensors file"):
        load_state(layer, resume=state)
    state.unlink()
    with pytest.raises(LayerFileError, match=r"state: cannot be read: No such file or directory$"):
        load_state(layer, resume=state)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adam"}, "optimizer 'adam': must be one of sgd, momentum, lion"),
        ({"lr": -1e-4}, "lr = -0.0001: must be finite and positive"),
        ({"lr": 0.0}, "lr = 0.0: must be finite and positive"),
        ({"lr": float("nan")}, "lr = nan: must be finite and positive"),
        ({"weight_decay": -0.5}, "weight decay = -0.5: must be finite and not negative"),
        ({"weight_decay": float("inf")}, "weight decay = inf: must be finite and not negative"),
    ],
)
def test_bad_options(fields, message):
    with pytest.raises(LayerFileError) as caught:
        Options(**fields)
    assert str(caught.value) == message


def test_holds_training(tmp_path):
    def holds(tensors: Tensors, metadata: Metadata | None = None) -> bool:
        return holds_training(saved(tmp_path / "a", tensors, metadata))

    assert not holds(inputs())
    assert not holds(inputs() | {"seed": np.array([1], np.int32), "step": np.array([1], np.int32)})
    assert not holds(inputs(), {"want_dx": "1"})
    assert holds(inputs(), {"optimizer": "sgd"})
    assert holds(several()[0])
    for name in ("lora_A.master", "lora_B.momentum.scale", "lr.scale", "b1c.scale"):
        assert holds(inputs() | {name: np.zeros(1, np.int32)})
    assert not holds_training(tmp_path / "none")
    (tmp_path / "bad").write_bytes(b"\xff" * 20)
    assert not holds_training(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(b"\x02" + bytes(7) + b"[]")
    assert not holds_training(tmp_path / "bad")


def test_an_unwritable_output_leaves_nothing(tmp_path):
    result = run_steps(load_state(saved(tmp_path / "a", inputs()), SGD), 1)
    with pytest.raises(LayerFileError, match="cannot be written"):
        write_training(tmp_path / "missing" / "out", result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
