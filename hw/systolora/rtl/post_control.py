"""Runs the post commands: row operations, scale and maximum registers."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.contract import Mode, Opcode, Source
from systolora.rtl.accumulator import BankControl
from systolora.rtl.layouts import InfoLayout, PostLayout
from systolora.rtl.placement import place
from systolora.rtl.post_lane import LaneControl, PostLane
from systolora.rtl.rescale import Limit, RescaleControl, control_layout
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

    A row operation issues one row per cycle (every second one where source and destination share
    a bank) as long as the output queue has a place for it, and ends when the last row has left
    the lanes' pipeline; nothing in the pipeline ever waits.

    Parameters
    ----------
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
    lanes, rescale, banks, col_valid, transposed : to all lanes
    push, push_result : a row leaves the lanes in this cycle; it is a quantized one
    pop : the output queue gave a row away
    amax_in : maximum shifted out of the last lane
    sat_row, clip_row : the lanes' `saturated` / `clipped` bits count in this cycle
    status : contract.Status they count for
    delayed_row : `clipped` counts for clip_delayed
    scale_range : a Scale operation saturated its exponent
    bank_claimed, bank_busy : see Sequencer
    tokens, token_out : tokens that come from the tile queue, up to two at once; one to it
    busy : a command is in work
    """

    def __init__(
        self, *, cols: int, acc_bits: int, bank_bits: int, queue_depth: int, beats_depth: int
    ) -> None:
        self.design_key: Hashable = (cols, acc_bits, bank_bits, queue_depth, beats_depth)
        self._cols, self._acc_bits = cols, acc_bits
        self._bank_bits, self._queue_depth = bank_bits, queue_depth
        self._beats_depth = beats_depth
        super().__init__(
            {
                "post": In(stream.Signature(PostLayout)),
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
                "lanes": Out(LaneControl),
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
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        command = Signal(PostLayout, reset_less=True)
        pipeline = Signal(PostLane.DONE + 1)
        issue = Signal()
        self._fallback = Signal()  # the record of a delayed tensor was 0: it is not delayed yet
        start = Signal()  # a row operation's counters are loaded
        self._rows(m, command, issue, start, pipeline)
        self._registers(m, platform, command, issue, start, pipeline)
        return m

    def _rows(self, m: Module, command, issue: Signal, start: Signal, pipeline: Signal) -> None:
        """What travels with the rows; `pipeline[n]` is 1 in cycle n of a row."""
        lanes, banks = self.lanes, self.banks
        bank_bits = self._bank_bits
        bank = slice(bank_bits, bank_bits + len(lanes.src_bank))
        age = Cat(issue, pipeline)
        m.d.sync += pipeline.eq(age)

        quantizes = Signal()
        adds, has_bias, writes, negates = Signal(), Signal(), Signal(), Signal()
        joins = Signal()
        reads = Signal()
        m.d.comb += [
            quantizes.eq((command.mode == Mode.INT8) | (command.mode == Mode.INT16)),
            adds.eq(command.add & ~quantizes),
            joins.eq(adds & command.add_stream),
            has_bias.eq(command.bias & ~quantizes),
            writes.eq(command.write & ~quantizes),
            negates.eq(command.negate & ~quantizes),
            reads.eq(command.source == Source.BUFFER),
        ]

        # Rows: the source's is read in cycle 1, the destination's a cycle before DST_DATA, and
        # written in cycle VALUE.
        src = Signal(bank_bits, reset_less=True)
        dst_read = Signal(bank_bits, reset_less=True)
        dst_write = Signal(bank_bits, reset_less=True)
        src_bank = Signal(range(ACC_BANKS), reset_less=True)
        dst_bank = Signal(range(ACC_BANKS), reset_less=True)
        word = Signal(32, reset_less=True)
        with m.If(start):
            m.d.sync += [
                src.eq(command.src_base),
                src_bank.eq(command.src_base[bank]),
                dst_read.eq(command.dst_base),
                dst_write.eq(command.dst_base),
                dst_bank.eq(command.dst_base[bank]),
                word.eq(command.word0),
            ]
        with m.Else():
            with m.If(age[1]):
                m.d.sync += src.eq(src + 1)
            with m.If(age[PostLane.DST_DATA - 1]):
                m.d.sync += dst_read.eq(dst_read + 1)
            with m.If(age[PostLane.VALUE]):
                m.d.sync += dst_write.eq(dst_write + 1)
            with m.If(age[PostLane.WORD]):
                step = Mux(command.transposed, contract.COL_STEP, contract.ROW_STEP)
                m.d.sync += word.eq(word + step)
        for index in range(ACC_BANKS):
            read_src = Signal(name=f"read_src_{index}")
            read_dst = Signal(name=f"read_dst_{index}")
            m.d.comb += [
                read_src.eq(age[1] & reads & (src_bank == index)),
                read_dst.eq(age[PostLane.DST_DATA - 1] & adds & ~joins & (dst_bank == index)),
                banks.read[index].eq(read_src | read_dst),
                banks.read_row[index].eq(Mux(read_src, src, dst_read)),
                banks.write[index].eq(age[PostLane.VALUE] & writes & (dst_bank == index)),
            ]
        m.d.comb += banks.write_row.eq(dst_write)

        valid_cols = Signal(self._cols, reset_less=True)
        with m.If(start):
            m.d.sync += valid_cols.eq(Cat(command.cols > col for col in range(self._cols)))
        m.d.comb += [
            self.col_valid.eq(valid_cols),
            self.transposed.eq(command.transposed),
            lanes.from_stream.eq(~reads),
            lanes.src_bank.eq(src_bank),
            lanes.dst_bank.eq(dst_bank),
            lanes.add.eq(adds),
            lanes.add_stream.eq(joins),
            lanes.bias.eq(has_bias),
            lanes.sat32.eq((command.limit == contract.Limit.ACC32) & (adds | has_bias | negates)),
            lanes.sat16.eq((command.limit == contract.Limit.INT16) & ~quantizes),
            lanes.negate.eq(negates),
            lanes.sign.eq(command.sign),
            lanes.amax_source.eq(quantizes),
            lanes.row_word.eq(word),
            lanes.amax_valid.eq(
                command.amax & Mux(quantizes, age[PostLane.SOURCE], age[PostLane.VALUE])
            ),
            self.push.eq(age[PostLane.VALUE] & (quantizes | command.emit)),
            self.push_result.eq(quantizes),
            self.sat_row.eq(age[PostLane.SATURATED]),
            self.clip_row.eq(age[PostLane.CLIPPED] & (command.mode == Mode.ACC)),
            self.status.eq(command.status),
            self.delayed_row.eq(
                age[PostLane.CLIPPED] & quantizes & command.delayed & ~self._fallback
            ),
        ]

    def _registers(
        self, m: Module, platform: object, command, issue: Signal, start: Signal, pipeline: Signal
    ) -> None:
        lanes = self.lanes
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
        widest = Limit.ACC48 if self._acc_bits == 48 else Limit.ACC32
        with m.If(start):
            m.d.sync += [factor.eq(scale_a.data), limit.eq(widest)]
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
            control.stochastic.eq(command.stochastic & (command.mode != Mode.RAW)),
            self.rescale.eq(control.controls),
        ]

        # Places in the output queue that no row in flight will take
        credits = Signal(range(self._queue_depth + 1), init=self._queue_depth)
        sends = Signal()
        m.d.comb += sends.eq(command.emit | command.mode[1])
        taken = issue & sends
        with m.If(taken & ~self.pop):
            m.d.sync += credits.eq(credits - 1)
        with m.Elif(~taken & self.pop):
            m.d.sync += credits.eq(credits + 1)

        tokens = Signal(range(contract.TOKENS_MAX + 1))
        accept = Signal()
        head = self.post.payload
        m.d.comb += accept.eq(self.post.valid & self.post.ready)
        consumed = accept & head.wait
        m.d.sync += tokens.eq(tokens + self.tokens - consumed)

        uses = Signal(ACC_BANKS)
        bank_bits = self._bank_bits
        src_bank, dst_bank = Signal(range(ACC_BANKS)), Signal(range(ACC_BANKS))
        from_buffer, to_buffer, adds_rows = Signal(), Signal(), Signal()
        m.d.comb += [
            src_bank.eq(command.src_base >> bank_bits),
            dst_bank.eq(command.dst_base >> bank_bits),
            from_buffer.eq(command.source == Source.BUFFER),
            adds_rows.eq(command.add & ~command.add_stream & ~command.mode[1]),
            to_buffer.eq(adds_rows | (command.write & ~command.mode[1])),
        ]
        for bank in range(ACC_BANKS):
            m.d.comb += uses[bank].eq(
                (from_buffer & (src_bank == bank)) | (to_buffer & (dst_bank == bank))
            )
        alternate = Signal()
        m.d.comb += alternate.eq(from_buffer & adds_rows & (src_bank == dst_bank))

        # A row from the buffer that is joined with a beat needs it later, in cycle DST_DATA: it is
        # issued when the queue holds a beat for it that no earlier row will take.
        joins, reserved = Signal(), Signal(range(self._beats_depth + 1))
        joined, has_beat, takes = Signal(), Signal(), Signal()
        m.d.comb += [
            joins.eq(from_buffer & command.add & command.add_stream & ~command.mode[1]),
            joined.eq(joins & pipeline[PostLane.DST_DATA - 1]),
            has_beat.eq(Mux(joins, self.beat_level > reserved, self.beat_valid)),
            self.beat_ready.eq(takes | joined),
        ]
        m.d.sync += reserved.eq(reserved + (issue & joins) - joined)

        rows_left = Signal(command.rows.shape(), reset_less=True)
        pause = Signal()
        lane = Signal(range(self._cols), reset_less=True)
        highest = Signal(AMAX_BITS, reset_less=True)
        info = self.info.payload
        recorded = Signal()
        m.d.comb += [
            recorded.eq(amax_a.data != 0),
            self.sticky_value.eq(self.beat_0),
        ]

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("FETCH"))
            with m.State("FETCH"):
                m.d.comb += self.post.ready.eq(~head.wait | (tokens != 0))
                m.d.sync += command.eq(head)
                with m.If(accept):
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.next = "FINISH"
                m.d.sync += [pause.eq(0), lane.eq(self._cols - 1)]
                m.d.comb += start.eq(command.opcode == Opcode.ROWS)
                with m.Switch(command.opcode):
                    with m.Case(Opcode.ROWS):
                        m.d.sync += rows_left.eq(command.rows)
                        m.next = "CLAIM"
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
                        m.d.sync += self._fallback.eq(~recorded)
                    with m.Case(Opcode.SCALE_LOAD, Opcode.AMAX_LOAD, Opcode.STICKY_LOAD):
                        m.next = "RECEIVE"
                    with m.Case(Opcode.SCALE_MUL, Opcode.SCALE_DIV, Opcode.SCALE_AMAX):
                        m.next = "REQUEST"
                    with m.Case(Opcode.AMAX_READ, Opcode.SCALE_READ, Opcode.STICKY_READ):
                        m.next = "ANSWER"
            with m.State("CLAIM"):
                m.d.comb += self.bank_claimed.eq(uses)
                with m.If((uses & self.bank_busy) == 0):
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += [
                    self.waits_output.eq(sends & (credits == 0)),
                    self.bank_claimed.eq(uses),
                    self.banks.own.eq(uses),
                    takes.eq(~from_buffer & (~sends | (credits != 0))),
                    issue.eq(
                        ((from_buffer & ~joins) | has_beat)
                        & (~sends | (credits != 0))
                        & ~(alternate & pause)
                    ),
                ]
                # Every second cycle, not every second cycle that could issue: a row's read of its
                # destination, an odd number of cycles later, must never meet a younger row's
                # read of its source.
                m.d.sync += pause.eq(~pause)
                with m.If(issue):
                    m.d.sync += rows_left.eq(rows_left - 1)
                    with m.If(rows_left == 1):
                        m.next = "FLUSH"
            with m.State("FLUSH"):
                m.d.comb += [self.bank_claimed.eq(uses), self.banks.own.eq(uses)]
                with m.If(pipeline == 0):
                    m.next = "FINISH"
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
