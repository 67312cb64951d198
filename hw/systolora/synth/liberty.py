"""What must be known of Liberty files before tools read them: units, flip-flops, a driving cell."""

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolora.synth.tools import SynthError

__all__ = ["Cell", "Library", "Register", "read_library", "read_text"]

_GROUP = re.compile(r"^\s*(\w+)\s*\(\s*\"?([^)\"]*)\"?\s*\)\s*\{")
_AREA = re.compile(r"^\s*area\s*:\s*\"?([0-9.eE+-]+)")
_FUNCTION = re.compile(r"^\s*function\s*:\s*\"([^\"]*)\"")
_DIRECTION = re.compile(r"^\s*direction\s*:\s*\"?(\w+)")
_STATE = re.compile(r"^\s*(clocked_on|next_state|clear|preset)\s*:\s*\"([^\"]*)\"")
_TIME = re.compile(r"^\s*time_unit\s*:\s*\"?\s*([0-9.]+)\s*(fs|ps|ns|us)")
_CAPACITANCE = re.compile(r"^\s*capacitive_load_unit\s*\(\s*\"?([0-9.]+)\"?\s*,\s*\"?(\w+)\"?\s*\)")
_SECONDS = {"fs": 1e-15, "ps": 1e-12, "ns": 1e-9, "us": 1e-6}
_FARADS = {"ff": 1e-15, "pf": 1e-12}
#: Not for logic: what a designer must ask for.
_DONT_USE = re.compile(r"^\s*dont_use\s*:\s*\"?true")


