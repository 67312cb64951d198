"""The roofline of a perf report: how far the array and the bus let each product go."""

import math
from typing import Any

from systolora_sim.chart_parts import LEFT, WIDTH, about, head, legend, series
from systolora_sim.drawing import Circle, Drawing, Line, Rect, Text
from systolora_sim.perf_figures import bus_bytes, computed, intensity, peak, products

__all__ = ["roofline"]


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

    The solid roof is what one direction of memory allows, the dashed one both (reading and writing
    at once): a point between them needs both. Of the other runs' products only points, no names.
    """
    runs = report["runs"]
    drawing = Drawing(
        WIDTH,
        560,
        "Roofline",
        "Logarithmic: MACs per cycle over MACs per byte moved; the roof is the array and the bus. "
        f"{about(report)}",
    )
    y = head(drawing, report, heading)
    y = legend(drawing, y, [(series(i), run["title"]) for i, run in enumerate(runs)])
    points = [point for index in range(len(runs)) for point in _points(report, index)]
    if not points:
        drawing.shapes.append(Text(LEFT, y + 30, "No run moves bytes and multiplies.", "muted"))
        return drawing
    first = runs[0]
    top, bus = float(peak(report, first)), bus_bytes(report, first)
    axes = _Axes(
        [x for x, *_ in points] + [top / bus * 2],
        [y for _, y, *_ in points] + [top],
        (LEFT - 30, y + 6, WIDTH - 24, 505),
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
        "macs": computed(run),
        "bytes": run["bytes_read"] + run["bytes_written"],
        "cycles": run["cycles"],
    }
    return [
        (intensity(p["macs"], p["bytes"]), p["macs"] / p["cycles"], index, p["name"])
        for p in [step, *products(run)]
        if p["macs"] and p["bytes"] and p["cycles"]
    ]


def _roofs(report: dict[str, Any], axes: _Axes) -> list[Rect | Line | Circle | Text]:
    """One direction (solid) and both (dashed), with what they are."""
    first = report["runs"][0]
    top, bus = float(peak(report, first)), bus_bytes(report, first)
    left, right = 2.0 ** axes.x[0], 2.0 ** axes.x[1]
    floor = 2.0 ** axes.y[0]
    shapes: list[Rect | Line | Circle | Text] = []
    for ways, dashed in ((1, False), (2, True)):
        start = max(left, floor / (bus * ways))
        path = [axes.at(start, start * bus * ways)] if start < top / (bus * ways) else []
        ridge = axes.at(max(left, top / (bus * ways)), top)
        shapes.append(Line((*path, ridge, axes.at(right, top)), "ink", 2 - 0.8 * dashed, dashed))
    text = f"array {top:,.0f}; memory {bus} bytes a cycle each way (dashed: both ways at once)"
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
