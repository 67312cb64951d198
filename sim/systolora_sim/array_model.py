"""When tile commands enter the array and when their sums are finished, to the cycle.

The recurrences of hw/systolora/rtl/sequencer.py and operand_buffer.py for whole tiles: every tile
is a handful of maxima, however long it is. docs/cycle-model.md says what is exact.
"""

from collections import deque
from dataclasses import dataclass

from systolora.config import ACC_BANKS, AcceleratorConfig

__all__ = ["ArrayModel", "Tile", "TileTimes"]

#: Entries of the queues before the sequencer's two engines and before each buffer.
QUEUE = 4
#: Cycles from a write into such a queue to its first read.
QUEUED = 2
#: From a beat to its sum readable in column 0, less R (TileEngine.sum_latency).
SUM = 5
#: Between the two ways into one bank: from a drain's last row to a WS beat, from a WS beat to the
#: last beat of an OS tile.
AFTER_DRAIN, AFTER_SUMS = 3, 2


@dataclass(frozen=True)
class Tile:
    """A tile command as far as time goes.

    load : a stationary tile precedes (WS); left : from the left; length : rows streamed or depth
    """

    os: bool
    length: int
    load: bool = True
    left: bool = False
    bank: int = 0


@dataclass(frozen=True)
class TileTimes:
    """Cycles of one tile: first and last beat, the last sum readable, last reads of the buffers."""

    first: int
    last: int
    done: int


class Lines:
    """One operand buffer's read pipeline: three stages that move together.

    A line waits in the last stage from the cycle in which it could be taken until it is taken, and
    holds up those behind it meanwhile.
    """

    __slots__ = ("_pops", "_reads", "_stalls", "first", "last_read")

    def __init__(self) -> None:
        self._pops: deque[int] = deque([-1] * QUEUE, QUEUE)
        self._stalls = ((-1, -1), (-1, -1))  # of the last two lines: offered, taken
        self._reads = -1
        self.last_read = -1
        self.first = 0

    @property
    def room(self) -> int:
        """First cycle in which the next command can be written."""
        return self._pops[0] + 1

    def _move(self, time: int) -> int:
        """First cycle from `time` on in which the pipeline moves."""
        for offered, taken in self._stalls:
            if offered <= time < taken:
                time = taken
        return time

    def begin(self, written: int) -> int:
        """A command was written; returns the first cycle in which its first line can be taken."""
        popped = max(written + QUEUED, self._pops[-1] + 1, self.last_read)
        self._pops.append(popped)
        self._reads = self._move(popped + 1)
        self.first = self._move(self._reads + 1) + 1
        return self.first

    def finish(self, count: int, first: int, second: int, last: int) -> None:
        """The command's lines were taken: the first, the second, then one per cycle; the last."""
        if count == 1:
            self.last_read = self._reads
            self._stalls = (self._stalls[1], (self.first, last))
            return
        self._stalls = (self._stalls[1], (self.first, first))
        read = self._move(self._reads + 1)
        offered = self._move(read + 1) + 1
        if count == 2:
            self.last_read = read
            self._stalls = (self._stalls[1], (offered, last))
            return
        # Line n is read when line n - 2 leaves
        third = first if count == 3 else second + count - 4
        self.last_read = max(self._reads + count - 1, third)
        before = second + count - 3  # the last line but one
        self._stalls = ((before, before), (min(before + 1, last), last))


class ArrayModel:
    """The sequencer behind the feeder and the operand buffers.

    `enter` a pass, then `start` it not before what it says: in between the caller may hold the tile
    back for a token or a bank.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._rows = config.rows
        self._loads = (config.top_load, config.left_load)
        self._done = config.rows + SUM + config.cols - 1
        self.act, self.wgt = Lines(), Lines()
        self._load_pops: deque[int] = deque([-1] * QUEUE, QUEUE)
        self._compute_pops: deque[int] = deque([-1] * QUEUE, QUEUE)
        self._swap = -1  # `b` is free from this cycle on
        self._drained = -1  # last cycle of the latest drain
        self._drains = [-AFTER_DRAIN] * ACC_BANKS  # last cycle of the latest one, by bank
        self._sums = [-AFTER_SUMS] * ACC_BANKS  # latest WS beat, by bank
        self._full = 0  # cycle in which the stationary operand (OS: its first line) is in `b`
        self._loaded = 0
        self.offered = 0  # the tile is at the head of the compute queue

    def room(self, needs_wgt: bool) -> int:
        """First cycle in which the feeder can send the next pass."""
        time = max(self._compute_pops[0], self._load_pops[0]) + 1
        time = max(time, self.act.room)
        return max(time, self.wgt.room) if needs_wgt else time

    def enter(self, tile: Tile, sent: int) -> int:
        """The feeder sends a pass in cycle `sent`; returns its first beat's earliest cycle."""
        head = max(sent + QUEUED, self._compute_pops[-1] + 1)
        self.offered = head
        first = max(head, self.act.begin(sent))
        if tile.os or tile.load:
            line = self.wgt.begin(sent)
            load = max(sent + QUEUED, self._load_pops[-1] + 1, self._swap, line)
            self._loaded = load
            self._full = load + (1 if tile.os else self._loads[tile.left])
            first = max(first, self._full)
        if not tile.os:
            return max(first, self._drains[tile.bank] + AFTER_DRAIN)
        return max(first, self._path(tile.bank) if tile.length == 1 else 0)

    def _path(self, bank: int) -> int:
        """First cycle for the last beat of an OS tile: its drain needs the chain and the bank."""
        return max(self._drained, self._sums[bank] + AFTER_SUMS)

    def start(self, tile: Tile, first: int) -> TileTimes:
        """The pass's first beat enters in cycle `first`."""
        length = tile.length
        last = first + length - 1
        if tile.os:
            last = max(last, self._path(tile.bank))
            # Each beat of the top operand enters when the one before goes on
            loaded = self._loaded if length == 1 else first + length - 2
            self.wgt.finish(length, self._loaded, first, loaded)
            self._load_pops.append(loaded)
            self.act.finish(length, first, first + 1, last)
            self._swap = last
            self._drained = self._drains[tile.bank] = last + self._rows
            done = self._drained + self._done
        else:
            if tile.load:
                count = self._loads[tile.left]
                start = self._loaded
                self.wgt.finish(count, start, start + 1, start + count - 1)
                self._load_pops.append(start + count - 1)
                self._swap = first
            self.act.finish(length, first, first + 1, last)
            self._sums[tile.bank] = last
            done = last + self._done
        self._compute_pops.append(last)
        return TileTimes(first, last, done)
