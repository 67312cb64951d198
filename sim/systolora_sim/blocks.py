"""How a product's output is cut into blocks, and where their sums lie in the accumulators.

A block has at most C columns and as many rows as a bank holds. The array fills one bank while the
post-processor has others: groups of blocks go round the four banks, or, with a low-rank term, round
two pairs of banks, one of a pair for the sums and one for the term.
"""

from dataclasses import dataclass
from typing import NamedTuple

from systolora.config import ACC_BANKS, AcceleratorConfig

__all__ = ["Block", "Plan", "ceil_div", "plan_blocks"]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


class Block(NamedTuple):
    """A block of a product's output and its place in the accumulator buffer."""

    index: int
    row0: int
    rows: int
    col0: int
    cols: int
    base: int  # the sums
    term_base: int  # the low-rank term


@dataclass(frozen=True)
class Plan:
    """Groups of blocks in order; a group's sums share a bank, and so do its terms.

    resident : every block has a place of its own, so that nothing has to be spilled; next_bank :
    the bank that the next product should begin with, the one that has been idle the longest.
    """

    groups: list[list[Block]]
    resident: bool
    next_bank: int

    @property
    def blocks(self) -> list[Block]:
        return [block for group in self.groups for block in group]


def plan_blocks(
    config: AcceleratorConfig,
    m: int,
    n: int,
    group: int,
    *,
    low_rank: bool = False,
    whole_tiles: bool = False,
    want_resident: bool = False,
    first: int = 0,
    columns_first: bool = False,
) -> Plan:
    """Places the blocks of an [m, n] output; all of them at once if wanted and possible.

    Parameters
    ----------
    group : blocks that should be in a group; fewer are where they do not fit
    low_rank : each has a low-rank term
    whole_tiles : blocks begin at whole output-stationary tiles
    first : the bank to begin with
    columns_first : all row blocks of a column block follow each other, else the reverse
    """
    bank = config.bank_depth
    rows = ceil_div(m, ceil_div(m, bank))
    if whole_tiles:
        rows = min(m, ceil_div(rows, config.rows) * config.rows)
    row_starts, col_starts = range(0, m, rows), range(0, n, config.cols)
    places = [(row, col) for row in row_starts for col in col_starts]
    if columns_first:
        places = [(row, col) for col in col_starts for row in row_starts]
    chains = ACC_BANKS // 2 if low_rank else ACC_BANKS
    start = first // 2 if low_rank else first

    def placed(size: int) -> Plan:
        """Groups of that size, each chain of them in a ring of as many as fit a bank."""
        ring = bank // rows // size * size
        groups: list[list[Block]] = []
        for index, (row, col) in enumerate(places):
            number, inside = divmod(index, size)
            chain = (start + number) % chains
            turn = (number // chains * size + inside) % ring * rows
            base = (2 * chain if low_rank else chain) * bank + turn
            if inside == 0:
                groups.append([])
            shape = row, min(rows, m - row), col, min(config.cols, n - col)
            groups[-1].append(Block(index, *shape, base, base + bank if low_rank else 0))
        following = (start + len(groups)) % chains
        resident = ceil_div(len(groups), chains) * size <= ring
        return Plan(groups, resident, 2 * following if low_rank else following)

    most = min(group, bank // rows, len(places))
    if want_resident:
        for size in range(most, 0, -1):
            plan = placed(size)
            if plan.resident:
                return plan
    plan = placed(most)
    return Plan(plan.groups, False, plan.next_bank)
