"""An on-chip operand buffer: written in bus beats, read in lines for the array."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, enum, fifo, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["BufferWriteLayout", "OperandBuffer", "Plane", "ReadLayout"]

#: Bits of a reading command's count: beats, at least 1.
COUNT_BITS = 16
#: Bits of a number of rows or columns of the array, up to 256.
LANE_BITS = 9


class Plane(enum.Enum, shape=2):
    """What a line is made of: bytes as they lie, or a byte plane of int16 (numerics section 8)."""

    BYTES = 0
    LOW = 1
    HIGH = 2


def ReadLayout(unit_bits: int) -> data.StructLayout:
    """A run of lines: `count` of them from unit `base`, each `delta` units (mod 2^n) further."""
    return data.StructLayout(
        {
            "base": unit_bits,
            "delta": unit_bits,
            "count": COUNT_BITS,
            "plane": Plane,
            "lanes": LANE_BITS,  # valid bytes of a line; the others read as 0 where masked
            "cols": LANE_BITS,  # of the product: carried along for the MAC counter
            "signal": 1,  # `done` after the last line
        }
    )


def BufferWriteLayout(
    bank_bits: int, entry_bits: int, part_bits: int, beat_bits: int
) -> data.StructLayout:
    """A beat into a part of an entry of a bank."""
    return data.StructLayout(
        {"bank": bank_bits, "entry": entry_bits, "part": part_bits, "data": beat_bits}
    )


class OperandBuffer(wiring.Component):
    """Banks of entries, read at the same place in every bank: one line of each per cycle.

    An entry is `entry_bytes` bytes in units of `unit_bytes`; a line starts at a unit and is
    `line_bytes` bytes, or twice that, of which every second one is taken, for a plane of int16.
    The first line of a command leaves 3 cycles after the command is taken if the buffer is idle;
    commands follow each other without a gap. A line is read from the memory before `done`.

    Nothing keeps a write and a read of one entry apart: order is the tokens' job.

    Parameters
    ----------
    banks, entries : numbers, powers of two
    entry_bytes, bus_bytes, unit_bytes : sizes, powers of two; a beat fills a part of an entry
    line_bytes : bytes of a line
    planes : int16 operands exist
    masked : bytes of a line from `lanes` on read as 0

    Members
    -------
    write_en, write : BufferWriteLayout; a beat to store in this cycle
    command : In(stream.Signature(ReadLayout)); a line of int16 must lie in one entry
    lines : Out(stream), `banks` lines of `line_bytes` bytes
    line_lanes, line_cols : of the command that the offered line belongs to
    done : the last line of a command with `signal` has been read
    busy : commands or lines are in work
    """

    COMMANDS = 4

    def __init__(
        self,
        *,
        banks: int,
        entries: int,
        entry_bytes: int,
        bus_bytes: int,
        unit_bytes: int,
        line_bytes: int,
        planes: bool,
        masked: bool,
    ) -> None:
        self.design_key: Hashable = (
            banks, entries, entry_bytes, bus_bytes, unit_bytes, line_bytes, planes, masked,
        )  # fmt: skip
        self._banks, self._entries = banks, entries
        self._entry_bytes, self._bus_bytes = entry_bytes, bus_bytes
        self._unit_bytes, self._line_bytes = unit_bytes, line_bytes
        self._planes, self._masked = planes, masked
        self._units = entry_bytes // unit_bytes
        self._offset_bits = self._units.bit_length() - 1
        self._unit_bits = (entries - 1).bit_length() + self._offset_bits
        line = data.ArrayLayout(8, line_bytes)
        super().__init__(
            {
                "write_en": In(1),
                "write": In(
                    BufferWriteLayout(
                        (banks - 1).bit_length(),
                        (entries - 1).bit_length(),
                        (entry_bytes // bus_bytes).bit_length() - 1,
                        8 * bus_bytes,
                    )
                ),
                "command": In(stream.Signature(ReadLayout(self._unit_bits))),
                "lines": Out(stream.Signature(data.ArrayLayout(line, banks))),
                "line_lanes": Out(LANE_BITS),
                "line_cols": Out(LANE_BITS),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.queue = queue = fifo.SyncFIFOBuffered(
            width=ReadLayout(self._unit_bits).size, depth=self.COMMANDS
        )
        m.d.comb += [
            queue.w_data.eq(self.command.payload),
            queue.w_en.eq(self.command.valid),
            self.command.ready.eq(queue.w_rdy),
        ]
        tags = data.StructLayout({"plane": Plane, "lanes": LANE_BITS, "cols": LANE_BITS})

        # The whole pipeline moves when the line at its end leaves
        move = Signal()
        m.d.comb += move.eq(~self.lines.valid | self.lines.ready)

        # Stage 1: address
        active, last = Signal(), Signal()
        command = Signal(ReadLayout(self._unit_bits), reset_less=True)
        m.d.comb += [
            last.eq(command.count == 1),
            queue.r_en.eq(~active | (move & last)),
            self.done.eq(active & move & last & command.signal),
        ]
        with m.If(queue.r_en):
            m.d.sync += [active.eq(queue.r_rdy), command.eq(queue.r_data)]
        with m.Elif(move):
            m.d.sync += [
                command.base.eq(command.base + command.delta),
                command.count.eq(command.count - 1),
            ]
        entry = Signal(range(self._entries))
        m.d.comb += entry.eq(command.base[self._offset_bits :])
        read = Signal()
        m.d.comb += read.eq(active & move)
        words = [self._bank(m, bank, read, entry) for bank in range(self._banks)]

        # Stage 2: the entry is there
        read_q = Signal()
        offset = Signal(self._offset_bits, reset_less=True)
        tags_q = Signal(tags, reset_less=True)
        with m.If(move):
            m.d.sync += [
                read_q.eq(active),
                offset.eq(command.base[: self._offset_bits]),
                tags_q.plane.eq(command.plane),
                tags_q.lanes.eq(command.lanes),
                tags_q.cols.eq(command.cols),
                self.lines.valid.eq(read_q),
            ]
        # Stage 3: the line
        kept = Signal(self._line_bytes)
        for lane in range(self._line_bytes):
            m.d.comb += kept[lane].eq(tags_q.lanes > lane if self._masked else 1)
        with m.If(move):
            m.d.sync += [self.line_lanes.eq(tags_q.lanes), self.line_cols.eq(tags_q.cols)]
            for bank, word in enumerate(words):
                line = self._line(m, bank, word, offset, tags_q.plane)
                for lane in range(self._line_bytes):
                    m.d.sync += self.lines.payload[bank][lane].eq(Mux(kept[lane], line[lane], 0))
        m.d.comb += self.busy.eq(queue.level.any() | active | read_q | self.lines.valid)
        return m

    def _bank(self, m: Module, bank: int, read: Signal, entry: Signal) -> Signal:
        """One bank's memory; returns what it reads, kept until the next read."""
        parts = self._entry_bytes // self._bus_bytes
        memory = Memory(shape=8 * self._entry_bytes, depth=self._entries, init=[])
        m.submodules[f"bank_{bank}"] = memory
        rp = memory.read_port()
        wp = memory.write_port(granularity=8 * self._bus_bytes if parts > 1 else None)
        enable = Signal(name=f"write_{bank}")
        hit = self.write.bank == bank if self._banks > 1 else 1
        m.d.comb += [
            rp.en.eq(read),
            rp.addr.eq(entry),
            enable.eq(self.write_en & hit),
            wp.addr.eq(self.write.entry),
            wp.data.eq(Cat(self.write.data for _ in range(parts))),
        ]
        if parts > 1:
            m.d.comb += wp.en.eq(
                Cat(enable & (self.write.part == part) for part in range(parts))
            )  # fmt: skip
        else:
            m.d.comb += wp.en.eq(enable)
        return rp.data

    def _line(self, m: Module, bank: int, word: Signal, offset: Signal, plane):
        """The line at a unit of an entry: bytes, or a plane of int16."""
        size = self._line_bytes * (2 if self._planes else 1)
        window = Signal(data.ArrayLayout(8, size), name=f"window_{bank}")
        with m.Switch(offset):
            for unit in range(self._units):
                start = 8 * self._unit_bytes * unit
                with m.Case(unit):
                    m.d.comb += window.eq(word[start : start + 8 * size])
        line = Signal(data.ArrayLayout(8, self._line_bytes), name=f"line_{bank}")
        if not self._planes:
            m.d.comb += line.eq(window)
            return line
        with m.Switch(plane):
            for kind, first, step in ((Plane.BYTES, 0, 1), (Plane.LOW, 0, 2), (Plane.HIGH, 1, 2)):
                with m.Case(kind):
                    m.d.comb += [
                        line[lane].eq(window[first + step * lane])
                        for lane in range(self._line_bytes)
                    ]
        return line
