"""POSTs: the post-processor's commands and the rows that they read and write.

hw/systolora/rtl: post_control.py, post_lane.py, scale_unit.py, stream_reader.py, output_queue.py.
"""

from collections import deque
from dataclasses import dataclass, field

from systolora.config import AcceleratorConfig
from systolora.contract import Kind, Mode, Opcode, Source
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Columns, Rows
from systolora_sim.timing.dispatching import READING, WRITING, post_memory
from systolora_sim.timing.kernel import Awaited, Kernel, Process, Queue, Stamps
from systolora_sim.timing.reading import Reader
from systolora_sim.timing.writing import Writer

__all__ = ["PostTimes", "Poster"]

#: Rows of the output queue; from a row's issue to its being offered there, and to its last trace.
OUTPUT_ROWS, OFFERED, TRACE = 16, 13, 16
#: Cycles of the Scale unit: a product is 2 or 3, a quotient 17 or 18, 1 with a zero; an integer
#: of 48 bits with z leading zeros 1 + z // 8 + z % 8. The values are not known here.
SCALE_CYCLES = {Opcode.SCALE_MUL: 3, Opcode.SCALE_DIV: 18, Opcode.SCALE_AMAX: 7}
TOKEN = 1


@dataclass
class PostTimes:
    """Cycles by POST: taken, ended (its token's cycle), and what it waited for."""

    taken: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    waits_array: list[int] = field(default_factory=list)
    waits_memory: list[int] = field(default_factory=list)
    waits_store: list[int] = field(default_factory=list)


