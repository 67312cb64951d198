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
from systolora.contract import DESCRIPTOR_BYTES, QUEUE_DEPTHS, Action, Kind
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import columns
from systolora_sim.timing.dispatching import Dispatcher, post_memory
from systolora_sim.timing.executing import Executor
from systolora_sim.timing.kernel import Kernel, Queue, TimingError
from systolora_sim.timing.loading import Loader
from systolora_sim.timing.posting import Poster
from systolora_sim.timing.reading import ReadChannel, Reader
from systolora_sim.timing.streaming import Streamer
from systolora_sim.timing.writing import Writer

__all__ = ["Timing", "TimingError", "time_program"]

#: Depth of the Core's input queue (core.py).
INPUT_ROWS = 16
#: Beats and bursts of the program that are fetched ahead (top.py), beats of the other readers.
FETCH_BEATS, FETCH_BURSTS, READ_BEATS = 64, 4, 32
#: From the write of start to the program's first request; from the end of all to the interrupt.
START, END = 6, 12
#: What the counter CYCLES misses of that: the write's way in, the interrupt's way out.
UNCOUNTED = 4

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Timing:
    """When everything of a program happens, in cycles from the write that starts it.

    Parameters
    ----------
    cycles : until the interrupt
    counters : by the names of contract.COUNTERS
    start, end : int64 [n]: LOAD: request, all rows in the buffer; EXEC: taken, last sum readable;
        POST: taken, done; -1 for CONTROL
    wait, wait_cycles : [n]: what it waited for longest, and how long: "loads" (tokens of LOADs),
        "post" (tokens of POSTs, banks), "array" (tokens of EXECs, banks), "memory" (rows that
        come), "store" (rows that go, their tokens), "queue" (the LOADs before), "" for nothing
    first_beat, last_beat : int64 [n]: of an EXEC in the array, else -1
    read, write : int64 [n, 2]: first and last cycle of its beats on the buses, -1 if none
    """

    cycles: int
    counters: dict[str, int]
    start: Column = field(repr=False)
    end: Column = field(repr=False)
    wait: list[str] = field(repr=False)
    wait_cycles: Column = field(repr=False)
    first_beat: Column = field(repr=False)
    last_beat: Column = field(repr=False)
    read: Column = field(repr=False)
    write: Column = field(repr=False)


