"""The Core: tile engine, post-processor lanes and their control, behind streams."""

from collections.abc import Hashable

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora.contract import Status
from systolora.rtl.flow import link
from systolora.rtl.layouts import InfoLayout, PostLayout, TileLayout
from systolora.rtl.output_queue import OutputQueue
from systolora.rtl.placement import place
from systolora.rtl.post_control import PostControl
from systolora.rtl.post_lane import PostLane
from systolora.rtl.rescale import Rescale
from systolora.rtl.scale_unit import ScaleUnit
from systolora.rtl.tile_engine import TileEngine

__all__ = ["Core"]


class Core(wiring.Component):
    """Multiplies tiles and post-processes sums; the contract is docs/core.md.

    Structure only: `TileEngine` fills the accumulator buffer, `PostControl` with C `PostLane`s
    empties it; their two command queues are ordered by tokens.

    Members
    -------
    tile, post : command streams
    act, wgt, acc_in : operand streams
    acc_out, result, info : result streams
    sticky, sticky_clear : status bits in the order of contract.STICKY, set until cleared
    busy : commands are queued or in flight
    array_active : a beat enters the array
    waits_post, waits_output : a tile waits for the post-processor (its token, or its bank); a row
        waits for a place in the output queue
    """

    module_name = "systolora_core"

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.design_key: Hashable = config
        acc = data.ArrayLayout(signed(config.acc_bits), config.cols)
        lines = data.ArrayLayout(data.ArrayLayout(8, config.lanes), config.segments)
        results = data.ArrayLayout(signed(config.result_bits), config.cols)
        super().__init__(
            {
                "tile": In(stream.Signature(TileLayout)),
                "post": In(stream.Signature(PostLayout(config.fused_quantize))),
                "act": In(stream.Signature(data.ArrayLayout(8, config.rows))),
                "wgt": In(stream.Signature(lines)),
                "acc_in": In(stream.Signature(acc)),
                "acc_out": Out(stream.Signature(acc)),
                "result": Out(stream.Signature(results)),
                "info": Out(stream.Signature(InfoLayout)),
                "sticky": Out(len(contract.STICKY)),
                "sticky_clear": In(1),
                "busy": Out(1),
                "array_active": Out(1),
                "waits_post": Out(1),
                "waits_output": Out(1),
            }
        )

    @property
    def queue_depth(self) -> int:
        """Rows of the output queue: the lanes' pipeline and the queue's own delay."""
        last = PostLane.QUANTIZED if self.config.fused_quantize else PostLane.VALUE
        return 1 << (last + 3).bit_length()

    @property
    def beats_depth(self) -> int:
        """Beats of the input queue: rows that are joined with one take it late in their way."""
        return 1 << (PostLane.DST_DATA + 3).bit_length()

    @property
    def latencies(self) -> dict[str, int]:
        """Cycles, for the manifest."""
        late = {"quantized_row_to_output_queue": PostLane.QUANTIZED}
        return {
            "act_to_accumulator": TileEngine.sum_latency(self.config.rows),
            "row_to_output_queue": PostLane.VALUE,
            **(late if self.config.fused_quantize else {}),
            "rescale": Rescale.LATENCY,
            "scale_unit_max": ScaleUnit.LATENCY,
        }

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        engine = TileEngine(
            rows=config.rows,
            cols=config.cols,
            segments=config.segments,
            operand_bits=config.operand_bits,
            psum_bits=config.psum_bits,
            acc_bits=config.acc_bits,
            acc_depth=config.acc_depth,
        )
        control = PostControl(
            cols=config.cols,
            acc_bits=config.acc_bits,
            bank_bits=(config.bank_depth - 1).bit_length(),
            queue_depth=self.queue_depth,
            beats_depth=self.beats_depth,
            fused=config.fused_quantize,
        )
        place(m, platform, "tile_engine", engine)
        place(m, platform, "post_control", control)
        queue = OutputQueue(
            cols=config.cols,
            acc_bits=config.acc_bits,
            result_bits=config.result_bits,
            depth=self.queue_depth,
        )
        place(m, platform, "output_queue", queue)

        m.submodules.beat_queue = beats = fifo.SyncFIFOBuffered(
            width=self.acc_in.payload.shape().size, depth=self.beats_depth
        )
        beat = Signal(self.acc_in.payload.shape())

        link(m, self.tile, engine.tile)
        link(m, self.act, engine.act)
        link(m, self.wgt, engine.wgt)
        link(m, self.post, control.post)
        link(m, control.info, self.info)
        link(m, queue.acc_out, self.acc_out)
        link(m, queue.result, self.result)
        m.d.comb += [
            queue.push.eq(control.push),
            queue.is_result.eq(control.push_result),
            control.pop.eq(queue.pop),
            beats.w_data.eq(self.acc_in.payload),
            beats.w_en.eq(self.acc_in.valid),
            self.acc_in.ready.eq(beats.w_rdy),
            beat.eq(beats.r_data),
            beats.r_en.eq(control.beat_ready),
            control.beat_valid.eq(beats.r_rdy),
            control.beat_level.eq(beats.level),
            control.beat_0.eq(beat[0]),
            control.beat_1.eq(beat[1]),
            control.sticky.eq(self.sticky),
            self.array_active.eq(engine.active),
            self.waits_post.eq(engine.waits),
            self.waits_output.eq(control.waits_output),
            engine.banks.eq(control.banks),
            engine.bank_claimed.eq(control.bank_claimed),
            control.bank_busy.eq(engine.bank_busy),
            engine.token.eq(control.token_out),
            control.tokens.eq(engine.tokens_out),
            self.busy.eq(engine.busy | control.busy | (queue.level != 0)),
        ]

        amax = Const(0, config.acc_bits)
        saturated, clipped = Signal(config.cols), Signal(config.cols)
        late_clipped = Signal(config.cols)
        for col in range(config.cols):
            lane = PostLane(acc_bits=config.acc_bits, fused=config.fused_quantize)
            place(m, platform, f"post_lane_{col}", lane)
            steps = [col * step % (1 << 32) for step in (contract.COL_STEP, contract.ROW_STEP)]
            m.d.comb += [
                lane.ctl.eq(control.lanes),
                lane.rescale.eq(control.rescale),
                lane.col_valid.eq(control.col_valid[col]),
                lane.col_word.eq(Mux(control.transposed, steps[1], steps[0])),
                lane.acc_in.eq(beat[col]),
                lane.amax_in.eq(amax),
                engine.write_data[col].eq(lane.value),
                saturated[col].eq(lane.saturated),
                clipped[col].eq(lane.clipped),
            ]
            if config.fused_quantize:
                m.d.comb += [
                    lane.quantize.eq(control.quantize),
                    queue.row[col].eq(lane.sent),
                    late_clipped[col].eq(lane.late_clipped),
                ]
            else:
                m.d.comb += queue.row[col].eq(lane.value)
            m.d.comb += [
                lane.read_data[bank].eq(engine.read_data[col][bank]) for bank in range(ACC_BANKS)
            ]
            amax = lane.amax_out
        m.d.comb += control.amax_in.eq(amax)

        # Position by position of contract.STICKY
        events = Signal(len(contract.STICKY))
        over, clip = Signal(), Signal()
        delayed_clip = control.delayed_row & clipped.any()
        if config.fused_quantize:
            delayed_clip |= control.late_delayed_row & late_clipped.any()
        m.d.comb += [
            over.eq(control.sat_row & saturated.any()),
            clip.eq(control.clip_row & clipped.any()),
            events.eq(
                Cat(
                    control.scale_range,
                    clip | (over & (control.status == Status.ACC_SAT)),
                    delayed_clip,
                    over & (control.status == Status.MASTER),
                    over & (control.status == Status.MOMENTUM),
                )
            ),
        ]
        with m.If(self.sticky_clear):
            m.d.sync += self.sticky.eq(events)
        with m.Elif(control.sticky_load):
            m.d.sync += self.sticky.eq(control.sticky_value)
        with m.Else():
            m.d.sync += self.sticky.eq(self.sticky | events)
        return m
