"""One column of the post-processor: rescale, add, saturate, maximum."""

from collections.abc import Hashable

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from systolora.config import ACC_BANKS
from systolora.rtl.placement import place
from systolora.rtl.random_word import RandomWord
from systolora.rtl.rescale import Rescale, control_layout

__all__ = ["LaneControl", "PostLane"]


def LaneControl(fused: bool) -> data.StructLayout:
    """The same bits for all lanes, each in the cycle of the row that it belongs to."""
    fields = {
        "from_stream": 1,  # cycle SOURCE - 1
        "src_bank": range(ACC_BANKS),  # cycle SOURCE - 1
        "sign": 1,  # cycle SOURCE - 1
        "row_word": 32,  # cycle WORD or LATE_WORD: seed word of the row's first element
        "dst_bank": range(ACC_BANKS),  # cycle DST_DATA
        "add": 1,  # cycle DST_DATA
        "add_stream": 1,  # cycle DST_DATA: the addend is the beat, not the destination
        "bias": 1,  # cycle DST_DATA
        "negate": 1,  # cycle DST_DATA
        "sat32": 1,  # cycle SATURATED
        "sat16": 1,  # cycle SATURATED
        "amax_source": 1,  # the maximum is of the source, not of the value
        "amax_valid": 1,  # cycle SOURCE or VALUE, by amax_source
        "bias_load": 1,  # cycle 1: the beat becomes the bias
        "collect": 1,  # amax takes amax_in
    }
    # Cycle QUANTIZED: what is sent is the quantized value
    return data.StructLayout(fields | {"late": 1} if fused else fields)


