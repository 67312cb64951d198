"""What hardware and software share, as tables: commands, descriptors, registers, status bits.

The meaning of every field is here, in docs/core.md and docs/system.md; positions and widths are
nowhere else.
Imports neither amaranth nor numpy. Fields are packed least significant first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from .config import AcceleratorConfig

__all__ = [
    "AMAX_REGISTERS", "COL_STEP", "ROW_STEP", "SCALE_REGISTERS", "STEP_WORD", "STICKY",
    "TOKENS_MAX", "Dataflow", "Edge", "Field", "Limit", "Mode", "Opcode", "Quantize", "Source",
    "Status",
    "DocumentedEnum", "INFO", "POST", "SCALE", "TILE", "pack", "unpack", "width",
    "CONTROL", "DESCRIPTORS", "DESCRIPTOR_BYTES", "EXEC", "LOAD", "PROGRAM_MAX", "POST_DESCRIPTOR",
    "QUEUE_DEPTHS",
    "Action", "Buffer", "Fault", "Kind", "Layout",
    "COUNTERS", "DEVICE_ID", "REGISTERS", "REGISTER_ADDRESS_BITS", "REGISTER_BITS",
    "REGISTER_VERSION", "Register", "RegisterField", "existing_bits", "existing_fields",
    "register_constants",
]  # fmt: skip

SCALE_REGISTERS = 16
AMAX_REGISTERS = 8
TOKENS_MAX = 255

#: Sticky status bits by position (numerics section 5).
STICKY = ("scale_range", "acc_sat", "clip_delayed", "master_range", "momentum_range")
_STICKY_DOC = (
    "the exponent of a Scale saturated",
    "an accumulator saturated",
    "a value clipped in delayed quantization",
    "a master copy saturated",
    "a momentum saturated",
)

#: Steps of the random word per row and per column of the logical tensor (numerics.md section 7).
ROW_STEP = 0x9E3779B9
COL_STEP = 0x85EBCA6B
#: Step of the random word per training step (numerics section 7).
STEP_WORD = 0xC2B2AE35


class DocumentedEnum(IntEnum):
    """Integers with names; `doc` says what a member means."""

    doc: str

    def __new__(cls, value: int, doc: str) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member


class Dataflow(DocumentedEnum):
    """Which operand stays in the PE."""

    WS = 0, "weights stationary: the tile of `wgt` stays"
    OS = 1, "outputs stationary: the sums stay"


class Edge(DocumentedEnum):
    """Where a stationary tile enters: LEFT transposes it on the way."""

    TOP = 0, "a line is a row of the tile"
    LEFT = 1, "a line is a column of the tile: it is transposed on the way"


class Source(DocumentedEnum):
    """Where a row operation reads its rows."""

    BUFFER = 0, "the accumulator buffer"
    STREAM = 1, "`acc_in`; of a descriptor: memory"


class Mode(DocumentedEnum):
    """What a row operation does to a value before anything else."""

    RAW = 0, "nothing"
    ACC = 1, "rescale, saturate to the accumulator"
    INT8 = 2, "rescale, saturate to -127..127, leave on `result`"
    INT16 = 3, "rescale, saturate to -32767..32767, leave on `result`"


class Quantize(DocumentedEnum):
    """What a row operation makes of its value in the same pass (with fused_quantize)."""

    NONE = 0, "nothing"
    INT8 = 2, "rescale, saturate to -127..127, leave on `result`"
    INT16 = 3, "rescale, saturate to -32767..32767, leave on `result`"


class Limit(DocumentedEnum):
    """Ranges of a row operation's rescaled term and of its value."""

    ACC = 0, "the accumulator, both"
    ACC32 = 1, "signed 32 bits, both"
    INT16 = 2, "signed 32 bits; -32767..32767 (numerics section 6)"


class Status(DocumentedEnum):
    """Which sticky bit a saturation of a row operation sets."""

    ACC_SAT = 0, "acc_sat, of the term or of the value"
    MASTER = 1, "master_range, of the value only"
    MOMENTUM = 2, "momentum_range, of the value only"
    NONE = 3, "none"


