"""A perf report as one HTML page: no network, no file beside it, light and dark.

Every figure of a table is in an element with data-run, data-product, data-metric and data-value
(JSON), and the whole report is in <script type="application/json" id="report">.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

from systolora.html_page import json_text, page
from systolora_sim.drawing import DARK, LIGHT, css, svg
from systolora_sim.perf_charts import CHARTS
from systolora_sim.perf_figures import ORDER, memory_lines
from systolora_sim.perf_tables import (
    cycle_table,
    headline,
    layer_table,
    peer_table,
    product_table,
    roofline_table,
    settings,
    timeline_table,
    utilization_table,
)
from systolora_sim.timeline import Lane, lanes

__all__ = ["html", "style"]

_FILES = Path(__file__).parent
_ABOVE = (
    "A product may lie above the roof: its bytes move while the array works on another one. "
    "The whole step cannot lie above the dashed roof."
)


def html(report: dict[str, Any], timeline: list[dict[str, Any]]) -> str:
    """The page for a report and the events of runs[0] (module timeline; none: []).

    The same report and events give the same bytes.
    """
    workload = report["workload"]
    name = f"systolora perf: {workload['title']}, rank {report['rank']}, batch {report['batch']}"
    stacked = lanes(timeline)
    return page(
        name,
        style(),
        [
            f"<h1>{escape(workload['title'])}</h1>",
            f'<p class="scope">Counted: {escape(report["scope"])}.</p>',
            settings(report),
            headline(report),
            _memory(report),
            _chart(report, "utilization", utilization_table(report)),
            _chart(report, "cycles", cycle_table(report)),
            _chart(report, "roofline", roofline_table(report), _ABOVE),
            _timeline(stacked),
            "<h2>Products</h2>",
            *(product_table(run) for run in report["runs"]),
            peer_table(report),
            "<h2>Layers</h2>",
            layer_table(report),
            _notes(report),
        ],
        report,
        scripts=True,
        after=[_script(stacked)],
    )


def style() -> str:
    """Colours as variables, for the drawings and everything else; then the style sheet."""
    names = {role: f"var(--{role})" for role in LIGHT}
    return (
        f":root{{{_variables(LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme: dark){{:root{{{_variables(DARK)}}}}}\n"
        f"{css(names)}\n{(_FILES / 'perf_page.css').read_text(encoding='utf-8')}"
    )


def _variables(colours: dict[str, str]) -> str:
    return ";".join(f"--{role}:{colour}" for role, colour in colours.items())


def _memory(report: dict[str, Any]) -> str:
    first, *rest = memory_lines(report)
    items = "".join(f"<li>{escape(line)}</li>" for line in rest)
    return (
        f'<h2>What the limit is</h2>\n<p id="memory-limit"><strong>{escape(first)}</strong>'
        f"</p>\n<ul>{items}</ul>"
    )


def _chart(report: dict[str, Any], kind: str, table: str, caption: str = "") -> str:
    drawing = CHARTS[kind](report, False)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f"<h2>{escape(drawing.title)}</h2>\n"
        f"<figure>{svg(drawing, kind, page=True)}{below}</figure>\n"
        f"<details><summary>The same as a table</summary>{table}</details>"
    )


def _notes(report: dict[str, Any]) -> str:
    notes = [escape(note) for note in report["notes"]]
    for run in report["runs"]:
        if run["images"]:
            given = ", ".join(run["images"])
            notes.append(escape(f"{run['title']}: given transposed, free of charge: {given}"))
        notes += [escape(f"{run['title']}: {note}") for note in run["notes"]]
    if not notes:
        return ""
    return "<h2>Notes</h2>\n<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"


# Timeline -------------------------------------------------------------------------------------


def _timeline(stacked: list[Lane]) -> str:
    if not stacked:
        return "<h2>Timeline</h2>\n<p>No timeline was recorded for this run.</p>"
    buttons = "".join(
        f'<button type="button" data-action="{action}">{words}</button>'
        for action, words in (
            ("in", "Zoom in"), ("out", "Zoom out"), ("left", "Earlier"), ("right", "Later"),
            ("whole", "Whole step"),
        )
    )  # fmt: skip
    legend = "".join(
        f'<li><i style="background:var(--s{index})"></i>{name}</li>'
        for index, name in enumerate(ORDER)
    )
    return (
        '<h2>Timeline of the step</h2>\n<section id="timeline" aria-label="Timeline">\n'
        f'<div class="controls">{buttons}'
        '<input id="timeline-find" type="search" placeholder="find, e.g. dB" '
        'aria-label="Find events by name">'
        '<button type="button" data-action="next">Next</button></div>\n'
        '<canvas tabindex="0" role="img" aria-label="Events of each queue, the array and the buses '
        'over time; the table below has the totals. Keys: plus, minus, arrows, 0, n."></canvas>\n'
        '<p id="timeline-told" aria-live="polite">Point at an event. Drag moves; Ctrl and wheel, '
        "or a double click, zoom; keys: + - arrows 0.</p>\n"
        f'<ul class="legend">{legend}</ul>\n'
        '<p class="muted">The figure behind a name is how busy its lane is in what is shown. '
        "Where events are narrower than a pixel, its colour is the stronger the busier it is.</p>\n"
        "<noscript><p>The timeline needs JavaScript; the totals do not.</p></noscript>\n"
        f"</section>\n<details><summary>The same as a table</summary>{timeline_table(stacked)}"
        "</details>"
    )


def _script(stacked: list[Lane]) -> str:
    if not stacked:
        return ""
    program = (_FILES / "perf_timeline.js").read_text(encoding="utf-8")
    data = json_text(_packed(stacked))
    return (
        f'<script type="application/json" id="timeline-data">{data}</script>\n'
        f"<script>\n{program}</script>"
    )


def _packed(stacked: list[Lane]) -> dict[str, Any]:
    """Lanes as perf_timeline.js reads them: names and arguments once, times as differences."""
    names: dict[str, int] = {}
    args: dict[str, int] = {}
    packed = []
    for lane in stacked:
        columns: dict[str, Any] = {"label": lane.label, "gap": [], "length": []}
        columns |= {"name": [], "args": []}
        end = 0
        for event in lane.events:
            columns["gap"].append(event["start"] - end)
            columns["length"].append(event["end"] - event["start"])
            columns["name"].append(names.setdefault(event["name"], len(names)))
            text = json.dumps(event.get("args") or {})
            columns["args"].append(args.setdefault(text, len(args)))
            end = event["end"]
        packed.append(columns)
    return {
        "cycles": max(lane.events[-1]["end"] for lane in stacked),
        "names": list(names),
        "roles": [_role(name) for name in names],
        "args": list(args),
        "lanes": packed,
    }


def _role(name: str) -> int:
    """The colour of an event: by the product, the first word of its name; else that of "other"."""
    word = name.split(" ")[0]
    return ORDER.index(word if word in ORDER else "other")
