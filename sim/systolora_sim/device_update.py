"""The update of an adapter, and its working copies, as row operations of the Core.

What `golden.update` and `golden.working_copy` compute (numerics sections 6 and 4), executed by a
`CoreDevice`: software sets the Scales that the file gives, streams masters, momentum and gradient
in, and collects what leaves. Every factor, rounding, saturation and maximum happens on the device.

Row operations on a group of rows that fit one bank; "->" writes the accumulators, "out" leaves on
`acc_out`, [n] rounds with the random words of stream n, W is in bank 0, U in bank 1:

==============  =====================================================================
every rule      w -> W
weight decay    W - w * (lr wd) [1] -> W
sgd             W - G * (lr S_g / S_w) [0] out
momentum        v * beta [2] -> U;  U + G * (S_g / S_v) [3] -> U, out
                W - U * (lr S_v / S_w) [0] out
lion            v * b1 -> U;  U + G * (b1c S_g / S_v) -> U
                W - sign(U) * (lr / S_w) [0] out
                v * b2 [2] -> U;  U + G * (b2c S_g / S_v) [3] out
==============  =====================================================================

Operands that are used twice are streamed twice: one row a cycle either way, and no row operation
reads and writes one bank in the same cycle, which would halve its rate.

Tensors are cut into blocks of at most C columns, each all rows high where a bank allows it. A row
operation without random words covers all blocks of a group; one with them covers a block, since a
word's row and column are the logical tensor's.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    COL_STEP,
    ROW_STEP,
    STICKY,
    Limit,
    Mode,
    Opcode,
    Source,
    Status,
)
from systolora_sim import numerics as nx
from systolora_sim.compiler import CompileError
from systolora_sim.golden import Master, Optimizer
from systolora_sim.numerics import Quantized, Scale
from systolora_sim.program import CoreDevice, Outputs, post_beats, scale_imm

__all__ = ["UpdateRecord", "update_on_device", "working_copy_on_device"]

Array = NDArray[Any]
Rows = NDArray[np.int64]

#: Streams of random words (numerics section 6).
STREAM_W, STREAM_DECAY, STREAM_V, STREAM_G = range(4)


class Reg(IntEnum):
    """The update's use of the Core's Scale registers: given ones, then computed ones."""

    LR = 0
    DECAY = 1
    GRADIENT = 2
    MASTER = 3
    MOMENTUM = 4
    KEEP_C = 5  # beta, or b1
    ADD_C = 6  # b1c
    KEEP_V = 7  # b2
    ADD_V = 8  # b2c
    QMAX = 9
    SCRATCH = 10
    INTO_W = 11  # what is subtracted from w
    INTO_C = 12  # gradient to momentum units, in Lion's c
    INTO_V = 13  # gradient to momentum units
    DECAY_W = 14
    OUT = 15


@dataclass
class UpdateRecord:
    """What one update or working copy was and cost.

    name : "update" or "working_copy"; kind : the optimizer's, or the width as "int8"; rows, cols :
    of the tensor as the device holds it; commands : row operations; row_count : rows that they
    processed; beats_in, beats_out : rows of C elements streamed; cycles : None where time does not
    exist.
    """

    name: str
    kind: str
    tensor_id: int
    rows: int
    cols: int
    commands: int
    row_count: int
    beats_in: int
    beats_out: int
    cycles: int | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# Blocks ---------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A part of the tensor as the device holds it; its rows start at `base` of a group's."""

    row0: int
    rows: int
    col0: int
    cols: int
    base: int


@dataclass(frozen=True)
class Group:
    """Consecutive blocks that one bank holds at the same time."""

    blocks: list[Block]

    @property
    def rows(self) -> int:
        last = self.blocks[-1]
        return last.base + last.rows

    def beats(self, tensor: Array, width: int) -> Rows:
        """The blocks of a tensor [m, n], one below the other, padded to `width` columns."""
        out = np.zeros((self.rows, width), np.int64)
        for row0, rows, col0, cols, base in self.blocks:
            out[base : base + rows, :cols] = tensor[row0 : row0 + rows, col0 : col0 + cols]
        return out


