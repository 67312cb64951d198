"""Compares a report with an earlier one: what grew or became slower than it may."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from systolora.synth.report import VERSION
from systolora.synth.tools import SynthError

__all__ = ["AREA_LIMIT", "SPEED_LIMIT", "read_report", "regressions"]

#: Shares of the earlier figure: more area, less frequency.
AREA_LIMIT, SPEED_LIMIT = 0.05, 0.10


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


def _figures(entry: Mapping[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Name, value, and whether more is better."""
    area = entry["area"]
    if isinstance(area, Mapping):
        yield from ((name, value, False) for name, value in area.items())
    else:
        yield "area", area, False
    if "fmax_mhz" in entry:
        yield "MHz", entry["fmax_mhz"], True


def regressions(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """A phrase for each figure that both have and that is worse than it may be.

    Raises
    ------
    SynthError
        If the reports are of different configurations.
    """
    if now["digest"] != before["digest"]:
        raise SynthError(
            f"configuration {now['digest']}: the earlier report is of {before['digest']}"
        )
    found = []
    for kind in ("fpga", "cells"):
        for target, entries in now[kind].items():
            earlier = {entry["unit"]: entry for entry in before[kind].get(target, ())}
            for entry in entries:
                old = {
                    name: value
                    for name, value, _ in _figures(earlier.get(entry["unit"], {"area": {}}))
                }
                for name, value, more in _figures(entry):
                    if name not in old:
                        continue
                    worse = (
                        value < old[name] * (1 - SPEED_LIMIT)
                        if more
                        else value > old[name] * (1 + AREA_LIMIT)
                    )
                    if worse:
                        place = f"{target} {entry['unit']}"
                        found.append(f"{place}: {name} {value:g}, was {old[name]:g}")
    return found
