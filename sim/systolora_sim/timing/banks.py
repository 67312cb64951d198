"""Who has an accumulator bank: tiles in flight, or a POST that claims it."""

from systolora_sim.timing.kernel import Awaited, Kernel, Stamps

__all__ = ["Banks"]


class Banks:
    """The claims of post_control.py and the flying tiles of sequencer.py, by bank.

    Both sides call it in the order of time; a claim and a start in one cycle: the claim is first.
    """

    def __init__(self, kernel: Kernel, count: int) -> None:
        self._idle = [0] * count  # first cycle without a tile in flight
        self._released = [0] * count  # first cycle after the claim
        self._claims = [-1] * count  # since when, -1 for none
        self._held: list[list[tuple[int, int]]] = [[] for _ in range(count)]  # claims that ended
        self._event = Stamps(kernel)

    def claim(self, banks: set[int], time: int) -> int:
        """A POST claims banks from cycle `time` on; returns the cycle in which all are idle."""
        for bank in banks:
            self._claims[bank] = time
        return max([time, *(self._idle[bank] for bank in banks)])

    def release(self, banks: set[int], time: int) -> None:
        """The claim ends: a tile may start from cycle `time` on."""
        for bank in banks:
            self._held[bank].append((self._claims[bank], time))
            self._claims[bank] = -1
            self._released[bank] = time
        if banks:
            self._event.append(time)

    def fly(self, bank: int, done: int) -> None:
        """A tile started; its last sum is readable in cycle `done`."""
        self._idle[bank] = max(self._idle[bank], done + 1)

    def start(self, bank: int, time: int) -> Awaited:
        """Waits until a tile may start, in cycle `time` at the earliest; returns the cycle."""
        while True:
            yield time
            while self._claims[bank] >= 0:
                yield from self._event.until(len(self._event.times) + 1)
            if self._released[bank] <= time:
                return time
            time = self._released[bank]

    def held(self, bank: int, first: int, limit: int) -> int:
        """Cycles from `first` on and before the tile's start `limit` in which it was claimed.

        Tiles ask in the order of time, each after its start: earlier claims are forgotten.
        """
        cycles, claims = 0, self._held[bank]
        for begin, end in claims:
            after = max(first, begin)
            first = max(first, min(end, limit))
            cycles += max(0, first - after)
        self._held[bank] = [claim for claim in claims if claim[1] > limit]
        return cycles
