"""Compares a report with an earlier one: what grew or became slower than it may."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from systolora.synth.report import VERSION
from systolora.synth.tools import SynthError

__all__ = ["AREA_LIMIT", "FREQUENCY", "SPEED_LIMIT", "Figure", "figures", "is_worse"]
__all__ += ["read_report", "regressions"]

#: Shares of the earlier figure: more area, less frequency.
AREA_LIMIT, SPEED_LIMIT = 0.05, 0.10
#: The name of the figure of which more is better.
FREQUENCY = "MHz"


class Figure(NamedTuple):
    """Which figure of a report: the target (or the library), the unit, what is counted."""

    target: str
    unit: str
    name: str


def read_report(path: Path) -> dict[str, Any]:
    """A report that an earlier run wrote.

    Raises
    ------
    SynthError
        If it cannot be read, or is no such report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SynthError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise SynthError(f"{path}: not JSON: {error}") from None
    if not isinstance(report, dict) or report.get("version") != VERSION:
        raise SynthError(f"{path}: not a report of version {VERSION}")
    return report


def _figures(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    area = entry["area"]
    if isinstance(area, Mapping):
        yield from area.items()
    else:
        yield "area", area
    if "fmax_mhz" in entry:
        yield FREQUENCY, entry["fmax_mhz"]


def figures(report: Mapping[str, Any]) -> dict[Figure, float]:
    """All figures that reports are compared by: areas (LUTs, registers, multipliers, block RAMs
    and so on, or um2), and frequencies."""
    return {
        Figure(target, entry["unit"], name): value
        for kind in ("fpga", "cells")
        for target, entries in report[kind].items()
        for entry in entries
        for name, value in _figures(entry)
    }


def is_worse(name: str, now: float, before: float) -> bool:
    """Whether a figure of that name is worse by more than it may be."""
    if name == FREQUENCY:
        return now < before * (1 - SPEED_LIMIT)
    return now > before * (1 + AREA_LIMIT)


def _unrouted(report: Mapping[str, Any]) -> set[Figure]:
    """The frequencies that a report should have: routing failed with every seed."""
    return {
        Figure(target, entry["unit"], FREQUENCY)
        for target, entries in report["fpga"].items()
        for entry in entries
        if "seeds" in entry and "fmax_mhz" not in entry
    }


def regressions(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """A phrase for each figure that both have and that is worse than it may be.

    A frequency that routing did not give, with any seed, is worse than every one.

    Raises
    ------
    SynthError
        If the reports are of different configurations.
    """
    if now["digest"] != before["digest"]:
        raise SynthError(
            f"configuration {now['digest']}: the earlier report is of {before['digest']}"
        )
    old = figures(before)
    found = [
        f"{key.target} {key.unit}: {key.name} {value:g}, was {old[key]:g}"
        for key, value in figures(now).items()
        if key in old and is_worse(key.name, value, old[key])
    ]
    lost = sorted(_unrouted(now) & old.keys())
    return found + [f"{key.target} {key.unit}: {key.name} none, was {old[key]:g}" for key in lost]
