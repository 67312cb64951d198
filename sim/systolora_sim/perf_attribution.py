"""Where a program's cycles and bytes go: by descriptor, then by product.

Every cycle of a run belongs to the EXEC that has the array in it or that the array waits for: from
the EXEC before's last beat to its own. What comes before the first EXEC's first beat and after the
last one's last beat belongs to what the post-processor does then: working copies, updates, other.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import DESCRIPTOR_BYTES, Buffer, Dataflow, Edge, Kind, Layout, Opcode
from systolora_sim.cycle_model import Timing
from systolora_sim.memory_map import Symbol
from systolora_sim.step_program import StepProgram
from systolora_sim.timing.columns import Rows, columns
from systolora_sim.timing.dispatching import post_memory
from systolora_sim.timing.posting import LATE_TRACE, SCALE_CYCLES, TRACE

__all__ = ["ArrayTimes", "Attribution", "ExecPart"]
__all__ += ["attribute", "exec_macs", "layer_of", "model_times", "split_label"]

Cycles = NDArray[np.int64]


@dataclass(frozen=True)
class ArrayTimes:
    """When the array takes each EXEC, in the program's order.

    cycles : of the run; first : of the first EXEC's first beat, 0 if there is none; last : int64
    [n]: of each EXEC's last beat; loads, post : int64 [n]: cycles for which it waited for operands,
    for accumulators; copies, updates : cycles of these before `first` and after the last beat
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
    byte planes each is done; cycles = macs / (R * C) + padding + loads + post + other; weight : for
    how many of its kind it stands.
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
    weight: int = 1

    def all(self) -> "ExecPart":
        """All for which it stands, as one."""
        times = self.weight
        return replace(
            self,
            macs=times * self.macs,
            cycles=times * self.cycles,
            padding=times * self.padding,
            loads=times * self.loads,
            post=times * self.post,
            weight=1,
        )


@dataclass(frozen=True)
class Attribution:
    """What a program's cycles and bytes are spent on, with all layers for which others stand.

    execs : in the program's order; copies, update, other : cycles that belong to no EXEC; bytes :
    by the first word of labels, "other" for the rest; read, written : all of them; post_cycles :
    what the post-processor needs if nothing holds it up, at least.
    """

    execs: list[ExecPart]
    copies: int
    update: int
    other: int
    bytes: dict[str, int]
    read: int
    written: int
    post_cycles: int


def split_label(label: str) -> tuple[str, str]:
    """A label's product and layer; "other" where it is empty."""
    product, _, layer = label.partition(" ")
    return product or "other", layer


def layer_of(label: str) -> str:
    """A label's layer; of several that are one product the first one; "" where there is none."""
    return split_label(label)[1].partition(" and ")[0]


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
    begin, end = (int(first[0]), int(last[-1]) + 1) if len(execs) else (0, 0)
    names = np.array([split_label(label)[0] for label in program.labels])

    def spans(name: str) -> Cycles:
        chosen = (names == name) & (timing.start >= 0)
        return np.stack([timing.start[chosen], timing.end[chosen]], axis=1)

    return ArrayTimes(
        cycles=cycles,
        first=begin,
        last=last,
        loads=np.where(waits == "loads", timing.wait_cycles[execs], 0),
        post=np.where(waits == "post", timing.wait_cycles[execs], 0),
        copies=_covered(spans("copies"), 0, begin),
        updates=_covered(spans("update"), end, cycles),
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


def _bytes(program: StepProgram, loads: Rows, posts: Rows) -> dict[str, list[int]]:
    """Bytes read (whole beats) and written, by label."""
    bus = program.config.beat_bytes
    moved: dict[str, list[int]] = {label: [0, 0] for label in program.labels}

    def beats(address: int, rows: int, length: int) -> int:
        return rows * -(-(address % bus + length) // bus) * bus

    for number, index in enumerate(loads.index):
        length = loads.row_bytes[number]
        read = beats(loads.address[number], loads.rows[number], length)
        moved[program.labels[index]][0] += read
    for number, index in enumerate(posts.index):
        memory, both = post_memory(posts, number), moved[program.labels[index]]
        if memory.reads:
            both[0] += beats(posts.in_address[number], memory.rows, memory.in_bytes)
        if memory.writes:
            both[1] += memory.rows * memory.out_bytes
    return moved


def _post_cycles(program: StepProgram, posts: Rows, weights: Mapping[str, int]) -> int:
    """Cycles of all POSTs back to back, none of which waits (docs/cycle-model.md)."""
    cycles = 0
    for number, index in enumerate(posts.index):
        opcode = Opcode(posts.opcode[number])
        if opcode == Opcode.ROWS:
            own = posts.rows[number] + (LATE_TRACE if posts.quantize[number] else TRACE) + 4
        elif opcode == Opcode.COLLECT:
            own = program.config.cols + 4
        else:
            own = 3 + SCALE_CYCLES.get(opcode, 0)
        cycles += own * weights.get(layer_of(program.labels[index]), 1)
    return cycles


def attribute(
    program: StepProgram,
    times: ArrayTimes,
    read: int,
    written: int,
    weights: Mapping[str, int] | None = None,
) -> Attribution:
    """Splits a run among its EXECs.

    read, written : all bytes of the run; what no descriptor moves (the program itself) goes to
    "other"; weights : by layer, for how many it stands, if not for itself alone
    """
    weights = weights or {}
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
                weight=weights.get(layer_of(program.labels[index]), 1),
            )
        )
    around = times.cycles - sum(part.cycles for part in parts)
    by_label, descriptors = _bytes(program, loads, posts), Counter(program.labels)
    others = read + written - sum(map(sum, by_label.values()))
    moved: dict[str, int] = {}
    for label, (reads, writes) in by_label.items():
        name, weight = split_label(label)[0], weights.get(layer_of(label), 1)
        fetched = (weight - 1) * descriptors[label] * DESCRIPTOR_BYTES
        moved[name] = moved.get(name, 0) + weight * (reads + writes)
        others += fetched
        read += (weight - 1) * reads + fetched
        written += (weight - 1) * writes
    moved["other"] = moved.get("other", 0) + others
    return Attribution(
        execs=parts,
        copies=times.copies,
        update=times.updates,
        other=around - times.copies - times.updates,
        bytes={name: count for name, count in moved.items() if count},
        read=read,
        written=written,
        post_cycles=_post_cycles(program, posts, weights),
    )
