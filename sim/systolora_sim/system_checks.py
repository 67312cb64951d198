"""The checks of descriptors before they run, and the memory that they touch (docs/system.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import (
    AMAX_REGISTERS,
    DESCRIPTORS,
    TOKENS_MAX,
    Action,
    Buffer,
    Dataflow,
    Edge,
    Fault,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Source,
    existing_fields,
    unpack,
)
from systolora_sim.program import result_bits

__all__ = [
    "GIVES", "TAKES", "Checker", "ExecShape", "Extent", "Window", "exec_shape", "load_reads",
    "post_reads", "post_writes",
]  # fmt: skip

Fields = Mapping[str, int]

#: Channels of tokens, named by giver and taker: which signal gives, which wait takes.
GIVES: dict[Kind, dict[str, str]] = {
    Kind.LOAD: {"signal_exec": "LOAD to EXEC"},
    Kind.EXEC: {"signal_load": "EXEC to LOAD", "signal_post": "EXEC to POST"},
    Kind.POST: {
        "signal_exec": "POST to EXEC",
        "signal_load": "POST to LOAD",
        "signal_stream": "POST to POST",
    },
    Kind.CONTROL: {},
}
TAKES: dict[Kind, dict[str, str]] = {
    Kind.LOAD: {"wait_exec": "EXEC to LOAD", "wait_store": "POST to LOAD"},
    Kind.EXEC: {"wait_load": "LOAD to EXEC", "wait_post": "POST to EXEC"},
    Kind.POST: {"wait_exec": "EXEC to POST", "wait_store": "POST to POST"},
    Kind.CONTROL: {},
}

_SUMS_ONLY = ("add", "bias", "negate", "write", "emit", "limit", "status", "quantize")
_AMAX_FIELDS: dict[int, tuple[str, ...]] = {
    Opcode.AMAX_SET: ("dst",),
    Opcode.AMAX_LOAD: ("dst",),
    Opcode.COLLECT: ("dst",),
    Opcode.AMAX_READ: ("src_a",),
    Opcode.SCALE_AMAX: ("src_a",),
    Opcode.AMAX_SELECT: ("src_a", "src_b", "dst"),
}
#: Elements and bytes of an element of the opcodes whose memory is one row of fixed shape.
_FIXED = {
    Opcode.SCALE_LOAD: (2, 4), Opcode.SCALE_READ: (2, 4), Opcode.AMAX_LOAD: (1, 8),
    Opcode.AMAX_READ: (1, 8), Opcode.STICKY_LOAD: (1, 8), Opcode.STICKY_READ: (1, 8),
}  # fmt: skip
_LOADS = (Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD)
_READS = (Opcode.SCALE_READ, Opcode.AMAX_READ, Opcode.STICKY_READ)


class Window(NamedTuple):
    """Permitted addresses: first, and the first one after it."""

    base: int
    limit: int

    def holds(self, first: int, end: int) -> bool:
        """Whether the bytes from first to end (exclusive) are permitted."""
        return self.base <= first and end <= self.limit


@dataclass(frozen=True)
class Extent:
    """Rows of memory: row i is `elements` of `width` bytes at address + i * stride."""

    address: int
    stride: int
    rows: int
    elements: int
    width: int

    @property
    def row_bytes(self) -> int:
        return self.elements * self.width

    @property
    def end(self) -> int:
        """The first address after the last row."""
        return self.address + (self.rows - 1) * self.stride + self.row_bytes


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def load_reads(f: Fields) -> Extent:
    """What a LOAD reads, without the padding to whole beats."""
    stride = f["stride"] if f["rows"] > 1 else 0
    return Extent(f["address"], stride, f["rows"], f["row_bytes"], 1)


def post_reads(f: Fields) -> Extent | None:
    """What a POST reads from memory."""
    opcode = f["opcode"]
    if opcode in _LOADS:
        return Extent(f["in_address"], 0, 1, *_FIXED[Opcode(opcode)])
    if opcode == Opcode.BIAS:
        return Extent(f["in_address"], 0, 1, f["cols"], 1 << f["in_width"])
    if opcode == Opcode.ROWS and (f["source"] == Source.STREAM or f["add_stream"]):
        stride = f["in_stride"] if f["rows"] > 1 else 0
        return Extent(f["in_address"], stride, f["rows"], f["cols"], 1 << f["in_width"])
    return None


def _uses_destination(f: Fields) -> bool:
    """Whether ROWS reads or writes the accumulator rows at dst_base."""
    return bool(f["write"] or (f["add"] and not f["add_stream"]))


def post_writes(f: Fields) -> Extent | None:
    """What a POST writes to memory."""
    opcode = f["opcode"]
    if opcode in _READS:
        return Extent(f["out_address"], 0, 1, *_FIXED[Opcode(opcode)])
    if opcode == Opcode.ROWS and (result_bits(f["mode"], f["quantize"]) or f["emit"]):
        stride = f["out_stride"] if f["rows"] > 1 else 0
        return Extent(f["out_address"], stride, f["rows"], f["cols"], 1 << f["out_width"])
    return None


class ExecShape(NamedTuple):
    """lines : lines of one stationary tile in a bank (OS: of the top operand); line_units : units
    of one of its lines; act_units : units of a streamed beat; count : accumulator rows counted from
    the last tile's first."""

    lines: int
    line_units: int
    act_units: int
    count: int


