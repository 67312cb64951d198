"""Runs recorded layer calls again on a backend, and compares every bit with what was recorded."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from systolora.config import AcceleratorConfig
from systolora_sim import layerfile
from systolora_sim.layer import LayerError
from systolora_sim.layerfile import LayerFileError, Stored
from systolora_sim.records import RESULT, result_path
from systolora_sim.runner import RunError, run_file
from systolora_sim.statefile import holds_training
from systolora_sim.train_runner import train_file

if TYPE_CHECKING:
    from systolora_sim.rtl_backend import RtlOptions

__all__ = ["Replayed", "difference", "find_records", "replay"]

#: Results in the order in which a step computes them: the first that differs says most.
_ORDER = ("H", "Y_acc", "Y", "dH", "dA", "dB", "dX")


@dataclass(frozen=True)
class Replayed:
    """One call that ran again.

    record : its file; tensors : how many were compared; difference : the first one, None where all
    bits are the same; cycles : None where the backend has no time.
    """

    record: Path
    tensors: int
    difference: str | None
    cycles: int | None


def find_records(path: str | Path, limit: int | None = None) -> list[Path]:
    """The records of a directory in the order of their names, or the one that is a file.

    Raises
    ------
    RunError
        If there is none, or one has no results beside it.
    """
    path = Path(path)
    if path.name.endswith(RESULT):
        raise RunError(f"{path}: holds the results of a record: name the record without .result")
    if path.is_dir():
        found = sorted(
            each for each in path.glob("*.safetensors") if not each.name.endswith(RESULT)
        )
        if not found:
            raise RunError(f"{path}: holds no records (*.safetensors)")
    else:
        found = [path]
    found = found[:limit]
    for record in found:
        for file in (record, result_path(record)):
            if not file.is_file():
                raise RunError(f"{file}: cannot be read: there is no such file")
    return found


def _parse(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        return layerfile.parse(layerfile.read_bytes(path))
    except LayerFileError:
        raise
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None


def _rank(name: str) -> tuple[int, str]:
    base = name.partition(".")[0]
    return (_ORDER.index(base) if base in _ORDER else len(_ORDER), name)


def difference(
    got: tuple[Mapping[str, Stored], Mapping[str, str]],
    wanted: tuple[Mapping[str, Stored], Mapping[str, str]],
) -> str | None:
    """The first difference between two files of results, as a sentence: tensor, index, values."""
    tensors, recorded = got[0], wanted[0]
    for name in sorted(tensors.keys() | recorded.keys(), key=_rank):
        if name not in tensors or name not in recorded:
            where = "only recorded" if name in recorded else "not recorded"
            return f"{name}: {where}"
        one, other = tensors[name], recorded[name]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return (
                f"{name}: {one.dtype} {list(one.shape)}: recorded {other.dtype} {list(other.shape)}"
            )
        have, want = one.array(), other.array()
        places = np.argwhere(have != want)
        if len(places):
            index = tuple(int(i) for i in places[0])
            shown = ", ".join(map(str, index))
            more = f"; {len(places)} elements differ" if len(places) > 1 else ""
            return f"{name}[{shown}] = {have[index]}: recorded {want[index]}{more}"
    for key in sorted(got[1].keys() | wanted[1].keys()):
        have, want = (each[1].get(key, "") for each in (got, wanted))
        if have != want:
            return f"metadata {key} = {have!r}: recorded {want!r}"
    return None


def replay(
    path: str | Path,
    backend: str,
    config: AcceleratorConfig,
    *,
    limit: int | None = None,
    rtl: "RtlOptions | None" = None,
    build_dir: str | Path | None = None,
    progress: bool = True,
) -> Iterator[Replayed]:
    """Runs each record of a file or directory again, one after the other.

    Parameters
    ----------
    path : a record, or a directory of them (`records`)
    backend : one of `runner.BACKENDS`
    config : the accelerator; what was recorded does not depend on it
    limit : of how many, all if None
    rtl, build_dir, progress : as `runner.run_file` takes them

    Raises
    ------
    LayerFileError, RunError
        If a record cannot be read or run.
    """
    for record in find_records(path, limit):
        wanted = _parse(result_path(record))
        with tempfile.TemporaryDirectory(prefix="systolora-") as directory:
            out, report = Path(directory, "out.safetensors"), Path(directory, "report.json")
            run = train_file if holds_training(record) else run_file
            run(
                record, out, backend, config,
                json_path=report, rtl=rtl, build_dir=build_dir, progress=progress,
            )  # fmt: skip
            got = _parse(out)
            cycles = json.loads(report.read_text(encoding="utf-8"))["cycles"]
        yield Replayed(record, len(got[0]), difference(got, wanted), cycles)
