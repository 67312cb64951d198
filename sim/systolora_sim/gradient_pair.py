"""dH^T = lora_B^T.dY^T and dB^T = H^T.dY from one load of dY.

In a square array a tile that enters from the left (transposed) lies in the stationary buffer as one
that enters from the top, so a part of dY that is loaded once serves both products, one after the
other. One of them is complete with each part, the other adds up over all parts and stays in the
accumulators meanwhile: dH^T where a part has all rows of dY, dB^T where it has all columns.
"""

from dataclasses import dataclass

from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora.contract import Edge
from systolora_sim.blocks import Block, Plan, ceil_div
from systolora_sim.memory_map import Symbol
from systolora_sim.post_builder import PostBuilder
from systolora_sim.product_lowering import ProductLowering
from systolora_sim.product_spec import Product
from systolora_sim.tiling import Stationary
from systolora_sim.work import Exec

__all__ = ["lower_gradients"]

#: Share of the stationary buffer for a part of dY: the next one is loaded meanwhile.
SHARE = 4


@dataclass(frozen=True)
class _Parts:
    """Parts of dY: `rows` x `cols`, which cover all rows or all columns of it."""

    rows: int
    cols: int
    by_columns: bool


def _entries(config: AcceleratorConfig, rows: int, cols: int, itemsize: int) -> int:
    """Entries of a bank of the stationary buffer for a part of that size."""
    lines = config.left_load * config.segments
    return (
        ceil_div(rows, lines) * config.left_load * ceil_div(cols * itemsize, config.wgt_entry_bytes)
    )


def _cut(config: AcceleratorConfig, dy: Symbol, rank: int) -> _Parts | None:
    """Parts that fit the buffer, and whose sums fit the accumulators; None if there are none."""
    if config.rows != config.cols:
        return None
    most, side = config.wgt_entries // SHARE, config.rows
    unit = max(side, config.wgt_entry_bytes // dy.itemsize)
    blocks = config.bank_depth // rank  # that a bank holds
    if ceil_div(dy.rows, side) <= blocks:
        widest = min(blocks * side, ceil_div(dy.cols, unit) * unit)
        for cols in range(widest // unit * unit, 0, -unit):
            if _entries(config, dy.rows, cols, dy.itemsize) <= most:
                return _Parts(dy.rows, cols, by_columns=True)
    if ceil_div(dy.cols, side) <= blocks:
        tallest = min(blocks, ceil_div(dy.rows, side)) * side
        for rows in range(tallest, 0, -side):
            if _entries(config, rows, dy.cols, dy.itemsize) <= most:
                return _Parts(rows, dy.cols, by_columns=False)
    return None


def _plan(config: AcceleratorConfig, m: int, n: int, part: int, banks: list[int]) -> Plan:
    """Blocks of an [m, n] output, in groups of `part` columns that take turns in the banks."""
    groups: list[list[Block]] = []
    for number, first in enumerate(range(0, n, part)):
        base = banks[number % len(banks)] * config.bank_depth
        groups.append([])
        for inside, col in enumerate(range(first, min(first + part, n), config.cols)):
            cols, index = min(config.cols, n - col), col // config.cols
            groups[-1].append(Block(index, 0, m, col, cols, base + inside * m, 0))
    return Plan(groups, False, banks[0])


def lower_gradients(builder: PostBuilder, dh: Product, db: Product) -> bool:
    """Appends both products; False, and nothing, if they cannot share their loads.

    Parameters
    ----------
    dh : streams lora_B^T [r, k], dY [N, k] from the left; its sums go to memory
    db : streams H^T [r, N], dY from the top; its sums go to memory
    """
    config, dy = builder.config, dh.stationary
    assert dh.edge == Edge.LEFT and db.edge == Edge.TOP and dy == db.stationary
    parts = _cut(config, dy, dh.m)
    if parts is None:
        return False
    bank = builder.bank
    builder.bank = (bank + 2) % ACC_BANKS
    others = [(bank + 1) % ACC_BANKS, (bank + 3) % ACC_BANKS]
    left = Stationary(config, dy, Edge.LEFT, parts.cols, parts.rows)
    top = Stationary(config, dy, Edge.TOP, parts.rows, parts.cols)
    whole, passing = (dh, db) if parts.by_columns else (db, dh)
    size = parts.cols if parts.by_columns else parts.rows
    operands = {dh.name: left, db.name: top}
    all_of_it = _plan(config, whole.m, whole.n, whole.n, [bank])
    in_turns = _plan(config, passing.m, passing.n, size, others)
    first = ProductLowering(builder, whole, all_of_it, operands[whole.name])
    second = ProductLowering(builder, passing, in_turns, operands[passing.name])
    # The first one's EXECs by the part of dY that they read.
    by_part: dict[int, list[Exec]] = {}
    for block in all_of_it.blocks:
        for item in first.array.part("main", block):
            item.label = whole.label
            area = item.wgt.area
            begins = area.col0 if parts.by_columns else area.row0
            by_part.setdefault(begins // size, []).append(item)
    for number, group in enumerate(in_turns.groups):
        execs = by_part[number]
        for block in group:
            own = second.array.part("main", block)
            for item in own:
                item.label = passing.label
            execs += own
        for item in execs:
            builder.exec(item)
        if number == 0:
            builder.settle()
        builder.spare(sum(item.cycles for item in execs) - second.post_cycles(group))
        second.posts(group)
    first.posts(all_of_it.groups[0])
    return True