class PostLane(wiring.Component):
    """Post-processes one element per cycle (docs/core.md, ROWS), in lock step, never waiting.

    ``value = sat(rescale(x) + add * (acc[dst] or acc_in) + bias * bias_row)``

    Cycles are counted from the one in which the controller issues the row (0): the source's
    memory is read in cycle 1 and its data, or `acc_in` of cycle 0, are `x` in cycle 2; the
    destination's data, or `acc_in` of that cycle, are taken in cycle DST_DATA; `value` leaves in
    cycle VALUE, where it is written or sent. A plain copy goes through the multiplier with a Scale
    of one, exactly.

    With `fused` a second Rescale follows: ``sat(rescale(value))`` leaves in cycle QUANTIZED. Both
    take random words from one generator, in the cycles after WORD and LATE_WORD: at most one of
    them may be stochastic for the rows that are there in one cycle.

    Parameters
    ----------
    acc_bits : width of an accumulator
    fused : with the second Rescale

    Members
    -------
    ctl : LaneControl
    rescale : controls of the Rescale
    quantize : with `fused`, those of the second one
    col_valid : cycle SOURCE - 1: the lane is a column of the tensor, not padding
    col_word : what this column adds to the row's seed word
    acc_in : beat of the input stream
    read_data[bank] : from AccumulatorLane
    value : to write and, but for `fused`, to send (0 in padding)
    sent, late_clipped : with `fused`: `value` or the quantized value, by ctl.late, to send (0 in
        padding); the second rescale saturated (cycle QUANTIZED)
    clipped, saturated : the rescale saturated (cycle CLIPPED), the addition did (cycle SATURATED)
    amax_in, amax_out : maxima, shifted through the lanes while `collect`
    """

    #: Cycle of the rescale's input register.
    SOURCE = 3
    CLIPPED = SOURCE + Rescale.LATENCY
    DST_DATA = CLIPPED
    SATURATED = DST_DATA + 1
    VALUE = DST_DATA + 2
    #: Cycle of `row_word`: it needs an addition and the mixing before the rescale takes it.
    WORD = SOURCE + Rescale.WORD_STAGE - RandomWord.LATENCY - 1
    #: Cycle at whose end the row's maximum is stored, the last trace but its results.
    DONE = VALUE + 1
    #: Cycle in which the quantized value leaves, at whose end a clipped one is noted.
    QUANTIZED = VALUE + Rescale.LATENCY
    #: Cycle of `row_word` for the second rescale.
    LATE_WORD = WORD + VALUE - SOURCE

    def __init__(self, *, acc_bits: int, fused: bool) -> None:
        self.design_key: Hashable = (acc_bits, fused)
        self._acc_bits, self._fused = acc_bits, fused
        acc = signed(acc_bits)
        late: dict[str, wiring.Member] = {
            "quantize": In(control_layout(acc_bits)),
            "sent": Out(acc),
            "late_clipped": Out(1),
        }
        super().__init__(
            {
                "ctl": In(LaneControl(fused)),
                "rescale": In(control_layout(acc_bits)),
                "col_valid": In(1),
                "col_word": In(32),
                "acc_in": In(acc),
                "read_data": In(acc).array(ACC_BANKS),
                "value": Out(acc),
                "clipped": Out(1),
                "saturated": Out(1),
                "amax_in": In(acc_bits),
                "amax_out": Out(acc_bits),
                **(late if fused else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ctl = self.ctl
        acc = signed(self._acc_bits)

        # Cycles 1, 2: the beat keeps pace with the memory
        beat_1 = Signal(acc, reset_less=True)
        beat_2 = Signal(acc, reset_less=True)
        bias = Signal(acc, reset_less=True)
        m.d.sync += [beat_1.eq(self.acc_in), beat_2.eq(beat_1)]
        with m.If(ctl.bias_load):
            m.d.sync += bias.eq(beat_1)

        # Cycle 3: source
        source = Signal(acc)
        x = Signal(acc, reset_less=True)
        with m.If(ctl.from_stream):
            m.d.comb += source.eq(beat_2)
        with m.Else():
            m.d.comb += source.eq(Array(self.read_data)[ctl.src_bank])
        with m.If(ctl.sign):
            upper = source[-1].replicate(self._acc_bits - 1)
            m.d.sync += x.eq(Cat(source.any(), upper).as_signed())
        with m.Else():
            m.d.sync += x.eq(source)

        # valid[n] is of cycle SOURCE + n
        last = self.QUANTIZED if self._fused else self.VALUE
        value_valid = self.VALUE - self.SOURCE
        valid = Signal(last - self.SOURCE + 1, reset_less=True)
        m.d.sync += valid.eq(Cat(self.col_valid, valid))

        # Random word
        random_word = RandomWord()
        place(m, platform, "random_word", random_word)
        seeded = Signal(32, reset_less=True)
        m.d.sync += seeded.eq(ctl.row_word + self.col_word)
        m.d.comb += random_word.x.eq(seeded)

        # Cycles 3 to CLIPPED
        rescale = Rescale(self._acc_bits)
        place(m, platform, "rescale", rescale)
        m.d.comb += [
            rescale.controls.eq(self.rescale),
            rescale.value.eq(x),
            rescale.word.eq(random_word.word),
            self.clipped.eq(rescale.clipped & valid[self.CLIPPED - self.SOURCE]),
        ]
        term = rescale.result

        # Cycle DST_DATA: one exact sum of up to three
        dst = Signal(acc)
        sum_bits = self._acc_bits + 2
        total = Signal(signed(sum_bits), reset_less=True)
        masked_dst, masked_bias = Signal(acc), Signal(acc)
        m.d.comb += [
            dst.eq(Mux(ctl.add_stream, self.acc_in, Array(self.read_data)[ctl.dst_bank])),
            masked_dst.eq(Mux(ctl.add, dst, 0)),
            masked_bias.eq(Mux(ctl.bias, bias, 0)),
        ]
        # Subtracting is adding the complement and one
        signed_term = Signal(acc)
        m.d.comb += signed_term.eq(Mux(ctl.negate, ~term, term))
        m.d.sync += total.eq(signed_term + masked_dst + masked_bias + ctl.negate)

        # Cycle SATURATED: it fits n bits if all above bit n - 1 equal the sign
        negative = total[-1]

        def excess(bits: int):
            upper = total[bits - 1 : -1]
            return (upper ^ negative.replicate(len(upper))).any()

        # A master is symmetric: -32768 does not fit
        lowest16 = negative & ~total[:15].any()
        saturate = Signal()
        highest = Signal(self._acc_bits - 1)
        with m.If(ctl.sat16):
            m.d.comb += [saturate.eq(excess(16) | lowest16), highest.eq((1 << 15) - 1)]
        with m.Elif(ctl.sat32):
            m.d.comb += [saturate.eq(excess(32)), highest.eq((1 << 31) - 1)]
        with m.Else():
            m.d.comb += [saturate.eq(excess(self._acc_bits)), highest.eq(-1)]
        m.d.comb += self.saturated.eq(saturate & valid[self.SATURATED - self.SOURCE])
        value = Signal(acc, reset_less=True)
        limit = Signal(acc)
        # The complement of the highest value is the lowest, one further from zero
        m.d.comb += limit.eq(Cat(highest, 0) ^ negative.replicate(self._acc_bits))
        with m.If(ctl.sat16 & negative):
            m.d.comb += limit[0].eq(1)
        m.d.sync += value.eq(Mux(saturate, limit, total))
        m.d.comb += self.value.eq(Mux(valid[value_valid], value, 0))
        if self._fused:
            self._quantizer(m, platform, value, random_word.word, valid[-1])

        # Maximum: magnitude, then compare; the lanes' maxima shift out on demand
        magnitude = Signal(self._acc_bits, reset_less=True)
        measured = Signal(acc)
        amax = Signal(self._acc_bits)  # a reset forgets what an aborted program left
        amax_valid = Signal()
        m.d.comb += [
            measured.eq(Mux(ctl.amax_source, x, value)),
            self.amax_out.eq(amax),
        ]
        m.d.sync += [
            magnitude.eq(Mux(measured < 0, -measured, measured)),
            amax_valid.eq(ctl.amax_valid & Mux(ctl.amax_source, valid[0], valid[value_valid])),
        ]
        with m.If(ctl.collect):
            m.d.sync += amax.eq(self.amax_in)
        with m.Elif(amax_valid & (magnitude > amax)):
            m.d.sync += amax.eq(magnitude)
        return m

    def _quantizer(
        self, m: Module, platform: object, value: Signal, word: Value, valid: Value
    ) -> None:
        """Cycles VALUE to QUANTIZED; `valid` is of the latter."""
        quantizer = Rescale(self._acc_bits)
        place(m, platform, "quantizer", quantizer)
        quantized = Signal(signed(self._acc_bits))
        m.d.comb += [
            quantizer.controls.eq(self.quantize),
            quantizer.value.eq(value),
            quantizer.word.eq(word),
            quantized.eq(Mux(valid, quantizer.result, 0)),
            self.late_clipped.eq(quantizer.clipped & valid),
            self.sent.eq(Mux(self.ctl.late, quantized, self.value)),
        ]