class Opcode(DocumentedEnum):
    """Commands of the `post` stream."""

    NOP = 0, "only its token bits"
    ROWS = 1, "the row operation"
    BIAS = 2, "bias row = the next `acc_in` beat"
    COLLECT = 3, "amax[dst] = max(amax[dst], lanes' maxima); clears the lanes' maxima"
    AMAX_SET = 4, "amax[dst] = imm"
    AMAX_READ = 5, "info <- amax[src_a]"
    SCALE_SET = 6, "scale[dst] = imm, a SCALE"
    SCALE_MUL = 7, "scale[dst] = mul(scale[src_a], scale[src_b])"
    SCALE_DIV = 8, "scale[dst] = div(scale[src_a], scale[src_b])"
    SCALE_AMAX = 9, "scale[dst] = from_int(amax[src_a])"
    SCALE_READ = 10, "info <- scale[src_a]"
    SCALE_LOAD = 11, "scale[dst] = (m, e) from lanes 0 and 1 of the next `acc_in` beat"
    AMAX_LOAD = 12, "amax[dst] = lane 0 of the next `acc_in` beat, unsigned"
    AMAX_SELECT = 13, "amax[dst] = amax[src_a], or amax[src_b] if that is 0: then `delayed` rests"
    STICKY_LOAD = 14, "the Core's sticky bits = low bits of lane 0 of the next `acc_in` beat"
    STICKY_READ = 15, "info.amax <- the Core's sticky bits"


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
    Field("fence", 1, "begin to load (OS, WS without load: to compute) when the array is empty"),
)

#: Exists with fused_quantize only: the last field, so that without it nothing else moves.
_QUANTIZE = Field("quantize", 2, "ROWS, RAW and ACC, with fused_quantize: Quantize the value")

POST: tuple[Field, ...] = (
    Field("opcode", 4, "Opcode"),
    Field("wait", 1, "take a token from the tile queue before starting"),
    Field("signal", 1, "give a token to the tile queue when done"),
    Field("dst", 4, "scale or amax register written"),
    Field("src_a", 4, "first register read; ROWS: the scale register of the rescale"),
    Field("src_b", 4, "second register read; ROWS: the scale register of `quantize`"),
    Field("imm", 48, "value of AMAX_SET (unsigned) and SCALE_SET"),
    Field("source", 1, "ROWS: Source"),
    Field("mode", 2, "ROWS: Mode"),
    Field("add", 1, "ROWS, RAW and ACC: add the accumulators at dst_base"),
    Field("add_stream", 1, "ROWS from BUFFER with add: add the next `acc_in` row instead"),
    Field("bias", 1, "ROWS, RAW and ACC: add the bias row"),
    Field("limit", 2, "ROWS, RAW and ACC: Limit of the term and of the value"),
    Field("negate", 1, "ROWS, RAW and ACC: subtract the term instead of adding it"),
    Field("sign", 1, "ROWS: the source is replaced by its sign, -1, 0 or 1"),
    Field("status", 2, "ROWS, RAW and ACC: Status that a saturation sets"),
    Field("write", 1, "ROWS, RAW and ACC: write the value to the accumulators at dst_base"),
    Field("emit", 1, "ROWS, RAW and ACC: send the value on `acc_out`"),
    Field("amax", 1, "ROWS: fold into the lanes' maxima (value if RAW or ACC, else the source)"),
    Field("stochastic", 1, "ROWS, all but RAW: round stochastically; with quantize: that alone"),
    Field("transposed", 1, "ROWS: device rows are the logical tensor's columns (random words)"),
    Field("delayed", 1, "ROWS, INT8, INT16 and quantize: a clipped value sets clip_delayed"),
    Field("rows", 20, "ROWS: number of rows, at least 1"),
    Field("cols", 10, "ROWS: valid columns, 1 to C; the others are padding"),
    Field("src_base", 17, "ROWS from BUFFER: first row read"),
    Field("dst_base", 17, "ROWS with add or write: first row"),
    Field("word0", 32, "ROWS: seed word of the element at the operation's first row and column"),
    _QUANTIZE,
)

#: A Scale, as SCALE_SET holds it in the low bits of `imm`.
SCALE: tuple[Field, ...] = (
    Field("m", 16, "mantissa of a Scale"),
    Field("e", 10, "exponent of a Scale", signed=True),
)

#: One beat of the `info` stream: AMAX_READ fills amax, SCALE_READ fills m and e, the rest is 0.
INFO: tuple[Field, ...] = (Field("amax", 48, "maximum of the absolute values"), *SCALE)


