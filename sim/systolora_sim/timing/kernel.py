"""Processes with clocks of their own, run in the order of time; and lists of times between them.

A process is a generator. It yields a cycle, to go on when every other process has reached that
cycle too, or `Stamps`, to go on when somebody appends to them. Between two yields it may compute as
far ahead as what it knows allows: only what meets in no order of a program (bursts on the bus,
claims of accumulator banks) needs the first kind of yield.
"""

import heapq
from collections.abc import Generator, Iterable

__all__ = ["TOKEN", "Awaited", "TimingError", "Kernel", "Process", "Queue", "Stamps"]


#: From a token's cycle to the first in which its waiter can take it (TokenCounter).
TOKEN = 1


class TimingError(ValueError):
    """A program that has no timing; one line."""


class Stamps:
    """Cycles of the same event, one after the other; one process may wait for the next one."""

    __slots__ = ("_kernel", "_waiter", "times")

    def __init__(self, kernel: "Kernel") -> None:
        self.times: list[int] = []
        self._kernel = kernel
        self._waiter: tuple[int, Process] | None = None

    def append(self, time: int) -> None:
        self.times.append(time)
        if self._waiter is not None:
            self._kernel.wake(self._waiter)
            self._waiter = None

    def extend(self, times: Iterable[int]) -> None:
        self.times.extend(times)
        if self._waiter is not None:
            self._kernel.wake(self._waiter)
            self._waiter = None

    def until(self, count: int) -> "Process":
        """Waits until there are `count` of them."""
        while len(self.times) < count:
            yield self

    def park(self, process: tuple[int, "Process"]) -> None:
        """Called by the kernel: the process goes on after the next `append`."""
        if self._waiter is not None:
            raise RuntimeError("two processes wait for one event")
        self._waiter = process


Process = Generator[int | Stamps, None, None]
#: A part of a process that finds out a cycle.
Awaited = Generator[int | Stamps, None, int]


class Kernel:
    """Runs processes until all have ended.

    now : the cycle that all processes have reached
    """

    def __init__(self) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, int, Process]] = []
        self._number = 0
        self._alive = 0

    def start(self, process: Process, priority: int = 0) -> None:
        """Adds a process; of those that go on in one cycle, lower priorities go first."""
        self._alive += 1
        self.wake((priority, process))

    def wake(self, entry: tuple[int, Process]) -> None:
        self._number += 1
        heapq.heappush(self._heap, (self.now, entry[0], self._number, entry[1]))

    def run(self) -> None:
        """Raises TimingError if processes are left that nothing wakes."""
        heap = self._heap
        while heap:
            time, priority, _, process = heapq.heappop(heap)
            self.now = time
            while True:
                try:
                    target = next(process)
                except StopIteration:
                    self._alive -= 1
                    break
                if isinstance(target, Stamps):
                    target.park((priority, process))
                    break
                if target < self.now:
                    target = self.now
                if heap and heap[0][0] <= target:
                    self._number += 1
                    heapq.heappush(heap, (target, priority, self._number, process))
                    break
                self.now = target
        if self._alive:
            raise TimingError(f"program: it hangs in cycle {self.now}: a token is missing")


class Queue:
    """Times of a SyncFIFOBuffered: what was written in cycle t can be read from t + 2 on.

    Parameters
    ----------
    depth : places, at least 2; entry i needs entry i - depth to have left in an earlier cycle

    Attributes
    ----------
    pushes, pops : cycles in which entries came and left
    """

    __slots__ = ("depth", "pops", "pushes")

    def __init__(self, kernel: Kernel, depth: int) -> None:
        self.depth = depth
        self.pushes, self.pops = Stamps(kernel), Stamps(kernel)

    def room(self, index: int) -> Awaited:
        """First cycle in which entry `index` may be written; waits until that is known."""
        left = index - self.depth
        if left < 0:
            return 0
        yield from self.pops.until(left + 1)
        return self.pops.times[left] + 1

    def ready(self, index: int) -> Awaited:
        """First cycle in which entry `index` may be read; waits until that is known."""
        yield from self.pushes.until(index + 1)
        time = self.pushes.times[index] + 2
        return max(time, self.pops.times[index - 1] + 1) if index else time
