"""All figures of the report as one dictionary: means over seeds, differences, verdicts."""

import math
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from systolora_sim.train_demo.memory import count, device_widths, float_widths
from systolora_sim.train_demo.metrics import interval
from systolora_sim.train_demo.presets import settings_json
from systolora_sim.train_demo.recipes import ABLATION, METRICS, RECIPES, REFERENCE, Way
from systolora_sim.train_demo.settings import Settings
from systolora_sim.train_demo.verdicts import verdicts
from systolora_sim.workload import load_workload

__all__ = ["places", "summarize"]

#: Share of the last steps whose mean is the final training loss.
_TAIL = 0.2
_PACKAGES = ("torch", "diffusers", "peft", "numpy", "scikit-learn", "mlxtend")

Figures = dict[str, Any]


def places(result: Figures) -> list[str]:
    """How an adapter was measured: "int" in the arithmetic it trained in, "float" exported."""
    return [place for place in ("int", "float") if place in result]


def summarize(settings: Settings, found: Figures, results: Iterable[Figures]) -> Figures:
    """The report. found : what `run` knows before fine-tuning; results : of all tasks."""
    groups: dict[str, list[Figures]] = {}
    for result in results:
        groups.setdefault(result["recipe"], []).append(result)
    report: Figures = {
        "settings": settings_json(settings),
        "data": {key: found[key] for key in ("source", "size", "images")},
        "versions": _versions(),
        "floors": found["floors"],
        "pretraining": _thinned(found["pretrain_losses"]),
        "recipes": [_recipe(n, RECIPES[n], groups[n], groups) for n in settings.recipes],
        "ablation": [_recipe(n, ABLATION[n], groups[n], groups) for n in settings.ablation],
        "memory": _memory(settings),
        "seconds": math.fsum(each["seconds"] for group in groups.values() for each in group),
    }
    report["warnings"] = [
        warning for each in (*report["recipes"], *report["ablation"]) for warning in _warnings(each)
    ]
    report["verdicts"] = verdicts(report)
    return report


def _versions() -> Figures:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }


def _thinned(losses: Sequence[float], points: int = 60) -> list[list[float]]:
    """[step, mean of the steps up to it] at some places."""
    size = max(1, math.ceil(len(losses) / points))
    return [
        [begin + len(part), math.fsum(part) / len(part)]
        for begin in range(0, len(losses), size)
        if (part := losses[begin : begin + size])
    ]


def _tail(result: Figures) -> float:
    """The final training loss: a mean, since a batch's loss is mostly chance."""
    last = result["losses"][-max(1, round(_TAIL * len(result["losses"]))) :]
    return math.fsum(last) / len(last)


# Recipes --------------------------------------------------------------------------------------


def _recipe(name: str, way: Way, runs: list[Figures], groups: dict[str, list[Figures]]) -> Figures:
    whole = [run for run in runs if not run["diverged"]]
    metrics: Figures = {}
    if whole:
        for place in places(whole[0]):
            for metric in METRICS:
                if metric in whole[0][place]:
                    values = [run[place][metric] for run in whole]
                    metrics[f"{place}.{metric}"] = interval(values) | {"values": values}
    trained = [run for run in whole if run["losses"]]
    if trained:
        values = [_tail(run) for run in trained]
        metrics["loss"] = interval(values) | {"values": values}
    figures: Figures = {
        "name": name,
        "title": way.title,
        "control": way.control,
        "quantized": way.quantized,
        "seeds": len(runs),
        "diverged": {str(run["seed"]): run["diverged"] for run in runs if run["diverged"]},
        "zero_gradients": _summed(run["zero_gradients"] for run in runs),
        "sticky": _sticky(runs),
        "metrics": metrics,
        "differences": _differences(whole, groups.get(REFERENCE, [])),
        "curve": _curve(whole),
        "losses": _thinned(_mean_losses(trained)),
        "seconds": math.fsum(run["seconds"] for run in runs) / len(runs),
    }
    return figures


def _summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, value in each.items():
            total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def _sticky(runs: list[Figures]) -> dict[str, int]:
    """In how many (seed, layer) pairs each sticky bit was set."""
    return _summed({bit: 1} for run in runs for bits in run["sticky"].values() for bit in bits)


