"""Where a program's cycles and bytes go: by descriptor, then by product.

Every cycle of a run belongs to the EXEC that has the array in it or that the array waits for: from
the EXEC before's last beat to its own. What comes before the first EXEC's first beat and after the
last one's last beat belongs to what the post-processor does then: working copies, updates, other.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Buffer, Dataflow, Edge, Kind, Layout
from systolora_sim.cycle_model import Timing
from systolora_sim.memory_map import Symbol
from systolora_sim.step_program import StepProgram
from systolora_sim.timing.columns import Rows, columns
from systolora_sim.timing.dispatching import post_memory

__all__ = ["ArrayTimes", "Attribution", "ExecPart"]
__all__ += ["attribute", "exec_macs", "model_times", "split_label"]

Cycles = NDArray[np.int64]


@dataclass(frozen=True)
class ArrayTimes:
    """When the array takes each EXEC, in the program's order.

    cycles : of the run; first : of the first EXEC's first beat; last : int64 [n]: of each EXEC's
    last beat; loads, post : int64 [n]: cycles for which it waited for operands, for accumulators;
    copies, updates : cycles of these before `first` and after the last beat
    """

    cycles: int
    first: int
    last: Cycles
    loads: Cycles
    post: Cycles
    copies: int
    updates: int


@dataclass(frozen=True)
class ExecPart:
    """One EXEC's share of a run.

    macs : multiplications, an int16 operand's two byte planes counted apart; passes : in how many
    byte planes each is done; cycles = macs / (R * C) + padding + loads + post + other.
    """

    label: str
    dataflow: str
    edge: str
    stationary: str
    macs: int
    passes: int
    cycles: int
    padding: float
    loads: int
    post: int


@dataclass(frozen=True)
class Attribution:
    """execs : in the program's order; copies, update, other : cycles that belong to no EXEC; bytes
    : read and written, by the first word of labels, "other" for the rest."""

    execs: list[ExecPart]
    copies: int
    update: int
    other: int
    bytes: dict[str, int]


def split_label(label: str) -> tuple[str, str]:
    """A label's product and layer; "other" where it is empty."""
    product, _, layer = label.partition(" ")
    return product or "other", layer


def _covered(spans: Cycles, begin: int, end: int) -> int:
    """Cycles of begin .. end-1 from the first span's start to the last one's end."""
    if not len(spans) or begin >= end:
        return 0
    first, last = np.clip([spans[:, 0].min(), spans[:, 1].max() + 1], begin, end)
    return int(last - first)


def model_times(program: StepProgram, timing: Timing) -> ArrayTimes:
    """The cycle model's times of a program."""
    (execs,) = np.nonzero(timing.first_beat >= 0)
    first, last = timing.first_beat[execs], timing.last_beat[execs]
    waits = np.array([timing.wait[index] for index in execs])
    cycles = timing.counters["CYCLES"]
    names = np.array([split_label(label)[0] for label in program.labels])

    def spans(name: str) -> Cycles:
        chosen = (names == name) & (timing.start >= 0)
        return np.stack([timing.start[chosen], timing.end[chosen]], axis=1)

    return ArrayTimes(
        cycles=cycles,
        first=int(first[0]),
        last=last,
        loads=np.where(waits == "loads", timing.wait_cycles[execs], 0),
        post=np.where(waits == "post", timing.wait_cycles[execs], 0),
        copies=_covered(spans("copies"), 0, int(first[0])),
        updates=_covered(spans("update"), int(last[-1]) + 1, cycles),
    )


def _macs(config: AcceleratorConfig, execs: Rows, number: int) -> tuple[int, int]:
    """Multiplications of an EXEC, and in how many passes of byte planes each is done."""
    passes = (1 + execs.act_wide[number]) * (1 + execs.wgt_wide[number])
    lanes = config.rows * (execs.repeat[number] - 1) + execs.last[number]
    return execs.length[number] * lanes * execs.cols[number] * passes, passes


def exec_macs(program: StepProgram) -> Cycles:
    """Multiplications of each EXEC, as the counter MACS counts them."""
    execs = columns(program.program)[Kind.EXEC]
    macs = [_macs(program.config, execs, number)[0] for number in range(len(execs))]
    return np.array(macs, np.int64)


