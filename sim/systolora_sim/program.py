"""Commands for the Core with the beats that belong to them, and the interface of what runs them.

A command carries its own stream beats: a tile command its `act` and `wgt` beats, a post command its
`acc_in` beats. What comes back is in the order of the post commands. docs/core.md is the contract.
"""

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import POST, SCALE, TILE, Dataflow, Edge, Mode, Opcode, Source, pack
from systolora_sim.numerics import Scale

__all__ = [
    "CommandError", "CoreDevice", "Outputs", "PostCommand", "Program", "TileCommand",
    "post_beats", "result_bits", "run_sync", "scale_imm", "tile_beats",
]  # fmt: skip

Bytes = NDArray[np.uint8]
Rows = NDArray[np.int64]
T = TypeVar("T")


class CommandError(ValueError):
    """A command or its beats break the contract of the Core."""


@dataclass(frozen=True)
class TileCommand:
    """One tile command: fields of `contract.TILE`, `act` [n, R] and `wgt` [m, S * lanes] bytes."""

    fields: dict[str, int]
    act: Bytes
    wgt: Bytes


@dataclass(frozen=True)
class PostCommand:
    """One post command: fields of `contract.POST`, `acc_in` [n, C] accumulators (n may be 0)."""

    fields: dict[str, int]
    acc_in: Rows


@dataclass
class Program:
    """Tile and post commands, each queue in its own order."""

    tiles: list[TileCommand] = field(default_factory=list)
    posts: list[PostCommand] = field(default_factory=list)


@dataclass
class Outputs:
    """What left the Core until a flush.

    result, acc_out : int64 [n, C], in the order in which they left; info : decoded beats; cycles :
    clock cycles from the first command offered to the Core idle again, None where time does not
    exist; sticky : the status bits, bit n is `contract.STICKY[n]`.
    """

    result: Rows
    acc_out: Rows
    info: list[dict[str, int]]
    cycles: int | None
    sticky: int


def scale_imm(scale: Scale) -> int:
    """A Scale as SCALE_SET's `imm`."""
    return pack(SCALE, scale._asdict())


def tile_beats(config: AcceleratorConfig, fields: dict[str, int]) -> tuple[int, int]:
    """Beats that a tile command takes from `act` and from `wgt`."""
    length = fields["length"]
    if fields.get("dataflow", Dataflow.WS) == Dataflow.OS:
        return length, length
    if not fields.get("load", 0):
        return length, 0
    left = fields.get("edge", Edge.TOP) == Edge.LEFT
    return length, config.left_load if left else config.top_load


def result_bits(mode: int, quantize: int = 0) -> int:
    """Bits of the results that a row operation sends, by its fields `mode` and `quantize`; or 0."""
    by = mode if mode in (Mode.INT8, Mode.INT16) else quantize
    widths: dict[int, int] = {Mode.INT8: 8, Mode.INT16: 16}
    return widths.get(by, 0)


def post_beats(fields: dict[str, int]) -> dict[str, int]:
    """Beats that a post command takes from `acc_in` and sends on each output."""
    beats: dict[str, int] = dict.fromkeys(("acc_in", "acc_out", "result", "info"), 0)
    opcode = fields.get("opcode", Opcode.NOP)
    if opcode in (Opcode.BIAS, Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD):
        beats["acc_in"] = 1
    elif opcode in (Opcode.AMAX_READ, Opcode.SCALE_READ, Opcode.STICKY_READ):
        beats["info"] = 1
    elif opcode == Opcode.ROWS:
        rows = fields["rows"]
        if fields.get("source", Source.BUFFER) == Source.STREAM or fields.get("add_stream", 0):
            beats["acc_in"] = rows
        if result_bits(fields.get("mode", Mode.RAW), fields.get("quantize", 0)):
            beats["result"] = rows
        elif fields.get("emit", 0):
            beats["acc_out"] = rows
    return beats


class CoreDevice(ABC):
    """Something that executes commands for the Core of one configuration.

    `tile` and `post` only queue; `flush` executes everything queued to its end and returns what
    left. Commands are checked when they are queued.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.pending = Program()

    def tile(self, act: Bytes, wgt: Bytes | None = None, **fields: int) -> None:
        """Queues a tile command.

        Raises
        ------
        CommandError
            If a field does not fit, or the beats do not have the shape that the fields ask for.
        """
        config = self.config
        if wgt is None:
            wgt = np.zeros((0, config.segments * config.lanes), np.uint8)
        _pack(TILE, fields)
        n_act, n_wgt = tile_beats(config, fields)
        _check_beats("act", act, (n_act, config.rows), np.uint8)
        _check_beats("wgt", wgt, (n_wgt, config.segments * config.lanes), np.uint8)
        self.pending.tiles.append(TileCommand(fields, act, wgt))

    def post(self, acc_in: Rows | None = None, **fields: int) -> None:
        """Queues a post command; raises CommandError as `tile` does."""
        if acc_in is None:
            acc_in = np.zeros((0, self.config.cols), np.int64)
        _pack(POST, fields)
        _check_beats("acc_in", acc_in, (post_beats(fields)["acc_in"], self.config.cols), np.int64)
        self.pending.posts.append(PostCommand(fields, acc_in))

    def load(self, program: Program) -> None:
        """Queues all commands of a program."""
        for command in program.tiles:
            self.tile(command.act, command.wgt, **command.fields)
        for command in program.posts:
            self.post(command.acc_in, **command.fields)

    @abstractmethod
    async def flush(self) -> Outputs:
        """Executes what is queued until both queues are empty and the Core is idle."""


def _pack(table: Any, fields: dict[str, int]) -> int:
    try:
        return pack(table, fields)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _check_beats(name: str, beats: np.ndarray, shape: Sequence[int], dtype: Any) -> None:
    if beats.shape != tuple(shape) or beats.dtype != dtype:
        raise CommandError(
            f"{name} beats are {beats.dtype} {beats.shape}: must be {np.dtype(dtype)} "
            f"{tuple(shape)}"
        )


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits (every device but the one in a simulator)."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    work.close()
    raise RuntimeError("the device waits for a simulator: run it inside one")
