"""What travels with the rows of post commands through the lanes' pipeline."""

from collections.abc import Hashable
from functools import reduce
from operator import or_
from types import SimpleNamespace

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.contract import Limit, Mode, Source, Status
from systolora.rtl.accumulator import BankControl
from systolora.rtl.layouts import PostLayout
from systolora.rtl.post_lane import LaneControl, PostLane

__all__ = ["RowPipeline"]

BANK_NUMBER = (ACC_BANKS - 1).bit_length()
#: Cycles of a row in which its source and its destination are read.
SRC_READ, DST_READ = 1, PostLane.DST_DATA - 1


#: A row's control word: by field, the last cycle in which it is used. Fields without a comment are
#: those of the command, as far as they apply.
LAST_USE = {
    "reads": PostLane.SOURCE - 1,  # acc[src]
    "src": PostLane.SOURCE - 1,
    "sign": PostLane.SOURCE - 1,
    "transposed": PostLane.WORD,
    "clips": PostLane.CLIPPED,  # a clipped term counts for acc_sat
    "delayed": PostLane.CLIPPED,
    "adds": PostLane.DST_DATA,  # acc[dst]
    "joins": PostLane.DST_DATA,  # with a beat
    "bias": PostLane.DST_DATA,
    "negate": PostLane.DST_DATA,
    "sat32": PostLane.SATURATED,
    "sat16": PostLane.SATURATED,
    "status": PostLane.SATURATED,
    "uses": PostLane.VALUE,  # banks
    "quantizes": PostLane.VALUE,
    "amax": PostLane.VALUE,
    "writes": PostLane.VALUE,  # acc[dst]
    "dst": PostLane.VALUE,
    "sends": PostLane.VALUE,  # to the output queue
    "signal": PostLane.VALUE,  # last row of a command that gives a token
}
#: The same of rows whose value is quantized in the same pass.
LATE_USE = {
    "transposed": PostLane.LATE_WORD,
    "late_word": PostLane.LATE_WORD,  # the second rescale is stochastic
    "fused": PostLane.DONE,  # later cycles have such rows only
    "late_delayed": PostLane.QUANTIZED,
}
#: How much later a quantized value is sent, and its random word is mixed.
LATER, LATER_WORD = PostLane.QUANTIZED - PostLane.VALUE, PostLane.LATE_WORD - PostLane.WORD


