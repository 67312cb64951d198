"""Writes the report: report.json, report.html, curves and grids of samples as PNG."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from systolora_sim.drawing import png
from systolora_sim.train_demo import charts, checkpoint
from systolora_sim.train_demo.page import page

__all__ = ["text", "write_views"]

Figures = dict[str, Any]
#: Dots per pixel of an image, and dots between images.
_SCALE, _GAP = 3, 3
#: Matplotlib's version would change the bytes.
_NO_VERSION: Any = {"Software": None}


def write_views(report: Figures, real: torch.Tensor, directory: Path) -> None:
    """All files of the report, each whole or not at all. real : images [n,1,s,s] beside samples."""
    grids = {("real", ""): _grid([real])}
    for recipe in report["recipes"]:
        for place in ("int", "float"):
            rows = _samples(directory, recipe, place)
            if rows:
                grids[recipe["name"], place] = _grid(rows)
    for (recipe, place), content in grids.items():
        name = f"samples-{recipe}-{place}.png" if place else f"samples-{recipe}.png"
        checkpoint.write_whole(directory / name, content)
    for name, drawing in (
        ("held-out", charts.held_out_chart(report, True)),
        ("losses", charts.loss_chart(report, True)),
        ("distances", charts.distance_chart(report, "fd", True)),
    ):
        checkpoint.write_whole(directory / f"{name}.png", png(drawing, scale=1))
    checkpoint.save_json(directory / "report.json", report)
    checkpoint.write_whole(directory / "report.html", page(report, grids).encode())


def _samples(directory: Path, recipe: Figures, place: str) -> list[torch.Tensor]:
    """A tensor of images per seed."""
    found = []
    for seed in range(recipe["seeds"]):
        state = checkpoint.load(directory / "runs" / f"{recipe['name']}-seed{seed}.{place}.pt")
        if state is not None:
            found.append(state["images"])
    return found


def _grid(rows: list[torch.Tensor]) -> bytes:
    """Rows of images [n,1,s,s] in -1..1 as a grey PNG; the same images give the same bytes."""
    from matplotlib import image

    lines = [np.concatenate([_tile(each) for each in row.numpy()[:, 0]], axis=1) for row in rows]
    stream = io.BytesIO()
    grid = np.concatenate(lines, axis=0)
    image.imsave(stream, grid, cmap="gray", vmin=-1, vmax=1, format="png", metadata=_NO_VERSION)
    return stream.getvalue()


def _tile(pixels: NDArray[Any]) -> NDArray[Any]:
    large = np.kron(pixels, np.ones((_SCALE, _SCALE), dtype=np.float32))
    return np.pad(large, ((0, _GAP), (0, _GAP)), constant_values=0)


def text(report: Figures) -> str:
    """What the command prints: verdicts, then warnings."""
    lines = []
    for each in report["verdicts"]:
        word = "reached    " if each["reached"] else "NOT reached"
        lines.append(f"{word}  {each['shown']:>9}  {each['claim']}")
    lines += [f"warning: {line}" for line in report["warnings"]]
    return "\n".join(lines) + "\n"
