"""The charts of a perf report: utilization by product, where the cycles go, the roofline."""

import math
from collections.abc import Callable
from typing import Any

from systolora_sim.drawing import SERIES, Circle, Drawing, Line, Rect, Text
from systolora_sim.perf_figures import (
    ORDER,
    bus_bytes,
    compact,
    intensity,
    number,
    peak,
    percent,
    products,
)

__all__ = ["CHARTS", "WAITS"]

_WIDTH = 960
_LEFT = 118  # for names
_RIGHT = 78  # for figures behind bars
#: Parts of a run's cycles: key of "waits" (limit is a key of the run), role, words.
WAITS = (
    ("limit", "s0", "MAC limit"),
    ("padding", "s4", "padding of tiles"),
    ("loads", "s1", "waits for loads"),
    ("post", "s2", "waits for post-processing"),
    ("other", "s9", "other: filling, draining, no tile queued"),
)


def series(index: int) -> str:
    """The role of a run's or a product's colour; after the last colour the first again."""
    return f"s{index % SERIES}"


def _legend(drawing: Drawing, y: float, entries: list[tuple[str, str]]) -> float:
    """Coloured squares with names, in as many lines as they need; returns the y below."""
    x: float = _LEFT
    for role, name in entries:
        text = Text(x + 17, y, name, size=12)
        if x > _LEFT and text.x + text.width > drawing.width - 10:
            x, y = _LEFT, y + 19
            text = Text(x + 17, y, name, size=12)
        drawing.shapes += [Rect(x, y - 10, 11, 11, role), text]
        x = text.x + text.width + 18
    return y + 14


def _about(report: dict[str, Any]) -> str:
    title = report["workload"]["title"]
    return f"{title}; rank {report['rank']}, batch {report['batch']}; {report['scope']}"


def _head(drawing: Drawing, report: dict[str, Any], heading: bool) -> float:
    """Title and subject, where wanted; returns the y below."""
    if not heading:
        return 18
    drawing.shapes.append(Text(16, 26, drawing.title, size=16, bold=True))
    drawing.shapes.append(Text(16, 45, _about(report), role="muted", size=12))
    return 70


# Utilization ----------------------------------------------------------------------------------


