"""The sentences that a perf report adds to its figures."""

from typing import Any

from systolora.contract import PROGRAM_MAX
from systolora_sim.perf_figures import number, percent
from systolora_sim.perf_meter import Meter
from systolora_sim.step_program import StepProgram
from systolora_sim.workload import Workload

__all__ = ["MODEL", "SCALING_NOT_MEASURED", "cached", "first_layers", "phases", "scaling"]
__all__ += ["schedule", "shortened"]

MODEL = "Cycles depend on shapes alone: the cycle model computes no data."
SCALING_NOT_MEASURED = (
    "what the other way to scale them costs is not measured for programs of this size "
    "(--just-in-time switches)."
)


def scaling(just_in_time: bool, cycles: int, other: int | None) -> str:
    """What the two ways to scale Y and dX cost, in the cycle model."""
    before, same = "with the maxima of the step before (delayed scaling)", "with those of this step"
    if just_in_time:
        before, same = "with the maxima of this step", "with those of the step before (delayed)"
    if other is None:
        return f"Y and dX are quantized {before}; {SCALING_NOT_MEASURED}"
    return (
        f"Y and dX are quantized {before}; {same}, a step takes {other:,} cycles, "
        f"{other / cycles:.3f} times as many (cycle model)."
    )


def first_layers(workload: Workload, whole: Workload) -> str:
    """What --limit-layers has left."""
    return f"Only the first {len(workload.layers)} of {len(whole.layers)} layers of {whole.name}."


def shortened(meter: Meter, workload: Workload, program: StepProgram) -> list[str]:
    """What of the figures is not timed but counted on."""
    count = program.length + sum(
        (weight - 1) * sum(label.endswith(f" {name}") for label in program.labels)
        for name, weight in meter.weights.items()
    )
    notes = [
        f"Timed are {len(meter.workload.layers)} of {len(workload.layers)} layers: of those with "
        "the same shapes the first, the second and the last, and the second stands for all "
        "between, in every figure (docs/perf.md says how near that comes; --full times all). "
        "A timeline shows what was timed."
    ]
    if count > PROGRAM_MAX:
        notes.append(
            f"The step has about {number(count)} descriptors, more than the {number(PROGRAM_MAX)} "
            "of one program: it runs as several."
        )
    return notes


def schedule(meter: Meter, run: dict[str, Any]) -> str:
    """How the best schedule was found."""
    return (
        f"{run['title']}: the best of {meter.tried} schedules by the cycle model; the baselines "
        "have no such choice."
    )


def cached(run: dict[str, Any]) -> str:
    """What a run means in which X.W^T is loaded."""
    macs, done = run["macs"], run["computed_macs"]
    return (
        f"{run['title']}: X does not change from step to step, and the sums of X.W^T are loaded. "
        f"MACs, limit and share are those of the whole step, so a share may exceed 100%; "
        f"{number(done)} MACs are computed, {percent(done / macs)} of {number(macs)}, which alone "
        f"would be {percent(run['share'] * done / macs)} of the MAC limit. Baselines and "
        "peers compute X.W^T."
    )


def phases(step: int, run: dict[str, Any]) -> str:
    """What a step takes as three programs."""
    (parts,) = run["notes"]
    return (
        f"As {parts}; in all {number(run['cycles'])}, {run['cycles'] / step:.3f} times the one "
        "program's (cycle model)."
    )
