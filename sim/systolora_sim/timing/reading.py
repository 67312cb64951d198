"""Readers of memory on one read channel: when bursts are sent, and when their beats come.

hw/systolora/rtl: regions.py (RegionCheck), burst_planner.py, memory_reader.py, read_arbiter.py; the
memory is the bench's (bench/harness/memory.cpp): one beat per cycle, in the order of the
addresses, each burst `latency` cycles after its address at the earliest.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from systolora_sim.timing.kernel import Kernel, Process, Stamps

__all__ = ["ReadChannel", "Reader", "Region", "burst_lengths"]

#: Beats of a burst at most, and the boundary that none crosses, bytes.
BURST_BEATS, BOUNDARY = 16, 4096
#: From a request to its checked answer, less the bits of rows - 1.
CHECK = 3
#: From the planner's taking a region to the first burst that it offers.
PLAN = 2
#: From a beat on the bus, or an end, to its place at the queue's end.
QUEUED = 2


@dataclass(frozen=True)
class Region:
    """Rows of memory: as regions.RegionLayout."""

    address: int
    rows: int
    row_bytes: int
    stride: int


def burst_lengths(address: int, row_bytes: int, bus_bytes: int) -> list[int]:
    """Beats of the bursts of one row that starts at an address."""
    unit = min(BURST_BEATS, BOUNDARY // bus_bytes)
    word = address // bus_bytes
    end = -(-(address + row_bytes) // bus_bytes)
    out = []
    while word < end:
        length = min(unit - word % unit, end - word)
        out.append(length)
        word += length
    return out


class ReadChannel:
    """The bus's read side: who may send an address, and when data comes.

    busy : per client, first and last cycle of each region's beats
    """

    def __init__(self, latency: int, clients: int) -> None:
        self.latency = latency
        self.free = 0  # first cycle in which a beat may come
        self.beats = 0
        self._wants: list[int] = [-1] * clients  # cycle of the address that a client offers
        self._last, self._granted = 0, -1  # who had the channel last, and when

    def want(self, client: int, time: int) -> None:
        """The client offers an address from cycle `time` on."""
        self._wants[client] = time

    def grant(self, client: int, time: int) -> bool:
        """Whether the client's address goes in this cycle, which all processes have reached."""
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

    def data(self, address_cycle: int, earliest: int, length: int) -> int:
        """The cycle of the first beat of a burst whose address went in `address_cycle`."""
        start = max(address_cycle + self.latency, earliest, self.free)
        self.free = start + length
        self.beats += length
        return start


class Reader:
    """One MemoryReader: a process that works through regions.

    Parameters
    ----------
    number : its place at the arbiter
    outstanding, queue_beats : as MemoryReader
    on_beats : called with the cycles of a burst's beats as a range, in which they reach the end of
        the queue; returns the cycles in which they leave it, or None if they come later (`leave`)

    Attributes
    ----------
    requests : cycles in which `regions` were asked for
    checked : cycles in which the planner took them
    ends : cycles in which the end of a region is at the queue's end, at the earliest
    spans : first and last cycle of the region's beats on the bus
    """

    def __init__(
        self,
        kernel: Kernel,
        channel: ReadChannel,
        number: int,
        bus_bytes: int,
        outstanding: int,
        queue_beats: int,
        on_beats: Callable[[range], None],
        drains: bool,
    ) -> None:
        self._channel, self._number, self._bus_bytes = channel, number, bus_bytes
        self._outstanding, self._queue_beats = outstanding, queue_beats
        self._on_beats, self._drains = on_beats, drains
        self.regions: list[Region] = []
        self.requests, self.checked, self.ends = Stamps(kernel), Stamps(kernel), Stamps(kernel)
        self.left = Stamps(kernel)  # of the queue, unless it drains by itself
        self.spans: list[tuple[int, int]] = []

    def ask(self, region: Region, time: int) -> None:
        """A request is taken in cycle `time`."""
        self.regions.append(region)
        self.requests.append(time)

    def run(self, count: int) -> Process:
        """Works through `count` regions."""
        channel, number = self._channel, self._number
        queue_beats, drains = self._queue_beats, self._drains
        leaves: deque[int] = deque(maxlen=queue_beats)
        left = self.left.times
        pops: deque[int] = deque([-1] * self._outstanding, self._outstanding)
        taken = 0  # entries of the queue that were promised
        free = -1  # the planner takes a region from this cycle on
        popped = -1  # the last entry of `bursts` left
        granted = -1
        for index in range(count):
            yield from self.requests.until(index + 1)
            region = self.regions[index]
            bits = (region.rows - 1).bit_length()
            taken_at = max(self.requests.times[index] + CHECK + bits, free)
            self.checked.append(taken_at)
            issue = taken_at + PLAN
            first = -1
            address = region.address
            lengths: list[int] = []
            place = -1
            for _ in range(region.rows):
                if address % BOUNDARY != place:
                    place = address % BOUNDARY
                    lengths = burst_lengths(address, region.row_bytes, self._bus_bytes)
                address += region.stride
                for length in lengths:
                    issue = max(issue, granted, pops[0] + 1)
                    need = taken + length - queue_beats
                    if need > 0:
                        if drains:
                            issue = max(issue, leaves[need - 1 - max(taken - queue_beats, 0)] + 1)
                        else:
                            while len(left) < need:
                                yield self.left
                            issue = max(issue, left[need - 1] + 1)
                    channel.want(number, issue + 1)
                    offered = issue + 1
                    yield offered
                    while not channel.grant(number, offered):
                        offered += 1
                        yield offered
                    granted = offered
                    start = channel.data(granted, max(issue + 2, granted + 2, popped + 1), length)
                    popped = start + length - 1
                    pops.append(popped)
                    taken += length
                    if first < 0:
                        first = start
                    span = range(start + QUEUED, start + QUEUED + length)
                    if drains:
                        leaves.extend(span)
                    self._on_beats(span)
                    issue += 1
            # The end takes a place in both queues, and a cycle
            issue = max(issue, pops[0] + 1)
            need = taken + 1 - queue_beats
            if need > 0:
                if drains:
                    issue = max(issue, leaves[need - 1 - max(taken - queue_beats, 0)] + 1)
                else:
                    while len(left) < need:
                        yield self.left
                    issue = max(issue, left[need - 1] + 1)
            free = issue
            last = popped
            popped = max(issue + 2, popped + 1)
            pops.append(popped)
            taken += 1
            if drains:
                leaves.append(popped + QUEUED)
            self.spans.append((first, last))
            self.ends.append(popped + QUEUED)
