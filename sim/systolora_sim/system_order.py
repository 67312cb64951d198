"""Proves that a program does not rely on luck: vector clocks of the accelerator's queues.

Six agents each do the work of their descriptors in program order; how far one has come, another
knows only from tokens and from data that it was handed:

| agent | of a descriptor | knows of |
| --- | --- | --- |
| load | LOAD: memory to buffer | its tokens |
| feed | EXEC: reads the buffers | wait_load |
| sums | EXEC: writes the accumulators | wait_post; what `feed` read for it |
| stream | POST: reads memory, ahead of the post queue | wait_store |
| post | POST: the Core's command | wait_exec; what `stream` read for it |
| store | POST: writes memory | what `post` handed to it |

A clock holds for each agent the last descriptor that is known to be finished. Every place of a
resource remembers its last use by each agent; whoever uses it next must know of that use, unless
both only read.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Kind
from systolora_sim.machine import RaceError
from systolora_sim.strided import strided, strided_once
from systolora_sim.system_checks import (
    GIVES,
    TAKES,
    Extent,
    Fields,
    exec_shape,
    post_reads,
    post_writes,
)

__all__ = ["OrderProof", "Places"]

LOAD, FEED, SUMS, STREAM, POST, STORE = range(6)
#: What an agent does to a resource, for messages.
AGENTS = ("LOAD", "EXEC", "EXEC", "POST", "POST", "POST")

Clock = list[int]


class Places(NamedTuple):
    """Places of a resource: element (i, j, ..) is start + i * steps[0] + .."""

    start: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]


class _Conflict(NamedTuple):
    """An earlier use of a place, not known to be finished."""

    where: str
    serial: int
    agent: int
    verb: str


class _Resource:
    """Last uses of each place, by the number of the descriptor.

    Parameters
    ----------
    what : name of the resource in messages
    size : places
    readers, writers : agents
    unit, origin : place n is shown as origin + n * unit, in hexadecimal if origin is not 0
    """

    def __init__(
        self,
        what: str,
        size: int,
        readers: tuple[int, ...],
        writers: tuple[int, ...],
        unit: int = 1,
        origin: int = 0,
    ) -> None:
        self.what, self.unit, self.origin = what, unit, origin
        self.size = size
        self._agents = {"reads": readers, "writes": writers}
        self._uses: dict[tuple[str, int], NDArray[np.int64]] = {}

    def uses(self, verb: str, agent: int) -> NDArray[np.int64]:
        key = verb, agent
        if key not in self._uses:  # made late: the one of memory may be large
            self._uses[key] = np.zeros(self.size, np.int64)
        return self._uses[key]

    def use(
        self, agent: int, verb: str, places: Places, serial: int, clock: Clock
    ) -> _Conflict | None:
        """Notes a use, or returns what speaks against it."""
        for other_verb, others in self._agents.items():
            if verb == "reads" and other_verb == "reads":
                continue
            for other in others:
                if other == agent:
                    continue  # in order by itself
                seen = strided_once(self.uses(other_verb, other), *places)
                if seen.size and int(seen.max()) > clock[other]:
                    return self._conflict(places, other_verb, other, clock[other])
        strided_once(self.uses(verb, agent), *places)[...] = serial
        return None

    def _conflict(self, places: Places, verb: str, agent: int, known: int) -> _Conflict:
        index = strided_once(np.arange(self.size), *places).ravel()
        seen = self.uses(verb, agent)[index]
        first = int(np.argmax(seen > known))
        where = self.origin + int(index[first]) * self.unit
        shown = f"{self.what} {where:#x}" if self.origin else f"{self.what} {where}"
        return _Conflict(shown, int(seen[first]), agent, verb)


class OrderProof:
    """The proof for one accelerator, over its runs.

    Parameters
    ----------
    config : AcceleratorConfig
    memory_base, memory_size : the memory that programs reach, bytes

    Raises
    ------
    RaceError
        From the methods that note a use; names both descriptors and the resource.
    """

    def __init__(self, config: AcceleratorConfig, memory_base: int, memory_size: int) -> None:
        self.config = config
        #: Bytes that every use of a buffer or of memory begins at a multiple of: within such a
        #: piece each use holds the first byte, so that two in one piece always meet.
        self._act_piece = min(config.rows, config.beat_bytes)
        self._wgt_piece = min(config.wgt_unit, config.beat_bytes)
        self._piece = min(config.cols, config.beat_bytes)
        self._origin = memory_base // self._piece
        pieces = (memory_base + memory_size) // self._piece + 1 - self._origin
        self._act = _Resource(
            "byte of the activation buffer",
            config.act_bytes // self._act_piece, (FEED,), (LOAD,), self._act_piece,
        )  # fmt: skip
        self._wgt = _Resource(
            "byte of the stationary banks",
            config.wgt_bytes // self._wgt_piece, (FEED,), (LOAD,), self._wgt_piece,
        )  # fmt: skip
        # Sums are always written, so that a use by `post` matters to them whichever it is
        self._acc = _Resource("accumulator row", config.acc_depth, (POST,), (SUMS, POST))
        self._memory = _Resource(
            "memory", pieces, (LOAD, STREAM), (STORE,), self._piece, self._origin * self._piece
        )
        self._serial = self._first = 0
        self._clocks: list[Clock] = []
        self._tokens: dict[str, deque[Clock]] = {}
        self.begin(0, 0)

    def begin(self, program: int, size: int) -> None:
        """A run begins: everything before it has finished. The program's bytes are being read."""
        self._program = (program, program + size)
        self._first = self._serial
        self._clocks = [[self._serial] * len(AGENTS) for _ in AGENTS]
        names = (name for gives in GIVES.values() for name in gives.values())
        self._tokens = {name: deque() for name in names}

    def descriptor(self, kind: Kind, f: Fields) -> None:
        """The next descriptor's turn: its events and tokens."""
        self._serial += 1
        clocks = self._clocks
        taken = {
            name: self._tokens[channel].popleft()
            for name, channel in TAKES[kind].items()
            if f[name]
        }
        given: dict[str, int] = {}
        if kind == Kind.LOAD:
            self._event(LOAD, *taken.values())
            given = {"signal_exec": LOAD}
        elif kind == Kind.EXEC:
            self._event(FEED, taken.get("wait_load"))
            self._event(SUMS, taken.get("wait_post"), clocks[FEED])
            given = {"signal_load": FEED, "signal_post": SUMS}
        elif kind == Kind.POST:
            reads, writes = post_reads(f) is not None, post_writes(f) is not None
            if reads:
                self._event(STREAM, taken.get("wait_store"))
            self._event(POST, taken.get("wait_exec"), clocks[STREAM] if reads else None)
            # One that stores nothing gives its tokens as soon as earlier stores are done
            self._event(STORE, clocks[POST] if writes else None)
            given = {"signal_exec": POST, "signal_load": STORE, "signal_stream": STORE}
        for name, agent in given.items():
            if f[name]:
                self._tokens[GIVES[kind][name]].append(list(clocks[agent]))

    def _event(self, agent: int, *known: Clock | None) -> None:
        clock = self._clocks[agent]
        for other in known:
            if other is not None:
                clock[:] = map(max, clock, other)
        clock[agent] = self._serial

    def _use(self, resource: _Resource, agent: int, verb: str, places: Places) -> None:
        conflict = resource.use(agent, verb, places, self._serial, self._clocks[agent])
        if conflict is not None:
            raise RaceError(
                f"descriptor {self._index(self._serial)} ({AGENTS[agent]}) {verb} "
                f"{conflict.where}, which descriptor {self._index(conflict.serial)} "
                f"({AGENTS[conflict.agent]}) {conflict.verb}: no token orders them"
            )

    def _index(self, serial: int) -> int:
        return serial - self._first - 1

    def filled(self, wgt: bool, start: int, count: int, step: int, size: int) -> None:
        """A LOAD writes `count` times `size` bytes of a buffer, every `step` bytes from `start`."""
        resource, piece = (self._wgt, self._wgt_piece) if wgt else (self._act, self._act_piece)
        places = Places(start // piece, (count, size // piece), (step // piece, 1))
        self._use(resource, LOAD, "writes", places)

    def fed(self, f: Fields) -> None:
        """An EXEC reads its operands from the buffers."""
        config = self.config
        shape = exec_shape(config, f)
        unit, piece = config.act_unit, self._act_piece
        places = Places(
            f["act_base"] * unit // piece,
            (f["repeat"], f["length"], shape.act_units * unit // piece),
            (f["act_step"] * unit // piece, f["act_stride"] * unit // piece, 1),
        )
        self._use(self._act, FEED, "reads", places)
        unit, piece = config.wgt_unit, self._wgt_piece
        banks = 1 if f["dataflow"] == Dataflow.OS else config.segments
        places = Places(
            f["wgt_base"] * unit // piece,
            (f["repeat"], banks, shape.lines, shape.line_units * unit // piece),
            (
                f["wgt_step"] * unit // piece,
                config.wgt_bytes // config.segments // piece,
                f["wgt_stride"] * unit // piece,
                1,
            ),
        )
        self._use(self._wgt, FEED, "reads", places)

    def summed(self, base: int, count: int) -> None:
        """An EXEC writes accumulator rows."""
        self._use(self._acc, SUMS, "writes", Places(base, (count,), (1,)))

    def rows_used(self, base: int, count: int, verb: str) -> None:
        """A POST "reads" or "writes" accumulator rows."""
        self._use(self._acc, POST, verb, Places(base, (count,), (1,)))

    def _pieces(self, extent: Extent) -> Places:
        piece = self._piece
        return Places(
            extent.address // piece - self._origin,
            (extent.rows, -(-extent.row_bytes // piece)),
            (extent.stride // piece, 1),
        )

    def loaded(self, extent: Extent) -> None:
        """A LOAD reads memory."""
        self._use(self._memory, LOAD, "reads", self._pieces(extent))

    def streamed(self, extent: Extent) -> None:
        """A POST reads memory."""
        self._use(self._memory, STREAM, "reads", self._pieces(extent))

    def stored(self, extent: Extent, read: Extent | None) -> None:
        """A POST writes memory, while it still reads `read`, row by row."""
        first, end = self._program
        if extent.address < end and extent.end > first:
            raise RaceError(
                f"descriptor {self._index(self._serial)} (POST) writes memory {extent.address:#x}, "
                "near the program that is being fetched: its bytes must not change in a run"
            )
        self._use(self._memory, STORE, "writes", self._pieces(extent))
        if read is not None and read.address < extent.end and extent.address < read.end:
            self._same_post(extent, read)

    def _same_post(self, written: Extent, read: Extent) -> None:
        """Of one POST, row n is read before it is written; what it reads later must not change."""
        out, back = self._pieces(written), self._pieces(read)
        low = min(out.start, back.start)
        last = max(
            p.start + sum((n - 1) * step for n, step in zip(p.shape, p.steps, strict=True))
            for p in (out, back)
        )
        size = last + 1 - low
        numbers = np.arange(size)
        first_write = np.full(size, written.rows, np.int64)
        index = strided(numbers, out.start - low, out.shape, out.steps)
        rows = np.broadcast_to(np.arange(written.rows)[:, None], out.shape)
        np.minimum.at(first_write, index.ravel(), rows.ravel())
        index = strided(numbers, back.start - low, back.shape, back.steps)
        late = first_write[index] < np.arange(read.rows)[:, None]
        if late.any():
            row = int(np.argmax(late.any(axis=1)))
            raise RaceError(
                f"descriptor {self._index(self._serial)} (POST) reads row {row} from memory that "
                f"it may have written before, at {read.address + row * read.stride:#x}"
            )
