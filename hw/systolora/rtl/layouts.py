"""Layouts of the commands and of the control words that travel with the data."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from systolora import contract
from systolora.rtl.regions import ROWS_BITS, STRIDE_BITS

__all__ = ["ControlDescriptor", "ExecDescriptor", "ExecLayout", "InfoLayout"]
__all__ += ["INDEX_BITS", "LoadDescriptor", "LoadLayout", "PEControl", "PostDescriptor"]
__all__ += ["PostLayout", "StreamReadLayout", "StreamWriteLayout", "SumControl", "TileLayout"]

#: Bits of a descriptor's number.
INDEX_BITS = contract.PROGRAM_MAX.bit_length()


def _struct(table: tuple[contract.Field, ...]) -> data.StructLayout:
    return data.StructLayout(
        {f.name: signed(f.width) if f.signed else unsigned(f.width) for f in table}
    )


TileLayout = _struct(contract.TILE)
InfoLayout = _struct(contract.INFO)
LoadDescriptor = _struct(contract.LOAD)
ExecDescriptor = _struct(contract.EXEC)
ControlDescriptor = _struct(contract.CONTROL)

#: An EXEC on its way to the array.
ExecLayout = _struct(tuple(field for field in contract.EXEC if field.name != "kind"))


def PostLayout(fused: bool) -> data.StructLayout:
    """A post command; `fused`: of a configuration with fused_quantize."""
    return _struct(contract.existing_fields(contract.POST, fused))


def PostDescriptor(fused: bool) -> data.StructLayout:
    """A POST descriptor; `fused`: of a configuration with fused_quantize."""
    return _struct(contract.existing_fields(contract.POST_DESCRIPTOR, fused))


def LoadLayout(address_bits: int) -> data.StructLayout:
    """A LOAD on its way to memory: checked, so that its address fits."""
    fields = {f.name: f.width for f in contract.LOAD if f.name != "kind"}
    return data.StructLayout(fields | {"address": address_bits, "index": INDEX_BITS})


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
            "accumulate": 1,
            "shift": 2,
            "address": address_bits,
            "forward_1": 1,
            "forward_2": 1,
            "last": 1,
            "signal": 1,
        }
    )


def _rows_of_memory(address_bits: int) -> dict[str, int]:
    """`rows` rows of `cols` elements of ``1 << width`` bytes; row r at address + r * stride."""
    return {
        "address": address_bits,
        "stride": STRIDE_BITS,
        "rows": ROWS_BITS,
        "cols": contract.width(contract.POST, "cols"),
        "width": 2,
    }


def StreamReadLayout(address_bits: int) -> data.StructLayout:
    """One item of StreamReader: rows to read, after a token if `wait_store`."""
    return data.StructLayout(
        {**_rows_of_memory(address_bits), "wait_store": 1, "index": INDEX_BITS}
    )


def StreamWriteLayout(address_bits: int) -> data.StructLayout:
    """One item of StreamWriter: rows to write if `writes`, and the tokens that follow them.

    With `info` the one row is the next beat of the info stream, its Scale if `scale`, else its
    maximum. `index` is the number of the descriptor, for errors.
    """
    return data.StructLayout(
        {
            **_rows_of_memory(address_bits),
            "writes": 1,
            "info": 1,
            "scale": 1,
            "signal_load": 1,
            "signal_stream": 1,
            "index": INDEX_BITS,
        }
    )
