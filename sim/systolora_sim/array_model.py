"""When tile commands enter the array and when their sums are finished, to the cycle.

The recurrences of hw/systolora/rtl/sequencer.py and operand_buffer.py for whole tiles: every tile
is a handful of maxima, however long it is. docs/cycle-model.md says what is exact.
"""

from dataclasses import dataclass

from systolora.config import ACC_BANKS, AcceleratorConfig

__all__ = ["QUEUE", "ArrayModel", "Tile", "TileTimes"]

#: Entries of the queues before the sequencer's two engines and before each buffer.
QUEUE = 4
#: Cycles from a write into such a queue to its first read.
QUEUED = 2
#: From a beat to its sum readable in column 0, less R (TileEngine.sum_latency).
SUM = 5
#: Between the two ways into one bank: from a drain's last row to a WS beat, from a WS beat to the
#: last beat of an OS tile.
AFTER_DRAIN, AFTER_SUMS = 3, 2


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile command as far as time goes.

    load : a stationary tile precedes (WS); left : from the left; length : rows streamed or depth
    """

    os: bool
    length: int
    load: bool = True
    left: bool = False
    bank: int = 0
    fence: bool = False


@dataclass(frozen=True, slots=True)
class TileTimes:
    """Cycles of one tile: first and last beat in the array, the last sum readable everywhere."""

    first: int
    last: int
    done: int


class Lines:
    """One operand buffer's read pipeline: three stages that move together.

    A line waits in the last stage from the cycle in which it could be taken until it is taken, and
    holds up those behind it meanwhile.

    pops : cycles in which the commands left their queue
    first : cycle in which the command's first line can be taken, at the earliest
    last_read : cycle in which the command's last line is read; -1 until that is known
    """

    __slots__ = ("_reads", "_stalls", "first", "last_read", "pops")

    def __init__(self) -> None:
        self.pops: list[int] = []
        self._stalls = ((-1, -1), (-1, -1))  # of the last two lines: offered, taken
        self._reads = -1
        self.last_read = -1
        self.first = 0

    def _move(self, time: int) -> int:
        """First cycle from `time` on in which the pipeline moves."""
        for offered, taken in self._stalls:
            if offered <= time < taken:
                time = taken
        return time

    def begin(self, written: int, count: int) -> int:
        """A command for `count` lines was written; returns `first`."""
        popped = max(written + QUEUED, self.last_read)
        if self.pops:
            popped = max(popped, self.pops[-1] + 1)
        self.pops.append(popped)
        self._reads = self._move(popped + 1)
        second = self._move(self._reads + 1)
        self.first = second + 1
        # The first two lines are read whether anybody takes them or not
        self.last_read = (self._reads, second)[count - 1] if count <= 2 else -1
        return self.first

    def finish(self, count: int, first: int, second: int, last: int) -> None:
        """The command's lines were taken: the first, the second, then one per cycle; the last."""
        if count == 1:
            self._stalls = (self._stalls[1], (self.first, last))
        elif count == 2:
            self._stalls = ((self.first, first), (max(self.first, first) + 1, last))
        else:
            # Line n is read when line n - 2 leaves
            before = first if count == 3 else second + count - 4
            self.last_read = max(self._reads + count - 1, before)
            before = second + count - 3  # the last line but one
            self._stalls = ((before, before), (min(before + 1, last), last))


class ArrayModel:
    """The sequencer behind the feeder and the operand buffers.

    Each pass is sent, entered and started, in this order; passes may be sent ahead, up to the
    fourth after the last that was started. Between `enter` and `start` the caller may hold the tile
    back for a token or a bank.

    offered : the entered tile is at the head of the compute queue from this cycle on
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._rows = config.rows
        self._loads = (config.top_load, config.left_load)
        self._done = config.rows + SUM + config.cols - 1
        self._act, self._wgt = Lines(), Lines()
        self._load_pops: list[int] = []
        self._compute_pops: list[int] = []
        self._sent = self._sent_loads = 0
        self._swap = -1  # `b` is free from this cycle on
        self._drained = -1  # last cycle of the latest drain
        self._drains = [-AFTER_DRAIN] * ACC_BANKS  # last cycle of the latest one, by bank
        self._sums = [-AFTER_SUMS] * ACC_BANKS  # latest WS beat, by bank
        self._loaded = 0  # cycle of the first beat of the stationary operand
        self._quiet = 0  # all sums are written
        self.offered = 0

    @property
    def last_read(self) -> int:
        """Cycle in which both buffers have been read for the last pass; -1 if not known yet."""
        act, wgt = self._act.last_read, self._wgt.last_read
        return -1 if act < 0 or wgt < 0 else max(act, wgt)

    def send(self, tile: Tile, earliest: int) -> int:
        """The feeder sends the next pass when every queue that it needs has a place; the cycle."""
        older = self._sent - QUEUE
        if older >= 0:
            earliest = max(earliest, self._compute_pops[older] + 1, self._act.pops[older] + 1)
        older = self._sent_loads - QUEUE
        if older >= 0:
            earliest = max(earliest, self._load_pops[older] + 1)
        if tile.os or tile.load:
            if older >= 0:
                earliest = max(earliest, self._wgt.pops[older] + 1)
            self._sent_loads += 1
        self._sent += 1
        return earliest

    def enter(self, tile: Tile, sent: int) -> int:
        """The next pass, sent in cycle `sent`; returns its first beat's earliest cycle."""
        head = sent + QUEUED
        if self._compute_pops:
            head = max(head, self._compute_pops[-1] + 1)
        self.offered = head
        fence = max(head, self._quiet) if tile.fence else 0
        first = max(head, fence, self._act.begin(sent, tile.length))
        if tile.os or tile.load:
            count = tile.length if tile.os else self._loads[tile.left]
            line = self._wgt.begin(sent, count)
            loaded = max(sent + QUEUED, self._swap, line, fence)
            if self._load_pops:
                loaded = max(loaded, self._load_pops[-1] + 1)
            self._loaded = loaded
            if tile.os:
                first = max(first, loaded + 1)
            else:
                first = max(first, loaded + count)
                self._wgt.finish(count, loaded, loaded + 1, loaded + count - 1)
                self._load_pops.append(loaded + count - 1)
        if not tile.os:
            return max(first, self._drains[tile.bank] + AFTER_DRAIN)
        return max(first, self._path(tile.bank)) if tile.length == 1 else first

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
            self._wgt.finish(length, self._loaded, first, loaded)
            self._load_pops.append(loaded)
            self._swap = last
            self._drained = self._drains[tile.bank] = last + self._rows
            done = self._drained + self._done
        else:
            if tile.load:
                self._swap = first
            self._sums[tile.bank] = last
            done = last + self._done
        self._act.finish(length, first, first + 1, last)
        self._compute_pops.append(last)
        self._quiet = max(self._quiet, done + 1)
        return TileTimes(first, last, done)
