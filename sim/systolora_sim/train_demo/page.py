"""The demonstration's report as one HTML page that opens without a network.

Every figure of a table is in an element with data-name, data-metric and data-value (JSON); the
whole report is in <script type="application/json" id="report">.
"""

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from systolora import html_page
from systolora.html_page import NONE, definitions, figure_element, row, table, text_cell
from systolora_sim.drawing import Drawing, svg
from systolora_sim.perf_page import style
from systolora_sim.train_demo import charts
from systolora_sim.train_demo.memory import PARTS
from systolora_sim.train_demo.recipes import METRICS

__all__ = ["page"]

Figures = dict[str, Any]
_SCOPE = (
    "LoRA on K and V of the cross-attentions of a toy U-Net learns a class of digits that "
    "pre-training never saw. Only these layers are quantized. A toy does not show what Stable "
    "Diffusion would look like."
)
_DISTANCE = (
    "The Fréchet distance is between features of a small classifier trained on the same data: it "
    "is no FID, and compares with nothing outside this page."
)
_PLACES = {"int": "infers in integers", "float": "infers in float32"}
_SAMPLES = {"": "held-out images of the data set", "int": "integers", "float": "float32"}


def page(report: Figures, grids: Mapping[tuple[str, str], bytes]) -> str:
    """The page; grids : PNGs of samples by (recipe, place), ("real", "") the real ones.

    The same report and images give the same bytes.
    """
    name = "systolora train-demo"
    settings = report["settings"]
    return html_page.page(
        name,
        f"{style()}\n{_OWN}",
        [
            f"<h1>{name}: LoRA in the accelerator's arithmetic against float32</h1>",
            f'<p class="scope">{escape(_SCOPE)}</p>',
            _settings(report),
            "<h2>What was to be shown</h2>",
            _verdicts(report),
            "<h2>Warnings</h2>",
            _warnings(report["warnings"]),
            "<h2>Figures by recipe</h2>",
            f"<p>{escape(_DISTANCE)}</p>",
            _metric_table(report["recipes"], f"Mean ± 95% interval over {settings['seeds']} seeds"),
            _difference_table(report["recipes"]),
            _floors(report["floors"]),
            "<h2>Losses</h2>",
            _figure(charts.held_out_chart(report), "held-out"),
            _figure(charts.loss_chart(report), "losses"),
            "<h2>Samples and distances</h2>",
            _figure(charts.distance_chart(report, "fd"), "fd"),
            _figure(charts.distance_chart(report, "hit"), "hit"),
            _grids(report, grids),
            _ablation(report),
            "<h2>Memory for training the LoRA layers</h2>",
            *(_memory(counts) for counts in report["memory"]),
        ],
        report,
    )


_OWN = """\
img.samples { image-rendering: pixelated; max-width: 100%; display: block; }
.grids { display: flex; flex-wrap: wrap; gap: 18px; }
.grids figure { margin: 0; }
.claims th[scope=row] { white-space: normal; }
.claims td { white-space: nowrap; }
td.no { color: var(--s1); font-weight: 600; }
ul.warnings li { color: var(--s1); }
"""


def _value(name: str, metric: str, value: Any, shown: str, tag: str = "td") -> str:
    return figure_element({"name": name, "metric": metric}, value, shown, tag)


def _figure(drawing: Drawing, identity: str) -> str:
    return f"<h3>{escape(drawing.title)}</h3>\n<figure>{svg(drawing, identity, page=True)}</figure>"


def _settings(report: Figures) -> str:
    settings, versions = report["settings"], report["versions"]
    minutes = report["seconds"] / 60
    items = {
        "run": f"{settings['name']}, settings {settings['digest']}",
        "data": f"{report['data']['source']}; class {settings['concept']} is the concept",
        "pre-training": f"{settings['pretrain_steps']} steps of {settings['pretrain_batch']} "
        "images of the other classes, AdamW, float32",
        "fine-tuning": f"{settings['steps']} steps of {settings['batch']} images (half of them "
        f"from {settings['concept_images']} of the concept), rank {settings['rank']}, "
        f"SGD with momentum {settings['momentum']}, lr {settings['lr']}; {settings['seeds']} seeds",
        "samples": f"{settings['samples']} per recipe and seed, DDIM, "
        f"{settings['sampling_steps']} steps",
        "time": f"{minutes:.1f} minutes of one core for fine-tuning and samples",
        "software": ", ".join(f"{key} {value}" for key, value in versions.items()),
    }
    return definitions(items)


def _verdicts(report: Figures) -> str:
    rows = []
    for each in report["verdicts"]:
        word = "reached" if each["reached"] else "not reached"
        rows.append(
            row(
                each["claim"],
                f'<td class="{"yes" if each["reached"] else "no"}" '
                f'data-verdict="{escape(each["name"])}">{word}</td>',
                _value(each["name"], "verdict", each["value"], escape(each["shown"])),
            )
        )
    claims = table("Claims of this run", ["claim", "", "measured"], rows, 2)
    return f'<div class="claims">{claims}</div>'


