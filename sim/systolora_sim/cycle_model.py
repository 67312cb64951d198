"""Cycles of a program, without its hardware: docs/cycle-model.md.

The model follows the RTL descriptor by descriptor: each unit of the accelerator is a process with
the closed forms of its own timing, and the queues, tokens, buses and banks between them decide when
it goes on. It computes no data.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora.contract import DESCRIPTOR_BYTES, Action, Kind
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Columns, columns
from systolora_sim.timing.dispatching import check_cycles, post_memory
from systolora_sim.timing.executing import Executor
from systolora_sim.timing.kernel import Kernel, Process, Queue, Stamps
from systolora_sim.timing.posting import Poster
from systolora_sim.timing.reading import ReadChannel, Reader, Region
from systolora_sim.timing.writing import WriteItem, Writer

__all__ = ["Timing", "time_program"]

#: Depths of the queues behind the dispatcher (engine.py), of the loader and the stream reader.
LOAD_QUEUE, EXEC_QUEUE, POST_QUEUE = 8, 8, 16
LOADS, STREAMS = 4, 8
#: Beats and bursts of the program that are fetched ahead (top.py).
FETCH_BEATS, FETCH_BURSTS = 64, 4
#: Descriptors of a page, which the program is fetched in.
PAGE = 4096 // DESCRIPTOR_BYTES
#: From the write of start to the program's first request; from the end of all to the interrupt.
START, END = 6, 12
TOKEN = 1


@dataclass(frozen=True)
class Timing:
    """When everything of a program happens, in cycles from the write that starts it.

    Parameters
    ----------
    cycles : until the interrupt
    counters : by the names of contract.COUNTERS
    start, end : int64 [n]: LOAD: request, last row in the buffer; EXEC: taken, last sum readable;
        POST: taken, done (if it stores: all acknowledged); -1 for CONTROL
    wait, wait_cycles : [n]: what it waited for longest, and how long
    first_beat, last_beat : int64 [n]: of an EXEC in the array, else -1
    read, write : int64 [n, 2]: first and last cycle of its beats on the buses, -1 if none
    """

    cycles: int
    counters: dict[str, int]
    start: NDArray[np.int64] = field(repr=False)
    end: NDArray[np.int64] = field(repr=False)
    wait: list[str] = field(repr=False)
    wait_cycles: NDArray[np.int64] = field(repr=False)
    first_beat: NDArray[np.int64] = field(repr=False)
    last_beat: NDArray[np.int64] = field(repr=False)
    read: NDArray[np.int64] = field(repr=False)
    write: NDArray[np.int64] = field(repr=False)


class _Model:
    """The units, wired as engine.py and top.py do."""

    def __init__(self, config: AcceleratorConfig, program: NDArray[np.uint8], latency: int) -> None:
        self.config = config
        self.length = len(program)
        self.columns: Columns = columns(program)
        self.kernel = kernel = Kernel()
        outstanding, bus = config.outstanding, config.bus_bytes
        self.channel = channel = ReadChannel(latency, 3)
        banks = Banks(kernel, ACC_BANKS)
        queue_beats = max(2 * outstanding, 32)
        fetch_bursts = min(FETCH_BURSTS, outstanding)
        self.fetched = Stamps(kernel)
        self.fetch = Reader(
            kernel, channel, 0, bus, fetch_bursts, FETCH_BEATS, self._fetched, drains=False
        )
        self.loads = Reader(
            kernel, channel, 1, bus, outstanding, queue_beats, lambda span: None, drains=True
        )
        self.streams = Reader(
            kernel, channel, 2, bus, outstanding, queue_beats, self._streamed, drains=False
        )
        self.load_queue, exec_queue = Queue(kernel, LOAD_QUEUE), Queue(kernel, EXEC_QUEUE)
        post_queue, self.reads_queue, writes = (Queue(kernel, POST_QUEUE) for _ in range(3))
        self.writer = Writer(kernel, writes, bus, outstanding, latency)
        self.executor = Executor(kernel, config, exec_queue, banks)
        self.poster = Poster(kernel, config, post_queue, banks, self.streams, self.writer)
        # Tokens: who gives appends to the list of who takes
        self.executor.post_tokens = self.poster.tokens_exec
        self.poster.exec_tokens = self.executor.tokens_post
        self.load_starts: list[int] = []
        self.load_ends: list[int] = []
        self.load_waits: list[tuple[int, int, int]] = []
        self.pushed = np.full(self.length, -1, np.int64)
        self.ended = 0

    def _fetched(self, span: range) -> None:
        for time in span:
            self.fetched.append(time)

    def _streamed(self, span: range) -> None:
        self.poster.add_beats(span)

    # The dispatcher -------------------------------------------------------------------------------

    def _program(self) -> Process:
        """Requests the program: whole pages, then what is left."""
        pages, rest = divmod(self.length, PAGE)
        time = START
        regions = []
        if pages:
            regions.append(Region(0, pages, 4096, 4096))
        if rest:
            regions.append(Region(pages * 4096, 1, rest * DESCRIPTOR_BYTES, 0))
        for number, region in enumerate(regions):
            if number:
                yield from self.fetch.checked.until(number)
                time = self.fetch.checked.times[number - 1] + 1
            self.fetch.ask(region, time)

    def _dispatch(self, progress: Callable[[int], None] | None) -> Process:
        kernel_kinds = self._kinds()
        checks = check_cycles(self.config, self.columns, self.length)
        per = max(1, DESCRIPTOR_BYTES // self.config.bus_bytes)
        fetched, left = self.fetched, self.fetch.left
        counts = dict.fromkeys(Kind, 0)
        reads = writes = 0
        post = self.columns[Kind.POST]
        beat = 0
        time = START
        for index in range(self.length):
            if index and index == self.length - self.length % PAGE:
                # The end of the pages goes to the run's control while the dispatcher waits
                yield from self.fetch.ends.until(1)
                time = max(time, self.fetch.ends.times[0])
                left.append(time)
                time += 1
            yield from fetched.until(beat + per)
            for number in range(beat, beat + per):
                time = max(time, fetched.times[number])
                left.append(time)
                time += 1
            beat += per
            time += checks[index] - 1
            kind = kernel_kinds[index]
            number = counts[kind]
            counts[kind] += 1
            if kind == Kind.CONTROL:
                self.pushed[index] = time - 1
                if self.columns[kind].action[number] == Action.END:
                    self.ended = time
                    break
                continue
            if kind == Kind.LOAD:
                time = max(time, (yield from self.load_queue.room(number)))
                self.load_queue.pushes.append(time)
            elif kind == Kind.EXEC:
                queue = self.executor.queue
                time = max(time, (yield from queue.room(number)))
                queue.pushes.append(time)
            else:
                does_read, does_write, rows, _, out_bytes = post_memory(post, number)
                stores = does_write or post.signal_load[number] or post.signal_stream[number]
                time = max(time, (yield from self.poster.queue.room(number)))
                if does_read:
                    time = max(time, (yield from self.reads_queue.room(reads)))
                if stores:
                    time = max(time, (yield from self.writer.queue.room(writes)))
                self.poster.queue.pushes.append(time)
                if does_read:
                    reads += 1
                    self.reads_queue.pushes.append(time)
                if stores:
                    writes += 1
                    region = None
                    if does_write:
                        address, stride = post.out_address[number], post.out_stride[number]
                        region = Region(address, rows, out_bytes, stride)
                    item = WriteItem(
                        index, region, bool(post.signal_load[number]),
                        bool(post.signal_stream[number]),
                    )  # fmt: skip
                    self.writer.items.append(item)
                    self.writer.queue.pushes.append(time)
            self.pushed[index] = time
            time += 1
            if progress is not None and not index % 256:
                progress(index)

    def _kinds(self) -> list[Kind]:
        kinds = [Kind.CONTROL] * self.length
        for kind, rows in self.columns.items():
            for index in rows.index:
                kinds[index] = kind
        return kinds

    # Requests -------------------------------------------------------------------------------------

    def _loader(self) -> Process:
        loads, reader = self.columns[Kind.LOAD], self.loads
        execs = stores = 0
        for number in range(len(loads)):
            ready = yield from self.load_queue.ready(number)
            array = store = ready
            if loads.wait_exec[number]:
                execs += 1
                yield from self.executor.tokens_load.until(execs)
                array = max(array, self.executor.tokens_load.times[execs - 1] + TOKEN)
            if loads.wait_store[number]:
                stores += 1
                yield from self.writer.tokens_load.until(stores)
                store = max(store, self.writer.tokens_load.times[stores - 1] + TOKEN)
            time = max(array, store)
            queued = time
            if number:
                yield from reader.checked.until(number)
                queued = max(queued, reader.checked.times[number - 1] + 1)
            if number >= LOADS:
                yield from reader.ends.until(number - LOADS + 1)
                queued = max(queued, reader.ends.times[number - LOADS] + 1)
            self.load_waits.append((array - ready, store - ready, queued - time))
            self.load_queue.pops.append(queued)
            self.load_starts.append(queued)
            region = Region(
                loads.address[number], loads.rows[number], loads.row_bytes[number],
                loads.stride[number],
            )  # fmt: skip
            reader.ask(region, queued)

    def _load_ends(self) -> Process:
        loads, ends = self.columns[Kind.LOAD], self.loads.ends
        for number in range(len(loads)):
            yield from ends.until(number + 1)
            if loads.signal_exec[number]:
                self.executor.load_tokens.append(ends.times[number])

    def _streamer(self) -> Process:
        post, reader = self.columns[Kind.POST], self.streams
        bus = self.config.bus_bytes
        number = stores = 0
        for place in range(len(post)):
            reads, _, rows, in_bytes, _ = post_memory(post, place)
            if not reads:
                continue
            time = yield from self.reads_queue.ready(number)
            if post.wait_store[place]:
                stores += 1
                yield from self.writer.tokens_stream.until(stores)
                time = max(time, self.writer.tokens_stream.times[stores - 1] + TOKEN)
            if number:
                yield from reader.checked.until(number)
                time = max(time, reader.checked.times[number - 1] + 1)
            if number >= STREAMS:
                yield from self.poster.responses.until(number - STREAMS + 1)
                time = max(time, self.poster.responses.times[number - STREAMS] + 1)
            self.reads_queue.pops.append(time)
            address = post.in_address[place]
            offset = address % bus
            reader.ask(
                Region(address - offset, rows, offset + in_bytes, post.in_stride[place]), time
            )
            number += 1

    def run(self, progress: Callable[[int], None] | None) -> None:
        kernel, post = self.kernel, self.columns[Kind.POST]
        memory = [post_memory(post, number) for number in range(len(post))]
        reads = sum(each[0] for each in memory)
        stores = sum(
            bool(each[1] or load or stream)
            for each, load, stream in zip(memory, post.signal_load, post.signal_stream, strict=True)
        )
        kernel.start(self._program())
        kernel.start(self.fetch.run((self.length >= PAGE) + (self.length % PAGE > 0)))
        kernel.start(self._dispatch(progress))
        kernel.start(self._loader())
        kernel.start(self.loads.run(len(self.columns[Kind.LOAD])))
        kernel.start(self._load_ends())
        kernel.start(self._streamer())
        kernel.start(self.streams.run(reads))
        kernel.start(self.executor.run(self.columns[Kind.EXEC]), priority=1)
        kernel.start(self.poster.run(self.columns))
        kernel.start(self.writer.front(stores))
        kernel.start(self.writer.finish(stores))
        kernel.run()

    def timing(self) -> Timing:
        def column() -> NDArray[np.int64]:
            return np.full(self.length, -1, np.int64)

        start, end, first, last = column(), column(), column(), column()
        wait_cycles = np.zeros(self.length, np.int64)
        wait = [""] * self.length
        read, write = (np.full((self.length, 2), -1, np.int64) for _ in range(2))

        def waited(index: int, **cycles: int) -> None:
            name = max(cycles, key=lambda each: cycles[each])
            if cycles[name] > 0:
                wait[index], wait_cycles[index] = name, cycles[name]

        loads, execs, posts = (self.columns[kind] for kind in (Kind.LOAD, Kind.EXEC, Kind.POST))
        start[loads.index] = self.load_starts
        end[loads.index] = self.loads.ends.times
        read[loads.index] = np.array(self.loads.spans, np.int64).reshape(-1, 2)
        for index, (array, store, queue) in zip(loads.index, self.load_waits, strict=True):
            waited(index, array=array, store=store, queue=queue)

        times = self.executor.times
        start[execs.index], end[execs.index] = times.taken, times.done
        first[execs.index], last[execs.index] = times.first, times.last
        for number, index in enumerate(execs.index):
            waited(index, loads=times.waits_load[number], post=times.waits_post[number])

        post = self.poster.times
        start[posts.index], end[posts.index] = post.taken, post.ended
        streamed = 0
        for number, index in enumerate(posts.index):
            waited(
                index, array=post.waits_array[number], memory=post.waits_memory[number],
                store=post.waits_store[number],
            )  # fmt: skip
            if post_memory(posts, number)[0]:
                read[index] = self.streams.spans[streamed]
                streamed += 1
        for index, span in self.writer.spans.items():
            write[index] = span
        last_unit = max(
            self.ended, self.executor.last, self.poster.last, self.writer.last,
            *self.loads.ends.times[-1:],
        )  # fmt: skip
        cycles = last_unit + END
        counters = {
            "CYCLES": cycles - 4,
            "ARRAY_BUSY": self.executor.busy,
            "STALL_LOAD": sum(times.waits_load),
            "STALL_POST": sum(times.waits_post),
            "STALL_STORE": sum(post.waits_store),
            "BYTES_READ": self.channel.beats * self.config.bus_bytes,
            "BYTES_WRITTEN": self.writer.written,
            "MACS": self.executor.macs,
            "DESCRIPTORS": int((self.pushed >= 0).sum()),
        }
        return Timing(
            cycles=cycles, counters=counters, start=start, end=end, wait=wait,
            wait_cycles=wait_cycles, first_beat=first, last_beat=last, read=read, write=write,
        )  # fmt: skip


def time_program(
    config: AcceleratorConfig,
    program: NDArray[np.uint8],
    *,
    memory_latency: int = 40,
    progress: Callable[[int], None] | None = None,
) -> Timing:
    """The timing of one run of a program, which must be valid and end with its only END.

    Parameters
    ----------
    program : uint8 [n, 64]
    memory_latency : cycles from a read's address to its data, and from a write's data to its answer
    progress : called now and then with the descriptors dispatched so far
    """
    model = _Model(config, program, memory_latency)
    model.run(progress)
    return model.timing()
