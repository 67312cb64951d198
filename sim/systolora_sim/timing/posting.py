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
from systolora_sim.timing.kernel import TOKEN, Awaited, Kernel, Process, Queue, Stamps
from systolora_sim.timing.writing import Writer

__all__ = ["PostTimes", "Poster"]

#: Rows of the output queue; from a row's issue to its being offered there, and to its last trace.
OUTPUT_ROWS, OFFERED, TRACE = 16, 13, 16
#: From a row's issue to its taking the row of memory that it is joined with (PostLane.DST_DATA).
JOINED = 9
#: Cycles of the Scale unit: a product is 2 or 3, a quotient 17 or 18, 1 with a zero; an integer
#: of 48 bits with z leading zeros 1 + z // 8 + z % 8. The values are not known here.
SCALE_CYCLES = {Opcode.SCALE_MUL: 3, Opcode.SCALE_DIV: 18, Opcode.SCALE_AMAX: 7}


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
    """

    def __init__(
        self,
        kernel: Kernel,
        config: AcceleratorConfig,
        queue: Queue,
        banks: Banks,
        stream_rows: Queue,
        writer: Writer,
    ) -> None:
        self.queue, self._banks = queue, banks
        self._stream_rows, self._writer = stream_rows, writer
        self.exec_tokens, self.tokens_exec = Stamps(kernel), Stamps(kernel)
        self._bank_depth = config.bank_depth
        self._cols = config.cols
        self.times = PostTimes()
        self._pops: deque[int] = deque([-1] * OUTPUT_ROWS, OUTPUT_ROWS)
        self._row = 0  # number of the stream's next row
        self._memory = self._store = 0  # waits of the present one
        self._writes = 0
        self.last = 0

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
            memory = post_memory(posts, number)
            if memory.writes:
                self._writes += 1
                yield from self._writer.ready.until(self._writes)
            if opcode == Opcode.ROWS:
                used = self._used(posts, number)
                claimed = time + 2
                yield claimed
                granted = banks.claim(used, claimed)
                waited += granted - claimed
                rows = memory.rows
                if memory.reads:
                    joins = bool(posts.add_stream[number])
                    last = yield from self._stream(granted, rows, joins, memory.writes)
                elif memory.writes:
                    last = self._rows(granted, rows, self._step(posts, number))
                else:
                    last = granted + 1 + (rows - 1) * self._step(posts, number)
                end = last + TRACE + 1
                banks.release(used, end)
            elif opcode in READING:
                there = yield from self._stream_rows.ready(self._row)
                taken = max(time + 2, there)
                self._row += 1
                self._stream_rows.pops.append(taken)
                self._memory = taken - time - 2
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
        if plain and (self._adds(posts, number) or posts.write[number]):
            used.add(posts.dst_base[number] // self._bank_depth)
        return used

    def _adds(self, posts: Rows, number: int) -> bool:
        """Whether accumulators are added, not rows of memory."""
        return bool(posts.add[number] and not posts.add_stream[number])

    def _step(self, posts: Rows, number: int) -> int:
        """Cycles per row: two where a row is read twice from one bank."""
        src, dst = posts.src_base[number], posts.dst_base[number]
        twice = (
            posts.source[number] == Source.BUFFER
            and posts.mode[number] in (Mode.RAW, Mode.ACC)
            and self._adds(posts, number)
            and src // self._bank_depth == dst // self._bank_depth
        )
        return 2 if twice else 1

    def _rows(self, granted: int, rows: int, step: int) -> int:
        """Rows of the buffer to memory; returns the cycle in which the last one is issued."""
        pops, row = self._pops, self._writer.row
        time = granted + 1 - step
        free = granted
        for _ in range(rows):
            next_row = time + step
            room = pops[0] + 1
            self._store += max(0, room - free - 1)
            if room > next_row:
                # Rows that share a bank start an even number of cycles after the first
                next_row = room + (room - granted - 1) % step
            free = time = next_row
            pops.append(row(time + OFFERED))
        return time

    def _stream(self, granted: int, rows: int, joins: bool, writes: bool) -> Awaited:
        """Rows from memory, or joined with such; returns the cycle of the last one's issue."""
        pops, stream = self._pops, self._stream_rows
        time = granted
        for _ in range(rows):
            next_row = time + 1
            if writes and pops[0] + 1 > next_row:
                self._store += pops[0] + 1 - next_row
                next_row = pops[0] + 1
            row = self._row
            if joins:
                # It is enough that the row has come: it is taken later
                yield from stream.pushes.until(row + 1)
                there = stream.pushes.times[row] + 1
            else:
                there = yield from stream.ready(row)
            if there > next_row:
                self._memory += there - next_row
                next_row = there
            time = next_row
            stream.pops.append(time + JOINED if joins else time)
            self._row += 1
            if writes:
                pops.append(self._writer.row(time + OFFERED))
        return time
