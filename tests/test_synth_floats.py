# amaranth: UnusedElaboratable=no
"""The comparison PEs' float arithmetic, bit for bit against NumPy and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from systolora.synth.baselines.floating import FloatAdder, FloatMultiplier
from systolora.synth.baselines.textbook import ARITHMETICS, TextbookPE

LEAST, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)


def settle(exact: np.ndarray) -> np.ndarray:
    """float64 to what the units make of it: nearest, even; no subnormals; saturated."""
    with np.errstate(over="ignore"):
        # Far from where float32 has fewer bits, so that it rounds to 24 of them
        rounded = (exact * 2.0**100).astype(np.float32).astype(np.float64) / 2.0**100
        large = exact.astype(np.float32)
    small = np.where(np.abs(rounded) < LEAST, np.copysign(0.0, exact), rounded)
    value = np.where(np.abs(exact) > 1, large.astype(np.float64), small)
    return np.clip(value, -LARGEST, LARGEST).astype(np.float32)


def flushed(numbers: np.ndarray) -> np.ndarray:
    values = numbers.astype(np.float64)
    return np.where(np.abs(values) < LEAST, np.copysign(0.0, values), values)


def operands(kind: str, count: int, seed: int) -> np.ndarray:
    """Bit patterns: any, near each other, ties, zeros, subnormals, largest."""
    rng = np.random.default_rng(seed)
    bits = 16 if kind == "bf16" else 32
    fraction = bits - 9
    anything = rng.integers(0, 1 << bits, count, np.uint64)
    near = (anything & ~np.uint64(255 << fraction)) | (
        rng.integers(110, 140, count).astype(np.uint64) << np.uint64(fraction)
    )
    few = near & ~np.uint64((1 << (fraction - 3)) - 1)
    special = rng.choice(
        np.array([0, 1, 1 << fraction, (1 << fraction) - 1, (255 << fraction) - 1], np.uint64),
        count,
    ) | (rng.integers(0, 2, count).astype(np.uint64) << np.uint64(bits - 1))
    picked = rng.integers(0, 8, count)
    mixed = np.select([picked < 3, picked < 5, picked < 7], [near, few, anything], special)
    # No infinities and no NaN
    low_exponent = (mixed >> np.uint64(fraction)) & np.uint64(255)
    mixed = np.where(low_exponent == 255, mixed ^ np.uint64(1 << fraction), mixed)
    return mixed.astype(np.uint16 if bits == 16 else np.uint32)


def floats(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16 if bits.dtype == np.uint16 else np.float32)


def simulate(unit, ports: dict[str, np.ndarray], output: str, latency: int) -> np.ndarray:
    m = Module()
    m.submodules.unit = unit
    simulator = Simulator(m)
    simulator.add_clock(1e-9)
    found: list[int] = []
    count = len(next(iter(ports.values())))

    async def bench(ctx):
        for cycle in range(count + latency):
            for name, values in ports.items():
                ctx.set(getattr(unit, name), int(values[min(cycle, count - 1)]))
            if cycle >= latency:
                found.append(ctx.get(getattr(unit, output)))
            await ctx.tick()

    simulator.add_testbench(bench)
    simulator.run()
    return np.array([value & 0xFFFFFFFF for value in found], np.uint32)


def assert_bits(found: np.ndarray, expected: np.ndarray, *inputs: np.ndarray) -> None:
    wrong = np.flatnonzero(found != expected.view(np.uint32))
    assert not len(wrong), [
        (*(hex(i[n]) for i in inputs), hex(found[n]), hex(expected.view(np.uint32)[n]))
        for n in wrong[:5]
    ]


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_product(kind):
    a, b = operands(kind, 3000, 1), operands(kind, 3000, 2)
    fraction = ARITHMETICS[kind].fraction
    assert fraction is not None
    unit = FloatMultiplier(fraction)
    found = simulate(unit, {"a": a, "b": b}, "p", unit.latency(fraction))
    expected = settle(flushed(floats(a)) * flushed(floats(b)))
    assert_bits(found, expected, a, b)
    # The plain product of the libraries, wherever nothing is flushed or saturated
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        plain = floats(a).astype(np.float32) * floats(b).astype(np.float32)
    usual = np.isfinite(plain) & (np.abs(plain) >= LEAST)
    usual &= (np.abs(flushed(floats(a))) > 0) & (np.abs(flushed(floats(b))) > 0)
    assert usual.sum() > 1000
    assert_bits(found[usual], plain[usual], a[usual], b[usual])


def test_sum():
    a, b = operands("fp32", 4000, 3), operands("fp32", 4000, 4)
    b[:500] = a[:500] ^ np.uint32(1 << 31)  # cancels
    b[500:1500] = a[500:1500] ^ np.random.default_rng(5).integers(0, 1 << 12, 1000, np.uint32)
    found = simulate(FloatAdder(), {"a": a, "b": b}, "s", FloatAdder.LATENCY)
    # float64 has more than twice the bits of float32, so rounding twice is rounding once
    assert_bits(found, settle(flushed(floats(a)) + flushed(floats(b))), a, b)


@pytest.mark.parametrize("kind", list(ARITHMETICS))
def test_pe(kind):
    """Loads a weight, then multiplies and adds a stream."""
    shape = ARITHMETICS[kind]
    rng = np.random.default_rng(6)
    if kind == "int8":
        a, w = rng.integers(-127, 128, 200), int(rng.integers(-127, 128))
        s = rng.integers(-(1 << 20), 1 << 20, 200)
        expected = (s + a * w).astype(np.int32).view(np.uint32)
        patterns, weight, sums = a & 0xFF, w & 0xFF, s & 0xFFFFFFFF
    else:
        number = ml_dtypes.bfloat16 if kind == "bf16" else np.float32
        a, w = rng.normal(size=200).astype(number), rng.normal(size=1).astype(number)
        s = rng.normal(size=200).astype(np.float32)
        product = a.astype(np.float32) * w.astype(np.float32)
        expected = (s + product).astype(np.float32).view(np.uint32)
        word = np.uint16 if kind == "bf16" else np.uint32
        patterns, weight, sums = a.view(word), int(w.view(word)[0]), s.view(np.uint32)
    wide = np.concatenate([np.zeros(1 + shape.product, np.uint32), sums.astype(np.uint32)])
    length = len(wide)
    ports = {
        "load_in": np.array([1] + [0] * (length - 1)),
        "w_in": np.full(length, weight),
        "a_in": np.concatenate([[0], patterns, np.zeros(shape.product, int)]),
        "s_in": wide,
    }
    found = simulate(TextbookPE(kind), ports, "s_out", shape.add)
    assert (found[1 + shape.product :] == expected).all()
