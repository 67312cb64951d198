"""The functional accelerator: programs by hand against NumPy, every check, proofs of order."""

from collections.abc import Mapping

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import (
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    PROGRAM_MAX,
    STEP_WORD,
    STICKY,
    TOKENS_MAX,
    Action,
    Buffer,
    Dataflow,
    Edge,
    Fault,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Source,
)
from systolora_sim import numerics as nx
from systolora_sim.bench.sample import ProgramBuilder, sample
from systolora_sim.descriptor import decode, encode
from systolora_sim.machine import Machine, MachineError, RaceError
from systolora_sim.numerics import Scale
from systolora_sim.program import run_sync, scale_imm
from systolora_sim.system_checks import TAKES, Checker, Window
from systolora_sim.system_defined import UndefinedError
from systolora_sim.system_machine import Memory, RunResult, SystemMachine

TINY = preset("tiny")
CONFIGS = {
    "tiny": TINY,
    "ecp5": preset("ecp5"),
    "default": preset("default"),
    "8x4s2-int8": TINY.with_fields(int16=False, rows=8, segments=2),
    "4x16s4-512": TINY.with_fields(
        cols=16, segments=4, bus_bits=512, act_bytes=1 << 14, wgt_bytes=1 << 15
    ),
    "16x4s1": TINY.with_fields(rows=16, bus_bits=128, wgt_bytes=1 << 14),
}
BASE, SIZE = 0x40000, 1 << 16
PROGRAM, DATA, OUT = BASE, BASE + 0x4000, BASE + 0x8000


