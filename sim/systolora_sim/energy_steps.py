"""Energies of training steps of `sd15-kv`: ours beside textbook arrays of int8, bf16 and fp32."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from systolora_sim.cycle_model import time_program
from systolora_sim.energy import DRAMS, Memories, Step, step_energy
from systolora_sim.runner import RunError
from systolora_sim.step_traffic import traffic
from systolora_sim.utilization_cases import CASES, LATENCY, OURS, Case, compiled, training

__all__ = ["ARRAYS", "Technology", "figures", "steps"]

TEXTBOOK = "textbook-ws"
#: Of a column of the tables: array in the report of MACs, program, bytes of operand and sum.
ARRAYS = {
    "ours": ("systolora", OURS, 1, 6),
    "int8": ("int8", TEXTBOOK, 1, 4),
    "bf16": ("bf16", TEXTBOOK, 2, 4),
    "fp32": ("fp32", TEXTBOOK, 4, 4),
}
_DRAM = "LPDDR4"


@dataclass(frozen=True)
class Technology:
    """Gates and SRAM: reports of `systolora power`, pJ per byte read and written, their source."""

    name: str
    macs: Mapping[str, Any]
    glitches: Mapping[str, Any] | None
    read: float
    write: float
    source: str


def _cases() -> list[Case]:
    return [
        case for case in CASES
        if case.bits == 8 and case.bus_bits == 512 and not case.cache_base and not case.just_in_time
    ]  # fmt: skip


def _known(file: Path) -> dict[str, Any]:
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        return {case["name"]: case for case in cases}
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{file}: no figures of utilization, which have `cases`") from None


def steps(utilization: Path) -> dict[str, dict[str, Step]]:
    """By case and column: the step. Ours: cycles and bytes of docs/results/utilization.json.

    Raises
    ------
    RunError
        If the file cannot be read, or a case is not in it.
    """
    known, found = _known(utilization), {}
    for case in _cases():
        if case.name not in known:
            raise RunError(f"{utilization}: no case {case.name!r}")
        state = training(case)
        programs = {name: compiled(case, state, name) for name in (OURS, TEXTBOOK)}
        run = known[case.name].get("rtl") or known[case.name]["model"]
        other = time_program(
            programs[TEXTBOOK].config, programs[TEXTBOOK].program, memory_latency=LATENCY
        )
        if other.cycles != known[case.name]["baselines"][TEXTBOOK]["model"]:
            raise RunError(f"{utilization}: {case.name}: older than {TEXTBOOK} is now")
        amounts = {
            OURS: (run["cycles"], run["bytes_read"], run["bytes_written"]),
            TEXTBOOK: (
                other.cycles, other.counters["BYTES_READ"], other.counters["BYTES_WRITTEN"]
            ),
        }  # fmt: skip
        counts = {name: traffic(p.program, p.config) for name, p in programs.items()}
        found[case.name] = {
            column: Step(
                array=array,
                cycles=amounts[name][0],
                bytes_read=amounts[name][1],
                bytes_written=amounts[name][2],
                traffic=counts[name],
                config=programs[name].config,
                element=element,
                word=word,
            )
            for column, (array, name, element, word) in ARRAYS.items()
        }
    return found


def figures(
    technologies: Sequence[Technology], all_steps: Mapping[str, Mapping[str, Step]], **about: Any
) -> dict[str, Any]:
    """Everything that docs/results/energy.json has; `about` goes in as it is."""
    result: dict[str, Any] = {"format": "systolora-energy 1", **about}
    result["dram"] = {name: {"pj_per_byte": pj, "source": by} for name, (pj, by) in DRAMS.items()}
    result["counts"] = {
        case: {
            column: {
                "cycles": step.cycles,
                "bytes_read": step.bytes_read,
                "bytes_written": step.bytes_written,
                **vars(step.traffic),
            }
            for column, step in columns.items()
            if column in ("ours", "int8")
        }
        for case, columns in all_steps.items()
    }
    result["technologies"] = {}
    for technology in technologies:
        memories = {
            name: Memories(technology.read, technology.write, pj) for name, (pj, _) in DRAMS.items()
        }

        def of(macs: Mapping[str, Any], dram: str, memories=memories) -> dict[str, Any]:
            return {
                case: {
                    column: step_energy(step, macs, memories[dram])
                    for column, step in columns.items()
                }
                for case, columns in all_steps.items()
            }

        entry: dict[str, Any] = {
            "sram": {
                "read_pj_per_byte": technology.read,
                "write_pj_per_byte": technology.write,
                "source": technology.source,
            },
            "macs": technology.macs,
            "steps": of(technology.macs, _DRAM),
            "other_dram": {name: of(technology.macs, name) for name in DRAMS if name != _DRAM},
        }
        if technology.glitches is not None:
            entry["glitches"] = technology.glitches
            entry["steps_with_glitches"] = of(technology.glitches, _DRAM)
        result["technologies"][technology.name] = entry
    return result
