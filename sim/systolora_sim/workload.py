"""Workloads: layers of known models, by name or from a TOML file (docs/workloads.md).

Workloads from files of adapters are in `workload_adapter`, their states in `workload_state`.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from systolora_sim.workload_adapter import from_adapter
from systolora_sim.workload_layers import (
    MAX_LAYERS,
    StepMacs,
    Workload,
    WorkloadError,
    WorkloadLayer,
)
from systolora_sim.workload_state import state

__all__ = ["WORKLOADS", "StepMacs", "Workload", "WorkloadError", "WorkloadLayer"]
__all__ += ["from_adapter", "load_workload", "state"]

_FOLDER = resources.files("systolora_sim") / "workloads"
#: Names of the shipped workloads.
WORKLOADS = tuple(
    sorted(file.name.removesuffix(".toml") for file in _FOLDER.iterdir() if file.is_file())
)

_TYPES = {str: "a string", bool: "true or false", int: "an integer"}
#: Keys of a table with their types; those with a default may be absent.
_TOP: dict[str, tuple[type, Any]] = {"title": (str, None), "source": (str, None)}
_LAYER: dict[str, tuple[type, Any]] = {
    "name": (str, None),
    "input": (str, ""),
    "rows": (int, None),
    "d": (int, None),
    "k": (int, None),
    "dx": (bool, False),
    "constant": (bool, False),
    "count": (int, 1),
    "shared": (bool, False),
}
_STEP: dict[str, tuple[type, Any]] = {"macs": (int, None), "source": (str, None)}


def _table(table: Any, keys: dict[str, tuple[type, Any]]) -> dict[str, Any]:
    """A table's values with the defaults of those that are absent; raises WorkloadError."""
    if not isinstance(table, dict):
        raise WorkloadError(f"{table!r}: must be a table")
    for name in table:
        if name not in keys:
            raise WorkloadError(f"{name}: unknown key: must be among {', '.join(keys)}")
    values = {}
    for name, (kind, default) in keys.items():
        value = table.get(name, default)
        if value is None:
            raise WorkloadError(f"{name}: missing: must be there")
        if type(value) is not kind:
            raise WorkloadError(f"{name}: {value!r}: must be {_TYPES[kind]}")
        values[name] = value
    return values


def _layers(table: Any) -> list[WorkloadLayer]:
    """The layers of one [[layer]]."""
    values = _table(table, _LAYER)
    count, shared = values.pop("count"), values.pop("shared")
    values["input"] = values["input"] or values["name"]
    if not 1 <= count <= MAX_LAYERS:
        raise WorkloadError(f"count: {count}: must be from 1 to {MAX_LAYERS}")
    first = WorkloadLayer(**values)
    if count == 1:
        return [first]
    digits = len(str(count - 1))
    made = []
    for number in range(count):
        ending = f".{number:0{digits}}"
        own = values["input"] if shared else values["input"] + ending
        made.append(WorkloadLayer(**values | {"name": values["name"] + ending, "input": own}))
    return made


def _workload(name: str, content: bytes) -> Workload:
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise WorkloadError("not valid TOML: not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise WorkloadError(f"not valid TOML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise WorkloadError("not valid TOML: nested too deeply") from None
    tables, step = data.pop("layer", []), data.pop("step", None)
    top = _table(data, _TOP)
    if not isinstance(tables, list) or not tables:
        raise WorkloadError("layer: must be at least one [[layer]]")
    layers: list[WorkloadLayer] = []
    for number, table in enumerate(tables):
        title = table.get("name") if isinstance(table, dict) else None
        try:
            layers += _layers(table)
        except WorkloadError as error:
            where = title if isinstance(title, str) and title else f"number {number + 1}"
            raise WorkloadError(f"layer {where}: {error}") from None
    whole = None
    if step is not None:
        try:
            whole = StepMacs(**_table(step, _STEP))
            if whole.macs < 1:
                raise WorkloadError(f"macs: {whole.macs}: must be at least 1")
        except WorkloadError as error:
            raise WorkloadError(f"step: {error}") from None
    return Workload(name=name, **top, layers=tuple(layers), step=whole)


def load_workload(name_or_path: str | Path) -> Workload:
    """A shipped workload by its name, or one from a TOML file by its path.

    What ends in `.toml` or has a slash is a path; anything else is a name, or else a path.

    Raises
    ------
    WorkloadError
        If there is neither, the file cannot be read, or it breaks a rule of docs/workloads.md;
        the message names the file, the layer, the key and the rule.
    """
    text = str(name_or_path)
    try:
        if isinstance(name_or_path, str) and text in WORKLOADS:
            return _workload(text, (_FOLDER / f"{text}.toml").read_bytes())
        path = Path(name_or_path)
        if not path.exists() and path.name == text and path.suffix != ".toml":
            raise WorkloadError(
                f"no such workload: must be one of {', '.join(WORKLOADS)}, or a file"
            )
        return _workload(path.stem, path.read_bytes())
    except WorkloadError as error:
        raise WorkloadError(f"{text}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise WorkloadError(f"{text}: cannot be read: {reason}") from None