def exec_shape(config: AcceleratorConfig, f: Fields) -> ExecShape:
    """The shape of an EXEC's operands in the buffers, and of its sums."""
    rows, cols = config.rows, config.cols
    if f["dataflow"] == Dataflow.OS:
        lines, line = f["length"], cols
        count = f["last"] if f["repeat"] == 1 or f["acc_step"] >= rows else rows
    else:
        left = f["edge"] == Edge.LEFT
        lines, line = (config.left_load, rows) if left else (config.top_load, cols)
        count = f["length"]
    line_units = line // config.wgt_unit * (2 if f["wgt_wide"] else 1)
    return ExecShape(lines, line_units, 2 if f["act_wide"] else 1, count)


class Checker:
    """Finds the fault of each descriptor of a run, in program order.

    Parameters
    ----------
    config : AcceleratorConfig
    read_window, write_window : Window
    """

    def __init__(
        self, config: AcceleratorConfig, read_window: Window, write_window: Window
    ) -> None:
        self.config = config
        self.read_window, self.write_window = read_window, write_window
        self.tokens = dict.fromkeys(
            (name for gives in GIVES.values() for name in gives.values()), 0
        )

    def check(self, data: bytes) -> tuple[Fault, Kind | None, dict[str, int]]:
        """The first fault of the 64 bytes (NONE: it is accepted, its tokens are counted).

        Returns
        -------
        (fault, kind, fields)
            kind is None if it is unknown; fields are decoded as far as the kind is known.
        """
        word = int.from_bytes(data, "little")
        number = unpack(DESCRIPTORS[Kind.CONTROL][:1], word)["kind"]
        if number not in tuple(Kind):
            return Fault.KIND, None, {}
        kind = Kind(number)
        fields = unpack(DESCRIPTORS[kind], word)
        del fields["kind"]
        existing = existing_fields(DESCRIPTORS[kind], self.config.fused_quantize)
        if word >> sum(field.width for field in existing):
            return Fault.FIELD, kind, fields
        checks = {
            Kind.LOAD: self._load, Kind.EXEC: self._exec, Kind.POST: self._post,
            Kind.CONTROL: self._control,
        }  # fmt: skip
        fault = checks[kind](fields)
        return fault or self._count(kind, fields), kind, fields

    def _count(self, kind: Kind, f: Fields) -> Fault:
        for name, channel in TAKES[kind].items():
            if f[name]:
                if self.tokens[channel] == 0:
                    return Fault.TOKEN
                self.tokens[channel] -= 1
        for name, channel in GIVES[kind].items():
            if f[name]:
                if self.tokens[channel] == TOKENS_MAX:
                    return Fault.TOKEN
                self.tokens[channel] += 1
        return Fault.NONE

    def _control(self, f: Fields) -> Fault:
        return Fault.NONE if f["action"] in tuple(Action) else Fault.FIELD

    def _load(self, f: Fields) -> Fault:
        config, rows, row_bytes = self.config, f["rows"], f["row_bytes"]
        act, layout = f["buffer"] == Buffer.ACT, f["layout"]
        if rows < 1 or row_bytes < 1 or layout not in tuple(Layout):
            return Fault.FIELD
        if act and layout != Layout.PLAIN:
            return Fault.FIELD
        last = rows - 1
        if layout != Layout.PLAIN:
            group = config.left_load if layout == Layout.LEFT else config.top_load
            last = (last // (group * config.segments) + 1) * group - 1
        entry = config.act_entry_bytes if act else config.wgt_entry_bytes
        entries = config.act_entries if act else config.wgt_entries
        if f["base"] + last * f["row_step"] + -(-row_bytes // entry) > entries:
            return Fault.BUFFER
        extent, beat = load_reads(f), config.beat_bytes
        if extent.address % beat or extent.stride % beat:
            return Fault.ALIGN
        end = extent.address + (rows - 1) * extent.stride + _up(row_bytes, beat)
        return Fault.NONE if self.read_window.holds(extent.address, end) else Fault.WINDOW

    def _exec(self, f: Fields) -> Fault:
        config, length, repeat = self.config, f["length"], f["repeat"]
        os = f["dataflow"] == Dataflow.OS
        if length < 1 or repeat < 1 or not 1 <= f["last"] <= config.rows:
            return Fault.FIELD
        if not 1 <= f["cols"] <= config.cols:
            return Fault.FIELD
        if (f["act_wide"] or f["wgt_wide"]) and not config.int16:
            return Fault.FIELD
        if os and f["act_wide"] and f["wgt_wide"] and length > 1 << 15:
            return Fault.FIELD
        shape = exec_shape(config, f)
        if any(f[f"act_{name}"] % shape.act_units for name in ("base", "stride", "step")):
            return Fault.FIELD
        if any(f[f"wgt_{name}"] % shape.line_units for name in ("base", "stride", "step")):
            return Fault.FIELD
        act_end = f["act_base"] + (length - 1) * f["act_stride"] + (repeat - 1) * f["act_step"]
        if act_end + shape.act_units > config.act_bytes // config.act_unit:
            return Fault.BUFFER
        wgt_end = f["wgt_base"] + (shape.lines - 1) * f["wgt_stride"]
        wgt_end += (repeat - 1) * f["wgt_step"] + shape.line_units
        if wgt_end > config.wgt_bytes // config.segments // config.wgt_unit:
            return Fault.BUFFER
        span = (repeat - 1) * f["acc_step"] + shape.count
        return Fault.NONE if self._in_bank(f["acc_base"], span) else Fault.BUFFER

    def _in_bank(self, base: int, count: int) -> bool:
        depth = self.config.bank_depth
        end = base + count
        return end <= self.config.acc_depth and base // depth == (end - 1) // depth

    def _post(self, f: Fields) -> Fault:
        if self._post_field(f):
            return Fault.FIELD
        if f["opcode"] == Opcode.ROWS:
            if f["source"] == Source.BUFFER and not self._in_bank(f["src_base"], f["rows"]):
                return Fault.BUFFER
            if _uses_destination(f) and not self._in_bank(f["dst_base"], f["rows"]):
                return Fault.BUFFER
        read, written, beat = post_reads(f), post_writes(f), self.config.beat_bytes
        for extent in (read, written):
            if extent is not None:
                unit = min(beat, self.config.cols * extent.width)
                if extent.address % unit or extent.stride % beat:
                    return Fault.ALIGN
        if read is not None:
            first = read.address // beat * beat
            if not self.read_window.holds(first, _up(read.end, beat)):
                return Fault.WINDOW
        if written is not None and not self.write_window.holds(written.address, written.end):
            return Fault.WINDOW
        return Fault.NONE

    def _post_field(self, f: Fields) -> bool:
        """Whether a field of a POST is outside its values."""
        config, opcode = self.config, f["opcode"]
        if opcode in (Opcode.ROWS, Opcode.BIAS) and not 1 <= f["cols"] <= config.cols:
            return True
        if opcode == Opcode.ROWS:
            if f["rows"] < 1 or f["limit"] not in tuple(Limit):
                return True
            if f["mode"] in (Mode.INT8, Mode.INT16) and any(f[name] for name in _SUMS_ONLY):
                return True
            if f["quantize"] not in tuple(Quantize) or (f["quantize"] and f["emit"]):
                return True
            if result_bits(f["mode"], f["quantize"]) == 16 and not config.int16:
                return True
            distance = abs(f["src_base"] - f["dst_base"])
            if f["add_stream"] and (f["source"] == Source.STREAM or not f["add"]):
                return True
            overlap = 0 < distance < f["rows"] and _uses_destination(f)
            if f["source"] == Source.BUFFER and overlap:
                return True
        if any(f[name] >= AMAX_REGISTERS for name in _AMAX_FIELDS.get(opcode, ())):
            return True
        return bool(f["wait_store"]) and post_reads(f) is None
