"""What enters an array, cycle by cycle, so that it works on matrices; and where results leave.

Every stream is for 64 independent runs: matrices have a first axis of 64. Ports and skews are those
of `rtl.array.SystolicArray` and `baselines.textbook.TextbookArray`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from systolora.synth.activity import LANES
from systolora.synth.baselines.textbook import ARITHMETICS, Arithmetic

__all__ = ["Stream", "idle", "output_stationary", "textbook", "textbook_load", "weight_stationary"]

_B_SHIFT, _W_LOAD, _CLEAR, _WS, _D_LOAD, _D_SHIFT = (1 << bit for bit in range(6))


@dataclass
class Stream:
    """Inputs by port, [cycles, 64]; the cycle to count from; what `check` finds wrong.

    `check(outputs)` counts wrong results, given the output ports as unsigned integers.
    """

    inputs: dict[str, np.ndarray]
    skip: int
    check: Callable[[dict[str, np.ndarray]], int] = lambda outputs: 0


def _add(inputs: dict[str, np.ndarray], port: str, time: int, value, combine: bool = False) -> None:
    if 0 <= time < len(inputs[port]):
        inputs[port][time] = (inputs[port][time] | value) if combine else value


def _empty(rows: int, cols: int, segments: int, cycles: int) -> dict[str, np.ndarray]:
    names = [f"a_{r}" for r in range(rows)] + [f"ctl_{r}" for r in range(rows)]
    names += [f"top_{s}_{c}" for s in range(segments) for c in range(cols)]
    return {name: np.zeros((cycles, LANES), np.int64) for name in names}


def weight_stationary(a: np.ndarray, w: np.ndarray, segments: int) -> Stream:
    """Tiles one after the other, each loaded while the one before computes; a period is counted.

    a : [64, 3, M, R]; w : [64, 3, R, C], signed; M at least R / segments + 2
    """
    _, tiles, length, rows = a.shape
    cols, load = w.shape[-1], rows // segments
    skip = length + rows + cols
    cycles = skip + length
    inputs = _empty(rows, cols, segments, cycles)
    for tile in range(tiles):
        start = tile * length
        for beat in range(load):
            for row in range(rows):
                if beat < load - row % load:
                    _add(inputs, f"ctl_{row}", start + beat + row, _B_SHIFT, True)
            for segment in range(segments):
                row = segment * load + load - 1 - beat
                for col in range(cols):
                    time = start + beat + segment * load + col
                    _add(inputs, f"top_{segment}_{col}", time, w[:, tile, row, col])
        for row in range(rows):
            _add(inputs, f"ctl_{row}", start + load + row, _W_LOAD, True)
            for beat in range(length):
                time = start + load + 1 + beat + row
                _add(inputs, f"a_{row}", time, a[:, tile, beat, row])
                _add(inputs, f"ctl_{row}", time, _WS, True)

    def check(outputs: dict[str, np.ndarray]) -> int:
        wrong = 0
        for tile in range(tiles):
            product = (a[:, tile] @ w[:, tile]) & 0xFFFFFFFF
            for beat in range(length):
                for col in range(cols):
                    time = tile * length + load + 1 + beat + rows + 1 + col
                    if time < cycles:
                        found = outputs[f"s_out_{col}"][time]
                        wrong += int((found != product[:, beat, col]).sum())
        return wrong

    return Stream(inputs, skip, check)


def output_stationary(a: np.ndarray, b: np.ndarray, segments: int) -> Stream:
    """Tiles one after the other, each draining under the next; a period is counted.

    a : [64, T, R, K]; b : [64, T, K, C], signed; K at least R
    """
    _, tiles, rows, depth = a.shape
    cols, load = b.shape[-1], rows // segments
    skip = 2 * depth + rows + cols
    cycles = skip + depth
    inputs = _empty(rows, cols, segments, cycles)
    for tile in range(tiles):
        start = tile * depth
        for beat in range(depth):
            for segment in range(segments):
                for col in range(cols):
                    time = start + beat + segment * load + col
                    _add(inputs, f"top_{segment}_{col}", time, b[:, tile, beat, col])
            for row in range(rows):
                time = start + beat + row
                _add(inputs, f"ctl_{row}", time, _B_SHIFT, True)
                _add(inputs, f"ctl_{row}", time + 1, _W_LOAD, True)
                _add(inputs, f"a_{row}", time + 2, a[:, tile, row, beat])
                if beat == 0:
                    _add(inputs, f"ctl_{row}", time + 2, _CLEAR, True)
                if beat == depth - 1:
                    _add(inputs, f"ctl_{row}", time + 4, _D_LOAD, True)
        drain = start + depth + 3 + rows
        for row in range(rows):
            for step in range(row):
                _add(inputs, f"ctl_{row}", drain + step, _D_SHIFT, True)

    def check(outputs: dict[str, np.ndarray]) -> int:
        wrong = 0
        for tile in range(tiles):
            product = (a[:, tile] @ b[:, tile]) & 0xFFFFFFFF
            for step in range(rows):
                for col in range(cols):
                    time = tile * depth + depth + 3 + rows + step + col
                    if time < cycles:
                        found = outputs[f"d_out_{col}"][time]
                        wrong += int((found != product[:, rows - 1 - step, col]).sum())
        return wrong

    return Stream(inputs, skip, check)


def idle(rows: int, cols: int, segments: int, operand: np.ndarray, cycles: int = 24) -> Stream:
    """Our array after a tile, with zeros and closed windows; w : [64, R, C] stays in it."""
    a = operand[:, None, :, :].repeat(3, axis=1)
    whole = weight_stationary(
        a[:, :, : rows // segments + 2], operand[:, None].repeat(3, 1), segments
    )
    zeros = {
        name: np.concatenate([values, np.zeros((cycles + rows + cols + 3, LANES), np.int64)])
        for name, values in whole.inputs.items()
    }
    length = len(next(iter(zeros.values())))
    return Stream(zeros, length - cycles)


def _textbook_inputs(rows: int, cols: int, cycles: int) -> dict[str, np.ndarray]:
    names = [f"a_{r}" for r in range(rows)] + [f"load_{r}" for r in range(rows)]
    names += [f"w_{c}" for c in range(cols)]
    return {name: np.zeros((cycles, LANES), np.int64) for name in names}


def _textbook_loads(inputs: dict[str, np.ndarray], w: np.ndarray, start: int) -> None:
    rows, cols = w.shape[-2:]
    for beat in range(rows):
        for row in range(rows):
            _add(inputs, f"load_{row}", start + beat, 1)
        for col in range(cols):
            _add(inputs, f"w_{col}", start + beat + col, w[:, rows - 1 - beat, col])


def textbook(
    a: np.ndarray, w: np.ndarray, arithmetic: str, expected: np.ndarray, zeros: int = 0
) -> Stream:
    """Loads, then computes; counts the cycles in which every PE multiplies, or with `zeros` that
    many afterwards, in which none does.

    a : [64, M, R]; w : [64, R, C]; expected : [64, M, C]; bit patterns or signed integers; M above
    the skew of the array
    """
    shape = ARITHMETICS[arithmetic]
    _, length, rows = a.shape
    cols = w.shape[-1]
    last = rows + shape.add * rows + cols + shape.product
    skip, cycles = last, rows + length
    if zeros:
        skip, cycles = length + last, length + last + zeros
    if skip >= cycles:
        raise ValueError(f"M must be above {last - rows}, not {length}")
    inputs = _textbook_inputs(rows, cols, cycles)
    _textbook_loads(inputs, w, 0)
    for row in range(rows):
        for beat in range(length):
            _add(inputs, f"a_{row}", rows + shape.add * row + beat, a[:, beat, row])

    def check(outputs: dict[str, np.ndarray]) -> int:
        wrong = 0
        for beat in range(length):
            for col in range(cols):
                time = rows + beat + shape.add * rows + col + shape.product
                if time < cycles:
                    found = outputs[f"s_out_{col}"][time]
                    wrong += int((found != (expected[:, beat, col] & 0xFFFFFFFF)).sum())
        return wrong

    return Stream(inputs, skip, check)


def textbook_load(w: np.ndarray, arithmetic: str) -> Stream:
    """Loads one tile after the other and multiplies zeros; w : [64, T, R, C], T at least 3."""
    shape: Arithmetic = ARITHMETICS[arithmetic]
    _, tiles, rows, cols = w.shape
    skip = rows + cols + shape.product + shape.add
    cycles = tiles * rows
    inputs = _textbook_inputs(rows, cols, max(cycles, skip + rows))
    for tile in range(tiles):
        _textbook_loads(inputs, w[:, tile], tile * rows)
    return Stream(inputs, skip)
