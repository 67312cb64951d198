"""Tile commands to accumulators: sequencer, edge, array and accumulator lanes."""

from collections.abc import Hashable

from amaranth.hdl import Module, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora.config import ACC_BANKS
from systolora.rtl.accumulator import PATHS, AccumulatorLane, BankControl, one_bank
from systolora.rtl.array import SystolicArray
from systolora.rtl.edge import ArrayEdge
from systolora.rtl.flow import link
from systolora.rtl.layouts import TileLayout
from systolora.rtl.pe import PE
from systolora.rtl.placement import place
from systolora.rtl.sequencer import Sequencer

__all__ = ["TileEngine"]


class TileEngine(wiring.Component):
    """Executes tile commands on operand streams; the sums stay in its accumulator buffer.

    Structure only. A compute beat's sum can be read by the post-processor `sum_latency` cycles
    later in column 0 and one cycle later per column; a token comes when it can be in all.

    Members
    -------
    tile, act, wgt : command and operand streams (docs/core.md)
    banks, write_data[c], read_data[c][b] : the post-processor's side of the accumulator lanes
    bank_claimed, bank_busy, token : see Sequencer
    tokens_out : tiles with `signal` that have just finished: 0 to 2
    busy : commands are queued or in flight
    active, waits : a beat enters the array; a tile waits for the post-processor
    """

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        segments: int,
        operand_bits: int,
        psum_bits: int,
        acc_bits: int,
        acc_depth: int,
    ) -> None:
        self.design_key: Hashable = (
            rows, cols, segments, operand_bits, psum_bits, acc_bits, acc_depth,
        )  # fmt: skip
        self._rows, self._cols, self._segments = rows, cols, segments
        self._operand_bits, self._psum_bits = operand_bits, psum_bits
        self._acc_bits, self._acc_depth = acc_bits, acc_depth
        bank_bits = (acc_depth // ACC_BANKS - 1).bit_length()
        acc = signed(acc_bits)
        lines = data.ArrayLayout(data.ArrayLayout(8, max(rows, cols)), segments)
        super().__init__(
            {
                "tile": In(stream.Signature(TileLayout)),
                "act": In(stream.Signature(data.ArrayLayout(8, rows))),
                "wgt": In(stream.Signature(lines)),
                "banks": In(BankControl(bank_bits)),
                "write_data": In(acc).array(cols),
                "read_data": Out(acc).array(cols, ACC_BANKS),
                "bank_claimed": In(ACC_BANKS),
                "bank_busy": Out(ACC_BANKS),
                "token": In(1),
                "tokens_out": Out(range(len(PATHS) + 1)),
                "busy": Out(1),
                "active": Out(1),
                "waits": Out(1),
            }
        )

    @staticmethod
    def sum_latency(rows: int) -> int:
        """Cycles from a compute beat to its sum readable in column 0 of an array of `rows` rows."""
        return rows + ArrayEdge.LATENCY - 1 + AccumulatorLane.READABLE

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shape = {"rows": self._rows, "cols": self._cols, "segments": self._segments}
        sequencer = Sequencer(**shape, acc_depth=self._acc_depth)
        edge = ArrayEdge(**shape, operand_bits=self._operand_bits)
        array = SystolicArray(**shape, operand_bits=self._operand_bits, psum_bits=self._psum_bits)
        place(m, platform, "sequencer", sequencer)
        place(m, platform, "edge", edge)
        place(m, platform, "array", array)

        link(m, self.tile, sequencer.tile)
        m.d.comb += [
            sequencer.act_valid.eq(self.act.valid),
            self.act.ready.eq(sequencer.act_ready),
            sequencer.wgt_valid.eq(self.wgt.valid),
            self.wgt.ready.eq(sequencer.wgt_ready),
            edge.act.eq(self.act.payload),
            edge.wgt.eq(self.wgt.payload),
            sequencer.bank_claimed.eq(self.bank_claimed),
            self.bank_busy.eq(sequencer.bank_busy),
            sequencer.token.eq(self.token),
            self.busy.eq(sequencer.busy),
            self.active.eq(sequencer.compute_valid),
            self.waits.eq(sequencer.waits),
        ]
        for name in (
            "load_valid", "load_all", "load_left", "load_offset", "wgt_low",
            "compute_valid", "w_load", "clear", "ws", "capture", "act_low",
            "drain_valid", "drain_row",
        ):  # fmt: skip
            m.d.comb += getattr(edge, name).eq(getattr(sequencer, name))

        for row in range(self._rows):
            m.d.comb += [array.a[row].eq(edge.a[row]), array.ctl[row].eq(edge.ctl[row])]
            m.d.comb += [array.left[s][row].eq(edge.left[s][row]) for s in range(self._segments)]
        words = {"sum": sequencer.sums, "drain": sequencer.drains}
        for col in range(self._cols):
            m.d.comb += array.left_en[col].eq(edge.left_en[col])
            m.d.comb += [array.top[s][col].eq(edge.top[s][col]) for s in range(self._segments)]
            lane = AccumulatorLane(
                acc_bits=self._acc_bits, psum_bits=self._psum_bits, depth=self._acc_depth
            )
            place(m, platform, f"lane_{col}", lane)
            m.d.comb += [
                lane.sum_in.eq(words["sum"]),
                lane.drain_in.eq(words["drain"]),
                lane.sum.eq(array.s_out[col]),
                lane.drain.eq(array.d_out[col]),
                lane.banks.eq(self.banks),
                lane.write_data.eq(self.write_data[col]),
            ]
            m.d.comb += [
                self.read_data[col][bank].eq(lane.read_data[bank]) for bank in range(ACC_BANKS)
            ]
            words = {"sum": lane.sum_out, "drain": lane.drain_out}

        # The last lane's words, when their sums have become readable there.
        bank_bits = (self._acc_depth // ACC_BANKS - 1).bit_length()
        done: list[Value] = []
        signals: list[Value] = []
        for path, word in words.items():
            for stage in range(AccumulatorLane.READABLE - 1):
                register = Signal.like(word, name=f"finished_{path}_{stage}")
                m.d.sync += register.eq(word)
                word = register
            last = Signal(name=f"finished_{path}")
            m.d.comb += last.eq(word.valid & word.last)
            done.append(one_bank(last, word.address >> bank_bits))
            signals.append(last & word.signal)
        m.d.comb += [sequencer.done.eq(done[0] | done[1]), self.tokens_out.eq(sum(signals))]
        return m


assert PE.LATENCY + 1 == ArrayEdge.LATENCY, "the edge's latency counts the PE's pipeline"
