"""A memory behind AXI4 for Amaranth's simulator: in order, with stalls on every channel."""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

from stream_patterns import Pattern


class AxiMemory:
    """Bytes from address 0, answering one master at each of its ports.

    Parameters
    ----------
    data : bytearray
        The memory.
    pattern : Pattern
        Stalls of each channel.
    seed : int
        Of the stalls.
    latency : int
        Cycles from an address to its first beat, at least.
    """

    def __init__(self, data: bytearray, pattern: Pattern, seed: int, latency: int = 3) -> None:
        self.data, self._pattern, self._latency = data, pattern, latency
        self._seeds = iter(range(seed, seed + 1000))
        #: (address, beats) of each read burst in order; cycles of each read beat
        self.reads: list[tuple[int, int]] = []
        self.beat_cycles: list[int] = []

    def _stalls(self) -> Iterator[int]:
        return self._pattern(random.Random(next(self._seeds)))

    def reader(self, axi: Any) -> Any:
        """The testbench that answers the read channels of `axi`."""
        go_address, go_data = self._stalls(), self._stalls()
        bus = len(axi.rdata) // 8

        async def run(ctx: Any) -> None:
            beats: deque[tuple[int, int, bool]] = deque()  # earliest cycle, address, last
            now, offered, held = 0, False, None
            while True:
                ready = next(go_address)
                ctx.set(axi.arready, ready)
                if not offered and beats and beats[0][0] <= now and next(go_data):
                    _, address, last = beats[0]
                    word = int.from_bytes(self.data[address : address + bus], "little")
                    ctx.set(axi.rdata, word)
                    ctx.set(axi.rlast, last)
                    ctx.set(axi.rvalid, 1)
                    offered = True
                _, _, valid, address, length, taken = await ctx.tick().sample(
                    axi.arvalid, axi.araddr, axi.arlen, axi.rready
                )
                assert held is None or (valid, address, length) == held, "an address changed"
                held = (valid, address, length) if valid and not ready else None
                if valid and ready:
                    self.reads.append((address, length + 1))
                    for beat in range(length + 1):
                        beats.append((now + self._latency, address + beat * bus, beat == length))
                if offered and taken:
                    self.beat_cycles.append(now)
                    beats.popleft()
                    ctx.set(axi.rvalid, 0)
                    ctx.set(axi.rlast, 0)
                    ctx.set(axi.rdata, random.Random(now).getrandbits(8 * bus))
                    offered = False
                now += 1

        return run

    def writer(self, axi: Any) -> Any:
        """The testbench that answers the write channels of `axi`."""
        go_address, go_data, go_answer = (self._stalls() for _ in range(3))
        bus = len(axi.wdata) // 8

        async def run(ctx: Any) -> None:
            bursts: deque[int] = deque()
            words: deque[tuple[int, int, int]] = deque()
            place, answers, offered = None, 0, False
            while True:
                readies = next(go_address), next(go_data)
                ctx.set(axi.awready, readies[0])
                ctx.set(axi.wready, readies[1])
                if not offered and answers and next(go_answer):
                    ctx.set(axi.bvalid, 1)
                    offered = True
                _, _, valid, address, w_valid, word, strobes, last, taken = await ctx.tick().sample(
                    axi.awvalid,
                    axi.awaddr,
                    axi.wvalid,
                    axi.wdata,
                    axi.wstrb,
                    axi.wlast,
                    axi.bready,
                )
                if offered and taken:
                    answers -= 1
                    ctx.set(axi.bvalid, 0)
                    offered = False
                if valid and readies[0]:
                    bursts.append(address)
                if w_valid and readies[1]:
                    words.append((word, strobes, last))
                while words and (place is not None or bursts):
                    place = bursts.popleft() if place is None else place
                    word, strobes, last = words.popleft()
                    for byte in range(bus):
                        if strobes >> byte & 1:
                            self.data[place + byte] = word >> (8 * byte) & 255
                    place += bus
                    if last:
                        place, answers = None, answers + 1

        return run
