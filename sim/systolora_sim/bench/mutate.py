"""Deterministic mutations of programs: what a broken compiler, a bad pointer or malice would write.

Whatever comes out, a run must end, with END or a fault. Only its length is bounded: `budget` keeps
what a mutated program would do below about so many cycles, so that a simulation ends in time.
"""

import random

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    Action,
    Dataflow,
    Fault,
    Kind,
    Opcode,
    unpack,
)
from systolora_sim.descriptor import encode
from systolora_sim.system_checks import Checker, Fields, Window, post_reads, post_writes

__all__ = ["cost", "mutate"]

#: Cycles that a descriptor takes at least, for checks and for the latency of memory.
OVERHEAD = 100


def cost(
    config: AcceleratorConfig,
    program: bytes,
    read_window: tuple[int, int],
    write_window: tuple[int, int],
) -> int:
    """About how many cycles a run takes: beats of memory and of the array, nothing overlapped."""
    checker = Checker(config, Window(*read_window), Window(*write_window))
    cycles = 0
    for start in range(0, len(program), DESCRIPTOR_BYTES):
        fault, kind, f = checker.check(program[start : start + DESCRIPTOR_BYTES])
        cycles += OVERHEAD
        if fault != Fault.NONE or (kind == Kind.CONTROL and f["action"] == Action.END):
            break
        if kind == Kind.LOAD:
            cycles += f["rows"] * -(-f["row_bytes"] // config.beat_bytes)
        elif kind == Kind.EXEC:
            cycles += _exec_cycles(config, f)
        elif kind == Kind.POST:
            cycles += _post_cycles(config, f)
    return cycles


def _exec_cycles(config: AcceleratorConfig, f: Fields) -> int:
    passes = (1 + f["act_wide"]) * (1 + f["wgt_wide"])
    other = config.rows if f["dataflow"] == Dataflow.OS else max(config.left_load, config.top_load)
    return f["repeat"] * passes * (f["length"] + other + 4)


def _post_cycles(config: AcceleratorConfig, f: Fields) -> int:
    extents = [extent for extent in (post_reads(f), post_writes(f)) if extent is not None]
    beats = sum(e.rows * -(-e.row_bytes // config.beat_bytes) for e in extents)
    return beats + (2 * f["rows"] if f["opcode"] == Opcode.ROWS else config.cols)


def mutate(
    config: AcceleratorConfig,
    program: bytes,
    read_window: tuple[int, int],
    write_window: tuple[int, int],
    seed: int,
    budget: int = 200_000,
) -> bytes:
    """A broken program: one to four random changes of `program`, the same for the same seed.

    It has at least one descriptor and at most eight more than `program`, and `cost` of at most
    `budget` cycles (if `program` has; else it may be returned as it is).
    """
    rng = random.Random(seed)
    best = program
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        for _ in range(20):
            parts = [best[n : n + DESCRIPTOR_BYTES] for n in range(0, len(best), DESCRIPTOR_BYTES)]
            rng.choice(_CHANGES)(rng, parts)
            changed = b"".join(parts)
            if changed and cost(config, changed, read_window, write_window) <= budget:
                best = changed
                break
    return best


def _flip(rng: random.Random, parts: list[bytes]) -> None:
    """Flips bits, of what is used or of everything."""
    n = rng.randrange(len(parts))
    bits = rng.choice((64, 256, 8 * DESCRIPTOR_BYTES))
    word = int.from_bytes(parts[n], "little")
    for _ in range(rng.choice((1, 1, 2, 8))):
        word ^= 1 << rng.randrange(bits)
    parts[n] = word.to_bytes(DESCRIPTOR_BYTES, "little")


def _change_field(rng: random.Random, parts: list[bytes]) -> None:
    """Gives a field a random value, or one at the edge of something."""
    n = rng.randrange(len(parts))
    word = int.from_bytes(parts[n], "little")
    kind = word & 15
    if kind not in tuple(Kind):
        return _flip(rng, parts)
    table = DESCRIPTORS[Kind(kind)]
    fields = unpack(table, word)
    field = rng.choice(table[1:])
    most = (1 << field.width) - 1
    value = fields[field.name]
    choices = [
        0, 1, 2, 3, most, most - 1, most >> 1, value + 1, value - 1, 2 * value, value // 2,
        value + 8, value - 8, value + 64, 1 << rng.randrange(field.width),
        rng.getrandbits(field.width), rng.getrandbits(min(field.width, 6)),
    ]  # fmt: skip
    fields[field.name] = rng.choice(choices) & most
    parts[n] = encode(Kind(kind), fields)


def _swap(rng: random.Random, parts: list[bytes]) -> None:
    """Exchanges two descriptors, often neighbours."""
    a = rng.randrange(len(parts))
    b = rng.choice((rng.randrange(len(parts)), (a + 1) % len(parts)))
    parts[a], parts[b] = parts[b], parts[a]


def _drop(rng: random.Random, parts: list[bytes]) -> None:
    """Leaves one out; dropping END makes the program end without it."""
    del parts[rng.randrange(len(parts))]


def _cut(rng: random.Random, parts: list[bytes]) -> None:
    """Ends the program early, without END."""
    del parts[rng.randrange(len(parts)) + 1 :]


def _repeat(rng: random.Random, parts: list[bytes]) -> None:
    """Puts copies of one somewhere, now and then several."""
    part = rng.choice(parts)
    for _ in range(rng.choice((1, 1, 2))):
        parts.insert(rng.randrange(len(parts) + 1), part)


def _garbage(rng: random.Random, parts: list[bytes]) -> None:
    """Replaces one with random bytes, or zeros, or a kind of descriptor with random fields."""
    n = rng.randrange(len(parts))
    kind = rng.choice(tuple(Kind))
    # Small values of most fields, else nothing gets past the first check
    fields = {
        field.name: rng.getrandbits(rng.randrange(min(field.width, rng.choice((4, 64))) + 1))
        for field in DESCRIPTORS[kind][1:]
    }
    parts[n] = rng.choice(
        (rng.randbytes(DESCRIPTOR_BYTES), bytes(DESCRIPTOR_BYTES), encode(kind, fields))
    )


def _control(rng: random.Random, parts: list[bytes]) -> None:
    """Inserts an END, a STEP or a NOP."""
    action = rng.choice(tuple(Action))
    parts.insert(rng.randrange(len(parts) + 1), encode(Kind.CONTROL, {"action": action}))


_CHANGES = (
    _flip, _flip, _change_field, _change_field, _change_field, _change_field, _change_field,
    _swap, _swap, _drop, _cut, _repeat, _garbage, _control,
)  # fmt: skip
