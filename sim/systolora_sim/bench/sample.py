"""One program that uses everything a program can: both dataflows and edges, every POST opcode.

For tests of what runs programs, and as the seed of mutated ones. All sizes follow the
configuration; the tokens are just those that are needed, none more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    SCALE,
    Action,
    Buffer,
    Dataflow,
    Edge,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Source,
    Status,
    pack,
)
from systolora_sim.descriptor import encode
from systolora_sim.system_machine import Memory

__all__ = ["ProgramBuilder", "Sample", "sample"]

BASE = 0x10000
PROGRAM_ROOM = 96 * DESCRIPTOR_BYTES


class ProgramBuilder:
    """Collects descriptors; `program` is their bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    @property
    def program(self) -> bytes:
        return b"".join(self.parts)

    def load(self, **fields: int) -> None:
        self.parts.append(encode(Kind.LOAD, fields))

    def exec(self, **fields: int) -> None:
        self.parts.append(encode(Kind.EXEC, fields))

    def post(self, opcode: Opcode, **fields: int) -> None:
        self.parts.append(encode(Kind.POST, {"opcode": opcode, **fields}))

    def control(self, action: Action) -> None:
        self.parts.append(encode(Kind.CONTROL, {"action": action}))


@dataclass
class Tensor:
    """Rows of memory: address and stride in bytes, row_bytes of them used."""

    address: int
    stride: int
    rows: int
    row_bytes: int

    def get(self, memory: Memory, dtype: str) -> NDArray:
        """The rows as [rows, n] elements."""
        data = [
            memory.read(self.address + n * self.stride, self.row_bytes) for n in range(self.rows)
        ]
        return np.frombuffer(b"".join(data), dtype).reshape(self.rows, -1)


@dataclass
class Sample:
    """A program with its memory, ready to run.

    inputs : the operands by name, integer arrays; outputs : where the results go; the write window
    holds all of them and nothing else.
    """

    memory: Memory
    program: bytes
    address: int
    read_window: tuple[int, int]
    write_window: tuple[int, int]
    inputs: dict[str, NDArray]
    outputs: dict[str, Tensor]

    @property
    def length(self) -> int:
        return len(self.program) // DESCRIPTOR_BYTES

    def copy(self) -> Memory:
        """The memory as it was before any run."""
        return Memory(self.memory.base, self.memory.data.copy())


