"""Calculates docs/results/energy.* and writes them there.

Gates come from the reports that `systolora power` wrote into DIR/power: asap7.json and sg13g2.json,
and with -unit-delay in their names those with glitches.
"""

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from systolora import __version__
from systolora.synth.sram import sram_energy
from systolora.synth.tools import SynthError
from systolora_sim.energy_report import render
from systolora_sim.energy_steps import Technology, figures, steps
from systolora_sim.results_script import write_results
from systolora_sim.runner import RunError

#: 7 nm, 32 KB: Jouppi et al., ISCA 2021, table 2.
_SRAM_7NM = (8.5 / 8, "32 KB in 7 nm: 8.5 pJ per 64 bits, Jouppi et al., ISCA 2021, table 2")


def _report(file: Path) -> dict[str, Any]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        assert {"systolora", "int8", "bf16", "fp32", "skew"} <= report["arrays"].keys()
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}: write it with systolora power --json") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise RunError(f"{file}: no report of `systolora power` with all arrays") from None
    return report


def _technologies(directory: Path, sram: Path) -> list[Technology]:
    power = directory / "power"
    try:
        sram_pj = sram_energy(sram)
    except SynthError as error:
        raise RunError(str(error)) from None
    memories = {
        "asap7": ("ASAP7", (_SRAM_7NM[0], _SRAM_7NM[0]), _SRAM_7NM[1]),
        "sg13g2": ("IHP SG13G2", sram_pj, f"its macro {sram.stem}"),
    }
    return [
        Technology(
            name,
            _report(power / f"{file}.json"),
            _report(glitches) if (glitches := power / f"{file}-unit-delay.json").exists() else None,
            read=energies[0],
            write=energies[1],
            source=source,
        )
        for file, (name, energies, source) in memories.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sram", metavar="FILE", type=Path, required=True,
                        help="Liberty file of SG13G2's macro of 1024 x 64 bits")  # fmt: skip
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()

    def measure() -> dict[str, Any]:
        technologies = _technologies(arguments.output, arguments.sram)
        return figures(
            technologies,
            steps(arguments.output / "utilization.json"),
            command=f"python scripts/energy.py --sram {arguments.sram.name}",
            versions={"systolora": __version__, "numpy": metadata.version("numpy")},
        )

    return write_results(arguments.output, "energy", measure, render)


if __name__ == "__main__":
    sys.exit(main())
