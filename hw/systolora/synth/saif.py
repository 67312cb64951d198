"""Activity as SAIF (IEEE 1801, backward SAIF of nets): written, and read again.

Durations are in cycles, summed over the runs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from systolora.synth.activity import Activity
from systolora.synth.netlist import HIGH, Netlist
from systolora.synth.tools import SynthError

__all__ = ["NetActivity", "read_saif", "saif_text"]


@dataclass(frozen=True)
class NetActivity:
    """Of a net: changes per cycle, and the share of the time at 1."""

    toggles: float
    ones: float


def _escaped(name: str) -> str:
    return re.sub(r"([^\w\\])", r"\\\1", name)


def saif_text(netlist: Netlist, activity: Activity) -> str:
    """The activity of all nets of a netlist."""
    total = activity.cycles
    lines = [
        "(SAIFILE",
        '(SAIFVERSION "2.0")',
        '(DIRECTION "backward")',
        "(DIVIDER / )",
        "(TIMESCALE 1 ns)",
        f"(DURATION {total})",
        f"(INSTANCE {netlist.top}",
        " (NET",
    ]
    for number, name in enumerate(netlist.names):
        if number <= HIGH or not name:
            continue
        high = int(activity.ones[number])
        lines.append(
            f"  ({_escaped(name)} (T0 {total - high}) (T1 {high}) (TX 0)"
            f" (TC {int(activity.toggles[number])}) (IG 0))"
        )
    return "\n".join((*lines, " )", ")", ")", ""))


_ENTRY = re.compile(
    r"\(((?:\\.|[^\s()\\])+)\s+((?:\((?:T0|T1|TX|TZ|TB|TC|IG)\s+\d+\)\s*)+)\)", re.S
)
_COUNT = re.compile(r"\((\w+)\s+(\d+)\)")
_DURATION = re.compile(r"\(DURATION\s+([\d.]+)\s*\)")


def read_saif(path: Path, cycles: float | None = None) -> dict[str, NetActivity]:
    """The nets of a SAIF file with one instance; names without escapes.

    `cycles` : in the file's duration; by default a cycle is a unit of time.

    Raises
    ------
    SynthError
        If it cannot be read, or is no SAIF file.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SynthError(f"{path}: {error.strerror}") from None
    duration = _DURATION.search(text)
    if "SAIFILE" not in text or duration is None or not float(duration[1]):
        raise SynthError(f"{path}: not a SAIF file: no SAIFILE with a DURATION above 0")
    total = float(duration[1])
    nets = {}
    for match in _ENTRY.finditer(text):
        counts = {kind: int(number) for kind, number in _COUNT.findall(match[2])}
        if "TC" not in counts:
            continue
        name = re.sub(r"\\(.)", r"\1", match[1])
        nets[name] = NetActivity(counts["TC"] / (cycles or total), counts.get("T1", 0) / total)
    if not nets:
        raise SynthError(f"{path}: no net with a count TC")
    return nets
