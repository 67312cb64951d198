"""The program's way to the queues: fetched, checked, sent.

hw/systolora/rtl: run_control.py, dispatcher.py, bounds.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    Action,
    Dataflow,
    Edge,
    Kind,
    Layout,
    Opcode,
    Source,
)
from systolora_sim.program import result_bits
from systolora_sim.timing.columns import Columns, Rows
from systolora_sim.timing.kernel import Awaited, Process, Queue
from systolora_sim.timing.reading import Reader, Region
from systolora_sim.timing.writing import WriteItem, Writer

__all__ = ["READING", "WRITING", "Dispatcher", "PostMemory", "post_memory"]

#: Opcodes with one row of `acc_in` from memory, and with one beat of `info` to memory.
READING = (Opcode.BIAS, Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD)
WRITING = (Opcode.AMAX_READ, Opcode.SCALE_READ, Opcode.STICKY_READ)
#: CHECK, JUDGE, and TOKENS before PUSH: cycles from a descriptor's last beat.
STATES = 4
#: Descriptors of a page, which the program is fetched in, and its bytes.
PAGE, PAGE_BYTES = 64, 4096
#: Descriptors between two reports of progress.
REPORT = 256
#: MEASURE to ANSWER of one region's bounds, less the bits of its two counts.
BOUNDS = 4


@dataclass(frozen=True, slots=True)
class PostMemory:
    """What a POST reads and writes: rows, bytes of a row read and written."""

    reads: bool
    writes: bool
    rows: int
    in_bytes: int
    out_bytes: int


def post_memory(posts: Rows, number: int) -> PostMemory:
    """The memory of a POST (docs/system.md)."""
    opcode, cols = posts.opcode[number], posts.cols[number]
    if opcode == Opcode.ROWS:
        quantizes = result_bits(posts.mode[number], posts.quantize[number]) > 0
        return PostMemory(
            bool(posts.source[number] == Source.STREAM or posts.add_stream[number]),
            quantizes or bool(posts.emit[number]),
            posts.rows[number],
            cols << posts.in_width[number],
            cols << posts.out_width[number],
        )
    if opcode == Opcode.BIAS:
        return PostMemory(True, False, 1, cols << posts.in_width[number], 0)
    return PostMemory(opcode in READING, opcode in WRITING, 1, 8, 8)


def _bits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of each value; 0 has none."""
    return np.ceil(np.log2(values + 1)).astype(np.int64)