# Descriptors: 64 bytes each, little-endian, fields from bit 0 up; every bit beyond the last field
# must be 0. docs/system.md is their contract.

DESCRIPTOR_BYTES = 64
#: Descriptors of a program at most: 65535 pages of 4 KiB and a part of one.
PROGRAM_MAX = (1 << 22) - 1


class Kind(DocumentedEnum):
    """Descriptor kinds. 0 is none, so that a program which runs into zeros stops."""

    LOAD = 1, "memory to an operand buffer"
    EXEC = 2, "buffers through the array to accumulators"
    POST = 3, "a post command with its memory"
    CONTROL = 4, "of the program itself"


#: Descriptors that each queue behind the dispatcher holds.
QUEUE_DEPTHS: dict[Kind, int] = {Kind.LOAD: 8, Kind.EXEC: 8, Kind.POST: 16}


class Buffer(DocumentedEnum):
    """Where a LOAD puts its rows."""

    ACT = 0, "activation buffer"
    WGT = 1, "stationary buffer, S banks"


class Layout(DocumentedEnum):
    """Which bank of the stationary buffer row i of a LOAD goes to, with g rows per bank."""

    PLAIN = 0, "bank 0 (or the activation buffer)"
    LEFT = 1, "bank (i / g) % S, g = C/S: tiles that enter from the left"
    TOP = 2, "bank (i / g) % S, g = R/S: tiles that enter from the top"


class Action(DocumentedEnum):
    """What a CONTROL descriptor does."""

    NOP = 0, "nothing"
    END = 1, "the run ends when all earlier descriptors have"
    STEP = 2, "WORD_BASE += STEP_WORD, STEP += 1, for the descriptors that follow"


class Fault(DocumentedEnum):
    """Error codes. Of a descriptor, the first that applies, in this order."""

    NONE = 0, "no fault"
    KIND = 1, "no such kind of descriptor"
    FIELD = 2, "a field outside its values, or a bit set that belongs to no field"
    BUFFER = 3, "beyond the end of an on-chip buffer, or not in one accumulator bank"
    ALIGN = 4, "a memory address or stride breaks the alignment rule"
    WINDOW = 5, "outside the permitted memory window"
    TOKEN = 6, "a wait that no earlier descriptor answers, or more than 255 tokens"
    END = 7, "the program's length was reached without END"
    READ_SLAVE = 8, "the memory answered a read with SLVERR"
    READ_DECODE = 9, "the memory answered a read with DECERR"
    WRITE_SLAVE = 10, "the memory answered a write with SLVERR"
    WRITE_DECODE = 11, "the memory answered a write with DECERR"
    ABORTED = 12, "CONTROL.abort was written"


LOAD: tuple[Field, ...] = (
    Field("kind", 4, "Kind.LOAD"),
    Field("wait_exec", 1, "take a token that an EXEC gave with signal_load"),
    Field("wait_store", 1, "take a token that a POST gave with signal_load"),
    Field("signal_exec", 1, "give the EXEC queue a token when all rows are in the buffer"),
    Field("buffer", 1, "Buffer: ACT or WGT"),
    Field("layout", 2, "Layout; PLAIN for ACT"),
    Field("rows", 16, "rows, at least 1"),
    Field("row_bytes", 24, "bytes of a row, at least 1"),
    Field("base", 24, "entry of the first row"),
    Field("row_step", 16, "entries from a row to the next one in its bank"),
    Field("address", 64, "address of the first row, bytes"),
    Field("stride", 32, "bytes from a row to the next"),
)

