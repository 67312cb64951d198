"""The timeline of a step: lanes of events, and a trace for ui.perfetto.dev or chrome://tracing.

An event is {"track", "name", "start", "end", "args"}: a descriptor in a queue, a tile in the array,
a transfer on a bus; times in cycles from the start of the step, end exclusive.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["TRACKS", "Lane", "lanes", "perfetto"]

#: The tracks, in the order in which they are shown; others follow in the order of their names.
TRACKS = ("program", "LOAD", "EXEC", "POST", "array", "read bus", "write bus")

#: The trace's process; no thread has its number, which would make it the "main thread".
_PROCESS = 1000


@dataclass(frozen=True)
class Lane:
    """Events of one track that do not overlap, by their start. label: "LOAD", "LOAD 2", ..."""

    track: str
    label: str
    events: list[dict[str, Any]]

    @property
    def busy(self) -> int:
        """Cycles in which an event is going on."""
        return sum(event["end"] - event["start"] for event in self.events)


def lanes(events: Iterable[dict[str, Any]]) -> list[Lane]:
    """Events by track; a track has as many lanes as events overlap in it.

    Raises ValueError for an event that ends before it starts.
    """
    tracks: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["end"] < event["start"]:
            raise ValueError(
                f"{event['track']}: {event['name']} ends at {event['end']}, before its start "
                f"{event['start']}"
            )
        tracks.setdefault(event["track"], []).append(event)
    found = []
    for track in sorted(tracks, key=_place):
        stacked = _stack(tracks[track])
        found += [
            Lane(track, track if number == 0 else f"{track} {number + 1}", lane)
            for number, lane in enumerate(stacked)
        ]
    return found


def _place(track: str) -> tuple[int, str]:
    return (TRACKS.index(track) if track in TRACKS else len(TRACKS), track)


def _stack(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Each event into the first lane that is free at its start."""
    stacked: list[list[dict[str, Any]]] = []
    free: list[int] = []  # numbers of free lanes
    running: list[tuple[int, int]] = []  # end and lane of what goes on
    for event in sorted(events, key=lambda e: (e["start"], e["end"], e["name"])):
        while running and running[0][0] <= event["start"]:
            heapq.heappush(free, heapq.heappop(running)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane = len(stacked)
            stacked.append([])
        stacked[lane].append(event)
        heapq.heappush(running, (event["end"], lane))
    return stacked


def perfetto(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The events in the Trace Event Format (JSON), one thread per lane; 1 us stands for a cycle.

    Complete events ("X") of a thread must nest, so what overlaps is in lanes of its own. The same
    events give the same dict, in whatever order they come.

    Notes
    -----
    "Trace Event Format" (Google, 2016): complete events; metadata process_name, thread_name,
    thread_sort_index. Both viewers take it.
    """
    trace: list[dict[str, Any]] = [_metadata(0, "process_name", {"name": "systolora"})]
    timed: list[dict[str, Any]] = []
    for thread, lane in enumerate(lanes(events), start=1):
        trace.append(_metadata(thread, "thread_name", {"name": lane.label}))
        trace.append(_metadata(thread, "thread_sort_index", {"sort_index": thread}))
        timed += [
            {
                "name": event["name"], "cat": lane.track, "ph": "X",
                "ts": event["start"], "dur": event["end"] - event["start"],
                "pid": _PROCESS, "tid": thread, "args": event.get("args") or {},
            }
            for event in lane.events
        ]  # fmt: skip
    # Of those that start together, the longer one first
    timed.sort(key=lambda e: (e["ts"], e["tid"], -e["dur"]))
    return {
        "traceEvents": trace + timed,
        "displayTimeUnit": "ms",
        "otherData": {"unit": "1 us is one cycle"},
    }


def _metadata(thread: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "ts": 0, "pid": _PROCESS, "tid": thread, "args": args}
