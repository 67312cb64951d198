"""POSTs: the post-processor's commands and the rows that they read and write.

hw/systolora/rtl: post_control.py, post_lane.py, scale_unit.py, stream_reader.py, output_queue.py.
"""

from collections import deque
from dataclasses import dataclass, field

from systolora.config import AcceleratorConfig
from systolora.contract import Kind, Opcode, Source
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Columns, Rows
from systolora_sim.timing.dispatching import READING, WRITING, PostMemory, post_memory
from systolora_sim.timing.kernel import TOKEN, Awaited, Kernel, Process, Queue, Stamps
from systolora_sim.timing.row_order import RowOrder
from systolora_sim.timing.writing import Writer

__all__ = ["PostTimes", "Poster"]

#: Rows of the output queue, without and with fused_quantize; from a row's issue to its being
#: offered there.
OUTPUT_ROWS, OFFERED = (16, 32), 12
#: From a row's issue to its taking the row of memory that it is joined with, to its being written,
#: and to its last trace (PostLane.DST_DATA, VALUE, DONE).
JOINED, WRITTEN, TRACE = 8, 10, 11
#: Of a row that quantizes its value, to its being offered and to its last trace
#: (PostLane.QUANTIZED).
LATE_OFFERED, LATE_TRACE = 17, 15
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
        self._rows = RowOrder(config.bank_depth)
        places = OUTPUT_ROWS[config.fused_quantize]
        self._pops: deque[int] = deque([-1] * places, places)
        self._row = 0  # number of the stream's next row
        self._memory = self._store = 0  # waits of the present one
        self._writes = 0
        self.last = 0

    def run(self, columns: Columns) -> Process:
        posts, times, banks = columns[Kind.POST], self.times, self._banks
        tokens = 0
        free = -1
        empty = 0  # the first cycle without a row in the pipeline
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
            start = time + 2
            if opcode == Opcode.ROWS:
                used = self._used(posts, number)
                yield start
                granted = banks.claim(used, start)
                waited += granted - start
                last = yield from self._issue(posts, number, granted, memory)
                end, free = last + WRITTEN, last
                banks.release(used, end + 1)
                fused = posts.quantize[number] > 0
                empty = max(empty, last + (LATE_TRACE if fused else TRACE) + 1)
                self.last = max(self.last, empty - 1)
            else:
                start = max(start, empty + 1)
                if opcode in READING:
                    there = yield from self._stream_rows.ready(self._row)
                    taken = max(start, there)
                    self._row += 1
                    self._stream_rows.pops.append(taken)
                    self._memory = taken - start
                    end = taken + (2 if opcode == Opcode.BIAS else 1)
                elif opcode in WRITING:
                    end = self._writer.row(start) + 1
                elif opcode == Opcode.COLLECT:
                    end = start + 1 + self._cols
                else:
                    end = start
                    if opcode in SCALE_CYCLES:
                        end = start + 1 + SCALE_CYCLES[Opcode(opcode)]
                free = end + 1
            times.ended.append(end)
            times.waits_array.append(waited)
            times.waits_memory.append(self._memory)
            times.waits_store.append(self._store)
            self.last = max(self.last, end)
            if posts.signal_exec[number]:
                self.tokens_exec.append(end)

    def _used(self, posts: Rows, number: int) -> set[int]:
        command = self._rows.command(posts, number)
        used = {command.src // self._bank_depth} if command.reads else set()
        if command.adds or command.writes:
            used.add(command.dst // self._bank_depth)
        return used

    def _issue(self, posts: Rows, number: int, granted: int, memory: PostMemory) -> Awaited:
        """The rows of a command; returns the cycle in which the last one enters the pipeline."""
        rows = self._rows
        rows.begin(rows.command(posts, number), granted)
        if rows.alone and not (memory.reads or memory.writes):
            return rows.steady(granted, memory.rows)
        pops, stream = self._pops, self._stream_rows
        joins = bool(posts.source[number] == Source.BUFFER)
        offered = LATE_OFFERED if posts.quantize[number] else OFFERED
        time = granted - 1
        for _ in range(memory.rows):
            next_row = time + 1
            if memory.writes and pops[0] + 1 > next_row:
                self._store += pops[0] + 1 - next_row
                next_row = pops[0] + 1
            if memory.reads:
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
            time = rows.issue(next_row)
            if memory.reads:
                stream.pops.append(time + JOINED if joins else time)
                self._row += 1
            if memory.writes:
                pops.append(self._writer.row(time + offered))
        return time