class Bench:
    """A machine with a memory: the program at its start, then data, then room for results."""

    def __init__(self, config: AcceleratorConfig = TINY, strict: bool = True) -> None:
        self.config = config
        self.memory = Memory(BASE, np.full(SIZE, 0x99, np.uint8))
        windows = (BASE, BASE + SIZE), (BASE, BASE + SIZE)
        self.machine = SystemMachine(config, self.memory, *windows, strict)

    def put(self, address: int, values: np.ndarray, stride: int = 0) -> None:
        """Rows [n, m] at an address, `stride` bytes apart (0: one after the other)."""
        for n, row in enumerate(values):
            self.memory.write(address + n * (stride or row.nbytes), row.tobytes())

    def get(self, address: int, dtype: str, *shape: int, stride: int = 0) -> np.ndarray:
        rows, row_bytes = shape[0], int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        data = [
            self.memory.read(address + n * (stride or row_bytes), row_bytes) for n in range(rows)
        ]
        return np.frombuffer(b"".join(data), dtype).reshape(shape)

    def run(self, builder: ProgramBuilder, end: bool = True, **start: int) -> RunResult:
        if end:
            builder.control(Action.END)
        self.memory.write(PROGRAM, builder.program)
        return self.machine.run(PROGRAM, len(builder.program) // DESCRIPTOR_BYTES, **start)

    def done(self, builder: ProgramBuilder, **start: int) -> RunResult:
        result = self.run(builder, **start)
        assert result.fault == Fault.NONE, result
        return result


def random_bytes(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.integers(0, 256, count).astype(np.uint8)


# LOAD and EXEC against the contract's words ------------------------------------------------------


def naive_load(config: AcceleratorConfig, machine: SystemMachine, f: dict[str, int]) -> None:
    """docs/system.md, LOAD, one row at a time; bytes after a row's end become 0xA5."""
    for i in range(f["rows"]):
        bank, n = 0, i
        if f["layout"] != Layout.PLAIN:
            side = config.cols if f["layout"] == Layout.LEFT else config.rows
            g = side // config.segments
            bank, n = i // g % config.segments, i // (g * config.segments) * g + i % g
        act = f["buffer"] == Buffer.ACT
        entry = config.act_entry_bytes if act else config.wgt_entry_bytes
        start = (f["base"] + n * f["row_step"]) * entry
        start += bank * config.wgt_bytes // config.segments
        data = machine.memory.read(f["address"] + i * f["stride"], f["row_bytes"])
        data += b"\xa5" * (-len(data) % config.beat_bytes)
        buffer = machine.act if act else machine.wgt
        buffer[start : start + len(data)] = np.frombuffer(data, np.uint8)


def naive_exec(config: AcceleratorConfig, machine: SystemMachine, f: dict[str, int]) -> None:
    """docs/system.md, EXEC, as tile commands of the functional Core."""
    core = Machine(config, strict=False)
    core.acc[...] = machine.core.acc
    rows, cols = config.rows, config.cols
    os, left = f["dataflow"] == Dataflow.OS, f["edge"] == Edge.LEFT
    g = (cols if left else rows) // config.segments
    bank_bytes = config.wgt_bytes // config.segments
    for n in range(f["repeat"]):
        act_n, wgt_n, acc_n = (f[f"{x}_base"] + n * f[f"{x}_step"] for x in ("act", "wgt", "acc"))
        valid = f["last"] if n == f["repeat"] - 1 else rows

        def beat(m: int, plane: int, act_n: int = act_n) -> np.ndarray:
            start = (act_n + m * f["act_stride"]) * rows
            wide = 1 + f["act_wide"]
            return machine.act[start : start + rows * wide][plane::wide]

        def line(bank: int, j: int, plane: int, size: int, wgt_n: int = wgt_n) -> np.ndarray:
            start = bank * bank_bytes + (wgt_n + j * f["wgt_stride"]) * min(rows, cols)
            wide = 1 + f["wgt_wide"]
            return machine.wgt[start : start + size * wide][plane::wide]

        for high_w in (1, 0) if f["wgt_wide"] else (2,):
            for high_a in (1, 0) if f["act_wide"] else (2,):
                act = np.array([beat(m, high_a % 2) for m in range(f["length"])])
                fields = {
                    "dataflow": f["dataflow"], "edge": f["edge"], "length": f["length"],
                    "act_low": int(high_a == 0), "wgt_low": int(high_w == 0),
                    "shift": (high_a == 1) + (high_w == 1), "acc_base": acc_n,
                }  # fmt: skip
                first = (high_w, high_a) == (f["wgt_wide"] or 2, f["act_wide"] or 2)
                adds = f["accumulate"] or not first or (n > 0 and f["acc_step"] == 0)
                fields["accumulate"] = int(adds)
                lanes = config.segments * config.lanes
                if os:
                    fields["out_rows"] = valid
                    wgt = np.zeros((f["length"], lanes), np.uint8)
                    for k in range(f["length"]):
                        wgt[k, :cols] = line(0, k, high_w % 2, cols)
                else:
                    act[:, valid:] = 0
                    # Loaded with every pass: the same tile as when it stays in the array
                    fields["load"] = 1
                    wgt = np.zeros((g, config.segments, config.lanes), np.uint8)
                    for k in range(g):
                        for s in range(config.segments):
                            data = line(s, g - 1 - k, high_w % 2, rows if left else cols)
                            wgt[k, s, : data.size] = data
                    wgt = wgt.reshape(g, lanes)
                core.tile(act, wgt, **fields)
    run_sync(core.flush())
    machine.core.acc[...] = core.acc


def random_fields(
    kind: Kind, config: AcceleratorConfig, rng: np.random.Generator
) -> dict[str, int]:
    """Fields of a random LOAD or EXEC that the checks accept; every field gets its turn."""
    window = Window(BASE, BASE + SIZE)
    while True:
        f = {field.name: 0 for field in DESCRIPTORS[kind][1:]}

        def some(most: int) -> int:
            return int(rng.integers(0, max(most, 0) + 1))

        if kind == Kind.LOAD:
            f |= {"buffer": some(1), "rows": 1 + some(20), "row_bytes": 1 + some(70)}
            f["layout"] = some(2) * f["buffer"]
            f |= {"base": some(20), "row_step": some(6)}
            f["address"] = DATA + config.beat_bytes * some(20)
            f["stride"] = config.beat_bytes * some(9)
        else:
            f |= {name: some(1) for name in ("dataflow", "edge", "accumulate")}
            f |= {"length": 1 + some(9), "repeat": 1 + some(4), "last": 1 + some(config.rows - 1)}
            f |= {"cols": 1 + some(config.cols - 1), "acc_base": some(config.acc_depth - 1)}
            f["acc_step"] = some(2) * some(config.rows + 2)
            for name in ("act_wide", "wgt_wide"):
                f[name] = some(1) * int(config.int16)
            line = config.rows if f["edge"] and not f["dataflow"] else config.cols
            units = line // config.wgt_unit * (1 + f["wgt_wide"])
            for name in ("base", "stride", "step"):
                f[f"act_{name}"] = (1 + f["act_wide"]) * some(12)
                f[f"wgt_{name}"] = units * some(12)
        if Checker(config, window, window).check(encode(kind, f))[0] == Fault.NONE:
            return f


@pytest.mark.parametrize("name", CONFIGS)
def test_random_loads(name):
    rng = np.random.default_rng(3)
    bench, other = (Bench(CONFIGS[name], strict=strict) for strict in (True, False))
    for device in (bench, other):
        device.put(DATA, random_bytes(np.random.default_rng(4), 0x2000)[None])
    for number in range(60):
        f = random_fields(Kind.LOAD, bench.config, rng)
        builder = ProgramBuilder()
        builder.load(**f)
        bench.done(builder)
        naive_load(bench.config, other.machine, f)
        assert (bench.machine.act == other.machine.act).all(), (number, f)
        assert (bench.machine.wgt == other.machine.wgt).all(), (number, f)


@pytest.mark.parametrize("name", CONFIGS)
def test_random_execs(name):
    rng = np.random.default_rng(5)
    bench, other = (Bench(CONFIGS[name], strict=False) for _ in range(2))
    for machine in (bench.machine, other.machine):
        fill = np.random.default_rng(6)
        machine.act[:] = random_bytes(fill, machine.act.size)
        machine.wgt[:] = random_bytes(fill, machine.wgt.size)
        machine.core.acc[:] = fill.integers(-(1 << 31), 1 << 31, machine.core.acc.shape)
    for number in range(40):
        f = random_fields(Kind.EXEC, bench.config, rng)
        builder = ProgramBuilder()
        builder.exec(**f)
        bench.done(builder)
        naive_exec(bench.config, other.machine, f)
        assert (bench.machine.core.acc == other.machine.core.acc).all(), (number, f)


def test_chunks_of_a_long_sum(monkeypatch):
    """An EXEC that is cut into pieces sums to the same."""
    f = {"length": 3, "repeat": 7, "last": 2, "cols": 4, "act_stride": 1, "act_step": 3}
    f |= {"wgt_stride": 1, "wgt_step": 4, "dataflow": Dataflow.WS}
    results = []
    for chunk in (1 << 22, 40):
        monkeypatch.setattr("systolora_sim.system_machine.CHUNK", chunk)
        for dataflow in Dataflow:
            bench = Bench(strict=False)
            bench.machine.act[:] = random_bytes(np.random.default_rng(7), 1 << 13)
            bench.machine.wgt[:] = random_bytes(np.random.default_rng(8), 1 << 12)
            builder = ProgramBuilder()
            builder.exec(**f | {"dataflow": dataflow})
            bench.done(builder)
            results.append(bench.machine.core.acc[:4].copy())
    assert (results[0] == results[2]).all() and (results[1] == results[3]).all()


# A whole program against NumPy -------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_sample(name):
    """The program that uses everything, against numerics."""
    config, seed, word_base = CONFIGS[name], 11, 0xFFFF0000
    s = sample(config, seed)
    machine = SystemMachine(config, s.memory, s.read_window, s.write_window)
    result = machine.run(s.address, s.length, word_base=word_base, step=9)
    assert (result.fault, result.index, result.runs) == (Fault.NONE, 0, 1)
    assert result.step == 10 and result.word_base == (word_base + STEP_WORD) % (1 << 32)
    assert result.counters.descriptors == s.length

    i = {key: value.astype(np.int64) for key, value in s.inputs.items()}
    out = s.outputs
    n, cols = i["x"].shape[0], config.cols
    sums = i["x"] @ i["w"] + i["bias"]
    words = nx.random_words(0x12345 + word_base, n, cols)
    h = nx.quantize(sums, nx.ONE, 8, words=words)
    assert (out["h"].get(s.memory, "i1") == h.q).all()
    assert out["h_scale"].get(s.memory, "<i4").tolist() == [list(nx.quant_ratio(h.amax, 8))]
    assert out["h_amax"].get(s.memory, "<i8") == h.amax
    product = h.q.astype(np.int64) @ i["v"].T
    assert (out["spill"].get(s.memory, "<i8") == product).all()
    assert (out["y"].get(s.memory, "<i4") == 2 * product).all()
    bits = 16 if config.int16 else 8
    scale = Scale(45000, -18 if config.int16 else -9)
    z, clipped = nx.rescale(i["p"].T @ i["q"], scale, -nx.qmax(bits), nx.qmax(bits))
    assert (out["z"].get(s.memory, f"<i{bits // 8}") == z[:-1]).all() and not clipped
    assert out["select"].get(s.memory, "<i8") == h.amax
    assert out["status"].get(s.memory, "<i8") == i["status"]
    square = nx.mul(Scale(0xC001, -3), Scale(0xC001, -3))
    assert out["scale"].get(s.memory, "<i4").tolist() == [list(square)]
    words = nx.random_words(0xFFFFFFF0 + result.word_base, n, cols)[:, :-1]
    term = nx.rescale(sums[:, :-1], square, *nx.int_range(32), words)[0]
    w = i["masters"] - term
    assert (out["w"].get(s.memory, "<i2") == np.clip(w, -32767, 32767)).all()
    sticky = {STICKY[0], STICKY[4]} | ({"master_range"} if np.abs(w).max() > 32767 else set())
    assert result.sticky == sticky


def test_runs_continue():
    """A program that runs twice: registers go on, tokens do not."""
    bench = Bench()
    builder = ProgramBuilder()
    builder.post(Opcode.AMAX_SET, dst=1, imm=7)
    builder.post(Opcode.NOP, signal_exec=1)  # left over at END
    for _ in range(3):
        builder.control(Action.STEP)
    result = bench.done(builder, runs=200, word_base=5, step=(1 << 32) - 1)
    assert result.runs == 200 and result.step == 599
    assert result.word_base == (5 + 600 * STEP_WORD) % (1 << 32)
    assert bench.done(builder, runs=0).runs == 1


# POST: widths and single commands ----------------------------------------------------------------


@pytest.mark.parametrize("width", range(4))
@pytest.mark.parametrize("name", ["tiny", "8x4s2-int8", "default"])
def test_stream_widths(name, width):
    """Reading extends the sign or drops high bits; writing takes low bits or extends the sign."""
    bench = Bench(CONFIGS[name])
    config, cols = bench.config, bench.config.cols - 1
    rng = np.random.default_rng(width)
    values = rng.integers(-(1 << 63), (1 << 63) - 1, (5, cols))
    values[0, :3] = -1, (1 << 63) - 1, -(1 << 63)
    narrow = values.astype(f"<i{1 << width}")
    stride = 128
    bench.put(DATA, narrow, stride)
    for out_width in range(4):
        builder = ProgramBuilder()
        builder.post(
            Opcode.ROWS, source=Source.STREAM, rows=5, cols=cols, emit=1, in_width=width,
            out_width=out_width, in_address=DATA, in_stride=stride, out_address=OUT,
            out_stride=stride,
        )  # fmt: skip
        bench.done(builder)
        spare = 64 - config.acc_bits
        wanted = ((narrow.astype(np.int64) << spare) >> spare).astype(f"<i{1 << out_width}")
        got = bench.get(OUT, f"<i{1 << out_width}", 5, cols, stride=stride)
        assert (got == wanted).all()
        # Nothing after a row's end is touched
        after = bench.get(OUT + (cols << out_width), "u1", 4, 1, stride=stride)
        assert (after == 0x99).all()


def test_values_of_registers_in_memory():
    bench = Bench()
    builder = ProgramBuilder()
    builder.post(Opcode.AMAX_SET, dst=2, imm=(1 << 48) - 1)
    builder.post(Opcode.AMAX_READ, src_a=2, out_address=OUT)
    builder.post(Opcode.SCALE_SET, dst=15, imm=scale_imm(Scale(0x8000, -512)))
    builder.post(Opcode.SCALE_READ, src_a=15, out_address=OUT + 8)
    builder.post(Opcode.SCALE_SET, dst=15, imm=0x7FFF | 3 << 16)
    builder.post(Opcode.SCALE_READ, src_a=15, out_address=OUT + 16)
    bench.put(DATA, np.array([[-1, -1, 0x17FFF, 5]], np.int64).astype("<i8"))
    builder.post(Opcode.AMAX_LOAD, dst=7, in_address=DATA)
    builder.post(Opcode.AMAX_READ, src_a=7, out_address=OUT + 24)
    builder.post(Opcode.STICKY_LOAD, in_address=DATA)
    builder.post(Opcode.STICKY_READ, out_address=OUT + 32)
    builder.post(Opcode.SCALE_LOAD, dst=0, in_address=DATA + 16)
    builder.post(Opcode.SCALE_READ, src_a=0, out_address=OUT + 40)
    assert bench.done(builder).sticky == set(STICKY)
    assert bench.get(OUT, "<i8", 1)[0] == (1 << 48) - 1
    assert bench.get(OUT + 8, "<i4", 4).tolist() == [0x8000, -512, 0, 0]
    assert bench.get(OUT + 24, "<i8", 2).tolist() == [(1 << 48) - 1, 31]
    assert bench.get(OUT + 40, "<i4", 2).tolist() == [0, 0]


def test_rows_that_overlap_in_memory():
    """A row is stored after the one before: with stride 0 the last one stays."""
    bench = Bench()
    values = np.arange(12, dtype="<i2").reshape(3, 4)
    bench.put(DATA, values)
    builder = ProgramBuilder()
    builder.post(
        Opcode.ROWS, source=Source.STREAM, rows=3, cols=4, emit=1, in_width=1, in_address=DATA,
        in_stride=8, out_width=2, out_address=OUT, out_stride=8,
    )  # fmt: skip
    bench.done(builder)
    assert bench.get(OUT, "<i4", 8).tolist() == [0, 1, 4, 5, 8, 9, 10, 11]


def test_rows_joined_with_memory():
    """Sums from memory are added to what the rows held, with the saturation of the addition."""
    bench = Bench()
    held = np.array([[1, -2, 300], [5, 0, (1 << 31) - 2]], "<i8")
    added = np.array([[10, 20, -30], [-7, 1 << 20, 5]], "<i4")
    bench.put(DATA, np.pad(held, ((0, 0), (0, 1))))
    bench.put(DATA + 0x100, np.pad(added, ((0, 0), (0, 1))))
    builder = ProgramBuilder()
    builder.post(
        Opcode.ROWS, source=Source.STREAM, rows=2, cols=3, write=1, dst_base=4, in_width=3,
        in_address=DATA, in_stride=32,
    )  # fmt: skip
    builder.post(
        Opcode.ROWS, rows=2, cols=3, src_base=4, add=1, add_stream=1, limit=Limit.ACC32, emit=1,
        write=1, dst_base=40, in_width=2, in_address=DATA + 0x100, in_stride=16,
        out_width=3, out_address=OUT, out_stride=32,
    )  # fmt: skip
    builder.post(
        Opcode.ROWS, rows=2, cols=3, src_base=40, emit=1, out_width=3, out_address=OUT + 64,
        out_stride=32,
    )  # fmt: skip
    assert bench.done(builder).sticky == {"acc_sat"}
    expected = np.minimum(held + added, (1 << 31) - 1)
    for place in (OUT, OUT + 64):
        assert bench.get(place, "<i8", 8).reshape(2, 4)[:, :3].tolist() == expected.tolist()


def test_counters():
    bench = Bench(strict=False)
    builder = ProgramBuilder()
    builder.load(rows=3, row_bytes=9, row_step=2, address=DATA, stride=16)
    builder.exec(length=3, repeat=2, last=1, cols=3)
    builder.exec(length=2, repeat=1, last=1, cols=2, act_wide=1, wgt_wide=1, wgt_stride=2)
    builder.post(
        Opcode.ROWS, source=Source.STREAM, rows=2, cols=3, mode=Mode.INT16, out_width=1, in_width=0,
        in_address=DATA + 4, in_stride=8, out_address=OUT, out_stride=8,
    )  # fmt: skip
    counters = bench.done(builder, runs=2).counters
    assert counters.macs == 2 * (3 * 3 * 5 + 4 * 2 * 2)  # the wide one: four passes
    assert counters.bytes_read == 2 * (5 * 64 + 3 * 16 + 2 * 8)
    assert (counters.bytes_written, counters.descriptors) == (2 * 2 * 6, 2 * 5)


# Faults ------------------------------------------------------------------------------------------

LOAD = {"rows": 2, "row_bytes": 8, "row_step": 1, "address": DATA, "stride": 8}
WGT = LOAD | {"buffer": Buffer.WGT}
LEFT = WGT | {"layout": Layout.LEFT, "rows": 5}
EXEC = {"length": 2, "repeat": 1, "last": 4, "cols": 4, "wgt_stride": 2, "act_stride": 2}
OS = EXEC | {"dataflow": Dataflow.OS}
WIDE = EXEC | {"act_wide": 1, "wgt_wide": 1}
ROWS = {"opcode": Opcode.ROWS, "rows": 2, "cols": 3}
QUANT = ROWS | {"mode": Mode.INT8, "out_address": OUT, "out_stride": 8}
STREAM = ROWS | {"source": Source.STREAM, "in_address": DATA, "in_stride": 8}
JOIN = ROWS | {"add": 1, "add_stream": 1, "in_address": DATA, "in_stride": 8}
END = BASE + SIZE


def boundaries() -> list[tuple[Kind, Mapping[str, int], dict[str, int], Fault]]:
    """(kind, fields that are just allowed, what breaks one rule, its fault)."""
    act, wgt = TINY.act_entries, TINY.wgt_entries
    units = TINY.act_bytes // 4
    wgt_units = TINY.wgt_bytes // 4
    load, execute, post = Kind.LOAD, Kind.EXEC, Kind.POST
    N, F, B, A, W = Fault.NONE, Fault.FIELD, Fault.BUFFER, Fault.ALIGN, Fault.WINDOW
    return [
        (load, LOAD, {"rows": 0}, F),
        (load, LOAD, {"row_bytes": 0}, F),
        (load, LOAD, {"layout": Layout.TOP}, F),
        (load, WGT, {"layout": 3}, F),
        (load, LOAD | {"base": act - 2}, {"base": act - 1}, B),
        (load, LOAD | {"base": act - 3, "row_bytes": 16}, {"row_bytes": 17}, B),
        (load, LOAD | {"row_step": act - 1}, {"row_step": act}, B),
        (load, WGT | {"base": wgt - 2}, {"base": wgt - 1}, B),
        (load, LEFT | {"base": wgt - 8}, {"base": wgt - 7}, B),  # n_max is that of whole groups
        (load, LOAD, {"address": DATA + 4}, A),
        (load, LOAD | {"rows": 1, "stride": 4}, {"rows": 2}, A),
        (load, LOAD | {"address": BASE}, {"address": BASE - 8}, W),
        (load, LOAD | {"address": END - 16}, {"row_bytes": 9}, W),
        (load, LOAD | {"address": END - 16}, {"stride": 16}, W),
        (load, LOAD, {"address": (1 << 64) - 8}, W),
        (execute, EXEC, {"length": 0}, F),
        (execute, EXEC, {"repeat": 0}, F),
        (execute, EXEC, {"last": 0}, F),
        (execute, EXEC, {"last": 5}, F),
        (execute, EXEC, {"cols": 0}, F),
        (execute, EXEC, {"cols": 5}, F),
        (execute, EXEC, {"act_wide": 1, "act_base": 1}, F),
        (execute, EXEC, {"act_wide": 1, "act_stride": 1}, F),
        (execute, EXEC, {"act_wide": 1, "act_step": 1}, F),
        (execute, EXEC, {"wgt_wide": 1, "wgt_base": 1}, F),
        (execute, EXEC, {"wgt_wide": 1, "wgt_stride": 1}, F),
        (execute, EXEC, {"wgt_wide": 1, "wgt_step": 1}, F),
        (
            execute,
            OS | {"act_wide": 1, "wgt_wide": 1, "length": 32768, "act_stride": 0, "wgt_stride": 0},
            {"length": 32769},
            F,
        ),
        (execute, EXEC | {"act_base": units - 3}, {"act_base": units - 2}, B),
        (execute, WIDE | {"act_base": units - 4}, {"act_base": units - 2}, B),
        (execute, EXEC | {"repeat": 2, "act_step": units - 3}, {"act_step": units - 2}, B),
        (execute, EXEC | {"wgt_base": wgt_units - 7}, {"wgt_base": wgt_units - 6}, B),
        (execute, WIDE | {"wgt_base": wgt_units - 8}, {"wgt_base": wgt_units - 6}, B),
        (execute, EXEC | {"repeat": 2, "wgt_step": wgt_units - 7}, {"repeat": 3}, B),
        (execute, OS | {"wgt_base": wgt_units - 3}, {"wgt_base": wgt_units - 2}, B),
        (execute, EXEC | {"acc_base": 62}, {"acc_base": 63}, B),
        (execute, EXEC | {"acc_base": 126}, {"acc_base": 127}, B),
        (execute, EXEC | {"acc_base": 126}, {"acc_base": 131}, B),
        (execute, OS | {"acc_base": 61, "last": 3}, {"last": 4}, B),
        (execute, OS | {"acc_base": 57, "repeat": 2, "acc_step": 4, "last": 3}, {"last": 4}, B),
        (execute, OS | {"acc_base": 60, "last": 1, "repeat": 2}, {"acc_base": 61}, B),
        (execute, OS | {"acc_base": 57, "last": 1, "repeat": 2, "acc_step": 3}, {"acc_step": 4}, N),
        (execute, OS | {"acc_base": 58, "last": 1, "repeat": 2, "acc_step": 4}, {"acc_step": 3}, B),
        (post, ROWS, {"rows": 0}, F),
        (post, ROWS, {"cols": 0}, F),
        (post, ROWS, {"cols": 5}, F),
        (post, {"opcode": Opcode.BIAS, "cols": 4, "in_address": DATA}, {"cols": 5}, F),
        (post, {"opcode": Opcode.BIAS, "cols": 1, "in_address": DATA}, {"cols": 0}, F),
        (post, ROWS | {"limit": Limit.INT16}, {"limit": 3}, F),
        *((post, QUANT, {name: 1}, F) for name in ("add", "bias", "negate", "write", "emit")),
        *((post, QUANT, {name: 1}, F) for name in ("limit", "status")),
        (post, ROWS | {"write": 1, "dst_base": 2}, {"dst_base": 1}, F),
        (post, ROWS | {"add": 1}, {"src_base": 1}, F),
        (post, JOIN | {"src_base": 1}, {"add_stream": 0}, F),
        (post, JOIN, {"add": 0}, F),
        (post, JOIN, {"source": Source.STREAM}, F),
        (post, JOIN, {"mode": Mode.INT8}, F),
        (post, JOIN | {"write": 1, "dst_base": 2}, {"dst_base": 1}, F),
        (post, JOIN | {"wait_store": 0}, {"wait_store": 1}, Fault.TOKEN),
        *(
            (post, {"opcode": opcode, name: 7} | where, {name: 8}, F)
            for opcode, names in {
                Opcode.AMAX_SET: ("dst",), Opcode.AMAX_LOAD: ("dst",), Opcode.COLLECT: ("dst",),
                Opcode.AMAX_READ: ("src_a",), Opcode.SCALE_AMAX: ("src_a",),
                Opcode.AMAX_SELECT: ("dst", "src_a", "src_b"),
            }.items()
            for name in names
            for where in ({"in_address": DATA, "out_address": OUT},)
        ),
        (post, ROWS | {"src_base": 62}, {"src_base": 63}, B),
        (post, ROWS | {"src_base": 126}, {"src_base": 127}, B),
        (post, ROWS | {"write": 1, "dst_base": 62}, {"dst_base": 63}, B),
        (post, ROWS | {"add": 1, "dst_base": 62}, {"dst_base": 63}, B),
        (post, JOIN | {"dst_base": 63, "src_base": 30}, {"src_base": 31}, B),
        (post, JOIN | {"write": 1, "dst_base": 62}, {"dst_base": 63}, B),
        (post, STREAM | {"in_address": DATA + 4}, {"in_address": DATA + 2}, A),
        (post, STREAM | {"in_width": 3}, {"in_address": DATA + 4}, A),
        (post, STREAM, {"in_stride": 4}, A),
        (post, JOIN, {"in_stride": 4}, A),
        (post, JOIN | {"in_address": DATA + 4}, {"in_address": DATA + 2}, A),
        (post, QUANT | {"out_address": OUT + 4}, {"out_address": OUT + 6}, A),
        (post, QUANT | {"rows": 1, "out_stride": 4}, {"rows": 2}, A),
        (post, {"opcode": Opcode.SCALE_LOAD, "in_address": DATA}, {"in_address": DATA + 4}, A),
        (post, {"opcode": Opcode.STICKY_READ, "out_address": OUT}, {"out_address": OUT + 4}, A),
        (post, STREAM | {"in_address": END - 12}, {"in_address": END - 4}, W),
        (post, STREAM | {"in_address": BASE}, {"in_address": BASE - 4}, W),
        (post, JOIN | {"in_address": END - 12}, {"in_address": END - 4}, W),
        (post, QUANT | {"out_address": END - 16}, {"out_address": END - 8}, W),
        (post, QUANT | {"out_address": BASE + 0x3000}, {"out_address": BASE - 8}, W),
        (post, {"opcode": Opcode.AMAX_READ, "out_address": END - 8}, {"out_address": END}, W),
        (Kind.CONTROL, {"action": Action.STEP}, {"action": 3}, F),
    ]  # fmt: skip


@pytest.mark.parametrize("case", range(len(boundaries())))
def test_boundaries_of_fields(case):
    kind, good, change, fault = boundaries()[case]
    for fields, wanted in ((good, Fault.NONE), ({**good, **change}, fault)):
        bench = Bench(strict=False)
        builder = ProgramBuilder()
        builder.control(Action.NOP)
        builder.parts.append(encode(kind, fields))
        result = bench.run(builder)
        assert (result.fault, result.index) == (wanted, int(wanted != Fault.NONE)), fields


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.EXEC, EXEC | {"act_wide": 1}),
        (Kind.EXEC, EXEC | {"wgt_wide": 1}),
        (Kind.POST, QUANT | {"mode": Mode.INT16}),
    ],
)
def test_an_int8_accelerator_refuses_int16(kind, fields):
    window = Window(BASE, BASE + SIZE)
    data = encode(kind, fields)
    assert Checker(TINY, window, window).check(data)[0] == Fault.NONE
    int8 = TINY.with_fields(int16=False)
    assert Checker(int8, window, window).check(data)[0] == Fault.FIELD


def test_kinds_and_reserved_bits():
    window = Window(BASE, BASE + SIZE)
    for kind in range(16):
        wanted = Fault.NONE if kind == Kind.CONTROL else Fault.FIELD
        wanted = wanted if kind in tuple(Kind) else Fault.KIND
        assert Checker(TINY, window, window).check(bytes([kind]) + bytes(63))[0] == (
            Fault.NONE if kind == Kind.POST else wanted  # a POST of zeros is a NOP
        )
    for kind, table in DESCRIPTORS.items():
        good = {Kind.LOAD: LOAD, Kind.EXEC: EXEC, Kind.POST: ROWS, Kind.CONTROL: {}}[kind]
        word = int.from_bytes(encode(kind, good), "little")
        for bit in (sum(field.width for field in table), 511):
            data = (word | 1 << bit).to_bytes(64, "little")
            assert Checker(TINY, window, window).check(data)[0] == Fault.FIELD


def test_checks_come_in_order():
    """A descriptor that breaks every rule shows the first; each repaired shows the next."""
    f = {"rows": 0, "base": 1 << 20, "address": 4, "wait_exec": 1, "row_bytes": 8}
    window = Window(BASE, BASE + SIZE)
    for change, fault in (
        ({}, Fault.FIELD), ({"rows": 1}, Fault.BUFFER), ({"base": 0}, Fault.ALIGN),
        ({"address": 0}, Fault.WINDOW), ({"address": BASE}, Fault.TOKEN),
        ({"wait_exec": 0}, Fault.NONE),
    ):  # fmt: skip
        f |= change
        assert Checker(TINY, window, window).check(encode(Kind.LOAD, f))[0] == fault
    # Of a POST, what it reads comes before what it writes, alignment before windows
    f = STREAM | {"mode": Mode.INT8, "in_address": 2, "out_address": 2, "out_stride": 8}
    for change, fault in (
        ({}, Fault.ALIGN), ({"in_address": 0}, Fault.ALIGN), ({"out_address": 0}, Fault.WINDOW),
        ({"in_address": DATA}, Fault.WINDOW), ({"out_address": OUT}, Fault.NONE),
    ):  # fmt: skip
        f |= change
        assert Checker(TINY, window, window).check(encode(Kind.POST, f))[0] == fault


CHANNELS = [
    (Kind.LOAD, LOAD, "signal_exec", Kind.EXEC, EXEC, "wait_load"),
    (Kind.EXEC, EXEC, "signal_load", Kind.LOAD, LOAD, "wait_exec"),
    (Kind.EXEC, EXEC, "signal_post", Kind.POST, ROWS, "wait_exec"),
    (Kind.POST, ROWS, "signal_exec", Kind.EXEC, EXEC, "wait_post"),
    (Kind.POST, ROWS, "signal_load", Kind.LOAD, LOAD, "wait_store"),
    (Kind.POST, ROWS, "signal_stream", Kind.POST, STREAM, "wait_store"),
]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda c: f"{c[2]}-{c[5]}")
def test_tokens(channel):
    giver, gives, signal, taker, takes, wait = channel
    give, take = encode(giver, gives | {signal: 1}), encode(taker, takes | {wait: 1})
    for parts, fault, index in (
        ([take], Fault.TOKEN, 0),
        ([give, take], Fault.NONE, 0),
        ([give, take, take], Fault.TOKEN, 2),
        ([give] * TOKENS_MAX + [take, give], Fault.NONE, 0),
        ([give] * (TOKENS_MAX + 1), Fault.TOKEN, TOKENS_MAX),
    ):
        bench = Bench(strict=False)
        builder = ProgramBuilder()
        builder.parts = list(parts)
        result = bench.run(builder)
        assert (result.fault, result.index) == (fault, index)


