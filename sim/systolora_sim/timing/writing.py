"""Rows on their way to memory, and the tokens that follow them.

hw/systolora/rtl: stream_writer.py, memory_writer.py, burst_planner.py, regions.py; the memory takes
a beat per cycle and answers a burst `latency` cycles after its last beat.
"""

from collections import deque
from dataclasses import dataclass

from systolora_sim.timing.kernel import Kernel, Process, Queue, Stamps
from systolora_sim.timing.reading import BOUNDARY, CHECK, PLAN, QUEUED, Region, burst_lengths

__all__ = ["WriteItem", "Writer"]

#: Items in work in the StreamWriter; beats in the MemoryWriter's queue.
ITEMS, BEATS = 16, 32


@dataclass(frozen=True)
class WriteItem:
    """What the dispatcher sends: a region, or none; and the tokens at its end."""

    index: int
    region: Region | None
    signal_load: bool
    signal_stream: bool


class Writer:
    """StreamWriter and MemoryWriter: `row` is called for each row in order, `run` does the rest.

    Attributes
    ----------
    queue, items : what the dispatcher sends
    tokens_load, tokens_stream : cycles in which tokens are given
    spans : by descriptor, first and last cycle of its beats on the bus
    written : bytes
    last : cycle of the last answer
    """

    def __init__(
        self, kernel: Kernel, queue: Queue, bus_bytes: int, outstanding: int, latency: int
    ) -> None:
        self.queue, self._bus_bytes, self._latency = queue, bus_bytes, latency
        self.items: list[WriteItem] = []
        self.tokens_load, self.tokens_stream = Stamps(kernel), Stamps(kernel)
        self.spans: dict[int, tuple[int, int]] = {}
        self.written = 0
        self.last = 0
        self._answered = Stamps(kernel)  # of items that write: response valid
        self._done = Stamps(kernel)  # of all items
        self.ready = Stamps(kernel)  # of items that write: rows may be packed
        self._plans: list[tuple[int, Region, int]] = []
        self._writing = 0
        self._free = Stamps(kernel)  # the planner takes the next region
        self._moved = self._taken = self._issued = self._sent = self._answer = -1
        self._space: deque[int] = deque([-1] * BEATS, BEATS)
        self._answers: deque[int] = deque([-1] * outstanding, outstanding)
        self._open: list[int] = []  # cycles in which the beats of the open burst are queued
        self._lengths: list[int] = []
        self._row = 0

    def front(self, count: int) -> Process:
        """Takes items and asks for their regions."""
        before = -1
        for index in range(count):
            time = yield from self.queue.ready(index)
            if index >= ITEMS:
                yield from self._done.until(index - ITEMS + 1)
                time = max(time, self._done.times[index - ITEMS] + 1)
            item = self.items[index]
            region = item.region
            time = max(time, before + 1)
            if region is None:
                self.queue.pops.append(time)
                before = time
                continue
            # Its check is free again when the planner has taken the region before
            if self._plans:
                yield from self._free.until(len(self._plans) - 1)
                time = max(time, self._planned(len(self._plans) - 1) + 1)
            self.queue.pops.append(time)
            before = time
            self._plans.append((time + CHECK + (region.rows - 1).bit_length(), region, item.index))
            self.ready.append(time + QUEUED)

    def _planned(self, number: int) -> int:
        """The cycle in which the planner takes a region."""
        checked = self._plans[number][0]
        return max(checked, self._free.times[number - 1]) if number else checked

    def finish(self, count: int) -> Process:
        """Gives tokens in the items' order."""
        answered = 0
        before = -1
        for index in range(count):
            yield from self.queue.pops.until(index + 1)
            item = self.items[index]
            time = max(self.queue.pops.times[index] + QUEUED, before + 1)
            if item.region is not None:
                answered += 1
                yield from self._answered.until(answered)
                time = max(time, self._answered.times[answered - 1])
            before = time
            self._done.append(time)
            if item.signal_load:
                self.tokens_load.append(time)
            if item.signal_stream:
                self.tokens_stream.append(time)
            self.last = max(self.last, time)

    def row(self, offered: int) -> int:
        """A row is at the output queue's end from cycle `offered` on; returns when it leaves."""
        _, region, index = self._plans[self._writing]
        if not self._row:
            planned = self._planned(self._writing)
            self._moved = max(self._moved, self.ready.times[self._writing] - 1)
            self._issued = max(self._issued, planned + PLAN - 1)
            self.spans[index] = (-1, -1)
        place = (region.address + self._row * region.stride) % BOUNDARY
        for length in burst_lengths(place, region.row_bytes, self._bus_bytes):
            for _ in range(length):
                # One register between the packing and the queue
                self._moved = max(offered, self._moved + 1, self._taken)
                self._taken = max(self._moved + 1, self._space[0] + 1)
                self._space.append(0)
                self._open.append(self._taken)
            self._burst(length, index)
        self.written += region.row_bytes
        self._row += 1
        if self._row == region.rows:
            self._end()
        return self._moved

    def _burst(self, length: int, index: int) -> None:
        issued = max(self._open[-1] + 1, self._issued + 1, self._answers[0] + 1)
        self._issued = issued
        sent = self._sent
        first = max(issued + QUEUED, sent + 1)
        self._sent = first + length - 1
        for number in range(length):
            self._space[number - length] = first + number
        self._open.clear()
        begun = self.spans[index][0]
        self.spans[index] = (first + 1 if begun < 0 else begun, self._sent + 1)
        self._answer = max(self._answer + 1, self._sent + 1 + self._latency)
        self._answers.append(self._answer)

    def _end(self) -> None:
        """The end of a region has a place among the answers."""
        self._row = 0
        self._writing += 1
        issued = max(self._issued + 1, self._answers[0] + 1)
        self._free.append(issued)
        self._issued = issued
        self._answer = max(issued + QUEUED, self._answer + 1)
        self._answers.append(self._answer)
        self._answered.append(self._answer)
