"""RandomWord against `numerics.mix`."""

import random

import numpy as np
from amaranth.sim import Simulator

from systolora.contract import COL_STEP, ROW_STEP
from systolora.rtl.random_word import RandomWord
from systolora_sim import numerics

SEED = 20260802
MASK = (1 << 32) - 1


def run(inputs: list[int]) -> list[int]:
    """The words of the inputs, one entering in each cycle."""
    dut = RandomWord()
    cycles = len(inputs) + RandomWord.LATENCY
    words: list[int] = []

    async def produce(ctx):
        for x in inputs:
            ctx.set(dut.x, x)
            await ctx.tick()

    async def consume(ctx):
        async for _, _, word in ctx.tick().sample(dut.word):
            words.append(word)
            if len(words) == cycles:
                break

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(produce)
    sim.add_testbench(consume)
    sim.run()
    return words[RandomWord.LATENCY :]


def test_words() -> None:
    """Zero, all ones, every single bit and its complement, every run of ones, random."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    inputs = [0, MASK]
    inputs += [1 << bit for bit in range(32)] + [MASK ^ (1 << bit) for bit in range(32)]
    inputs += [(1 << bit) - 1 for bit in range(32)]
    inputs += [rng.getrandbits(32) for _ in range(5000)]
    want = numerics.mix(np.array(inputs, np.uint32)).tolist()
    for x, word, expected in zip(inputs, run(inputs), want, strict=True):
        assert word == expected, f"seed {SEED}: x = {x:#010x}"


def test_words_of_a_tensor() -> None:
    """Inputs that step as a lane's do give the words of the logical tensor."""
    seed_word = numerics.seed_word(1, 2, 3)
    rows, cols = 9, 7
    inputs = [
        (seed_word + row * ROW_STEP + col * COL_STEP) & MASK
        for row in range(rows)
        for col in range(cols)
    ]
    words = run(inputs)
    assert words == numerics.random_words(seed_word, rows, cols).reshape(-1).tolist()
    assert words[4 * cols + 5] == 0xE2270AE4  # the check value of numerics section 7


def test_latency() -> None:
    dut = RandomWord()
    seen = []

    async def measure(ctx):
        for cycle in range(20):
            ctx.set(dut.x, 1 if cycle == 5 else 0)
            if ctx.get(dut.word):
                seen.append(cycle - 5)
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(measure)
    sim.run()
    assert seen == [RandomWord.LATENCY]
