"""What hardware and software share, as tables: the Core's commands, streams and status bits.

The meaning of every field is here and in docs/core.md; positions and widths are nowhere else.
Imports neither amaranth nor numpy. Fields are packed least significant first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "AMAX_REGISTERS", "COL_STEP", "ROW_STEP", "SCALE_REGISTERS", "STICKY", "TOKENS_MAX",
    "Dataflow", "Edge", "Field", "Limit", "Mode", "Opcode", "Source", "Status",
    "INFO", "POST", "SCALE", "TILE", "pack", "unpack", "width",
]  # fmt: skip

SCALE_REGISTERS = 16
AMAX_REGISTERS = 8
TOKENS_MAX = 255

#: Sticky status bits by position (numerics section 5).
STICKY = ("scale_range", "acc_sat", "clip_delayed", "master_range", "momentum_range")

#: Steps of the random word per row and per column of the logical tensor (numerics.md section 7).
ROW_STEP = 0x9E3779B9
COL_STEP = 0x85EBCA6B


class Dataflow(IntEnum):
    """Which operand stays in the PE."""

    WS = 0
    OS = 1


class Edge(IntEnum):
    """Where a stationary tile enters: LEFT transposes it on the way."""

    TOP = 0
    LEFT = 1


class Source(IntEnum):
    """Where a row operation reads its rows."""

    BUFFER = 0
    STREAM = 1


class Mode(IntEnum):
    """What a row operation does to a value before anything else."""

    RAW = 0  # nothing
    ACC = 1  # rescale, saturate to the accumulator
    INT8 = 2  # rescale, saturate to -127..127, leave on `result`
    INT16 = 3  # rescale, saturate to -32767..32767, leave on `result`


class Limit(IntEnum):
    """Ranges of a row operation's rescaled term and of its value."""

    ACC = 0  # the accumulator, both
    ACC32 = 1  # signed 32 bits, both
    INT16 = 2  # signed 32 bits; -32767..32767 (numerics section 6)


class Status(IntEnum):
    """Which sticky bit a saturation of a row operation sets."""

    ACC_SAT = 0  # acc_sat, of the term or of the value
    MASTER = 1  # master_range, of the value only
    MOMENTUM = 2  # momentum_range, of the value only
    NONE = 3


class Opcode(IntEnum):
    """Commands of the `post` stream."""

    NOP = 0  # only its token bits
    ROWS = 1  # the row operation
    BIAS = 2  # bias row = the next `acc_in` beat
    COLLECT = 3  # amax[dst] = max(amax[dst], lanes' maxima); clears the lanes' maxima
    AMAX_SET = 4  # amax[dst] = imm
    AMAX_READ = 5  # info <- amax[src_a]
    SCALE_SET = 6  # scale[dst] = imm, a SCALE
    SCALE_MUL = 7  # scale[dst] = mul(scale[src_a], scale[src_b])
    SCALE_DIV = 8  # scale[dst] = div(scale[src_a], scale[src_b])
    SCALE_AMAX = 9  # scale[dst] = from_int(amax[src_a])
    SCALE_READ = 10  # info <- scale[src_a]


@dataclass(frozen=True)
class Field:
    """One field of a command: its name, width in bits and meaning."""

    name: str
    width: int
    doc: str
    signed: bool = False


TILE: tuple[Field, ...] = (
    Field("dataflow", 1, "Dataflow: WS or OS"),
    Field("load", 1, "WS: a stationary tile precedes on `wgt`; 0 keeps the one in the array"),
    Field("edge", 1, "Edge the stationary tile enters from (WS with load)"),
    Field("act_low", 1, "`act` bytes are low planes: unsigned"),
    Field("wgt_low", 1, "`wgt` bytes are low planes: unsigned"),
    Field("accumulate", 1, "add to the accumulators instead of overwriting them"),
    Field("shift", 2, "sums are shifted left by 8 * shift bits on their way, 0 to 2"),
    Field("wait", 1, "take a token from the post queue before the first `act` beat"),
    Field("signal", 1, "give a token to the post queue when the last sum is written"),
    Field("length", 20, "WS: rows streamed, at least 1; OS: depth of the reduction, at least 1"),
    Field("out_rows", 10, "OS: rows of the tile that are written, 1 to R"),
    Field("acc_base", 17, "first row written in the accumulator buffer"),
)

