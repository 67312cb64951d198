"""From what descriptors use to the tokens that order them.

The descriptors come in an order in which they could run one after the other. A descriptor must not
start before an earlier one of another queue with which it conflicts: the two use the same buffer
entries, accumulator rows or memory, and at least one of them writes. Within a queue order is given.
For every queue the pass keeps what its waits so far imply of the others, and adds a token only
where a conflict is not covered yet: the signal on the latest conflicting descriptor, the wait on
the one at hand. Since what a queue knows of another only grows, the n-th wait of a channel meets
its n-th signal.
"""

from collections import deque
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import TOKENS_MAX, Kind
from systolora_sim.memory_map import Area, Symbol
from systolora_sim.work import Op

__all__ = ["Cells", "place_tokens"]

#: Tokens of a channel that this pass leaves outstanding.
MOST = TOKENS_MAX - 15


class Stage(IntEnum):
    """What may be complete: all of a kind up to a descriptor."""

    LOADED = 0  # LOADs
    READ = 1  # EXECs, as far as the buffers
    SUMMED = 2  # EXECs
    POSTED = 3  # POSTs, as far as the Core
    STORED = 4  # POSTs


#: Channels by (field of the giver, field of the taker).
_CHANNELS: dict[tuple[Kind, str], tuple[Kind, str]] = {
    (Kind.LOAD, "signal_exec"): (Kind.EXEC, "wait_load"),
    (Kind.EXEC, "signal_load"): (Kind.LOAD, "wait_exec"),
    (Kind.EXEC, "signal_post"): (Kind.POST, "wait_exec"),
    (Kind.POST, "signal_exec"): (Kind.EXEC, "wait_post"),
    (Kind.POST, "signal_load"): (Kind.LOAD, "wait_store"),
    (Kind.POST, "signal_stream"): (Kind.POST, "wait_store"),
}

Clock = NDArray[np.int64]


