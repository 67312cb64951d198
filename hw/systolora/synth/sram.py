"""Energy of an access to an SRAM macro, from its Liberty file."""

import re
from pathlib import Path

from systolora.synth.liberty import read_text
from systolora.synth.tools import SynthError

__all__ = ["sram_energy"]

_ACCESS = re.compile(
    r"when\s*:\s*\"([^\"]*)\"\s*;\s*rise_power\s*\([^)]*\)\s*\{\s*values\s*\(\s*\"?([\d.eE+-]+)"
)
_BITS = re.compile(r"\b(?:word_width|bit_width)\s*:\s*(\d+)")
_WRITE, _READ = "A_MEN&A_WEN&!A_REN", "A_MEN&!A_WEN&A_REN"


def sram_energy(path: Path) -> tuple[float, float]:
    """pJ per byte read and written through port A of an IHP SG13G2 macro: what its clock pin takes
    in an access, divided by the bytes of a word. Pins of addresses and data are left out.

    Raises
    ------
    SynthError
        If the file is no such macro.
    """
    text = read_text(path)
    found = {re.sub(r"\s", "", when): float(pj) for when, pj in _ACCESS.findall(text)}
    bits = [int(number) for number in _BITS.findall(text)]
    if _READ not in found or _WRITE not in found or not bits:
        raise SynthError(f"{path}: no SRAM macro with energies of reads and writes by A_WEN, A_REN")
    size = max(bits) / 8
    return found[_READ] / size, found[_WRITE] / size
