"""The whole accelerator in Verilog when things go wrong: faults, bus errors, aborts, resets.

After each of them a good program runs without a reset, to the functional machine's bits.
"""

from dataclasses import replace

import numpy as np
import pytest

from random_programs import BASE, HALF, SIZE
from simulated import CONFIGS
from system_rtl import Case, Script, compare, compare_end, machine_run, rtl_run, system_simulator
from systolora.contract import (
    DESCRIPTOR_BYTES,
    PROGRAM_MAX,
    REGISTERS,
    STICKY,
    Action,
    Buffer,
    Fault,
    Kind,
    Mode,
    Opcode,
    Quantize,
    Source,
)
from systolora_sim.bench.sample import ProgramBuilder, sample
from systolora_sim.bench.script import (
    BusError,
    MemoryModel,
    read,
    reset,
    wait,
    wait_burst,
    wait_irq,
    write,
)
from systolora_sim.bench.system import start_commands
from systolora_sim.descriptor import decode, encode
from systolora_sim.system_checks import load_reads, post_reads, post_writes

SEED = 6200
TINY = CONFIGS["tiny"]
READ, WRITE = (BASE, BASE + SIZE), (BASE + HALF, BASE + SIZE)
START, ABORT = 0b01, 0b10
BUSY, DONE, ERROR, IGNORED = 0b0001, 0b0010, 0b0100, 0b1000
OKAY, SLVERR = 0, 2
#: Cycles in which an aborted run ends: what is outstanding comes, after its latency.
ABORT_CYCLES = 3000


@pytest.fixture(scope="module")
def tiny():
    return system_simulator("tiny")


def broken(case: Case, index: int, bad: bytes) -> Case:
    """The case with a descriptor inserted."""
    parts = case.descriptors
    return case.with_program([*parts[:index], bad, *parts[index:]])


# Faults of descriptors ----------------------------------------------------------------------------

#: A descriptor with each fault, good where it is looked at before that.
BAD: dict[str, tuple[Fault, bytes]] = {
    "zeros": (Fault.KIND, bytes(DESCRIPTOR_BYTES)),
    "kind": (Fault.KIND, b"\x0f" * DESCRIPTOR_BYTES),
    "reserved": (Fault.FIELD, b"\x14" + bytes(62) + b"\x80"),
    "load-rows": (Fault.FIELD, encode(Kind.LOAD, {"row_bytes": 8, "address": BASE})),
    "load-buffer": (
        Fault.BUFFER,
        encode(Kind.LOAD, {"rows": 1, "row_bytes": TINY.act_bytes + 1, "address": BASE + 1}),
    ),
    "load-align": (
        Fault.ALIGN, encode(Kind.LOAD, {"rows": 1, "row_bytes": 8, "address": BASE + 4}),
    ),
    "load-window": (
        Fault.WINDOW, encode(Kind.LOAD, {"rows": 1, "row_bytes": 9, "address": BASE + SIZE - 8}),
    ),
    "load-token": (
        Fault.TOKEN,
        encode(Kind.LOAD, {"rows": 1, "row_bytes": 8, "address": BASE, "wait_store": 1}),
    ),
    "exec-field": (Fault.FIELD, encode(Kind.EXEC, {"repeat": 1, "length": 1, "cols": 1})),
    "exec-buffer": (
        Fault.BUFFER,
        encode(
            Kind.EXEC,
            {"repeat": 1, "length": 2, "cols": 1, "last": 1, "acc_base": TINY.bank_depth - 1},
        ),
    ),
    "post-field": (
        Fault.FIELD, encode(Kind.POST, {"opcode": Opcode.COLLECT, "dst": 8}),
    ),
    "post-quantize": (  # this configuration has no such field
        Fault.FIELD,
        encode(
            Kind.POST, {"opcode": Opcode.ROWS, "rows": 1, "cols": 1, "quantize": Quantize.INT8}
        ),
    ),
    "post-buffer": (
        Fault.BUFFER,
        encode(
            Kind.POST,
            {"opcode": Opcode.ROWS, "rows": 1, "cols": 1, "src_base": TINY.acc_depth, "write": 1},
        ),
    ),
    "post-align": (
        Fault.ALIGN,
        encode(Kind.POST, {"opcode": Opcode.AMAX_READ, "out_address": BASE + HALF + 4}),
    ),
    "post-read-window": (
        Fault.WINDOW,
        encode(Kind.POST, {"opcode": Opcode.AMAX_LOAD, "in_address": BASE + SIZE}),
    ),
    "post-write-window": (
        Fault.WINDOW,
        encode(Kind.POST, {"opcode": Opcode.AMAX_READ, "out_address": BASE + HALF - 8}),
    ),
    "post-token": (
        Fault.TOKEN,
        encode(Kind.POST, {"opcode": Opcode.STICKY_LOAD, "in_address": BASE, "wait_store": 1}),
    ),
    "action": (Fault.FIELD, encode(Kind.CONTROL, {"action": 3})),
}  # fmt: skip