class _Model:
    """The units, wired as engine.py and top.py do."""

    def __init__(self, config: AcceleratorConfig, program: NDArray[np.uint8], latency: int) -> None:
        self.config, self.length = config, len(program)
        self.columns = columns(program)
        self.kernel = kernel = Kernel()
        outstanding, bus = config.outstanding, config.beat_bytes
        self.channel = ReadChannel(latency, 3)
        banks = Banks(kernel, ACC_BANKS)

        def reader(number: int, bursts: int, beats: int, drains: bool = False) -> Reader:
            return Reader(kernel, self.channel, number, bus, bursts, beats, drains=drains)

        beats = max(2 * outstanding, READ_BEATS)
        fetch = reader(0, min(FETCH_BURSTS, outstanding), FETCH_BEATS)
        self.load_reader = reader(1, outstanding, beats, drains=True)
        self.stream_reader = reader(2, outstanding, max(beats, config.stream_beats))
        queues = {
            Kind.LOAD: Queue(kernel, QUEUE_DEPTHS[Kind.LOAD]),
            Kind.EXEC: Queue(kernel, QUEUE_DEPTHS[Kind.EXEC]),
            Kind.POST: Queue(kernel, QUEUE_DEPTHS[Kind.POST]),
        }
        reads, rows = Queue(kernel, QUEUE_DEPTHS[Kind.POST]), Queue(kernel, INPUT_ROWS)
        self.writer = Writer(
            kernel, Queue(kernel, QUEUE_DEPTHS[Kind.POST]), bus, outstanding, latency
        )
        self.executor = Executor(kernel, config, queues[Kind.EXEC], banks)
        self.loader = Loader(
            kernel,
            queues[Kind.LOAD],
            self.load_reader,
            self.executor.tokens_load,
            self.writer.tokens_load,
        )
        self.streamer = Streamer(
            kernel, reads, rows, self.stream_reader, self.writer.tokens_stream, bus
        )
        self.poster = Poster(kernel, config, queues[Kind.POST], banks, rows, self.writer)
        self.executor.load_tokens = self.loader.tokens_exec
        self.executor.post_tokens = self.poster.tokens_exec
        self.poster.exec_tokens = self.executor.tokens_post
        self.fetch = fetch
        self.dispatcher = Dispatcher(
            config, self.columns, self.length, fetch, queues, reads, self.writer
        )

    def run(self, progress: Callable[[int], None] | None) -> None:
        kernel, dispatcher = self.kernel, self.dispatcher
        loads, execs, posts = (self.columns[kind] for kind in (Kind.LOAD, Kind.EXEC, Kind.POST))
        memory = [post_memory(posts, number) for number in range(len(posts))]
        reads = sum(each.reads for each in memory)
        signals = zip(memory, posts.signal_load, posts.signal_stream, strict=True)
        stores = sum(bool(each.writes or load or stream) for each, load, stream in signals)
        for process in (
            dispatcher.fetch(START),
            self.fetch.run(dispatcher.regions),
            dispatcher.run(START, progress),
            self.loader.run(loads),
            self.load_reader.run(len(loads)),
            self.loader.finish(loads),
            self.streamer.run(posts),
            self.stream_reader.run(reads),
            self.streamer.unpack(reads),
            self.executor.feed(execs),
            self.poster.run(self.columns),
            self.writer.front(stores),
            self.writer.finish(stores),
        ):
            kernel.start(process)
        # A POST's claim of a bank is seen by a tile that would start in the same cycle
        kernel.start(self.executor.run(execs), priority=1)
        kernel.run()

    @property
    def cycles(self) -> int:
        """Until the interrupt: all must be quiet for some cycles."""
        ends = [self.dispatcher.ended + 1, self.executor.last, self.poster.last, self.writer.last]
        return max(ends + self.load_reader.ends.times[-1:]) + END

    def counters(self) -> dict[str, int]:
        times = self.executor.times
        return {
            "CYCLES": self.cycles - UNCOUNTED,
            "ARRAY_BUSY": self.executor.busy,
            "STALL_LOAD": sum(times.waits_load),
            "STALL_POST": sum(times.waits_post),
            "STALL_STORE": sum(self.poster.times.waits_store),
            "BYTES_READ": self.channel.beats * self.config.beat_bytes,
            "BYTES_WRITTEN": self.writer.written,
            "MACS": self.executor.macs,
            "DESCRIPTORS": self.dispatcher.dispatched,
        }

    def timing(self) -> Timing:
        start, end, first, last = (np.full(self.length, -1, np.int64) for _ in range(4))
        read, write = (np.full((self.length, 2), -1, np.int64) for _ in range(2))
        wait, wait_cycles = [""] * self.length, np.zeros(self.length, np.int64)

        def waited(index: int, **cycles: int) -> None:
            name = max(cycles, key=lambda each: cycles[each])
            if cycles[name] > 0:
                wait[index], wait_cycles[index] = name, cycles[name]

        loads, execs, posts = (self.columns[kind] for kind in (Kind.LOAD, Kind.EXEC, Kind.POST))
        load, item, post = self.loader.times, self.executor.times, self.poster.times
        start[loads.index], end[loads.index] = load.requested, self.load_reader.ends.times
        read[loads.index] = np.array(self.load_reader.spans, np.int64).reshape(-1, 2)
        for index, array, store, queue in zip(
            loads.index, load.waits_array, load.waits_store, load.waits_queue, strict=True
        ):
            waited(index, array=array, store=store, queue=queue)

        start[execs.index], end[execs.index] = item.taken, item.done
        first[execs.index], last[execs.index] = item.first, item.last
        for index, token, bank in zip(execs.index, item.waits_load, item.waits_post, strict=True):
            waited(index, loads=token, post=bank)

        start[posts.index], end[posts.index] = post.taken, post.ended
        spans = iter(self.stream_reader.spans)
        for number, index in enumerate(posts.index):
            array, memory = post.waits_array[number], post.waits_memory[number]
            waited(index, array=array, memory=memory, store=post.waits_store[number])
            if post_memory(posts, number).reads:
                read[index] = next(spans)
        for index, span in self.writer.spans.items():
            write[index] = span
        return Timing(
            cycles=self.cycles,
            counters=self.counters(),
            start=start,
            end=end,
            wait=wait,
            wait_cycles=wait_cycles,
            first_beat=first,
            last_beat=last,
            read=read,
            write=write,
        )


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

    Raises
    ------
    TimingError
        If the latency is below 1, the program has the wrong shape or no END, or waits for a token
        that nobody gives. It is not checked otherwise: what the accelerator refuses has no meaning
        here.
    """
    if program.dtype != np.uint8 or program.ndim != 2 or program.shape[1] != DESCRIPTOR_BYTES:
        raise TimingError(
            f"program: {program.dtype} {program.shape}: must be uint8 [n, {DESCRIPTOR_BYTES}]"
        )
    if memory_latency < 1:
        raise TimingError(f"memory latency = {memory_latency}: must be at least 1")
    if not len(program):
        raise TimingError("program: empty: must be at least one descriptor")
    model = _Model(config, program, memory_latency)
    if Action.END not in model.columns[Kind.CONTROL].action:
        raise TimingError("program: no CONTROL END")
    model.run(progress)
    return model.timing()
