"""The array's edge: skews the operands and makes the windows of every row and column."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolora.rtl.layouts import PEControl

__all__ = ["ArrayEdge"]


class ArrayEdge(wiring.Component):
    """Turns beats (a row of bytes, a set of lines) into the skewed, windowed inputs of the array.

    A load beat that fires in cycle t reaches PE (r, c) in cycle t + 1 + r + c; a compute beat's
    `w_load` likewise, its operand and sum control one cycle later (so that a tile's first row
    meets the tile). Windows of a load are made here, per row or column: position k of a segment
    takes the beats 0 .. L - 1 - k, so that every PE keeps its own element. Nothing stalls: a
    cycle without a beat sends zeros and closed windows.

    Members
    -------
    load_valid, load_all, load_left, load_offset, wgt, wgt_low
        A load beat: every row takes it (OS, line 0 goes to all segments) or the windows decide;
        from the left; its number within the tile; S lines of bytes; bytes are unsigned.
    compute_valid, w_load, clear, ws, capture, act, act_low
        A compute beat: swap the loaded tile in, PEControl bits, the last one of an OS tile, bytes.
    drain_valid, drain_row
        A row of sums leaves the drain chain one cycle later: shift. The row's number.
    a, ctl, top, left, left_en
        To SystolicArray.
    """

    #: Cycles from a compute beat to the sum at the bottom of column 0 are rows + this.
    LATENCY = 3

    def __init__(self, *, rows: int, cols: int, segments: int, operand_bits: int) -> None:
        self.design_key: Hashable = (rows, cols, segments, operand_bits)
        self._rows, self._cols, self._segments = rows, cols, segments
        self._operand_bits = operand_bits
        self._top_load, self._left_load = rows // segments, cols // segments
        lanes = max(rows, cols)
        operand = signed(operand_bits)
        super().__init__(
            {
                "load_valid": In(1),
                "load_all": In(1),
                "load_left": In(1),
                "load_offset": In(range(max(self._top_load, self._left_load))),
                "wgt": In(data.ArrayLayout(data.ArrayLayout(8, lanes), segments)),
                "wgt_low": In(1),
                "compute_valid": In(1),
                "w_load": In(1),
                "clear": In(1),
                "ws": In(1),
                "capture": In(1),
                "act": In(data.ArrayLayout(8, rows)),
                "act_low": In(1),
                "drain_valid": In(1),
                "drain_row": In(range(rows)),
                "a": Out(operand).array(rows),
                "ctl": Out(PEControl).array(rows),
                "top": Out(operand).array(segments, cols),
                "left": Out(operand).array(segments, rows),
                "left_en": Out(1).array(cols),
            }
        )

    def _extend(self, byte, low):
        """A byte plane as a signed operand: unsigned bytes need the ninth bit."""
        bits = [byte]
        bits += [byte[7] & ~low] * (self._operand_bits - 8)
        return Cat(*bits)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._skew_act(m)
        self._skew_wgt(m)
        self._row_windows(m)
        self._column_windows(m)
        return m

    def _delay(self, m: Module, name: str, value, depth: int) -> Signal:
        """A chain of `depth` operand registers; stage n (1 first) is the n-th operand of it."""
        chain = Signal(self._operand_bits * depth, name=name, reset_less=True)
        m.d.sync += chain.eq(Cat(value, chain))
        return chain

    def _stage(self, chain: Signal, stage: int):
        return chain[(stage - 1) * self._operand_bits : stage * self._operand_bits].as_signed()

    def _skew_act(self, m: Module) -> None:
        for row in range(self._rows):
            operand = Signal(self._operand_bits, name=f"act_{row}")
            extended = self._extend(self.act[row], self.act_low)
            m.d.comb += operand.eq(Mux(self.compute_valid, extended, 0))
            chain = self._delay(m, f"act_skew_{row}", operand, row + 2)
            m.d.comb += self.a[row].eq(self._stage(chain, row + 2))

    def _skew_wgt(self, m: Module) -> None:
        # One chain serves both edges, since a tile loads from one of them; for R != C it has a tap
        # for each.
        for segment in range(self._segments):
            for lane in range(max(self._rows, self._cols)):
                operand = Signal(self._operand_bits, name=f"wgt_{segment}_{lane}")
                own, first = self.wgt[segment][lane], self.wgt[0][lane]
                byte = Signal(8, name=f"byte_{segment}_{lane}")
                m.d.comb += byte.eq(Mux(self.load_all, first, own))
                m.d.comb += operand.eq(self._extend(byte, self.wgt_low))
                top = 1 + segment * self._top_load + lane if lane < self._cols else 0
                left = 1 + segment * self._left_load + lane if lane < self._rows else 0
                chain = self._delay(m, f"wgt_skew_{segment}_{lane}", operand, max(top, left))
                if top:
                    m.d.comb += self.top[segment][lane].eq(self._stage(chain, top))
                if left:
                    m.d.comb += self.left[segment][lane].eq(self._stage(chain, left))

    def _row_windows(self, m: Module) -> None:
        layout = data.StructLayout(
            {
                "b_valid": 1,
                "b_all": 1,
                "offset": self.load_offset.shape(),
                "w_load": 1,
                "clear": 1,
                "ws": 1,
                "d_load": 1,
            }
        )
        # The sum control acts one cycle after the swap, the capture three (product, sum, one
        # past the last).
        clear_q, ws_q = Signal(), Signal()
        capture_q = Signal(3)
        m.d.sync += [
            clear_q.eq(self.clear),
            ws_q.eq(self.ws),
            capture_q.eq(Cat(self.capture & self.compute_valid, capture_q)),
        ]
        previous = Signal(layout, name="row_entry")
        m.d.comb += [
            previous.b_valid.eq(self.load_valid & ~self.load_left),
            previous.b_all.eq(self.load_all),
            previous.offset.eq(self.load_offset),
            previous.w_load.eq(self.w_load & self.compute_valid),
            previous.clear.eq(clear_q),
            previous.ws.eq(ws_q),
            previous.d_load.eq(capture_q[2]),
        ]
        for row in range(self._rows):
            word = Signal(layout, name=f"row_{row}")
            m.d.sync += word.eq(previous)
            d_shift = Signal(name=f"d_shift_{row}")
            # Row r takes the r rows above it: all but the first R - r of the window, which are
            # the highest row numbers.
            if row:
                shifts = self.drain_row > self._rows - 1 - row
                m.d.sync += d_shift.eq(self.drain_valid & shifts)
            ends = self._top_load - row % self._top_load
            ctl = self.ctl[row]
            m.d.comb += [
                ctl.b_shift.eq(word.b_valid & (word.b_all | (word.offset < ends))),
                ctl.w_load.eq(word.w_load),
                ctl.clear.eq(word.clear),
                ctl.ws.eq(word.ws),
                ctl.d_load.eq(word.d_load),
                ctl.d_shift.eq(d_shift),
            ]
            previous = word

    def _column_windows(self, m: Module) -> None:
        layout = data.StructLayout({"valid": 1, "offset": self.load_offset.shape()})
        previous = Signal(layout, name="column_entry")
        m.d.comb += [
            previous.valid.eq(self.load_valid & self.load_left),
            previous.offset.eq(self.load_offset),
        ]
        for col in range(self._cols):
            word = Signal(layout, name=f"column_{col}")
            m.d.sync += word.eq(previous)
            ends = self._left_load - col % self._left_load
            m.d.comb += self.left_en[col].eq(word.valid & (word.offset < ends))
            previous = word