def _slots(config: AcceleratorConfig, execs: Rows) -> Iterator[int]:
    """Cycles that each EXEC's tiles take back to back (docs/core.md, Rates)."""
    for number in range(len(execs)):
        length, act = execs.length[number], 1 + execs.act_wide[number]
        tiles = execs.repeat[number] * (1 + execs.wgt_wide[number])
        if execs.dataflow[number] == Dataflow.OS:
            yield tiles * act * max(length, config.rows)
        else:
            left = execs.edge[number] == Edge.LEFT
            yield tiles * max(config.left_load if left else config.top_load, length * act)


class _Places:
    """Which tensor is where in the stationary buffer, as the program goes on."""

    def __init__(self, program: StepProgram) -> None:
        self.config = program.config
        held = sorted(program.symbols.values(), key=lambda symbol: symbol.address)
        self._starts = np.array([symbol.address for symbol in held], np.int64)
        self._symbols: list[Symbol] = held
        self._owners = np.full(self.config.wgt_entries, -1, np.int64)

    def load(self, loads: Rows, number: int) -> None:
        """A LOAD has come."""
        if loads.buffer[number] != Buffer.WGT:
            return
        config, rows, layout = self.config, loads.rows[number], loads.layout[number]
        if layout != Layout.PLAIN:
            group = config.left_load if layout == Layout.LEFT else config.top_load
            rows = -(-rows // (group * config.segments)) * group
        base = loads.base[number]
        owner = np.searchsorted(self._starts, loads.address[number], side="right") - 1
        self._owners[base : base + rows * loads.row_step[number]] = owner

    def tensor(self, unit: int) -> str:
        """The name, without its layer, of the tensor at a unit of the buffer."""
        entry = unit * self.config.wgt_unit // self.config.wgt_entry_bytes
        owner = self._owners[entry]
        return self._symbols[owner].name.rpartition("/")[2] if owner >= 0 else "-"


def _bytes(program: StepProgram, loads: Rows, posts: Rows) -> dict[str, int]:
    """Bytes on the bus by product: whole beats read, bytes written."""
    bus = program.config.bus_bytes
    moved: dict[str, int] = {}

    def add(index: int, count: int) -> None:
        name = split_label(program.labels[index])[0]
        moved[name] = moved.get(name, 0) + count

    def beats(address: int, rows: int, length: int) -> int:
        return rows * -(-(address % bus + length) // bus) * bus

    for number, index in enumerate(loads.index):
        length = loads.row_bytes[number]
        add(index, beats(loads.address[number], loads.rows[number], length))
    for number, index in enumerate(posts.index):
        memory = post_memory(posts, number)
        if memory.reads:
            add(index, beats(posts.in_address[number], memory.rows, memory.in_bytes))
        if memory.writes:
            add(index, memory.rows * memory.out_bytes)
    return moved


def attribute(program: StepProgram, times: ArrayTimes, transferred: int) -> Attribution:
    """Splits a run among its EXECs.

    transferred : all bytes of the run, read and written; what no descriptor moves (the program
    itself) goes to "other".
    """
    config, found = program.config, columns(program.program)
    loads, execs, posts = (found[kind] for kind in (Kind.LOAD, Kind.EXEC, Kind.POST))
    places, loaded = _Places(program), 0
    took = np.diff(times.last, prepend=times.first - 1)
    parts = []
    for number, (index, slot) in enumerate(zip(execs.index, _slots(config, execs), strict=True)):
        while loaded < len(loads) and loads.index[loaded] < index:
            places.load(loads, loaded)
            loaded += 1
        macs, passes = _macs(config, execs, number)
        cycles, limit = int(took[number]), macs / (config.rows * config.cols)
        slot = max(min(slot, cycles), limit)
        waits = []
        left = int(cycles - slot)
        for wait in (times.loads[number], times.post[number]):
            waits.append(min(left, int(wait)))
            left -= waits[-1]
        is_os = execs.dataflow[number] == Dataflow.OS
        parts.append(
            ExecPart(
                label=program.labels[index],
                dataflow="OS" if is_os else "WS",
                edge="-" if is_os else Edge(execs.edge[number]).name.lower(),
                stationary="-" if is_os else places.tensor(execs.wgt_base[number]),
                macs=macs,
                passes=passes,
                cycles=cycles,
                padding=slot - limit,
                loads=waits[0],
                post=waits[1],
            )
        )
    around = times.cycles - sum(part.cycles for part in parts)
    moved = _bytes(program, loads, posts)
    moved["other"] = moved.get("other", 0) + transferred - sum(moved.values())
    return Attribution(
        execs=parts,
        copies=times.copies,
        update=times.updates,
        other=around - times.copies - times.updates,
        bytes=moved,
    )
