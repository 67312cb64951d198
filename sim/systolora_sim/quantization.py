"""How sums become a quantized tensor (numerics section 4): maxima, Scales, row operations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import COL_STEP, ROW_STEP, Mode, Opcode, Quantize
from systolora_sim.memory_map import Area, Symbol, View
from systolora_sim.post_builder import LATENCY, PostBuilder, Step
from systolora_sim.update_lowering import blocks, parts

__all__ = [
    "ASIDE", "CHAIN", "IN_PRODUCTS", "Quantization", "begin_maximum", "end_maximum", "late_ratio",
    "quantization_steps", "quantizing", "quantizing_value", "row_cycles", "streaming_ratio",
]  # fmt: skip

#: About how many cycles a step of a quantization may keep the post-processor, and how many row
#: operations it has at most: sums of products leave the array in between.
CHUNK, CHUNK_POSTS = 1024, 16
#: About how many cycles the dependent operations on Scales and maxima beside the rows take, and how
#: many they are.
CHAIN, CHAIN_POSTS = 400, 12


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
    builder.ratio(ratio, quantize.target.bits, select_maximum(builder, quantize, maxima))


def select_maximum(
    builder: PostBuilder, quantize: Quantization, maxima: Maxima = IN_PRODUCTS
) -> int:
    """The register of the maximum that quantizes; says, too, whether clipped values count."""
    if quantize.record is None:
        return maxima.step
    other = maxima.record if quantize.streaming else maxima.step
    builder.post(Opcode.AMAX_SELECT, dst=maxima.reference, src_a=maxima.record, src_b=other)
    return maxima.reference


def late_ratio(
    builder: PostBuilder, quantize: Quantization, ratio: str, maxima: Maxima = IN_PRODUCTS
) -> None:
    """The Scale that quantizes by this step's maximum where there is no record."""
    builder.ratio(ratio, quantize.target.bits, select_maximum(builder, quantize, maxima))


def end_maximum(builder: PostBuilder, quantize: Quantization, maxima: Maxima = IN_PRODUCTS) -> None:
    """Puts down this step's maximum, as the record or for the next piece."""
    step, record = maxima.step, maxima.record
    if quantize.running is not None and not quantize.last:
        builder.post(Opcode.AMAX_READ, writes=quantize.running.area(), src_a=step)
    elif quantize.record is not None:
        builder.post(Opcode.AMAX_SELECT, dst=record, src_a=step, src_b=record)
        builder.post(Opcode.AMAX_READ, writes=quantize.record.area(), src_a=record)


@dataclass(frozen=True)
class _Operation:
    """A row operation that measures a part of the sums, or quantizes it."""

    rows: int
    cols: int
    source: Area | View
    out: Area | View
    words: dict[str, int]


def _chunks(
    config: AcceleratorConfig, sums: Symbol, quantize: Quantization
) -> list[list[_Operation]]:
    """The row operations that cover a tensor, in runs that take CHUNK cycles or little more."""
    target, cols = quantize.target, config.cols
    most = max(1, CHUNK // row_cycles(config, sums))
    if quantize.word is None:
        operations = [_Operation(*each, {}) for each in parts(sums, target, config, most)]
    else:  # random words need rows and columns
        operations = [
            _Operation(
                place[1], place[3], sums.area(*place), target.area(*place),
                quantizing(quantize, place[0], place[2]),
            )
            for place in blocks(sums, cols, most)
        ]  # fmt: skip
    chunks: list[list[_Operation]] = []
    room = 0
    for operation in operations:
        if room < operation.rows or len(chunks[-1]) == CHUNK_POSTS:
            chunks.append([])
            room = most
        chunks[-1].append(operation)
        room -= operation.rows
    return chunks


def row_cycles(config: AcceleratorConfig, sums: Symbol) -> int:
    """Cycles that a row of sums takes to come from memory."""
    return -(-config.cols * sums.itemsize // config.beat_bytes)


class _Aside:
    """The quantization of sums in memory beside any product, piece by piece."""

    def __init__(
        self,
        builder: PostBuilder,
        sums: Symbol,
        quantize: Quantization,
        unit: Callable[[str], None],
    ) -> None:
        self.builder, self.quantize, self.unit = builder, quantize, unit
        self.ratio = f"#ratio {quantize.target.name}"
        self.chunks = _chunks(builder.config, sums, quantize)

    def begin(self) -> None:
        begin_maximum(self.builder, self.quantize, ASIDE)
        if self.quantize.streaming:
            streaming_ratio(self.builder, self.quantize, self.ratio, ASIDE)

    def collect(self) -> None:
        self.builder.post(Opcode.COLLECT, dst=ASIDE.step)

    def store(self, chunk: list[_Operation]) -> None:
        quantize, scale = self.quantize, self.builder.scale(self.ratio)
        for each in chunk:
            given = quantizing(quantize) | each.words
            given |= {"src_a": scale, "amax": int(quantize.streaming)}
            self.builder.rows(each.rows, each.cols, each.source, each.out, **given)

    def end(self) -> None:
        builder, quantize, unit = self.builder, self.quantize, f"#unit {self.quantize.target.name}"
        self.unit(unit)
        builder.div(quantize.scale, unit, self.ratio)
        builder.store(quantize.scale)
        builder.drop(unit, self.ratio)
        end_maximum(builder, quantize, ASIDE)

    def whole(self) -> None:
        """All of it at once, where it is one piece."""
        if not self.quantize.streaming:
            self.measure_piece(0)
        self.store_piece(0)

    def measure_piece(self, number: int) -> None:
        if number == 0:
            self.begin()
        for each in self.chunks[number]:
            self.builder.rows(each.rows, each.cols, each.source, mode=Mode.RAW, amax=1)
        self.collect()

    def store_piece(self, number: int) -> None:
        """What came between may have selected another tensor's maximum (`clip_delayed`)."""
        if number == 0 and self.quantize.streaming:
            self.begin()
        elif number == 0:
            late_ratio(self.builder, self.quantize, self.ratio, ASIDE)
        else:
            select_maximum(self.builder, self.quantize, ASIDE)
        self.store(self.chunks[number])
        if self.quantize.streaming:
            self.collect()
        if number == len(self.chunks) - 1:
            self.end()


def quantization_steps(
    builder: PostBuilder,
    sums: Symbol,
    quantize: Quantization,
    unit: Callable[[str], None],
    *,
    label: str,
    name: str,
) -> list[Step]:
    """The quantization of sums in memory beside any product: one step, or many of a large tensor.

    unit : appends what gives the Scale of this name, that of the sums, its value; label, name : of
    the steps
    """
    aside = _Aside(builder, sums, quantize, unit)
    each = row_cycles(builder.config, sums)

    def step(action: Callable[[], None], chunk: list[_Operation], passes: int, opens: bool) -> Step:
        rows = sum(operation.rows for operation in chunk)
        return Step(
            lambda _w, _u: action(), 0, len(chunk) * passes + CHAIN_POSTS,
            passes * (rows * each + LATENCY) + (CHAIN // 4 if opens else CHAIN),
            label=label, name=name, maxima=True, opens=opens,
        )  # fmt: skip

    chunks = aside.chunks
    if len(chunks) == 1:
        return [step(aside.whole, chunks[0], 2, False)]
    steps = []
    if not quantize.streaming:
        steps = [
            step(partial(aside.measure_piece, number), chunk, 1, True)
            for number, chunk in enumerate(chunks)
        ]
    for number, chunk in enumerate(chunks):
        last = number == len(chunks) - 1
        steps.append(step(partial(aside.store_piece, number), chunk, 1, not last))
    return steps