def utilization(report: dict[str, Any], heading: bool = True) -> Drawing:
    """Share of the MAC limit, a bar per run in each product, and of the whole step."""
    runs = report["runs"]
    names = [n for n in ORDER if any(p["name"] == n for run in runs for p in products(run))]
    drawing = Drawing(
        _WIDTH,
        0,
        "Utilization: share of the MAC limit",
        f"Bars by product and run, in percent of rows * cols MACs per cycle. {_about(report)}",
    )
    y = _head(drawing, report, heading)
    y = _legend(drawing, y, [(series(i), run["title"]) for i, run in enumerate(runs)]) + 6
    scale = _bars_width() / max(1.0, *(s for n in names for _, s in _shares(report, n)), 0)
    top, bar = y, 12
    for name in [*names, "step"]:
        shares = _shares(report, name)
        middle = y + len(shares) * bar / 2
        drawing.shapes.append(
            Text(_LEFT - 10, middle + 4, name, anchor="end", size=13, bold=name == "step")
        )
        for index, share in shares:
            run = runs[index]
            drawing.shapes += [
                Rect(
                    _LEFT, y + 1, share * scale, bar - 2, series(index),
                    f"{name}, {run['title']}: {percent(share)}",
                    {"run": run["name"], "product": name, "metric": "share"},
                ),
                Text(_LEFT + share * scale + 5, y + bar - 2.5, percent(share), "muted", 10),
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
    return _WIDTH - _LEFT - _RIGHT


def _percent_grid(drawing: Drawing, top: float, bottom: float, scale: float) -> None:
    """Lines at quarters, below the bars."""
    lines: list[Rect | Line | Circle | Text] = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + part * scale
        lines.append(Line(((x, top - 4), (x, bottom)), "grid"))
        lines.append(Text(x, bottom + 16, f"{100 * part:.0f}%", "muted", 11, "middle"))
    drawing.shapes = lines + drawing.shapes


# Cycles ---------------------------------------------------------------------------------------


def cycles(report: dict[str, Any], heading: bool = True) -> Drawing:
    """Cycles of each run, divided into the MAC limit and what is lost."""
    runs = report["runs"]
    drawing = Drawing(
        _WIDTH,
        0,
        "Where the cycles go",
        f"A bar per run, divided into the MAC limit, padding, waits and the rest. {_about(report)}",
    )
    y = (
        _legend(
            drawing, _head(drawing, report, heading), [(role, words) for _, role, words in WAITS]
        )
        + 6
    )
    scale = _bars_width() / max(run["cycles"] for run in runs)
    for run in runs:
        drawing.shapes.append(Text(_LEFT - 10, y + 17, run["name"][:16], anchor="end", size=11))
        x: float = _LEFT
        for key, role, words in WAITS:
            part = run["limit"] if key == "limit" else run["waits"][key]
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
    drawing.shapes.insert(0, Line(((_LEFT, y - 32 * len(runs)), (_LEFT, y)), "grid"))
    drawing.height = math.ceil(y + 10)
    return drawing


# Roofline -------------------------------------------------------------------------------------


class _Axes:
    """Logarithmic axes in a rectangle of the drawing, lines at powers of 2."""

    def __init__(self, x: list[float], y: list[float], box: tuple[float, float, float, float]):
        self.left, self.top, self.right, self.bottom = box
        self.x = math.floor(math.log2(min(x)) - 0.3), math.ceil(math.log2(max(x)) + 0.3)
        self.y = math.floor(math.log2(min(y)) - 0.3), math.log2(max(y)) + 0.4

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is, in pixels."""
        across = (math.log2(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log2(y) - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def grid(self) -> list[Rect | Line | Circle | Text]:
        """Lines and figures at powers of 2, some ten on an axis."""
        shapes: list[Rect | Line | Circle | Text] = []
        for power in range(self.x[0], self.x[1] + 1, max(1, (self.x[1] - self.x[0]) // 8)):
            x, _ = self.at(2.0**power, 2.0 ** self.y[0])
            shapes.append(Line(((x, self.top), (x, self.bottom)), "grid"))
            shapes.append(Text(x, self.bottom + 17, _power(power), "muted", 11, "middle"))
        for power in range(
            self.y[0], math.floor(self.y[1]) + 1, max(1, round(self.y[1] - self.y[0]) // 8)
        ):
            _, y = self.at(2.0 ** self.x[0], 2.0**power)
            shapes.append(Line(((self.left, y), (self.right, y)), "grid"))
            shapes.append(Text(self.left - 8, y + 4, _power(power), "muted", 11, "end"))
        return shapes


def _power(power: int) -> str:
    return f"{2**power:,}" if power >= 0 else f"1/{2**-power:,}"


def roofline(report: dict[str, Any], heading: bool = True) -> Drawing:
    """MACs per cycle over MACs per byte: each run's step and products, below the roof of runs[0].

    The solid roof is what one channel of the bus allows, the dashed one both (reading and writing
    at once): a point between them needs both. Of the other runs' products only points, no names.
    """
    runs = report["runs"]
    drawing = Drawing(
        _WIDTH,
        560,
        "Roofline",
        "Logarithmic: MACs per cycle over MACs per byte moved; the roof is the array and the bus. "
        f"{_about(report)}",
    )
    y = _head(drawing, report, heading)
    y = _legend(drawing, y, [(series(i), run["title"]) for i, run in enumerate(runs)])
    points = [point for index in range(len(runs)) for point in _points(report, index)]
    if not points:
        drawing.shapes.append(Text(_LEFT, y + 30, "No run moves bytes and multiplies.", "muted"))
        return drawing
    first = runs[0]
    top, bus = float(peak(report, first)), bus_bytes(report, first)
    axes = _Axes(
        [x for x, *_ in points] + [top / bus * 2],
        [y for _, y, *_ in points] + [top],
        (_LEFT - 30, y + 6, _WIDTH - 24, 505),
    )
    drawing.shapes = axes.grid() + drawing.shapes
    drawing.shapes += _roofs(report, axes)
    axis = "MACs per byte read or written (operational intensity)"
    drawing.shapes.append(Text((axes.left + axes.right) / 2, 546, axis, "muted", 12, "middle"))
    drawing.shapes.append(Text(axes.left + 6, axes.top + 14, "MACs per cycle", "muted", 12))
    _place(drawing, axes, points, [run["name"] for run in runs])
    return drawing


def _points(report: dict[str, Any], index: int) -> list[tuple[float, float, int, str]]:
    """(MACs per byte, MACs per cycle, run, product or "step") of what is on the chart."""
    run = report["runs"][index]
    step = {
        "name": "step",
        "macs": run["macs"],
        "bytes": run["bytes_read"] + run["bytes_written"],
        "cycles": run["cycles"],
    }
    return [
        (intensity(p["macs"], p["bytes"]), p["macs"] / p["cycles"], index, p["name"])
        for p in [step, *products(run)]
        if p["macs"] and p["bytes"] and p["cycles"]
    ]


def _roofs(report: dict[str, Any], axes: _Axes) -> list[Rect | Line | Circle | Text]:
    """One channel (solid) and both (dashed), with what they are."""
    first = report["runs"][0]
    top, bus = float(peak(report, first)), bus_bytes(report, first)
    left, right = 2.0 ** axes.x[0], 2.0 ** axes.x[1]
    floor = 2.0 ** axes.y[0]
    shapes: list[Rect | Line | Circle | Text] = []
    for channels, dashed in ((1, False), (2, True)):
        start = max(left, floor / (bus * channels))
        path = [axes.at(start, start * bus * channels)] if start < top / (bus * channels) else []
        ridge = axes.at(max(left, top / (bus * channels)), top)
        shapes.append(Line((*path, ridge, axes.at(right, top)), "ink", 2 - 0.8 * dashed, dashed))
    text = f"array {top:,.0f}; bus {bus} bytes a cycle each way (dashed: both ways at once)"
    x, y = axes.at(right, top)
    return [*shapes, Text(x - 4, y - 8, text, "muted", 11, "end")]


def _place(
    drawing: Drawing,
    axes: _Axes,
    points: list[tuple[float, float, int, str]],
    runs: list[str],
) -> None:
    """Points, and names of those of runs[0] and of the steps, beside each other where they fit."""
    taken: list[tuple[float, float, float, float]] = []
    named, plain = [], []
    for macs_per_byte, speed, index, name in points:
        x, y = axes.at(macs_per_byte, speed)
        taken.append((x - 6, y - 6, x + 6, y + 6))
        (named if index == 0 or name == "step" else plain).append(
            (x, y, macs_per_byte, speed, index, name)
        )
    for x, y, macs_per_byte, speed, index, name in plain + named:
        tip = (
            f"{name}, {runs[index]}: {macs_per_byte:.1f} MACs per byte, {speed:,.1f} MACs per cycle"
        )
        radius = 6 if name == "step" else 4.5
        hollow = name != "step" and index > 0
        drawing.shapes.append(
            Circle(x, y, radius, series(index), hollow, tip, {"run": runs[index], "product": name})
        )
    for x, y, _, _, index, name in named:
        text = Text(0, 0, name, "ink" if index == 0 else "muted", 11, bold=index == 0)
        spots = [(9, 4), (-9 - text.width, 4), (-text.width / 2, -10), (-text.width / 2, 19)]
        spots += [(9, 18), (9, -10), (-9 - text.width, 18), (-9 - text.width, -10)]
        for dx, dy in spots:
            box = (x + dx, y + dy - 10, x + dx + text.width, y + dy + 2)
            if not any(_meet(box, other) for other in taken):
                break
        taken.append(box)
        drawing.shapes.append(Text(box[0], box[1] + 10, name, text.role, text.size, bold=text.bold))


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


#: Charts by kind: of a report, with its title and subject above (True) or without.
CHARTS: dict[str, Callable[[dict[str, Any], bool], Drawing]] = {
    "utilization": utilization,
    "cycles": cycles,
    "roofline": roofline,
}
