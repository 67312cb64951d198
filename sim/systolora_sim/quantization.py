"""How sums become a quantized tensor (numerics section 4): maxima, Scales, row operations."""

from dataclasses import dataclass
from typing import NamedTuple

from systolora.contract import COL_STEP, ROW_STEP, Mode, Opcode, Quantize
from systolora_sim.memory_map import Symbol
from systolora_sim.post_builder import MAX_ROWS, PostBuilder
from systolora_sim.update_lowering import blocks, parts

__all__ = [
    "IN_PRODUCTS", "Quantization", "begin_maximum", "end_maximum", "late_ratio",
    "lower_quantization", "quantizing", "quantizing_value", "streaming_ratio",
]  # fmt: skip


class Maxima(NamedTuple):
    """Registers: of this step's maximum, the one of earlier steps, and the one that quantizes."""

    step: int
    record: int
    reference: int


#: Of products while their sums leave the array, and of what is done beside them.
IN_PRODUCTS, ASIDE = Maxima(0, 1, 2), Maxima(3, 4, 5)


@dataclass(frozen=True)
class Quantization:
    """How a product's sums become a quantized tensor.

    target : the tensor, shaped as the device computes it; scale : the name of its Scale; word : the
    seed word without seed and step, or None for nearest even; transposed : the device computes the
    tensor transposed; record : place of the delayed mode's record, or None; streaming : the record
    is not zero when the program starts, so that sums need not wait for their maximum; running :
    place of the maximum of the pieces so far where the tensor is one of several pieces that share
    the record, or None; first, last : whether it is the first or last of them.
    """

    target: Symbol
    scale: str
    word: int | None = None
    transposed: bool = False
    record: Symbol | None = None
    streaming: bool = False
    running: Symbol | None = None
    first: bool = True
    last: bool = True


def quantizing(quantize: Quantization, row0: int = 0, col0: int = 0) -> dict[str, int]:
    """Fields of a row operation that quantizes from that element on, but for its Scale."""
    fields = {
        "mode": Mode.INT8 if quantize.target.itemsize == 1 else Mode.INT16,
        "delayed": int(quantize.record is not None),
    }
    if quantize.word is not None:
        steps = (COL_STEP, ROW_STEP) if quantize.transposed else (ROW_STEP, COL_STEP)
        word = quantize.word + row0 * steps[0] + col0 * steps[1]
        fields |= {
            "stochastic": 1,
            "transposed": int(quantize.transposed),
            "word0": word & 0xFFFFFFFF,
        }
    return fields


def quantizing_value(quantize: Quantization, row0: int = 0, col0: int = 0) -> dict[str, int]:
    """The same of a row operation that quantizes its value: `src_b` is left to be named.

    For mode RAW or ACC, in a configuration with fused_quantize.
    """
    fields = quantizing(quantize, row0, col0)
    fields["quantize"] = Quantize(fields.pop("mode"))
    return fields


def begin_maximum(
    builder: PostBuilder, quantize: Quantization, maxima: Maxima = IN_PRODUCTS
) -> None:
    """Maxima of a tensor before its first row operation: of this step, and the record."""
    if quantize.first or quantize.running is None:
        builder.post(Opcode.AMAX_SET, dst=maxima.step, imm=0)
    else:
        builder.post(Opcode.AMAX_LOAD, reads=quantize.running.area(), dst=maxima.step)
    if quantize.record is not None:
        builder.post(Opcode.AMAX_LOAD, reads=quantize.record.area(), dst=maxima.record)


def streaming_ratio(
    builder: PostBuilder, quantize: Quantization, ratio: str, maxima: Maxima = IN_PRODUCTS
) -> None:
    """The Scale that quantizes by the record, which is not zero."""
    # Also says that the record is what quantizes: clipped values count.
    record = maxima.record
    builder.post(Opcode.AMAX_SELECT, dst=maxima.reference, src_a=record, src_b=record)
    builder.ratio(ratio, quantize.target.bits, maxima.reference)


def late_ratio(
    builder: PostBuilder, quantize: Quantization, ratio: str, maxima: Maxima = IN_PRODUCTS
) -> None:
    """The Scale that quantizes by this step's maximum where there is no record."""
    reference = maxima.step
    if quantize.record is not None:
        reference = maxima.reference
        builder.post(
            Opcode.AMAX_SELECT, dst=reference, src_a=maxima.record, src_b=maxima.step
        )  # fmt: skip
    builder.ratio(ratio, quantize.target.bits, reference)


def end_maximum(builder: PostBuilder, quantize: Quantization, maxima: Maxima = IN_PRODUCTS) -> None:
    """Puts down this step's maximum, as the record or for the next piece."""
    step, record = maxima.step, maxima.record
    if quantize.running is not None and not quantize.last:
        builder.post(Opcode.AMAX_READ, writes=quantize.running.area(), src_a=step)
    elif quantize.record is not None:
        builder.post(Opcode.AMAX_SELECT, dst=record, src_a=step, src_b=record)
        builder.post(Opcode.AMAX_READ, writes=quantize.record.area(), src_a=record)


def lower_quantization(
    builder: PostBuilder, sums: Symbol, quantize: Quantization, unit: str
) -> None:
    """Appends the quantization of sums in memory, whose Scale is `unit`, beside any product."""
    target, cols = quantize.target, builder.config.cols
    ratio = f"#ratio {target.name}"
    if quantize.word is None:
        operations = [({}, *each) for each in parts(sums, target, builder.config)]
    else:  # random words need rows and columns
        operations = [
            (quantizing(quantize, row, col), rows, count, sums.area(*place), target.area(*place))
            for place in blocks(sums, cols, MAX_ROWS)
            for row, rows, col, count in (place,)
        ]
    begin_maximum(builder, quantize, ASIDE)
    if quantize.streaming:
        streaming_ratio(builder, quantize, ratio, ASIDE)
    else:
        for _, rows, count, source, _ in operations:
            builder.rows(rows, count, source, mode=Mode.RAW, amax=1)
        builder.post(Opcode.COLLECT, dst=ASIDE.step)
        late_ratio(builder, quantize, ratio, ASIDE)
    for words, rows, count, source, out in operations:
        given = quantizing(quantize) | words
        given |= {"src_a": builder.scale(ratio), "amax": int(quantize.streaming)}
        builder.rows(rows, count, source, out, **given)
    if quantize.streaming:
        builder.post(Opcode.COLLECT, dst=ASIDE.step)
    builder.div(quantize.scale, unit, ratio)
    builder.store(quantize.scale)
    builder.drop(ratio)
    end_maximum(builder, quantize, ASIDE)
