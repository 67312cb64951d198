"""The report of `systolora synth`: its shape, as JSON and as text."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

__all__ = ["CellEntry", "CriticalPath", "FpgaEntry", "Report", "text", "untimed"]

#: Of the JSON; goes up when a field changes its meaning.
VERSION = 1


class CriticalPath(TypedDict):
    """The longest path: its ends, its delay by kind in ns, the cells that it goes through."""

    to: str
    ns: dict[str, float]
    through: list[str]
    # and `from`, which is no identifier of Python


class FpgaEntry(TypedDict):
    """A unit on an FPGA; the fields of timing only where it was placed and routed."""

    unit: str
    pes: int
    area: dict[str, int]
    cells: dict[str, int]
    overflow: list[str]
    per_pe: NotRequired[dict[str, float]]
    fmax_mhz: NotRequired[float]
    seeds: NotRequired[dict[str, float | None]]
    used: NotRequired[dict[str, int]]
    critical_path: NotRequired[CriticalPath | None]
    harness: NotRequired[dict[str, int]]  # its inputs, outputs, registers, LUTs, in `used` alone
    untimed: NotRequired[dict[str, int]]  # cells whose paths the frequency leaves out, by type


class CellEntry(TypedDict):
    """A unit in standard cells: um2 (or the library's unit), MHz, W; see asic.py."""

    unit: str
    pes: int
    area: float
    sequential_area: float
    cells: dict[str, int]
    multiplier_share: NotRequired[float | None]
    area_per_pe: NotRequired[float]
    period_ns: NotRequired[float]
    slack_ns: NotRequired[float]
    fmax_mhz: NotRequired[float]
    power_w: NotRequired[float]
    critical_path: NotRequired[dict[str, Any]]


class Report(TypedDict):
    """The whole report."""

    version: int
    configuration: dict[str, int | bool]
    digest: str
    tools: dict[str, str]
    fpga: dict[str, list[FpgaEntry]]
    cells: dict[str, list[CellEntry]]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.rjust(width) if i else cell.ljust(width)
                  for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in (header, *rows)
    ]  # fmt: skip


def _path(entry: dict[str, Any]) -> str:
    path = entry["critical_path"]
    parts = ", ".join(f"{kind} {ns:.2f}" for kind, ns in path["ns"].items() if ns)
    return f"  {entry['unit']}: {path['from']} -> {path['to']} ({parts} ns)"


def untimed(cells: Mapping[str, int]) -> str:
    """What a frequency leaves out, in words."""
    named = ", ".join(f"{number} {kind}" for kind, number in cells.items())
    return f"the frequency leaves out paths through {named}, which nextpnr does not time"


def text(report: Report) -> str:
    """The report as tables of text."""
    lines = [f"configuration {report['digest']}"]
    lines += [f"{name}: {version}" for name, version in report["tools"].items()]
    for name, entries in report["fpga"].items():
        counts = [n for n in entries[0]["area"] if any(e["area"][n] for e in entries)]
        per = [n for n in counts if any("per_pe" in e for e in entries)][:3]
        header = ["unit", *counts, *(f"{n}/PE" for n in per), "MHz"]
        rows = []
        for entry in entries:
            row = [entry["unit"], *(str(entry["area"][n]) for n in counts)]
            row += [f"{entry['per_pe'][n]:.1f}" if "per_pe" in entry else "" for n in per]
            most = "<=" if entry.get("untimed") else ""
            row.append(f"{most}{entry['fmax_mhz']:.1f}" if "fmax_mhz" in entry else "")
            rows.append(row)
        lines += ["", name, *_table(header, rows)]
        lines += [f"  {e['unit']} does not fit: {', '.join(e['overflow'])}"
                  for e in entries if e["overflow"]]  # fmt: skip
        left = [(e["unit"], e.get("untimed")) for e in entries]
        lines += [f"  {unit}: {untimed(cells)}" for unit, cells in left if cells]
        timed = [e for e in entries if e.get("critical_path")]
        lines += ["longest paths:"] * bool(timed) + [_path(dict(e)) for e in timed]
    for name, entries in report["cells"].items():
        header = ["unit", "um2", "um2/PE", "registers", "multiplier", "MHz", "mW"]
        rows = []
        for e in entries:
            share = e.get("multiplier_share")
            rows.append(
                [
                    e["unit"],
                    f"{e['area']:.1f}",
                    f"{e['area_per_pe']:.1f}" if "area_per_pe" in e else "",
                    f"{e['sequential_area'] / e['area']:.0%}" if e["area"] else "",
                    "" if share is None else f"{share:.0%}",
                    f"{e['fmax_mhz']:.0f}" if "fmax_mhz" in e else "",
                    f"{1e3 * e['power_w']:.3f}" if "power_w" in e else "",
                ]
            )
        lines += ["", name, *_table(header, rows)]
    return "\n".join(lines) + "\n"