def _column(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _check_cycles(config: AcceleratorConfig, columns: Columns, length: int) -> list[int]:
    """Cycles from a descriptor's last beat to its PUSH, if every queue has a place.

    A region's bounds take the bits of its two counts (BoundsCheck); each descriptor has up to
    three regions.
    """
    cycles = np.full(length, STATES, np.int64)
    load = columns[Kind.LOAD]
    rows, layout = _column(load.rows), _column(load.layout)
    outer = rows - 1
    for kind, group in ((Layout.LEFT, config.left_load), (Layout.TOP, config.top_load)):
        entries = ((rows - 1) // (group * config.segments) * group) | (group - 1)
        outer = np.where(layout == kind, entries, outer)
    cycles[load.index] += 2 * BOUNDS + _bits(outer) + _bits(rows - 1)

    item = columns[Kind.EXEC]
    depth, repeat = _bits(_column(item.length) - 1), _bits(_column(item.repeat) - 1)
    is_os = _column(item.dataflow) == Dataflow.OS
    left = _column(item.edge) == Edge.LEFT
    lines = np.where(left, config.left_load, config.top_load)
    lines = np.where(is_os, depth, _bits(lines - 1))
    cycles[item.index] += 3 * (BOUNDS + repeat) + depth + lines

    post = columns[Kind.POST]
    for number, index in enumerate(post.index):
        memory = post_memory(post, number)
        regions = int(memory.reads) + int(memory.writes)
        cycles[index] += regions * (BOUNDS + (memory.rows - 1).bit_length())
    return cycles.tolist()


class Dispatcher:
    """Two processes: requests for the program, and its descriptors.

    Attributes
    ----------
    ended : cycle in which END has been executed
    dispatched : descriptors that left
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        columns: Columns,
        length: int,
        fetch: Reader,
        queues: dict[Kind, Queue],
        reads: Queue,
        writer: Writer,
    ) -> None:
        self._columns, self._length, self._fetch = columns, length, fetch
        self._queues, self._reads, self._writer = queues, reads, writer
        self._checks = _check_cycles(config, columns, length)
        self._beats = max(1, DESCRIPTOR_BYTES // config.beat_bytes)
        self._per_beat = max(1, config.beat_bytes // DESCRIPTOR_BYTES)
        self.ended = self.dispatched = 0

    @property
    def regions(self) -> int:
        """Requests for the program: whole pages, and what is left."""
        return (self._length >= PAGE) + (self._length % PAGE > 0)

    def fetch(self, start: int) -> Process:
        """Requests the program, from cycle `start` on."""
        pages, rest = divmod(self._length, PAGE)
        regions = []
        if pages:
            regions.append(Region(0, pages, PAGE_BYTES, PAGE_BYTES))
        if rest:
            regions.append(Region(pages * PAGE_BYTES, 1, rest * DESCRIPTOR_BYTES, 0))
        for number, region in enumerate(regions):
            if number:
                yield from self._fetch.checked.until(number)
                start = self._fetch.checked.times[number - 1] + 1
            self._fetch.ask(region, start)

    def run(self, start: int, progress: Callable[[int], None] | None) -> Process:
        fetched, left, ends = self._fetch.beats, self._fetch.left, self._fetch.ends
        kinds = self._kinds()
        pages = self._length - self._length % PAGE
        counts = dict.fromkeys(Kind, 0)
        beat, time = 0, start
        for index in range(self._length):
            if index and index == pages:
                # The end of the pages goes to the run's control while the dispatcher waits
                yield from ends.until(1)
                time = max(time, ends.times[0])
                left.append(time)
                time += 1
            if index % self._per_beat == 0:
                yield from fetched.until(beat + self._beats)
                for number in range(beat, beat + self._beats):
                    time = max(time, fetched.times[number])
                    left.append(time)
                    time += 1
                beat += self._beats
            else:
                time += 1  # the other half of a beat
            time += self._checks[index] - 1
            kind = kinds[index]
            number = counts[kind]
            counts[kind] += 1
            self.dispatched += 1
            if kind == Kind.CONTROL:
                if self._columns[kind].action[number] == Action.END:
                    self.ended = time
                    return
                continue
            queue = self._queues[kind]
            room = yield from queue.room(number)
            time = max(time, room)
            if kind == Kind.POST:
                time = yield from self._post(number, index, time)
            queue.pushes.append(time)
            time += 1
            if progress is not None and index % REPORT == 0:
                progress(index)

    def _kinds(self) -> list[Kind]:
        kinds = [Kind.CONTROL] * self._length
        for kind, rows in self._columns.items():
            for index in rows.index:
                kinds[index] = kind
        return kinds

    def _post(self, number: int, index: int, time: int) -> Awaited:
        """What a POST's memory gets of it; returns the cycle in which all is sent."""
        posts, writer = self._columns[Kind.POST], self._writer
        memory = post_memory(posts, number)
        load, stream = bool(posts.signal_load[number]), bool(posts.signal_stream[number])
        stores = memory.writes or load or stream
        if memory.reads:
            room = yield from self._reads.room(len(self._reads.pushes.times))
            time = max(time, room)
        if stores:
            room = yield from writer.queue.room(len(writer.queue.pushes.times))
            time = max(time, room)
            address, stride = posts.out_address[number], posts.out_stride[number]
            region = Region(address, memory.rows, memory.out_bytes, stride)
            writer.items.append(WriteItem(index, region if memory.writes else None, load, stream))
            writer.queue.pushes.append(time)
        if memory.reads:
            self._reads.pushes.append(time)
        return time
