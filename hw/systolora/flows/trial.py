"""The smallest program that uses the whole accelerator, with its memory before and after.

``y[m, c] = sum_r x[m, r] * w[r, c]``: x int8 [3, R], w int8 [R, C], y int32 [3, C]. Loaded from
memory, multiplied weight-stationary, the sums stored.
"""

from dataclasses import dataclass

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    Action,
    Buffer,
    Edge,
    Kind,
    Layout,
    Opcode,
    pack,
)

__all__ = ["Trial", "trial"]

BASE = 0x1000_0000
_STREAMED = 3
#: What memory holds where nothing was put: a stray write would show.
_FILL = 0xC3


@dataclass(frozen=True)
class Trial:
    """A program in its memory.

    before, after : the whole memory from `base` on, without and with the results
    program, length : address of the first descriptor; descriptors
    output : address of the results: the write window begins there and ends with the memory
    """

    base: int
    before: bytes
    after: bytes
    program: int
    length: int
    output: int

    @property
    def end(self) -> int:
        """The first address after the memory."""
        return self.base + len(self.before)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _descriptor(kind: Kind, **fields: int) -> bytes:
    word = pack(DESCRIPTORS[kind], {"kind": int(kind), **fields})
    return word.to_bytes(DESCRIPTOR_BYTES, "little")


def _operands(config: AcceleratorConfig) -> tuple[list[list[int]], list[list[int]]]:
    """x and w, with values over the whole range of a quantized tensor, -127 to 127."""
    rows, cols = range(config.rows), range(config.cols)
    x = [[(37 * m + 11 * r + 5) % 255 - 127 for r in rows] for m in range(_STREAMED)]
    w = [[(29 * r + 53 * c + 7 * r * c + 1) % 255 - 127 for c in cols] for r in rows]
    return x, w


def _program(config: AcceleratorConfig, x: int, w: int, y: int) -> list[bytes]:
    """The descriptors; x, w and y are the addresses of the tensors."""
    step = config.beat_bytes
    return [
        _descriptor(
            Kind.LOAD, buffer=Buffer.ACT, rows=_STREAMED, row_bytes=config.rows, row_step=1,
            address=x, stride=_up(config.rows, step),
        ),
        _descriptor(
            Kind.LOAD, buffer=Buffer.WGT, layout=Layout.TOP, rows=config.rows,
            row_bytes=config.cols, row_step=1, address=w, stride=_up(config.cols, step),
            signal_exec=1,
        ),
        _descriptor(
            Kind.EXEC, wait_load=1, signal_post=1, edge=Edge.TOP, length=_STREAMED, repeat=1,
            last=config.rows, cols=config.cols,
            act_stride=config.act_entry_bytes // config.act_unit,
            wgt_stride=config.wgt_entry_bytes // config.wgt_unit,
        ),
        _descriptor(
            Kind.POST, opcode=Opcode.ROWS, wait_exec=1, rows=_STREAMED, cols=config.cols, emit=1,
            out_width=2, out_address=y, out_stride=_up(4 * config.cols, step),
        ),
        _descriptor(Kind.CONTROL, action=Action.END),
    ]  # fmt: skip


def trial(config: AcceleratorConfig) -> Trial:
    """The program for a configuration: the same for the same one."""
    step = config.beat_bytes
    x, w = _operands(config)
    y = [
        [sum(a * row[c] for a, row in zip(line, w, strict=True)) for c in range(config.cols)]
        for line in x
    ]
    at = BASE
    places = []
    room = _up(5 * DESCRIPTOR_BYTES, max(step, DESCRIPTOR_BYTES))
    for rows, row_bytes in ((1, room), *((len(t), len(t[0])) for t in (x, w)), (3, 4 * len(y[0]))):
        places.append(at)
        at += rows * _up(row_bytes, step)
    program = _program(config, *places[1:])
    before = bytearray([_FILL]) * (at - BASE)

    def put(memory: bytearray, address: int, rows: list[bytes]) -> None:
        for number, row in enumerate(rows):
            start = address - BASE + number * _up(len(row), step)
            memory[start : start + len(row)] = row

    put(before, places[0], [b"".join(program)])
    for address, tensor in zip(places[1:3], (x, w), strict=True):
        put(before, address, [bytes(v & 0xFF for v in line) for line in tensor])
    after = bytearray(before)
    put(after, places[3], [b"".join(v.to_bytes(4, "little", signed=True) for v in r) for r in y])
    return Trial(BASE, bytes(before), bytes(after), places[0], len(program), places[3])
