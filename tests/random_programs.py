"""Random valid programs for the whole accelerator, the same for the machine and the RTL.

Every round loads operands, multiplies, and post-processes what came out; all orders that matter are
in the tokens. The write window is the upper half of the image.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora.contract import (
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
    pack,
)
from systolora_sim.descriptor import encode

__all__ = ["BASE", "RandomProgram", "random_program"]

BASE = 0x1_0000_0000
#: Bytes of the image: the lower half is read only.
SIZE = 1 << 17
HALF = SIZE // 2


@dataclass
class RandomProgram:
    """A program of descriptors, its place and the memory that it starts from."""

    descriptors: list[bytes]
    image: NDArray[np.uint8]
    base: int = BASE
    read_window: tuple[int, int] = (BASE, BASE + SIZE)
    write_window: tuple[int, int] = (BASE + HALF, BASE + SIZE)
    listing: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.descriptors)


class _Maker:
    def __init__(self, config: AcceleratorConfig, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.descriptors: list[bytes] = []
        self.out = BASE + HALF  # next free byte of the writable half
        self.first = True
        self.ready = False  # the next EXEC waits for rows that were written to the accumulators

    def pick(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def flag(self, chance: float = 0.5) -> int:
        return int(self.rng.random() < chance)

    def add(self, kind: Kind, **fields: int) -> None:
        self.descriptors.append(encode(kind, fields))

    def source(self, size: int, align: int) -> int:
        """An address in the readable half with `size` bytes behind it."""
        room = (HALF - 0x4000 - size) // align
        return BASE + 0x4000 + self.pick(0, max(room - 1, 0)) * align

    # Operands -----------------------------------------------------------------------------------

    def load(self, buffer: Buffer, layout: Layout, rows: int, row_bytes: int, **fields: int) -> int:
        """A LOAD to the start of a buffer; returns entries from row to row."""
        config = self.config
        bus = config.beat_bytes
        entry = config.act_entry_bytes if buffer == Buffer.ACT else config.wgt_entry_bytes
        step = -(-row_bytes // entry) + self.pick(0, 1)
        stride = (-(-row_bytes // bus) + self.pick(0, 2)) * bus
        address = self.source(rows * stride + row_bytes, bus)
        self.add(
            Kind.LOAD,
            buffer=buffer,
            layout=layout,
            rows=rows,
            row_bytes=row_bytes,
            row_step=step,
            address=address,
            stride=stride,
            **fields,
        )
        return step

    def product(self, acc_base: int, rows_room: int) -> int:
        """Two LOADs and an EXEC; returns the accumulator rows that are written."""
        config = self.config
        act_wide = self.flag() if config.int16 else 0
        wgt_wide = self.flag() if config.int16 else 0
        is_os = self.flag(0.4)
        tiles = self.pick(1, 3)
        a, w = 1 + act_wide, 1 + wgt_wide
        act_units = config.act_entry_bytes // config.act_unit
        wgt_units = config.wgt_entry_bytes // config.wgt_unit
        wait = {"wait_exec": int(not self.first)}
        self.first = False
        last = self.pick(1, config.rows)
        fields = {
            "repeat": tiles,
            "last": last,
            "cols": self.pick(1, config.cols),
            "act_wide": act_wide,
            "wgt_wide": wgt_wide,
            "acc_base": acc_base,
            "fence": self.flag(0.2),
            "wait_load": 1,
            "signal_load": 1,
            "signal_post": 1,
        }
        if is_os:
            depth = self.pick(1, 9)
            step = self.load(Buffer.ACT, Layout.PLAIN, depth, tiles * config.rows * a, **wait)
            down = self.load(Buffer.WGT, Layout.PLAIN, depth, config.cols * w, signal_exec=1)
            per_tile = self.flag() and rows_room >= tiles * config.rows
            written = (tiles - 1) * config.rows + last if per_tile else config.rows
            if tiles == 1:
                written = last
            fields |= {
                "dataflow": Dataflow.OS,
                "length": depth,
                "act_stride": step * act_units,
                "act_step": a,
                "wgt_stride": down * wgt_units,
                "acc_step": config.rows if per_tile else 0,
            }
        else:
            length = self.pick(1, min(rows_room, 12))
            step = self.load(Buffer.ACT, Layout.PLAIN, length, tiles * config.rows * a, **wait)
            left = self.flag()
            if left:  # C rows of the operand, K along them
                down = self.load(
                    Buffer.WGT,
                    Layout.LEFT,
                    config.cols,
                    tiles * config.rows * w,
                    signal_exec=1,
                )
                wgt_step = config.rows // config.wgt_unit * w
            else:  # K rows of the operand
                down = self.load(
                    Buffer.WGT,
                    Layout.TOP,
                    tiles * config.rows,
                    config.cols * w,
                    signal_exec=1,
                )
                wgt_step = config.rows // config.segments * down * wgt_units
            fields |= {
                "dataflow": Dataflow.WS,
                "edge": Edge.LEFT if left else Edge.TOP,
                "length": length,
                "act_stride": step * act_units,
                "act_step": a,
                "wgt_stride": down * wgt_units,
                "wgt_step": wgt_step,
            }
            written = length
        if self.ready:
            fields["wait_post"] = 1
            self.ready = False
        self.add(Kind.EXEC, **fields)
        return written

    # Post-processing ----------------------------------------------------------------------------

    def place(self, rows: int, cols: int, width: int, read: bool = False) -> tuple[int, int]:
        """Address and stride of rows in memory that obey the alignment rule."""
        bus = self.config.beat_bytes
        align = min(bus, self.config.cols << width)
        size = cols << width
        stride = (-(-size // bus) + self.pick(0, 1)) * bus
        if read:
            return self.source(rows * stride + 64, bus) + self.pick(0, bus // align - 1) * align, (
                stride
            )
        address = self.out + self.pick(0, bus // align - 1) * align
        self.out += -(-(rows * stride + bus) // 64) * 64
        return address, stride

    def scale(self, dst: int) -> None:
        m = self.pick(1 << 15, (1 << 16) - 1)
        imm = pack(SCALE, {"m": m, "e": self.pick(-20, 2)})
        self.add(Kind.POST, opcode=Opcode.SCALE_SET, dst=dst, imm=imm)

    def post(self, rows: int, base: int, other: int, **wait: int) -> None:
        """Row operations on rows that an EXEC wrote; the first one has the wait."""
        config = self.config
        cols = self.pick(1, config.cols)
        self.scale(self.pick(0, 3))
        for _ in range(self.pick(1, 3)):
            mode = Mode(self.pick(0, 3 if config.int16 else 2))
            stream = self.flag(0.3)
            width = self.pick(0, 3)
            in_width = self.pick(0, 3)
            fields: dict[str, int] = {
                "opcode": Opcode.ROWS,
                "mode": mode,
                "src_a": self.pick(0, 3),
                "src_base": base,
                "rows": rows,
                "cols": cols,
                "amax": self.flag(),
                "sign": self.flag(0.2),
                "stochastic": self.flag(),
                "transposed": self.flag(),
                "word0": self.pick(0, (1 << 32) - 1),
                "out_width": width,
                "in_width": in_width,
            }
            if stream:
                address, stride = self.place(rows, cols, in_width, read=True)
                fields |= {"source": Source.STREAM, "in_address": address, "in_stride": stride}
            if mode in (Mode.INT8, Mode.INT16):
                emits = True
            else:
                emits = bool(self.flag(0.8))
                fields |= {
                    "emit": int(emits),
                    "write": self.flag(0.4),
                    "add": self.flag(0.4),
                    "negate": self.flag(0.3),
                    "limit": Limit(self.pick(0, 2)),
                    "dst_base": base if self.flag() or other < 0 else other,
                    "status": self.pick(0, 3),
                }
                if not fields["write"] and not emits:
                    fields["emit"] = emits = 1
                if config.fused_quantize and self.flag():
                    fields |= {"quantize": self.pick(2, 3 if config.int16 else 2), "emit": 0}
                    fields |= {"src_b": self.pick(0, 3), "delayed": self.flag()}
                    emits = True
                if fields["add"] and not stream and self.flag():
                    address, stride = self.place(rows, cols, in_width, read=True)
                    fields |= {"add_stream": 1, "in_address": address, "in_stride": stride}
                elif fields["add"] and fields["dst_base"] == other:
                    fields["add"] = 0  # never written
            if emits:
                address, stride = self.place(rows, cols, width)
                fields |= {"out_address": address, "out_stride": stride}
            self.add(Kind.POST, **fields, **wait)
            wait = {}

    def registers(self) -> None:
        """Maxima, Scales and status bits through memory."""
        self.add(Kind.POST, opcode=Opcode.AMAX_SET, dst=1, imm=self.pick(0, 5))
        self.add(Kind.POST, opcode=Opcode.COLLECT, dst=1)
        slots = []
        for opcode, register in (
            (Opcode.AMAX_READ, 1),
            (Opcode.SCALE_READ, 0),
            (Opcode.STICKY_READ, 0),
        ):
            address, _ = self.place(1, 1, 3)
            slots.append(address)
            self.add(
                Kind.POST,
                opcode=opcode,
                src_a=register,
                out_address=address,
                signal_stream=int(opcode == Opcode.STICKY_READ),
            )
        self.add(Kind.POST, opcode=Opcode.AMAX_LOAD, dst=2, in_address=slots[0], wait_store=1)
        align = min(self.config.beat_bytes, self.config.cols << 2)
        if slots[1] % align == 0:
            self.add(Kind.POST, opcode=Opcode.SCALE_LOAD, dst=1, in_address=slots[1])
        self.add(Kind.POST, opcode=Opcode.AMAX_SELECT, dst=3, src_a=2, src_b=1)
        self.add(Kind.POST, opcode=Opcode.SCALE_AMAX, dst=2, src_a=3)
        self.add(Kind.POST, opcode=Opcode.SCALE_MUL, dst=3, src_a=2, src_b=1)
        self.add(Kind.POST, opcode=Opcode.SCALE_DIV, dst=2, src_a=1, src_b=3)

    def bias(self, rows: int, base: int) -> None:
        address, _ = self.place(1, self.config.cols, 2, read=True)
        cols = self.pick(1, self.config.cols)
        self.add(
            Kind.POST, opcode=Opcode.BIAS, cols=cols, in_width=2, in_address=address
        )  # fmt: skip
        address, stride = self.place(rows, cols, 2)
        self.add(
            Kind.POST,
            opcode=Opcode.ROWS,
            mode=Mode.RAW,
            bias=1,
            emit=1,
            rows=rows,
            cols=cols,
            src_base=base,
            out_width=2,
            out_address=address,
            out_stride=stride,
        )

    def run(self, rounds: int) -> None:
        config = self.config
        for register in range(4):
            self.scale(register)
        for number in range(rounds):
            bank = number % ACC_BANKS * config.bank_depth
            written = self.product(bank, config.bank_depth)
            fresh = bank + written
            room = config.bank_depth - written
            self.post(written, bank, fresh if room >= written else -1, wait_exec=1)
            if self.flag():
                self.registers()
            if self.flag(0.3):
                self.bias(written, bank)
            if self.flag(0.3):
                self.add(Kind.CONTROL, action=Action.STEP)
            # The bank is free again for the round after the next one; simply for the next
            self.add(Kind.POST, opcode=Opcode.NOP, signal_exec=1)
            self.ready = True
        self.add(Kind.CONTROL, action=Action.END)


def random_program(config: AcceleratorConfig, seed: int, rounds: int = 6) -> RandomProgram:
    """A program of that many rounds, or fewer where the results of rows on a wide bus would not fit
    the image; its descriptors are at the start of it."""
    maker = _Maker(config, seed)
    maker.run(rounds)
    program = b"".join(maker.descriptors)
    if len(program) > 0x4000 or maker.out > BASE + SIZE:
        if rounds < 3:
            raise ValueError(f"seed {seed}: {rounds} rounds do not fit the image")
        return random_program(config, seed, rounds - 1)
    image = maker.rng.integers(0, 256, SIZE, dtype=np.uint8)
    image[: len(program)] = np.frombuffer(program, np.uint8)
    return RandomProgram(maker.descriptors, image)
