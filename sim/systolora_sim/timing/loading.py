"""LOADs: their requests and tokens (hw/systolora/rtl/loader.py)."""

from dataclasses import dataclass, field

from systolora_sim.timing.columns import Rows
from systolora_sim.timing.kernel import TOKEN, Kernel, Process, Queue, Stamps
from systolora_sim.timing.reading import Reader, Region

__all__ = ["Loader"]

#: LOADs whose rows are under way at most.
DEPTH = 4


@dataclass
class LoadTimes:
    """Cycles by LOAD: requested; waits for tokens of EXECs and POSTs, and for the one before."""

    requested: list[int] = field(default_factory=list)
    waits_array: list[int] = field(default_factory=list)
    waits_store: list[int] = field(default_factory=list)
    waits_queue: list[int] = field(default_factory=list)


class Loader:
    """Two processes: requests, and tokens when all rows are there.

    Attributes
    ----------
    queue : what the dispatcher sends
    exec_tokens, store_tokens : cycles in which tokens for LOADs are given
    tokens_exec : cycles in which LOADs give tokens
    """

    def __init__(
        self, kernel: Kernel, queue: Queue, reader: Reader, exec_tokens: Stamps, store: Stamps
    ) -> None:
        self.queue, self._reader = queue, reader
        self._exec_tokens, self._store_tokens = exec_tokens, store
        self.tokens_exec = Stamps(kernel)
        self.times = LoadTimes()

    def run(self, loads: Rows) -> Process:
        reader, times = self._reader, self.times
        execs = stores = 0
        for number in range(len(loads)):
            ready = array = store = yield from self.queue.ready(number)
            if loads.wait_exec[number]:
                execs += 1
                yield from self._exec_tokens.until(execs)
                array = max(array, self._exec_tokens.times[execs - 1] + TOKEN)
            if loads.wait_store[number]:
                stores += 1
                yield from self._store_tokens.until(stores)
                store = max(store, self._store_tokens.times[stores - 1] + TOKEN)
            time = max(array, store)
            if number:
                yield from reader.checked.until(number)
                time = max(time, reader.checked.times[number - 1] + 1)
            if number >= DEPTH:
                yield from reader.ends.until(number - DEPTH + 1)
                time = max(time, reader.ends.times[number - DEPTH] + 1)
            times.requested.append(time)
            times.waits_array.append(array - ready)
            times.waits_store.append(store - ready)
            times.waits_queue.append(time - max(array, store))
            self.queue.pops.append(time)
            region = Region(
                loads.address[number],
                loads.rows[number],
                loads.row_bytes[number],
                loads.stride[number],
            )
            reader.ask(region, time)

    def finish(self, loads: Rows) -> Process:
        ends = self._reader.ends
        for number in range(len(loads)):
            yield from ends.until(number + 1)
            if loads.signal_exec[number]:
                self.tokens_exec.append(ends.times[number])
