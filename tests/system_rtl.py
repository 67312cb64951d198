"""Programs on the simulated accelerator beside the functional machine, for the tests of the top."""

import fcntl
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from random_programs import BASE, HALF, SIZE, RandomProgram, random_program
from simulated import CACHE, CONFIGS
from systolora.config import AcceleratorConfig
from systolora.contract import DESCRIPTOR_BYTES, STICKY, Action, Fault, Opcode, Source
from systolora_sim.bench.build import Simulator
from systolora_sim.bench.sample import ProgramBuilder
from systolora_sim.bench.script import (
    Command,
    MemoryModel,
    ScriptResult,
    Way,
    load,
    read,
    run_script,
    wait_irq,
    write,
)
from systolora_sim.bench.system import SystemJob, SystemResult, run_system, start_commands
from systolora_sim.bench.system_build import build_system
from systolora_sim.runner import BUILD_DIR, ensure_verilog
from systolora_sim.system_machine import Memory, RunResult, SystemMachine

__all__ = ["Case", "End", "Script", "boundary_case", "compare", "compare_end", "machine_run"]
__all__ += ["rtl_run", "system_simulator"]

#: Cycles that a random program takes at most, by far.
MOST_CYCLES = 400_000


@functools.cache
def system_simulator(name: str) -> Simulator:
    """The simulator of a configuration's accelerator; one process builds it, others wait."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}-top.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        verilog = ensure_verilog(CONFIGS[name], BUILD_DIR, "top")
        return build_system(verilog.file, CACHE, channels=CONFIGS[name].channels)


@dataclass(frozen=True)
class Case:
    """A program in its memory, and what it runs with.

    Parameters
    ----------
    config : of the accelerator
    image, base : the memory before the run, and its address
    address, length : of the program: bytes, descriptors
    read_window, write_window : first address, and the first after it
    runs, word_base, step : the registers of these names
    """

    config: AcceleratorConfig
    image: NDArray[np.uint8] = field(repr=False)
    address: int
    length: int
    read_window: tuple[int, int]
    write_window: tuple[int, int]
    base: int = BASE
    runs: int = 1
    word_base: int = 0x1234_5678
    step: int = 0

    @staticmethod
    def of(config: AcceleratorConfig, program: RandomProgram, **settings: int) -> "Case":
        """The case of a random program."""
        return Case(
            config,
            program.image,
            program.base,
            program.length,
            program.read_window,
            program.write_window,
            program.base,
            **settings,
        )

    @staticmethod
    def random(name: str, seed: int, **settings: int) -> "Case":
        """The case of a random program for a configuration of that name."""
        config = CONFIGS[name]
        return Case.of(config, random_program(config, seed), **settings)

    def with_program(self, parts: Sequence[bytes]) -> "Case":
        """The same memory with another program at the same place."""
        image, start = self.image.copy(), self.address - self.base
        program = b"".join(parts)
        image[start : start + len(program)] = np.frombuffer(program, np.uint8)
        return replace(self, image=image, length=len(program) // DESCRIPTOR_BYTES)

    @property
    def descriptors(self) -> list[bytes]:
        """The program, descriptor by descriptor."""
        start = self.address - self.base
        program = self.image[start : start + self.length * DESCRIPTOR_BYTES].tobytes()
        return [
            program[at : at + DESCRIPTOR_BYTES] for at in range(0, len(program), DESCRIPTOR_BYTES)
        ]

    def job(self, memory: MemoryModel | None = None, **fields) -> SystemJob:
        """The job of the harness; fields are further ones of SystemJob."""
        return SystemJob(
            image=self.image,
            base=self.base,
            program_address=self.address,
            length=self.length,
            read_window=self.read_window,
            write_window=self.write_window,
            runs=self.runs,
            word_base=self.word_base,
            step=self.step,
            memory=memory or MemoryModel(),
            **({"most_cycles": MOST_CYCLES} | fields),
        )


def boundary_case(config: AcceleratorConfig, seed: int) -> Case:
    """Rows that end at, begin at and lie across multiples of 4 KiB, read and written."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, SIZE, dtype=np.uint8)
    beat, row = config.beat_bytes, 8 * config.cols
    builder = ProgramBuilder()
    step = min(beat, row)
    for number, offset in enumerate(range(-row - step, step + 1, step)):
        boundary = 0x5000 + 0x1000 * (number % 8)
        builder.post(
            Opcode.ROWS, rows=1, cols=config.cols, source=Source.STREAM, emit=1,
            in_width=3, in_address=BASE + boundary + offset,
            out_width=3, out_address=BASE + HALF + boundary - offset - row,
        )  # fmt: skip
    # Whole pages of rows: bursts of the greatest length
    most = config.act_bytes // 2
    builder.load(rows=1, row_bytes=most, address=BASE + 0x6000 - beat)
    size = most // 4 - beat
    builder.load(rows=4, row_bytes=size, address=BASE + 0x7000 - 3 * beat, stride=most, row_step=1)
    builder.control(Action.END)
    blank = Case(config, image, BASE, 1, (BASE, BASE + SIZE), (BASE + HALF, BASE + SIZE))
    return blank.with_program(builder.parts)


def machine_run(case: Case) -> tuple[RunResult, NDArray[np.uint8]]:
    """What the functional machine, fresh, makes of a case, and the memory afterwards.

    It is not strict: a program that the hardware runs is run.
    """
    image = case.image.copy()
    machine = SystemMachine(
        case.config, Memory(case.base, image), case.read_window, case.write_window, strict=False
    )
    result = machine.run(case.address, case.length, case.runs, case.word_base, case.step)
    return result, image


