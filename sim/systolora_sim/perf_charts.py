"""The charts of a perf report: utilization by product, where the cycles go, the roofline."""

import math
from collections.abc import Callable
from typing import Any

from systolora_sim.chart_parts import LEFT, RIGHT, WIDTH, about, head, legend, series
from systolora_sim.drawing import Circle, Drawing, Line, Rect, Text
from systolora_sim.perf_figures import ORDER, compact, computed, number, peak, percent, products
from systolora_sim.perf_roofline import roofline

__all__ = ["CHARTS", "WAITS"]

#: Parts of a run's cycles: key of "waits" (limit is a key of the run), role, words.
WAITS = (
    ("limit", "s0", "MAC limit"),
    ("padding", "s4", "padding of tiles"),
    ("loads", "s1", "waits for loads"),
    ("post", "s2", "waits for post-processing"),
    ("other", "s9", "other: filling, draining, no tile queued"),
)


# Utilization ----------------------------------------------------------------------------------


def utilization(report: dict[str, Any], heading: bool = True) -> Drawing:
    """Share of the MAC limit, a bar per run in each product, and of the whole step."""
    runs = report["runs"]
    names = [n for n in ORDER if any(p["name"] == n for run in runs for p in products(run))]
    drawing = Drawing(
        WIDTH,
        0,
        "Utilization: share of the MAC limit",
        f"Bars by product and run, in percent of rows * cols MACs per cycle. {about(report)}",
    )
    y = head(drawing, report, heading)
    y = legend(drawing, y, [(series(i), run["title"]) for i, run in enumerate(runs)]) + 6
    shown = [share for name in [*names, "step"] for _, share in _shares(report, name)]
    scale = _bars_width() / max(1.0, *shown)
    top, bar = y, 12
    for name in [*names, "step"]:
        shares = _shares(report, name)
        middle = y + len(shares) * bar / 2
        drawing.shapes.append(
            Text(LEFT - 10, middle + 4, name, anchor="end", size=13, bold=name == "step")
        )
        for index, share in shares:
            run = runs[index]
            drawing.shapes += [
                Rect(
                    LEFT, y + 1, share * scale, bar - 2, series(index),
                    f"{name}, {run['title']}: {percent(share)}",
                    {"run": run["name"], "product": name, "metric": "share"},
                ),
                Text(LEFT + share * scale + 5, y + bar - 2.5, percent(share), "muted", 10),
            ]  # fmt: skip
            y += bar
        y += 12
    _percent_grid(drawing, top, y - 6, scale)
    drawing.height = math.ceil(y + 22)
    return drawing


def _shares(report: dict[str, Any], name: str) -> list[tuple[int, float]]:
    """(Number of the run, share) of the runs that have this product; or of the whole step."""
    found = []
    for index, run in enumerate(report["runs"]):
        if name == "step":
            found.append((index, run["share"]))
        found += [(index, p["share"]) for p in products(run) if p["name"] == name]
    return found


def _bars_width() -> float:
    return WIDTH - LEFT - RIGHT


def _percent_grid(drawing: Drawing, top: float, bottom: float, scale: float) -> None:
    """Lines at quarters, below the bars."""
    lines: list[Rect | Line | Circle | Text] = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + part * scale
        lines.append(Line(((x, top - 4), (x, bottom)), "grid"))
        lines.append(Text(x, bottom + 16, f"{100 * part:.0f}%", "muted", 11, "middle"))
    drawing.shapes = lines + drawing.shapes


# Cycles ---------------------------------------------------------------------------------------


def cycles(report: dict[str, Any], heading: bool = True) -> Drawing:
    """Cycles of each run, divided into the MAC limit and what is lost."""
    runs = report["runs"]
    drawing = Drawing(
        WIDTH,
        0,
        "Where the cycles go",
        f"A bar per run, divided into the MAC limit, padding, waits and the rest. {about(report)}",
    )
    y = (
        legend(drawing, head(drawing, report, heading), [(role, words) for _, role, words in WAITS])
        + 6
    )
    scale = _bars_width() / max(run["cycles"] for run in runs)
    for run in runs:
        drawing.shapes.append(Text(LEFT - 10, y + 17, run["name"], anchor="end", size=11))
        x: float = LEFT
        for key, role, words in WAITS:
            part = computed(run) / peak(report, run) if key == "limit" else run["waits"][key]
            drawing.shapes.append(
                Rect(
                    x, y + 2, part * scale, 22, role,
                    f"{run['title']}, {words}: {number(part)} cycles",
                    {"run": run["name"], "metric": key},
                )
            )  # fmt: skip
            x += part * scale
        drawing.shapes.append(Text(x + 6, y + 17, compact(run["cycles"]), "muted", 11))
        y += 32
    drawing.shapes.insert(0, Line(((LEFT, y - 32 * len(runs)), (LEFT, y)), "grid"))
    drawing.height = math.ceil(y + 10)
    return drawing


#: Charts by kind: of a report, with its title and subject above (True) or without.
CHARTS: dict[str, Callable[[dict[str, Any], bool], Drawing]] = {
    "utilization": utilization,
    "cycles": cycles,
    "roofline": roofline,
}