def test_a_descriptor_waits_before_it_signals():
    """At 255 tokens a POST that takes one may give one; on its own token it cannot wait."""
    both = encode(Kind.POST, STREAM | {"wait_store": 1, "signal_stream": 1})
    give = encode(Kind.POST, {"signal_stream": 1})
    for parts, fault in (([both], Fault.TOKEN), ([give] * TOKENS_MAX + [both], Fault.NONE)):
        bench = Bench(strict=False)
        builder = ProgramBuilder()
        builder.parts = list(parts)
        assert bench.run(builder).fault == fault


def test_wait_store_only_where_memory_is_read():
    for fields, fault in ((ROWS, Fault.FIELD), ({}, Fault.FIELD), (STREAM, Fault.NONE)):
        bench = Bench(strict=False)
        builder = ProgramBuilder()
        builder.post(Opcode.NOP, signal_stream=1)
        builder.parts.append(encode(Kind.POST, fields | {"wait_store": 1}))
        assert bench.run(builder).fault == fault


def test_programs_as_a_whole():
    bench = Bench()
    builder = ProgramBuilder()
    builder.control(Action.NOP)
    builder.control(Action.NOP)
    result = bench.run(builder, end=False)
    assert (result.fault, result.index, result.runs) == (Fault.END, 2, 0)
    run = bench.machine.run
    for address, length, fault in (
        (PROGRAM + 1, 0, Fault.END),
        (PROGRAM + 1, PROGRAM_MAX + 1, Fault.END),
        (PROGRAM + 32, 1, Fault.ALIGN),
        (1 + (1 << 39), 1, Fault.ALIGN),
        (BASE - 64, 2, Fault.WINDOW),
        (END - 64, 2, Fault.WINDOW),
    ):
        result = run(address, length)
        assert (result.fault, result.index) == (fault, 0)
        assert result.counters.descriptors == 0
    builder.control(Action.END)
    assert bench.done(builder).fault == Fault.NONE  # a new start works
    bench.memory.write(PROGRAM, bytes(64))
    assert run(PROGRAM, 3).fault == Fault.KIND