@pytest.mark.parametrize("stall_seed", [None, SEED])
def test_descriptor_faults(tiny, tmp_path, stall_seed):
    """The first fault ends the run; earlier descriptors finish. Then a good program runs."""
    rng = np.random.default_rng(SEED)
    good = Case.random("tiny", SEED)
    cases = []
    for fault, bad in BAD.values():
        for index in (0, good.length - 1, *rng.integers(1, good.length - 1, 2)):
            # Tokens that earlier descriptors left would answer a wait
            cases.append((fault, int(index), broken(good, int(index), bad)))
    script = Script(tmp_path)
    numbers = []
    for n, (_, _, case) in enumerate(cases):
        numbers.append(script.run(case))
        if n % 4 == 3:
            script.run(good)
    ends, _ = script.execute(tiny, good, MemoryModel(stall_seed=stall_seed))
    seen = set()
    for number, (fault, index, case) in zip(numbers, cases, strict=True):
        compare_end(case, ends[number])
        if fault != Fault.TOKEN:
            assert (ends[number].fault, ends[number].index) == (fault, index)
        seen.add(ends[number].fault)
    assert seen >= {f for f, _ in BAD.values()}
    for number in set(range(len(ends))) - set(numbers):
        compare_end(good, ends[number])


def test_programs_as_a_whole(tiny, tmp_path):
    """Faults of a program before or after its descriptors."""
    good = Case.random("tiny", SEED + 1)
    inside = READ[1] - 64
    cases = [
        good.with_program(good.descriptors[:-1]),
        good.with_program(good.descriptors[:1]),
        replace(good, length=0),
        replace(good, length=0, address=BASE + 1),
        replace(good, length=PROGRAM_MAX + 1),
        replace(good, length=(1 << 32) - 1),
        replace(good, length=(1 << 22) + 1, address=BASE + 1),
        replace(good, address=BASE + 1),
        replace(good, address=BASE + 32),
        replace(good, address=1, length=5),
        replace(good, address=BASE - 64),
        replace(good, address=inside, length=2),
        replace(good, address=READ[1], length=1),
        replace(good, length=PROGRAM_MAX),
        replace(good, address=(1 << TINY.address_bits) - 64, length=2),
        replace(good, address=0, length=1),
    ]
    script = Script(tmp_path)
    for case in cases:
        script.run(case, 5000)
        script.run(good)
    ends, _ = script.execute(tiny, good)
    for case, bad_end, good_end in zip(cases, ends[::2], ends[1::2], strict=True):
        compare_end(case, bad_end)
        compare_end(good, good_end)
    assert [end.fault for end in ends[::2]] == [
        *[Fault.END] * 7, *[Fault.ALIGN] * 3, *[Fault.WINDOW] * 6,
    ]  # fmt: skip
    assert ends[0].index == good.length - 1 and ends[2].index == 1


#: A giver with its signal, a taker with its wait, of every channel.
CHANNELS = [
    (Kind.LOAD, "signal_exec", Kind.EXEC, "wait_load"),
    (Kind.EXEC, "signal_load", Kind.LOAD, "wait_exec"),
    (Kind.EXEC, "signal_post", Kind.POST, "wait_exec"),
    (Kind.POST, "signal_exec", Kind.EXEC, "wait_post"),
    (Kind.POST, "signal_load", Kind.LOAD, "wait_store"),
    (Kind.POST, "signal_stream", Kind.POST, "wait_store"),
]
#: One of each kind that runs.
VALID = {
    Kind.LOAD: {"rows": 1, "row_bytes": 8, "address": BASE},
    Kind.EXEC: {"repeat": 1, "length": 1, "cols": 1, "last": 1},
    Kind.POST: {"opcode": Opcode.AMAX_LOAD, "in_address": BASE},
}


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: f"{channel[1]}-{channel[3]}")
def test_tokens_at_most(tiny, tmp_path, channel):
    """255 may be outstanding, and not one more; every wait takes one; the last is not there."""
    giver, signal, taker, wait_ = channel
    give, take = encode(giver, VALID[giver] | {signal: 1}), encode(taker, VALID[taker] | {wait_: 1})
    end = encode(Kind.CONTROL, {"action": Action.END})
    good = Case.random("tiny", SEED)
    wanted = [
        ([*[give] * 255, take, give, end], Fault.NONE, 0),
        ([give] * 256, Fault.TOKEN, 255),
        ([give, give, take, take, take], Fault.TOKEN, 4),
        ([take, give], Fault.TOKEN, 0),
    ]
    script = Script(tmp_path)
    for parts, _, _ in wanted:
        script.run(good.with_program(parts))
    ends, _ = script.execute(tiny, good)
    for (parts, fault, index), result in zip(wanted, ends, strict=True):
        assert (result.fault, result.index) == (fault, index)
        compare_end(good.with_program(parts), result)