class Poster:
    """A process that takes POSTs in order.

    Attributes
    ----------
    queue : what the dispatcher sends
    exec_tokens : cycles in which tokens for POSTs are given
    tokens_exec : cycles in which POSTs give tokens
    beats : cycles in which the stream's beats are at the end of their reader's queue
    """

    def __init__(
        self,
        kernel: Kernel,
        config: AcceleratorConfig,
        queue: Queue,
        banks: Banks,
        reader: Reader,
        writer: Writer,
    ) -> None:
        self.queue, self._banks, self._reader, self._writer = queue, banks, reader, writer
        self.exec_tokens, self.tokens_exec = Stamps(kernel), Stamps(kernel)
        self.beats, self.responses = Stamps(kernel), Stamps(kernel)
        self._bank_depth, self._bus_bytes = config.bank_depth, config.bus_bytes
        self._cols = config.cols
        self.times = PostTimes()
        self._pops: deque[int] = deque([-1] * OUTPUT_ROWS, OUTPUT_ROWS)
        self._beat = 0  # number of the stream's next beat
        self._unpacked = self._row_taken = -1
        self._items = 0  # of the stream
        self._writes = 0
        self.last = 0

    def add_beats(self, span: range) -> None:
        """Beats of the stream have come."""
        for time in span:
            self.beats.append(time)

    def run(self, columns: Columns) -> Process:
        posts, times, banks = columns[Kind.POST], self.times, self._banks
        tokens = 0
        free = -1
        for number in range(len(posts)):
            ready = yield from self.queue.ready(number)
            time = max(ready, free)
            waited = 0
            if posts.wait_exec[number]:
                tokens += 1
                yield from self.exec_tokens.until(tokens)
                given = self.exec_tokens.times[tokens - 1] + TOKEN
                waited = max(0, given - time)
                time = max(time, given)
            times.taken.append(time)
            self.queue.pops.append(time)
            self._memory = self._store = 0
            opcode = posts.opcode[number]
            reads, writes, rows, in_bytes, _ = post_memory(posts, number)
            if writes:
                self._writes += 1
                yield from self._writer.ready.until(self._writes)
            if opcode == Opcode.ROWS:
                used = self._used(posts, number)
                claimed = time + 2
                yield claimed
                granted = banks.claim(used, claimed)
                waited += granted - claimed
                step = self._step(posts, number)
                if reads:
                    last = yield from self._stream(granted, rows, in_bytes, posts, number, writes)
                elif writes:
                    last = self._rows(granted, rows, step)
                else:
                    last = granted + 1 + (rows - 1) * step
                end = last + TRACE + 1
                banks.release(used, end)
            elif opcode in READING:
                beat = yield from self._row(in_bytes, posts.in_address[number])
                taken = max(time + 2, beat)
                self._memory = taken - time - 2
                yield from self._take(taken, True)
                end = taken + (2 if opcode == Opcode.BIAS else 1)
            elif opcode in WRITING:
                end = self._writer.row(time + 2) + 1
            elif opcode == Opcode.COLLECT:
                end = time + 3 + self._cols
            else:
                end = time + 2
                if opcode in SCALE_CYCLES:
                    end = time + 3 + SCALE_CYCLES[Opcode(opcode)]
            times.ended.append(end)
            times.waits_array.append(waited)
            times.waits_memory.append(self._memory)
            times.waits_store.append(self._store)
            self.last = max(self.last, end)
            if posts.signal_exec[number]:
                self.tokens_exec.append(end)
            free = end + 1

    def _used(self, posts: Rows, number: int) -> set[int]:
        used = set()
        if posts.source[number] == Source.BUFFER:
            used.add(posts.src_base[number] // self._bank_depth)
        plain = posts.mode[number] in (Mode.RAW, Mode.ACC)
        if plain and (posts.add[number] or posts.write[number]):
            used.add(posts.dst_base[number] // self._bank_depth)
        return used

    def _step(self, posts: Rows, number: int) -> int:
        """Cycles per row: two where a row is read twice from one bank."""
        return 1 + (
            posts.source[number] == Source.BUFFER
            and posts.mode[number] in (Mode.RAW, Mode.ACC)
            and posts.add[number]
            and posts.src_base[number] // self._bank_depth
            == posts.dst_base[number] // self._bank_depth
        )

    def _rows(self, granted: int, rows: int, step: int) -> int:
        """Rows of the buffer to memory; returns the cycle in which the last one is issued."""
        pops, row = self._pops, self._writer.row
        time = granted + 1 - step
        for _ in range(rows):
            next_row = time + step
            room = pops[0] + 1
            if room > next_row:
                self._store += room - next_row
                time = room
                if step == 2:
                    time += (time - granted - 1) % 2
            else:
                time = next_row
            pops.append(row(time + OFFERED))
        return time

    def _stream(
        self, granted: int, rows: int, in_bytes: int, posts: Rows, number: int, writes: bool
    ) -> Awaited:
        """Rows from memory; returns the cycle in which the last one is issued."""
        pops = self._pops
        time = granted
        address, stride = posts.in_address[number], posts.in_stride[number]
        for index in range(rows):
            beat = yield from self._row(in_bytes, address + index * stride)
            next_row = time + 1
            if writes and pops[0] + 1 > next_row:
                self._store += pops[0] + 1 - next_row
                next_row = pops[0] + 1
            if beat > next_row:
                self._memory += beat - next_row
                next_row = beat
            time = next_row
            yield from self._take(time, index == rows - 1)
            if writes:
                pops.append(self._writer.row(time + OFFERED))
        return time

    def _row(self, in_bytes: int, address: int) -> Awaited:
        """Unpacks the stream's next row; returns the cycle from which on it is valid."""
        offset = address % self._bus_bytes
        count = -(-(offset + in_bytes) // self._bus_bytes)
        yield from self.beats.until(self._beat + count)
        times, left = self.beats.times, self._reader.left
        unpacked = max(self._unpacked, self._row_taken - 1)
        for number in range(self._beat, self._beat + count):
            unpacked = max(unpacked + 1, times[number])
            left.append(unpacked)
        self._beat += count
        self._unpacked = unpacked
        return unpacked + 1

    def _take(self, time: int, last: bool) -> Process:
        """The stream's row is taken; after an item's last one its response leaves."""
        self._row_taken = time
        if last:
            self._items += 1
            yield from self._reader.ends.until(self._items)
            response = max(self._reader.ends.times[self._items - 1], self._unpacked + 1)
            self._reader.left.append(response)
            self._unpacked = response
            self.responses.append(response)