@dataclass(frozen=True)
class Register:
    """What a flip-flop holds: the names of its state and the complement, and functions of pins."""

    state: str
    inverse: str
    clock: str
    next_state: str
    clear: str = ""
    preset: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: area, pins by direction, functions of outputs; whether it is a flip-flop, usable."""

    name: str
    area: float
    inputs: tuple[str, ...]
    functions: dict[str, str]
    flip_flop: bool
    usable: bool
    register: Register | None = None

    @property
    def is_buffer(self) -> bool:
        functions = [text.strip("() ") for text in self.functions.values()]
        return len(self.inputs) == 1 and functions == [self.inputs[0]]


@dataclass(frozen=True)
class Library:
    """Several Liberty files as one: the texts, and what they have.

    Members
    -------
    names : of the files
    texts : their contents, unpacked
    second, farad : their units
    cells : all cells by name
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    second: float
    farad: float
    cells: dict[str, Cell]

    @property
    def driver(self) -> Cell:
        """The buffer that stands for what drives the inputs: the middle one by area, of those
        that are called so if any are (delay cells are buffers, too).

        Raises
        ------
        SynthError
            If there is none.
        """
        buffers = sorted((c for c in self.cells.values() if c.is_buffer and c.usable),
                         key=lambda cell: (cell.area, cell.name))  # fmt: skip
        if not buffers:
            raise SynthError(f"{', '.join(self.names)}: no buffer, so nothing to drive inputs with")
        buffers = [cell for cell in buffers if "buf" in cell.name.lower()] or buffers
        return buffers[len(buffers) // 2]

    def constant(self, value: str) -> tuple[str, str] | None:
        """Cell and pin that drive a constant "0" or "1", if there are such."""
        for cell in self.cells.values():
            for pin, function in cell.functions.items():
                if not cell.inputs and function.strip("() ") == value:
                    return cell.name, pin
        return None


def read_text(path: Path) -> str:
    """A Liberty file, unpacked; SynthError if it cannot be read."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise SynthError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return data.decode("latin-1")


def _register(held: Sequence[str], functions: dict[str, str]) -> Register | None:
    names = [name.strip(' "') for name in held[0].split(",")] if held else []
    if len(names) != 2 or not {"clocked_on", "next_state"} <= functions.keys():
        return None
    return Register(
        names[0],
        names[1],
        functions["clocked_on"],
        functions["next_state"],
        functions.get("clear", ""),
        functions.get("preset", ""),
    )


def _cells(lines: Sequence[str]) -> dict[str, Cell]:
    """The cells of a file; a line holds one group's head, one attribute or one end of a group."""
    cells: dict[str, Cell] = {}
    stack: list[tuple[str, str]] = []
    state: dict[str, Any] = {}
    pin: dict[str, str] = {}
    for line in lines:
        if line.rstrip().endswith("{"):
            match = _GROUP.match(line)
            stack.append((match[1], match[2].strip()) if match else ("", ""))
            if stack[-1][0] == "cell":
                state = {"area": 0.0, "inputs": [], "functions": {}, "ff": False, "usable": True}
            elif stack[-1][0] == "pin":
                pin = {"name": stack[-1][1]}
            elif stack[-1][0] in ("ff", "ff_bank") and state:
                state["ff"] = True
                # A bank's states have no name each
                state["held"] = [stack[-1][1]] if stack[-1][0] == "ff" else []
        elif line.rstrip().endswith("}"):
            kind, name = stack.pop() if stack else ("", "")
            if kind == "pin" and state:
                if pin.get("direction") == "input":
                    state["inputs"].append(name)
                elif "function" in pin:
                    state["functions"][name] = pin["function"]
            elif kind == "cell":
                cells[name] = Cell(
                    name,
                    state["area"],
                    tuple(state["inputs"]),
                    state["functions"],
                    state["ff"],
                    state["usable"],
                    _register(state.get("held", []), state.get("functions_of_state", {})),
                )
                state = {}
        elif stack and stack[-1][0] == "cell":
            if match := _AREA.match(line):
                state["area"] = float(match[1])
            elif _DONT_USE.match(line):
                state["usable"] = False
        elif stack and stack[-1][0] == "ff" and state:
            if match := _STATE.match(line):
                state.setdefault("functions_of_state", {})[match[1]] = match[2]
        elif stack and stack[-1][0] == "pin":
            if match := _DIRECTION.match(line):
                pin["direction"] = match[1]
            elif match := _FUNCTION.match(line):
                pin["function"] = match[1]
    return cells


def read_library(paths: Sequence[Path]) -> Library:
    """Reads Liberty files, gzipped or not, that together hold the cells of a technology.

    Raises
    ------
    SynthError
        If one cannot be read, is no Liberty file, has other units than the first; if there is no
        flip-flop among all, or no logic.
    """
    names, texts = tuple(path.name for path in paths), tuple(map(read_text, paths))
    cells: dict[str, Cell] = {}
    units: list[tuple[float, float]] = []
    for path, content in zip(paths, texts, strict=True):
        # One group, attribute or end of a group on a line, however the file is laid out
        plain = re.sub(r"/\*.*?\*/", "", content, flags=re.S)
        lines = [line for line in re.sub(r"([{;}])", r"\1\n", plain).splitlines() if line.strip()]
        head = lines[:2000]
        if not any(re.match(r"\s*library\s*\(", line) for line in head):
            raise SynthError(f"{path}: not a Liberty file: no library group")
        time = next((m for line in head if (m := _TIME.match(line))), None)
        load = next((m for line in head if (m := _CAPACITANCE.match(line))), None)
        second = float(time[1]) * _SECONDS[time[2]] if time else 1e-9
        farad = float(load[1]) * _FARADS.get(load[2].lower(), 1e-12) if load else 1e-12
        units.append((second, farad))
        if units[-1] != units[0]:
            raise SynthError(f"{path}: its units differ from those of {paths[0]}")
        cells |= _cells(lines)
    if not any(cell.flip_flop and cell.usable for cell in cells.values()):
        raise SynthError(f"{', '.join(map(str, paths))}: no flip-flop among {len(cells)} cells")
    if not any(cell.functions and not cell.flip_flop for cell in cells.values()):
        raise SynthError(f"{', '.join(map(str, paths))}: no logic among {len(cells)} cells")
    return Library(names, texts, *units[0], cells)
