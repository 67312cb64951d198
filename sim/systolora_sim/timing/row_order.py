"""Rows in the post-processor's pipeline: which of them have to wait for older ones.

hw/systolora/rtl: row_pipeline.py.
"""

from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

from systolora.contract import Mode, Source
from systolora_sim.timing.columns import Rows

__all__ = ["RowCommand", "RowOrder"]

#: From the issue of a row that writes an accumulator to that of one that reads it, as its source
#: and as its destination.
WRITE_SRC, WRITE_DST = 10, 4
#: Between the issues of two rows of which one reads its destination, and the other its source, in
#: one cycle; or measures its value, and the other its source.
SAME_READ, SAME_MEASURE = 6, 7
#: Between the issues of a row that quantizes its value and of a later one: that one sends something
#: else; it rounds stochastically, by words that would be mixed in one cycle with the older one's.
LATER, SAME_WORD = 6, 7


@dataclass(slots=True)
class RowCommand:
    """What a ROWS does with accumulators and maxima; `rows` by the cycles of their issue."""

    src: int
    dst: int
    count: int
    reads: bool
    adds: bool
    writes: bool
    measures_source: bool
    measures_value: bool
    fused: bool = False  # quantizes its value
    sends: bool = False
    early_word: bool = False  # needs random words for its rescale
    late_word: bool = False  # for its value
    times: list[int] | range = field(default_factory=list)
    cycles: Container[int] = ()  # the same, to search in


class RowOrder:
    """Gives each row its cycle, after what the older ones still do in the pipeline.

    Attributes
    ----------
    alone : no row of the command in work ever waits for another one
    """

    def __init__(self, bank_depth: int) -> None:
        self._bank_depth = bank_depth
        self._older: deque[RowCommand] = deque()
        self._now = RowCommand(0, 0, 0, False, False, False, False, False)
        self._writers: list[tuple[RowCommand, int, int]] = []
        self._apart: list[tuple[Container[int], int]] = []
        self._sent = 0  # the first cycle in which a row may be issued whose results come in order
        self.alone = True

    def command(self, posts: Rows, number: int) -> RowCommand:
        mode, dithers = posts.mode[number], bool(posts.stochastic[number])
        plain, fused = mode in (Mode.RAW, Mode.ACC), posts.quantize[number] > 0
        return RowCommand(
            src=posts.src_base[number],
            dst=posts.dst_base[number],
            count=posts.rows[number],
            reads=bool(posts.source[number] == Source.BUFFER),
            adds=plain and bool(posts.add[number] and not posts.add_stream[number]),
            writes=plain and bool(posts.write[number]),
            measures_source=not plain and bool(posts.amax[number]),
            measures_value=plain and bool(posts.amax[number]),
            fused=fused,
            sends=not plain or fused or bool(posts.emit[number]),
            early_word=dithers and not fused and mode != Mode.RAW,
            late_word=dithers and fused,
        )

    def begin(self, command: RowCommand, first: int) -> None:
        """The rows of a command follow, in cycle `first` or later."""
        older = self._older
        while older and older[0].times[-1] + WRITE_SRC < first:
            older.popleft()
        self._now = command
        times: list[int] = []
        command.times = times
        command.cycles = cycles = _Recent(times)
        bank = command.src // self._bank_depth
        self._writers, self._apart, self._sent = [], [], 0
        for each in older:
            if each.writes:
                # By how many rows of the command the older one's row is further on
                src, dst = command.src - each.dst, command.dst - each.dst
                if command.reads and -command.count < src < each.count:
                    self._writers.append((each, src, WRITE_SRC))
                if command.adds and -command.count < dst < each.count:
                    self._writers.append((each, dst, WRITE_DST))
            if command.reads and each.adds and each.dst // self._bank_depth == bank:
                self._apart.append((each.cycles, SAME_READ))
            if command.measures_source and each.measures_value:
                self._apart.append((each.cycles, SAME_MEASURE))
            if command.early_word and each.late_word:
                self._apart.append((each.cycles, SAME_WORD))
            if command.sends and each.fused and not command.fused:
                self._sent = each.times[-1] + LATER
        if command.reads and command.adds and command.dst // self._bank_depth == bank:
            self._apart.append((cycles, SAME_READ))
        self.alone = not (self._writers or self._apart or self._sent)
        older.append(command)

    def steady(self, first: int, count: int) -> int:
        """All rows of the command, one per cycle; returns the last one's."""
        command = self._now
        command.times = command.cycles = range(first, first + count)
        return first + count - 1

    def issue(self, time: int) -> int:
        """The next row of the command may enter from cycle `time` on; returns when it does."""
        times = self._now.times
        assert isinstance(times, list)
        for writer, ahead, distance in self._writers:
            row = len(times) + ahead
            if 0 <= row < writer.count:
                time = max(time, writer.times[row] + distance)
        time = max(time, self._sent)
        while any(time - distance in cycles for cycles, distance in self._apart):
            time += 1
        times.append(time)
        return time


class _Recent(Container[int]):
    """Whether a cycle is among the latest of a growing list."""

    def __init__(self, times: list[int]) -> None:
        self._times = times

    def __contains__(self, time: object) -> bool:
        return time in self._times[-2 * WRITE_SRC :]
