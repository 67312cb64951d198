"""What a program does, before it has addresses in buffers and tokens.

A program is first a sequence of `Exec`, `Post` and `Control` items in an order that would be right
if each ended before the next began. `staging` places the operands and adds the loads; `tokens` lets
the queues run apart as far as the items' uses of buffers, accumulators and memory allow.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import Action, Buffer, Kind, Layout
from systolora_sim.memory_map import Area

__all__ = ["Control", "Exec", "Item", "Op", "Post", "Rows", "Tile", "tile"]


class Rows(NamedTuple):
    """A range of accumulator rows or buffer entries."""

    start: int
    end: int


class Tile(NamedTuple):
    """A part of a tensor in a buffer: what one LOAD brings.

    area : its rows, each contiguous in memory; layout, group : banks of the rows, group is the rows
    in a bank before the next one; row_entries : entries from a row to the next of its bank; entries
    : that it takes in all (of every bank).
    """

    buffer: Buffer
    area: Area
    layout: Layout
    row_entries: int
    entries: int


def tile(config: AcceleratorConfig, buffer: Buffer, layout: Layout, area: Area) -> Tile:
    """A tile with its rows packed as densely as entries allow.

    In a square array both edges put rows into the same banks: such tiles are the same, so that a
    tensor that enters by both edges is loaded once.
    """
    if layout == Layout.TOP and config.rows == config.cols:
        layout = Layout.LEFT
    entry = config.act_entry_bytes if buffer == Buffer.ACT else config.wgt_entry_bytes
    row_entries = -(-area.row_bytes // entry)
    rows = area.rows
    if layout != Layout.PLAIN:
        group = config.left_load if layout == Layout.LEFT else config.top_load
        rows = -(-rows // (group * config.segments)) * group
    return Tile(buffer, area, layout, row_entries, rows * row_entries)


@dataclass(slots=True)
class Exec:
    """An EXEC descriptor to be.

    fields : without what depends on where the tiles are; act_unit, wgt_unit : units from the
    beginning of its tile to the first one read; acc : rows written; cycles : of the array, about;
    label : what it is for, the product and the layer, as reports name it.
    """

    fields: dict[str, int]
    act: Tile
    act_unit: int
    wgt: Tile
    wgt_unit: int
    acc: Rows
    cycles: int
    label: str = ""


@dataclass(slots=True)
class Post:
    """A POST descriptor to be; cycles : of the post queue, about; label : as of Exec."""

    fields: dict[str, int]
    acc: tuple[Rows, ...] = ()
    reads: Area | None = None
    writes: Area | None = None
    cycles: int = 0
    label: str = ""


@dataclass(slots=True)
class Control:
    """A CONTROL descriptor."""

    action: Action


Item = Exec | Post | Control


@dataclass(slots=True)
class Op:
    """A descriptor with what it uses, for `tokens`.

    act, wgt : entries that a LOAD writes or an EXEC reads; acc : accumulator rows that an EXEC
    writes or a POST reads or writes; reads, writes : memory.
    """

    kind: Kind
    fields: dict[str, int] = field(default_factory=dict)
    act: Rows | None = None
    wgt: Rows | None = None
    acc: tuple[Rows, ...] = ()
    reads: Area | None = None
    writes: Area | None = None
    label: str = ""
