"""Flat drawings of a few primitives, written as SVG (by hand, no dependency) or PNG (Matplotlib).

A drawing knows roles ("s0", "ink", "grid"), not colours: an SVG inside a page takes them from the
page's style sheet and so follows its light or dark mode; a file of its own has the light ones.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

__all__ = ["DARK", "LIGHT", "SERIES", "Circle", "Drawing", "Line", "Rect", "Text"]
__all__ += ["css", "png", "svg"]

#: Number of colours for series of data: s0 to s9.
SERIES = 10
LIGHT = {
    "s0": "#0a6ebd", "s1": "#d1495b", "s2": "#e3a008", "s3": "#2a9d5c", "s4": "#7d5ba6",
    "s5": "#12a5b5", "s6": "#8c6d31", "s7": "#f07f3c", "s8": "#5b6b8c", "s9": "#9a9a9a",
}  # fmt: skip
LIGHT |= {"paper": "#ffffff", "ink": "#1b2330", "muted": "#59636f", "grid": "#dfe3e8"}
DARK = {
    "s0": "#5fb4f5", "s1": "#f2808e", "s2": "#f3c34b", "s3": "#63d295", "s4": "#b79ae0",
    "s5": "#55d3e0", "s6": "#cbb073", "s7": "#ffa66b", "s8": "#9fb0d4", "s9": "#a8a8a8",
}  # fmt: skip
DARK |= {"paper": "#14181e", "ink": "#e6eaf0", "muted": "#a3adba", "grid": "#2c343f"}

_FONT = "DejaVu Sans, Verdana, sans-serif"


@dataclass(frozen=True)
class Rect:
    """A filled rectangle in pixels; tip: what a pointer on it is told; data: data- attributes."""

    x: float
    y: float
    width: float
    height: float
    role: str
    tip: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line through points (x, y) in pixels."""

    points: tuple[tuple[float, float], ...]
    role: str
    width: float = 1
    dashed: bool = False


@dataclass(frozen=True)
class Circle:
    """A point of data, in pixels; hollow: an outline only."""

    x: float
    y: float
    radius: float
    role: str
    hollow: bool = False
    tip: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """One line of text with its baseline at (x, y); anchor: "start", "middle" or "end"."""

    x: float
    y: float
    text: str
    role: str = "ink"
    size: float = 12
    anchor: str = "start"
    bold: bool = False

    @property
    def width(self) -> float:
        """About how wide it will be, in pixels."""
        return 0.61 * self.size * len(self.text)


@dataclass
class Drawing:
    """Shapes in drawing order. title, description: for those who do not see it."""

    width: int
    height: int
    title: str
    description: str
    shapes: list[Rect | Line | Circle | Text] = field(default_factory=list)


# SVG ------------------------------------------------------------------------------------------


def svg(drawing: Drawing, identity: str, page: bool = False) -> str:
    """The drawing as an <svg> element; the same drawing gives the same bytes.

    identity : prefix of its ids, unique in a page. page : it stands in a page that styles the
    classes fill-ROLE and line-ROLE; else it brings its own, light, and a background.
    """
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width} {drawing.height}" '
        f'width="{drawing.width}" height="{drawing.height}" font-family="{_FONT}" role="img" '
        f'aria-labelledby="{identity}-title {identity}-desc">'
    )
    lines = [
        head,
        f'<title id="{identity}-title">{escape(drawing.title)}</title>',
        f'<desc id="{identity}-desc">{escape(drawing.description)}</desc>',
    ]
    if not page:
        lines.append(f"<style>{css(LIGHT)}</style>")
        lines.append('<rect width="100%" height="100%" class="fill-paper"/>')
    return "\n".join([*lines, *map(_element, drawing.shapes), "</svg>"]) + "\n"


def css(colours: Mapping[str, str]) -> str:
    """Rules for the classes of `svg`, with colours (or CSS expressions) by role."""
    return " ".join(
        f".fill-{role}{{fill:{colour}}} .line-{role}{{fill:none;stroke:{colour}}}"
        for role, colour in colours.items()
    )


def _n(value: float) -> str:
    """A coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _element(shape: Rect | Line | Circle | Text) -> str:
    if isinstance(shape, Line):
        points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
        dash = ' stroke-dasharray="6 4"' if shape.dashed else ""
        return (
            f'<polyline class="line-{shape.role}" points="{points}" '
            f'stroke-width="{_n(shape.width)}"{dash}/>'
        )
    if isinstance(shape, Text):
        bold = ' font-weight="600"' if shape.bold else ""
        return (
            f'<text class="fill-{shape.role}" x="{_n(shape.x)}" y="{_n(shape.y)}" '
            f'font-size="{_n(shape.size)}" text-anchor="{shape.anchor}"{bold}>'
            f"{escape(shape.text)}</text>"
        )
    data = "".join(f' data-{key}="{escape(value)}"' for key, value in shape.data.items())
    tip = f"<title>{escape(shape.tip)}</title>" if shape.tip else ""
    if isinstance(shape, Rect):
        return (
            f'<rect class="fill-{shape.role}" x="{_n(shape.x)}" y="{_n(shape.y)}" '
            f'width="{_n(shape.width)}" height="{_n(shape.height)}"{data}>{tip}</rect>'
        )
    kind = f"line-{shape.role}" if shape.hollow else f"fill-{shape.role}"
    return (
        f'<circle class="{kind}" cx="{_n(shape.x)}" cy="{_n(shape.y)}" r="{_n(shape.radius)}" '
        f'stroke-width="1.5"{data}>{tip}</circle>'
    )


# PNG ------------------------------------------------------------------------------------------


def png(drawing: Drawing, scale: int = 2) -> bytes:
    """The drawing in light colours, scale x scale dots for a pixel.

    Raises ImportError without Matplotlib. The same drawing and Matplotlib give the same bytes.
    """
    from matplotlib import lines, patches
    from matplotlib.figure import Figure

    inch = 100  # pixels
    figure = Figure((drawing.width / inch, drawing.height / inch), facecolor=LIGHT["paper"])
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    point = 72 / inch  # of a pixel, in Matplotlib's unit of sizes
    align = {"start": "left", "middle": "center", "end": "right"}
    for order, shape in enumerate(drawing.shapes):
        colour = LIGHT[shape.role]
        if isinstance(shape, Text):
            axes.text(
                shape.x, shape.y, shape.text.replace("$", r"\$"), color=colour, zorder=order,
                size=shape.size * point, ha=align[shape.anchor], va="baseline",
                weight="bold" if shape.bold else "normal", family="DejaVu Sans",
            )  # fmt: skip
        elif isinstance(shape, Line):
            x, y = zip(*shape.points, strict=True)
            axes.add_line(
                lines.Line2D(
                    x, y, color=colour, linewidth=shape.width * point, zorder=order,
                    linestyle=(0, (6, 4)) if shape.dashed else "-",
                )
            )  # fmt: skip
        elif isinstance(shape, Rect):
            corner = (shape.x, shape.y)
            axes.add_patch(
                patches.Rectangle(
                    corner, shape.width, shape.height, color=colour, linewidth=0, zorder=order
                )
            )
        else:
            axes.add_patch(
                patches.Circle(
                    (shape.x, shape.y), shape.radius, facecolor="none" if shape.hollow else colour,
                    edgecolor=colour, linewidth=1.5 * point, zorder=order,
                )
            )  # fmt: skip
    stream = io.BytesIO()
    # Without the version of Matplotlib, which would change the bytes
    figure.savefig(stream, format="png", dpi=inch * scale, metadata={"Software": None})
    return stream.getvalue()