def test_a_fault_in_a_later_run(tiny):
    """A program that overwrites its own END faults in its second run: RUNS_LEFT says which."""
    good = Case.random("tiny", SEED)
    builder = ProgramBuilder()
    builder.control(Action.STEP)
    builder.post(Opcode.AMAX_SET, dst=0, imm=0)
    where = BASE + HALF
    builder.post(Opcode.AMAX_READ, src_a=0, out_address=where + 4 * 64)
    builder.control(Action.NOP)
    builder.control(Action.END)
    image = good.image.copy()
    image[HALF : HALF + len(builder.program)] = np.frombuffer(builder.program, np.uint8)
    case = replace(good, image=image, address=where, length=5, runs=5)
    result = rtl_run(tiny, case)
    expected = compare(case, result)
    # Whether the first run still fetched the old END is the fetch's affair: it had
    assert (result.fault, result.index, result.runs_left) == (Fault.KIND, 4, 4), expected


# Bus errors ---------------------------------------------------------------------------------------

RESPONSES = {
    ("read", "slave"): Fault.READ_SLAVE,
    ("read", "decode"): Fault.READ_DECODE,
    ("write", "slave"): Fault.WRITE_SLAVE,
    ("write", "decode"): Fault.WRITE_DECODE,
}


def relocated(part: bytes, distance: int) -> bytes:
    """A descriptor whose addresses are moved."""
    kind, fields = decode(part)
    names = [name for name in ("address", "in_address", "out_address") if fields.get(name)]
    return encode(kind, fields | {name: fields[name] + distance for name in names})


