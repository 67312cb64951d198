"""Runs the post commands: row operations, scale and maximum registers."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.contract import Mode, Opcode, Quantize
from systolora.rtl.accumulator import BankControl
from systolora.rtl.layouts import InfoLayout, PostLayout
from systolora.rtl.placement import place
from systolora.rtl.post_lane import LaneControl, PostLane
from systolora.rtl.rescale import Limit, RescaleControl, control_layout
from systolora.rtl.row_pipeline import RowPipeline
from systolora.rtl.scale_unit import Operation, ScaleUnit
from systolora.rtl.types import ScaleLayout

__all__ = ["PostControl"]

AMAX_BITS = contract.width(contract.INFO, "amax")
SCALE_BITS = sum(field.width for field in contract.SCALE)
SCALE_M = contract.width(contract.SCALE, "m")


def _checked(bits: Value) -> Value:
    """The bits of a Scale; what is none, because its m is not normalized, becomes zero."""
    return Mux(bits[SCALE_M - 1], bits, 0)


class PostControl(wiring.Component):
    """Executes one post command after the other (docs/core.md).

    A row operation issues one row per cycle, as long as the output queue has a place for it and
    `RowPipeline` lets it in; nothing in the pipeline ever waits. The next row operation is taken
    with its last row and follows two cycles later; any other command waits until the pipeline is
    empty.

    Parameters
    ----------
    fused : row operations may quantize their values
    cols : columns C
    acc_bits : accumulator width
    bank_bits : width of an accumulator row's address in its bank; the bits above it are the bank
    queue_depth, beats_depth : places of the output queue and of the input queue

    Members
    -------
    post, info : command and read-back streams
    beat_valid, beat_ready : handshake of the input queue; its beat goes to the lanes directly
    beat_level : beats that the input queue holds
    beat_0, beat_1 : lanes 0 and 1 of that beat, for the registers that are loaded from it
    sticky, sticky_load, sticky_value : the status bits, and what replaces them
    waits_output : a row waits for a place in the output queue
    lanes, rescale, quantize, banks, col_valid, transposed : to all lanes; quantize with `fused`
    push, push_result : a row leaves the lanes in this cycle; it is a quantized one
    pop : the output queue gave a row away
    amax_in : maximum shifted out of the last lane
    sat_row, clip_row : the lanes' `saturated` / `clipped` bits count in this cycle
    status : contract.Status that `sat_row` counts for; `clip_row` is for acc_sat
    delayed_row, late_delayed_row : `clipped` counts for clip_delayed; `late_clipped` does
    scale_range : a Scale operation saturated its exponent
    bank_claimed, bank_busy : see Sequencer
    tokens, token_out : tokens that come from the tile queue, up to two at once; one to it
    busy : a command is in work
    """

    def __init__(
        self,
        *,
        cols: int,
        acc_bits: int,
        bank_bits: int,
        queue_depth: int,
        beats_depth: int,
        fused: bool,
    ) -> None:
        self.design_key: Hashable = (cols, acc_bits, bank_bits, queue_depth, beats_depth, fused)
        self._fused = fused
        self._cols, self._acc_bits = cols, acc_bits
        self._bank_bits, self._queue_depth = bank_bits, queue_depth
        self._beats_depth = beats_depth
        late = {"quantize": Out(control_layout(acc_bits)), "late_delayed_row": Out(1)}
        super().__init__(
            {
                "post": In(stream.Signature(PostLayout(fused))),
                "info": Out(stream.Signature(InfoLayout)),
                "beat_valid": In(1),
                "beat_ready": Out(1),
                "beat_level": In(range(beats_depth + 1)),
                "beat_0": In(acc_bits),
                "beat_1": In(contract.width(contract.SCALE, "e")),
                "sticky": In(len(contract.STICKY)),
                "sticky_load": Out(1),
                "sticky_value": Out(len(contract.STICKY)),
                "waits_output": Out(1),
                "lanes": Out(LaneControl(fused)),
                "rescale": Out(control_layout(acc_bits)),
                "banks": Out(BankControl(bank_bits)),
                "col_valid": Out(cols),
                "transposed": Out(1),
                "push": Out(1),
                "push_result": Out(1),
                "pop": In(1),
                "amax_in": In(acc_bits),
                "sat_row": Out(1),
                "clip_row": Out(1),
                "delayed_row": Out(1),
                "status": Out(contract.width(contract.POST, "status")),
                "scale_range": Out(1),
                "bank_claimed": Out(ACC_BANKS),
                "bank_busy": In(ACC_BANKS),
                "tokens": In(range(3)),
                "token_out": Out(1),
                "busy": Out(1),
                **(late if fused else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command = Signal(PostLayout(self._fused), reset_less=True)
        rows = RowPipeline(cols=self._cols, bank_bits=self._bank_bits, fused=self._fused)
        place(m, platform, "row_pipeline", rows)
        lanes = self.lanes
        m.d.comb += [
            rows.command.eq(command),
            lanes.eq(rows.lanes),
            self.banks.eq(rows.banks),
            self.col_valid.eq(rows.col_valid),
            self.transposed.eq(rows.transposed),
            self.push.eq(rows.push),
            self.push_result.eq(rows.push_result),
            self.sat_row.eq(rows.sat_row),
            self.status.eq(rows.status),
            self.clip_row.eq(rows.clip_row),
        ]
        scales = Memory(shape=ScaleLayout, depth=contract.SCALE_REGISTERS, init=[])
        amaxes = Memory(shape=AMAX_BITS, depth=contract.AMAX_REGISTERS, init=[])
        m.submodules.scales, m.submodules.amaxes = scales, amaxes
        scale_a = scales.read_port(domain="comb")
        scale_b = scales.read_port(domain="comb")
        amax_a = amaxes.read_port(domain="comb")
        amax_b = amaxes.read_port(domain="comb")
        scale_write, amax_write = scales.write_port(), amaxes.write_port()
        collects = Signal()
        m.d.comb += [
            collects.eq(command.opcode == Opcode.COLLECT),
            scale_a.addr.eq(command.src_a),
            scale_b.addr.eq(command.src_b),
            amax_a.addr.eq(Mux(collects, command.dst, command.src_a)),
            scale_write.addr.eq(command.dst),
            amax_b.addr.eq(command.src_b),
            amax_write.addr.eq(command.dst),
        ]

        unit = ScaleUnit()
        place(m, platform, "scale_unit", unit)
        request = unit.request.payload
        m.d.comb += [request.a.eq(scale_a.data), request.b.eq(scale_b.data)]
        m.d.comb += request.n.eq(amax_a.data)
        with m.Switch(command.opcode):
            with m.Case(Opcode.SCALE_MUL):
                m.d.comb += request.op.eq(Operation.MUL)
            with m.Case(Opcode.SCALE_DIV):
                m.d.comb += request.op.eq(Operation.DIV)
            with m.Default():
                m.d.comb += request.op.eq(Operation.FROM_INT)

        # A plain copy is a rescale by one, which is exact and never saturates in full width.
        control = RescaleControl(self._acc_bits)
        place(m, platform, "rescale_control", control)
        factor = Signal(ScaleLayout, reset_less=True)
        limit = Signal(Limit, reset_less=True)
        stochastic = Signal(reset_less=True)
        widest = Limit.ACC48 if self._acc_bits == 48 else Limit.ACC32
        dithers = command.stochastic & (command.mode != Mode.RAW)
        if self._fused:
            dithers &= ~command.quantize[1]
            self._quantize(m, platform, command, rows.start, scale_b.data)
        with m.If(rows.start):
            m.d.sync += [
                factor.eq(scale_a.data),
                limit.eq(widest),
                stochastic.eq(dithers),
            ]
            with m.Switch(command.mode):
                with m.Case(Mode.RAW):
                    m.d.sync += [factor.m.eq(1 << 15), factor.e.eq(0)]
                with m.Case(Mode.ACC), m.If(command.limit != contract.Limit.ACC):
                    m.d.sync += limit.eq(Limit.ACC32)
                with m.Case(Mode.INT8):
                    m.d.sync += limit.eq(Limit.INT8)
                with m.Case(Mode.INT16):
                    if self._acc_bits == 48:
                        m.d.sync += limit.eq(Limit.INT16)
        m.d.comb += [
            control.m.eq(factor.m),
            control.e.eq(factor.e),
            control.limit.eq(limit),
            control.stochastic.eq(stochastic),
            self.rescale.eq(control.controls),
        ]

        # Places in the output queue that no row in flight will take
        credits = Signal(range(self._queue_depth + 1), init=self._queue_depth)
        taken = rows.issue & rows.sends
        with m.If(taken & ~self.pop):
            m.d.sync += credits.eq(credits - 1)
        with m.Elif(~taken & self.pop):
            m.d.sync += credits.eq(credits + 1)

        tokens = Signal(range(contract.TOKENS_MAX + 1))
        accept, fetch = Signal(), Signal()
        head = self.post.payload
        m.d.comb += accept.eq(self.post.valid & self.post.ready)
        consumed = accept & head.wait
        m.d.sync += tokens.eq(tokens + self.tokens - consumed)

        # A row from the buffer that is joined with a beat needs it later, in cycle DST_DATA: it is
        # issued when the queue holds a beat for it that no earlier row will take. Beats are taken
        # in order: a row that starts as a beat waits for all of those.
        reserved = Signal(range(self._beats_depth + 1))
        has_beat, takes = Signal(), Signal()
        m.d.sync += reserved.eq(reserved + (rows.issue & rows.joins) - rows.joined)
        with m.If(~rows.reads):
            m.d.comb += has_beat.eq(self.beat_valid & (reserved == 0))
        with m.Else():
            m.d.comb += has_beat.eq(~rows.joins | (self.beat_level > reserved))
        m.d.comb += self.beat_ready.eq(takes | rows.joined)

        rows_left = Signal(command.rows.shape(), reset_less=True)
        granted = Signal()
        m.d.comb += [
            rows.last.eq(rows_left == 1),
            granted.eq((rows.uses & self.bank_busy) == 0),
        ]
        lane = Signal(range(self._cols), reset_less=True)
        highest = Signal(AMAX_BITS, reset_less=True)
        info = self.info.payload
        recorded = Signal()
        fallback = Signal()  # the record of a delayed tensor was 0: it is not delayed yet
        m.d.comb += [
            recorded.eq(amax_a.data != 0),
            self.sticky_value.eq(self.beat_0),
            self.delayed_row.eq(rows.delayed_row & ~fallback),
            self.bank_claimed.eq(rows.banks.own),
            self.token_out.eq(rows.token),
        ]
        if self._fused:
            m.d.comb += self.late_delayed_row.eq(rows.late_delayed_row & ~fallback)
        with m.If(fetch):
            m.d.sync += command.eq(head)

        with m.FSM() as fsm:
            m.d.comb += [
                self.busy.eq(~fsm.ongoing("FETCH") | rows.busy),
                self.post.ready.eq(fetch & (~head.wait | (tokens != 0))),
            ]
            with m.State("FETCH"):
                m.d.comb += fetch.eq(1)
                with m.If(accept):
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.d.sync += [rows_left.eq(command.rows), lane.eq(self._cols - 1)]
                with m.If(command.opcode == Opcode.ROWS):
                    m.d.comb += rows.start.eq(1)
                    m.next = "ISSUE"
                with m.Elif(~rows.busy):
                    m.next = "FINISH"
                    with m.Switch(command.opcode):
                        with m.Case(Opcode.BIAS):
                            m.next = "BIAS"
                        with m.Case(Opcode.COLLECT):
                            m.d.sync += highest.eq(amax_a.data)
                            m.next = "COLLECT"
                        with m.Case(Opcode.AMAX_SET):
                            m.d.comb += [amax_write.en.eq(1), amax_write.data.eq(command.imm)]
                        with m.Case(Opcode.SCALE_SET):
                            m.d.comb += [
                                scale_write.en.eq(1),
                                scale_write.data.eq(_checked(command.imm[:SCALE_BITS])),
                            ]
                        with m.Case(Opcode.AMAX_SELECT):
                            m.d.comb += [
                                amax_write.en.eq(1),
                                amax_write.data.eq(Mux(recorded, amax_a.data, amax_b.data)),
                            ]
                            m.d.sync += fallback.eq(~recorded)
                        with m.Case(Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD):
                            m.next = "RECEIVE"
                        with m.Case(Opcode.SCALE_MUL, Opcode.SCALE_DIV, Opcode.SCALE_AMAX):
                            m.next = "REQUEST"
                        with m.Case(Opcode.AMAX_READ, Opcode.SCALE_READ, Opcode.STICKY_READ):
                            m.next = "ANSWER"
            with m.State("ISSUE"):
                m.d.comb += [
                    self.bank_claimed.eq(rows.banks.own | rows.uses),
                    self.waits_output.eq(granted & rows.sends & (credits == 0)),
                    rows.issue.eq(
                        granted & has_beat & (~rows.sends | (credits != 0)) & ~rows.blocked
                    ),
                    takes.eq(rows.issue & ~rows.reads),
                    fetch.eq(rows.issue & rows.last),
                ]
                with m.If(rows.issue):
                    m.d.sync += rows_left.eq(rows_left - 1)
                with m.If(fetch):
                    m.next = "FETCH"
                    with m.If(accept):
                        m.next = "DECODE"
            with m.State("BIAS"):
                # The beat is one register deep in the lanes when `bias_load` comes
                m.d.comb += takes.eq(1)
                with m.If(self.beat_valid):
                    m.next = "BIAS_LOAD"
            with m.State("BIAS_LOAD"):
                m.d.comb += lanes.bias_load.eq(1)
                m.next = "FINISH"
            with m.State("RECEIVE"):
                m.d.comb += takes.eq(1)
                with m.If(self.beat_valid):
                    m.next = "FINISH"
                    with m.Switch(command.opcode):
                        with m.Case(Opcode.SCALE_LOAD):
                            m.d.comb += [
                                scale_write.en.eq(1),
                                scale_write.data.eq(_checked(Cat(self.beat_0[:16], self.beat_1))),
                            ]
                        with m.Case(Opcode.AMAX_LOAD):
                            m.d.comb += [amax_write.en.eq(1), amax_write.data.eq(self.beat_0)]
                        with m.Default():
                            m.d.comb += self.sticky_load.eq(1)
            with m.State("COLLECT"):
                m.d.comb += lanes.collect.eq(1)
                m.d.sync += lane.eq(lane - 1)
                with m.If(self.amax_in > highest):
                    m.d.sync += highest.eq(self.amax_in)
                with m.If(lane == 0):
                    m.next = "COLLECTED"
            with m.State("COLLECTED"):
                m.d.comb += [amax_write.en.eq(1), amax_write.data.eq(highest)]
                m.next = "FINISH"
            with m.State("REQUEST"):
                m.d.comb += unit.request.valid.eq(1)
                with m.If(unit.request.ready):
                    m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += [
                    unit.response.ready.eq(1),
                    scale_write.data.eq(unit.response.payload.scale),
                ]
                with m.If(unit.response.valid):
                    m.d.comb += [
                        scale_write.en.eq(1),
                        self.scale_range.eq(unit.response.payload.range),
                    ]
                    m.next = "FINISH"
            with m.State("ANSWER"):
                m.d.comb += self.info.valid.eq(1)
                with m.If(command.opcode == Opcode.AMAX_READ):
                    m.d.comb += info.amax.eq(amax_a.data)
                with m.Elif(command.opcode == Opcode.STICKY_READ):
                    m.d.comb += info.amax.eq(self.sticky)
                with m.Else():
                    m.d.comb += [info.m.eq(scale_a.data.m), info.e.eq(scale_a.data.e)]
                with m.If(self.info.ready):
                    m.next = "FINISH"
            with m.State("FINISH"):
                m.d.comb += self.token_out.eq(command.signal)
                m.next = "FETCH"
        return m

    def _quantize(
        self, m: Module, platform: object, command: Signal, start: Signal, scale: Value
    ) -> None:
        """Controls of the second rescale: the command's, as much later as its rows get there."""
        control = RescaleControl(self._acc_bits)
        place(m, platform, "quantize_control", control)
        shape = data.StructLayout({"scale": ScaleLayout, "limit": Limit, "stochastic": 1})
        late = Signal(shape, name="quantize_0", reset_less=True)
        with m.If(start):
            m.d.sync += [
                late.scale.eq(scale),
                late.limit.eq(Limit.INT8),
                late.stochastic.eq(command.stochastic),
            ]
            if self._acc_bits == 48:
                with m.If(command.quantize == Quantize.INT16):
                    m.d.sync += late.limit.eq(Limit.INT16)
        for cycle in range(1, PostLane.VALUE - PostLane.SOURCE + 1):
            before = late
            late = Signal(shape, name=f"quantize_{cycle}", reset_less=True)
            m.d.sync += late.eq(before)
        m.d.comb += [
            control.m.eq(late.scale.m),
            control.e.eq(late.scale.e),
            control.limit.eq(late.limit),
            control.stochastic.eq(late.stochastic),
            self.quantize.eq(control.controls),
        ]
