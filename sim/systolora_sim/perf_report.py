"""The views of a perf report (docs/perf.md): text, page, charts.

text(report)                     what the command prints
html(report, timeline)           one self-contained page
save_chart(report, kind, path)   a chart as .svg or .png
save_text(path, content)         any of these texts into a file
perfetto(timeline)               module timeline: a trace for ui.perfetto.dev
"""

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any

from systolora_sim.drawing import png, svg
from systolora_sim.perf_charts import CHARTS
from systolora_sim.perf_page import html
from systolora_sim.perf_text import text
from systolora_sim.timeline import perfetto

__all__ = ["CHARTS", "ReportError", "html", "perfetto", "save_chart", "save_text", "text"]


class ReportError(ValueError):
    """A view that cannot be made or written; the message is for the user."""


def save_chart(report: dict[str, Any], kind: str, path: Path) -> None:
    """Writes a chart, of a kind in CHARTS, to a .svg or .png file; all or nothing.

    Raises ReportError where kind or ending are none of these, Matplotlib is missing (PNG), or the
    file cannot be written.
    """
    if kind not in CHARTS:
        raise ReportError(f"chart = {kind!r}: must be one of {', '.join(CHARTS)}")
    if path.suffix not in (".svg", ".png"):
        raise ReportError(f"{path}: must end in .svg or .png")
    drawing = CHARTS[kind](report, True)
    if path.suffix == ".svg":
        _write(path, svg(drawing, kind).encode())
        return
    try:
        content = png(drawing)
    except ImportError:
        message = "PNG needs Matplotlib: pip install 'systolora[plot]', or write .svg"
        raise ReportError(f"{path}: {message}") from None
    _write(path, content)


def save_text(path: Path, content: str) -> None:
    """Writes a page, a trace or a report's text; all or nothing. Raises ReportError."""
    _write(path, content.encode())


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
