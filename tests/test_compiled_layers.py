"""Layers as programs on the functional machine equal the golden model, to the bit.

Many shapes, widths and modes on many arrays; the machine itself proves from the tokens that the
order between the queues does not matter.
"""

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora_sim.bench.cases import random_layer
from systolora_sim.compare import differences
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.limits import CompileError, check_layer
from systolora_sim.lowering import compile_layer
from systolora_sim.machine_backend import run_layer as run_compiled
from systolora_sim.numerics import Scale
from systolora_sim.products import product_records

CONFIGS = {
    "tiny": preset("tiny"),
    "ecp5": preset("ecp5"),
    "8x16s4": AcceleratorConfig(rows=8, cols=16, segments=4, acc_depth=64),
    "16x8s8": AcceleratorConfig(rows=16, cols=8, segments=8, acc_depth=128),
    "4x8s1-shallow": AcceleratorConfig(rows=4, cols=8, segments=1, acc_depth=16),
    "8x4s4-shallow": AcceleratorConfig(rows=8, cols=4, segments=4, acc_depth=32),
}
INT8 = AcceleratorConfig(rows=8, cols=8, segments=2, int16=False, acc_depth=64)

OUTPUTS = ("H", "Y", "dH", "dX")
WIDE: dict[str, int] = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", *OUTPUTS), 16)

#: N, d, k, r
SHAPES = [
    (1, 1, 1, 1),
    (1, 9, 5, 2),
    (3, 1, 1, 7),
    (5, 7, 9, 3),
    (16, 16, 16, 8),
    (13, 20, 31, 4),
    (41, 17, 34, 9),
    (7, 70, 3, 17),
]

MODES = {
    "int8": {},
    "bias": {"bias": True},
    "int16": {"bits": WIDE},
    "int16-extremes": {"bits": WIDE, "extremes": True},
    "int8-extremes": {"extremes": True, "bias": True},
    "x-int16": {"bits": dict.fromkeys(("x", "lora_A", "lora_B", "H", "Y"), 16)},
    "dy-int16": {"bits": dict.fromkeys(("dy", "dH", "dX"), 16)},
    "outputs-int16": {"bits": dict.fromkeys(OUTPUTS, 16)},
    "stochastic": {"stochastic": frozenset(OUTPUTS), "seed": -5, "step": 7, "index": 3},
    "delayed": {
        "delayed": frozenset(OUTPUTS),
        "amax": {"H": 900, "Y": 4000, "dH": 2500, "dX": 70000},
    },
    "delayed-first": {"delayed": frozenset(OUTPUTS), "amax": {"Y": 0, "dX": 50}},
    "delayed-stochastic": {
        "delayed": frozenset({"H", "dX"}),
        "stochastic": frozenset({"H", "Y", "dX"}),
        "amax": {"H": 1, "dX": 1 << 40},
        "bias": True,
    },
    "no-dx": {"want_dx": False},
}


def check(layer: Layer, config: AcceleratorConfig) -> LayerResult:
    golden = run_layer(layer)
    assert differences(run_compiled(layer, config), golden) == {}
    return golden


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONFIGS)
def test_layers(name, mode):
    for number, shape in enumerate(SHAPES):
        fields = {"want_dx": True} | MODES[mode]
        layer = random_layer(100 + number, *shape, **fields)
        print(f"seed {100 + number}, shape {shape}, configuration {CONFIGS[name].digest}")
        check(layer, CONFIGS[name])


@pytest.mark.parametrize("seed", range(40))
def test_random_layers(seed):
    """Shapes, widths, modes and arrays at random, accumulators from scarce to plenty."""
    rng = np.random.default_rng(seed)
    rows, cols = (int(rng.choice([4, 8, 16])) for _ in range(2))
    config = AcceleratorConfig(
        rows=rows,
        cols=cols,
        segments=int(rng.choice([s for s in (1, 2, 4, 8) if s <= min(rows, cols)])),
        acc_depth=4 * rows << int(rng.integers(0, 5)),
    )
    n, d, k = (int(rng.integers(1, limit)) for limit in (60, 80, 80))
    rank = int(rng.integers(1, 20))
    some = {name for name in OUTPUTS if rng.random() < 0.4}
    delayed = frozenset(name for name in OUTPUTS if rng.random() < 0.3)
    print(f"seed {seed}, shape {(n, d, k)}, rank {rank}, {config}")
    layer = random_layer(
        seed,
        n,
        d,
        k,
        rank,
        bits={name: int(rng.choice([8, 16])) for name in WIDE},
        bias=bool(rng.random() < 0.5),
        want_dx=True,
        stochastic=frozenset(some),
        delayed=delayed,
        amax={name: int(rng.integers(0, 1 << 20)) for name in delayed},
        seed=int(rng.integers(-(1 << 31), 1 << 31)),
    )
    check(layer, config)


def test_int8_array():
    for number, shape in enumerate(SHAPES):
        check(random_layer(number, *shape, want_dx=True, bias=True), INT8)


def test_every_status_bit():
    """A layer that saturates everything: the bits are the golden model's."""
    huge = random_layer(1, 9, 10, 11, 3, want_dx=True, bias=True)
    huge.gain = Scale(60000, 60)
    result = check(huge, CONFIGS["tiny"])
    assert "acc_sat" in result.sticky

    far = random_layer(2, 9, 10, 11, 3, want_dx=True)
    far.scales["dy"], far.gain = Scale(40000, 500), Scale(40000, 100)
    assert "scale_range" in check(far, CONFIGS["tiny"]).sticky

    late = random_layer(
        3, 9, 10, 11, 3, want_dx=True, delayed=frozenset({"Y"}), amax={"Y": 100}
    )  # fmt: skip
    assert check(late, CONFIGS["tiny"]).sticky == {"clip_delayed"}


def test_zero_tensors():
    """lora_B = 0 as at the start of a training: dH is all zero, and its scale is zero."""
    layer = random_layer(4, 6, 7, 8, 3, want_dx=True)
    layer.lora_B = np.zeros_like(layer.lora_B)
    assert check(layer, CONFIGS["tiny"]).scales["dH"].is_zero


def test_deep_low_planes():
    """A low-rank term deeper than 32768: passes of two low planes are cut there."""
    layer = random_layer(5, 3, 2, 3, 33000, bits=WIDE, extremes=True, want_dx=True)
    check(layer, AcceleratorConfig(rows=4, cols=4, segments=1, acc_depth=4096))


def test_a_layer_that_the_array_cannot_do():
    with pytest.raises(CompileError, match="x is int16: the configuration was generated without"):
        check_layer(random_layer(1, 2, 2, 2, 1, bits={"x": 16}), INT8)
    with pytest.raises(CompileError, match=r"bits\.dH = 16: the configuration was generated"):
        compile_layer(random_layer(1, 2, 2, 2, 1, bits={"dH": 16}), INT8)


def test_product_records():
    """MACs count true operands: M * K * N times passes, and the low-rank term's."""
    layer = random_layer(
        1, 5, 7, 9, 3, want_dx=True, bits={"weight": 16, "H": 16, "lora_B": 16}
    )  # fmt: skip
    records = {record.name: record for record in product_records(layer)}
    assert list(records) == ["H", "Y", "dH", "dB", "dA", "dX"]
    assert (records["H"].m, records["H"].k, records["H"].n, records["H"].macs) == (3, 7, 5, 105)
    assert records["Y"].macs == 5 * 7 * 9 * 2 + 5 * 3 * 9 * 4
    assert (records["dX"].passes, records["dX"].macs) == (2, 5 * 9 * 7 * 2 + 5 * 3 * 7)
