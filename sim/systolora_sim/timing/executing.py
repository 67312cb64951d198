"""EXECs: the feeder's passes through the array (hw/systolora/rtl/array_feeder.py)."""

from dataclasses import dataclass, field

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Edge
from systolora_sim.array_model import ArrayModel, Tile
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Rows
from systolora_sim.timing.kernel import TOKEN, Awaited, Kernel, Process, Queue, Stamps

__all__ = ["Executor"]


@dataclass
class ExecTimes:
    """Cycles by EXEC: taken by the feeder, first and last beat, last sum readable; waits."""

    taken: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    waits_load: list[int] = field(default_factory=list)
    waits_post: list[int] = field(default_factory=list)


class Executor:
    """A process that takes EXECs in order.

    Attributes
    ----------
    queue : what the dispatcher sends
    load_tokens, post_tokens : cycles in which tokens for EXECs are given
    tokens_load, tokens_post : cycles in which EXECs give tokens
    times : ExecTimes
    busy, macs : beats that entered the array, multiplications of valid operands
    last : cycle of the last sum
    """

    def __init__(
        self, kernel: Kernel, config: AcceleratorConfig, queue: Queue, banks: Banks
    ) -> None:
        self._kernel, self.queue, self._banks = kernel, queue, banks
        self.load_tokens, self.post_tokens = Stamps(kernel), Stamps(kernel)
        self.tokens_load, self.tokens_post = Stamps(kernel), Stamps(kernel)
        self._rows, self._bank_depth = config.rows, config.bank_depth
        self._array = ArrayModel(config)
        self.times = ExecTimes()
        self._posts = 0
        self.busy = self.macs = self.last = 0

    def run(self, execs: Rows) -> Process:
        times = self.times
        loads = 0
        free = -1  # the feeder's last pass of the EXEC before
        for number in range(len(execs)):
            ready = yield from self.queue.ready(number)
            time = max(ready, free)
            if execs.wait_load[number]:
                loads += 1
                yield from self.load_tokens.until(loads)
                time = max(time, self.load_tokens.times[loads - 1] + TOKEN)
            times.taken.append(time)
            times.waits_load.append(max(0, time - max(ready, free + 1)))
            self.queue.pops.append(time)
            free = yield from self._tiles(execs, number, time)
            passes = (1 + execs.act_wide[number]) * (1 + execs.wgt_wide[number])
            length, repeat = execs.length[number], execs.repeat[number]
            self.busy += length * repeat * passes
            lanes = self._rows * (repeat - 1) + execs.last[number]
            self.macs += length * lanes * execs.cols[number] * passes

    def _tiles(self, execs: Rows, number: int, sent: int) -> Awaited:
        """All passes of an EXEC that was taken in cycle `sent`; returns when the last is sent."""
        array, times = self._array, self.times
        is_os = execs.dataflow[number] == Dataflow.OS
        bank = execs.acc_base[number] // self._bank_depth
        tiles = [
            Tile(
                is_os,
                execs.length[number],
                not act_plane,
                execs.edge[number] == Edge.LEFT,
                bank,
                bool(execs.fence[number]),
            )
            for _ in range(1 + execs.wgt_wide[number])
            for act_plane in range(1 + execs.act_wide[number])
        ] * execs.repeat[number]
        wait, signal = execs.wait_post[number], execs.signal_load[number]
        begun, last, done, waited = -1, -1, -1, 0
        for index, tile in enumerate(tiles):
            sent = max(sent + 1, array.room(is_os or tile.load))
            first = array.enter(tile, sent)
            signals = signal and index == len(tiles) - 1
            if signals and array.last_read >= 0:
                self.tokens_load.append(array.last_read + 1)
                signals = False
            may = array.offered
            if wait and not index:
                self._posts += 1
                yield from self.post_tokens.until(self._posts)
                may = max(may, self.post_tokens.times[self._posts - 1] + TOKEN)
                first = max(first, may)
            start = yield from self._banks.start(bank, first)
            waited += (start if start > first else may) - array.offered
            at = array.start(tile, start)
            self._banks.fly(bank, at.done)
            begun = begun if index else start
            last, done = at.last, at.done
            if signals:
                self.tokens_load.append(array.last_read + 1)
        if execs.signal_post[number]:
            self._kernel.start(self._give(done))
        self.last = max(self.last, done)
        times.first.append(begun)
        times.last.append(last)
        times.done.append(done)
        times.waits_post.append(waited)
        return sent

    def _give(self, time: int) -> Process:
        """A tile may overtake another one's drain: tokens come in the order of time."""
        yield time
        self.tokens_post.append(time)
