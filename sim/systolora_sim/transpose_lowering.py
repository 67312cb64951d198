"""Transposes a tensor on the array, exactly, from memory to memory.

The tensor's tiles enter from the left, which transposes them on the way; the rows of the identity
stream past and bring each tile's rows out as they are. They leave by row operations that change
nothing, so that -128 and -32768 survive.
"""

from itertools import pairwise

from systolora.contract import Dataflow, Edge, Mode
from systolora_sim.blocks import ceil_div, plan_blocks
from systolora_sim.memory_map import Symbol
from systolora_sim.post_builder import PostBuilder
from systolora_sim.tiling import Stationary, Streamed
from systolora_sim.work import Exec, Rows

__all__ = ["lower_transpose"]


def lower_transpose(builder: PostBuilder, source: Symbol, target: Symbol, identity: Symbol) -> None:
    """Appends target[n, r] = source[r, n].

    Parameters
    ----------
    builder : PostBuilder
    source : int8 or int16 [r, n], as it lies in memory
    target : of the same type, [n, r]
    identity : int8 [R, R], R the rows of the array: the identity matrix
    """
    config = builder.config
    side = config.rows
    stationary = Stationary.fit(config, source, Edge.LEFT)
    act = Streamed.fit(config, identity, side).at(0, side, 0)
    wide = source.itemsize == 2
    # Every tile writes a whole tile of rows. Where sums of an earlier product may still wait for
    # their maximum at one end of the banks, the other end is free.
    plan = plan_blocks(
        config,
        ceil_div(source.cols, side) * side,
        source.rows,
        1,
        whole_tiles=True,
        want_resident=True,
        first=builder.bank,
    )
    builder.bank = plan.next_bank
    for block in plan.blocks:
        rows = min(block.rows, source.cols - block.row0)
        ends = {start for start in stationary.bounds() if 0 < start - block.row0 < rows}
        for start, end in pairwise(sorted({block.row0, block.row0 + rows} | ends)):
            wgt = stationary.at(block.col0, block.cols, start)
            repeat, base = ceil_div(end - start, side), block.base + start - block.row0
            fields = {
                "dataflow": Dataflow.WS,
                "edge": Edge.LEFT,
                "wgt_wide": int(wide),
                "length": side,
                "repeat": repeat,
                "last": end - start - (repeat - 1) * side,
                "cols": block.cols,
                "act_stride": act.stride,
                "wgt_stride": wgt.stride,
                "wgt_step": wgt.step,
                "acc_base": base,
                "acc_step": side,
            }
            cycles = repeat * (1 + wide) * max(config.left_load, side)
            accumulators = Rows(base, base + repeat * side)
            builder.exec(Exec(fields, act.tile, act.unit, wgt.tile, wgt.unit, accumulators, cycles))
        area = target.area(block.row0, rows, block.col0, block.cols)
        builder.rows(rows, block.cols, block.base, area, mode=Mode.RAW)
