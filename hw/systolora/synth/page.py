"""A report of synth as one HTML page: no network, no file beside it, light and dark.

Every figure is in an element with data-target, data-unit, data-metric and data-value (JSON), and
the whole report is in <script type="application/json" id="report">.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from systolora.html_page import definitions, figure_element, page, row, table, text_cell
from systolora.synth.history import Run
from systolora.synth.regression import FREQUENCY, Figure, figures, is_worse
from systolora.synth.report import untimed
from systolora.synth.targets import TARGETS

__all__ = ["html"]


def html(report: Mapping[str, Any], earlier: Sequence[Run] = ()) -> str:
    """The page for a report; `earlier` runs, oldest first, are its history.

    Only runs of the same configuration count. The same arguments give the same bytes.
    """
    past = [run for run in earlier if run["digest"] == report["digest"]]
    config = report["configuration"]
    title = f"systolora synth: {config['rows']} x {config['cols']} PEs"
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    before = _before(past)
    return page(
        title,
        style,
        [
            f"<h1>{escape(title)}</h1>",
            _settings(report),
            *(_fpga(name, entries, before) for name, entries in report["fpga"].items()),
            *(_cells(name, entries, before) for name, entries in report["cells"].items()),
            _paths(report),
            _history(report, past),
        ],
        report,
    )


def _before(past: Sequence[Run]) -> dict[Figure, float]:
    """The last earlier value of every figure."""
    return {Figure(*key): value for run in past for *key, value in run["figures"]}


def _settings(report: Mapping[str, Any]) -> str:
    fields = ", ".join(f"{k} = {json.dumps(v)}" for k, v in report["configuration"].items())
    return definitions({"configuration": f"{report['digest']}: {fields}", **report["tools"]})


def _change(now: float, before: float | None, name: str) -> str:
    """How a figure differs from the one before, as words: colour alone tells nothing."""
    if before is None or now == before:
        return ""
    share = f"{(now - before) / before:+.1%}" if before else f"was {before:g}"
    if is_worse(name, now, before):
        return f' <span class="worse">{share}, too much</span>'
    kind = "better" if (now > before) == (name == FREQUENCY) else "muted"
    return f' <span class="{kind}">{share}</span>'


def _cell(key: Figure, value: float | None, digits: int = 0, change: str = "") -> str:
    if value is None:
        return "<td></td>"
    data = {"target": key.target, "unit": key.unit, "metric": key.name}
    return f"<td>{figure_element(data, value, f'{value:,.{digits}f}', 'span')}{change}</td>"


def _fpga(name: str, entries: Sequence[Mapping[str, Any]], before: Mapping[Figure, float]) -> str:
    """Areas, areas per PE, and frequencies of the units on an FPGA."""
    known = TARGETS.get(name)
    counts = [n for n in entries[0]["area"] if any(e["area"].get(n) for e in entries)]
    rows, shares = [], []
    for entry in entries:
        unit, cells = entry["unit"], []
        for count in counts:
            key, value = Figure(name, unit, count), entry["area"].get(count)
            cells.append(_cell(key, value, 0, _change(value or 0, before.get(key), count)))
        key, value = Figure(name, unit, FREQUENCY), entry.get("fmax_mhz")
        cells.append(_cell(key, value, 1, _change(value or 0, before.get(key), FREQUENCY)))
        seeds = ", ".join(
            "none" if v is None else f"{v:.1f}" for v in entry.get("seeds", {}).values()
        )
        cells.append(text_cell(seeds))
        rows.append(row(unit, *cells))
        if "per_pe" in entry:
            per = [_cell(Figure(name, unit, f"{n}/PE"), entry["per_pe"][n], 1) for n in counts]
            shares.append(row(unit, *per))
    parts = [f"<h2>{escape(name)}</h2>"]
    if known is not None:
        parts.append(f"<p>{escape(known.device)}</p>")
    parts.append(table("Area and frequency", ["unit", *counts, "MHz, median", "MHz by seed"], rows))
    left = [f"{e['unit']}: {untimed(e['untimed'])}" for e in entries if e.get("untimed")]
    parts += [f"<p>{escape(line)}</p>" for line in left]
    if shares:
        parts.append(table("Area per PE", ["unit", *counts], shares))
    if known is not None and known.capacity:
        parts.append(_capacity(name, entries, known.capacity))
    return "\n".join(parts)


def _capacity(name: str, entries: Sequence[Mapping[str, Any]], capacity: Mapping[str, int]) -> str:
    """What part of the device each unit takes, multipliers among it."""
    rows = []
    for e in entries:
        cells = [
            _cell(Figure(name, e["unit"], f"{n} %"), round(100 * e["area"][n] / most, 2), 1)
            for n, most in capacity.items()
        ]
        rows.append(row(e["unit"], *cells))
    header = ["unit", *(f"{n}, % of {most}" for n, most in capacity.items())]
    return table("Part of the device", header, rows)


def _cells(name: str, entries: Sequence[Mapping[str, Any]], before: Mapping[Figure, float]) -> str:
    """Areas, shares of multipliers, and frequencies of the units in standard cells."""
    rows = []
    for entry in entries:
        unit = entry["unit"]
        area, speed = Figure(name, unit, "area"), Figure(name, unit, FREQUENCY)
        share, mhz, watts = (entry.get(k) for k in ("multiplier_share", "fmax_mhz", "power_w"))
        rows.append(
            row(
                unit,
                _cell(area, entry["area"], 1, _change(entry["area"], before.get(area), "area")),
                _cell(Figure(name, unit, "area/PE"), entry.get("area_per_pe"), 1),
                _cell(
                    Figure(name, unit, "registers %"),
                    round(100 * entry["sequential_area"] / entry["area"], 2)
                    if entry["area"] else None, 1,
                ),
                _cell(
                    Figure(name, unit, "multipliers %"),
                    None if share is None else round(100 * share, 2), 1,
                ),
                _cell(speed, mhz, 1, _change(mhz or 0, before.get(speed), FREQUENCY)),
                _cell(Figure(name, unit, "mW"), None if watts is None else 1e3 * watts, 3),
            )
        )  # fmt: skip
    header = ["unit", "um2", "um2/PE", "registers, %", "multipliers, %", "MHz", "mW"]
    return f"<h2>{escape(name)}</h2>\n" + table(
        "Standard cells, before layout; mW at one activity for every net: it compares, no more",
        header,
        rows,
    )


def _paths(report: Mapping[str, Any]) -> str:
    lines = []
    for kind in ("fpga", "cells"):
        for target, entries in report[kind].items():
            for entry in entries:
                if path := entry.get("critical_path"):
                    parts = ", ".join(f"{k} {v:.2f} ns" for k, v in path.get("ns", {}).items() if v)
                    text = f"{target}, {entry['unit']}: {path['from']} to {path['to']}"
                    lines.append(f"<li>{escape(text + (f' ({parts})' if parts else ''))}</li>")
    return f"<h2>Longest paths</h2>\n<ul>{''.join(lines)}</ul>" if lines else ""


def _history(report: Mapping[str, Any], past: Sequence[Run]) -> str:
    """A line for each figure that an earlier run has: its values over the runs."""
    if not past:
        return "<h2>History</h2>\n<p>No earlier run of this configuration was given.</p>"
    runs = [{Figure(*key): value for *key, value in run["figures"]} for run in past]
    now = figures(report)
    rows = []
    for key, value in now.items():
        values = [run[key] for run in runs if key in run]
        if not values or not any((*values, value)):
            continue
        worse = is_worse(key.name, value, values[-1])
        told = f"{len(values)} before" + (", <span class='worse'>too much</span>" if worse else "")
        rows.append(
            row(
                f"{key.target} {key.unit}: {key.name}",
                _cell(Figure(key.target, key.unit, f"{key.name} before"), values[-1], 1),
                _cell(Figure(key.target, key.unit, f"{key.name} now"), value, 1),
                f"<td>{_spark([*values, value])}</td>",
                f"<td>{told}</td>",
            )
        )
    first, last = past[0]["when"], past[-1]["when"]
    tools = [f"{run['when']}: {', '.join(run['tools'].values())}" for run in past[-5:]]
    return (
        f"<h2>History</h2>\n<p>{len(past)} earlier runs of this configuration, {escape(first)} to "
        f"{escape(last)}. A figure is too much beyond 5% more area or 10% less frequency than the "
        "one before.</p>\n<ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in tools)
        + "</ul>\n"
        + table("", ["figure", "before", "now", "over the runs", ""], rows)
    )


def _spark(values: Sequence[float]) -> str:
    """A small drawing of values over runs, from 0 up."""
    top = max(values) or 1
    step = 170 / max(1, len(values) - 1)
    points = [(5 + n * step, 28 - 24 * value / top) for n, value in enumerate(values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    told = escape(", ".join(f"{value:g}" for value in values))
    x, y = points[-1]
    return (
        f'<svg viewBox="0 0 180 32" role="img"><title>{told}</title>'
        f'<polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )
