"""The harness of the whole accelerator, tested with a small design that has its ports."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from harness_toy import BLOCK, HarnessToy, Plant
from systolora.config import preset
from systolora.contract import DEVICE_ID, Fault
from systolora.emit import emit_component
from systolora.render import render_header
from systolora_sim.bench import script, system_build
from systolora_sim.bench.build import BenchError
from systolora_sim.bench.script import BusError, MemoryModel, Trace, run_script
from systolora_sim.bench.system import SystemJob, run_system, start_commands
from systolora_sim.bench.system_build import TOP, build_system, trace_format

SEED = 20261
CACHE = Path("build") / "sim"
DRIVER = Path(__file__).parent.parent / "sw" / "systolora.c"
CONFIG = preset("tiny")
BASE = 0xA5_0000_0000
SIZE = 1 << 16
HALF = SIZE // 2
READ, WRITE = (BASE, BASE + HALF), (BASE + HALF, BASE + SIZE)


@pytest.fixture(scope="module")
def verilog(tmp_path_factory):
    # The name is a part of the build's digest.
    file = tmp_path_factory.mktemp("toy") / f"{TOP}.v"
    file.write_text(emit_component(HarnessToy(CONFIG), TOP).verilog, encoding="utf-8")
    (file.parent / "systolora_regs.h").write_text(render_header(CONFIG), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def simulator(verilog):
    return build_system(verilog, CACHE)


@pytest.fixture(scope="module")
def driven(verilog):
    return build_system(verilog, CACHE, driver=DRIVER)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(SEED).integers(0, 256, SIZE, dtype=np.uint8)


def _job(image, blocks=40, plant=Plant.NOTHING, **fields):
    values = {
        "image": image, "base": BASE, "program_address": BASE, "length": blocks,
        "read_window": READ, "write_window": WRITE, "word_base": plant,
    }  # fmt: skip
    return SystemJob(**(values | fields))


def _expected(image, blocks):
    after = image.copy()
    after[HALF : HALF + BLOCK * blocks] = ~image[: BLOCK * blocks]
    return after


MEMORIES = {
    "plain": MemoryModel(),
    "fast": MemoryModel(read_latency=1, write_latency=1),
    "slow": MemoryModel(read_latency=200, write_latency=150, write_late=True),
    "narrow": MemoryModel(read_outstanding=1, write_outstanding=1),
    **{f"stalls{seed}": MemoryModel(stall_seed=seed) for seed in range(4)},
    "late": MemoryModel(stall_seed=9, write_late=True, read_outstanding=2, write_outstanding=2),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_run(simulator, image, name):
    result = run_system(simulator, CONFIG, _job(image, memory=MEMORIES[name]))
    assert result.fault is Fault.NONE
    np.testing.assert_array_equal(result.image, _expected(image, 40))
    beats = 40 * BLOCK // CONFIG.beat_bytes
    assert result.bus["read_beats"] == result.bus["write_beats"] == beats
    assert result.bus["written_bytes"] == result.counters["BYTES_READ"] == 40 * BLOCK
    # CYCLES counts from the start to the end, without the accesses around them.
    assert 0 <= result.cycles - result.counters["CYCLES"] <= 8
    written = result.last_writes > 0
    assert written.sum() == 40 and written[HALF // BLOCK :][:40].all()
    assert (np.diff(result.last_writes[written].astype(np.int64)) > 0).all()


@pytest.mark.parametrize("stall_seed", [None, 8])
def test_driver(driven, image, stall_seed):
    """The C driver instead of Python, to a good and to a bad end."""
    memory = MemoryModel(stall_seed=stall_seed)
    result = run_system(driven, CONFIG, _job(image, driver=True, memory=memory))
    np.testing.assert_array_equal(result.image, _expected(image, 40))
    assert result.fault is Fault.NONE
    assert 0 <= result.cycles - result.counters["CYCLES"] <= 8
    job = _job(image, driver=True, memory=memory, program_address=BASE + 8)
    assert run_system(driven, CONFIG, job).fault is Fault.NONE  # 8 bytes are a word of this bus
    job = _job(image, driver=True, memory=memory, program_address=BASE + 4)
    assert run_system(driven, CONFIG, job).fault is Fault.ALIGN


def test_driver_fails(driven, image):
    """What ends a run early ends it through the driver too; what the driver refuses is told."""
    with pytest.raises(BenchError, match=r"^violation: cycle \d+: m_axi: awaddr"):
        run_system(driven, CONFIG, _job(image, driver=True, plant=Plant.FIXED))
    with pytest.raises(BenchError, match=r"^watchdog: cycle \d+: no transfer on m_axi"):
        run_system(driven, CONFIG, _job(image, driver=True, plant=Plant.HANG, watchdog=900))
    with pytest.raises(BenchError, match="the driver reports another end than the registers"):
        run_system(driven, CONFIG, _job(image, driver=True, program_address=1 << 50))


def test_latency_and_bandwidth(simulator, image):
    """A latency is what it says, and beats come one a cycle: long rows in few bursts."""
    cycles = {
        latency: run_system(
            simulator, CONFIG, _job(image, 1, memory=MemoryModel(latency, write_latency=7))
        ).cycles
        for latency in (1, 2, 50)
    }
    assert cycles[2] - cycles[1] == 1 and cycles[50] - cycles[1] == 49
    memory = MemoryModel(read_latency=10, write_latency=10)
    longer = [run_system(simulator, CONFIG, _job(image, n, memory=memory)).cycles for n in (50, 60)]
    assert longer[1] - longer[0] == 10 * BLOCK // CONFIG.beat_bytes


def test_same_seed_same_run(simulator, image):
    runs = [
        run_system(simulator, CONFIG, _job(image, memory=MemoryModel(stall_seed=seed))).cycles
        for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1] != runs[2]


PLANTS = {
    Plant.UNALIGNED: r"araddr = 0xa500000e01: must be a multiple of the bus's 8 bytes",
    Plant.LONG: r"araddr = 0x\w+: 256 beats cross a 4 KiB boundary",
    Plant.SIZE: r"araddr = 0xa500000e00: arsize = 0: must be 3",
    Plant.FIXED: r"awaddr = 0x\w+: awburst = 0: must be INCR",
    Plant.WITHDRAW: r"arvalid was withdrawn before arready",
    Plant.WLAST: r"wlast is 1 in beat \d of 8 of the burst at 0x\w+|wlast is 0 in beat 8 of 8",
    Plant.WDATA: r"W changed before wready",
    Plant.READ_OUTSIDE: r"read of 64 bytes at 0xa500100e00: outside the read windows",
    Plant.WRITE_OUTSIDE: r"write of 0xa500108000 .. 0xa500108007: outside the write windows",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_violations(simulator, image, plant):
    memory = MemoryModel(stall_seed=2) if plant in (Plant.WITHDRAW, Plant.WDATA) else MemoryModel()
    with pytest.raises(BenchError, match=f"^violation: cycle \\d+: m_axi: .*{PLANTS[plant]}"):
        run_system(
            simulator,
            CONFIG,
            # Where 256 beats do not fit any more
            _job(image, plant=plant, memory=memory, program_address=BASE + 3584),
        )


def test_watchdog(simulator, image):
    with pytest.raises(BenchError, match=r"^watchdog: cycle \d+: no transfer on m_axi for 700 cyc"):
        run_system(simulator, CONFIG, _job(image, plant=Plant.HANG, watchdog=700))
    with pytest.raises(BenchError, match=r"^timeout: cycle \d+: no interrupt in 300 cycles"):
        run_system(simulator, CONFIG, _job(image, plant=Plant.HANG, most_cycles=300))
    commands = start_commands(_job(image, plant=Plant.HANG))
    result = run_script(simulator, image, BASE, [*commands, script.wait(10**9)], limit=5000)
    assert (result.status, result.message) == ("limit", "the limit of 5000 cycles is reached")


def test_bus_under_way_at_the_end(simulator, image):
    with pytest.raises(BenchError, match="bursts were under way when the run ended"):
        run_system(simulator, CONFIG, _job(image, plant=Plant.IRQ_EARLY))


@pytest.mark.parametrize("stall_seed", [None, 3])
@pytest.mark.parametrize(
    ("way", "response", "fault"),
    [
        ("read", "slave", Fault.READ_SLAVE),
        ("read", "decode", Fault.READ_DECODE),
        ("write", "slave", Fault.WRITE_SLAVE),
        ("write", "decode", Fault.WRITE_DECODE),
    ],
)
def test_injected_errors(simulator, image, way, response, fault, stall_seed):
    first = (BASE if way == "read" else BASE + HALF) + 20 * BLOCK + 8
    memory = MemoryModel(errors=(BusError(way, response, first, first + 1),), stall_seed=stall_seed)
    result = run_system(simulator, CONFIG, _job(image, memory=memory))
    assert result.fault is fault
    # What came before the error is written, the beat with the error is not.
    np.testing.assert_array_equal(result.image[:HALF], image[:HALF])
    if way == "write":
        np.testing.assert_array_equal(result.image[HALF : HALF + 20 * BLOCK], ~image[: 20 * BLOCK])
        where = slice(first - BASE, first - BASE + CONFIG.beat_bytes)
        np.testing.assert_array_equal(result.image[where], image[where])


def test_outside_the_image(simulator, image):
    """Addresses without memory answer DECERR where the windows allow them."""
    window = (BASE, BASE + 2 * SIZE)
    result = run_system(
        simulator, CONFIG, _job(image, program_address=BASE + SIZE - 2 * BLOCK, read_window=window)
    )
    assert result.fault is Fault.READ_DECODE
    result = run_system(
        simulator, CONFIG, _job(image, write_window=(BASE + SIZE - 2 * BLOCK, BASE + 2 * SIZE))
    )
    assert result.fault is Fault.WRITE_DECODE
    np.testing.assert_array_equal(result.image[-2 * BLOCK :], ~image[: 2 * BLOCK])


@pytest.mark.parametrize("way", ["read", "write"])
@pytest.mark.parametrize("stall_seed", [None, 1])
def test_reset_in_a_burst(simulator, image, way, stall_seed):
    """Reset in the middle of a burst, several times; then a whole run, from a changed image."""
    start = start_commands(_job(image))
    block = np.arange(BLOCK, dtype=np.uint8)
    commands = [
        *[c for _ in range(3) for c in (*start, script.wait_burst(way, 2000), script.reset(3))],
        script.load(BASE, block.tobytes()),
        *start,
        script.wait_irq(100_000),
        script.read("ID"),
        script.read("STATUS"),
    ]
    memory = MemoryModel(stall_seed=stall_seed)
    result = run_script(simulator, image, BASE, commands, memory=memory).require()
    assert [event["value"] for event in result.events[-2:]] == [DEVICE_ID, 0b10]
    changed = image.copy()
    changed[:BLOCK] = block
    np.testing.assert_array_equal(result.image, _expected(changed, 40))
    assert result.events[-1]["idle"]


def test_abort_and_start_again(simulator, image):
    start = start_commands(_job(image, 500))
    commands = [
        *start,
        script.wait(300),
        script.write("CONTROL", 1),  # busy: refused
        script.write("CONTROL", 2),
        script.wait_irq(10_000),
        script.read("ERROR"),
        *start,
        script.wait_irq(100_000),
        script.read("ERROR"),
    ]
    events = run_script(simulator, image, BASE, commands).require().events
    refused, aborted = len(start) + 1, len(start) + 2
    assert events[refused]["response"] == 2 and events[aborted]["response"] == 0
    assert [e["value"] for e in events if e["do"] == "read"] == [Fault.ABORTED, Fault.NONE]


def test_refused_registers(simulator, image):
    result = run_script(
        simulator, image, BASE, [script.read(0xFFC), script.write("ID", 1), script.read("ID")]
    )
    assert [event["response"] for event in result.events] == [2, 2, 0]
    with pytest.raises(BenchError, match=r"a register access was refused"):
        run_system(simulator, CONFIG, _job(image, read_window=(BASE, 1 << 60)))
    with pytest.raises(BenchError, match=r"0x200000000: must fit 32 bits"):
        run_system(simulator, CONFIG, _job(image, step=1 << 33))


def test_job_errors(simulator, image, tmp_path):
    bad = script.Command
    for command, message in (
        (bad("jump 3"), r"line \d+: jump: neither a setting nor a command"),
        (bad("wait x"), r"line \d+: x: must be a number"),
        (bad("wait"), r"line \d+: a word is missing"),
        (bad("wait 1 2"), r"line \d+: more than wait takes"),
        (bad("wait_burst up 2"), r"line \d+: up: must be read or write"),
        (script.load(BASE + SIZE, b"\0"), "load: outside the image"),
        (script.drive(1, [0] * 9), "driver: this build of the harness is without it"),
    ):
        with pytest.raises(BenchError, match=message):
            run_script(simulator, image, BASE, [command])
    with pytest.raises(BenchError, match="base must be a multiple of 4096"):
        run_script(simulator, image, BASE + 64, [])
    with pytest.raises(BenchError, match="latency: must be at least 1"):
        run_script(simulator, image, BASE, [], memory=MemoryModel(read_latency=0))
    with pytest.raises(BenchError, match="trace: this build has none"):
        run_script(simulator, image, BASE, [], trace=Trace(tmp_path / "a.fst"))


def test_progress(simulator, image):
    seen: list[int] = []
    commands = [script.wait(2_000_000)]
    run_script(simulator, image, BASE, commands, progress=seen.append).require()
    assert seen == sorted(seen) and seen and 0 < seen[0] < 2_000_100


def test_interrupt(simulator, image, tmp_path):
    """Ctrl-C ends the harness's process, and nothing is left behind."""
    code = (
        "import signal\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from systolora_sim.bench.build import Simulator\n"
        "from systolora_sim.bench.script import run_script, wait\n"
        # A shell's background jobs, and what they start, ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"directory = Path({str(simulator.directory.resolve())!r})\n"
        "simulator = Simulator('verilator', directory, '', 0.0)\n"
        "run_script(simulator, np.zeros(64, np.uint8), 0, [wait(1 << 60)],\n"
        "           progress=lambda cycles: print(cycles, flush=True))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TMPDIR": str(tmp_path),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert list(tmp_path.iterdir()) == []


def _lz4_block(block: bytes) -> bytes:
    """The bytes of a block in LZ4's format, written from its description."""
    out, place = bytearray(), 0

    def length(value: int) -> int:
        nonlocal place
        if value == 15:
            while True:
                place += 1
                value += block[place - 1]
                if block[place - 1] != 255:
                    break
        return value

    while place < len(block):
        token = block[place]
        place += 1
        literals = length(token >> 4)
        out += block[place : place + literals]
        place += literals
        if place == len(block):
            break
        distance = int.from_bytes(block[place : place + 2], "little")
        place += 2
        assert 1 <= distance <= len(out)
        for _ in range(length(token & 15) + 4):
            out.append(out[-distance])
    return bytes(out)


def _fst_hierarchy(content: bytes) -> bytes:
    """The names of an FST file, from its block of kind 6 (compressed by LZ4)."""
    place = 0
    while place < len(content):
        kind, size = content[place], int.from_bytes(content[place + 1 : place + 9], "big")
        if kind == 6:
            names = _lz4_block(content[place + 17 : place + 1 + size])
            assert len(names) == int.from_bytes(content[place + 9 : place + 17], "big")
            return names
        place += 1 + size
    raise AssertionError("no hierarchy")


@pytest.mark.parametrize("suffix", [".fst", ".vcd"])
def test_trace(verilog, image, tmp_path, suffix):
    """A trace of a window, only if asked for; the run is the same."""
    traced = build_system(verilog, CACHE, trace=suffix)
    plain = run_system(traced, CONFIG, _job(image))
    assert list(tmp_path.iterdir()) == []
    sizes = []
    for number, (first, limit) in enumerate(((0, None), (200, 260))):
        file = tmp_path / f"wave {number}{suffix}"
        result = run_system(traced, CONFIG, _job(image, trace=Trace(file, first, limit)))
        assert result.cycles == plain.cycles
        np.testing.assert_array_equal(result.image, plain.image)
        sizes.append(file.stat().st_size)
    assert 0 < sizes[1] < sizes[0]
    if suffix == ".fst":
        names = _fst_hierarchy((tmp_path / "wave 0.fst").read_bytes())
        assert b"m_axi_araddr" in names and b"reader" in names
    else:
        text = (tmp_path / "wave 1.vcd").read_text()
        times = [int(line[1:]) for line in text.splitlines() if line.startswith("#")]
        assert "m_axi_araddr" in text and min(times) == 2000 and max(times) == 2595


def test_lz4(tmp_path):
    """The part of LZ4 that traces need: blocks of every kind come back."""
    source, executable = tmp_path / "pack.cpp", tmp_path / "pack"
    source.write_text(
        """
        #include "lz4.h"
        #include <cstdio>
        int main() {
            std::vector<char> in, out;
            for (int c; (c = std::getchar()) != EOF;) in.push_back(static_cast<char>(c));
            const int size = static_cast<int>(in.size());
            out.resize(static_cast<size_t>(LZ4_compressBound(size)));
            if (LZ4_compress_default(in.data(), out.data(), size, LZ4_compressBound(size) - 1))
                return 1;
            const int packed =
                LZ4_compress_default(in.data(), out.data(), size, LZ4_compressBound(size));
            std::fwrite(out.data(), 1, static_cast<size_t>(packed), stdout);
        }
        """,
        encoding="utf-8",
    )
    fst = Path(system_build.__file__).with_name("harness") / "fst"
    command = ["g++", "-std=c++17", "-O1", f"-I{fst}", str(source), "-o", str(executable)]
    subprocess.run(command, check=True)
    rng = np.random.default_rng(SEED)
    words = [rng.integers(0, 256, n, dtype=np.uint8).tobytes() for n in (3, 20, 300)]
    cases = [b"", b"a", b"ab" * 6, bytes(5000), words[2], words[2] + bytes(20) + words[2]]
    cases += [bytes(rng.integers(0, 3, n, dtype=np.uint8)) for n in (12, 13, 17, 1000, 70000)]
    cases.append(b"".join(words[k] for k in rng.integers(0, 3, 2000)))
    for case in cases:
        packed = subprocess.run([executable], input=case, capture_output=True, check=True).stdout
        assert _lz4_block(packed) == case
        assert len(case) < 1000 or len(packed) < 0.8 * len(case)


def test_trace_format():
    assert trace_format(Path("a.b.fst")) == ".fst"
    with pytest.raises(BenchError, match=r"wave.txt: a trace must end in .fst or .vcd"):
        trace_format(Path("wave.txt"))


def test_build_errors(verilog, tmp_path, monkeypatch):
    with pytest.raises(BenchError, match="verilator could not build it"):
        build_system(verilog, tmp_path, top="nothing")
    assert list(tmp_path.iterdir()) == []
    started = time.monotonic()
    assert build_system(verilog, CACHE).seconds == 0 and time.monotonic() - started < 5
    monkeypatch.setenv("SIM", "icarus")
    with pytest.raises(BenchError, match="SIM = icarus: the whole accelerator needs verilator"):
        build_system(verilog, tmp_path)
