"""Modules of RTLIL text as Amaranth writes it: what they declare, and the same with other names."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .verilog_names import is_plain, plain, unused

__all__ = ["Module", "parse"]

_TOKEN = re.compile(r"\\\S+")
_WIRE = re.compile(
    r"\s*wire width (?P<width>\d+)(?: (?P<direction>input|output|inout) \d+ )?"
    r"(?P<signed>\s+signed)?\s+(?P<name>\S+)$"
)
_CELL = re.compile(r"(\s*cell )(\S+) (\S+)$")
_CONNECT = re.compile(r"(\s*connect )(\S+)( .*)$")
_DECLARED = re.compile(r"\s*(?:memory .* |process )(\\\S+)$")
_MEMORY_ID = re.compile(r'(\s*parameter \\MEMID ")\\(\\\S+)(")$')


@dataclass
class Module:
    """One module of RTLIL text, as Amaranth writes it."""

    name: str
    lines: list[str]
    #: width and direction (None inside) of every wire
    wires: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    #: type of every cell, by name; instances' types start with a backslash
    cells: dict[str, str] = field(default_factory=dict)
    #: other names that Verilog keeps in the same space: memories, processes
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for line in self.lines:
            if match := _WIRE.match(line):
                self.wires[match["name"]] = (int(match["width"]), match["direction"])
            elif match := _CELL.match(line):
                self.cells[match[3]] = match[2]
            elif match := _DECLARED.match(line):
                self.others.append(match[1])

    @property
    def ports(self) -> list[str]:
        """Names of the ports that have bits, without the backslash, as declared."""
        return [n[1:] for n, (width, way) in self.wires.items() if way is not None and width]

    def identifiers(self, port_names: Mapping[str, str]) -> dict[str, str]:
        """What each public name becomes: ports as told, the rest plain and unique."""
        result: dict[str, str] = {}
        taken: set[str] = set()
        public = [n for n in (*self.wires, *self.cells, *self.others) if n.startswith("\\")]
        ports = {n for n in public if n in self.wires and self.wires[n][1] is not None}

        def add(name: str, wanted: str) -> None:
            result[name] = "\\" + (new := unused(wanted, taken))
            taken.add(new)

        # Ports first, since others depend on them; then what may stay as it is.
        for name in public:
            if name in ports:
                add(name, port_names.get(name[1:], plain(name[1:])))
        rest = [name for name in public if name not in ports]
        for name in rest:
            if is_plain(name[1:]) and name[1:] not in taken:
                add(name, name[1:])
        for name in rest:
            if name not in result:
                add(name, plain(name[1:]))
        for name in public:
            if name in self.wires and not self.wires[name][0]:
                result[name] = "{  }"
        return result

    def rewritten(
        self,
        name: str,
        own: Mapping[str, str],
        types: Mapping[str, str],
        children: Callable[[str], Mapping[str, str] | None],
        port_order: Sequence[str],
    ) -> "Module":
        """This module with other names, wires without bits gone, and its ports renumbered.

        `types` maps cell types; `children` gives the identifiers of an instance's module.
        """

        def rename(match: re.Match[str]) -> str:
            return own.get(match[0], match[0])

        numbers = {f"\\{port}": number for number, port in enumerate(port_order, start=1)}
        lines: list[str] = []
        ports_of_cell: Mapping[str, str] | None = None
        in_cell = False
        for line in self.lines:
            if match := _WIRE.match(line):
                old = match["name"]
                width, direction = self.wires[old]
                if not width:
                    continue
                way = f" {direction} {numbers[old]}" if direction else ""
                signed = " signed" if match["signed"] else ""
                line = f"  wire width {width}{way}{signed} {own.get(old, old)}"
            elif match := _CELL.match(line):
                in_cell = True
                kind, old = match[2], match[3]
                ports_of_cell = children(kind)
                line = f"{match[1]}{types.get(kind, kind)} {own.get(old, old)}"
            elif in_cell and (match := _CONNECT.match(line)):
                port = match[2]
                if ports_of_cell is not None:
                    port = ports_of_cell.get(port, port)
                    if port == "{  }":
                        continue
                line = f"{match[1]}{port}{_TOKEN.sub(rename, match[3])}"
            elif match := _MEMORY_ID.match(line):
                line = f"{match[1]}\\{own.get(match[2], match[2])}{match[3]}"
            elif line.lstrip().startswith(("attribute ", "parameter ")):
                pass
            else:
                in_cell = in_cell and line.strip() != "end"
                line = _TOKEN.sub(rename, line)
            lines.append(line)
        return Module(name, lines)

    def __str__(self) -> str:
        return "\n".join((f"module \\{self.name}", *self.lines, "end", ""))


def parse(text: str) -> dict[str, Module]:
    """The modules of RTLIL text by name; attributes of modules and blank lines are dropped."""
    modules: dict[str, Module] = {}
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if name is None:
            if line.startswith("module \\"):
                name, lines = line.removeprefix("module \\"), []
        elif line == "end":
            modules[name] = Module(name, lines)
            name = None
        elif line.strip():
            lines.append(line)
    return modules
