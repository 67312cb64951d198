"""Readers of memory on one read channel: when bursts are sent, and when their beats come.

hw/systolora/rtl: regions.py (RegionCheck), burst_planner.py, memory_reader.py, read_arbiter.py; the
memory is the bench's (bench/harness/memory.cpp): one beat per cycle, in the order of the
addresses, each burst `latency` cycles after its address at the earliest.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from systolora_sim.timing.kernel import Awaited, Kernel, Process, Stamps

__all__ = [
    "BOUNDARY",
    "CHECK",
    "PLAN",
    "QUEUED",
    "ReadChannel",
    "Reader",
    "Region",
    "burst_lengths",
]

#: Beats of a burst at most, and the boundary that none crosses, bytes.
BURST_BEATS, BOUNDARY = 16, 4096
#: From a request to its checked answer, less the bits of rows - 1.
CHECK = 3
#: From the planner's taking a region to the first burst that it offers.
PLAN = 2
#: From a write into a queue to its first read.
QUEUED = 2


@dataclass(frozen=True, slots=True)
class Region:
    """Rows of memory: as regions.RegionLayout."""

    address: int
    rows: int
    row_bytes: int
    stride: int


@lru_cache(maxsize=1 << 14)
def burst_lengths(place: int, row_bytes: int, bus_bytes: int) -> tuple[int, ...]:
    """Beats of the bursts of one row that starts at that byte of a boundary's 4 KiB."""
    unit = min(BURST_BEATS, BOUNDARY // bus_bytes)
    word = place // bus_bytes
    end = -(-(place + row_bytes) // bus_bytes)
    out = []
    while word < end:
        length = min(unit - word % unit, end - word)
        out.append(length)
        word += length
    return tuple(out)


class ReadChannel:
    """The bus's read side: who may send an address, and when data comes.

    beats : that came
    """

    def __init__(self, latency: int, clients: int) -> None:
        self._latency = latency
        self._free = 0  # first cycle in which a beat may come
        self._wants: list[int] = [-1] * clients  # cycle of the address that a client offers
        self._last, self._granted = 0, -1  # who had the channel last, and when
        self.beats = 0

    def want(self, client: int, time: int) -> None:
        """The client offers an address from cycle `time` on."""
        self._wants[client] = time

    def grant(self, client: int, time: int) -> bool:
        """Whether the client's address goes in this cycle, which all processes have reached.

        One goes per cycle; of several clients, that after the one that had the channel last.
        """
        if self._granted == time:
            return False
        wants, count = self._wants, len(self._wants)
        for distance in range(1, count + 1):
            other = (self._last + distance) % count
            if 0 <= wants[other] <= time:
                if other != client:
                    return False
                break
        self._last, self._granted = client, time
        wants[client] = -1
        return True

    def data(self, granted: int, earliest: int, length: int) -> int:
        """The cycle of the first beat of a burst whose address went in cycle `granted`."""
        start = max(granted + self._latency, earliest, self._free)
        self._free = start + length
        self.beats += length
        return start


class Reader:
    """One MemoryReader: a process that works through regions.

    Parameters
    ----------
    number : its place at the arbiter
    outstanding, queue_beats : as MemoryReader
    drains : beats leave the queue as soon as they can; else whoever takes them, and the ends of
        regions, says so (`left`)

    Attributes
    ----------
    checked : cycles in which the planner took the regions
    beats : cycles in which beats are at the queue's end, at the earliest; empty if it drains
    ends : cycles in which the ends of the regions are there
    left : cycles in which beats and ends left the queue
    spans : first and last cycle of the regions' beats on the bus
    """

    def __init__(
        self,
        kernel: Kernel,
        channel: ReadChannel,
        number: int,
        bus_bytes: int,
        outstanding: int,
        queue_beats: int,
        *,
        drains: bool = False,
    ) -> None:
        self._channel, self._number, self._bus_bytes = channel, number, bus_bytes
        self._outstanding, self._queue_beats = outstanding, queue_beats
        self._drains = drains
        self._regions: list[Region] = []
        self._requests = Stamps(kernel)
        self.checked, self.ends = Stamps(kernel), Stamps(kernel)
        self.beats, self.left = Stamps(kernel), Stamps(kernel)
        self.spans: list[tuple[int, int]] = []
        self._taken = 0  # entries of the queue that were promised
        self._drained: deque[int] = deque(maxlen=queue_beats)  # when the last ones left

    def ask(self, region: Region, time: int) -> None:
        """A request is taken in cycle `time`."""
        self._regions.append(region)
        self._requests.append(time)

    def _room(self, entries: int) -> Awaited:
        """First cycle in which the queue has a place for so many entries."""
        need = self._taken + entries - self._queue_beats
        if need <= 0:
            return 0
        if self._drains:
            return self._drained[need - 1 - max(self._taken - self._queue_beats, 0)] + 1
        yield from self.left.until(need)
        return self.left.times[need - 1] + 1

    def run(self, count: int) -> Process:
        """Works through `count` regions."""
        channel, number, drains = self._channel, self._number, self._drains
        pops: deque[int] = deque([-1] * self._outstanding, self._outstanding)
        free = -1  # the planner takes a region from this cycle on
        popped = granted = -1  # the latest burst's or end's entry left; its address went
        for index in range(count):
            yield from self._requests.until(index + 1)
            region = self._regions[index]
            bits = (region.rows - 1).bit_length()
            taken = max(self._requests.times[index] + CHECK + bits, free)
            self.checked.append(taken)
            issue = taken + PLAN
            begun = -1
            for row in range(region.rows):
                place = (region.address + row * region.stride) % BOUNDARY
                for length in burst_lengths(place, region.row_bytes, self._bus_bytes):
                    room = yield from self._room(length)
                    issue = max(issue, granted, pops[0] + 1, room)
                    granted = issue + 1
                    channel.want(number, granted)
                    yield granted
                    while not channel.grant(number, granted):
                        granted += 1
                        yield granted
                    start = channel.data(granted, max(granted + 2, popped + 1), length)
                    popped = start + length - 1
                    pops.append(popped)
                    self._taken += length
                    begun = begun if begun >= 0 else start
                    there = range(start + QUEUED, start + QUEUED + length)
                    (self._drained if drains else self.beats).extend(there)
                    issue += 1
            self.spans.append((begun, popped))
            # The end takes a place in both queues, and a cycle
            room = yield from self._room(1)
            free = issue = max(issue, pops[0] + 1, room)
            popped = max(issue + QUEUED, popped + 1)
            pops.append(popped)
            self._taken += 1
            if drains:
                self._drained.append(popped + QUEUED)
            self.ends.append(popped + QUEUED)
