"""A program on the simulated Verilog, with the times of its EXECs.

The harness reads the counters again and again while the program runs. EXECs enter the array one
after the other, and how many multiplications each does is known: it has ended when the counter MACS
has come that far. Between two readings, time goes in proportion.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from systolora.contract import REGISTER_BITS
from systolora_sim.perf_attribution import ArrayTimes, exec_macs
from systolora_sim.rtl_backend import RtlOptions, run_on_rtl
from systolora_sim.step_program import StepProgram

if TYPE_CHECKING:
    from systolora_sim.bench.system import SystemResult

__all__ = ["run_watched"]

#: Counters that are read, in how many cycles, and how often at most: the files of commands and
#: events stay small.
_WATCHED = ("MACS", "STALL_LOAD", "STALL_POST")
_TAKES, _READINGS = 12, 20_000
#: How much longer than the model says the readings go on.
_LONGER = 1.02


def _readings(result: "SystemResult") -> tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]:
    """Times and counters, with the start and the end of the run."""
    events = [event for event in result.watched if "value" in event]
    total = result.counters
    cycles = [0, *(event["cycle"] for event in events[:: len(_WATCHED)])]
    times = np.append(np.minimum(cycles, total["CYCLES"]), total["CYCLES"])
    counters = {}
    for place, name in enumerate(_WATCHED):
        low = [0, *(event["value"] for event in events[place :: len(_WATCHED)]), total[name]]
        # The lower halves of the counters, which only grow
        steps = np.diff(np.array(low, np.int64)) % (1 << REGISTER_BITS)
        counters[name] = np.concatenate([[0], np.cumsum(steps)])
    return times.astype(np.float64), counters


def _times(program: StepProgram, result: "SystemResult", model: ArrayTimes) -> ArrayTimes:
    """What the readings say of the EXECs; the model's say what else happens around them."""
    times, counters = _readings(result)
    macs = counters["MACS"]

    def reached(count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The reading by which the counter has come that far, and which part of the way to it."""
        after = np.searchsorted(macs, count, side="left")
        before = np.maximum(after - 1, 0)
        way = np.maximum(macs[after] - macs[before], 1)
        return after, (count - macs[before]) / way

    def at(values: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
        after, part = reached(count)
        before = np.maximum(after - 1, 0)
        return values[before] + (values[after] - values[before]) * part

    ends = np.cumsum(exec_macs(program))
    last = np.rint(at(times, ends)).astype(np.int64)
    first = int(at(times, np.array([1]))[0])
    stalls = {
        name: np.diff(np.rint(at(counters[name].astype(np.float64), ends)), prepend=0)
        for name in ("STALL_LOAD", "STALL_POST")
    }
    cycles = result.counters["CYCLES"]
    left, model_left = cycles - 1 - int(last[-1]), model.cycles - 1 - int(model.last[-1])
    return ArrayTimes(
        cycles=cycles,
        first=first,
        last=last,
        loads=stalls["STALL_LOAD"].astype(np.int64),
        post=stalls["STALL_POST"].astype(np.int64),
        copies=round(model.copies * first / max(model.first, 1)),
        updates=round(model.updates * left / max(model_left, 1)),
    )


def run_watched(
    program: StepProgram, model: ArrayTimes, latency: int, build_dir: Path, progress: bool
) -> tuple["SystemResult", ArrayTimes]:
    """One run of a program on the simulated accelerator.

    Parameters
    ----------
    program : its base a multiple of 4096
    model : what the cycle model says of it: how long to watch, and what the times before the first
        EXEC and after the last one are spent on
    latency : of memory, cycles
    build_dir : where Verilog and simulators are kept
    progress : whether stderr shows a progress bar

    Raises
    ------
    RunError
        As `rtl_backend.run_on_rtl`.
    """
    from systolora_sim.bench.script import read, wait

    apart = max(0, -(-model.cycles // _READINGS) - _TAKES)
    count = round(_LONGER * model.cycles / (_TAKES + apart))
    readings = [read(f"{name}_LO") for name in _WATCHED]
    if apart:
        readings.append(wait(apart))
    options = RtlOptions(memory_latency=latency)
    result = run_on_rtl(program, 1, options, build_dir, progress, readings * count)
    return result, _times(program, result, model)
