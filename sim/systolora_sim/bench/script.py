"""Jobs of the harness: what happens at the registers of an accelerator and in its memory.

The harness's executable (system_build) simulates them; Python writes the job and reads the result.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from systolora.contract import REGISTERS
from systolora_sim.bench.build import BenchError, Simulator
from systolora_sim.bench.system_build import EXECUTABLE

__all__ = ["BusError", "Command", "MemoryModel", "ScriptResult", "Trace", "run_script"]
__all__ += ["drive", "load", "read", "reset", "wait", "wait_burst", "wait_irq", "write"]

#: Bytes whose last write is recorded together.
WRITE_WORD = 64
#: The image begins at a multiple of it: a burst never leaves one.
_PAGE = 4096
#: Limits may be the end of all addresses.
_SPACE = 1 << 64
_SECONDS_TO_STOP = 5.0

Way = Literal["read", "write"]


@dataclass(frozen=True)
class BusError:
    """The memory answers with an error where a beat touches addresses first .. limit-1."""

    way: Way
    response: Literal["slave", "decode"]
    first: int
    limit: int


@dataclass(frozen=True)
class MemoryModel:
    """How the memory behaves; addresses outside the image answer DECERR.

    Parameters
    ----------
    read_latency : cycles from an address to its first beat, at least 1
    write_latency : cycles from the last beat of a burst to its response, at least 1
    skew : cycles that a channel takes longer for either than the one before it
    read_outstanding, write_outstanding : bursts accepted and unfinished at most, 0 for any number
    write_late : data is written when its response goes out, not when it comes
    stall_seed : seed of random stalls, other ones of each part of each port (also of the
        registers'), None for none
    errors : injected errors
    """

    read_latency: int = 40
    write_latency: int = 40
    skew: int = 0
    read_outstanding: int = 0
    write_outstanding: int = 0
    write_late: bool = False
    stall_seed: int | None = None
    errors: tuple[BusError, ...] = ()


@dataclass(frozen=True)
class Trace:
    """A waveform of the cycles first .. limit-1 (None: to the end), counted from the reset.

    file : ends in .fst or .vcd
    """

    file: Path
    first: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Command:
    """One line of a script; `data` goes along in a file."""

    line: str
    data: bytes | None = None


def _offset(register: str | int) -> int:
    return REGISTERS[register].offset if isinstance(register, str) else register


def write(register: str | int, value: int, strobe: int = 0xF) -> Command:
    """A write of a register, by its name in contract.REGISTERS or its offset."""
    return Command(f"write {_offset(register):#x} {value:#x} {strobe:#x}")


def read(register: str | int) -> Command:
    """A read of a register; its event has `value`."""
    return Command(f"read {_offset(register):#x}")


def wait(cycles: int) -> Command:
    """Some cycles; the event has `irq` after them."""
    return Command(f"wait {cycles}")


def wait_irq(cycles: int) -> Command:
    """Until the interrupt; status `timeout` after so many cycles."""
    return Command(f"wait_irq {cycles}")


def wait_burst(way: Way, cycles: int) -> Command:
    """Until a burst has had some of its beats; status `timeout` after so many cycles."""
    return Command(f"wait_burst {way} {cycles}")


def reset(cycles: int = 4) -> Command:
    """A reset of accelerator and bus, in the middle of anything; the image stays."""
    return Command(f"reset {cycles}")


def load(address: int, data: bytes) -> Command:
    """Replaces bytes of the image."""
    return Command(f"load {address:#x}", data)


def drive(polls: int, fields: Sequence[int]) -> Command:
    """One program by the C driver: fields are program address, length, read base and size, write
    base and size, runs, WORD_BASE, STEP.

    The event has what the driver said: accepted, result (negated), fault, index, counted (cycles);
    and started (cycle of the start), irq_rise (cycle of the interrupt), refused (accesses that the
    accelerator answered with an error).
    """
    return Command(f"driver {polls} " + " ".join(map(str, fields)))


@dataclass(frozen=True)
class ScriptResult:
    """What a script gave.

    Parameters
    ----------
    status : ok; violation (of AXI or of a window), watchdog (nothing moved), timeout, limit
    message : why the script ended early, with the cycle
    cycles : of the whole run, from the reset
    events : of each command begun, `cycle` (at its end), `idle` (no burst under way then), and:
        response, accepted (cycle in which a write was complete), value, irq
    bus : totals of all channels: read_bursts, read_beats, write_bursts, write_beats, written_bytes
    image : the memory afterwards
    last_writes : uint64 per 64 bytes of the image: cycle of the last write on the bus, 0 if none
    """

    status: str
    message: str
    cycles: int
    events: list[dict[str, int]]
    bus: dict[str, int]
    image: NDArray[np.uint8] = field(repr=False)
    last_writes: NDArray[np.uint64] = field(repr=False)

    def require(self) -> "ScriptResult":
        """This result if the script came to its end; raises BenchError with the message."""
        if self.status != "ok":
            raise BenchError(f"{self.status}: {self.message}")
        return self


def _lines(
    base: int,
    memory: MemoryModel,
    windows: Sequence[tuple[Way, int, int]],
    watchdog: int,
    limit: int,
    trace: Trace | None,
) -> list[str]:
    """The settings of a job."""
    lines = [
        f"memory {base:#x} image.bin",
        f"latency {memory.read_latency} {memory.write_latency}",
        f"skew {memory.skew}",
        f"outstanding {memory.read_outstanding} {memory.write_outstanding}",
        f"watchdog {watchdog}",
        f"limit {limit}",
        *(f"window {way} {first:#x} {end % _SPACE:#x}" for way, first, end in windows),
        *(f"error {e.way} {e.response} {e.first:#x} {e.limit % _SPACE:#x}" for e in memory.errors),
    ]
    if memory.write_late:
        lines.append("write_late")
    if memory.stall_seed is not None:
        lines.append(f"stalls {memory.stall_seed}")
    if trace is not None:
        end = (1 << 64) - 1 if trace.limit is None else trace.limit
        lines.append(f"trace {trace.first} {end} {trace.file.resolve()}")
    return lines


def run_script(
    simulator: Simulator,
    image: NDArray[np.uint8],
    base: int,
    commands: Sequence[Command],
    *,
    memory: MemoryModel | None = None,
    windows: Sequence[tuple[Way, int, int]] = (),
    watchdog: int = 200_000,
    limit: int = 0,
    trace: Trace | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScriptResult:
    """Runs a script on a simulated accelerator, in a process that ends with this one.

    Parameters
    ----------
    simulator : from system_build.build_system; with a trace, built for its format
    image, base : the memory's bytes, and their address, a multiple of 4096
    commands : from write, read, ...; a reset of four cycles precedes them
    memory : how the memory behaves
    windows : (way, first, limit) that the accelerator may access; without any, everything of a way
    watchdog : cycles without a transfer on m_axi after which a wait for the interrupt ends, 0 never
    limit : cycles of the whole run at most, 0 for any number
    trace : a waveform to write
    progress : called with the cycles so far, a few times a second

    Raises
    ------
    BenchError
        If the harness could not do the job at all.
    """
    with tempfile.TemporaryDirectory(prefix="systolora-") as name:
        directory = Path(name)
        padded = np.zeros(-(-len(image) // WRITE_WORD) * WRITE_WORD, np.uint8)
        padded[: len(image)] = image
        padded.tofile(directory / "image.bin")
        lines = _lines(base, memory or MemoryModel(), windows, watchdog, limit, trace)
        if progress is not None:
            lines.append("progress")
        for number, command in enumerate(commands):
            if command.data is None:
                lines.append(command.line)
            else:
                (directory / f"data{number}.bin").write_bytes(command.data)
                lines.append(f"{command.line} data{number}.bin")
        lines += ["dump after.bin", "dump_writes writes.bin"]
        (directory / "job.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _execute(simulator.directory / EXECUTABLE, directory, progress)
        result: dict[str, Any] = json.loads((directory / "result.json").read_text("utf-8"))
        if result["status"] == "job":
            raise BenchError(result["message"])
        if result["status"] == "interrupted":
            raise KeyboardInterrupt
        return ScriptResult(
            status=result["status"],
            message=result["message"],
            cycles=result["cycles"],
            events=[event for event in result["events"] if not event["do"].startswith("dump")],
            bus=result["bus"],
            image=np.fromfile(directory / "after.bin", np.uint8)[: len(image)],
            last_writes=np.fromfile(directory / "writes.bin", np.uint64),
        )


def _execute(executable: Path, directory: Path, progress: Callable[[int], None] | None) -> None:
    """The harness's process, to its end; it ends too if this one is interrupted or killed."""
    with (
        (directory / "errors.txt").open("wb") as errors,
        subprocess.Popen(
            [str(executable.resolve()), "job.txt", "result.json"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if progress is not None and line.startswith("cycle "):
                    progress(int(line.split()[1]))
            status = process.wait()
        except BaseException:
            process.terminate()  # it closes its trace
            try:
                process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if status:
        message = (directory / "errors.txt").read_text("utf-8", "replace").strip()
        raise BenchError(message or f"the harness ended with status {status}")