class _Layout:
    """Places tensors in memory one after the other, rows aligned to beats."""

    def __init__(self, config: AcceleratorConfig, first: int) -> None:
        self.beat, self.next = config.beat_bytes, first
        self.contents: list[tuple[Tensor, NDArray]] = []

    def room(self, rows: int, row_bytes: int) -> Tensor:
        stride = -(-row_bytes // self.beat) * self.beat
        tensor = Tensor(self.next, stride, rows, row_bytes)
        self.next += rows * stride
        return tensor

    def put(self, values: NDArray) -> Tensor:
        tensor = self.room(values.shape[0], values.shape[1] * values.itemsize)
        self.contents.append((tensor, values))
        return tensor


def sample(config: AcceleratorConfig, seed: int) -> Sample:
    """The program for a configuration, with random operands."""
    rng = np.random.default_rng(seed)
    rows, cols = config.rows, config.cols
    wide = config.int16
    inputs = _inputs(config, rng)
    layout = _Layout(config, BASE + PROGRAM_ROOM)
    given = {name: layout.put(values) for name, values in inputs.items()}
    first_output = layout.next
    n, depth = inputs["x"].shape[0], inputs["p"].shape[0]
    outputs = {
        "h": layout.room(n, cols),
        "h_scale": layout.room(1, 8),
        "h_amax": layout.room(1, 8),
        "spill": layout.room(n, 8 * cols),
        "y": layout.room(n, 4 * cols),
        "z": layout.room(rows - 1, cols * (2 if wide else 1)),
        "select": layout.room(1, 8),
        "status": layout.room(1, 8),
        "scale": layout.room(1, 8),
        "w": layout.room(n, 2 * (cols - 1)),
    }
    limit = layout.next
    memory = Memory(BASE, np.full(limit - BASE, 0xC3, np.uint8))
    for tensor, values in layout.contents:
        for row in range(tensor.rows):
            memory.write(tensor.address + row * tensor.stride, values[row].tobytes())

    builder = ProgramBuilder()
    _first_product(config, builder, given, outputs, n)
    _second_product(config, builder, given, outputs, n)
    _third_product(config, builder, given, outputs, depth)
    _registers(builder, given, outputs)
    _masters(config, builder, given, outputs, n)
    builder.control(Action.END)
    assert len(builder.program) <= PROGRAM_ROOM
    memory.write(BASE, builder.program)
    return Sample(
        memory, builder.program, BASE, (BASE, limit), (first_output, limit), inputs, outputs
    )


def _inputs(config: AcceleratorConfig, rng: np.random.Generator) -> dict[str, NDArray]:
    """Operands: x [n, K], w [K, C], v [C, C], p [depth, R], q [depth, C], and registers."""
    rows, cols = config.rows, config.cols
    n, k, depth = 6, 2 * rows + 3, 5
    operand = np.int16 if config.int16 else np.int8
    most = 1 << (15 if config.int16 else 7)

    def random(dtype: type, low: int, high: int, *shape: int) -> NDArray:
        return rng.integers(low, high, shape).astype(dtype)

    return {
        "x": random(np.int8, -128, 128, n, k),
        "w": random(np.int8, -128, 128, k, cols),
        "bias": random(np.int32, -5000, 5000, 1, cols),
        "v": random(np.int8, -128, 128, cols, cols),
        "p": random(operand, -most, most, depth, rows),
        "q": random(operand, -most, most, depth, cols),
        "scale": np.array([[0xC001, -3]], np.int32),
        "amax": np.array([[0, 0]], np.int64)[:, :1],
        "status": np.array([[0b10001]], np.int64),
        "masters": random(np.int16, -32767, 32768, n, cols - 1),
    }


def _scale(m: int, e: int) -> int:
    return pack(SCALE, {"m": m, "e": e})


def _first_product(
    config: AcceleratorConfig,
    b: ProgramBuilder,
    given: dict[str, Tensor],
    out: dict[str, Tensor],
    n: int,
) -> None:
    """h = quantized x @ w + bias, just in time, from the top edge, in bank 0."""
    x, w, bias = given["x"], given["w"], given["bias"]
    act_step = -(-x.row_bytes // config.act_entry_bytes)
    line = config.wgt_entry_bytes // config.wgt_unit
    tiles = -(-x.row_bytes // config.rows)
    b.load(
        buffer=Buffer.ACT, rows=n, row_bytes=x.row_bytes, row_step=act_step,
        address=x.address, stride=x.stride,
    )  # fmt: skip
    b.load(
        buffer=Buffer.WGT, layout=Layout.TOP, rows=w.rows, row_bytes=w.row_bytes, row_step=1,
        address=w.address, stride=w.stride, signal_exec=1,
    )  # fmt: skip
    b.exec(
        wait_load=1, signal_load=1, signal_post=1, edge=Edge.TOP, length=n, repeat=tiles,
        last=x.row_bytes - (tiles - 1) * config.rows, cols=config.cols,
        act_stride=act_step * config.act_entry_bytes // config.rows, act_step=1,
        wgt_stride=line, wgt_step=config.top_load * line,
    )  # fmt: skip
    cols = config.cols
    b.post(Opcode.BIAS, cols=cols, in_width=2, in_address=bias.address)
    b.post(Opcode.SCALE_SET, dst=0, imm=_scale(1 << 15, 0))
    b.post(Opcode.SCALE_SET, dst=1, imm=_scale(127 << 9, 6))
    b.post(Opcode.AMAX_SET, dst=0, imm=0)
    b.post(
        Opcode.ROWS, wait_exec=1, rows=n, cols=cols, mode=Mode.ACC, bias=1, write=1, amax=1, src_a=0
    )
    b.post(Opcode.COLLECT, dst=0)
    b.post(Opcode.SCALE_AMAX, dst=2, src_a=0)
    b.post(Opcode.SCALE_DIV, dst=3, src_a=1, src_b=2)
    h = out["h"]
    b.post(
        Opcode.ROWS, rows=n, cols=cols, mode=Mode.INT8, src_a=3, stochastic=1, word0=0x12345,
        out_width=0, out_address=h.address, out_stride=h.stride, signal_load=1,
    )  # fmt: skip
    b.post(Opcode.SCALE_READ, src_a=3, out_address=out["h_scale"].address)
    b.post(Opcode.AMAX_READ, src_a=0, out_address=out["h_amax"].address)


def _second_product(
    config: AcceleratorConfig,
    b: ProgramBuilder,
    given: dict[str, Tensor],
    out: dict[str, Tensor],
    n: int,
) -> None:
    """y = 2 * (h @ v.T), from the left edge, in bank 1; once the sums go through memory."""
    h, v, cols = out["h"], given["v"], config.cols
    act_step = -(-h.row_bytes // config.act_entry_bytes)
    row_step = -(-v.row_bytes // config.wgt_entry_bytes)
    line = row_step * config.wgt_entry_bytes // config.wgt_unit
    tiles = -(-cols // config.rows)
    bank = config.bank_depth
    b.load(
        wait_exec=1, wait_store=1, buffer=Buffer.ACT, rows=n, row_bytes=h.row_bytes,
        row_step=act_step, address=h.address, stride=h.stride,
    )  # fmt: skip
    b.load(
        buffer=Buffer.WGT, layout=Layout.LEFT, rows=cols, row_bytes=v.row_bytes, row_step=row_step,
        address=v.address, stride=v.stride, signal_exec=1,
    )  # fmt: skip
    b.exec(
        wait_load=1, signal_load=1, signal_post=1, edge=Edge.LEFT, length=n, repeat=tiles,
        last=cols - (tiles - 1) * config.rows, cols=cols,
        act_stride=act_step * config.act_entry_bytes // config.rows, act_step=1,
        wgt_stride=line, wgt_step=config.rows // config.wgt_unit, acc_base=bank,
    )  # fmt: skip
    spill, y = out["spill"], out["y"]
    b.post(
        Opcode.ROWS, wait_exec=1, rows=n, cols=cols, src_base=bank, emit=1, out_width=3,
        out_address=spill.address, out_stride=spill.stride, signal_stream=1,
    )  # fmt: skip
    b.post(
        Opcode.ROWS, wait_store=1, rows=n, cols=cols, source=Source.STREAM, in_width=3,
        in_address=spill.address, in_stride=spill.stride, add=1, dst_base=bank, write=1, emit=1,
        out_width=2, out_address=y.address, out_stride=y.stride, signal_exec=1,
    )  # fmt: skip


def _third_product(
    config: AcceleratorConfig,
    b: ProgramBuilder,
    given: dict[str, Tensor],
    out: dict[str, Tensor],
    depth: int,
) -> None:
    """z = quantized p.T @ q, output stationary, all but its last row; in bank 1."""
    p, q, z = given["p"], given["q"], out["z"]
    wide = config.int16
    act_entry, wgt_entry = config.act_entry_bytes, config.wgt_entry_bytes
    b.load(
        wait_exec=1, buffer=Buffer.ACT, rows=depth, row_bytes=p.row_bytes, row_step=1,
        address=p.address, stride=p.stride,
    )  # fmt: skip
    b.load(
        buffer=Buffer.WGT, rows=depth, row_bytes=q.row_bytes, row_step=1,
        address=q.address, stride=q.stride, signal_exec=1,
    )  # fmt: skip
    b.exec(
        wait_load=1, wait_post=1, signal_post=1, dataflow=Dataflow.OS, act_wide=int(wide),
        wgt_wide=int(wide), length=depth, repeat=1, last=config.rows - 1, cols=config.cols,
        act_stride=act_entry // config.rows, wgt_stride=wgt_entry // config.wgt_unit,
        acc_base=config.bank_depth,
    )  # fmt: skip
    b.post(Opcode.SCALE_SET, dst=4, imm=_scale(45000, -18 if wide else -9))
    b.post(
        Opcode.ROWS, wait_exec=1, rows=config.rows - 1, cols=config.cols, src_a=4, delayed=1,
        src_base=config.bank_depth, mode=Mode.INT16 if wide else Mode.INT8, transposed=1,
        out_width=int(wide), out_address=z.address, out_stride=z.stride,
    )  # fmt: skip


def _registers(b: ProgramBuilder, given: dict[str, Tensor], out: dict[str, Tensor]) -> None:
    """Registers through memory."""
    b.post(Opcode.AMAX_LOAD, dst=5, in_address=given["amax"].address)
    b.post(Opcode.AMAX_SELECT, dst=6, src_a=5, src_b=0)
    b.post(Opcode.AMAX_READ, src_a=6, out_address=out["select"].address)
    b.post(Opcode.STICKY_LOAD, in_address=given["status"].address)
    b.post(Opcode.STICKY_READ, out_address=out["status"].address)
    b.post(Opcode.SCALE_LOAD, dst=7, in_address=given["scale"].address)
    b.post(Opcode.SCALE_MUL, dst=8, src_a=7, src_b=7)
    b.post(Opcode.SCALE_READ, src_a=8, out_address=out["scale"].address)


def _masters(
    config: AcceleratorConfig,
    b: ProgramBuilder,
    given: dict[str, Tensor],
    out: dict[str, Tensor],
    n: int,
) -> None:
    """w = masters - stochastic scaled sums of bank 0, saturated to int16, in the next step."""
    b.control(Action.NOP)
    b.control(Action.STEP)
    masters, w, bank = given["masters"], out["w"], config.bank_depth
    b.post(
        Opcode.ROWS, rows=n, cols=config.cols - 1, source=Source.STREAM, write=1, in_width=1,
        in_address=masters.address, in_stride=masters.stride, dst_base=bank,
    )  # fmt: skip
    b.post(
        Opcode.ROWS, rows=n, cols=config.cols - 1, mode=Mode.ACC, src_a=8, add=1,
        negate=1, limit=Limit.INT16, status=Status.MASTER, stochastic=1, word0=0xFFFFFFF0,
        dst_base=bank, emit=1, out_width=1, out_address=w.address, out_stride=w.stride,
    )  # fmt: skip
