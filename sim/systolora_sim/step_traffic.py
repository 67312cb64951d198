"""What a program does in the array, its memories and on the bus: counts, from its descriptors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow, Kind, Opcode, Source
from systolora_sim.timing.columns import Rows, columns
from systolora_sim.timing.dispatching import post_memory

__all__ = ["Traffic", "traffic"]


@dataclass(frozen=True)
class Traffic:
    """Counts of a whole program; operands are bytes of int8 (or of byte planes).

    Members
    -------
    ws_beats, os_beats : beats of the array, one cycle each
    ws_tiles : stationary tiles loaded
    act_read, wgt_read, buffer_write : operand buffers, bytes
    acc_read, acc_write : accumulators, words; by the array and by row operations
    post_rows : rows of row operations
    narrow_read, narrow_write : of the bytes on the bus, those of operands (one byte each)
    """

    ws_beats: int = 0
    os_beats: int = 0
    ws_tiles: int = 0
    act_read: int = 0
    wgt_read: int = 0
    buffer_write: int = 0
    acc_read: int = 0
    acc_write: int = 0
    post_rows: int = 0
    narrow_read: int = 0
    narrow_write: int = 0


def _array(execs: Rows, config: AcceleratorConfig) -> dict[str, int]:
    found: dict[str, int] = dict.fromkeys(
        ("ws_beats", "os_beats", "ws_tiles", "act_read", "wgt_read", "acc_read", "acc_write"), 0
    )
    rows, cols = config.rows, config.cols
    for number in range(len(execs)):
        wgt_planes, act_planes = 1 + execs.wgt_wide[number], 1 + execs.act_wide[number]
        repeat, length = execs.repeat[number], execs.length[number]
        passes = repeat * wgt_planes * act_planes
        beats = passes * length
        found["act_read"] += beats * rows
        if execs.dataflow[number] == Dataflow.OS:
            found["os_beats"] += beats
            found["wgt_read"] += beats * cols
            # A pass drains all of its rows, of the last tile those that are written
            words = (rows * (repeat - 1) + execs.last[number]) * cols * wgt_planes * act_planes
            words_of_pass = words / passes
        else:
            found["ws_beats"] += beats
            found["ws_tiles"] += repeat * wgt_planes
            found["wgt_read"] += repeat * wgt_planes * rows * cols
            words_of_pass = length * cols
            words = passes * words_of_pass
        # The first pass overwrites, of all tiles or of each where they do not add up
        first = 1 if execs.acc_step[number] == 0 else repeat
        added = passes if execs.accumulate[number] else passes - first
        found["acc_write"] += words
        found["acc_read"] += round(added * words_of_pass)
    return found


def traffic(program: NDArray[np.uint8], config: AcceleratorConfig) -> Traffic:
    """The counts of a program, uint8 [n, 64], that a configuration runs."""
    parts = columns(program)
    found = _array(parts[Kind.EXEC], config)
    loads, posts = parts[Kind.LOAD], parts[Kind.POST]
    loaded = sum(r * b for r, b in zip(loads.rows, loads.row_bytes, strict=True))
    acc_read = acc_write = rows = narrow_read = narrow_write = 0
    for number in range(len(posts)):
        if posts.opcode[number] != Opcode.ROWS:
            continue
        count = posts.rows[number]
        rows += count
        reads = int(posts.source[number] == Source.BUFFER)
        reads += int(posts.add[number] and not posts.add_stream[number])
        acc_read += reads * count * config.cols
        acc_write += int(posts.write[number]) * count * config.cols
        memory = post_memory(posts, number)
        if memory.reads and posts.in_width[number] == 0:
            narrow_read += count * memory.in_bytes
        if memory.writes and posts.out_width[number] == 0:
            narrow_write += count * memory.out_bytes
    found["acc_read"] += acc_read
    found["acc_write"] += acc_write
    return Traffic(
        **found,
        buffer_write=loaded,
        post_rows=rows,
        narrow_read=loaded + narrow_read,
        narrow_write=narrow_write,
    )
