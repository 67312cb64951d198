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
        self._claims = [False] * count
        self._event = Stamps(kernel)

    def claim(self, banks: set[int], time: int) -> int:
        """A POST claims banks from cycle `time` on; returns the cycle in which all are idle."""
        for bank in banks:
            self._claims[bank] = True
        return max([time, *(self._idle[bank] for bank in banks)])

    def release(self, banks: set[int], time: int) -> None:
        """The claim ends: a tile may start from cycle `time` on."""
        for bank in banks:
            self._claims[bank] = False
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
            while self._claims[bank]:
                yield from self._event.until(len(self._event.times) + 1)
            if self._released[bank] <= time:
                return time
            time = self._released[bank]