EXEC: tuple[Field, ...] = (
    Field("kind", 4, "Kind.EXEC"),
    Field("wait_load", 1, "take a token that a LOAD gave with signal_exec"),
    Field("wait_post", 1, "take a token that a POST gave with signal_exec"),
    Field("signal_load", 1, "give the LOAD queue a token when the buffers have been read"),
    Field("signal_post", 1, "give the POST queue a token when the last sum is written"),
    Field("dataflow", 1, "Dataflow"),
    Field("edge", 1, "WS: Edge that the stationary tiles enter from"),
    Field("act_wide", 1, "the streamed operand is int16"),
    Field("wgt_wide", 1, "the stationary (OS: top) operand is int16"),
    Field("accumulate", 1, "add to the accumulators instead of overwriting them"),
    Field("length", 16, "WS: rows streamed; OS: depth; at least 1"),
    Field("repeat", 16, "tiles, at least 1"),
    Field("last", 10, "of the last tile: WS valid reduction rows, OS rows written; 1 to R"),
    Field("cols", 10, "valid columns, 1 to C: for the MAC counter alone"),
    Field("act_base", 24, "first line of the streamed operand, units of R bytes"),
    Field("act_stride", 16, "units from a beat to the next"),
    Field("act_step", 24, "units from a tile to the next"),
    Field("wgt_base", 24, "line 0 of the first tile in its bank, units of min(R, C) bytes"),
    Field("wgt_stride", 16, "units from a line to the next"),
    Field("wgt_step", 24, "units from a tile to the next"),
    Field("acc_base", 17, "first accumulator row"),
    Field("acc_step", 10, "rows from a tile to the next; 0: the tiles add up"),
    Field("fence", 1, "each tile command begins to load when all sums before are written"),
)

#: Fields of POST that a POST descriptor holds as they are, in this order (rows: its low 16 bits).
_POST_DIRECT = tuple(
    Field("rows", 16, "ROWS: number of rows, at least 1") if f.name == "rows" else f
    for f in POST
    if f.name not in ("wait", "signal") and f is not _QUANTIZE
)

POST_DESCRIPTOR: tuple[Field, ...] = (
    Field("kind", 4, "Kind.POST"),
    Field("wait_exec", 1, "take a token that an EXEC gave with signal_post"),
    Field(
        "wait_store", 1, "take a token that a POST gave with signal_stream, before reading memory"
    ),
    Field("signal_exec", 1, "give the EXEC queue a token when done"),
    Field("signal_load", 1, "give the LOAD queue a token when all its bytes are in memory"),
    Field("signal_stream", 1, "give later POSTs a token when all its bytes are in memory"),
    Field("in_width", 2, "bytes of an element read, as a power of two"),
    Field("out_width", 2, "bytes of an element written, as a power of two"),
    *_POST_DIRECT,
    Field("in_address", 64, "address of the first row read, bytes"),
    Field("in_stride", 32, "bytes from a row read to the next"),
    Field("out_address", 64, "address of the first row written, bytes"),
    Field("out_stride", 32, "bytes from a row written to the next"),
    _QUANTIZE,
)

CONTROL: tuple[Field, ...] = (
    Field("kind", 4, "Kind.CONTROL"),
    Field("action", 4, "Action"),
)

DESCRIPTORS: dict[Kind, tuple[Field, ...]] = {
    Kind.LOAD: LOAD,
    Kind.EXEC: EXEC,
    Kind.POST: POST_DESCRIPTOR,
    Kind.CONTROL: CONTROL,
}


# Registers: the AXI4-Lite slave of the accelerator, one page of 32-bit words.

REGISTER_BITS = 32
#: Width of a byte address in the register page: 4 KiB.
REGISTER_ADDRESS_BITS = 12

#: What register ID reads: "SLOR".
DEVICE_ID = 0x534C4F52
#: Version of registers and descriptors, (major, minor): a greater major breaks old software.
REGISTER_VERSION = (2, 1)


@dataclass(frozen=True)
class RegisterField(Field):
    """A field of a register.

    access : where it differs from the register's
    reset : value after a reset
    values : names of its values
    """

    access: str = ""
    reset: int = 0
    values: type[DocumentedEnum] | None = None


@dataclass(frozen=True)
class Register:
    """One 32-bit register.

    Parameters
    ----------
    name : in capitals; the halves of a 64-bit quantity end in _LO and _HI
    offset : bytes from the page's beginning
    access : ro, rw, w1c (a written 1 clears the bit) or wo (reads 0)
    fields : from bit 0 up
    doc : meaning
    locked : a write while busy is refused
    quantity : of halves: the name without _LO and _HI, else empty
    """

    name: str
    offset: int
    access: str
    fields: tuple[RegisterField, ...]
    doc: str
    locked: bool = False
    quantity: str = ""

    @property
    def shift(self) -> int:
        """Of a half: position of its bit 0 in the 64-bit quantity."""
        return REGISTER_BITS if self.quantity and self.name.endswith("_HI") else 0

    @property
    def reset(self) -> int:
        """The register's value after a reset, where it is not a constant of the configuration."""
        return pack(self.fields, {f.name: f.reset for f in self.fields})


