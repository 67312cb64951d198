"""EXECs: the feeder's passes through the array (hw/systolora/rtl/array_feeder.py)."""

from dataclasses import dataclass, field

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Edge
from systolora_sim.array_model import QUEUE, ArrayModel, Tile, TileTimes
from systolora_sim.timing.banks import Banks
from systolora_sim.timing.columns import Rows
from systolora_sim.timing.kernel import TOKEN, Kernel, Process, Queue, Stamps

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


@dataclass(frozen=True, slots=True)
class _Pass:
    """A pass on its way: its EXEC, whether it is the first and the last one of that."""

    tile: Tile
    number: int
    first: bool
    last: bool


class Executor:
    """Two processes: the feeder, which takes EXECs and sends their passes ahead, and the array.

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
        self._passes: list[_Pass] = []
        self._sent, self._started = Stamps(kernel), Stamps(kernel)
        self.times = ExecTimes()
        self.busy = self.macs = self.last = 0

    def feed(self, execs: Rows) -> Process:
        times, array, passes = self.times, self._array, self._passes
        loads = 0
        sent = -1  # the latest pass
        for number in range(len(execs)):
            ready = yield from self.queue.ready(number)
            time = max(ready, sent)
            if execs.wait_load[number]:
                loads += 1
                yield from self.load_tokens.until(loads)
                time = max(time, self.load_tokens.times[loads - 1] + TOKEN)
            times.taken.append(time)
            times.waits_load.append(max(0, time - max(ready, sent + 1)))
            self.queue.pops.append(time)
            sent = time
            tiles = self._tiles(execs, number)
            for index, tile in enumerate(tiles):
                yield from self._started.until(len(passes) - QUEUE + 1)
                sent = array.send(tile, sent + 1)
                passes.append(_Pass(tile, number, not index, index == len(tiles) - 1))
                self._sent.append(sent)
            length, beats = execs.length[number], execs.length[number] * len(tiles)
            self.busy += beats
            lanes = self._rows * (execs.repeat[number] - 1) + execs.last[number]
            count = len(tiles) // execs.repeat[number]
            self.macs += length * lanes * execs.cols[number] * count

    def _tiles(self, execs: Rows, number: int) -> list[Tile]:
        """All passes of an EXEC."""
        return [
            Tile(
                execs.dataflow[number] == Dataflow.OS,
                execs.length[number],
                not act_plane,
                execs.edge[number] == Edge.LEFT,
                execs.acc_base[number] // self._bank_depth,
                bool(execs.fence[number]),
            )
            for _ in range(1 + execs.wgt_wide[number])
            for act_plane in range(1 + execs.act_wide[number])
        ] * execs.repeat[number]

    def run(self, execs: Rows) -> Process:
        """The array: passes in order, each when its operands, token and bank are there."""
        array, banks = self._array, self._banks
        posts = index = waited = begun = 0
        for number in range(len(execs)):
            wait, signal = execs.wait_post[number], execs.signal_load[number]
            ended = False
            while not ended:
                yield from self._sent.until(index + 1)
                each = self._passes[index]
                ended, tile = each.last, each.tile
                first = array.enter(tile, self._sent.times[index])
                index += 1
                signals = signal and ended
                if signals and array.last_read >= 0:
                    self.tokens_load.append(array.last_read + 1)
                    signals = False
                may = array.offered
                if wait and each.first:
                    posts += 1
                    yield from self.post_tokens.until(posts)
                    may = max(may, self.post_tokens.times[posts - 1] + TOKEN)
                    first = max(first, may)
                start = yield from banks.start(tile.bank, first)
                at = array.start(tile, start)
                banks.fly(tile.bank, at.done)
                if each.first:
                    begun, waited = start, 0
                waited += may - array.offered + banks.held(tile.bank, may, start)
                if signals:
                    self.tokens_load.append(array.last_read + 1)
                if ended:
                    self._end(execs, number, begun, at, waited)
                self._started.append(at.last)

    def _end(self, execs: Rows, number: int, begun: int, at: TileTimes, waited: int) -> None:
        """The last pass of an EXEC has started."""
        times = self.times
        if execs.signal_post[number]:
            self._kernel.start(self._give(at.done))
        self.last = max(self.last, at.done)
        times.first.append(begun)
        times.last.append(at.last)
        times.done.append(at.done)
        times.waits_post.append(waited)

    def _give(self, time: int) -> Process:
        """A tile may overtake another one's drain: tokens come in the order of time."""
        yield time
        self.tokens_post.append(time)
