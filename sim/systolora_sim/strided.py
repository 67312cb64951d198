"""Views of one-dimensional arrays, as descriptors address buffers and memory."""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = ["strided", "strided_once"]


def strided(array: NDArray, start: int, shape: Sequence[int], steps: Sequence[int]) -> NDArray:
    """A view of a one-dimensional array: element (i, j, ..) is array[start + i*steps[0] + ..].

    Shape and steps are at least 1 and 0. Elements may coincide; a store to such a view is only
    meaningful if all of them get the same value.

    Raises
    ------
    IndexError
        If that reaches beyond the array.
    """
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if start < 0 or last >= array.size:
        raise IndexError(f"elements {start}..{last}: outside an array of {array.size}")
    each = array.itemsize
    return as_strided(array[start:], tuple(shape), tuple(step * each for step in steps))


def strided_once(array: NDArray, start: int, shape: Sequence[int], steps: Sequence[int]) -> NDArray:
    """`strided` without repetitions: an axis with step 0 has length 1."""
    once = [n if step else 1 for n, step in zip(shape, steps, strict=True)]
    return strided(np.asarray(array), start, once, steps)