def rtl_run(simulator: Simulator, case: Case, memory: MemoryModel | None = None) -> SystemResult:
    """What the simulated accelerator, after a reset, makes of a case."""
    return run_system(simulator, case.config, case.job(memory))


def compare(case: Case, result: SystemResult) -> RunResult:
    """Asserts that a run ended as the functional machine's, which is returned."""
    expected, image = machine_run(case)
    assert (result.fault, result.index) == (expected.fault, expected.index)
    wrong = np.flatnonzero(result.image != image)
    assert wrong.size == 0, f"{wrong.size} bytes differ, from {case.base + wrong[0]:#x}"
    assert set(result.sticky) == expected.sticky
    assert (result.word_base, result.step) == (expected.word_base, expected.step)
    assert result.runs_left == max(case.runs, 1) - expected.runs
    counters = expected.counters
    assert result.counters["MACS"] == counters.macs
    assert result.counters["DESCRIPTORS"] == counters.descriptors
    assert result.counters["BYTES_WRITTEN"] == result.bus["written_bytes"] == counters.bytes_written
    assert result.counters["BYTES_READ"] == result.bus["read_beats"] * case.config.bus_bytes
    if expected.fault == Fault.NONE:
        assert result.counters["BYTES_READ"] == counters.bytes_read
    return expected


@dataclass(frozen=True)
class End:
    """What the registers say after a run of a script, and the memory then (None: not dumped).

    idle : whether no burst was under way when the interrupt came; cycle : when that was
    """

    fault: Fault
    index: int
    sticky: frozenset[str]
    word_base: int
    step: int
    runs_left: int
    macs: int
    descriptors: int
    idle: bool
    cycle: int
    image: NDArray[np.uint8] | None = field(repr=False)


#: What is read after a run; the counters' lower halves are enough.
_AFTER = (
    "ERROR", "ERROR_INDEX", "STICKY", "WORD_BASE", "STEP", "RUNS_LEFT", "MACS_LO", "DESCRIPTORS_LO",
)  # fmt: skip


class Script:
    """One simulation, a single process, with several runs and whatever else happens.

    Parameters
    ----------
    directory : for memory images
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._commands: list[Command] = []
        self._events = 0
        self._ends: list[tuple[int, Path | None]] = []

    def add(self, *commands: Command) -> int:
        """Appends commands; returns the number of the first one's event."""
        self._commands += commands
        self._events += len(commands)
        return self._events - len(commands)

    def start(self, case: Case, *, put: bool = True) -> int:
        """Starts a case, with its memory by default; returns the event of the start."""
        if put:
            self.add(load(case.base, case.image.tobytes()))
        self.add(write("STICKY", (1 << len(STICKY)) - 1), *start_commands(case.job()))
        return self._events - 1

    def finish(self, cycles: int = MOST_CYCLES, *, dump: bool = True) -> int:
        """Waits for the interrupt, so many cycles at most; returns the run's number."""
        at = self.add(wait_irq(cycles), *(read(name) for name in _AFTER))
        file = self._directory / f"after{len(self._ends)}.bin" if dump else None
        if file is not None:
            self._commands.append(Command(f"dump {file}"))  # has no event
        self._ends.append((at, file))
        return len(self._ends) - 1

    def run(self, case: Case, cycles: int = MOST_CYCLES) -> int:
        """A whole run; returns its number."""
        self.start(case)
        return self.finish(cycles)

    def execute(
        self,
        simulator: Simulator,
        case: Case,
        memory: MemoryModel | None = None,
        windows: Sequence[tuple[Way, int, int]] | None = None,
        watchdog: int = 200_000,
    ) -> tuple[list[End], ScriptResult]:
        """Runs it all, on the memory of `case` and, by default, in its windows.

        Raises
        ------
        BenchError
            If a rule of AXI or a window was broken, or a run did not end.
        """
        if windows is None:
            windows = [("read", *case.read_window), ("write", *case.write_window)]
        result = run_script(
            simulator,
            case.image,
            case.base,
            self._commands,
            memory=memory,
            windows=windows,
            watchdog=watchdog,
        ).require()
        ends = []
        for at, file in self._ends:
            values = {name: result.events[at + 1 + n]["value"] for n, name in enumerate(_AFTER)}
            ends.append(
                End(
                    Fault(values["ERROR"]),
                    values["ERROR_INDEX"],
                    frozenset(n for bit, n in enumerate(STICKY) if values["STICKY"] >> bit & 1),
                    values["WORD_BASE"],
                    values["STEP"],
                    values["RUNS_LEFT"],
                    values["MACS_LO"],
                    values["DESCRIPTORS_LO"],
                    bool(result.events[at]["idle"]),
                    result.events[at]["cycle"],
                    None if file is None else np.fromfile(file, np.uint8),
                )
            )
        return ends, result


def compare_end(case: Case, end: End) -> None:
    """Asserts that a run of a script ended as the functional machine's."""
    expected, image = machine_run(case)
    assert (end.fault, end.index) == (expected.fault, expected.index)
    assert end.idle
    if end.image is not None:
        wrong = np.flatnonzero(end.image != image)
        assert wrong.size == 0, f"{wrong.size} bytes differ, from {case.base + wrong[0]:#x}"
    assert set(end.sticky) == expected.sticky
    assert (end.word_base, end.step) == (expected.word_base, expected.step), end
    counted = expected.counters.macs, expected.counters.descriptors
    assert (end.macs, end.descriptors) == counted
