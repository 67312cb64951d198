# amaranth: UnusedElaboratable=no
"""Rescale and RescaleControl against `numerics.rescale`: every shift, every destination."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

from systolora.rtl.rescale import Limit, Rescale, RescaleControl, control_layout
from systolora_sim import numerics
from systolora_sim.numerics import Scale

SEED = 20260801
RANGES = {
    Limit.ACC48: numerics.int_range(48),
    Limit.ACC32: numerics.int_range(32),
    Limit.INT8: (-127, 127),
    Limit.INT16: (-32767, 32767),
}
LIMITS = {48: tuple(Limit), 32: (Limit.ACC32, Limit.INT8)}
#: No destination: what a value is before it is saturated.
UNLIMITED = 1 << 62
MANTISSAS = (0x8000, 0xFFFF, 0x8001, 0xAAAA, 0xC000)


@dataclass
class Op:
    """Values that share a Scale, a destination and a rounding; one word for each value."""

    r: Scale
    limit: Limit
    stochastic: bool
    values: list[int]
    words: list[int]

    def expected(self) -> list[tuple[int, int]]:
        """(result, clipped) of every value, from the golden model."""
        values = np.array(self.values, np.int64)
        words = np.array(self.words, np.uint32) if self.stochastic else None
        low, high = RANGES[self.limit]
        results, any_clipped = numerics.rescale(values, self.r, low, high, words)
        exact, _ = numerics.rescale(values, self.r, -UNLIMITED, UNLIMITED, words)
        clipped = results != exact
        assert any_clipped == clipped.any()
        return list(zip(results.tolist(), clipped.astype(int).tolist(), strict=True))


class TB(wiring.Component):
    """A lane with its control, as a design places them."""

    def __init__(self, acc_bits: int) -> None:
        super().__init__({})
        self.control = RescaleControl(acc_bits)
        self.lane = Rescale(acc_bits)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.control = self.control
        m.submodules.lane = self.lane
        m.d.comb += self.lane.controls.eq(self.control.controls)
        return m


def run(acc_bits: int, ops: Iterable[Op]) -> int:
    """Runs the operations back to back, as the contract allows; returns the values compared.

    Everything that the contract does not fix is poisoned with random bits: the word of a nearest
    rounding, the value and the word before and after the operations.
    """
    rng = random.Random(SEED)
    tb = TB(acc_bits)
    inputs: dict[int, tuple[int, int | None]] = {}  # cycle: (value, word or don't care)
    controls: dict[int, Op] = {}  # cycle from which the control's inputs are this operation's
    expected: dict[int, tuple[tuple[int, int], str]] = {}
    cycle = RescaleControl.LATENCY
    for op in ops:
        controls[cycle - RescaleControl.LATENCY] = op
        results = op.expected()
        for value, word, result in zip(op.values, op.words, results, strict=True):
            inputs[cycle] = (value, word if op.stochastic else None)
            where = f"{value} * {op.r} {op.limit} stochastic={op.stochastic} word={word:#x}"
            expected[cycle + Rescale.LATENCY] = (result, where)
            cycle += 1
    cycles = cycle + Rescale.LATENCY
    compared = 0

    async def produce(ctx):
        half = 1 << (acc_bits - 1)
        for now in range(cycles):
            if now in controls:
                op = controls[now]
                ctx.set(tb.control.m, op.r.m)
                ctx.set(tb.control.e, op.r.e)
                ctx.set(tb.control.limit, op.limit)
                ctx.set(tb.control.stochastic, op.stochastic)
            poison = rng.randrange(-half, half)
            ctx.set(tb.lane.value, inputs[now][0] if now in inputs else poison)
            _, word = inputs.get(now - Rescale.WORD_STAGE, (0, None))
            ctx.set(tb.lane.word, rng.getrandbits(32) if word is None else word)
            await ctx.tick()

    async def consume(ctx):
        nonlocal compared
        now = 0
        async for _, _, result, clipped in ctx.tick().sample(tb.lane.result, tb.lane.clipped):
            if now in expected:
                want, where = expected[now]
                assert (result, clipped) == want, f"seed {SEED}: {where}"
                compared += 1
            now += 1
            if now == cycles:
                break

    sim = Simulator(tb)
    sim.add_clock(1e-8)
    sim.add_testbench(produce)
    sim.add_testbench(consume)
    sim.run()
    print(f"Rescale({acc_bits}): seed {SEED}, {compared} values in {cycles} cycles")
    assert compared == len(expected)
    return compared


def corner_values(rng: random.Random, acc_bits: int, r: Scale, limit: Limit) -> list[int]:
    """Extremes, ties, and the neighbourhoods of the destination's ends, where there are any."""
    low, high = numerics.int_range(acc_bits)
    values = [0, 1, -1, low, high, low + 1]
    values += [rng.randint(low, high), rng.randint(low, high) >> rng.randrange(acc_bits)]
    if r.m:
        shift = 15 - r.e
        zeros = (r.m & -r.m).bit_length() - 1
        if 0 <= shift - 1 - zeros < acc_bits - 1:
            # An odd multiple of 2**(shift - 1): exactly half way between two integers.
            odd = 2 * rng.randrange(-8, 8) + 1
            values += [sign * odd << (shift - 1 - zeros) for sign in (1, -1)]
            values += [values[-1] + 1, values[-1] - 1]
        if -64 < shift < 64:
            for end in RANGES[limit]:
                # Where the result passes the end, and half a unit beyond.
                for doubled in (2 * end, 2 * end + 1, 2 * end - 1):
                    exact = doubled << (shift - 1) if shift > 0 else doubled >> (1 - shift)
                    values += [exact // r.m, exact // r.m + 1]
    return [value for value in values if low <= value <= high]


def words_for(rng: random.Random, r: Scale, values: list[int]) -> list[int]:
    """Random words and the extreme ones; for most values the two around the carry."""
    words = []
    for value in values:
        shift = 15 - r.e
        product = value * r.m
        aligned = product << (32 - shift) if shift <= 32 else product >> (shift - 32)
        carry_at = -aligned % (1 << 32)
        below = (carry_at - 1) % (1 << 32)
        words.append(
            rng.choice([carry_at, below, carry_at, below, 0, (1 << 32) - 1, rng.getrandbits(32)])
        )
    return words


def make_op(rng: random.Random, acc_bits: int, r: Scale, limit: Limit, stochastic: bool) -> Op:
    values = corner_values(rng, acc_bits, r, limit)
    return Op(r, limit, stochastic, values, words_for(rng, r, values))


@pytest.mark.parametrize("acc_bits", [48, 32])
def test_every_exponent(acc_bits: int) -> None:
    """All 1024 exponents, each with two mantissas, the destination and rounding in turn."""
    rng = random.Random(SEED)
    kinds = [(limit, mode) for limit in LIMITS[acc_bits] for mode in (False, True)]
    ops = []
    for index, e in enumerate(range(-512, 512)):
        for turn, m in enumerate((rng.choice(MANTISSAS), rng.randrange(1 << 15, 1 << 16))):
            limit, stochastic = kinds[(index + turn * 3) % len(kinds)]
            ops.append(make_op(rng, acc_bits, Scale(m, e), limit, stochastic))
    assert run(acc_bits, ops) > 2048 * 8


@pytest.mark.parametrize("acc_bits", [48, 32])
@pytest.mark.parametrize("stochastic", [False, True])
def test_every_shift(acc_bits: int, stochastic: bool) -> None:
    """Every shift that matters, 40 to the left up to 65 to the right, times every destination."""
    rng = random.Random(SEED + stochastic)
    ops = [
        make_op(rng, acc_bits, Scale(rng.choice(MANTISSAS), 15 - shift), limit, stochastic)
        for shift in range(-40, 66)
        for limit in LIMITS[acc_bits]
    ]
    run(acc_bits, ops)


@pytest.mark.parametrize("acc_bits", [48, 32])
@pytest.mark.parametrize("stochastic", [False, True])
def test_random_values(acc_bits: int, stochastic: bool) -> None:
    """Long runs of random values, one in each cycle, of scales that a layer would have."""
    rng = random.Random(SEED + 2 + stochastic)
    ops = []
    for _ in range(24):
        limit = rng.choice(LIMITS[acc_bits])
        r = Scale(rng.randrange(1 << 15, 1 << 16), rng.randrange(-acc_bits, 4))
        values = [
            rng.randrange(-(1 << (acc_bits - 1)), 1 << (acc_bits - 1)) >> rng.randrange(acc_bits)
            for _ in range(150)
        ]
        ops.append(Op(r, limit, stochastic, values, words_for(rng, r, values)))
    run(acc_bits, ops)


@pytest.mark.parametrize("acc_bits", [48, 32])
def test_zero_scale(acc_bits: int) -> None:
    """The zero Scale gives zeros, whatever the word, and clips nothing."""
    rng = random.Random(SEED)
    ops = [
        make_op(rng, acc_bits, Scale(m, e), limit, stochastic)
        for limit in LIMITS[acc_bits]
        for stochastic in (False, True)
        for m, e in ((0, 0), (0xFFFF, 20))
    ]
    for op in ops[::2]:
        assert set(op.expected()) == {(0, 0)}
        op.words = [(1 << 32) - 1] * len(op.values)
    run(acc_bits, ops)


@pytest.mark.parametrize("acc_bits", [48, 32])
def test_ties_go_to_even(acc_bits: int) -> None:
    """Half way values of every shift, against the rule itself."""
    ops = []
    for shift in range(16, acc_bits + 15):
        # m = 2**15: v * r = v / 2**(shift - 15), so 2**(shift - 16) is one half.
        room = min(acc_bits + 15 - shift, 4)
        odds = [odd for odd in (1, 3, 5, 7) if odd < 1 << room]
        values = [sign * odd << (shift - 16) for odd in odds for sign in (1, -1)]
        op = Op(Scale(1 << 15, 15 - shift), Limit.ACC32, False, values, [0] * len(values))
        halves = [sign * odd for odd in odds for sign in (1, -1)]
        assert [result for result, _ in op.expected()] == [round(half / 2) for half in halves]
        ops.append(op)
    run(acc_bits, ops)


@pytest.mark.parametrize("acc_bits", [48, 32])
def test_latency(acc_bits: int) -> None:
    """LATENCY, WORD_STAGE and the control's LATENCY are what a single pulse measures."""
    tb = TB(acc_bits)
    seen: dict[str, list[int]] = {"value": [], "word": [], "control": []}

    async def measure(ctx):
        ctx.set(tb.control.limit, Limit.ACC32)
        for cycle in range(20):
            if cycle == 5:
                ctx.set(tb.control.m, 0x8000)
                ctx.set(tb.control.e, 0)
            if ctx.get(tb.lane.controls.multiplier) and not seen["control"]:
                seen["control"].append(cycle - 5)
            await ctx.tick()
        for cycle in range(20):
            ctx.set(tb.lane.value, 3 if cycle == 5 else 0)
            if ctx.get(tb.lane.result) == 3:
                seen["value"].append(cycle - 5)
            await ctx.tick()
        # Half of one: the word 2**31 carries, no other does.
        ctx.set(tb.control.e, -1)
        ctx.set(tb.control.stochastic, 1)
        await ctx.tick().repeat(RescaleControl.LATENCY)
        ctx.set(tb.lane.value, 1)
        await ctx.tick().repeat(Rescale.LATENCY)
        for cycle in range(20):
            ctx.set(tb.lane.word, 1 << 31 if cycle == 5 else 0)
            if ctx.get(tb.lane.result) == 1:
                seen["word"].append(cycle - 5)
            await ctx.tick()

    sim = Simulator(tb)
    sim.add_clock(1e-8)
    sim.add_testbench(measure)
    sim.run()
    assert seen["control"] == [RescaleControl.LATENCY]
    assert seen["value"] == [Rescale.LATENCY]
    assert seen["word"] == [Rescale.LATENCY - Rescale.WORD_STAGE]


@pytest.mark.parametrize("acc_bits", [48, 32])
def test_one_multiplier(acc_bits: int) -> None:
    text = rtlil.convert(Rescale(acc_bits), emit_src=False)
    assert text.count("cell $mul ") == 1
    control = rtlil.convert(RescaleControl(acc_bits), emit_src=False)
    assert "cell $mul " not in control


def test_design_keys() -> None:
    """Equal keys, equal circuits; different parameters, different keys."""
    designs: dict[object, str] = {}
    for block in (Rescale, RescaleControl):
        for acc_bits in (32, 48):
            for _ in range(2):
                dut = block(acc_bits)
                text = rtlil.convert(dut, emit_src=False)
                assert designs.setdefault(dut.design_key, text) == text
    assert len(designs) == len(set(designs.values())) == 4


@pytest.mark.parametrize("acc_bits", [0, 16, 64, "48"])
@pytest.mark.parametrize("block", [Rescale, RescaleControl, control_layout])
def test_refuses_other_widths(block, acc_bits) -> None:
    with pytest.raises(ValueError, match=f"acc_bits must be 32 or 48, not {acc_bits!r}"):
        block(acc_bits)
