"""docs/results/training.md: the figures of a whole run as tables."""

from collections.abc import Iterator
from typing import Any

from systolora_sim.markdown import table
from systolora_sim.train_demo.memory import PARTS

__all__ = ["PICTURES", "render", "shortened"]

Figures = dict[str, Any]
#: Pictures of a run's directory that go beside the tables, with what they show.
PICTURES = {
    "held-out.png": "Held-out loss of the concept over steps, mean over seeds",
    "distances.png": "Fréchet distance: mean, 95% interval, seeds",
    "samples-real.png": "Real held-out images",
    "samples-none-float.png": "Before LoRA: a row per seed, a column per initial noise",
    "samples-fp32-float.png": "float32",
    "samples-int8-int.png": "int8, infers in integers",
}
_PLACES = {"int": "integers", "float": "float32"}

_INTRO = """\
# A diffusion model that trains, measured

Written by `python scripts/train_demo.py` from `{command}` ({tools}; {cores}); all figures: \
`training.json`. What was trained and how it was measured: [train-demo](../train-demo.md). \
Data: {source}; class {concept} is the concept. {steps} steps of {batch} images, rank {rank}, SGD \
with momentum {momentum}, lr {lr} falling linearly to zero, {seeds} seeds; {samples} samples per \
recipe and seed. Fine-tuning and samples took {minutes:.0f} minutes of one core.

A toy model: it does not show what Stable Diffusion would look like. The Fréchet distance is in \
features of a small classifier trained on the same data; it is no FID.
"""


def shortened(report: Figures) -> Figures:
    """The report without training losses step by step, which are most of its bytes."""
    parts = {
        part: [{k: v for k, v in each.items() if k != "losses"} for each in report[part]]
        for part in ("recipes", "ablation")
    }
    return report | parts


def _shown(figure: Figures | None, form: str) -> str:
    if figure is None or figure["mean"] is None:
        return "-"
    text = format(figure["mean"], form)
    if figure["low"] is None:
        return text
    return f"{text} ± {format((figure['high'] - figure['low']) / 2, form.lstrip('+'))}"


def _rows(recipes: list[Figures]) -> Iterator[list[str]]:
    """Recipe by place of inference: figures, then differences to float32."""
    for recipe in recipes:
        metrics, differences = recipe["metrics"], recipe["differences"]
        for place, words in _PLACES.items():
            if f"{place}.mse" not in metrics:
                continue
            own = recipe["name"] == "fp32"
            yield [
                recipe["title"],
                words,
                _shown(metrics[f"{place}.mse"], ".5f"),
                "-" if own else _shown(differences.get(f"{place}.mse"), "+.2%"),
                _shown(metrics.get(f"{place}.fd"), ".0f"),
                "-" if own else _shown(differences.get(f"{place}.fd"), "+.1%"),
                _shown(metrics.get(f"{place}.hit"), ".3f"),
                _shown(metrics[f"{place}.mse_others"], ".5f"),
                "-" if own else _shown(differences.get("loss"), "+.2%"),
            ]


def render(report: Figures, command: str) -> str:
    """The page in Markdown; pictures are expected in training/."""
    settings, versions = report["settings"], report["versions"]
    tools = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "machine")
    lines = [
        _INTRO.format(
            command=command,
            tools=tools,
            cores=versions["machine"],
            source=report["data"]["source"],
            minutes=report["seconds"] / 60,
            **settings,
        )
    ]
    lines += ["## Claims", ""]
    lines += table(
        ["claim", "", "measured"],
        (
            [each["claim"], "reached" if each["reached"] else "**not reached**", each["shown"]]
            for each in report["verdicts"]
        ),
        2,
    )
    head = ["recipe", "infers in", "held-out loss", "to float32", "distance", "to float32"]
    head += ["hit rate", "loss, other classes", "final training loss, to float32"]
    lines += ["## Recipes", "", "Mean ± 95% interval over seeds; differences are paired.", ""]
    lines += table(head, _rows(report["recipes"]), 2)
    floors = report["floors"]
    lines += [
        f"Real images: distance of the concept's other images to the held-out ones "
        f"{floors['fd_other_half']:.1f}, of two halves of the held-out ones "
        f"{floors['fd_split']:.1f}; hit rate {floors['hit_real']:.3f}; the classifier's accuracy "
        f"{floors['classifier_accuracy']:.3f}.",
        "",
    ]
    if report["ablation"]:
        seeds = settings["ablation_seeds"]
        words = f"One tensor int8, all others int16; {seeds} seed{'s' if seeds > 1 else ''}."
        lines += ["## Which tensor is to blame", "", words, ""]
        short = [0, 1, 2, 3, 7, 8]
        rows = ([row[i] for i in short] for row in _rows(report["ablation"]))
        lines += table([head[i] for i in short], rows, 2)
    lines += ["## Memory for training the LoRA layers", ""]
    for counts in report["memory"]:
        parts = (*PARTS, "total")
        lines += [f"{counts['title']}, rank {counts['rank']}; bytes:", ""]
        lines += table(
            ["format", *parts, "less than float32 by"],
            (
                [row["title"], *(f"{row[key]:,}" for key in parts), f"{row['ratio']:.2f}x"]
                for row in counts["rows"]
            ),
        )
    lines += ["## Warnings of the run", ""]
    lines += [f"- {line}" for line in report["warnings"]] or ["None."]
    lines += ["", "## Pictures", ""]
    for name, words in PICTURES.items():
        lines += [f"![{words}](training/{name})", "", words + ".", ""]
    return "\n".join(lines).rstrip() + "\n"
