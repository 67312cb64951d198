"""Runs programs on a simulated accelerator, as a host would: registers, memory, interrupt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    COUNTERS,
    REGISTER_BITS,
    REGISTERS,
    STICKY,
    Fault,
    register_constants,
    unpack,
)
from systolora_sim.bench.build import BenchError, Simulator
from systolora_sim.bench.script import (
    Command,
    MemoryModel,
    ScriptResult,
    Trace,
    drive,
    read,
    run_script,
    wait,
    wait_irq,
    write,
)

__all__ = ["SystemJob", "SystemResult", "run_system", "start_commands"]

_BOTH = 0b11  # done and error, in IRQ_STATUS and IRQ_MASK
_START = 0b1
_WORD = (1 << REGISTER_BITS) - 1
#: Cycles in which an interrupt must be gone after its bit was cleared.
_IRQ_FALLS = 4
#: What the driver's functions return, negated: SYSTOLORA_OK, SYSTOLORA_E_FAULT.
_DRIVER_OK, _DRIVER_FAULT = 0, 6


@dataclass(frozen=True)
class SystemJob:
    """A program in memory, and how it is run.

    Parameters
    ----------
    image, base : the memory's bytes, and their address, a multiple of 4096
    program_address, length : of the program: bytes, descriptors
    read_window, write_window : first address, and the first after it
    runs, word_base, step : the registers of these names
    memory : how the memory behaves
    most_cycles : cycles until the interrupt, at most
    watchdog : cycles without a transfer on the memory bus after which the run fails, 0 never
    trace : a waveform to write
    driver : the C driver does everything instead of this module
    watch : commands between the start and the wait for the interrupt; without the driver
    """

    image: NDArray[np.uint8] = field(repr=False)
    base: int
    program_address: int
    length: int
    read_window: tuple[int, int]
    write_window: tuple[int, int]
    runs: int = 1
    word_base: int = 0
    step: int = 0
    memory: MemoryModel = field(default_factory=MemoryModel)
    most_cycles: int = 1 << 40
    watchdog: int = 200_000
    trace: Trace | None = None
    driver: bool = False
    watch: Sequence[Command] = ()


@dataclass(frozen=True)
class SystemResult:
    """How a run ended.

    Parameters
    ----------
    fault, index : NONE, or what went wrong and with which descriptor
    sticky : names of the bits set, of contract.STICKY
    word_base, step, runs_left : the registers afterwards
    counters : by the names of contract.COUNTERS
    cycles : from the write that starts the run to the interrupt, or to the end of `watch` if that
        comes later
    image : the memory afterwards
    last_writes : uint64 per 64 bytes: cycle of the last write on the bus since the reset, 0 if none
    bus : totals of the memory's side: bursts, beats, bytes written
    watched : events of the job's `watch`, their cycles counted from the write that starts the run
    """

    fault: Fault
    index: int
    sticky: frozenset[str]
    word_base: int
    step: int
    runs_left: int
    counters: dict[str, int]
    cycles: int
    image: NDArray[np.uint8] = field(repr=False)
    last_writes: NDArray[np.uint64] = field(repr=False)
    bus: dict[str, int]
    watched: list[dict[str, int]] = field(default_factory=list, repr=False)


def start_commands(job: SystemJob) -> list[Command]:
    """The writes of all settings, the last one starts the run."""
    values = {
        "PROGRAM_ADDRESS": job.program_address,
        "READ_BASE": job.read_window[0],
        "READ_LIMIT": job.read_window[1],
        "WRITE_BASE": job.write_window[0],
        "WRITE_LIMIT": job.write_window[1],
    }
    commands = []
    for name, value in values.items():
        for half in ("LO", "HI"):
            register = REGISTERS[f"{name}_{half}"]
            commands.append(write(register.name, value >> register.shift & _WORD))
    tops = (job.read_window[1] >> 64) | (job.write_window[1] >> 64) << 1
    return [
        *commands,
        write("LIMIT_TOP", tops),
        write("PROGRAM_LENGTH", job.length),
        write("RUNS", job.runs),
        write("WORD_BASE", job.word_base),
        write("STEP", job.step),
        write("IRQ_STATUS", _BOTH),
        write("IRQ_MASK", _BOTH),
        write("CONTROL", _START),
    ]


#: What is read when a run has ended.
_AFTER = (
    "STATUS", "ERROR", "ERROR_INDEX", "IRQ_STATUS", "STICKY", "WORD_BASE", "STEP", "RUNS_LEFT",
    *(f"{name}_{half}" for name in COUNTERS for half in ("LO", "HI")),
)  # fmt: skip


def run_system(
    simulator: Simulator,
    config: AcceleratorConfig,
    job: SystemJob,
    progress: Callable[[int], None] | None = None,
) -> SystemResult:
    """Runs one program from start to interrupt, after a reset.

    simulator is from system_build.build_system (with a trace: for its format; with the driver: with
    it), progress is called with the cycles so far. A program that ends with a fault is no error.

    Raises
    ------
    BenchError
        If a rule of AXI or a window was broken, the run did not end, or the registers or the bus
        afterwards contradict what happened.
    """
    identity = [read(name) for name in register_constants(config)]
    if job.driver:
        windows = [(first, end - first) for first, end in (job.read_window, job.write_window)]
        fields = (job.program_address, job.length, *windows[0], *windows[1])
        run = [drive(job.most_cycles, (*fields, job.runs, job.word_base, job.step))]
    else:
        run = [*start_commands(job), *job.watch, wait_irq(job.most_cycles)]
    after = [*(read(name) for name in _AFTER), write("IRQ_STATUS", _BOTH), wait(_IRQ_FALLS)]
    script = run_script(
        simulator,
        job.image,
        job.base,
        [*identity, *run, *after],
        memory=job.memory,
        windows=[("read", *job.read_window), ("write", *job.write_window)],
        watchdog=job.watchdog,
        trace=job.trace,
        progress=progress,
    ).require()
    events = script.events
    for event in events:
        if event.get("response", 0):
            raise BenchError(f"a register access was refused: {event}")
    for (name, value), event in zip(register_constants(config).items(), events, strict=False):
        if event["value"] != value:
            raise BenchError(f"register {name} = {event['value']:#x}: must be {value:#x}")
    end = events[len(identity) + len(run) - 1]
    values = {
        name: event["value"]
        for name, event in zip(_AFTER, events[len(identity) + len(run) :], strict=False)
    }
    if job.driver:
        cycles, watched = end["irq_rise"] + 1 - end["started"], []
    else:
        watch = len(identity) + len(run) - 1 - len(job.watch)
        started = events[watch - 1]["accepted"]
        cycles = end["cycle"] - started
        watched = [
            event | {"cycle": event["cycle"] - started}
            for event in events[watch : watch + len(job.watch)]
        ]
    result = _result(script, values, cycles, watched)
    if job.driver:
        _check_driver(result, end)
    _check_end(result, end, events[-1], values)
    return result


def _check_driver(result: SystemResult, end: dict[str, int]) -> None:
    """Raises BenchError where the driver says something else than the registers."""
    told = (end["accepted"], end["result"], end["fault"], end["index"], end["counted"])
    known = (
        1,
        _DRIVER_OK if result.fault == Fault.NONE else _DRIVER_FAULT,
        result.fault,
        result.index,
        result.counters["CYCLES"],
    )
    if told != known or end["refused"]:
        raise BenchError(f"the driver reports another end than the registers, {known}: {end}")


def _result(
    script: ScriptResult, values: dict[str, int], cycles: int, watched: list[dict[str, int]]
) -> SystemResult:
    return SystemResult(
        fault=Fault(values["ERROR"]),
        index=values["ERROR_INDEX"],
        sticky=frozenset(name for n, name in enumerate(STICKY) if values["STICKY"] >> n & 1),
        word_base=values["WORD_BASE"],
        step=values["STEP"],
        runs_left=values["RUNS_LEFT"],
        counters={
            name: values[f"{name}_LO"] | values[f"{name}_HI"] << REGISTER_BITS for name in COUNTERS
        },
        cycles=cycles,
        image=script.image,
        last_writes=script.last_writes,
        bus=script.bus,
        watched=watched,
    )


def _check_end(
    result: SystemResult, end: dict[str, int], last: dict[str, int], values: dict[str, int]
) -> None:
    """Raises BenchError where registers, interrupt or bus contradict the end of a run."""
    ended_well = result.fault == Fault.NONE
    status = unpack(REGISTERS["STATUS"].fields, values["STATUS"])
    expected = {"busy": 0, "done": int(ended_well), "error": int(not ended_well)}
    wrong: Sequence[str] = [
        f"STATUS.{n} = {status[n]}" for n, v in expected.items() if status[n] != v
    ]
    if wrong:
        raise BenchError(f"after a run with fault {result.fault.name}: {', '.join(wrong)}")
    if values["IRQ_STATUS"] != (1 if ended_well else 2):
        raise BenchError(f"IRQ_STATUS = {values['IRQ_STATUS']} with fault {result.fault.name}")
    if last["irq"]:
        raise BenchError("the interrupt stays after IRQ_STATUS was cleared")
    if not end["idle"]:
        raise BenchError("bursts were under way when the run ended")
