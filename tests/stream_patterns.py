"""Stalls, and both sides of a stream, for unit tests in Amaranth's simulator."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from amaranth.hdl import Value

Pattern = Callable[[random.Random], Iterator[int]]


def never(rng: random.Random) -> Iterator[int]:
    """Never stalled."""
    return itertools.repeat(1)


def randomly(rng: random.Random) -> Iterator[int]:
    """Stalled every second cycle, on average."""
    while True:
        yield rng.getrandbits(1)


def rarely(rng: random.Random) -> Iterator[int]:
    """Mostly stalled, so that whatever feeds the stream waits."""
    while True:
        yield int(rng.randrange(6) == 0)


PATTERNS = [never, randomly, rarely]


def raw(ctx: Any, port: Any) -> int:
    """A stream's payload as one integer."""
    return ctx.get(Value.cast(port.payload))


async def send(ctx: Any, port: Any, value: int, go: Iterator[int]) -> None:
    """One beat to the stream `port`, its payload as one integer; poison while nothing is sent."""
    payload = Value.cast(port.payload)
    while not next(go):
        ctx.set(payload, random.Random(value).getrandbits(len(payload)))
        await ctx.tick()
    ctx.set(payload, value)
    ctx.set(port.valid, 1)
    ready = 0
    while not ready:
        *_, ready = await ctx.tick().sample(port.ready)
    ctx.set(port.valid, 0)


async def take(ctx: Any, port: Any, go: Iterator[int]) -> int:
    """One beat of the stream `port` as one integer; checks that it is not withdrawn or changed."""
    held = None
    while True:
        ready = next(go)
        ctx.set(port.ready, ready)
        *_, valid, value = await ctx.tick().sample(port.valid, Value.cast(port.payload))
        assert held is None or (valid and value == held), "a beat was withdrawn or changed"
        if valid and ready:
            ctx.set(port.ready, 0)
            return value
        held = value if valid else None


async def silent(ctx: Any, port: Any, cycles: int) -> None:
    """Takes all that comes for some cycles: nothing may come."""
    ctx.set(port.ready, 1)
    for _ in range(cycles):
        *_, valid = await ctx.tick().sample(port.valid)
        assert not valid, "a beat too many"


def watchdog(cycles: int) -> Callable[[Any], Any]:
    """A background testbench that fails after so many cycles, instead of waiting for ever."""

    async def bark(ctx: Any) -> None:
        for _ in range(cycles):
            await ctx.tick()
        raise AssertionError(f"not done after {cycles} cycles")

    return bark
