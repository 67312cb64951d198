"""What a descriptor's own bits say about it: its fields, and what is derived from them."""

from collections.abc import Hashable

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolora import contract
from systolora.config import ACC_BANKS
from systolora.contract import (
    Action,
    Buffer,
    Dataflow,
    Edge,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Source,
)
from systolora.rtl.layouts import (
    ControlDescriptor,
    ExecDescriptor,
    LoadDescriptor,
    PostDescriptor,
)

__all__ = ["DescriptorCheck", "VerdictLayout"]

WORD_BITS = 8 * contract.DESCRIPTOR_BYTES

#: What is wrong, and a POST's memory: elements and bytes of a row read and written.
VerdictLayout = data.StructLayout(
    {
        "kind": 1,
        "field": 1,
        "buffer": 1,  # of a POST
        "align": 1,
        "outside": 1,  # an address has more bits than the bus
        "reads": 1,
        "writes": 1,
        "rows": 16,
        "in_cols": 10,
        "in_width": 2,
        "in_bytes": 14,
        "out_cols": 10,
        "out_width": 2,
        "out_bytes": 14,
    }
)


class DescriptorCheck(wiring.Component):
    """Judges one descriptor by the rules of docs/system.md that need no multiplication.

    The verdict is valid one cycle after the descriptor.

    Parameters
    ----------
    rows, cols, segments, int16, fused, acc_depth : the Core; fused : with fused_quantize
    bus_bytes, address_bits : the bus

    Members
    -------
    word : the descriptor
    verdict : VerdictLayout, registered
    """

    def __init__(
        self,
        *,
        rows: int,
        cols: int,
        segments: int,
        int16: bool,
        fused: bool,
        acc_depth: int,
        bus_bytes: int,
        address_bits: int,
    ) -> None:
        self.design_key: Hashable = (
            rows, cols, segments, int16, fused, acc_depth, bus_bytes, address_bits,
        )  # fmt: skip
        self._rows, self._cols, self._segments = rows, cols, segments
        self._int16, self._fused, self._acc_depth = int16, fused, acc_depth
        self._bus_bytes, self._address_bits = bus_bytes, address_bits
        self._bus_bits = bus_bytes.bit_length() - 1
        super().__init__({"word": In(WORD_BITS), "verdict": Out(VerdictLayout)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        verdict = Signal(VerdictLayout, name="judged")
        m.d.sync += self.verdict.eq(verdict)
        kind = self.word[: contract.width(contract.LOAD, "kind")]
        with m.Switch(kind):
            with m.Case(Kind.LOAD):
                self._load(m, verdict)
            with m.Case(Kind.EXEC):
                self._exec(m, verdict)
            with m.Case(Kind.POST):
                self._post(m, verdict)
            with m.Case(Kind.CONTROL):
                control = self._view(m, ControlDescriptor, "control")
                m.d.comb += verdict.field.eq(
                    self._reserved(ControlDescriptor) | (control.action > max(Action))
                )
            with m.Default():
                m.d.comb += verdict.kind.eq(1)
        return m

    def _view(self, m: Module, layout: data.StructLayout, name: str):
        view = Signal(layout, name=name)
        m.d.comb += view.eq(self.word)
        return view

    def _reserved(self, layout: data.StructLayout):
        return self.word[layout.size :].any()

    def _unaligned(self, address, mask, stride, rows):
        """`mask`: the bits of an address that must be 0; a stride counts whole words."""
        return (address & mask).any() | ((rows != 1) & stride[: self._bus_bits].any())

    def _load(self, m: Module, verdict) -> None:
        load = self._view(m, LoadDescriptor, "load")
        whole = Const(self._bus_bytes - 1, 64)
        m.d.comb += [
            verdict.field.eq(
                self._reserved(LoadDescriptor)
                | (load.rows == 0)
                | (load.row_bytes == 0)
                | (load.layout > max(Layout))
                | ((load.buffer == Buffer.ACT) & (load.layout != Layout.PLAIN))
            ),
            verdict.align.eq(self._unaligned(load.address, whole, load.stride, load.rows)),
            verdict.outside.eq(load.address[self._address_bits :].any()),
        ]

    def _exec(self, m: Module, verdict) -> None:
        item = self._view(m, ExecDescriptor, "exec")
        is_os = item.dataflow == Dataflow.OS
        # Units of a line of the stationary buffer are powers of two
        unit = min(self._rows, self._cols)
        odd = Signal(16)
        places = Signal(16)
        m.d.comb += places.eq(
            item.wgt_base[:16] | item.wgt_stride | item.wgt_step[:16]
        )  # fmt: skip
        with m.If(~is_os & (item.edge == Edge.LEFT)):
            m.d.comb += odd.eq((self._rows // unit << item.wgt_wide) - 1)
        with m.Else():
            m.d.comb += odd.eq((self._cols // unit << item.wgt_wide) - 1)
        wide = item.act_wide | item.wgt_wide
        act_odd = item.act_base[0] | item.act_stride[0] | item.act_step[0]
        m.d.comb += verdict.field.eq(
            self._reserved(ExecDescriptor)
            | (item.length == 0)
            | (item.repeat == 0)
            | (item.last == 0)
            | (item.last > self._rows)
            | (item.cols == 0)
            | (item.cols > self._cols)
            | (wide & (not self._int16))
            | (is_os & item.act_wide & item.wgt_wide & (item.length > 1 << 15))
            | (item.act_wide & act_odd)
            | (places & odd).any()
        )

    def _post(self, m: Module, verdict) -> None:
        post = self._view(m, PostDescriptor(self._fused), "post")
        is_rows, quantizes, stream = Signal(), Signal(), Signal()
        is_bias = Signal()
        m.d.comb += [
            is_rows.eq(post.opcode == Opcode.ROWS),
            is_bias.eq(post.opcode == Opcode.BIAS),
            quantizes.eq(is_rows & post.mode[1]),
            stream.eq(post.source == Source.STREAM),
        ]
        sends = quantizes | post.emit
        if self._fused:
            sends |= post.quantize[1]
        opcode = post.opcode
        scale_in, scale_out = Signal(), Signal()
        word_in, word_out = Signal(), Signal()
        m.d.comb += [
            scale_in.eq(opcode == Opcode.SCALE_LOAD),
            scale_out.eq(opcode == Opcode.SCALE_READ),
            word_in.eq((opcode == Opcode.AMAX_LOAD) | (opcode == Opcode.STICKY_LOAD)),
            word_out.eq((opcode == Opcode.AMAX_READ) | (opcode == Opcode.STICKY_READ)),
            verdict.reads.eq(is_bias | scale_in | word_in | (is_rows & (stream | post.add_stream))),
            verdict.writes.eq(scale_out | word_out | (is_rows & sends)),
            verdict.rows.eq(Mux(is_rows, post.rows, 1)),
        ]
        for cols, width, size, scale, word, given in (
            (verdict.in_cols, verdict.in_width, verdict.in_bytes, scale_in, word_in, post.in_width),
            (
                verdict.out_cols, verdict.out_width, verdict.out_bytes,
                scale_out, word_out, post.out_width,
            ),
        ):  # fmt: skip
            with m.If(scale):
                m.d.comb += [cols.eq(2), width.eq(2)]
            with m.Elif(word):
                m.d.comb += [cols.eq(1), width.eq(3)]
            with m.Else():
                m.d.comb += [cols.eq(post.cols), width.eq(given)]
            m.d.comb += size.eq(cols << width)

        # Fields
        bad_cols = Signal()
        sums_only = Signal()
        distance = Signal(post.src_base.shape())
        at_dst = Signal()
        overlap = Signal()
        m.d.comb += [
            bad_cols.eq((post.cols == 0) | (post.cols > self._cols)),
            sums_only.eq(
                post.add | post.bias | post.negate | post.write | post.emit
                | post.limit.any() | post.status.any()
            ),
            at_dst.eq((post.add & ~post.add_stream) | post.write),
            distance.eq(
                Mux(
                    post.src_base > post.dst_base,
                    post.src_base - post.dst_base,
                    post.dst_base - post.src_base,
                )
            ),
            overlap.eq(~stream & at_dst & (distance != 0) & (distance < post.rows)),
        ]  # fmt: skip
        rows_bad = Signal()
        wrong = (
            (post.rows == 0)
            | bad_cols
            | (post.limit > max(Limit))
            | (quantizes & sums_only)
            | (post.add_stream & (stream | ~post.add))
            | ((post.mode == Mode.INT16) & (not self._int16))
            | overlap
        )
        if self._fused:
            fuses = post.quantize != Quantize.NONE
            wrong |= fuses & (~post.quantize[1] | quantizes | post.emit)
            wrong |= (post.quantize == Quantize.INT16) & (not self._int16)
        m.d.comb += rows_bad.eq(is_rows & wrong)
        high = [
            getattr(post, name) >= contract.AMAX_REGISTERS for name in ("dst", "src_a", "src_b")
        ]
        register_bad = Signal()
        with m.Switch(opcode):
            with m.Case(Opcode.AMAX_SET, Opcode.AMAX_LOAD, Opcode.COLLECT):
                m.d.comb += register_bad.eq(high[0])
            with m.Case(Opcode.AMAX_READ, Opcode.SCALE_AMAX):
                m.d.comb += register_bad.eq(high[1])
            with m.Case(Opcode.AMAX_SELECT):
                m.d.comb += register_bad.eq(high[0] | high[1] | high[2])
        m.d.comb += verdict.field.eq(
            self._reserved(PostDescriptor(self._fused))
            | rows_bad
            | (is_bias & bad_cols)
            | register_bad
            | (post.wait_store & ~verdict.reads)
        )

        # Accumulator rows
        bank_bits = (self._acc_depth // ACC_BANKS - 1).bit_length()
        beyond = []
        for name in ("src_base", "dst_base"):
            base = getattr(post, name)
            end = Signal(len(base) + 1, name=f"{name}_end")
            m.d.comb += end.eq(base + post.rows - 1)
            beyond.append((end >> bank_bits != base >> bank_bits) | (end >= self._acc_depth))
        m.d.comb += verdict.buffer.eq(is_rows & ((~stream & beyond[0]) | (at_dst & beyond[1])))

        # Memory: a row starts at a multiple of its own size, or of the bus's width
        bad_in = self._unaligned(
            post.in_address, self._mask(m, verdict.in_width, "in"), post.in_stride, verdict.rows
        )
        bad_out = self._unaligned(
            post.out_address, self._mask(m, verdict.out_width, "out"), post.out_stride, verdict.rows
        )
        beyond_in = post.in_address[self._address_bits :].any()
        beyond_out = post.out_address[self._address_bits :].any()
        m.d.comb += [
            verdict.align.eq((verdict.reads & bad_in) | (verdict.writes & bad_out)),
            verdict.outside.eq((verdict.reads & beyond_in) | (verdict.writes & beyond_out)),
        ]

    def _mask(self, m: Module, width, name: str) -> Signal:
        mask = Signal(64, name=f"{name}_mask")
        with m.Switch(width):
            for value in range(4):
                with m.Case(value):
                    m.d.comb += mask.eq(min(self._bus_bytes, self._cols << value) - 1)
        return mask
