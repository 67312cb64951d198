"""The figures of earlier runs: a file of one JSON object per line, which runs append to."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from systolora.synth.regression import figures
from systolora.synth.tools import SynthError

__all__ = ["Run", "append_run", "read_history", "run_of"]


class Run(TypedDict):
    """One run: when, of which configuration, with which tools, and its figures.

    figures : lists of target, unit, name, value
    """

    when: str
    digest: str
    tools: dict[str, str]
    figures: list[list[Any]]


def run_of(report: Mapping[str, Any], when: str) -> Run:
    """What of a report is kept. `when` is a word for it: a time, or the name of its file."""
    return {
        "when": when,
        "digest": report["digest"],
        "tools": dict(report["tools"]),
        "figures": [[*key, value] for key, value in figures(report).items()],
    }


def read_history(path: Path) -> list[Run]:
    """The runs in a file, oldest first; none if there is no such file yet.

    Raises
    ------
    SynthError
        If it cannot be read, or a line is no run.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SynthError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    runs: list[Run] = []
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            if not isinstance(run["when"], str) or not isinstance(run["digest"], str):
                raise TypeError
            for target, unit, name, value in run["figures"]:
                words = all(isinstance(part, str) for part in (target, unit, name))
                if not words or not isinstance(value, int | float):
                    raise TypeError
            dict(run["tools"])
        except (ValueError, KeyError, TypeError):
            raise SynthError(f"{path}: line {number}: not a run of synth") from None
        runs.append(run)
    return runs


def append_run(path: Path, report: Mapping[str, Any], runs: Sequence[Run]) -> Run:
    """Writes the runs with this report's as the last one, complete or not at all; returns it."""
    run = run_of(report, datetime.now(UTC).strftime("%Y-%m-%d %H:%M"))
    text = "".join(json.dumps(one) + "\n" for one in (*runs, run))
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return run