def _differences(runs: list[Figures], reference: list[Figures]) -> Figures:
    """Figures minus those of the reference with the same seed, relative to the reference's mean.

    By "<place>.<metric>"; float32's one place stands beside both of the others.
    """
    there = {run["seed"]: run for run in reference if not run["diverged"]}
    pairs = [(run, there[run["seed"]]) for run in runs if run["seed"] in there]
    if not pairs:
        return {}
    differences: Figures = {}
    for place in places(pairs[0][0]):
        for metric in METRICS:
            if metric in pairs[0][0][place] and metric in pairs[0][1]["float"]:
                differences[f"{place}.{metric}"] = _relative(
                    [run[place][metric] for run, _ in pairs],
                    [other["float"][metric] for _, other in pairs],
                )
    if all(run["losses"] for run, _ in pairs):
        differences["loss"] = _relative(
            [_tail(run) for run, _ in pairs], [_tail(other) for _, other in pairs]
        )
    return differences


def _relative(ours: list[float], theirs: list[float]) -> Figures:
    mean = math.fsum(theirs) / len(theirs)
    if mean == 0:
        return {"n": len(ours), "mean": None, "low": None, "high": None, "values": []}
    values = [(a - b) / mean for a, b in zip(ours, theirs, strict=True)]
    return interval(values) | {"values": values}


def _curve(runs: list[Figures]) -> list[list[float]]:
    """[step, mean held-out loss over seeds]."""
    if not runs:
        return []
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [[each[0][0], math.fsum(p[1] for p in each) / len(each)] for each in points]


def _mean_losses(runs: list[Figures]) -> list[float]:
    steps = zip(*(run["losses"] for run in runs), strict=True)
    return [math.fsum(each) / len(each) for each in steps]


def _warnings(recipe: Figures) -> list[str]:
    """What went wrong or nearly: a line each."""
    title, lines = recipe["title"], []
    for seed, why in recipe["diverged"].items():
        lines.append(f"{title}: seed {seed} diverged: {why}; it is in no mean")
    curve = recipe["curve"]
    if len(curve) > 1 and not curve[-1][1] < curve[0][1]:
        lines.append(
            f"{title}: learned nothing: its held-out loss went from {curve[0][1]:.4g} to "
            f"{curve[-1][1]:.4g}"
        )
    zeros = recipe["zero_gradients"]
    if zeros:
        worst = max(zeros.items(), key=lambda item: item[1])
        lines.append(
            f"{title}: gradients of zeros after the first step: {sum(zeros.values())} in "
            f"{len(zeros)} tensors, most in {worst[0]} ({worst[1]})"
        )
    meanings = {
        "master_range": "a master copy reached the end of its range (its scale was doubled)",
        "momentum_range": "a momentum reached the end of its range (its scale was doubled)",
        "clip_delayed": "a delayed scale clipped values",
        "acc_sat": "an accumulator saturated",
        "scale_range": "a scale left its range",
    }
    for bit, times in recipe["sticky"].items():
        words = meanings.get(bit, bit)
        lines.append(f"{title}: {words}, in {times} layers, counted over all seeds")
    return lines


# Memory ---------------------------------------------------------------------------------------


def _memory(settings: Settings) -> list[Figures]:
    """Bytes by shape and number format."""
    width = settings.channels[1]
    layer = {
        "input": "text", "rows": settings.batch * settings.tokens, "d": settings.width, "k": width
    }  # fmt: skip
    batch = 4
    sd15 = [
        {"input": each.input, "rows": batch * each.rows, "d": each.d, "k": each.k}
        for each in load_workload("sd15-kv").layers
    ]
    shapes = {
        "demo": (f"this demonstration's 8 layers, batch {settings.batch}", [layer] * 8),
        "sd15": (f"K and V of Stable Diffusion 1.5, batch {batch}", sd15),
    }
    ways = {n: RECIPES[n] for n in ("int8", "delayed", "grad16", "int16")}
    formats = {"fp32": float_widths(False), "fp16": float_widths(True)}
    formats |= {name: device_widths(way) for name, way in ways.items()}
    titles = {"fp32": "float32", "fp16": "float16, mixed precision"}
    titles |= {name: way.title for name, way in ways.items()}
    tables = []
    for shape, (title, layers) in shapes.items():
        rows = [
            {"name": name, "title": titles[name], **count(layers, settings.rank, widths)}
            for name, widths in formats.items()
        ]
        for row in rows:
            row["ratio"] = rows[0]["total"] / row["total"]
        tables.append({"name": shape, "title": title, "rank": settings.rank, "rows": rows})
    return tables
