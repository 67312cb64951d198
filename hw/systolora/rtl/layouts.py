"""Layouts of the commands and of the control words that travel with the data."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from systolora import contract

__all__ = ["InfoLayout", "PEControl", "PostLayout", "SumControl", "TileLayout"]


def _struct(table: tuple[contract.Field, ...]) -> data.StructLayout:
    return data.StructLayout(
        {f.name: signed(f.width) if f.signed else unsigned(f.width) for f in table}
    )


TileLayout = _struct(contract.TILE)
PostLayout = _struct(contract.POST)
InfoLayout = _struct(contract.INFO)

#: Control word of a PE; it enters a row at column 0 and moves right by one PE per cycle, so every
#: bit acts at the PE's own local time. `clear` and `ws` act one cycle later than the others, with
#: the registered product.
PEControl = data.StructLayout(
    {
        "b_shift": 1,  # b takes the value from above
        "w_load": 1,  # w takes b
        "clear": 1,  # the sum starts from zero
        "ws": 1,  # the sum continues the one from above, not the PE's own
        "d_load": 1,  # the drain register takes the finished sum
        "d_shift": 1,  # the drain register takes the one from above
    }
)


def SumControl(address_bits: int) -> data.StructLayout:
    """Control word of one row of sums on its way through the accumulator lanes.

    The two forwards say that the row's accumulator was touched one or two cycles before, when
    the memory cannot show it yet.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "drain": 1,
            "accumulate": 1,
            "shift": 2,
            "address": address_bits,
            "forward_1": 1,
            "forward_2": 1,
            "last": 1,
            "signal": 1,
        }
    )
