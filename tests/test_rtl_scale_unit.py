"""ScaleUnit against `numerics.from_int`, `mul` and `div`, with stalls on both streams."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from systolora.rtl.scale_unit import Operation, ScaleUnit
from systolora_sim import numerics
from systolora_sim.numerics import ONE, ZERO, Scale

SEED = 20260803


class Request(NamedTuple):
    """One operation, and what it must give."""

    op: Operation
    a: Scale = ONE
    b: Scale = ONE
    n: int = 0

    def expected(self) -> tuple[Scale, int]:
        sticky: set[str] = set()
        if self.op == Operation.FROM_INT:
            scale = numerics.from_int(self.n)
        elif self.op == Operation.MUL:
            scale = numerics.mul(self.a, self.b, sticky)
        else:
            scale = numerics.div(self.a, self.b, sticky)
        return scale, int("scale_range" in sticky)

    def latency(self) -> int:
        """Cycles from the request to its response, from the docstring of ScaleUnit."""
        if self.op == Operation.FROM_INT:
            zeros = 48 - self.n.bit_length()
            return 1 + zeros // 8 + zeros % 8 if self.n else 1
        if self.op == Operation.MUL:
            product = self.a.m * self.b.m
            return 3 if 0 < product < 1 << 31 else 2
        if ZERO in (self.a, self.b):
            return 1
        return 18 if self.a.m < self.b.m else 17


def never(rng: random.Random) -> Iterator[int]:
    return itertools.repeat(1)


def every_fourth(rng: random.Random) -> Iterator[int]:
    return itertools.cycle((1, 1, 1, 0))


def randomly(rng: random.Random) -> Iterator[int]:
    while True:
        yield rng.getrandbits(1)


def rarely_ready(rng: random.Random) -> Iterator[int]:
    """Mostly stalled, so that responses wait."""
    while True:
        yield int(rng.randrange(8) == 0)


Pattern = Callable[[random.Random], Iterator[int]]


def run(requests: list[Request], producing: Pattern = never, consuming: Pattern = never) -> None:
    """Sends the requests and compares every response; no more than these may come."""
    dut = ScaleUnit()
    go, take = producing(random.Random(SEED)), consuming(random.Random(SEED + 1))
    sent: list[int] = []  # cycles of the request beats
    first_valid: list[int] = []  # cycles in which each response was first there

    async def produce(ctx):
        now = 0
        for request in requests:
            while not next(go):
                # Not a request: it must not be looked at.
                ctx.set(dut.request.payload, {"op": Operation.MUL, "a": {"m": 1 << 15}})
                await ctx.tick()
                now += 1
            fields = request._replace(a=request.a._asdict(), b=request.b._asdict())._asdict()
            ctx.set(dut.request.payload, fields)
            ctx.set(dut.request.valid, 1)
            ready = 0
            while not ready:
                *_, ready = await ctx.tick().sample(dut.request.ready)
                now += 1
            sent.append(now - 1)
            ctx.set(dut.request.valid, 0)

    async def consume(ctx):
        now = 0
        for request in requests:
            want, in_range = request.expected()
            held = None
            while True:
                ready = next(take)
                ctx.set(dut.response.ready, ready)
                *_, valid, response = await ctx.tick().sample(
                    dut.response.valid, dut.response.payload
                )
                now += 1
                if not valid:
                    assert held is None, f"seed {SEED}: {request}: the response was withdrawn"
                    continue
                got = (Scale(response.scale.m, response.scale.e), response.range)
                if held is None:
                    first_valid.append(now - 1)
                    held = got
                assert got == held, f"seed {SEED}: {request}: the response changed"
                if ready:
                    break
            assert held == (want, in_range), f"seed {SEED}: {request}"
        ctx.set(dut.response.ready, 1)
        for _ in range(3 * ScaleUnit.LATENCY):
            *_, valid = await ctx.tick().sample(dut.response.valid)
            assert not valid, "a response without a request"

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(produce)
    sim.add_testbench(consume)
    sim.run()
    print(f"seed {SEED}: {len(requests)} requests in {first_valid[-1] + 1} cycles")
    latencies = [there - here for here, there in zip(sent, first_valid, strict=True)]
    assert latencies == [request.latency() for request in requests]


def random_scale(rng: random.Random, e_low: int = -512, e_high: int = 511) -> Scale:
    if rng.randrange(40) == 0:
        return ZERO
    m = rng.choice([0x8000, 0xFFFF, 0x8001, rng.randrange(1 << 15, 1 << 16)])
    return Scale(m, rng.randint(e_low, e_high))


def random_request(rng: random.Random) -> Request:
    n = rng.getrandbits(48) >> rng.randrange(49)
    wide = rng.random() < 0.5
    a, b = (random_scale(rng, *((-512, 511) if wide else (-60, 60))) for _ in range(2))
    if rng.randrange(8) == 0:
        b = Scale(a.m, b.e) if a.m else ZERO
    return Request(rng.choice(list(Operation)), a, b, n)


@pytest.mark.parametrize("consuming", [never, every_fourth, randomly, rarely_ready])
@pytest.mark.parametrize("producing", [never, every_fourth, randomly])
def test_random_requests(producing: Pattern, consuming: Pattern) -> None:
    rng = random.Random(SEED)
    run([random_request(rng) for _ in range(300)], producing, consuming)


def test_from_int() -> None:
    """Zero, every power of two with both neighbours, every number of ones, both ends."""
    integers = {0, 1, (1 << 47), (1 << 48) - 1, 127, 32767}
    for bit in range(48):
        integers |= {1 << bit, (1 << bit) - 1, (1 << bit) + 1}
        integers |= {(1 << 48) - (1 << bit)}
    run([Request(Operation.FROM_INT, n=n) for n in sorted(integers) if n < 1 << 48])


@pytest.mark.parametrize("op", [Operation.MUL, Operation.DIV])
def test_mantissas(op: Operation) -> None:
    """Pairs from the ends and the middle: equal ones, neighbours, products around 2**31."""
    ms = [0x8000, 0x8001, 0x8002, 0xB504, 0xB505, 0xC000, 0xFFFE, 0xFFFF]
    run([Request(op, Scale(a, 3), Scale(b, -2)) for a in ms for b in ms])


@pytest.mark.parametrize("op", [Operation.MUL, Operation.DIV])
def test_exponents_saturate(op: Operation) -> None:
    """Sums and differences around both ends of the range, with either rule for the exponent."""
    requests = []
    for target in (-1024, *range(-515, -508), *range(508, 515), 1023):
        for ea in (-512, -1, 0, 511):
            eb = target - ea if op == Operation.MUL else ea - target
            if -512 <= eb <= 511:
                for ma, mb in ((0x8000, 0x8000), (0xFFFF, 0xFFFF), (0x8000, 0xFFFF)):
                    requests.append(Request(op, Scale(ma, ea), Scale(mb, eb)))
    assert {request.expected()[1] for request in requests} == {0, 1}
    assert {request.expected()[0].e for request in requests} >= {-512, -511, 510, 511}
    run(requests)


@pytest.mark.parametrize("op", [Operation.MUL, Operation.DIV])
def test_zero(op: Operation) -> None:
    """Zero on either side gives (0, 0) and no range bit, whatever the other exponent."""
    other = [Scale(0x8000, -512), Scale(0xFFFF, 511), ONE, ZERO]
    requests = [Request(op, ZERO, scale) for scale in other]
    requests += [Request(op, scale, ZERO) for scale in other]
    assert {request.expected() for request in requests} == {(ZERO, 0)}
    run(requests)


def test_latency_is_reached() -> None:
    """LATENCY is the largest of the latencies that `run` compares in every test."""
    rng = random.Random(SEED)
    requests = [Request(Operation.FROM_INT, n=1 << bit) for bit in range(48)]
    requests += [Request(op, Scale(0x8000, 0), Scale(0xFFFF, 0)) for op in Operation]
    requests += [random_request(rng) for _ in range(2000)]
    assert max(request.latency() for request in requests) == ScaleUnit.LATENCY


def test_design_key() -> None:
    """Equal keys, equal circuits."""
    first, second = ScaleUnit(), ScaleUnit()
    assert first.design_key == second.design_key
    assert rtlil.convert(first, emit_src=False) == rtlil.convert(second, emit_src=False)


def test_one_multiplier() -> None:
    assert rtlil.convert(ScaleUnit(), emit_src=False).count("cell $mul ") == 1
