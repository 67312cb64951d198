"""Where the blocks of a product's output lie in the accumulator buffer, and in which order.

Blocks have at most C columns and as many rows as fit; groups of them alternate between the two
banks, so that the post-processor has one bank while the array fills the other.
"""

from dataclasses import dataclass
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora_sim.operands import ceil_div

__all__ = ["Block", "Plan", "plan_blocks"]

#: Groups that the array may be ahead of the post-processor: keeps the tokens below their maximum.
MAX_LEAD = 128


class Block(NamedTuple):
    """A block of a product's output and its place in the accumulator buffer."""

    index: int
    row0: int
    rows: int
    col_block: int
    col0: int
    cols: int
    base: int  # the sums
    term_base: int  # the low-rank term


@dataclass(frozen=True)
class Plan:
    """Groups of blocks in order; a group shares a bank, the next group has the other bank.

    Group g may start when the post-processor is done with group g - lead. resident : every block
    has a place of its own, so that nothing has to be spilled.
    """

    groups: list[list[Block]]
    lead: int
    resident: bool

    @property
    def blocks(self) -> list[Block]:
        return [block for group in self.groups for block in group]


def plan_blocks(
    config: AcceleratorConfig, m: int, n: int, low_rank: bool, want_resident: bool, group: int
) -> Plan:
    """Places the blocks of an [m, n] output; all of them at once if wanted and possible.

    group : blocks that should be in a group; fewer are where they do not fit.
    """
    bank = config.bank_depth
    limit = bank // (2 if low_rank else 1)
    rows = ceil_div(m, ceil_div(m, limit))
    if low_rank and ceil_div(rows, config.rows) * config.rows <= limit:
        rows = min(m, ceil_div(rows, config.rows) * config.rows)  # whole output-stationary tiles
    places = [
        (row0, min(rows, m - row0), column, col0, min(config.cols, n - col0))
        for column, col0 in enumerate(range(0, n, config.cols))
        for row0 in range(0, m, rows)
    ]

    def placed(size: int, sums: int, terms: int) -> list[list[Block]]:
        """Groups with rings of `sums` and `terms` blocks in each bank, the terms behind."""
        groups: list[list[Block]] = []
        for index, place in enumerate(places):
            number, inside = divmod(index, size)
            start, turn = number % 2 * bank, number // 2 * size + inside
            if inside == 0:
                groups.append([])
            base = start + turn % sums * rows
            term_base = start + (sums + turn % terms) * rows if terms else 0
            groups[-1].append(Block(index, *place, base, term_base))
        return groups

    if want_resident:
        for size in range(min(group, len(places)), 0, -1):
            sums = ceil_div(ceil_div(len(places), size), 2) * size
            terms = (bank // rows - sums) // size * size
            if terms >= size or (not low_rank and terms >= 0):
                groups = placed(size, sums, terms if low_rank else 0)
                lead = 2 * terms // size if low_rank else len(groups)
                return Plan(groups, min(lead, MAX_LEAD), resident=True)
    size = min(group, limit // rows)
    slots = limit // rows // size * size
    groups = placed(size, slots, slots if low_rank else 0)
    return Plan(groups, min(2 * slots // size, MAX_LEAD), resident=False)
