"""The timeline of a program: events by descriptor and track, from the cycle model's times."""

from typing import Any

import numpy as np

from systolora.contract import Kind
from systolora_sim.cycle_model import Timing
from systolora_sim.step_program import StepProgram

__all__ = ["events"]


def events(program: StepProgram, timing: Timing) -> list[dict[str, Any]]:
    """Events of the tracks of `systolora_sim.timeline`, in the order of the descriptors.

    LOAD, EXEC, POST: a descriptor from the cycle in which its unit takes it to its end; array: from
    an EXEC's first beat to its last; read bus, write bus: from the first to the last beat of a
    descriptor's transfer; program: what the array works on, as long as it does. `args` has the
    descriptor's number, and what it waited for longest with the cycles.
    """
    found: list[dict[str, Any]] = []
    kinds = program.program[:, 0] & 0xF

    def add(track: str, name: str, first: Any, last: Any, args: dict[str, Any]) -> None:
        if first >= 0:
            end = max(int(last), int(first)) + 1
            found.append(
                {"track": track, "name": name, "start": int(first), "end": end, "args": args}
            )

    for index in range(program.length):
        name = program.labels[index] or "other"
        args: dict[str, Any] = {"descriptor": index}
        if timing.wait[index]:
            waited = int(timing.wait_cycles[index])
            args |= {"waits for": timing.wait[index], "waited cycles": waited}
        kind = Kind(int(kinds[index])).name
        add(kind, name, timing.start[index], timing.end[index], args)
        add("array", name, timing.first_beat[index], timing.last_beat[index], args)
        for track, span in (("read bus", timing.read), ("write bus", timing.write)):
            add(track, name, span[index, 0], span[index, 1], args)
    (execs,) = np.nonzero(timing.first_beat >= 0)
    begin = 0
    for place, index in enumerate(execs):
        last = place == len(execs) - 1
        label = program.labels[index]
        if last or program.labels[execs[place + 1]] != label:
            first = timing.first_beat[execs[begin]]
            count = {"EXECs": place + 1 - begin}
            add("program", label or "other", first, timing.last_beat[index], count)
            begin = place + 1
    return found