POST: tuple[Field, ...] = (
    Field("opcode", 4, "Opcode"),
    Field("wait", 1, "take a token from the tile queue before starting"),
    Field("signal", 1, "give a token to the tile queue when done"),
    Field("dst", 4, "scale or amax register written"),
    Field("src_a", 4, "first register read; ROWS: the scale register of the rescale"),
    Field("src_b", 4, "second register read"),
    Field("imm", 48, "value of AMAX_SET (unsigned) and SCALE_SET"),
    Field("source", 1, "ROWS: Source"),
    Field("mode", 2, "ROWS: Mode"),
    Field("add", 1, "ROWS, RAW and ACC: add the accumulators at dst_base"),
    Field("bias", 1, "ROWS, RAW and ACC: add the bias row"),
    Field("limit", 2, "ROWS, RAW and ACC: Limit of the term and of the value"),
    Field("negate", 1, "ROWS, RAW and ACC: subtract the term instead of adding it"),
    Field("sign", 1, "ROWS: the source is replaced by its sign, -1, 0 or 1"),
    Field("status", 2, "ROWS, RAW and ACC: Status that a saturation sets"),
    Field("write", 1, "ROWS, RAW and ACC: write the value to the accumulators at dst_base"),
    Field("emit", 1, "ROWS, RAW and ACC: send the value on `acc_out`"),
    Field("amax", 1, "ROWS: fold into the lanes' maxima (value if RAW or ACC, else the source)"),
    Field("stochastic", 1, "ROWS, all but RAW: round stochastically"),
    Field("transposed", 1, "ROWS: device rows are the logical tensor's columns (random words)"),
    Field("delayed", 1, "ROWS, INT8 and INT16: a clipped value sets clip_delayed"),
    Field("rows", 20, "ROWS: number of rows, at least 1"),
    Field("cols", 10, "ROWS: valid columns, 1 to C; the others are padding"),
    Field("src_base", 17, "ROWS from BUFFER: first row read"),
    Field("dst_base", 17, "ROWS with add or write: first row"),
    Field("word0", 32, "ROWS: seed word of the element at the operation's first row and column"),
)

#: A Scale, as SCALE_SET holds it in the low bits of `imm`.
SCALE: tuple[Field, ...] = (
    Field("m", 16, "mantissa of a Scale"),
    Field("e", 10, "exponent of a Scale", signed=True),
)

#: One beat of the `info` stream: AMAX_READ fills amax, SCALE_READ fills m and e, the rest is 0.
INFO: tuple[Field, ...] = (Field("amax", 48, "maximum of the absolute values"), *SCALE)


def width(table: tuple[Field, ...], name: str) -> int:
    """Bits of a table's field."""
    return next(field.width for field in table if field.name == name)


def pack(table: tuple[Field, ...], values: Mapping[str, int]) -> int:
    """The fields' values as one integer; fields not named are 0.

    Raises
    ------
    ValueError
        On an unknown field, or a value outside its field.
    """
    left = dict(values)
    word = position = 0
    for field in table:
        value = int(left.pop(field.name, 0))
        low = -(1 << (field.width - 1)) if field.signed else 0
        if not low <= value < low + (1 << field.width):
            raise ValueError(f"{field.name} = {value}: must fit {field.width} bits")
        word |= (value & ((1 << field.width) - 1)) << position
        position += field.width
    if left:
        raise ValueError(f"unknown field {next(iter(left))!r}")
    return word


def unpack(table: tuple[Field, ...], word: int) -> dict[str, int]:
    """The inverse of `pack`."""
    values = {}
    for field in table:
        value = word & ((1 << field.width) - 1)
        if field.signed and value >> (field.width - 1):
            value -= 1 << field.width
        values[field.name] = value
        word >>= field.width
    return values
