"""Operands of a layer for simulations of arrays: normal numbers, quantized as ours are."""

from dataclasses import dataclass

import numpy as np

from systolora.synth.activity import LANES

__all__ = ["DATA", "LayerData", "float_bits", "float_values", "planes", "quantized"]

#: [N, d] of X and [k, d] of W: K of Stable Diffusion 1.5's first cross-attention, four samples.
ROWS, DEPTH, COLUMNS = 308, 768, 320
DATA = (
    f"X [{ROWS}, {DEPTH}] and W [{COLUMNS}, {DEPTH}] (K of SD 1.5's first cross-attention, batch 4)"
    " of independent normal numbers, quantized with S = max/127 (int16: max/32767) of the tensor;"
    f" {LANES} tiles of it at random"
)


@dataclass(frozen=True)
class LayerData:
    """Tiles of the layer, the same places for every format. `seed` decides numbers and places."""

    seed: int = 0

    def tiles(self, count: int, length: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
        """float64 [64, count, length, rows] of X and [64, count, rows, cols] of W^T; the largest
        of either tensor is 1."""
        random = np.random.default_rng(self.seed)
        x, w = random.normal(size=(ROWS, DEPTH)), random.normal(size=(COLUMNS, DEPTH))
        x, w = x / np.abs(x).max(), w / np.abs(w).max()
        a = np.empty((LANES, count, length, rows))
        b = np.empty((LANES, count, rows, cols))
        for lane in range(LANES):
            row = random.integers(0, ROWS - length + 1)
            for tile in range(count):
                depth = random.integers(0, DEPTH - rows + 1)
                col = random.integers(0, COLUMNS - cols + 1)
                a[lane, tile] = x[row : row + length, depth : depth + rows]
                b[lane, tile] = w[col : col + cols, depth : depth + rows].T
        return a, b


def quantized(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers of `bits` bits of values up to 1."""
    return np.rint(values * ((1 << (bits - 1)) - 1)).astype(np.int64)


def planes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High bytes, signed, and low bytes, unsigned, of int16 values."""
    return values >> 8, values & 255


def float_bits(values: np.ndarray, kind: str) -> np.ndarray:
    """Bit patterns of bf16 or fp32, rounded to nearest, ties to even."""
    words = values.astype(np.float32).view(np.uint32).astype(np.int64)
    if kind == "fp32":
        return words
    return (words + 0x7FFF + ((words >> 16) & 1)) >> 16


def float_values(bits: np.ndarray, kind: str) -> np.ndarray:
    """float32 of bit patterns."""
    return (bits << (16 if kind == "bf16" else 0)).astype(np.uint32).view(np.float32)