def _groups(config: AcceleratorConfig, m: int, n: int, limit: int) -> list[Group]:
    """An [m, n] tensor in groups of at most `limit` rows, column blocks outermost."""
    height = -(-m // -(-m // limit))  # parts of about the same height
    groups: list[list[Block]] = []
    used = limit
    for col0 in range(0, n, config.cols):
        for row0 in range(0, m, height):
            rows = min(height, m - row0)
            if used + rows > limit:
                groups.append([])
                used = 0
            groups[-1].append(Block(row0, rows, col0, min(config.cols, n - col0), used))
            used += rows
    return [Group(blocks) for blocks in groups]


# Programming the device -----------------------------------------------------------------------


class _Work:
    """Queues row operations for one tensor, and takes apart what they send."""

    def __init__(
        self, device: CoreDevice, master: Master, transposed: bool | None, sticky: set[str] | None
    ) -> None:
        if device.pending.tiles or device.pending.posts:
            raise RuntimeError("the device has commands queued: flush them first")
        self.device, self.master, self.sticky = device, master, sticky
        self.config = device.config
        # lora_B has the odd numbers; its working copy is kept r-major (compiler).
        self.transposed = bool(master.tensor_id % 2) if transposed is None else transposed
        self.m, self.n = self.held(master.w).shape

    def held(self, tensor: Array) -> Array:
        """A tensor as the device holds it; its own inverse."""
        return tensor.T if self.transposed else tensor

    def set_scale(self, reg: Reg, scale: Scale) -> None:
        self.device.post(opcode=Opcode.SCALE_SET, dst=reg, imm=scale_imm(scale))

    def mul(self, dst: Reg, a: Reg, b: Reg) -> None:
        self.device.post(opcode=Opcode.SCALE_MUL, dst=dst, src_a=a, src_b=b)

    def div(self, dst: Reg, a: Reg, b: Reg) -> None:
        self.device.post(opcode=Opcode.SCALE_DIV, dst=dst, src_a=a, src_b=b)

    def rows(self, beats: Rows | None, rows: int, cols: int, **fields: int) -> None:
        """Queues one row operation, on the stream if beats are given."""
        source = Source.BUFFER if beats is None else Source.STREAM
        self.device.post(
            beats, opcode=Opcode.ROWS, source=source, rows=rows, cols=cols, **fields
        )  # fmt: skip

    async def flush(self, name: str, kind: str) -> tuple[Outputs, UpdateRecord]:
        """Executes what is queued, collects the sticky bits and says what it cost."""
        posts = [command.fields for command in self.device.pending.posts]
        beats = [post_beats(fields) for fields in posts]
        row_fields = [fields for fields in posts if fields["opcode"] == Opcode.ROWS]
        outputs = await self.device.flush()
        if self.sticky is not None:
            self.sticky.update(n for bit, n in enumerate(STICKY) if outputs.sticky >> bit & 1)
        record = UpdateRecord(
            name=name,
            kind=kind,
            tensor_id=self.master.tensor_id,
            rows=self.m,
            cols=self.n,
            commands=len(row_fields),
            row_count=sum(fields["rows"] for fields in row_fields),
            beats_in=sum(each["acc_in"] for each in beats),
            beats_out=sum(each["acc_out"] + each["result"] for each in beats),
            cycles=outputs.cycles,
        )
        return outputs, record


def _place(whole: Array, block: Block, part: Rows) -> None:
    """Puts a block's rows, as they left the device, where they belong."""
    if part[:, block.cols :].any():
        raise RuntimeError("padding columns are not zero")
    rows = slice(block.row0, block.row0 + block.rows)
    whole[rows, block.col0 : block.col0 + block.cols] = part[:, : block.cols]


# The update (numerics section 6) --------------------------------------------------------------

#: A rescaled term that becomes the start of a sum: 32 bits, and no saturation of it is an event.
_TERM: dict[str, int] = {"mode": Mode.ACC, "limit": Limit.ACC32, "status": Status.NONE}
#: The sums that have a range of their own.
_SUM: dict[str, int] = {"mode": Mode.ACC, "limit": Limit.INT16, "add": 1}
_INTO_W: dict[str, int] = _SUM | {"negate": 1, "status": Status.MASTER}
_INTO_V: dict[str, int] = _SUM | {"status": Status.MOMENTUM}


class _Update(_Work):
    """Queues one update."""

    def __init__(
        self,
        device: CoreDevice,
        master: Master,
        gradient: Array,
        scale: Scale,
        optimizer: Optimizer,
        seed: int,
        step: int,
        transposed: bool | None,
        sticky: set[str] | None,
    ) -> None:
        super().__init__(device, master, transposed, sticky)
        scale.check()
        if gradient.shape != master.w.shape:
            raise ValueError(f"gradient: shape {gradient.shape}: must be {master.w.shape}")
        low, high = nx.int_range(self.config.acc_bits)
        if int(gradient.min()) < low or int(gradient.max()) > high:
            raise CompileError(
                f"gradient: needs accumulators of more than {self.config.acc_bits} bits: "
                "the configuration was generated without int16"
            )
        self.optimizer, self.gradient, self.scale = optimizer, gradient, scale
        self.seed, self.step = seed, step
        self.w, self.g = self.held(master.w), self.held(gradient)
        self.v = self.w  # not used by sgd
        if optimizer.kind != "sgd":
            if master.v is None or master.v_scale is None:
                raise ValueError(f"optimizer {optimizer.kind!r}: the master copy has no momentum")
            self.v = self.held(master.v)
        #: What leaves on `acc_out`, in order.
        self.leaving: list[tuple[str, Block]] = []

    def set_scales(self) -> None:
        """Sets the given Scales and computes the factors in the order that section 6 writes."""
        optimizer, master = self.optimizer, self.master
        self.set_scale(Reg.LR, optimizer.lr)
        self.set_scale(Reg.MASTER, master.scale)
        if not optimizer.weight_decay.is_zero:
            self.set_scale(Reg.DECAY, optimizer.weight_decay)
            self.mul(Reg.DECAY_W, Reg.LR, Reg.DECAY)
        self.set_scale(Reg.GRADIENT, self.scale)
        if optimizer.kind == "sgd":
            self.mul(Reg.SCRATCH, Reg.LR, Reg.GRADIENT)
            self.div(Reg.INTO_W, Reg.SCRATCH, Reg.MASTER)
            return
        assert master.v_scale is not None
        self.set_scale(Reg.MOMENTUM, master.v_scale)
        self.div(Reg.INTO_V, Reg.GRADIENT, Reg.MOMENTUM)
        if optimizer.kind == "momentum":
            self.set_scale(Reg.KEEP_V, optimizer.beta)
            self.mul(Reg.SCRATCH, Reg.LR, Reg.MOMENTUM)
            self.div(Reg.INTO_W, Reg.SCRATCH, Reg.MASTER)
            return
        self.set_scale(Reg.KEEP_C, optimizer.b1)
        self.set_scale(Reg.ADD_C, optimizer.b1c)
        self.set_scale(Reg.KEEP_V, optimizer.b2)
        self.set_scale(Reg.ADD_V, optimizer.b2c)
        self.mul(Reg.INTO_C, Reg.ADD_C, Reg.INTO_V)
        self.mul(Reg.INTO_V, Reg.ADD_V, Reg.INTO_V)
        self.div(Reg.INTO_W, Reg.LR, Reg.MASTER)

    def words(self, block: Block, stream: int) -> dict[str, int]:
        """Fields of a stochastic row operation on a block (numerics section 7)."""
        steps = (COL_STEP, ROW_STEP) if self.transposed else (ROW_STEP, COL_STEP)
        word = nx.seed_word(self.seed, self.step, self.master.tensor_id, stream)
        word += block.row0 * steps[0] + block.col0 * steps[1]
        return {
            "stochastic": 1,
            "transposed": int(self.transposed),
            "word0": word & 0xFFFFFFFF,
        }

    def queue(self, group: Group) -> None:
        """Queues all row operations on a group."""
        width = self.config.cols
        bank_w, bank_u = 0, self.config.bank_depth
        w, g = group.beats(self.w, width), group.beats(self.g, width)

        def of_group(beats: Rows, **fields: int) -> None:
            # Padding is streamed as zero, and stays zero where no word rounds it.
            self.rows(beats, group.rows, width, **fields)

        def of_block(
            block: Block, beats: Rows | None, stream: int, fields: dict[str, int], leaves: str = ""
        ) -> None:
            if leaves:
                self.leaving.append((leaves, block))
            part = None if beats is None else beats[block.base : block.base + block.rows]
            words = self.words(block, stream)
            emit = int(bool(leaves))
            self.rows(part, block.rows, block.cols, emit=emit, **fields, **words)

        of_group(w, mode=Mode.RAW, write=1, dst_base=bank_w)
        if not self.optimizer.weight_decay.is_zero:
            for block in group.blocks:
                base = bank_w + block.base
                decay = _INTO_W | {"src_a": Reg.DECAY_W, "dst_base": base, "write": 1}
                of_block(block, w, STREAM_DECAY, decay)
        if self.optimizer.kind == "sgd":
            for block in group.blocks:
                into_w = _INTO_W | {"src_a": Reg.INTO_W, "dst_base": bank_w + block.base}
                of_block(block, g, STREAM_W, into_w, "w")
            return

        v, lion = group.beats(self.v, width), self.optimizer.kind == "lion"
        if lion:  # c, which only its sign leaves: saturated to 32 bits it keeps it
            c = {"dst_base": bank_u, "write": 1} | _TERM
            of_group(v, src_a=Reg.KEEP_C, **c)
            of_group(g, src_a=Reg.INTO_C, add=1, **c)
        for block in group.blocks:
            term = _TERM | {"src_a": Reg.KEEP_V, "dst_base": bank_u + block.base, "write": 1}
            into_v = _INTO_V | {
                "src_a": Reg.INTO_V,
                "dst_base": bank_u + block.base,
                "write": int(not lion),
            }
            into_w = _INTO_W | {
                "src_a": Reg.INTO_W,
                "src_base": bank_u + block.base,
                "dst_base": bank_w + block.base,
                "sign": int(lion),
            }
            if lion:
                of_block(block, None, STREAM_W, into_w, "w")
            of_block(block, v, STREAM_V, term)
            of_block(block, g, STREAM_G, into_v, "v")
            if not lion:
                of_block(block, None, STREAM_W, into_w, "w")

    async def run(self) -> tuple[Master, UpdateRecord]:
        self.set_scales()
        for group in _groups(self.config, self.m, self.n, self.config.bank_depth):
            self.queue(group)
        outputs, record = await self.flush("update", self.optimizer.kind)
        after = {"w": np.zeros((self.m, self.n), np.int16)}
        after["v"] = np.zeros_like(after["w"])
        start = 0
        for name, block in self.leaving:
            _place(after[name], block, outputs.acc_out[start : start + block.rows])
            start += block.rows
        if start != len(outputs.acc_out):
            raise RuntimeError(f"update: {len(outputs.acc_out)} rows came, not {start}")
        tensors = {name: np.ascontiguousarray(self.held(each)) for name, each in after.items()}
        master = self.master
        return Master(
            w=tensors["w"],
            scale=master.scale,
            tensor_id=master.tensor_id,
            # Momentum that the rule does not use stays as it is
            v=master.v if self.optimizer.kind == "sgd" else tensors["v"],
            v_scale=master.v_scale,
        ), record


async def update_on_device(
    device: CoreDevice,
    master: Master,
    gradient: Array,
    scale: Scale,
    optimizer: Optimizer,
    *,
    seed: int,
    step: int,
    transposed: bool | None = None,
    sticky: set[str] | None = None,
    records: list[UpdateRecord] | None = None,
) -> Master:
    """One update of a master copy on a Core: the bits of `golden.update` (numerics section 6).

    Uses all Scale registers and the whole accumulator buffer of an idle device.

    Parameters
    ----------
    device : CoreDevice
        With nothing queued.
    master : Master
        The state before, in the ecosystem's layout; it is not changed.
    gradient : integer array [rows, cols]
        dA or dB accumulators, in the master's layout.
    scale : Scale
        Their scale.
    optimizer : Optimizer
        The rule; "momentum" and "lion" need the master's v.
    seed, step : int
        Of the random words; step is the file's plus the steps done since.
    transposed : bool or None
        Whether the device holds the tensor's columns as rows; None: for lora_B, which is kept
        r-major. The result does not depend on it.
    sticky : set or None
        Gains the device's sticky bits: those of this update and of all before it since the device
        was cleared.
    records : list or None
        Gains the record of what it cost. Cycles, where streams never stall: one for each row of
        each row operation (sgd 2 a row, momentum 4, lion 6, weight decay 1 more), and the latency
        of the post-processor, about 21, for each row operation (`UpdateRecord.commands`).

    Raises
    ------
    ValueError
        If the shapes disagree, the gradient's scale is invalid, or the rule's momentum is missing.
    CompileError
        If the gradient does not fit the configuration's accumulators.
    """
    work = _Update(
        device, master, gradient, scale, optimizer, seed, step, transposed, sticky
    )  # fmt: skip
    after, record = await work.run()
    if records is not None:
        records.append(record)
    return after


# The working copy (numerics section 4, acc = master) ------------------------------------------


async def working_copy_on_device(
    device: CoreDevice,
    master: Master,
    bits: int,
    *,
    transposed: bool | None = None,
    sticky: set[str] | None = None,
    records: list[UpdateRecord] | None = None,
) -> Quantized:
    """The operand that a step computes with: the bits of `golden.working_copy`.

    One pass for the maximum, one to quantize. A master that fits the accumulator buffer is streamed
    once, another twice. Parameters as for `update_on_device`; bits is 8 or 16. One row a cycle in
    both passes.

    Raises
    ------
    ValueError
        If bits is neither 8 nor 16.
    CompileError
        If bits is 16 and the configuration was generated without int16.
    """
    dtype = nx.operand_dtype(bits)
    if bits > device.config.result_bits:
        raise CompileError(
            f"working copy of {bits} bits: the configuration was generated without int16"
        )
    work = _Work(device, master, transposed, sticky)
    config, held = work.config, work.held(master.w)
    mode = Mode.INT8 if bits == 8 else Mode.INT16

    groups = _groups(config, work.m, work.n, config.bank_depth)
    resident = len(groups) <= 2
    if not resident:  # bounded by the field `rows` alone
        groups = _groups(config, work.m, work.n, (1 << 20) - 1)
    work.set_scale(Reg.QMAX, nx.from_int(nx.qmax(bits)))
    work.set_scale(Reg.MASTER, master.scale)
    device.post(opcode=Opcode.AMAX_SET, dst=0, imm=0)

    def passes() -> Iterator[tuple[Group, Rows, int]]:
        for bank, group in enumerate(groups):
            yield group, group.beats(held, config.cols), bank * config.bank_depth * resident

    for group, beats, base in passes():
        work.rows(
            beats, group.rows, config.cols, amax=1, write=int(resident), dst_base=base
        )  # fmt: skip
    device.post(opcode=Opcode.COLLECT, dst=0)
    device.post(opcode=Opcode.AMAX_READ, src_a=0)
    device.post(opcode=Opcode.SCALE_AMAX, dst=Reg.SCRATCH, src_a=0)
    work.div(Reg.INTO_W, Reg.QMAX, Reg.SCRATCH)
    for group, beats, base in passes():
        work.rows(
            None if resident else beats,
            group.rows,
            config.cols,
            mode=mode,
            src_a=Reg.INTO_W,
            src_base=base,
        )
    work.div(Reg.OUT, Reg.MASTER, Reg.INTO_W)
    device.post(opcode=Opcode.SCALE_READ, src_a=Reg.OUT)
    outputs, record = await work.flush("working_copy", f"int{bits}")
    if records is not None:
        records.append(record)

    q = np.zeros((work.m, work.n), dtype)
    start = 0
    for group in groups:
        for block in group.blocks:
            _place(q, block, outputs.result[start : start + block.rows])
            start += block.rows
    if start != len(outputs.result):
        raise RuntimeError(f"working copy: {len(outputs.result)} rows came, not {start}")
    maximum = outputs.info[0]["amax"]
    found = Scale(outputs.info[1]["m"], outputs.info[1]["e"])
    # Nothing is ever clipped: a master's maximum fits from_int exactly, and the ratio is truncated.
    return Quantized(np.ascontiguousarray(work.held(q)), found, maximum, maximum, False)
