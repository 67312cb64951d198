"""The charts of the demonstration's report: losses, distances with intervals, memory."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from systolora_sim.chart_parts import legend, series
from systolora_sim.drawing import Circle, Drawing, Line, Rect, Text
from systolora_sim.train_demo.memory import PARTS
from systolora_sim.train_demo.recipes import METRICS

__all__ = ["distance_chart", "held_out_chart", "loss_chart", "memory_chart"]

Figures = dict[str, Any]
_WIDTH, _LEFT, _RIGHT = 960, 70, 30
_NAMES = 300
_WORDS = {"int": "integers", "float": "float32"}


def loss_chart(report: Figures, heading: bool = False) -> Drawing:
    """Mean training loss over steps, a line per recipe."""
    lines = [(e["title"], e["losses"]) for e in report["recipes"] if e["losses"]]
    return _lines("Training loss, mean over seeds", lines, "loss", heading)


def held_out_chart(report: Figures, heading: bool = False) -> Drawing:
    """Mean held-out loss of the concept over steps, a line per recipe."""
    lines = [(e["title"], e["curve"]) for e in report["recipes"] if len(e["curve"]) > 1]
    return _lines("Held-out loss of the concept, mean over seeds", lines, "loss", heading)


def _head(drawing: Drawing, heading: bool) -> float:
    if not heading:
        return 18
    drawing.shapes.append(Text(16, 26, drawing.title, size=16, bold=True))
    return 56


def _lines(
    title: str, lines: Sequence[tuple[str, list[list[float]]]], unit: str, heading: bool
) -> Drawing:
    drawing = Drawing(_WIDTH, 0, title, f"{title}; {unit} over training steps, a line per recipe")
    y = _head(drawing, heading)
    y = legend(drawing, y, [(series(i), name) for i, (name, _) in enumerate(lines)]) + 4
    points = [point for _, line in lines for point in line]
    if not points:
        drawing.height = math.ceil(y + 20)
        return drawing
    low, high = _range([value for _, value in points])
    steps = max(1.0, *(step for step, _ in points))
    height = 260

    def place(step: float, value: float) -> tuple[float, float]:
        across = (_WIDTH - _LEFT - _RIGHT) * step / steps
        return _LEFT + across, y + height * (high - value) / (high - low)

    for part in range(5):
        value = low + (high - low) * part / 4
        _, at = place(0, value)
        drawing.shapes += [
            Line(((_LEFT, at), (_WIDTH - _RIGHT, at)), "grid"),
            Text(_LEFT - 8, at + 4, f"{value:.3g}", "muted", 11, "end"),
        ]
        x, _ = place(steps * part / 4, low)
        drawing.shapes.append(
            Text(x, y + height + 18, f"{steps * part / 4:g}", "muted", 11, "middle")
        )
    for index, (_, line) in enumerate(lines):
        if line:
            placed = tuple(place(step, value) for step, value in line)
            drawing.shapes.append(Line(placed, series(index), 2))
    drawing.shapes.append(
        Text(_WIDTH - _RIGHT, y + height + 34, "steps", "muted", 11, "end")
    )  # fmt: skip
    drawing.height = math.ceil(y + height + 44)
    return drawing


def _range(values: Iterable[float]) -> tuple[float, float]:
    """A little more than the finite values' range, never empty."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def distance_chart(report: Figures, metric: str, heading: bool = False) -> Drawing:
    """A metric's mean and interval by recipe and place of inference; points are seeds."""
    title = f"{METRICS[metric]} of samples: mean, 95% interval, seeds"
    drawing = Drawing(_WIDTH, 0, title, f"{title}, a row per recipe and arithmetic of inference")
    y = _head(drawing, heading)
    rows = [
        (each, place, each["metrics"][f"{place}.{metric}"])
        for each in report["recipes"]
        for place in _WORDS
        if f"{place}.{metric}" in each["metrics"]
    ]
    shown = [v for _, _, figure in rows for v in (*figure["values"], *_ends(figure))]
    low, high = _range(shown)

    def place_of(value: float) -> float:
        return _NAMES + (_WIDTH - _NAMES - _RIGHT - 60) * (value - low) / (high - low)

    top, grid = y, []
    for index, (recipe, place, figure) in enumerate(rows):
        role = series(index)
        words = f"{recipe['name']}, infers in {_WORDS[place]}"
        drawing.shapes.append(Text(_NAMES - 12, y + 14, words, anchor="end", size=12))
        ends = _ends(figure)
        if ends:
            drawing.shapes.append(Line(tuple((place_of(e), y + 10) for e in ends), role, 2))
        for value in figure["values"]:
            drawing.shapes.append(Circle(place_of(value), y + 10, 2.5, role, True))
        data = {"recipe": recipe["name"], "metric": f"{place}.{metric}"}
        tip = f"{recipe['title']}: {figure['mean']:.4g}"
        drawing.shapes.append(Circle(place_of(figure["mean"]), y + 10, 5, role, False, tip, data))
        drawing.shapes.append(
            Text(_WIDTH - _RIGHT, y + 14, f"{figure['mean']:.4g}", "muted", 11, "end")
        )
        y += 24
    for part in range(5):
        value = low + (high - low) * part / 4
        x = place_of(value)
        grid.append(Line(((x, top - 4), (x, y)), "grid"))
        grid.append(Text(x, y + 16, f"{value:.3g}", "muted", 11, "middle"))
    drawing.shapes = grid + drawing.shapes
    drawing.height = math.ceil(y + 26)
    return drawing


def _ends(figure: Figures) -> list[float]:
    return [] if figure["low"] is None else [figure["low"], figure["high"]]


def memory_chart(table: Figures, heading: bool = False) -> Drawing:
    """Bytes of training the LoRA layers by format, divided into parts."""
    title = f"Memory for training: {table['title']}"
    drawing = Drawing(_WIDTH, 0, title, f"{title}; bytes by number format, divided into parts")
    y = _head(drawing, heading)
    y = legend(drawing, y, [(series(i), part) for i, part in enumerate(PARTS)]) + 4
    scale = (_WIDTH - _NAMES - 130) / max(row["total"] for row in table["rows"])
    for row in table["rows"]:
        drawing.shapes.append(Text(_NAMES - 12, y + 15, row["title"], anchor="end", size=12))
        x: float = _NAMES
        for index, part in enumerate(PARTS):
            drawing.shapes.append(
                Rect(
                    x, y + 2, row[part] * scale, 18, series(index),
                    f"{row['title']}, {part}: {row[part]:,} bytes",
                    {"format": row["name"], "part": part},
                )
            )  # fmt: skip
            x += row[part] * scale
        words = f"{row['total'] / 1024:,.0f} KiB, {row['ratio']:.2f}x"
        drawing.shapes.append(Text(x + 6, y + 15, words, "muted", 11))
        y += 26
    drawing.height = math.ceil(y + 8)
    return drawing