def _pair(quantity: str, offset: int, access: str, doc: str) -> tuple[Register, Register]:
    locked = access == "rw"
    low, high = (
        Register(
            f"{quantity}_{half}",
            offset + 4 * n,
            access,
            (RegisterField("value", REGISTER_BITS, f"bits {31 + 32 * n} to {32 * n}"),),
            doc,
            locked,
            quantity,
        )
        for n, half in enumerate(("LO", "HI"))
    )
    return low, high


def _word(name: str, offset: int, access: str, doc: str, reset: int = 0) -> Register:
    field = RegisterField("value", REGISTER_BITS, "all bits", reset=reset)
    return Register(name, offset, access, (field,), doc, locked=access == "rw")


_COUNTER_BASE = 0x100
#: 64-bit counters: what one counts, by name. All count from start, while busy.
COUNTERS: dict[str, str] = {
    "CYCLES": "clock cycles",
    "ARRAY_BUSY": "cycles in which the array takes a beat of a streamed operand",
    "STALL_LOAD": "cycles in which the array waits for operands",
    "STALL_POST": "cycles in which the array waits for the post-processor",
    "STALL_STORE": "cycles in which the post-processor waits for memory",
    "BYTES_READ": "bytes read from memory, whole beats, the program's too",
    "BYTES_WRITTEN": "bytes written to memory, those whose strobe is set",
    "MACS": "multiplications of valid operands, one for each product of two elements",
    "DESCRIPTORS": "descriptors accepted",
}

REGISTERS: dict[str, Register] = {
    register.name: register
    for register in (
        _word("ID", 0x000, "ro", "the constant 0x534C4F52"),
        Register(
            "VERSION", 0x004, "ro",
            (
                RegisterField("minor", 16, "grows with compatible changes"),
                RegisterField("major", 16, "grows with incompatible changes"),
            ),
            "version of registers and descriptors",
        ),
        Register(
            "ARRAY", 0x008, "ro",
            (
                RegisterField("rows", 10, "rows R of the array"),
                RegisterField("cols", 10, "columns C of the array"),
                RegisterField("segments", 4, "load segments S"),
                RegisterField("int16", 1, "int16 operands, 48-bit accumulators"),
                RegisterField("fused_quantize", 1, "row operations may quantize their values"),
            ),
            "configuration: array",
        ),
        Register(
            "ACC", 0x00C, "ro",
            (RegisterField("depth", 17, "rows D of the accumulator buffer, four banks"),),
            "configuration: accumulator buffer",
        ),
        Register(
            "BUS", 0x010, "ro",
            (
                RegisterField("bus_bits", 11, "data width of a memory bus, bits"),
                RegisterField("address_bits", 7, "width of an address, bits"),
                RegisterField("outstanding", 9, "bursts that an engine may have under way"),
                RegisterField("channels", 3, "memory buses side by side"),
            ),
            "configuration: memory bus",
        ),
        _word("ACT_BYTES", 0x014, "ro", "configuration: bytes of the activation buffer"),
        _word("WGT_BYTES", 0x018, "ro", "configuration: bytes of the stationary buffer"),
        _word("DIGEST", 0x01C, "ro", "configuration: first 32 bits (8 hex digits) of its digest"),
        Register(
            "CONTROL", 0x020, "wo",
            (
                RegisterField("start", 1, "run the program; refused while busy"),
                RegisterField("abort", 1, "end the run with ABORTED; without effect when idle"),
            ),
            "commands",
        ),
        Register(
            "STATUS", 0x024, "w1c",
            (
                RegisterField("busy", 1, "a program runs", access="ro"),
                RegisterField("done", 1, "the run ended well; start clears it", access="ro"),
                RegisterField("error", 1, "the run ended with ERROR; start clears it", access="ro"),
                RegisterField("start_ignored", 1, "start was written while busy"),
            ),
            "state of the run",
        ),
        Register(
            "ERROR", 0x028, "ro", (RegisterField("code", 4, "Fault", values=Fault),),
            "why the run ended; start clears it",
        ),
        Register(
            "ERROR_INDEX", 0x02C, "ro",
            (RegisterField("index", 22, "number of the descriptor, from 0"),),
            "which descriptor has the fault; start clears it",
        ),
        Register(
            "IRQ_STATUS", 0x030, "w1c",
            (
                RegisterField("done", 1, "a run ended well"),
                RegisterField("error", 1, "a run ended with ERROR"),
            ),
            "pending interrupts; only a written 1 clears them",
        ),
        Register(
            "IRQ_MASK", 0x034, "rw",
            (
                RegisterField("done", 1, "interrupt when IRQ_STATUS.done is set"),
                RegisterField("error", 1, "interrupt when IRQ_STATUS.error is set"),
            ),
            "which pending interrupts raise `irq`; may be written while busy",
        ),
        *_pair("PROGRAM_ADDRESS", 0x040, "rw", "address of the first descriptor, bytes"),
        _word("PROGRAM_LENGTH", 0x048, "rw", "descriptors of the program, 1 to 4194303; else END"),
        _word("RUNS", 0x04C, "rw", "how often start runs the program; 0 counts as 1", reset=1),
        _word("RUNS_LEFT", 0x050, "ro", "runs of this start that have not ended yet"),
        _word("WORD_BASE", 0x054, "rw", "seed + step * STEP_WORD, mod 2^32; CONTROL STEP advances"),
        _word("STEP", 0x058, "rw", "number of the training step; CONTROL STEP advances it"),
        Register(
            "STICKY", 0x05C, "w1c",
            tuple(RegisterField(n, 1, doc) for n, doc in zip(STICKY, _STICKY_DOC, strict=True)),
            "what has happened since the bit was cleared",
        ),
        *_pair("READ_BASE", 0x060, "rw", "first address of the read window"),
        *_pair("READ_LIMIT", 0x068, "rw", "first address after the read window"),
        *_pair("WRITE_BASE", 0x070, "rw", "first address of the write window"),
        *_pair("WRITE_LIMIT", 0x078, "rw", "first address after the write window"),
        Register(
            "LIMIT_TOP", 0x080, "rw",
            (
                RegisterField("read", 1, "bit 64 of READ_LIMIT"),
                RegisterField("write", 1, "bit 64 of WRITE_LIMIT"),
            ),
            "limits that are 2^64; these bits exist if address_bits is 64",
            locked=True,
        ),
        *(
            half
            for n, (name, doc) in enumerate(COUNTERS.items())
            for half in _pair(
                name, _COUNTER_BASE + 8 * n, "ro", f"counter: {doc}; reading _LO latches _HI"
            )
        ),
    )
}  # fmt: skip