def two_samples(name: str, seed: int) -> tuple[Case, Case]:
    """The program that uses everything, twice in one memory, apart from each other.

    No two tensors share a beat of memory, so that an error has one descriptor.
    """
    config = CONFIGS[name]
    one = sample(config, seed)
    size = -(-one.memory.data.size // 4096) * 4096
    base = one.memory.base
    image = np.full(2 * size, 0x5A, np.uint8)
    for start in (0, size):
        image[start : start + one.memory.data.size] = one.memory.data
    parts = [one.program[n : n + 64] for n in range(0, len(one.program), 64)]
    first = Case(config, image, one.address, len(parts), one.read_window, one.write_window, base)
    second = replace(
        first,
        address=one.address + size,
        read_window=(base, base + 2 * size),
        write_window=(base, base + 2 * size),
    ).with_program([relocated(part, size) for part in parts])
    return replace(first, image=second.image), second


def accesses(case: Case) -> list[tuple[int, str, range]]:
    """Every row of memory that descriptors touch: (descriptor, way, addresses)."""
    found = []
    for index, part in enumerate(case.descriptors):
        kind, f = decode(part)
        extents = []
        if kind == Kind.LOAD:
            extents = [("read", load_reads(f))]
        elif kind == Kind.POST:
            extents = [("read", post_reads(f)), ("write", post_writes(f))]
        for way, extent in extents:
            if extent is not None:
                for row in range(extent.rows):
                    start = extent.address + row * extent.stride
                    found.append((index, way, range(start, start + extent.row_bytes)))
    return found


def written(case: Case) -> np.ndarray:
    """Which bytes of the memory a program may change, bool [bytes]."""
    mask = np.zeros(case.image.size, bool)
    for _, way, where in accesses(case):
        if way == "write":
            mask[where.start - case.base : where.stop - case.base] = True
    return mask


@pytest.mark.parametrize("stall_seed", [None, SEED])
@pytest.mark.parametrize("name", ["tiny", "8x8s8", "tiny-2x64", "4x8s2-4x512"])
def test_bus_errors(name, tmp_path, stall_seed):
    """An error in any descriptor's memory has its code and index; then another program runs."""
    simulator = system_simulator(name)
    case, other = two_samples(name, SEED)
    rng = np.random.default_rng(SEED)
    rows = accesses(case)
    responses = ("slave", "decode")
    for n, index in enumerate(sorted({(index, way) for index, way, _ in rows})):
        mine = [where for i, way, where in rows if (i, way) == index]
        where = mine[rng.integers(len(mine))]
        address = int(rng.integers(where.start, where.stop))
        error = BusError(index[1], responses[n % 2], address, address + 1)
        # Every channel is read with a beat; an error of a write is of bytes that are written
        beat = case.config.beat_bytes if index[1] == "read" else case.config.bus_bytes
        beats = range(address // beat * beat, address // beat * beat + beat)
        first = min(
            i for i, way, w in rows
            if way == index[1] and w.start < beats.stop and beats.start < w.stop
        )  # fmt: skip
        script = Script(tmp_path)
        script.run(case)
        script.start(other, put=False)
        script.finish()
        model = MemoryModel(stall_seed=stall_seed, errors=(error,))
        (end, good), _ = script.execute(simulator, case, model, windows=())
        assert (end.fault, end.index) == (RESPONSES[error.way, error.response], first), error
        assert end.idle
        changed = end.image != case.image
        assert not (changed & ~written(case)).any()
        compare_end(replace(other, image=end.image), good)


@pytest.mark.parametrize("stall_seed", [None, SEED])
@pytest.mark.parametrize("response", ["slave", "decode"])
def test_bus_errors_of_the_program(tiny, tmp_path, response, stall_seed):
    """The descriptor that could not be read has the error."""
    case, other = two_samples("tiny", SEED + 1)
    rng = np.random.default_rng(SEED)
    for index in (0, 1, 2, *map(int, rng.integers(3, case.length - 1, 5)), case.length - 1):
        address = case.address + index * DESCRIPTOR_BYTES + int(rng.integers(DESCRIPTOR_BYTES))
        error = BusError("read", response, address, address + 1)
        script = Script(tmp_path)
        script.run(case)
        script.start(other, put=False)
        script.finish()
        model = MemoryModel(stall_seed=stall_seed, errors=(error,))
        (end, good), _ = script.execute(tiny, case, model, windows=())
        assert (end.fault, end.index) == (RESPONSES["read", response], index)
        assert not ((end.image != case.image) & ~written(case)).any()
        compare_end(replace(other, image=end.image), good)


@pytest.mark.parametrize("latency", [1, 20, 40])
@pytest.mark.parametrize("distance", [0, 1, 3, 7, 12])
def test_bus_error_behind_the_end(tiny, distance, latency):
    """What is fetched ahead of END and never executed cannot fail a run."""
    case = Case.random("tiny", SEED)
    parts = [*case.descriptors, *[bytes(DESCRIPTOR_BYTES)] * 16]
    case = case.with_program(parts)
    address = case.address + (case.length - 16 + distance) * DESCRIPTOR_BYTES
    error = BusError("read", "slave", address, address + 1)
    result = rtl_run(tiny, case, MemoryModel(read_latency=latency, errors=(error,)))
    assert result.fault is Fault.NONE
    assert (result.image == machine_run(case)[1]).all()


# Aborts and resets --------------------------------------------------------------------------------

ABORT_MEMORIES = {
    "plain": MemoryModel(),
    "fast": MemoryModel(read_latency=1, write_latency=1),
    "late": MemoryModel(read_latency=90, write_latency=200, write_late=True),
    "stalls": MemoryModel(stall_seed=SEED),
    "narrow": MemoryModel(read_outstanding=1, write_outstanding=1, stall_seed=SEED + 1),
}


@pytest.mark.parametrize("memory", ABORT_MEMORIES)
@pytest.mark.parametrize("name", ["tiny", "8x16s8", "tiny-2x64"])
def test_abort_anywhere(name, memory, tmp_path):
    """An abort ends the run soon, the bus is quiet then, and a good program runs."""
    simulator = system_simulator(name)
    case, good = (Case.random(name, SEED + n) for n in (2, 3))
    model = ABORT_MEMORIES[memory]
    whole = rtl_run(simulator, case, model).cycles
    rng = np.random.default_rng(SEED)
    places = [0, 1, 2, 5, *map(int, np.sort(rng.integers(6, whole, 14))), whole + 2000]
    script, aborts = Script(tmp_path), []
    for place in places:
        script.start(case)
        abort = script.add(wait(place), write("CONTROL", ABORT)) + 1
        aborts.append((abort, script.finish(ABORT_CYCLES)))
        script.run(good)
    ends, result = script.execute(simulator, case, model)
    faults = []
    for event, number in aborts:
        end = ends[number]
        assert result.events[event]["response"] == OKAY and end.idle
        assert end.cycle - result.events[event]["accepted"] <= ABORT_CYCLES
        assert end.index <= case.length
        assert not ((end.image != case.image) & ~written(case)).any()
        if end.fault == Fault.NONE:
            compare_end(case, end)
        faults.append(end.fault)
        compare_end(good, ends[number + 1])
    assert set(faults) == {Fault.ABORTED, Fault.NONE} and faults[-1] is Fault.NONE


def copies(name: str, seed: int) -> Case:
    """A program that copies rows of several beats through the accumulators' lanes."""
    good = Case.random(name, seed)
    cols = good.config.cols
    row = 8 * cols
    builder = ProgramBuilder()
    for n in range(4):
        builder.post(
            Opcode.ROWS, rows=50, cols=cols, source=Source.STREAM, emit=1,
            in_width=3, in_address=BASE + 0x4000 + n * row, in_stride=row,
            out_width=3, out_address=BASE + HALF + n * 60 * row, out_stride=row,
        )  # fmt: skip
    builder.control(Action.END)
    return good.with_program(builder.parts)


@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("name", ["tiny", "8x16s8", "tiny-2x64"])
def test_abort_in_a_burst(name, way, tmp_path):
    simulator = system_simulator(name)
    case, good = copies(name, SEED + 4), Case.random(name, SEED + 5)
    script = Script(tmp_path)
    for _ in range(3):
        script.start(case)
        script.add(wait_burst(way, 100_000), write("CONTROL", ABORT))
        script.finish(ABORT_CYCLES)
        script.run(good)
    ends, _ = script.execute(simulator, case, MemoryModel(stall_seed=SEED))
    for aborted, after in zip(ends[::2], ends[1::2], strict=True):
        assert aborted.fault is Fault.ABORTED and aborted.idle
        assert not ((aborted.image != case.image) & ~written(case)).any()
        compare_end(good, after)


def test_abort_when_idle(tiny, tmp_path):
    """It has no effect, neither then nor on the next run; with a start it starts."""
    good = Case.random("tiny", SEED)
    script = Script(tmp_path)
    first = script.add(write("CONTROL", ABORT), wait(20), read("STATUS"), read("IRQ_STATUS"))
    script.run(good)
    script.add(write("CONTROL", ABORT))
    script.run(good)
    last = script.add(write("CONTROL", ABORT), wait(9), read("STATUS"))
    ends, result = script.execute(tiny, good)
    for end in ends:
        compare_end(good, end)
    assert [result.events[first + n]["value"] for n in (2, 3)] == [0, 0]
    assert result.events[last + 2]["value"] == DONE


def test_abort_of_later_runs(tiny, tmp_path):
    """RUNS is over with the abort; RUNS_LEFT counts the run that it hit."""
    case, good = replace(Case.random("tiny", SEED), runs=1000), Case.random("tiny", SEED + 1)
    script = Script(tmp_path)
    script.start(case)
    script.add(wait(20_000), write("CONTROL", ABORT))
    script.finish(ABORT_CYCLES)
    script.run(good)
    (end, after), _ = script.execute(tiny, case)
    assert end.fault is Fault.ABORTED and 900 < end.runs_left < 1000
    compare_end(good, after)


@pytest.mark.parametrize("stall_seed", [None, SEED])
@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("name", ["tiny", "8x16s8", "tiny-2x64"])
def test_reset_in_a_burst(name, way, stall_seed, tmp_path):
    """A reset in the middle of bursts, several times; the harness forgets them. Then a program."""
    simulator = system_simulator(name)
    case, good = copies(name, SEED + 6), Case.random(name, SEED + 7)
    script = Script(tmp_path)
    for cycles in (0, 3, 9):
        script.start(case)
        script.add(wait(50 * cycles), wait_burst(way, 100_000), reset(2 + cycles))
        values = script.add(*(read(name) for name in ("STATUS", "ERROR", "RUNS", "IRQ_MASK")))
        script.run(good)
    ends, result = script.execute(simulator, case, MemoryModel(stall_seed=stall_seed))
    for end in ends:
        compare_end(good, end)
    assert [result.events[values + n]["value"] for n in range(4)] == [0, 0, 1, 0]


# Registers during a run ---------------------------------------------------------------------------


def test_start_while_busy(tiny, tmp_path):
    """It is refused and leaves a mark, and the run goes on unharmed."""
    case = Case.random("tiny", SEED + 8)
    script = Script(tmp_path)
    script.start(case)
    events = script.add(
        wait(100), read("STATUS"), write("CONTROL", START), read("STATUS"),
        write("STATUS", IGNORED), read("STATUS"), write("CONTROL", START, 0xE), read("STATUS"),
    )  # fmt: skip
    script.finish()
    after = script.add(read("STATUS"), write("CONTROL", START | ABORT), read("STATUS"))
    (end,), result = script.execute(tiny, case)
    compare_end(case, end)
    assert result.events[events + 2]["response"] == SLVERR
    assert result.events[events + 6]["response"] == OKAY  # without a strobe it is no start
    values = [result.events[events + n]["value"] for n in (1, 3, 5, 7)]
    assert values == [BUSY, BUSY | IGNORED, BUSY, BUSY]
    # Start with abort: it starts, the abort of an idle accelerator is nothing
    assert result.events[after]["value"] == DONE
    assert result.events[after + 1]["response"] == OKAY
    assert result.events[after + 2]["value"] == BUSY


def test_settings_are_locked_while_busy(tiny, tmp_path):
    case = Case.random("tiny", SEED + 8)
    script = Script(tmp_path)
    script.start(case)
    locked = [register.name for register in REGISTERS.values() if register.locked]
    writes = script.add(*(write(name, 0) for name in locked))
    reads = script.add(*(read(name) for name in locked))
    still = script.add(read("STATUS"))
    script.finish()
    after = script.add(write("RUNS", 77), read("RUNS"))
    # The memory is slow, so that the run lasts
    model = MemoryModel(read_latency=800)
    (end,), result = script.execute(tiny, case, model)
    compare_end(case, end)
    assert result.events[still]["value"] == BUSY
    job = case.job()
    wanted = {"PROGRAM_ADDRESS_LO": 0, "PROGRAM_LENGTH": job.length, "RUNS": 1}
    for n, name in enumerate(locked):
        assert result.events[writes + n]["response"] == SLVERR, name
        if name in wanted:
            assert result.events[reads + n]["value"] == wanted[name]
    assert len(locked) >= 14
    assert result.events[after]["response"] == OKAY and result.events[after + 1]["value"] == 77


def test_interrupt(tiny, tmp_path):
    """The mask decides, at any time; only a written 1 clears; each end has its own bit."""
    good = Case.random("tiny", SEED)
    bad = good.with_program([bytes(DESCRIPTOR_BYTES)])
    script = Script(tmp_path)
    script.start(good)
    events = [
        script.add(write("IRQ_MASK", 0), wait(20_000), read("IRQ_STATUS")) + 1,
        script.add(write("IRQ_MASK", 0b10), wait(4)) + 1,  # an error's
        script.add(write("IRQ_MASK", 0b01), wait(4)) + 1,
        script.add(write("IRQ_STATUS", 0b10), wait(4)) + 1,  # not this one
        script.add(write("IRQ_STATUS", 0b01), wait(4)) + 1,
    ]
    script.start(bad)
    events += [
        script.add(write("IRQ_MASK", 0b01), wait(2000), read("IRQ_STATUS")) + 1,
        script.add(write("IRQ_MASK", 0b11), wait(4)) + 1,
        script.add(write("IRQ_STATUS", 0b11), wait(4)) + 1,
    ]
    # A pending interrupt stays over the next start unless it is cleared
    script.add(write("CONTROL", START), wait(2000), write("CONTROL", START))
    events.append(script.add(wait(1)))
    script.add(wait_irq(2000))
    _, result = script.execute(tiny, good)
    assert [result.events[n]["irq"] for n in events] == [0, 0, 1, 1, 0, 0, 1, 0, 1]
    assert result.events[events[0] + 1]["value"] == 0b01
    assert result.events[events[5] + 1]["value"] == 0b10


def test_sticky_bits_that_software_clears(tiny, tmp_path):
    """They are gone, before and after the next start; other bits stay."""
    case = Case.random("tiny", SEED + 4)
    assert {"acc_sat", "momentum_range"} <= machine_run(case)[0].sticky
    quiet = case.with_program([encode(Kind.CONTROL, {"action": Action.END})])
    bit = 1 << STICKY.index("acc_sat")
    script = Script(tmp_path)
    script.run(case)
    before = script.add(read("STICKY"), write("STICKY", bit), read("STICKY"))
    script.add(*start_commands(quiet.job()))
    script.add(wait_irq(5000))
    after = script.add(read("STICKY"))
    _, result = script.execute(tiny, case)
    bits = result.events[before]["value"]
    assert bits & bit
    assert result.events[before + 2]["value"] == result.events[after]["value"] == bits & ~bit != 0


# Memory -------------------------------------------------------------------------------------------


def test_very_slow_memory(tiny):
    """Channels that stand still for thousands of cycles."""
    case = Case.random("tiny", SEED + 9)
    short = case.with_program([*case.descriptors[:16], encode(Kind.CONTROL, {"action": 1})])
    for latencies in ((6000, 1), (1, 6000), (4000, 4000)):
        model = MemoryModel(
            *latencies, read_outstanding=2, write_outstanding=1, write_late=True, stall_seed=1
        )
        result = rtl_run(tiny, short, model)
        assert compare(short, result).fault is Fault.NONE
        assert result.cycles > 20_000


def moved(case: Case, base: int) -> Case:
    """A case with memory, program and windows at another address."""
    distance = base - case.base
    return replace(
        case.with_program([relocated(part, distance) for part in case.descriptors]),
        base=base,
        address=case.address + distance,
        read_window=(case.read_window[0] + distance, case.read_window[1] + distance),
        write_window=(case.write_window[0] + distance, case.write_window[1] + distance),
    )


@pytest.mark.parametrize("name", ["tiny", "8x8s8", "4x8s2-4x512"])
def test_at_the_ends_of_the_address_space(name):
    """Windows that begin at 0, and windows whose limit is the first address there is not."""
    simulator = system_simulator(name)
    top = 1 << CONFIGS[name].address_bits
    for base in (0, top - SIZE):
        for seed in (SEED, SEED + 1):
            case = moved(Case.random(name, seed), base)
            assert compare(case, rtl_run(simulator, case)).fault is Fault.NONE


@pytest.mark.parametrize("name", ["tiny", "8x8s8"])
def test_beyond_the_address_space(name, tmp_path):
    """Rows that run over the last address, or around it, are outside every window."""
    simulator = system_simulator(name)
    config = CONFIGS[name]
    top = 1 << config.address_bits
    good = moved(Case.random(name, SEED), top - SIZE)
    beat = config.beat_bytes
    end = encode(Kind.CONTROL, {"action": Action.END})
    descriptors = [
        encode(Kind.LOAD, {"rows": 1, "row_bytes": beat + 1, "address": top - beat}),
        encode(Kind.LOAD, {"rows": 2, "row_bytes": 1, "stride": beat, "address": top - beat}),
        encode(Kind.LOAD, {"rows": 3, "row_bytes": 1, "stride": 1 << 31, "address": top - beat}),
        encode(
            Kind.POST,
            {
                "opcode": Opcode.ROWS, "rows": 2, "cols": config.cols, "mode": Mode.INT8,
                "out_address": top - beat, "out_stride": beat,
            },
        ),
        encode(
            Kind.POST,
            {
                "opcode": Opcode.ROWS, "rows": 2, "cols": 1, "source": Source.STREAM,
                "in_address": top - beat, "in_stride": beat,
            },
        ),
        encode(Kind.POST, {"opcode": Opcode.AMAX_READ, "out_address": (1 << 64) - 64}),
        encode(Kind.LOAD, {"rows": 1, "row_bytes": 1, "address": (1 << 64) - beat}),
    ]  # fmt: skip
    script = Script(tmp_path)
    cases = [good.with_program([part, end]) for part in descriptors]
    for case in cases:
        script.run(case, 3000)
    script.run(good)
    ends, _ = script.execute(simulator, good)
    for case, result in zip([*cases, good], ends, strict=True):
        compare_end(case, result)
    faults = [result.fault for result in ends]
    assert faults[:5] == [Fault.WINDOW] * 5 and faults[-1] is Fault.NONE
    # The last two are the last bytes of 64 bits, which 8x8s8 has
    assert faults[5:7] == [Fault.NONE if top == 1 << 64 else Fault.WINDOW] * 2


@pytest.mark.parametrize("name", ["tiny", "8x4s4", "tiny-2x64", "4x8s2-4x512"])
def test_edges_of_the_windows(name, tmp_path):
    """Windows that just hold a program's rows run it; a byte less, and it faults there."""
    simulator = system_simulator(name)
    good = Case.random(name, SEED)
    beat = good.config.beat_bytes
    rows = accesses(good)
    reads = [where for _, way, where in rows if way == "read"]
    writes = [where for _, way, where in rows if way == "write"]
    last = max(-(-where.stop // beat) * beat for where in reads)
    tight = replace(
        good,
        read_window=(good.address, last),
        write_window=(min(w.start for w in writes), max(w.stop for w in writes)),
    )
    cases = [
        tight,
        replace(tight, read_window=(tight.read_window[0] + 1, last)),
        replace(tight, read_window=(tight.read_window[0], last - 1)),
        replace(tight, write_window=(tight.write_window[0] + 1, tight.write_window[1])),
        replace(tight, write_window=(tight.write_window[0], tight.write_window[1] - 1)),
        replace(tight, write_window=(0, 0)),
        replace(tight, read_window=(last, tight.read_window[0])),
    ]
    for case in cases:
        script = Script(tmp_path)
        script.run(case)
        script.run(good)
        ends, _ = script.execute(simulator, case, windows=())
        compare_end(case, ends[0])
        compare_end(good, ends[1])
        if case is not tight:
            assert ends[0].fault is Fault.WINDOW
        if case.read_window[0] < case.read_window[1] and case.write_window[1]:
            # And the harness sees that nothing reaches the bus from outside
            assert rtl_run(simulator, case).fault is ends[0].fault


@pytest.mark.parametrize("name", ["tiny", "8x8s8", "tiny-2x64"])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_row_at_the_edge_of_a_window(name, offset):
    """What a POST reads counts in whole beats, what it writes in bytes."""
    simulator = system_simulator(name)
    config = CONFIGS[name]
    beat, row = config.beat_bytes, config.cols  # one byte each
    image = np.random.default_rng(SEED).integers(0, 256, SIZE, dtype=np.uint8)
    program = BASE + 0x4000
    place = offset * row % beat
    below, above = program - beat + place, program + 0x200 + place
    blank = Case(config, image, program, 1, READ, WRITE)
    for address in (below, above):
        builder = ProgramBuilder()
        builder.post(
            Opcode.ROWS, rows=1, cols=config.cols, source=Source.STREAM, mode=Mode.INT8,
            in_address=address, out_address=BASE + HALF + place,
        )  # fmt: skip
        builder.control(Action.END)
        case = blank.with_program(builder.parts)
        first = min(address // beat * beat, program)
        last = max(address // beat * beat + beat, program + 128)
        out = BASE + HALF + place
        windows = [
            ((first, last), (out, out + row), Fault.NONE),
            ((first + 1, last), (out, out + row), Fault.WINDOW),
            ((first, last - 1), (out, out + row), Fault.WINDOW),
            ((first, last), (out + 1, out + row), Fault.WINDOW),
            ((first, last), (out, out + row - 1), Fault.WINDOW),
        ]
        for read_window, write_window, fault in windows:
            one = replace(case, read_window=read_window, write_window=write_window)
            result = rtl_run(simulator, one)
            assert compare(one, result).fault is fault


# What a broken program leaves ---------------------------------------------------------------------


def test_nothing_of_a_broken_program_is_left(tiny, tmp_path):
    """Tokens of every channel, maxima, status bits, half-filled queues: the next run has none."""
    good = Case.random("tiny", SEED + 12)
    load = {"rows": 1, "row_bytes": 8, "address": BASE, "signal_exec": 1}
    execute = {
        "repeat": 1, "length": 1, "cols": 1, "last": 1, "signal_load": 1, "signal_post": 1,
    }  # fmt: skip
    stream = {
        "opcode": Opcode.ROWS, "rows": 3, "cols": 4, "source": Source.STREAM, "amax": 1,
        "in_address": BASE, "in_stride": 8, "signal_exec": 1, "signal_load": 1,
        "signal_stream": 1, "src_a": 2, "mode": Mode.INT8, "delayed": 1,
        "out_address": BASE + HALF, "out_stride": 8,
    }  # fmt: skip
    parts = [encode(Kind.LOAD, load | {"buffer": Buffer.WGT}), encode(Kind.LOAD, load)]
    parts += [encode(Kind.EXEC, execute)] * 5 + [encode(Kind.POST, stream)] * 20
    ends_of_it = {
        "fault": [bytes(DESCRIPTOR_BYTES)],
        "end": [encode(Kind.CONTROL, {"action": Action.END})],
        "none": [],
    }
    script = Script(tmp_path)
    cases = [good.with_program([*parts, *tail]) for tail in ends_of_it.values()]
    for case in cases:
        script.run(case)
        script.run(good)
    script.start(cases[0])
    script.add(wait(700), write("CONTROL", ABORT))
    script.finish(ABORT_CYCLES, dump=False)
    script.run(good)
    ends, _ = script.execute(tiny, good)
    for case, one, two in zip(cases, ends[::2], ends[1::2], strict=False):
        compare_end(case, one)
        compare_end(good, two)
    assert [end.fault for end in ends[::2]] == [
        Fault.KIND, Fault.NONE, Fault.END, Fault.ABORTED,
    ]  # fmt: skip
    compare_end(good, ends[-1])