class RowPipeline(wiring.Component):
    """Sends each row's control word along with it, and holds back rows that must not follow yet.

    Rows of any number of commands may be in the pipeline. A row waits while an older one

    - has still to write an accumulator that the row would read too early;
    - reads its destination in the cycle in which the row would read its source, in one bank;
    - measures its value in the cycle in which the row would measure its source;
    - is still to be sent when the row would be, because it quantizes its value (`fused`);
    - mixes its random word for that in the cycle in which the row would mix its own.

    Parameters
    ----------
    cols : columns C
    fused : rows may quantize their values
    bank_bits : width of an accumulator row's address in its bank; the bits above it are the bank

    Members
    -------
    command : the row operation in work, from the cycle of `start` to that of its last `issue`
    start : its rows follow, the first one in the next cycle or later, and later than all others
    issue, last : a row enters, its cycle 0; it is the command's last one
    reads, joins, sends, uses : of the next row: it comes from the buffer, is joined with a beat,
        goes to the output queue; its banks
    blocked : it must not be issued in this cycle
    busy : a row is in the pipeline
    lanes, banks, col_valid, transposed, push, push_result, sat_row, status, clip_row, delayed_row :
        see PostControl; in the cycles that PostLane names
    late_delayed_row : with `fused`: `late_clipped` counts for clip_delayed
    joined : a row takes the beat that it is joined with
    token : the last row of a command with `signal` is written; its results may be still to come
    """

    def __init__(self, *, cols: int, bank_bits: int, fused: bool) -> None:
        self.design_key: Hashable = (cols, bank_bits, fused)
        self._cols, self._bank_bits, self._fused = cols, bank_bits, fused
        self._last_use = LAST_USE | LATE_USE if fused else LAST_USE
        super().__init__(
            {
                "command": In(PostLayout(fused)),
                "start": In(1),
                "issue": In(1),
                "last": In(1),
                "reads": Out(1),
                "joins": Out(1),
                "sends": Out(1),
                "uses": Out(ACC_BANKS),
                "blocked": Out(1),
                "busy": Out(1),
                "lanes": Out(LaneControl(fused)),
                "banks": Out(BankControl(bank_bits)),
                "col_valid": Out(cols),
                "transposed": Out(1),
                "push": Out(1),
                "push_result": Out(1),
                "sat_row": Out(1),
                "status": Out(contract.width(contract.POST, "status")),
                "clip_row": Out(1),
                "delayed_row": Out(1),
                "joined": Out(1),
                "token": Out(1),
                **({"late_delayed_row": Out(1)} if fused else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Of the rows in cycles 1 to DONE, and of those that quantize their values to QUANTIZED
        valid = Signal(PostLane.QUANTIZED if self._fused else PostLane.DONE)
        age = Cat(self.issue, valid)
        m.d.sync += valid.eq(age)
        m.d.comb += self.busy.eq(valid.any())
        rows = [self._next_row(m)]
        for cycle in range(1, max(self._last_use.values()) + 1):
            row = SimpleNamespace()
            for name, last in self._last_use.items():
                if cycle <= last:
                    before = getattr(rows[-1], name)
                    late = Signal.like(before, name=f"{name}_{cycle}", reset_less=True)
                    m.d.sync += late.eq(before)
                    setattr(row, name, late)
            rows.append(row)
        if self._fused:
            with m.If(~rows[PostLane.DONE].fused):
                m.d.sync += valid[PostLane.DONE].eq(0)
        self._hold(m, age, rows)
        self._seeds(m, age, rows)
        self._banks(m, age, rows)
        self._lanes(m, age, rows)
        return m

    def _bank(self, address: Signal):
        return address[self._bank_bits :]

    def _next_row(self, m: Module) -> SimpleNamespace:
        """The control word of the next row, by the fields of LAST_USE."""
        command = self.command
        address = unsigned(self._bank_bits + BANK_NUMBER)
        src = Signal(address, reset_less=True)
        dst = Signal(address, reset_less=True)
        with m.If(self.start):
            m.d.sync += [src.eq(command.src_base), dst.eq(command.dst_base)]
        with m.Elif(self.issue):
            m.d.sync += [src.eq(src + 1), dst.eq(dst + 1)]
        row = SimpleNamespace(src=src, dst=dst, reads=self.reads, joins=self.joins)
        row.sends, row.uses = self.sends, self.uses
        row.status = Signal(contract.width(contract.POST, "status"))
        for name in self._last_use:
            if not hasattr(row, name):
                setattr(row, name, Signal(name=name))
        plain = Signal()
        adds = Signal()
        m.d.comb += [
            plain.eq((command.mode == Mode.RAW) | (command.mode == Mode.ACC)),
            adds.eq(plain & command.add),
            row.reads.eq(command.source == Source.BUFFER),
            row.sign.eq(command.sign),
            row.transposed.eq(command.transposed),
            row.quantizes.eq(~plain),
            row.clips.eq((command.mode == Mode.ACC) & (command.status == Status.ACC_SAT)),
            row.delayed.eq(~plain & command.delayed),
            row.adds.eq(adds & ~command.add_stream),
            row.joins.eq(adds & command.add_stream),
            row.bias.eq(plain & command.bias),
            row.negate.eq(plain & command.negate),
            row.sat32.eq((command.limit == Limit.ACC32) & (adds | row.bias | row.negate)),
            row.sat16.eq(plain & (command.limit == Limit.INT16)),
            row.status.eq(command.status),
            row.amax.eq(command.amax),
            row.writes.eq(plain & command.write),
            row.sends.eq(~plain | command.emit),
            row.signal.eq(self.last & command.signal),
        ]
        if self._fused:
            m.d.comb += [
                row.fused.eq(plain & command.quantize[1]),
                row.late_word.eq(row.fused & command.stochastic),
                row.late_delayed.eq(row.fused & command.delayed),
                row.sends.eq(~plain | command.emit | row.fused),
            ]
        for bank in range(ACC_BANKS):
            m.d.comb += row.uses[bank].eq(
                (row.reads & (self._bank(src) == bank))
                | ((row.adds | row.writes) & (self._bank(dst) == bank))
            )
        return row

    def _hold(self, m: Module, age: Value, rows: list[SimpleNamespace]) -> None:
        """When the next row has to wait for an older one; `age[n]` is that of `rows[n]`."""
        row = rows[0]

        def unwritten(address: Value, read: int) -> Value:
            """An older row writes the accumulator in the cycle of its read, or later."""
            waits = Signal(PostLane.VALUE - read, name=f"unwritten_{read}")
            m.d.comb += waits.eq(
                Cat(
                    age[cycle] & rows[cycle].writes & (rows[cycle].dst == address)
                    for cycle in range(1, PostLane.VALUE - read + 1)
                )
            )
            return waits.any()

        adding, measuring = DST_READ - SRC_READ, PostLane.VALUE - PostLane.SOURCE
        same_port, same_measure = Signal(), Signal()
        blocked = (
            (row.reads & (unwritten(row.src, SRC_READ) | same_port))
            | (row.adds & unwritten(row.dst, DST_READ))
            | (row.amax & row.quantizes & same_measure)
        )
        if self._fused:
            blocked |= self._late_hold(m, age, rows)
        m.d.comb += [
            same_port.eq(
                age[adding]
                & rows[adding].adds
                & (self._bank(rows[adding].dst) == self._bank(row.src))
            ),
            same_measure.eq(age[measuring] & rows[measuring].amax & ~rows[measuring].quantizes),
            self.blocked.eq(blocked),
        ]

    def _late_hold(self, m: Module, age: Value, rows: list[SimpleNamespace]) -> Value:
        """When it has to wait for an older one that quantizes its value."""
        row, command = rows[0], self.command
        unsent, same_word, early_word = Signal(), Signal(), Signal()
        sent_later = (age[cycle] & rows[cycle].fused for cycle in range(1, LATER + 1))
        m.d.comb += [
            unsent.eq(reduce(or_, sent_later)),
            same_word.eq(age[LATER_WORD] & rows[LATER_WORD].late_word),
            early_word.eq(command.stochastic & (command.mode != Mode.RAW) & ~row.fused),
        ]
        return (row.sends & ~row.fused & unsent) | (early_word & same_word)

    def _seeds(self, m: Module, age: Value, rows: list[SimpleNamespace]) -> None:
        """Random words and padding: registers that change between two commands' rows."""
        command = self.command
        started = Signal()
        word = Signal(32, reset_less=True)
        valid_cols = Signal(self._cols, reset_less=True)
        transposed = rows[PostLane.WORD].transposed
        m.d.sync += started.eq(self.start)
        with m.If(started):
            m.d.sync += [
                word.eq(command.word0),
                valid_cols.eq(Cat(command.cols > col for col in range(self._cols))),
            ]
        with m.Elif(age[PostLane.WORD]):
            m.d.sync += word.eq(word + Mux(transposed, contract.COL_STEP, contract.ROW_STEP))
        row_word = word
        if self._fused:
            # The word of a row's second rescale is the same, but mixed later
            late_word = word
            for cycle in range(PostLane.WORD + 1, PostLane.LATE_WORD + 1):
                before = late_word
                late_word = Signal(32, name=f"word_{cycle}", reset_less=True)
                m.d.sync += late_word.eq(before)
            row = rows[PostLane.LATE_WORD]
            late = age[PostLane.LATE_WORD] & row.late_word
            row_word = Mux(late, late_word, word)
            transposed = Mux(late, row.transposed, transposed)
        m.d.comb += [
            self.lanes.row_word.eq(row_word),
            self.col_valid.eq(valid_cols),
            self.transposed.eq(transposed),
        ]

    def _banks(self, m: Module, age: Value, rows: list[SimpleNamespace]) -> None:
        banks, low = self.banks, slice(0, self._bank_bits)
        src, dst, value = rows[SRC_READ], rows[DST_READ], rows[PostLane.VALUE]
        # Owned in cycles 1 to VALUE
        own = Signal(ACC_BANKS)
        owners = [Mux(age[cycle], rows[cycle].uses, 0) for cycle in range(PostLane.VALUE)]
        m.d.sync += own.eq(reduce(or_, owners))
        m.d.comb += [banks.own.eq(own), banks.write_row.eq(value.dst[low])]
        for bank in range(ACC_BANKS):
            read_src = Signal(name=f"read_src_{bank}")
            read_dst = Signal(name=f"read_dst_{bank}")
            m.d.comb += [
                read_src.eq(age[SRC_READ] & src.reads & (self._bank(src.src) == bank)),
                read_dst.eq(age[DST_READ] & dst.adds & (self._bank(dst.dst) == bank)),
                banks.read[bank].eq(read_src | read_dst),
                banks.read_row[bank].eq(Mux(read_src, src.src[low], dst.dst[low])),
                banks.write[bank].eq(
                    age[PostLane.VALUE] & value.writes & (self._bank(value.dst) == bank)
                ),
            ]

    def _lanes(self, m: Module, age: Value, rows: list[SimpleNamespace]) -> None:
        lanes = self.lanes
        source, measured = rows[PostLane.SOURCE - 1], rows[PostLane.SOURCE]
        clipped, added = rows[PostLane.CLIPPED], rows[PostLane.DST_DATA]
        saturated, value = rows[PostLane.SATURATED], rows[PostLane.VALUE]
        amax_source = Signal()
        push, is_result = age[PostLane.VALUE] & value.sends, value.quantizes
        if self._fused:
            late = age[PostLane.QUANTIZED]
            push, is_result = (push & ~value.fused) | late, is_result | late
            m.d.comb += [
                lanes.late.eq(late),
                self.late_delayed_row.eq(late & rows[PostLane.QUANTIZED].late_delayed),
            ]
        m.d.comb += [
            lanes.from_stream.eq(~source.reads),
            lanes.src_bank.eq(self._bank(source.src)),
            lanes.sign.eq(source.sign),
            lanes.add.eq(added.adds | added.joins),
            lanes.add_stream.eq(added.joins),
            lanes.dst_bank.eq(self._bank(added.dst)),
            lanes.bias.eq(added.bias),
            lanes.negate.eq(added.negate),
            lanes.sat32.eq(saturated.sat32),
            lanes.sat16.eq(saturated.sat16),
            amax_source.eq(age[PostLane.SOURCE] & measured.amax & measured.quantizes),
            lanes.amax_source.eq(amax_source),
            lanes.amax_valid.eq(
                amax_source | (age[PostLane.VALUE] & value.amax & ~value.quantizes)
            ),
            self.push.eq(push),
            self.push_result.eq(is_result),
            self.sat_row.eq(age[PostLane.SATURATED]),
            self.status.eq(saturated.status),
            self.clip_row.eq(age[PostLane.CLIPPED] & clipped.clips),
            self.delayed_row.eq(age[PostLane.CLIPPED] & clipped.delayed),
            self.joined.eq(age[PostLane.DST_DATA] & added.joins),
            self.token.eq(age[PostLane.VALUE] & value.signal),
        ]
