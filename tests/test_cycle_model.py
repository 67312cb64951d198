"""The cycle model and the Verilog: equal where docs/cycle-model.md claims it, else within 1%."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from random_programs import BASE, HALF, SIZE
from simulated import CONFIGS
from system_rtl import Case, rtl_run, system_simulator
from systolora.config import AcceleratorConfig, preset
from systolora.contract import (
    Action,
    Buffer,
    Dataflow,
    Kind,
    Layout,
    Mode,
    Opcode,
    Quantize,
    Source,
)
from systolora_sim.array_model import ArrayModel, Tile
from systolora_sim.bench.cases import random_state
from systolora_sim.bench.sample import ProgramBuilder
from systolora_sim.bench.script import MemoryModel
from systolora_sim.cycle_model import Timing, TimingError, time_program
from systolora_sim.descriptor import decode
from systolora_sim.lowering import compile_training
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, run_on_rtl
from systolora_sim.runner import BUILD_DIR

SEED = 7300
#: Their cycles depend on data.
SCALE_UNIT = (Opcode.SCALE_MUL, Opcode.SCALE_DIV, Opcode.SCALE_AMAX)
LATENCIES = (1, 40, 300)


def model(case: Case, latency: int) -> Timing:
    program = np.frombuffer(b"".join(case.descriptors), np.uint8).reshape(-1, 64)
    return time_program(case.config, program, memory_latency=latency)


def check_equal(name: str, case: Case, latency: int) -> None:
    """Cycles and every counter."""
    run = rtl_run(system_simulator(name), case, MemoryModel(latency, latency))
    timing = model(case, latency)
    assert timing.cycles == run.cycles
    assert timing.counters == run.counters


def ended(config: AcceleratorConfig, builder: ProgramBuilder) -> Case:
    """The program, with END, on a memory of zeros."""
    builder.control(Action.END)
    image = np.zeros(SIZE, np.uint8)
    blank = Case(config, image, BASE, 1, (BASE, BASE + SIZE), (BASE + HALF, BASE + SIZE))
    return blank.with_program(builder.parts)


def passes(fields: dict[str, int]) -> int:
    """Of an EXEC."""
    return fields["repeat"] * (1 + fields["act_wide"]) * (1 + fields["wgt_wide"])


def claimed(name: str, seed: int) -> Case | None:
    """A random program without Scale operations; None if passes of one beat follow each other."""
    case = Case.random(name, seed)
    kept = []
    for part in case.descriptors:
        kind, fields = decode(part)
        if kind == Kind.POST and fields["opcode"] in SCALE_UNIT:
            continue
        if kind == Kind.EXEC and fields["length"] == 1 and passes(fields) > 1:
            return None
        kept.append(part)
    return case.with_program(kept)


def check_programs(name: str, latency: int, seeds: range) -> None:
    cases = [(seed, claimed(name, seed)) for seed in seeds]
    compared = 0
    for seed, case in cases:
        if case is not None:
            print(f"seed {seed}")
            check_equal(name, case, latency)
            compared += 1
    assert compared > len(seeds) // 4


@pytest.mark.parametrize("latency", LATENCIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_programs(name, latency):
    check_programs(name, latency, range(SEED, SEED + 12))


@pytest.mark.slow
@pytest.mark.parametrize("latency", (1, 2, 3, 7, 40, 64, 150, 300))
@pytest.mark.parametrize("name", CONFIGS)
def test_many_random_programs(name, latency):
    check_programs(name, latency, range(SEED + 1000, SEED + 1060))


def tile_case(name: str, seed: int, count: int) -> Case:
    """Random EXECs on buffers that are there: no token waits but the first, nothing is read."""
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    beat = config.beat_bytes
    builder.load(
        buffer=Buffer.WGT, layout=Layout.PLAIN, rows=1, row_bytes=beat, address=BASE + 0x8000
    )
    builder.load(
        buffer=Buffer.ACT, rows=1, row_bytes=beat, address=BASE + 0x8000, signal_exec=1
    )  # fmt: skip
    for number in range(count):
        is_os = bool(rng.integers(0, 2))
        length = int(rng.integers(1, 2 * config.rows if is_os else config.bank_depth))
        builder.exec(
            wait_load=int(number == 0),
            dataflow=Dataflow.OS if is_os else Dataflow.WS,
            edge=int(rng.integers(0, 2)),
            length=length,
            repeat=int(rng.integers(1, 5)),
            last=int(rng.integers(1, config.rows + 1)),
            cols=config.cols,
            act_wide=int(config.int16 and rng.integers(0, 2)),
            wgt_wide=int(config.int16 and rng.integers(0, 2)),
            acc_base=int(rng.integers(0, 4)) * config.bank_depth,
            fence=int(rng.random() < 0.15),
        )
    return ended(config, builder)


@pytest.mark.parametrize("name", CONFIGS)
def test_tile_sequences(name):
    """Both dataflows, edges, planes, banks and fences, back to back."""
    for seed in range(SEED, SEED + 3):
        print(f"seed {seed}")
        check_equal(name, tile_case(name, seed, 50), 5)


def stream_case(name: str, rows: int, source: Source) -> Case:
    """Two POSTs of many rows: memory is the limit, in one direction or both."""
    config = CONFIGS[name]
    builder = ProgramBuilder()
    stride = max(config.beat_bytes, 4 * config.cols)
    for number in range(2):
        builder.post(
            Opcode.ROWS,
            rows=rows,
            cols=config.cols,
            mode=Mode.INT8,
            source=source,
            in_width=2,
            in_address=BASE + 0x4000,
            in_stride=stride,
            out_address=BASE + HALF + 0x4000 * number,
            out_stride=config.beat_bytes,
        )
    return ended(config, builder)


@pytest.mark.parametrize("source", list(Source))
@pytest.mark.parametrize("name", CONFIGS)
def test_rows_at_the_rate_of_memory(name, source):
    rows = 60 if source == Source.STREAM else CONFIGS[name].bank_depth
    for latency in LATENCIES:
        check_equal(name, stream_case(name, rows, source), latency)


def mixed_case(name: str, seed: int) -> Case:
    """LOADs and POSTs that read, without tokens: both readers and the program want the bus."""
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    bus = config.beat_bytes
    for _ in range(10):
        if rng.integers(0, 2):
            rows = int(rng.integers(1, 12))
            row_bytes = min(int(rng.integers(1, 30)) * bus, config.act_bytes // 2 // rows)
            builder.load(
                buffer=Buffer.ACT,
                rows=rows,
                row_bytes=row_bytes,
                row_step=-(-row_bytes // config.act_entry_bytes),
                address=BASE + 0x4000 + bus * int(rng.integers(0, 50)),
                stride=(row_bytes // bus + 2) * bus,
            )
        else:
            builder.post(
                Opcode.ROWS,
                rows=int(rng.integers(1, config.bank_depth + 1)),
                cols=config.cols,
                source=Source.STREAM,
                write=1,
                dst_base=int(rng.integers(0, 4)) * config.bank_depth,
                in_width=int(rng.integers(0, 4)),
                in_address=BASE + 0x6000,
                in_stride=2 * max(bus, 4 * config.cols),
            )
    return ended(config, builder)


@pytest.mark.parametrize("name", CONFIGS)
def test_readers_on_one_bus(name):
    for seed in range(SEED, SEED + 4):
        print(f"seed {seed}")
        check_equal(name, mixed_case(name, seed), LATENCIES[seed % 3])


def rows_case(name: str, seed: int) -> Case:
    """Groups of ROWS that wait behind a long EXEC, so that those of a group are back to back."""
    config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    beat = config.beat_bytes
    builder.load(
        buffer=Buffer.WGT, layout=Layout.PLAIN, rows=1, row_bytes=beat, address=BASE + 0x8000
    )
    builder.load(
        buffer=Buffer.ACT, rows=1, row_bytes=beat, address=BASE + 0x8000, signal_exec=1
    )  # fmt: skip
    for group in range(4):
        builder.exec(
            wait_load=int(group == 0),
            dataflow=Dataflow.OS,
            length=400,
            repeat=1,
            last=config.rows,
            cols=config.cols,
            acc_base=0,
            signal_post=1,
        )
        for number in range(12):
            count = int(rng.integers(1, 1 + min(16, config.bank_depth)))
            src, dst = (
                int(rng.integers(0, 4)) * config.bank_depth
                + int(rng.integers(0, config.bank_depth - count + 1))
                for _ in range(2)
            )
            if abs(src - dst) < count:
                dst = src
            buffer = rng.random() < 0.85
            fields = {"source": Source.BUFFER if buffer else Source.STREAM, "src_base": src}
            fields |= {"mode": int(rng.integers(0, 3)), "amax": int(rng.integers(0, 2))}
            if fields["mode"] != Mode.INT8:
                fields |= {"write": int(rng.integers(0, 2)), "dst_base": dst}
                fields |= {"add": int(rng.integers(0, 2)), "emit": int(rng.integers(0, 2))}
                fields["add_stream"] = int(buffer and fields["add"] and rng.random() < 0.3)
                if config.fused_quantize and rng.integers(0, 2):
                    fields |= {"quantize": Quantize.INT8, "emit": 0}
            if config.fused_quantize:
                fields["stochastic"] = int(rng.integers(0, 2))
            if not buffer:
                fields["src_base"] = 0
            if not (fields.get("add") and not fields["add_stream"]) and not fields.get("write"):
                fields["dst_base"] = 0
            if not buffer or fields.get("add_stream"):
                fields |= {"in_width": 2, "in_address": BASE + 0x6000}
                fields["in_stride"] = max(beat, 4 * config.cols)
            if fields["mode"] == Mode.INT8 or fields["emit"] or fields.get("quantize"):
                fields |= {"out_address": BASE + HALF + 0x2000, "out_stride": beat}
            builder.post(
                Opcode.ROWS, wait_exec=int(number == 0), rows=count, cols=config.cols, **fields
            )
    return ended(config, builder)


@pytest.mark.parametrize("name", CONFIGS)
def test_row_operations_back_to_back(name):
    """Every order of banks, reads, writes and maxima that makes rows wait for older ones."""
    for seed in range(SEED, SEED + 8):
        print(f"seed {seed}")
        check_equal(name, rows_case(name, seed), LATENCIES[seed % 3])


# Whole training steps -----------------------------------------------------------------------------


def check_step(config: AcceleratorConfig, shapes, kind: str, latency: int, **fields) -> None:
    state = random_state(SEED, shapes, kind, **fields)
    program = compile_training(state, config, base=IMAGE_BASE)
    options = RtlOptions(memory_latency=latency)
    run = run_on_rtl(program, 1, options, Path(BUILD_DIR), progress=False)
    timing = time_program(config, program.program, memory_latency=latency)
    error = timing.cycles / run.cycles - 1
    print(f"{timing.cycles} cycles, {run.cycles} in RTL: {error:+.3%}")
    assert abs(error) < 0.01
    for name in ("ARRAY_BUSY", "BYTES_READ", "BYTES_WRITTEN", "MACS", "DESCRIPTORS"):
        assert timing.counters[name] == run.counters[name], name


STEPS = {
    "sgd": ([(60, 50, 40, 4)], "sgd", {}),
    "lion": ([(40, 70, 30, 3)], "lion", {}),
    "layers": ([(20, 40, 30, 2), (33, 21, 50, 5)], "momentum", {}),
}


#: A wider bus reads whole words, past the window of a program that ends inside one.
STEP_CONFIGS = [name for name, config in CONFIGS.items() if config.bus_bits <= 512]


@pytest.mark.parametrize("case", STEPS)
@pytest.mark.parametrize("name", STEP_CONFIGS)
def test_steps(name, case):
    shapes, kind, fields = STEPS[case]
    check_step(CONFIGS[name], shapes, kind, 40, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("latency", (1, 40, 200))
@pytest.mark.parametrize(
    ("channels", "bus_bits"), [(1, 64), (1, 128), (1, 256), (1, 512), (2, 128), (4, 64)]
)
def test_steps_of_the_default_preset(channels, bus_bits, latency):
    config = preset("default").with_fields(bus_bits=bus_bits, channels=channels)
    check_step(config, [(77, 200, 150, 4)], "sgd", latency)
    wide = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", "H", "Y", "dH", "dX"), 16)
    check_step(config, [(77, 200, 150, 4)], "momentum", latency, bits=wide)


# The array alone: docs/core.md, Rate --------------------------------------------------------------


def spacing(config: AcceleratorConfig, tiles: list[Tile]) -> list[int]:
    """Cycles from the end of a tile to the end of the next one, operands being there."""
    array = ArrayModel(config)
    sent, ends = 0, []
    for tile in tiles:
        sent = array.send(tile, sent + 1)
        ends.append(array.start(tile, array.enter(tile, sent)).last)
    return np.diff(ends).tolist()


@pytest.mark.parametrize("name", ["default", "paper"])
@pytest.mark.parametrize("length", [5, 16, 77, 128])
def test_rates(name, length):
    config = preset(name)
    rows, cols, load = config.rows, config.cols, config.top_load
    ws, os = Tile(False, length), Tile(True, length)
    assert spacing(config, [ws] * 6)[2:] == [max(load, length)] * 3
    assert spacing(config, [os] * 6)[2:] == [max(length, rows)] * 3
    fenced = replace(ws, fence=True), replace(os, fence=True)
    assert spacing(config, [fenced[0]] * 6)[2:] == [load + length + rows + cols + 4] * 3
    assert spacing(config, [fenced[1]] * 6)[2:] == [length + 2 * rows + cols + 5] * 3


def test_drains_beside_sums():
    """A shallow OS tile in a bank of its own costs its depth and the load that `b` cannot hide."""
    config = preset("paper")
    long, shallow = Tile(False, 77), Tile(True, 4, bank=1)
    gaps = spacing(config, [long, shallow] * 4)[2:6]
    assert [gaps[0] + gaps[1], gaps[2] + gaps[3]] == [77 + 4 + config.top_load - 1] * 2


# What the timing says -----------------------------------------------------------------------------


def test_times_of_descriptors():
    """In order, in the run, and where the descriptor's kind has them."""
    case = Case.random("tiny", SEED)
    timing = model(case, 40)
    kinds = [decode(part)[0] for part in case.descriptors]
    for index, kind in enumerate(kinds):
        start, end = timing.start[index], timing.end[index]
        first, last = timing.first_beat[index], timing.last_beat[index]
        if kind == Kind.CONTROL:
            assert start == end == -1
            continue
        assert 0 < start < end < timing.cycles
        assert (first > 0) == (kind == Kind.EXEC)
        if kind == Kind.EXEC:
            assert start < first <= last < end
        read, written = timing.read[index], timing.write[index]
        assert (read[0] > 0) == (kind == Kind.LOAD or bool(read[1] > 0))
        assert kind == Kind.POST or written[0] == -1
        assert (timing.wait[index] != "") == (timing.wait_cycles[index] > 0)
    assert {"loads", "array"} <= set(timing.wait)
    assert (timing.write[:, 0] > 0).any() and (timing.read[:, 0] > 0).any()


