"""In which order a product's blocks come, and how many of them share a bank or a load of rows."""

from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora_sim.blocks import ceil_div
from systolora_sim.product_spec import Product
from systolora_sim.tiling import Streamed

__all__ = ["chains", "columns_first", "rows_stay"]


def columns_first(config: AcceleratorConfig, product: Product) -> bool:
    """Whether all rows pass a column block before the next one comes.

    Then a stationary tile is loaded once, and the streamed rows stay in their buffer if all of
    them fit. In the other order those of one row block must, and all stationary tiles; what
    does not stay comes again for each block of the inner loop, rows once for as many of them as
    have banks of their own. The order that reads less is taken.
    """
    if product.columns_first is not None:
        return product.columns_first
    if product.edge is None:
        return False
    entries = product.m * ceil_div(product.k * product.streamed.itemsize, config.act_entry_bytes)
    streamed = entries * config.act_entry_bytes
    stationary = product.n * product.k * product.stationary.itemsize
    row_blocks = ceil_div(product.m, config.bank_depth)
    col_blocks = ceil_div(product.n, config.cols)
    panels = 1 if rows_stay(config, product) else ceil_div(col_blocks, chains(product))
    all_stay = 4 * entries <= 3 * config.act_entries
    fits = 2 * stationary <= config.wgt_bytes
    by_columns = stationary + streamed * (1 if all_stay else col_blocks)
    by_rows = streamed * panels + stationary * (1 if fits else row_blocks)
    return row_blocks > 1 and by_columns < by_rows


def chains(product: Product) -> int:
    """How many groups of blocks have banks of their own."""
    return ACC_BANKS // 2 if product.paired else ACC_BANKS


def rows_stay(config: AcceleratorConfig, product: Product) -> bool:
    """Whether streamed rows stay in their buffer over all columns, or there are none.

    Rows that are brought in pieces do so too, if beside them there is room for the next ones.
    """
    if product.edge is None or product.cached is not None:
        return True
    symbol, row_blocks = product.streamed, ceil_div(product.m, config.bank_depth)
    rows = ceil_div(product.m, row_blocks)
    entries = rows * ceil_div(symbol.cols * symbol.itemsize, config.act_entry_bytes)
    return Streamed.stays(config, symbol, rows) or 8 * entries < 5 * config.act_entries
