"""The Dispatcher: when each descriptor leaves for its queues (hw/systolora/rtl/dispatcher.py)."""

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Edge, Kind, Layout, Mode, Opcode, Source
from systolora_sim.timing.columns import Columns, Rows

__all__ = ["check_cycles", "post_memory"]

#: Opcodes with one row of `acc_in` from memory, and with one beat of `info` to memory.
READING = (Opcode.BIAS, Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD)
WRITING = (Opcode.AMAX_READ, Opcode.SCALE_READ, Opcode.STICKY_READ)
#: CHECK, JUDGE, and TOKENS before PUSH: cycles from a descriptor's last beat.
STATES = 4
#: MEASURE to ANSWER of one region's bounds, less the bits of its two counts.
BOUNDS = 4


def post_memory(posts: Rows, number: int) -> tuple[bool, bool, int, int, int]:
    """Of a POST: whether it reads and writes memory, rows, bytes of a row read and written."""
    opcode = posts.opcode[number]
    if opcode == Opcode.ROWS:
        cols = posts.cols[number]
        quantizes = posts.mode[number] in (Mode.INT8, Mode.INT16)
        reads = posts.source[number] == Source.STREAM
        writes = quantizes or bool(posts.emit[number])
        return (
            reads, writes, posts.rows[number],
            cols << posts.in_width[number], cols << posts.out_width[number],
        )  # fmt: skip
    if opcode == Opcode.BIAS:
        return True, False, 1, posts.cols[number] << posts.in_width[number], 0
    return opcode in READING, opcode in WRITING, 1, 8, 8


def _bits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of each value; 0 has none."""
    return np.ceil(np.log2(values + 1)).astype(np.int64)


def _column(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def check_cycles(config: AcceleratorConfig, columns: Columns, length: int) -> list[int]:
    """Cycles from a descriptor's last beat to its PUSH, if every queue has a place.

    A region's bounds take the bits of its two counts (BoundsCheck); each descriptor has up to
    three regions.
    """
    cycles = np.full(length, STATES, np.int64)
    load = columns[Kind.LOAD]
    rows, layout = _column(load.rows), _column(load.layout)
    outer = rows - 1
    for kind, group in ((Layout.LEFT, config.left_load), (Layout.TOP, config.top_load)):
        entries = ((rows - 1) // (group * config.segments) * group) | (group - 1)
        outer = np.where(layout == kind, entries, outer)
    cycles[load.index] += 2 * BOUNDS + _bits(outer) + _bits(rows - 1)

    item = columns[Kind.EXEC]
    depth, repeat = _bits(_column(item.length) - 1), _bits(_column(item.repeat) - 1)
    is_os = _column(item.dataflow) == Dataflow.OS
    left = _column(item.edge) == Edge.LEFT
    lines = np.where(left, config.left_load, config.top_load)
    lines = np.where(is_os, depth, _bits(lines - 1))
    cycles[item.index] += 3 * (BOUNDS + repeat) + depth + lines

    post = columns[Kind.POST]
    for number, index in enumerate(post.index):
        reads, writes, count, _, _ = post_memory(post, number)
        cycles[index] += (int(reads) + int(writes)) * (BOUNDS + (count - 1).bit_length())
    return cycles.tolist()
