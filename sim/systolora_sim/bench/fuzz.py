"""Random programs for the Core that keep its contract: every command, mode and order it allows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora.config import ACC_BANKS
from systolora.contract import (
    AMAX_REGISTERS,
    SCALE_REGISTERS,
    Dataflow,
    Edge,
    Mode,
    Opcode,
    Quantize,
    Source,
)
from systolora_sim.numerics import Scale
from systolora_sim.program import CoreDevice, post_beats, scale_imm, tile_beats

__all__ = ["queue_random_program"]


class _Programmer:
    """Queues random commands, with a note of which accumulator rows hold something."""

    def __init__(self, device: CoreDevice, rng: np.random.Generator, row_operations: int) -> None:
        self.opcodes = [Opcode.ROWS] * row_operations + list(Opcode)
        self.device, self.config, self.rng = device, device.config, rng
        self.written = np.zeros(self.config.acc_depth, bool)
        self.has_tile = False

    def choose(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def rows(self, bank: int, count: int) -> int:
        depth = self.config.bank_depth
        return bank * depth + self.choose(0, depth - count)

    def _bytes(self, *shape: int) -> NDArray[np.uint8]:
        values = self.rng.integers(0, 256, shape, dtype=np.uint8)
        if self.choose(0, 3) == 0:
            values[...] = self.rng.choice(np.array([0, 127, 128, 255], np.uint8), shape)
        return values

    def tile(self, bank: int, **tokens: int) -> None:
        config, planes = self.config, int(self.config.int16)
        fields: dict[str, int] = dict(tokens)
        for name in ("act_low", "wgt_low"):
            fields[name] = self.choose(0, planes)
        fields["shift"] = self.choose(0, 2 * planes)
        fields["fence"] = int(self.choose(0, 7) == 0)
        if self.choose(0, 2) == 0:
            count = self.choose(1, config.rows)
            fields |= {"dataflow": Dataflow.OS, "length": self.choose(1, 2 * config.rows + 3)}
            fields["out_rows"] = count
            self.has_tile = False
        else:
            count = self.choose(1, min(config.bank_depth, 12))
            load = 1 if not self.has_tile else self.choose(0, 3) > 0
            fields |= {"dataflow": Dataflow.WS, "length": count, "load": int(load)}
            fields["edge"] = Edge(self.choose(0, 1))
            self.has_tile = True
        base = self.rows(bank, count)
        fields["acc_base"] = base
        fields["accumulate"] = int(self.written[base : base + count].all() and self.choose(0, 1))
        self.written[base : base + count] = True
        n_act, n_wgt = tile_beats(config, fields)
        wgt = self._bytes(n_wgt, config.segments * config.lanes)
        self.device.tile(self._bytes(n_act, config.rows), wgt, **fields)

    def post(self, banks: tuple[int, ...], **tokens: int) -> None:
        opcode = Opcode(self.rng.choice(self.opcodes))
        fields: dict[str, int] = {"opcode": opcode, **tokens}
        if opcode == Opcode.ROWS:
            fields |= self._row_operation(banks)
        registers = AMAX_REGISTERS if opcode in (
            Opcode.AMAX_SET, Opcode.AMAX_READ, Opcode.AMAX_LOAD, Opcode.AMAX_SELECT,
            Opcode.SCALE_AMAX, Opcode.COLLECT,
        ) else SCALE_REGISTERS  # fmt: skip
        fields.setdefault("src_a", self.choose(0, registers - 1))
        fields["src_b"] = self.choose(0, registers - 1)
        fields["dst"] = self.choose(0, registers - 1)
        if opcode == Opcode.SCALE_AMAX:
            fields["dst"] = self.choose(0, SCALE_REGISTERS - 1)
        if opcode == Opcode.AMAX_SET:
            fields["imm"] = self.choose(0, (1 << self.choose(0, 48)) - 1)
        if opcode == Opcode.SCALE_SET:
            fields["imm"] = self.scale(wide=True) if self.choose(0, 7) else self.choose(0, 1 << 26)
        beats = post_beats(fields)["acc_in"]
        self.device.post(self.values(beats) if beats else None, **fields)

    def scale(self, wide: bool = False) -> int:
        """(m, e) packed; sometimes zero, sometimes with an exponent that overflows later."""
        if self.choose(0, 15) == 0:
            return 0
        e = self.choose(-512, 511) if wide and self.choose(0, 3) == 0 else self.choose(-40, 12)
        return scale_imm(Scale(self.choose(1 << 15, (1 << 16) - 1), e))

    def values(self, beats: int) -> NDArray[np.int64]:
        bits = self.config.acc_bits
        magnitude = self.rng.integers(0, bits, (beats, self.config.cols))
        values = self.rng.integers(-(1 << 62), 1 << 62, (beats, self.config.cols))
        values >>= 63 - bits + magnitude
        extremes = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 0, -1])
        where = self.rng.random(values.shape) < 0.1
        values[where] = self.rng.choice(extremes, int(where.sum()))
        return values

    def _filled(self, bank: int, count: int) -> int | None:
        """The base of `count` rows of the bank that all hold something."""
        for _ in range(8):
            base = self.rows(bank, count)
            if self.written[base : base + count].all():
                return base
        return None

    def _row_operation(self, banks: tuple[int, ...]) -> dict[str, int]:
        config, choose = self.config, self.choose
        # Long ones fill the output queue, so that stalls reach the issue of rows
        longest = config.bank_depth // 2
        count = choose(1, min(9, longest)) if choose(0, 2) else choose(1, longest)
        fields: dict[str, int] = {
            "rows": count,
            "cols": choose(1, config.cols),
            "source": Source.STREAM,
            "src_a": choose(0, SCALE_REGISTERS - 1),
            "amax": choose(0, 1),
            "sign": int(choose(0, 5) == 0),
            "transposed": choose(0, 1),
            "word0": choose(0, (1 << 32) - 1),
        }
        src = self._filled(banks[choose(0, len(banks) - 1)], count)
        if src is not None and choose(0, 3):
            fields |= {"source": Source.BUFFER, "src_base": src}
        modes = [Mode.RAW, Mode.ACC, Mode.INT8] + [Mode.INT16] * int(config.int16)
        fields["mode"] = modes[choose(0, len(modes) - 1)]
        if fields["mode"] in (Mode.INT8, Mode.INT16):
            fields |= {"stochastic": choose(0, 1), "delayed": choose(0, 1)}
            return fields
        fields |= {"bias": choose(0, 1), "emit": choose(0, 1), "negate": choose(0, 1)}
        fields |= {"limit": choose(0, 2), "status": choose(0, 3), "stochastic": choose(0, 1)}
        if config.fused_quantize and choose(0, 1):
            fields |= {"quantize": Quantize(choose(2, 2 + int(config.int16))), "emit": 0}
            fields["delayed"] = choose(0, 1)
        bank = banks[choose(0, len(banks) - 1)]
        dst = self._filled(bank, count)
        if src is not None and choose(0, 3) == 0:
            dst = src
        if fields["source"] == Source.BUFFER and choose(0, 3) == 0:
            fields |= {"add": 1, "add_stream": 1}
        elif dst is not None and choose(0, 1):
            fields["add"] = 1
        if dst is None:
            dst = self.rows(bank, count)
        overlap = fields["source"] == Source.BUFFER and 0 < abs(fields["src_base"] - dst) < count
        if overlap:
            if not fields.get("add_stream", 0):
                fields.pop("add", None)
            return fields
        fields["dst_base"] = dst
        if choose(0, 2) > 0:
            fields["write"] = 1
            self.written[dst : dst + count] = True
        return fields


def queue_random_program(
    device: CoreDevice, seed: int, groups: int = 8, *, row_operations: int = 12, posts: int = 7
) -> None:
    """Queues a random program on a device, the same commands on every device of a configuration.

    Groups of tile commands and groups of post commands alternate; either each group owns all
    banks in turn, or tiles fill every second bank while the post-processor works on the others.
    row_operations : ROWS among post commands, beside one of each opcode; posts : of a group at most
    """
    rng = np.random.default_rng(seed)
    programmer = _Programmer(device, rng, row_operations)
    overlap = bool(seed % 2)
    lag = 2 if overlap else 1
    _prepare(device, programmer, lag)
    for group in range(groups):
        banks = tuple(range(group % 2, ACC_BANKS, 2) if overlap else range(ACC_BANKS))
        _group(programmer, banks, posts, signal=group < groups - lag)


def _prepare(device: CoreDevice, programmer: _Programmer, tokens: int) -> None:
    """Defines what is undefined after reset, then gives the tile queue its first tokens."""
    for register in range(SCALE_REGISTERS):
        device.post(opcode=Opcode.SCALE_SET, dst=register, imm=programmer.scale())
    for register in range(AMAX_REGISTERS):
        device.post(opcode=Opcode.AMAX_SET, dst=register, imm=register)
    device.post(programmer.values(1), opcode=Opcode.BIAS)
    depth, cols = programmer.config.bank_depth, programmer.config.cols
    for base in range(0, programmer.config.acc_depth, depth):
        fields = {"opcode": Opcode.ROWS, "source": Source.STREAM, "write": 1, "cols": cols}
        device.post(programmer.values(depth), **fields, rows=depth, dst_base=base)
    programmer.written[:] = True
    for _ in range(tokens):
        device.post(opcode=Opcode.NOP, signal=1)


def _group(programmer: _Programmer, banks: tuple[int, ...], most: int, *, signal: bool) -> None:
    tiles, posts = programmer.choose(1, 5), programmer.choose(2, most)
    for index in range(tiles):
        tokens: dict[str, Any] = {
            "wait": int(index == 0),
            "signal": int(index == tiles - 1),
        }
        programmer.tile(banks[programmer.choose(0, len(banks) - 1)], **tokens)
    for index in range(posts):
        tokens = {"wait": int(index == 0), "signal": int(signal and index == posts - 1)}
        programmer.post(banks, **tokens)
