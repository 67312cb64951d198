"""Operands as stream beats: byte planes cut into the tiles of an array.

Everything is padded with zeros to whole tiles; docs/core.md says which byte goes where.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Edge
from systolora_sim import numerics as nx

__all__ = ["Plane", "byte_planes", "ceil_div", "padded", "stationary_beats", "streamed_beats"]

Array = NDArray[Any]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Plane(NamedTuple):
    """One byte plane: value = bytes * 256^weight, unsigned bytes where `low`."""

    bytes: NDArray[np.uint8]
    weight: int
    low: bool


def byte_planes(tensor: Array) -> list[Plane]:
    """The byte planes of an int8 or int16 tensor, high plane first (numerics section 8)."""
    if tensor.dtype == np.int8:
        return [Plane(np.ascontiguousarray(tensor).view(np.uint8), 0, False)]
    high, low = nx.byte_planes(tensor)
    return [
        Plane(high.astype(np.int8).view(np.uint8), 1, False),
        Plane(low.astype(np.uint8), 0, True),
    ]


def padded(array: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    wide = np.zeros((rows, cols), np.uint8)
    wide[: array.shape[0], : array.shape[1]] = array
    return wide


def streamed_beats(plane: Plane, config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Beats of a streamed operand [M, K]: [K blocks, M, R]."""
    m, k = plane.bytes.shape
    blocks = ceil_div(k, config.rows)
    wide = padded(plane.bytes, m, blocks * config.rows)
    return np.ascontiguousarray(wide.reshape(m, blocks, config.rows).transpose(1, 0, 2))


def stationary_beats(plane: Plane, edge: Edge, config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Beats of a stationary operand: [output blocks, K blocks, beats, S * lanes].

    Stored [outputs, K] for the left edge, [K, outputs] for the top edge. Beat n, line s is line
    s * L + L-1-n of the tile: the element that travels furthest enters first.
    """
    rows, cols, s = config.rows, config.cols, config.segments
    if edge == Edge.LEFT:
        line_count, line_bytes, beats = cols, rows, config.left_load
        outs, ks = ceil_div(plane.bytes.shape[0], cols), ceil_div(plane.bytes.shape[1], rows)
        wide = padded(plane.bytes, outs * cols, ks * rows)
        lines = wide.reshape(outs, cols, ks, rows).transpose(0, 2, 1, 3)
    else:
        line_count, line_bytes, beats = rows, cols, config.top_load
        ks, outs = ceil_div(plane.bytes.shape[0], rows), ceil_div(plane.bytes.shape[1], cols)
        wide = padded(plane.bytes, ks * rows, outs * cols)
        lines = wide.reshape(ks, rows, outs, cols).transpose(2, 0, 1, 3)
    assert line_count == s * beats
    split = lines.reshape(outs, ks, s, beats, line_bytes)[:, :, :, ::-1].transpose(0, 1, 3, 2, 4)
    out = np.zeros((outs, ks, beats, s, config.lanes), np.uint8)
    out[..., :line_bytes] = split
    return out.reshape(outs, ks, beats, s * config.lanes)