def test_progress():
    seen: list[int] = []
    case = Case.random("tiny", SEED)
    program = np.frombuffer(b"".join(case.descriptors), np.uint8).reshape(-1, 64)
    time_program(case.config, program, progress=seen.append)
    assert seen == sorted(seen) and seen


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "program: empty"),
        (["control NOP"], "no CONTROL END"),
        (["exec wait_load"], "it hangs in cycle"),
    ],
)
def test_programs_that_never_end(parts, message):
    builder = ProgramBuilder()
    for part in parts:
        if part == "control NOP":
            builder.control(Action.NOP)
        else:
            builder.exec(wait_load=1, length=1, repeat=1, last=1, cols=1)
            builder.control(Action.END)
    program = np.frombuffer(builder.program, np.uint8).reshape(-1, 64)
    with pytest.raises(TimingError, match=message):
        time_program(preset("tiny"), program)


def test_wrong_arguments():
    builder = ProgramBuilder()
    builder.control(Action.END)
    program = np.frombuffer(builder.program, np.uint8).reshape(-1, 64)
    assert time_program(preset("tiny"), program).counters["DESCRIPTORS"] == 1
    with pytest.raises(TimingError, match=r"memory latency = 0: must be at least 1"):
        time_program(preset("tiny"), program, memory_latency=0)
    with pytest.raises(TimingError, match=r"program: uint8 \(1, 32\): must be uint8 \[n, 64\]"):
        time_program(preset("tiny"), program[:, :32])
