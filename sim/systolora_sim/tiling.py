"""How a product's operands are cut into the tiles that loads bring into the buffers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import Buffer, Edge, Layout
from systolora_sim.blocks import ceil_div
from systolora_sim.memory_map import Symbol
from systolora_sim.work import Tile, tile

__all__ = ["Deep", "Place", "Stationary", "Streamed", "segments"]


#: Longest stride of an EXEC, in units of its buffer.
MAX_STRIDE = (1 << 16) - 1
#: Deepest reduction of one EXEC: an output-stationary pass of two low planes (numerics section 8).
MAX_DEPTH = 1 << 15


# Operands ---------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where an EXEC finds an operand: a tile, and units of its buffer.

    unit : from the beginning of the tile to the first line; stride : from a line to the next; step
    : from a tile of the array to the next.
    """

    tile: Tile
    unit: int
    stride: int
    step: int


def _even(total: int, most: int, unit: int = 1) -> int:
    """Size of a piece, a multiple of `unit`, that cuts `total` into pieces of about `most`.

    `most` is a multiple of `unit`; pieces are not larger.
    """
    return ceil_div(ceil_div(total, ceil_div(total, most)), unit) * unit


@dataclass(frozen=True)
class Streamed:
    """Rows that stream past stationary tiles: [rows, K] of a block, in pieces.

    A block's rows stay in the buffer over all its columns where that leaves room to load the next
    block's; else pieces of the reduction come anew for each column block, a quarter of the buffer
    each. rows : of a piece; piece : its part of the reduction.
    """

    config: AcceleratorConfig
    symbol: Symbol
    rows: int
    piece: int

    @staticmethod
    def stays(config: AcceleratorConfig, symbol: Symbol, rows: int) -> bool:
        """Whether that many rows stay in the buffer over all columns of a product."""
        full = ceil_div(symbol.cols * symbol.itemsize, config.act_entry_bytes)
        longest = MAX_STRIDE * config.act_unit // config.act_entry_bytes
        return rows * full <= config.act_entries * 7 // 16 and full <= longest

    @classmethod
    def fit(cls, config: AcceleratorConfig, symbol: Symbol, rows: int) -> "Streamed":
        """For blocks of at most that many rows."""
        entries, size = config.act_entries, symbol.itemsize
        each = config.act_entry_bytes // size  # elements of an entry
        full = ceil_div(symbol.cols, each)
        longest = MAX_STRIDE * config.act_unit // config.act_entry_bytes
        if cls.stays(config, symbol, rows):
            return cls(config, symbol, rows, full * each)
        quarter = entries // 4
        if rows > quarter:
            return cls(config, symbol, _even(rows, quarter), each)
        return cls(config, symbol, rows, _even(full, min(quarter // rows, longest)) * each)

    def bounds(self) -> set[int]:
        """Where the pieces of the reduction begin."""
        return set(range(0, self.symbol.cols, self.piece))

    def at(self, row0: int, rows: int, k: int) -> Place:
        """The rows of a piece from reduction element `k` on."""
        config, size = self.config, self.symbol.itemsize
        start = k // self.piece * self.piece
        area = self.symbol.area(row0, rows, start, min(self.piece, self.symbol.cols - start))
        held = tile(config, Buffer.ACT, Layout.PLAIN, area)
        stride = held.row_entries * config.act_entry_bytes // config.act_unit
        return Place(held, (k - start) * size // config.act_unit, stride, size)


@dataclass(frozen=True)
class Stationary:
    """The stationary operand: [N, K] from the left edge, [K, N] from the top, in pieces.

    piece : of the reduction; width : columns of the output, both as far as a load brings them.
    """

    config: AcceleratorConfig
    symbol: Symbol
    edge: Edge
    piece: int
    width: int

    @classmethod
    def fit(cls, config: AcceleratorConfig, symbol: Symbol, edge: Edge) -> "Stationary":
        """For all columns of a product, about a quarter of the buffer for those of a tile.

        From the left a load brings one column block, from the top whole entries.
        """
        quarter, each = config.wgt_entries // 4, config.wgt_entry_bytes // symbol.itemsize
        if edge == Edge.LEFT:
            full = ceil_div(symbol.cols, each)
            longest = MAX_STRIDE * config.wgt_unit // config.wgt_entry_bytes
            piece = _even(full, min(max(1, quarter // config.left_load), longest)) * each
            return cls(config, symbol, edge, piece, config.cols)
        tiles = ceil_div(symbol.rows, config.rows)
        most = min(max(1, quarter // config.top_load), MAX_DEPTH // config.rows)
        piece = _even(tiles, most) * config.rows
        return cls(config, symbol, edge, piece, each)

    def bounds(self) -> set[int]:
        """Where the pieces of the reduction begin."""
        k = self.symbol.cols if self.edge == Edge.LEFT else self.symbol.rows
        return set(range(0, k, self.piece))

    def at(self, col0: int, cols: int, k: int) -> Place:
        """The tiles of a column block from reduction element `k` on."""
        config, symbol, size = self.config, self.symbol, self.symbol.itemsize
        start, first = k // self.piece * self.piece, col0 // self.width * self.width
        unit = config.wgt_unit
        if self.edge == Edge.LEFT:
            lines = min(self.width, symbol.rows - first)
            area = symbol.area(first, lines, start, min(self.piece, symbol.cols - start))
            held = tile(config, Buffer.WGT, Layout.LEFT, area)
            stride = held.row_entries * config.wgt_entry_bytes // unit
            offset = (col0 - first) // config.cols * config.left_load * stride
            step = config.rows * size // unit
            return Place(held, offset + (k - start) * size // unit, stride, step)
        area = symbol.area(
            start, min(self.piece, symbol.rows - start), first, min(self.width, symbol.cols - first)
        )
        held = tile(config, Buffer.WGT, Layout.TOP, area)
        stride = held.row_entries * config.wgt_entry_bytes // unit
        step = config.top_load * stride
        offset = (k - start) // config.rows * step + (col0 - first) * size // unit
        return Place(held, offset, stride, step)


@dataclass(frozen=True)
class Deep:
    """An operand of an output-stationary product: [K, columns], its reduction in pieces.

    buffer : ACT for the rows of the output, WGT for its columns; piece : of the reduction; width :
    columns of the operand in a tile, whole entries; 0: all of them.
    """

    config: AcceleratorConfig
    symbol: Symbol
    buffer: Buffer
    piece: int
    width: int

    @classmethod
    def fit(cls, config: AcceleratorConfig, symbol: Symbol, buffer: Buffer, columns: int) -> "Deep":
        """For products that take at most that many columns of the operand at a time."""
        act = buffer == Buffer.ACT
        entries = config.act_entries if act else config.wgt_entries
        each = (config.act_entry_bytes if act else config.wgt_entry_bytes) // symbol.itemsize
        full = ceil_div(symbol.cols, each)
        if symbol.rows * full <= entries // 8 and symbol.rows <= MAX_DEPTH:
            return cls(config, symbol, buffer, symbol.rows, 0)
        quarter = max(1, entries // 4)
        # Columns may begin inside an entry: one more than they fill.
        width = min(ceil_div(columns - 1, each) + 1, full, quarter)
        piece = _even(symbol.rows, min(max(1, quarter // width), MAX_DEPTH))
        return cls(config, symbol, buffer, piece, width * each)

    @property
    def entry(self) -> int:
        """Elements of an entry of the buffer."""
        config = self.config
        size = config.act_entry_bytes if self.buffer == Buffer.ACT else config.wgt_entry_bytes
        return size // self.symbol.itemsize

    def columns(self, col0: int, cols: int) -> int:
        """How many columns from col0 on one tile can bring, at most `cols`."""
        if not self.width:
            return cols
        return min(cols, self.width - col0 % self.entry)

    def bounds(self) -> set[int]:
        """Where the pieces of the reduction begin."""
        return set(range(0, self.symbol.rows, self.piece))

    def at(self, col0: int, cols: int, k: int) -> Place:
        """Columns of the operand from reduction element `k` on."""
        config, symbol, size = self.config, self.symbol, self.symbol.itemsize
        act = self.buffer == Buffer.ACT
        start = k // self.piece * self.piece
        depth = min(self.piece, symbol.rows - start)
        first = col0 // self.entry * self.entry if self.width else 0
        count = min(first + self.width, symbol.cols) - first if self.width else symbol.cols
        held = tile(config, self.buffer, Layout.PLAIN, symbol.area(start, depth, first, count))
        unit = config.act_unit if act else config.wgt_unit
        entry = config.act_entry_bytes if act else config.wgt_entry_bytes
        stride = held.row_entries * entry // unit
        return Place(held, (k - start) * stride + (col0 - first) * size // unit, stride, size)


def segments(k: int, *bounds: set[int]) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of a reduction of k elements that lie in one piece of each operand.

    bounds : where the pieces of an operand begin.
    """
    yield from itertools.pairwise(sorted(set().union(*bounds) | {k}))
