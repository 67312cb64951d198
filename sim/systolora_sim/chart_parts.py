"""What the charts of a perf report have in common: sizes, colours, headings, legends."""

from typing import Any

from systolora_sim.drawing import SERIES, Drawing, Rect, Text

__all__ = ["LEFT", "RIGHT", "WIDTH", "about", "head", "legend", "series"]

#: Pixels: of a chart, left of it for names, right of it for figures behind bars.
WIDTH, LEFT, RIGHT = 960, 136, 78


def series(index: int) -> str:
    """The role of a run's or a product's colour; after the last colour the first again."""
    return f"s{index % SERIES}"


def legend(drawing: Drawing, y: float, entries: list[tuple[str, str]]) -> float:
    """Coloured squares with names, in as many lines as they need; returns the y below."""
    x: float = LEFT
    for role, name in entries:
        text = Text(x + 17, y, name, size=12)
        if x > LEFT and text.x + text.width > drawing.width - 10:
            x, y = LEFT, y + 19
            text = Text(x + 17, y, name, size=12)
        drawing.shapes += [Rect(x, y - 10, 11, 11, role), text]
        x = text.x + text.width + 18
    return y + 14


def about(report: dict[str, Any]) -> str:
    """What a chart is of, in a line."""
    title = report["workload"]["title"]
    return f"{title}; rank {report['rank']}, batch {report['batch']}; {report['scope']}"


def head(drawing: Drawing, report: dict[str, Any], heading: bool) -> float:
    """Title and subject, where wanted; returns the y below."""
    if not heading:
        return 18
    drawing.shapes.append(Text(16, 26, drawing.title, size=16, bold=True))
    drawing.shapes.append(Text(16, 45, about(report), role="muted", size=12))
    return 70