def test_a_fault_keeps_what_ran_before():
    bench = Bench()
    builder = ProgramBuilder()
    builder.control(Action.STEP)
    builder.post(Opcode.AMAX_SET, dst=1, imm=5)
    builder.post(Opcode.AMAX_READ, src_a=1, out_address=OUT)
    builder.load()
    result = bench.run(builder, runs=3)
    assert (result.fault, result.index, result.step, result.runs) == (Fault.FIELD, 3, 1, 0)
    assert bench.get(OUT, "<i8", 1)[0] == 5
    assert "FIELD at 3, runs 0" in str(result)


def test_memory_outside_the_image():
    memory = Memory(BASE, np.zeros(64, np.uint8))
    machine = SystemMachine(TINY, memory, (0, 1 << 40), (0, 1 << 40))
    with pytest.raises(MachineError, match=r"^memory 0x40000\.\.0x40080: outside the image 0x40"):
        machine.run(BASE, 2)


# Proofs of order ---------------------------------------------------------------------------------


def tokens_of(program: bytes) -> list[tuple[int, str]]:
    """All waits of a program: (descriptor, field)."""
    waits = []
    for index in range(len(program) // DESCRIPTOR_BYTES):
        kind, f = decode(program[index * DESCRIPTOR_BYTES : (index + 1) * DESCRIPTOR_BYTES])
        waits += [(index, name) for name in TAKES[kind] if f[name]]
    return waits


def without(program: bytes, index: int, *names: str) -> bytes:
    """The program with fields of a descriptor cleared."""
    start = index * DESCRIPTOR_BYTES
    kind, f = decode(program[start : start + DESCRIPTOR_BYTES])
    data = encode(kind, f | dict.fromkeys(names, 0))
    return program[:start] + data + program[start + DESCRIPTOR_BYTES :]


@pytest.mark.parametrize("name", ["tiny", "4x16s4-512"])
def test_every_token_of_the_sample_is_needed(name):
    """Without any one of its waits the program is refused."""
    s = sample(CONFIGS[name], 1)
    waits = tokens_of(s.program)
    assert len(waits) == 11
    for index, field in waits:
        memory = s.copy()
        memory.write(s.address, without(s.program, index, field))
        machine = SystemMachine(CONFIGS[name], memory, s.read_window, s.write_window)
        with pytest.raises(RaceError, match=r"descriptor \d+ \(.*descriptor \d+ .*no token"):
            machine.run(s.address, s.length)
        machine = SystemMachine(CONFIGS[name], memory, s.read_window, s.write_window, strict=False)
        assert machine.run(s.address, s.length).fault == Fault.NONE


def ordered(*parts: tuple[Kind, dict[str, int]]) -> None:
    """Runs a program in which only order matters: everything counts as written before."""
    bench = Bench()
    defined = bench.machine._defined
    for marks in (defined.act, defined.wgt, defined.acc, defined.scales):
        marks[:] = True
    builder = ProgramBuilder()
    builder.parts = [encode(kind, fields) for kind, fields in parts]
    bench.done(builder)


def race(message: str, *parts: tuple[Kind, dict[str, int]]) -> None:
    """The program is refused with that message."""
    with pytest.raises(RaceError, match=message):
        ordered(*parts)


def test_races():
    load, execute, post = Kind.LOAD, Kind.EXEC, Kind.POST
    race(
        r"^descriptor 1 \(EXEC\) reads byte of the activation buffer 0, which descriptor 0 \(LOAD\)"
        " writes: no token orders them$",
        (load, LOAD), (execute, EXEC),
    )  # fmt: skip
    race(
        r"1 \(EXEC\) reads byte of the stationary banks 8, which descriptor 0",
        (load, WGT | {"base": 1}), (execute, EXEC),
    )  # fmt: skip
    race(
        r"1 \(LOAD\) writes byte of the activation buffer 8, which descriptor 0 \(EXEC\) reads",
        (execute, EXEC), (load, LOAD | {"base": 1}),
    )  # fmt: skip
    race(
        r"1 \(POST\) reads accumulator row 1, which descriptor 0 \(EXEC\) writes",
        (execute, EXEC), (post, ROWS | {"src_base": 1}),
    )  # fmt: skip
    race(
        r"1 \(EXEC\) writes accumulator row 1, which descriptor 0 \(POST\) reads",
        (post, ROWS), (execute, EXEC | {"acc_base": 1}),
    )  # fmt: skip
    race(
        rf"1 \(POST\) reads memory {OUT:#x}, which descriptor 0 \(POST\) writes",
        (post, ROWS | {"emit": 1, "out_address": OUT, "out_stride": 8}),
        (post, STREAM | {"in_address": OUT}),
    )  # fmt: skip
    race(
        rf"1 \(LOAD\) reads memory {OUT + 8:#x}, which descriptor 0 \(POST\) writes",
        (post, ROWS | {"emit": 1, "out_address": OUT, "out_stride": 8}),
        (load, LOAD | {"address": OUT + 8}),
    )  # fmt: skip
    race(
        rf"1 \(POST\) writes memory {DATA:#x}, which descriptor 0 \(LOAD\) reads",
        (load, LOAD), (post, ROWS | {"emit": 1, "out_address": DATA, "out_stride": 8}),
    )  # fmt: skip
    race(
        r"0 \(POST\) writes memory 0x40040, near the program",
        (post, {"opcode": Opcode.STICKY_READ, "out_address": PROGRAM + 64}),
    )  # fmt: skip


def test_tokens_order_just_what_they_say():
    load, execute, post = Kind.LOAD, Kind.EXEC, Kind.POST
    store = ROWS | {"emit": 1, "out_address": OUT, "out_stride": 8}
    late = {"address": OUT, "base": 100}
    # That a POST is done does not say that its bytes are in memory
    race(
        r"2 \(LOAD\) reads memory",
        (post, store | {"signal_exec": 1}),
        (execute, EXEC | {"wait_post": 1, "signal_load": 1}),
        (load, LOAD | late | {"wait_exec": 1}),
    )
    ordered((post, store | {"signal_load": 1}), (load, LOAD | late | {"wait_store": 1}))
    # Later POSTs' tokens hold for earlier stores, their own bytes or not
    for last in (store | {"out_address": OUT + 64}, {}):
        last = last | {"signal_load": 1}
        ordered((post, store), (post, last), (load, LOAD | late | {"wait_store": 1}))
    # The reading of memory runs ahead of wait_exec, and of the POSTs before
    race(
        r"2 \(POST\) reads memory",
        (post, store | {"signal_exec": 1}),
        (execute, EXEC | {"acc_base": 9, "wait_post": 1, "signal_post": 1}),
        (post, STREAM | {"in_address": OUT, "wait_exec": 1}),
    )
    ordered(
        (post, store | {"signal_stream": 1}), (post, STREAM | {"in_address": OUT, "wait_store": 1})
    )
    # A POST that stores nothing gives its memory tokens without being done itself
    first, then = EXEC | {"signal_post": 1}, {"wait_exec": 1, "signal_load": 1}
    last = load, LOAD | {"wait_store": 1}
    race(r"2 \(LOAD\) writes byte of the act", (execute, first), (post, ROWS | then), last)
    ordered((execute, first), (post, store | then), last)
    # Tokens carry what their giver knows; the k-th wait takes the k-th token
    ordered(
        (load, LOAD), (load, LOAD | {"base": 100, "signal_exec": 1}),
        (execute, EXEC | {"wait_load": 1}),
    )  # fmt: skip
    race(
        r"3 \(EXEC\) reads byte of the activation buffer 0, which descriptor 1",
        (load, LOAD | {"base": 100, "signal_exec": 1}), (load, LOAD | {"signal_exec": 1}),
        (post, {}), (execute, EXEC | {"wait_load": 1}),
    )  # fmt: skip
    # What an EXEC tells the LOADs, it tells when it has read, not when it has summed
    race(
        r"3 \(POST\) reads accumulator row 0, which descriptor 1 \(EXEC\)",
        (execute, EXEC | {"acc_base": 9, "signal_post": 1}), (execute, EXEC),
        (post, {"wait_exec": 1}), (post, ROWS),
    )  # fmt: skip


def test_a_post_that_reads_what_it_writes():
    """In place is fine, row by row; reading what an earlier row has overwritten is not."""
    update = STREAM | {"emit": 1, "rows": 3, "out_stride": 8, "out_address": DATA}
    ordered((Kind.POST, update))
    ordered((Kind.POST, update | {"out_address": DATA - 8}))
    race(
        rf"^descriptor 0 \(POST\) reads row 1 from memory .*, at {DATA + 8:#x}$",
        (Kind.POST, update | {"out_address": DATA + 8}),
    )
    ordered((Kind.POST, update | {"out_address": DATA + 24}))
    race(r"reads row 2 from memory", (Kind.POST, update | {"out_width": 1, "out_stride": 16}))


# Undefined values --------------------------------------------------------------------------------


def undefined(
    message: str, *parts: tuple[Kind, dict[str, int]], config: AcceleratorConfig = TINY
) -> None:
    bench = Bench(config)
    builder = ProgramBuilder()
    builder.parts = [encode(kind, fields) for kind, fields in parts]
    with pytest.raises(UndefinedError, match=f"^descriptor {len(parts) - 1} .*{message}"):
        bench.run(builder)


def test_registers_that_were_never_written():
    post, scale = Kind.POST, {"opcode": Opcode.SCALE_SET, "dst": 3}
    undefined("uses scale 3, which is", (post, {"opcode": Opcode.SCALE_MUL, "src_a": 3}))
    undefined(
        "uses scale 4", (post, scale), (post, {"opcode": Opcode.SCALE_DIV, "src_a": 3, "src_b": 4})
    )
    undefined("uses scale 9", (post, {"opcode": Opcode.SCALE_READ, "src_a": 9, "out_address": OUT}))
    undefined("uses scale 2", (post, STREAM | {"mode": Mode.ACC, "src_a": 2}))
    undefined("uses maximum 5", (post, {"opcode": Opcode.COLLECT, "dst": 5}))
    undefined("uses maximum 5", (post, {"opcode": Opcode.SCALE_AMAX, "src_a": 5}))
    undefined(
        "uses maximum 6",
        (post, {"opcode": Opcode.AMAX_SET, "dst": 5}),
        (post, {"opcode": Opcode.AMAX_SELECT, "dst": 5, "src_a": 5, "src_b": 6}),
    )
    undefined(
        "uses bias column 2",
        (post, {"opcode": Opcode.BIAS, "cols": 2, "in_address": DATA}),
        (post, STREAM | {"bias": 1}),
    )


def test_sums_of_what_was_never_loaded():
    """Bytes past the end of a row are undefined, and so are their sums, but only those."""
    load, execute, post = Kind.LOAD, Kind.EXEC, Kind.POST
    act = LOAD | {"row_bytes": 3}
    wgt = WGT | {"rows": 4, "row_bytes": 2, "signal_exec": 1}
    done = EXEC | {"wait_load": 1, "signal_post": 1}
    rows = ROWS | {"cols": 2, "wait_exec": 1}
    for fields in (rows, rows | {"source": Source.STREAM, "add": 1, "in_address": DATA}):
        undefined(
            "uses accumulator row 0, column 0",
            (load, act), (load, wgt), (execute, done), (post, fields),
        )  # fmt: skip
    undefined(
        "uses accumulator row 0, column 2",
        (load, act), (load, wgt), (execute, done | {"last": 3}), (post, rows | {"cols": 3}),
    )  # fmt: skip
    undefined(
        "uses accumulator row 2, column 0",
        (load, act), (load, wgt), (execute, done | {"last": 3}), (post, rows | {"rows": 3}),
    )  # fmt: skip
    undefined(
        "uses accumulator row 0, column 0",
        (load, act), (load, wgt), (execute, done | {"last": 3, "accumulate": 1}), (post, rows),
    )  # fmt: skip
    fine_parts = [(load, act), (load, wgt), (execute, done | {"last": 3}), (post, rows)]
    bench = Bench()
    builder = ProgramBuilder()
    builder.parts = [encode(kind, fields) for kind, fields in fine_parts]
    bench.done(builder)
    # A tile row that no operand meets is not needed either, from both edges and for OS
    for edge, layout in ((Edge.TOP, Layout.TOP), (Edge.LEFT, Layout.LEFT)):
        bench = Bench()
        builder = ProgramBuilder()
        lines = {"rows": 3, "row_bytes": 4} if edge == Edge.TOP else {"rows": 4, "row_bytes": 3}
        builder.load(**act)
        builder.load(**wgt | lines | {"layout": layout})
        builder.exec(**done | {"last": 3, "edge": edge})
        builder.post(Opcode.ROWS, rows=2, cols=4, wait_exec=1)
        bench.done(builder)
    bench = Bench()
    builder = ProgramBuilder()
    builder.load(**act)
    builder.load(**wgt | {"rows": 2})
    builder.exec(**done | {"last": 3, "dataflow": Dataflow.OS})
    builder.post(Opcode.ROWS, rows=3, cols=2, wait_exec=1)
    bench.done(builder)
