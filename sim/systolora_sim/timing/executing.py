"""EXECs: the feeder's passes through the array (hw/systolora/rtl/array_feeder.py)."""

from dataclasses import dataclass, field

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Edge
from systolora_sim.array_model import ArrayModel, Tile
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Rows
from systolora_sim.timing.kernel import Kernel, Process, Queue, Stamps

__all__ = ["Executor"]

#: From a token's cycle to the first in which its waiter can take it (TokenCounter).
TOKEN = 1


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
        self.busy = self.macs = self.last = 0

    def run(self, execs: Rows) -> Process:
        array, banks, times = self._array, self._banks, self.times
        loads = posts = 0
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
            sent = time

            is_os = execs.dataflow[number] == Dataflow.OS
            left = execs.edge[number] == Edge.LEFT
            length, repeat = execs.length[number], execs.repeat[number]
            bank = execs.acc_base[number] // self._bank_depth
            act_planes, wgt_planes = 1 + execs.act_wide[number], 1 + execs.wgt_wide[number]
            wait = execs.wait_post[number]
            begun, waited = -1, 0
            last = done = 0
            for _ in range(repeat):
                for _ in range(wgt_planes):
                    for act_plane in range(act_planes):
                        tile = Tile(is_os, length, act_plane == 0, left, bank)
                        sent = max(sent + 1, array.room(is_os or act_plane == 0))
                        first = array.enter(tile, sent)
                        may = array.offered
                        if wait and begun < 0:
                            posts += 1
                            yield from self.post_tokens.until(posts)
                            may = max(may, self.post_tokens.times[posts - 1] + TOKEN)
                            first = max(first, may)
                        start = yield from banks.start(bank, first)
                        waited += (start if start > first else may) - array.offered
                        at = array.start(tile, start)
                        banks.fly(bank, at.done)
                        if begun < 0:
                            begun = start
                        last, done = at.last, at.done
            free = sent
            self.last = max(self.last, done)
            times.first.append(begun)
            times.last.append(last)
            times.done.append(done)
            times.waits_post.append(waited)
            passes = act_planes * wgt_planes
            self.busy += length * repeat * passes
            lanes = self._rows * (repeat - 1) + execs.last[number]
            self.macs += length * lanes * execs.cols[number] * passes
            if execs.signal_load[number]:
                self.tokens_load.append(max(array.act.last_read, array.wgt.last_read) + 1)
            if execs.signal_post[number]:
                self._kernel.start(self._give(done))

    def _give(self, time: int) -> Process:
        """A tile may overtake another one's drain: tokens come in the order of time."""
        yield time
        self.tokens_post.append(time)