def _warnings(lines: list[str]) -> str:
    if not lines:
        return (
            '<p id="warnings">None: no loss diverged, no gradient vanished, nothing saturated.</p>'
        )
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul id="warnings" class="warnings">{items}</ul>'


# Recipes --------------------------------------------------------------------------------------


def _shown(figure: Figures, form: str) -> str:
    text = format(figure["mean"], form)
    if figure["low"] is None:
        return text
    return f"{text} ± {format((figure['high'] - figure['low']) / 2, form.lstrip('+'))}"


_FORMS = {"mse": ".5f", "fd": ".1f", "hit": ".3f", "mse_others": ".5f", "loss": ".5f"}


def _metric_table(recipes: list[Figures], caption: str) -> str:
    rows = []
    for each in recipes:
        for place, words in _PLACES.items():
            cells = []
            for metric in METRICS:
                figure = each["metrics"].get(f"{place}.{metric}")
                cells.append(
                    NONE if figure is None
                    else _value(
                        each["name"], f"{place}.{metric}", figure["mean"],
                        _shown(figure, _FORMS[metric]),
                    )
                )  # fmt: skip
            if any(cell != NONE for cell in cells):
                loss = each["metrics"].get("loss")
                cells.append(
                    NONE if loss is None
                    else _value(each["name"], "loss", loss["mean"], _shown(loss, ".5f"))
                )  # fmt: skip
                rows.append(row(each["title"], text_cell(words), *cells))
    return table(caption, ["recipe", "", *METRICS.values(), "final training loss"], rows, 2)


def _difference_table(recipes: list[Figures]) -> str:
    rows = []
    keys = [f"{place}.{metric}" for place in _PLACES for metric in ("mse", "fd")] + ["loss"]
    for each in recipes:
        if each["name"] == "fp32" or not each["differences"]:
            continue
        cells = []
        for key in keys:
            figure = each["differences"].get(key)
            cells.append(
                NONE if figure is None or figure["mean"] is None
                else _value(
                    each["name"], f"difference.{key}", figure["mean"], _shown(figure, "+.2%")
                )
            )  # fmt: skip
        rows.append(row(each["title"], *cells))
    head = ["recipe", "held-out loss, integers", "distance, integers"]
    head += ["held-out loss, float32", "distance, float32", "final training loss"]
    caption = "Difference to float32 with the same seed, relative; mean ± 95% interval"
    return table(caption, head, rows)


def _floors(floors: Figures) -> str:
    words = {
        "fd_other_half": "distance of the concept's other real images to the held-out ones",
        "fd_split": "distance of two halves of the held-out ones",
        "hit_real": "hit rate on real held-out images",
        "classifier_accuracy": "the classifier's accuracy on all held-out images",
    }
    rows = [
        row(words[key], _value("real", key, value, f"{value:.3f}")) for key, value in floors.items()
    ]
    return table("Real images, for comparison", ["", "value"], rows)


def _grids(report: Figures, grids: Mapping[tuple[str, str], bytes]) -> str:
    titles = {each["name"]: each["title"] for each in report["recipes"]} | {"real": "real images"}
    parts = []
    for (recipe, place), content in grids.items():
        source = "data:image/png;base64," + base64.b64encode(content).decode()
        words = f"{titles[recipe]}: {_SAMPLES[place]}"
        parts.append(
            f'<figure><img class="samples" alt="Samples, {escape(words)}" src="{source}">'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )
    return (
        "<h3>Samples: a row per seed, a column per initial noise</h3>\n"
        f'<div class="grids">{"".join(parts)}</div>'
    )


# Ablation, memory -----------------------------------------------------------------------------


def _ablation(report: Figures) -> str:
    if not report["ablation"]:
        return ""
    seeds = report["settings"]["ablation_seeds"]
    caption = f"One tensor int8, all others int16; {seeds} seeds, no samples"
    return (
        "<h2>Which tensor is to blame</h2>\n"
        f"{_metric_table(report['ablation'], caption)}\n{_difference_table(report['ablation'])}"
    )


def _memory(counts: Figures) -> str:
    rows = []
    for each in counts["rows"]:
        name = f"{counts['name']}.{each['name']}"
        cells = [_value(name, part, each[part], f"{each[part]:,}") for part in (*PARTS, "total")]
        cells.append(_value(name, "ratio", each["ratio"], f"{each['ratio']:.2f}x"))
        rows.append(row(each["title"], *cells))
    head = ["format", *PARTS, "total", "less than float32 by"]
    rank = counts["rank"]
    chart = _figure(charts.memory_chart(counts), f"memory-{counts['name']}")
    return f"{chart}\n{table(f'Bytes, rank {rank}', head, rows)}"
