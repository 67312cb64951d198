# amaranth: UnusedElaboratable=no
"""Several memory buses as one wide memory: order, pace, responses; one cycle after the other."""

import itertools
import random

import pytest
from amaranth.sim import Simulator

from systolora.rtl.axi import Response
from systolora.rtl.channels import ChannelGang, FallThrough

SEED = 9100
BITS = 64


def simulate(component, bench) -> None:
    sim = Simulator(component)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("depth", [2, 4])
def test_a_queue_that_passes_at_once(depth):
    """Each beat in order; what is offered stays; a beat passes an empty queue in its cycle."""
    queue = FallThrough(8, depth)

    async def bench(ctx):
        ctx.set(queue.source.valid, 1)
        ctx.set(queue.source.payload, 77)
        ctx.set(queue.sink.ready, 1)
        assert ctx.get(queue.sink.valid) and ctx.get(queue.sink.payload) == 77
        await ctx.tick()
        rng = random.Random(SEED)
        sent, got, held = 0, 0, None
        while got < 400:
            phase = (got // 50) % 4
            ctx.set(queue.source.valid, offered := int(rng.random() < (1, 0.3, 1, 0.6)[phase]))
            ctx.set(queue.source.payload, sent % 256)
            ctx.set(queue.sink.ready, takes := int(rng.random() < (1, 1, 0.3, 0.6)[phase]))
            valid, payload = ctx.get(queue.sink.valid), ctx.get(queue.sink.payload)
            ready = ctx.get(queue.source.ready)
            assert valid == (sent > got or offered)  # of a full queue, the oldest
            assert ready == (sent - got < depth)
            if held is not None:
                assert valid and payload == held
            held = payload if valid and not takes else None
            if valid:
                assert payload == got % 256
            sent, got = sent + (offered and ready), got + (valid and takes)
            await ctx.tick()

    simulate(queue, bench)


@pytest.mark.parametrize("channels", [2, 4])
def test_addresses_go_to_all(channels):
    """The same length, the address divided; each channel takes it when it likes."""
    gang = ChannelGang(channels=channels, data_bits=BITS)

    async def bench(ctx):
        rng = random.Random(SEED)
        for way in ("ar", "aw"):
            expected = [
                (rng.randrange(1 << 30) * channels * BITS // 8, rng.randrange(16))
                for _ in range(60)
            ]
            taken = [[] for _ in range(channels)]
            sent = 0
            while min(map(len, taken)) < len(expected):
                offered = sent < len(expected)
                ctx.set(getattr(gang.wide, f"{way}valid"), offered)
                if offered:
                    address, length = expected[sent]
                    ctx.set(getattr(gang.wide, f"{way}addr"), address)
                    ctx.set(getattr(gang.wide, f"{way}len"), length)
                for number, bus in enumerate(gang.m_axi):
                    ready = rng.random() < 0.2 + 0.8 * (number == 0)
                    ctx.set(getattr(bus, f"{way}ready"), ready)
                    if ready and ctx.get(getattr(bus, f"{way}valid")):
                        assert ctx.get(getattr(bus, f"{way}size")) == 3
                        names = (f"{way}addr", f"{way}len")
                        taken[number].append(tuple(ctx.get(getattr(bus, n)) for n in names))
                sent += offered and ctx.get(getattr(gang.wide, f"{way}ready"))
                await ctx.tick()
            divided = [(address // channels, length) for address, length in expected]
            assert taken == [divided] * channels

    simulate(gang, bench)


def test_the_worst_response():
    """A beat, and an answer, is as bad as its worst part; RLAST comes with it."""
    gang = ChannelGang(channels=2, data_bits=BITS)

    async def bench(ctx):
        ctx.set(gang.wide.rready, 1)
        ctx.set(gang.wide.bready, 1)
        for one, other in itertools.product(Response, repeat=2):
            for bus, response in zip(gang.m_axi, (one, other), strict=True):
                ctx.set(bus.rresp, response)
                ctx.set(bus.bresp, response)
                ctx.set(bus.rlast, one == Response.OKAY)
            for first in (0, 1):  # the other one comes three cycles later
                for way, got in (("r", gang.wide.rresp), ("b", gang.wide.bresp)):
                    valid = getattr(gang.wide, f"{way}valid")
                    ctx.set(getattr(gang.m_axi[first], f"{way}valid"), 1)
                    await ctx.tick()
                    ctx.set(getattr(gang.m_axi[first], f"{way}valid"), 0)
                    await ctx.tick().repeat(2)
                    assert not ctx.get(valid)
                    ctx.set(getattr(gang.m_axi[1 - first], f"{way}valid"), 1)
                    assert ctx.get(valid) and ctx.get(got) == Response(max(one.value, other.value))
                    if way == "r":
                        assert ctx.get(gang.wide.rlast) == (one == Response.OKAY)
                    await ctx.tick()
                    ctx.set(getattr(gang.m_axi[1 - first], f"{way}valid"), 0)

    simulate(gang, bench)


def test_a_channel_that_is_ahead():
    """It is taken up to DEPTH beats; then a wide beat passes in each cycle of the slower one."""
    gang = ChannelGang(channels=2, data_bits=BITS)
    fast, slow = gang.m_axi

    async def bench(ctx):
        ctx.set(gang.wide.rready, 1)
        ctx.set(fast.rvalid, 1)
        taken = 0
        for cycle in range(40):
            ctx.set(fast.rdata, taken)
            assert ctx.get(fast.rready) == (cycle < gang.DEPTH)
            assert not ctx.get(gang.wide.rvalid)
            taken += ctx.get(fast.rready)
            await ctx.tick()
        ctx.set(slow.rvalid, 1)
        for beat in range(100):
            ctx.set(fast.rdata, taken)
            ctx.set(slow.rdata, 1000 + beat)
            assert ctx.get(slow.rready) and ctx.get(gang.wide.rvalid)
            assert ctx.get(gang.wide.rdata) == (1000 + beat) << BITS | beat
            taken += ctx.get(fast.rready)
            await ctx.tick()

    simulate(gang, bench)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 1, "data_bits": 64}, "channels must be a power of two, at least 2, not 1"),
        ({"channels": 3, "data_bits": 64}, "channels must be a power of two, at least 2, not 3"),
        ({"channels": 4, "data_bits": 1024}, "data_bits = 1024: 4 channels are too wide"),
        ({"channels": 2, "data_bits": 100}, "data_bits = 100: 2 channels are too wide"),
    ],
)
def test_parameters(fields, message):
    with pytest.raises(ValueError, match=message):
        ChannelGang(**fields)
    with pytest.raises(ValueError, match="depth must be at least 2, not 1"):
        FallThrough(8, 1)
