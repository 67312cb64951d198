"""Rows of memory on their way to the post-processor (hw/systolora/rtl/stream_reader.py)."""

from systolora_sim.timing.columns import Rows
from systolora_sim.timing.dispatching import post_memory
from systolora_sim.timing.kernel import TOKEN, Kernel, Process, Queue, Stamps
from systolora_sim.timing.reading import Reader, Region

__all__ = ["Streamer"]

#: Items whose rows are under way at most.
DEPTH = 8


class Streamer:
    """Two processes: requests, and beats that become rows.

    Attributes
    ----------
    queue : what the dispatcher sends
    rows : the Core's input queue: whoever takes a row says so
    """

    def __init__(
        self,
        kernel: Kernel,
        queue: Queue,
        rows: Queue,
        reader: Reader,
        store_tokens: Stamps,
        bus_bytes: int,
    ) -> None:
        self.queue, self.rows, self._reader = queue, rows, reader
        self._store_tokens, self._bus_bytes = store_tokens, bus_bytes
        self._asked, self._responses = Stamps(kernel), Stamps(kernel)
        self._beats: list[tuple[int, int]] = []  # of items: rows, beats of a row

    def run(self, posts: Rows) -> Process:
        """Requests, in order."""
        reader = self._reader
        number = stores = 0
        for place in range(len(posts)):
            memory = post_memory(posts, place)
            if not memory.reads:
                continue
            time = yield from self.queue.ready(number)
            if posts.wait_store[place]:
                stores += 1
                yield from self._store_tokens.until(stores)
                time = max(time, self._store_tokens.times[stores - 1] + TOKEN)
            if number:
                yield from reader.checked.until(number)
                time = max(time, reader.checked.times[number - 1] + 1)
            if number >= DEPTH:
                yield from self._responses.until(number - DEPTH + 1)
                time = max(time, self._responses.times[number - DEPTH] + 1)
            self.queue.pops.append(time)
            address = posts.in_address[place]
            offset = address % self._bus_bytes
            row_bytes = offset + memory.in_bytes
            self._beats.append((memory.rows, -(-row_bytes // self._bus_bytes)))
            stride = posts.in_stride[place]
            reader.ask(Region(address - offset, memory.rows, row_bytes, stride), time)
            self._asked.append(time)
            number += 1

    def unpack(self, count: int) -> Process:
        """Beats of `count` items to rows, which wait in one register."""
        reader, rows = self._reader, self.rows
        beats, left, ends = reader.beats, reader.left, reader.ends
        beat = row = 0
        time = -1  # the latest beat was taken
        free = 0  # the register is free
        for item in range(count):
            yield from self._asked.until(item + 1)
            for _ in range(self._beats[item][0]):
                need = self._beats[item][1]
                yield from beats.until(beat + need)
                for number in range(beat, beat + need):
                    time = max(time + 1, beats.times[number], free)
                    left.append(time)
                beat += need
                room = yield from rows.room(row)
                free = max(time + 1, room)
                rows.pushes.append(free)
                row += 1
            yield from ends.until(item + 1)
            time = max(ends.times[item], time + 1)
            left.append(time)
            self._responses.append(time)