class Cells:
    """For every element of the tensors that are written, a number: of its last writer, say.

    Kept for pieces of a row as wide as the array, in which rows are written.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._width = config.cols
        self._grids: dict[int, NDArray[np.int32]] = {}

    def _part(self, grid: NDArray[np.int32], area: Area) -> NDArray[np.int32]:
        first, last = area.col0 // self._width, (area.col0 + area.cols - 1) // self._width
        return grid[area.row0 : area.row0 + area.rows, first : last + 1]

    def latest(self, area: Area | None) -> int:
        """The largest number in an area; -1 if it was never written."""
        if area is None:
            return -1
        grid = self._grids.get(area.symbol.address)
        return -1 if grid is None else int(self._part(grid, area).max())

    def write(self, area: Area, number: int) -> None:
        """Sets an area's numbers."""
        symbol: Symbol = area.symbol
        grid = self._grids.get(symbol.address)
        if grid is None:
            shape = (symbol.rows, -(-symbol.cols // self._width))
            grid = self._grids[symbol.address] = np.full(shape, -1, np.int32)
        self._part(grid, area)[:] = number


class _Placer:
    def __init__(self, config: AcceleratorConfig, ops: list[Op]) -> None:
        self.ops = ops
        zero = np.full(len(Stage), -1, np.int64)
        # What is known at the start of: a LOAD, an EXEC's first read, its first sum, a POST's first
        # beat from memory, a POST.
        self.loads, self.reader, self.sums = zero.copy(), zero.copy(), zero.copy()
        self.stream, self.posts = zero.copy(), zero.copy()
        # What the completion of a descriptor implies, at each of its stages.
        self.implied: dict[tuple[int, Stage], Clock] = {}
        self.last = {
            "act": (np.full(config.act_entries, -1), np.full(config.act_entries, -1)),
            "wgt": (np.full(config.wgt_entries, -1), np.full(config.wgt_entries, -1)),
            "acc": (np.full(config.acc_depth, -1), np.full(config.acc_depth, -1)),
        }
        self.stored, self.loaded = Cells(config), Cells(config)
        self.changing = {op.writes.symbol.address for op in ops if op.writes is not None}

    def _need(self, clock: Clock, stage: Stage, earlier: int, signal: str, index: int) -> bool:
        """Orders descriptor `index` after a stage of an earlier one; whether it took a token."""
        if earlier <= clock[stage]:
            return False
        giver = self.ops[earlier]
        wait = _CHANNELS[giver.kind, signal][1]
        giver.fields[signal] = 1
        self.ops[index].fields[wait] = 1
        np.maximum(clock, self.implied[earlier, stage], out=clock)
        return True

    def _done(self, index: int, stage: Stage, *clocks: Clock) -> None:
        implied = np.maximum.reduce(clocks)
        implied[stage] = index
        self.implied[index, stage] = implied

    def load(self, index: int, op: Op) -> None:
        for name, rows in (("act", op.act), ("wgt", op.wgt)):
            if rows is not None:
                written, read = self.last[name]
                latest = int(read[rows.start : rows.end].max())
                self._need(self.loads, Stage.READ, latest, "signal_load", index)
                written[rows.start : rows.end] = index
        if op.reads is not None and op.reads.symbol.address in self.changing:
            latest = self.stored.latest(op.reads)
            self._need(self.loads, Stage.STORED, latest, "signal_load", index)
            self.loaded.write(op.reads, index)
        self._done(index, Stage.LOADED, self.loads)

    def exec(self, index: int, op: Op) -> None:
        latest = -1
        for name, rows in (("act", op.act), ("wgt", op.wgt)):
            assert rows is not None
            written, read = self.last[name]
            part = written[rows.start : rows.end]
            latest = max(latest, int(part.max()))
            read[rows.start : rows.end] = index
        self._need(self.reader, Stage.LOADED, latest, "signal_exec", index)
        np.maximum(self.sums, self.reader, out=self.sums)
        written, used = self.last["acc"]
        for rows in op.acc:
            latest = int(used[rows.start : rows.end].max())
            self._need(self.sums, Stage.POSTED, latest, "signal_exec", index)
            written[rows.start : rows.end] = index
        self._done(index, Stage.READ, self.reader)
        self._done(index, Stage.SUMMED, self.sums, self.implied[index, Stage.READ])

    def post(self, index: int, op: Op) -> None:
        if op.reads is not None:
            latest = self.stored.latest(op.reads)
            self._need(self.stream, Stage.STORED, latest, "signal_stream", index)
            np.maximum(self.posts, self.stream, out=self.posts)
        written, used = self.last["acc"]
        latest = max((int(written[rows.start : rows.end].max()) for rows in op.acc), default=-1)
        self._need(self.posts, Stage.SUMMED, latest, "signal_post", index)
        for rows in op.acc:
            used[rows.start : rows.end] = index
        if op.writes is not None:
            latest = self.loaded.latest(op.writes)
            if latest > self.posts[Stage.LOADED]:
                raise RuntimeError(
                    f"descriptor {index} stores to {op.writes.symbol.name}, which descriptor "
                    f"{latest} may still be loading: no token can order the two"
                )
            self.stored.write(op.writes, index)
        self._done(index, Stage.POSTED, self.posts)
        self._done(index, Stage.STORED, self.implied[index, Stage.POSTED])

    def run(self) -> None:
        for index, op in enumerate(self.ops):
            if op.kind == Kind.LOAD:
                self.load(index, op)
            elif op.kind == Kind.EXEC:
                self.exec(index, op)
            elif op.kind == Kind.POST:
                self.post(index, op)


def _bound_outstanding(ops: list[Op]) -> None:
    """Merges tokens where too many of a channel would be outstanding.

    Of the two oldest the first is not given: who would take it takes the second, and who would take
    the second needs none, being behind it in its queue.
    """
    for (giver, signal), (taker, wait) in _CHANNELS.items():
        given: deque[Op] = deque()
        merged: deque[int] = deque()  # by token in `given`: how many waits it answers beyond one
        spare = 0  # waits that come next and need no token
        for op in ops:
            if op.kind == taker and op.fields.get(wait):
                if spare:
                    spare -= 1
                    op.fields[wait] = 0
                else:
                    given.popleft()
                    spare = merged.popleft()
            if op.kind == giver and op.fields.get(signal):
                given.append(op)
                merged.append(0)
                if len(given) > MOST:
                    given.popleft().fields[signal] = 0
                    answered = merged.popleft() + 1
                    merged[0] += answered


def place_tokens(config: AcceleratorConfig, ops: list[Op]) -> None:
    """Sets the signal and wait fields of descriptors that are in a valid sequential order.

    Raises
    ------
    RuntimeError
        If a store would have to wait for a LOAD on which no EXEC and POST before it depends: a
        fault of the lowering, not of the input.
    """
    _Placer(config, ops).run()
    _bound_outstanding(ops)