#: Quantities that have one bit more than an address.
_LIMITS = ("READ_LIMIT", "WRITE_LIMIT")


def existing_bits(register: Register, config: AcceleratorConfig) -> int:
    """The bits that exist in a configuration, as a mask; all others read 0.

    A write to a `rw` register that sets a bit which does not exist is refused.
    """
    if register.name == "LIMIT_TOP" and config.address_bits < 64:
        return 0
    bits = sum(field.width for field in register.fields)
    if register.quantity and register.access == "rw":
        address_bits = config.address_bits + (register.quantity in _LIMITS)
        bits = max(0, min(bits, address_bits - register.shift))
    return (1 << bits) - 1


def existing_fields(table: tuple[Field, ...], fused_quantize: bool) -> tuple[Field, ...]:
    """The fields of POST or POST_DESCRIPTOR that exist; others are bits that belong to no field."""
    return tuple(field for field in table if fused_quantize or field is not _QUANTIZE)


def register_constants(config: AcceleratorConfig) -> dict[str, int]:
    """The values of the registers that are constants of a configuration, by name."""
    values: dict[str, dict[str, int]] = {
        "ID": {"value": DEVICE_ID},
        "VERSION": dict(zip(("major", "minor"), REGISTER_VERSION, strict=True)),
        "ARRAY": {
            "rows": config.rows,
            "cols": config.cols,
            "segments": config.segments,
            "int16": int(config.int16),
            "fused_quantize": int(config.fused_quantize),
        },
        "ACC": {"depth": config.acc_depth},
        "BUS": {
            "bus_bits": config.bus_bits,
            "address_bits": config.address_bits,
            "outstanding": config.outstanding,
            "channels": config.channels,
        },
        "ACT_BYTES": {"value": config.act_bytes},
        "WGT_BYTES": {"value": config.wgt_bytes},
        "DIGEST": {"value": int(config.digest[:8], 16)},
    }
    return {name: pack(REGISTERS[name].fields, fields) for name, fields in values.items()}


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
