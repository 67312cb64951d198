"""A LoRA layer as commands and stream beats for the Core.

Every product is written once, against `CoreDevice`; the functional machine and the RTL bench
execute the same commands. The host carries data between products: a result becomes the streamed
operand of the next product, sums that do not fit the accumulators leave on `acc_out` and come back
on `acc_in`. All arithmetic, the Scale arithmetic included, happens on the device.

Mapping (numerics section 5; rank-r tensors are r-major on the device):

====================  ========  ==================  ==============  ============================
product               dataflow  stationary (edge)   streams         low-rank term, by OS
====================  ========  ==================  ==============  ============================
H^T = lora_A.X^T      WS        X (left)            lora_A rows
Y = X.W^T             WS        W (left)            X rows          rescale(H.lora_B^T)
dH^T = lora_B^T.dY^T  WS        dY (left)           lora_B^T rows
dB^T = H^T.dY         WS        dY (top)            H^T rows
dA = dH^T.X           WS        X (top)             dH^T rows
dX = dY.W             WS        W (top)             dY rows         rescale(dH.lora_A)
====================  ========  ==================  ==============  ============================

A product's output is cut into blocks of at most C columns and as many rows as a bank of the
accumulator buffer takes. Blocks alternate between the banks: the post-processor works on one block
while the array computes the next, ordered by tokens.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    COL_STEP,
    ROW_STEP,
    STICKY,
    Dataflow,
    Edge,
    Limit,
    Mode,
    Opcode,
    Source,
)
from systolora_sim import numerics as nx
from systolora_sim.blocks import Block, plan_blocks
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.numerics import Scale
from systolora_sim.operands import byte_planes, ceil_div, padded, stationary_beats, streamed_beats
from systolora_sim.program import CoreDevice, Outputs, scale_imm

__all__ = [
    "CompileError",
    "ProductRecord",
    "act_beats",
    "check_layer",
    "compute_layer",
    "product_records",
]

#: Deepest output-stationary pass: of two low planes, and of any other (numerics section 8).
LOW_DEPTH, DEPTH = 1 << 15, (1 << 17) - 1
#: About how many cycles a bank's way from the array to the post-processor and back takes beyond the
#: array's depth and width; only the choice of a group's size depends on it.
HANDOVER = 64
#: Longest row operation.
MAX_ROWS = (1 << 20) - 1

Array = NDArray[Any]


class CompileError(ValueError):
    """A layer that this configuration cannot compute."""


class Reg(IntEnum):
    """The compiler's use of the Core's Scale registers."""

    X = 0
    WEIGHT = 1
    LORA_A = 2
    LORA_B = 3
    DY = 4
    GAIN = 5
    H = 6
    DH = 7
    QMAX = 8
    ACC = 9  # scale of the product's accumulators
    TERM = 10  # factor of the low-rank term
    AMAX = 11
    RATIO = 12  # accumulator units to quantized units
    OUT = 13  # scale of the quantized tensor
    SCRATCH = 14


class AmaxReg(IntEnum):
    """The compiler's use of the Core's maximum registers."""

    STEP = 0  # of this step
    RECORD = 1  # of an earlier step


@dataclass
class ProductRecord:
    """What one product was and cost.

    m, k, n : shape of the main product as the device computes it, [m, k] times [k, n]; passes : of
    the array, by byte planes; macs : multiplications with true operands, m * k * n * passes plus
    those of the low-rank term; cycles : None where time does not exist.
    """

    name: str
    formula: str
    m: int
    k: int
    n: int
    dataflow: str
    edge: str
    passes: int
    macs: int
    cycles: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def share(self, multipliers: int) -> float | None:
        """Share of what an array of that many multipliers could do in these cycles."""
        return None if not self.cycles else round(self.macs / multipliers / self.cycles, 4)


# Products -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LowRank:
    """The low-rank term of a product: act^T @ top, both [r, .], times the factor in `Reg.TERM`."""

    act: Array
    top: Array
    bias: NDArray[np.int32] | None = None


@dataclass(frozen=True)
class Quantization:
    """How a product's sums become a quantized tensor (numerics section 4).

    record : the delayed mode's maximum of an earlier step, 0 just in time; word : the seed word, or
    None for nearest even; transposed : the device computes the tensor transposed.
    """

    bits: int
    record: int
    word: int | None
    transposed: bool
    delayed: bool


@dataclass(frozen=True)
class Product:
    """One product: what it is, its operands and what becomes of the sums.

    streamed : [M, K]; stationary : [N, K] (left edge) or [K, N] (top); acc_bits : width of the
    sums; scales : Scale commands that leave the sums' scale in `Reg.ACC` and a low-rank factor in
    `Reg.TERM`; emit : the sums leave as results; quantize : how they are quantized, or None; keep :
    register for the quantized tensor's scale.
    """

    name: str
    streamed: Array
    stationary: Array
    edge: Edge
    acc_bits: int
    scales: tuple[tuple[Opcode, int, int, int], ...]
    low_rank: LowRank | None = None
    emit: bool = False
    quantize: Quantization | None = None
    keep: int = Reg.OUT

    @property
    def outputs(self) -> int:
        return self.stationary.shape[0 if self.edge == Edge.LEFT else 1]


@dataclass
class ProductResult:
    """acc [M, N] int64 and its scale where emitted; q [M, N], its scale and amax if quantized."""

    acc: NDArray[np.int64] | None
    acc_scale: Scale
    q: NDArray[np.int64] | None
    q_scale: Scale
    amax: int


class _Compiler:
    """Queues one product on a device and collects what it gives."""

    def __init__(self, device: CoreDevice, product: Product) -> None:
        self.device, self.product = device, product
        self.config = config = device.config
        self.m, self.k = product.streamed.shape
        quantize = product.quantize
        planes = [byte_planes(product.streamed), byte_planes(product.stationary)]
        self.acts = [(p, streamed_beats(p, config)) for p in planes[0]]
        self.wgts = [(p, stationary_beats(p, product.edge, config)) for p in planes[1]]
        self.plan = plan_blocks(
            config,
            self.m,
            product.outputs,
            product.low_rank is not None,
            quantize is not None and quantize.record == 0,
            self._group(),
        )
        self.limit = Limit.ACC32 if product.acc_bits == nx.NARROW_BITS else Limit.ACC
        self._in_array: tuple[int, int, int] | None = None

    def _group(self) -> int:
        """How many blocks should share a bank, one after the other.

        The post-processor gets a bank when the last sum has left the array and returns it when it
        is done with the rows: until then the other bank must have work for the array.
        """
        config, edge = self.config, self.product.edge
        load = config.left_load if edge == Edge.LEFT else config.top_load
        rows = min(self.m, config.bank_depth)
        array = self.acts[0][1].shape[0] * len(self.wgts) * max(load, rows * len(self.acts))
        post = rows * (1 if self.product.low_rank is None else 3)
        latency = config.rows + config.cols + HANDOVER
        return ceil_div(latency, max(array - post, 1))

    # Array --------------------------------------------------------------------------------------

    def tiles(self) -> None:
        """Queues all tile commands."""
        groups, lead = self.plan.groups, self.plan.lead
        for number, group in enumerate(groups):
            commands = []
            for block in group:
                # Alternating the order of the two kinds halves the drains that weight-stationary
                # tiles must wait for.
                kinds = [self._main(block), self._term(block)]
                for kind in kinds if block.index % 2 == 0 else kinds[::-1]:
                    commands += kind
            for position, (act, wgt, fields) in enumerate(commands):
                wait = position == 0 and number >= lead
                signal = position == len(commands) - 1
                self.device.tile(act, wgt, **fields, wait=int(wait), signal=int(signal))

    def _main(self, block: Block) -> Iterator[tuple[Array, Array | None, dict[str, int]]]:
        """Weight-stationary passes of a block: every stationary plane is loaded once."""
        first = True
        for k in range(self.acts[0][1].shape[0]):
            for number, (stationary, beats) in enumerate(self.wgts):
                for streamed, rows in self.acts:
                    tile = (block.col_block, k, number)
                    load = tile != self._in_array
                    self._in_array = tile
                    yield (
                        rows[k, block.row0 : block.row0 + block.rows],
                        beats[block.col_block, k] if load else None,
                        {
                            "dataflow": Dataflow.WS,
                            "load": int(load),
                            "edge": self.product.edge,
                            "act_low": int(streamed.low),
                            "wgt_low": int(stationary.low),
                            "accumulate": int(not first),
                            "shift": streamed.weight + stationary.weight,
                            "length": block.rows,
                            "acc_base": block.base,
                        },
                    )
                    first = False

    def _term(self, block: Block) -> Iterator[tuple[Array, Array | None, dict[str, int]]]:
        """Output-stationary passes of a block's low-rank term."""
        term = self.product.low_rank
        if term is None:
            return
        config, r = self.config, term.act.shape[0]
        self._in_array = None
        tops = []
        for plane in byte_planes(term.top[:, block.col0 : block.col0 + block.cols]):
            tops.append((plane, padded(plane.bytes, r, config.segments * config.lanes)))
        for row in range(0, block.rows, config.rows):
            count = min(config.rows, block.rows - row)
            start, first = block.row0 + row, True
            for left in byte_planes(term.act[:, start : start + count]):
                act = padded(left.bytes, r, config.rows)
                for top, wgt in tops:
                    depth = LOW_DEPTH if left.low and top.low else DEPTH
                    for k in range(0, r, depth):
                        yield (
                            act[k : k + depth],
                            wgt[k : k + depth],
                            {
                                "dataflow": Dataflow.OS,
                                "act_low": int(left.low),
                                "wgt_low": int(top.low),
                                "accumulate": int(not first),
                                "shift": left.weight + top.weight,
                                "length": min(depth, r - k),
                                "out_rows": count,
                                "acc_base": block.term_base + row,
                            },
                        )
                        first = False

    # Post-processor -----------------------------------------------------------------------------

    def _scale(self, opcode: Opcode, dst: int = 0, a: int = 0, b: int = 0) -> None:
        self.device.post(opcode=opcode, dst=dst, src_a=a, src_b=b)

    def _ratio(self, maximum: AmaxReg) -> None:
        """`Reg.RATIO` = div(from_int(qmax), from_int(maximum))."""
        self._scale(Opcode.SCALE_AMAX, Reg.AMAX, maximum)
        self._scale(Opcode.SCALE_DIV, Reg.RATIO, Reg.QMAX, Reg.AMAX)

    def _runs(self, blocks: list[Block], spilled: bool = False) -> list[Block]:
        """Neighbouring blocks as one where one row operation can do them all.

        Their rows must follow each other in the buffer (or on the stream, if `spilled`), with as
        many valid columns; a bias and random words belong to single blocks.
        """
        quantize, term, bank = self.product.quantize, self.product.low_rank, self.config.bank_depth
        single = quantize is not None and quantize.word is not None
        single |= term is not None and term.bias is not None
        runs: list[Block] = []
        for block in blocks:
            if runs and not single:
                run = runs[-1]
                fits = run.cols == block.cols and run.rows + block.rows <= MAX_ROWS
                follows = (
                    run.base + run.rows == block.base
                    and run.base // bank == block.base // bank
                    and (term is None or run.term_base + run.rows == block.term_base)
                )
                if fits and (spilled or follows):
                    runs[-1] = run._replace(rows=run.rows + block.rows)
                    continue
            runs.append(block)
        return runs

    def _quantize_rows(self, block: Block, **fields: int) -> dict[str, int]:
        """Fields of the row operation that quantizes a block."""
        quantize = self.product.quantize
        assert quantize is not None
        rows = {
            "opcode": Opcode.ROWS,
            "mode": Mode.INT8 if quantize.bits == 8 else Mode.INT16,
            "src_a": Reg.RATIO,
            "src_base": block.base,
            "rows": block.rows,
            "cols": block.cols,
            "delayed": int(quantize.record != 0),
        }
        if quantize.word is not None:
            steps = (COL_STEP, ROW_STEP) if quantize.transposed else (ROW_STEP, COL_STEP)
            word = quantize.word + block.row0 * steps[0] + block.col0 * steps[1]
            rows |= {
                "stochastic": 1,
                "transposed": int(quantize.transposed),
                "word0": word & 0xFFFFFFFF,
            }
        return rows | fields

    def _block_posts(self, block: Block) -> list[dict[str, int]]:
        """Row operations on a block while the array computes the next ones."""
        product, quantize = self.product, self.product.quantize
        just_in_time = quantize is not None and quantize.record == 0
        delayed = quantize is not None and quantize.record != 0
        term = product.low_rank
        emit = product.emit or (just_in_time and not self.plan.resident)
        rows: dict[str, int] = {
            "opcode": Opcode.ROWS,
            "rows": block.rows,
            "cols": block.cols,
            "emit": int(emit),
            "amax": int(quantize is not None),
            "limit": self.limit,
            "src_base": block.base,
        }
        if term is not None:
            rows |= {
                "mode": Mode.ACC,
                "src_a": Reg.TERM,
                "src_base": block.term_base,
                "dst_base": block.base,
                "add": 1,
                "bias": int(term.bias is not None),
                "write": int(quantize is not None and (self.plan.resident or delayed)),
            }
        elif delayed and not emit:
            return [self._quantize_rows(block, amax=1)]
        return [rows, self._quantize_rows(block)] if delayed else [rows]

    def posts(self) -> None:
        """Queues the post commands that run beside the array, up to the maximum."""
        product, quantize, term = self.product, self.product.quantize, self.product.low_rank
        post = self.device.post
        for opcode, dst, a, b in product.scales:
            self._scale(opcode, dst, a, b)
        self._scale(Opcode.SCALE_READ, a=Reg.ACC)
        if quantize is not None:
            limit = nx.from_int(nx.qmax(quantize.bits))
            post(opcode=Opcode.SCALE_SET, dst=Reg.QMAX, imm=scale_imm(limit))
            post(opcode=Opcode.AMAX_SET, dst=AmaxReg.STEP, imm=0)
            if quantize.record:
                post(opcode=Opcode.AMAX_SET, dst=AmaxReg.RECORD, imm=quantize.record)
                self._ratio(AmaxReg.RECORD)
        groups, lead = self.plan.groups, self.plan.lead
        for number, group in enumerate(groups):
            commands: list[tuple[NDArray[np.int64] | None, dict[str, int]]] = []
            for run in self._runs(group):
                if term is not None and term.bias is not None:
                    bias = np.zeros((1, self.config.cols), np.int64)
                    bias[0, : run.cols] = term.bias[run.col0 : run.col0 + run.cols]
                    commands.append((bias, {"opcode": Opcode.BIAS}))
                commands += [(None, fields) for fields in self._block_posts(run)]
            for position, (beats, fields) in enumerate(commands):
                last = position == len(commands) - 1
                signal = last and number + lead < len(groups)
                post(beats, **fields, wait=int(position == 0), signal=int(signal))
        if quantize is not None:
            self._scale(Opcode.COLLECT, AmaxReg.STEP)
            self._scale(Opcode.AMAX_READ, a=AmaxReg.STEP)
            if not quantize.record:
                self._ratio(AmaxReg.STEP)

    async def run(self) -> tuple[ProductResult, int | None, int]:
        """Queues everything, runs it and returns the result, cycles and sticky bits."""
        product, quantize, plan = self.product, self.product.quantize, self.plan
        # Resident blocks are quantized as they lie in the buffer: the most rows per operation.
        by_place = sorted(plan.blocks, key=lambda block: block.base)
        order = by_place if plan.resident else plan.blocks
        self.tiles()
        self.posts()
        spilled = quantize is not None and not quantize.record and not plan.resident
        if quantize is not None and not spilled:
            if plan.resident:
                for run in self._runs(order):
                    self.device.post(None, **self._quantize_rows(run))
            self._finish()
        outputs = await self.device.flush()
        cycles, info = outputs.cycles, outputs.info
        acc = None
        if product.emit or spilled:
            acc = self._gathered(outputs.acc_out, plan.blocks)
        result = outputs.result
        if spilled:
            second = await self._requantize(outputs.acc_out)
            result, info = second.result, info + second.info
            cycles = None if cycles is None else cycles + (second.cycles or 0)
            outputs = second
        done = ProductResult(acc if product.emit else None, _scale(info[0]), None, nx.ZERO, 0)
        if quantize is not None:
            done.q, done.amax, done.q_scale = (
                self._gathered(result, order),
                info[1]["amax"],
                _scale(info[2]),
            )
        return done, cycles, outputs.sticky

    def _finish(self) -> None:
        self._scale(Opcode.SCALE_DIV, self.product.keep, Reg.ACC, Reg.RATIO)
        self._scale(Opcode.SCALE_READ, a=self.product.keep)

    async def _requantize(self, sums: NDArray[np.int64]) -> Outputs:
        """Streams spilled sums back to be quantized, now that their maximum is known."""
        start = 0
        for run in self._runs(self.plan.blocks, spilled=True):
            fields = self._quantize_rows(run, source=Source.STREAM, src_base=0)
            self.device.post(sums[start : start + run.rows], **fields)
            start += run.rows
        self._finish()
        return await self.device.flush()

    def _gathered(self, rows: NDArray[np.int64], order: list[Block]) -> NDArray[np.int64]:
        """Rows that left block by block, in that order, as the product's [M, N]."""
        whole = np.zeros((self.m, self.product.outputs), np.int64)
        start = 0
        for block in order:
            part = rows[start : start + block.rows]
            if part[:, block.cols :].any():
                raise RuntimeError(f"{self.product.name}: padding columns are not zero")
            whole[block.row0 : block.row0 + block.rows, block.col0 : block.col0 + block.cols] = (
                part[:, : block.cols]
            )
            start += block.rows
        if start != rows.shape[0]:
            raise RuntimeError(f"{self.product.name}: {rows.shape[0]} rows came, not {start}")
        return whole


def _scale(info: dict[str, int]) -> Scale:
    return Scale(info["m"], info["e"])


# The layer ------------------------------------------------------------------------------------


class _Shape(NamedTuple):
    """A product's operands by name, with the axes of the layer that they span.

    m, k, n : axes as the device computes it; low_rank : operands of the low-rank term.
    """

    formula: str
    streamed: str
    stationary: str
    edge: Edge
    m: str
    k: str
    n: str
    low_rank: tuple[str, str] | None = None


_SHAPES = {
    "H": _Shape("lora_A.X^T", "lora_A", "x", Edge.LEFT, "r", "d", "N"),
    "Y": _Shape("X.W^T + H.lora_B^T", "x", "weight", Edge.LEFT, "N", "d", "k", ("H", "lora_B")),
    "dH": _Shape("lora_B^T.dY^T", "lora_B", "dy", Edge.LEFT, "r", "k", "N"),
    "dB": _Shape("H^T.dY", "H", "dy", Edge.TOP, "r", "N", "k"),
    "dA": _Shape("dH^T.X", "dH", "x", Edge.TOP, "r", "N", "d"),
    "dX": _Shape("dY.W + dH.lora_A", "dy", "weight", Edge.TOP, "N", "k", "d", ("dH", "lora_A")),
}


def product_records(layer: Layer) -> list[ProductRecord]:
    """The products of a layer in the order in which they run, their cycles unknown."""
    axes = {"N": layer.batch, "d": layer.inputs, "k": layer.outputs, "r": layer.rank}
    records = []
    for name in _names(layer):
        shape = _SHAPES[name]
        m, k, n = (axes[axis] for axis in (shape.m, shape.k, shape.n))
        passes = _passes(layer, shape.streamed, shape.stationary)
        macs = m * k * n * passes
        low_rank = None if layer.is_frozen else shape.low_rank
        if low_rank is not None:
            macs += m * layer.rank * n * _passes(layer, *low_rank)
        records.append(
            ProductRecord(
                name=name,
                formula=shape.formula.partition(" + ")[0] if layer.is_frozen else shape.formula,
                m=m,
                k=k,
                n=n,
                dataflow="WS" if low_rank is None else "WS+OS",
                edge=shape.edge.name.lower(),
                passes=passes,
                macs=macs,
            )
        )
    return records


def _names(layer: Layer) -> list[str]:
    sums = () if layer.is_frozen else ("dA", "dB")
    return [name for name in _SHAPES if name in (*layer.results, *sums)]


def _passes(layer: Layer, a: str, b: str) -> int:
    """Passes of the int8 array for operands of these widths (numerics section 8)."""
    return layer.bits_of(a) // 8 * (layer.bits_of(b) // 8)


def act_beats(layer: Layer, config: AcceleratorConfig) -> int:
    """About how many `act` beats a layer takes, to measure progress with."""
    beats = 0
    for record in product_records(layer):
        columns = ceil_div(record.n, config.cols)
        beats += ceil_div(record.k, config.rows) * columns * record.m * record.passes
        term = _SHAPES[record.name].low_rank
        if term is not None and not layer.is_frozen:
            tiles = ceil_div(record.m, config.rows) * columns
            beats += tiles * layer.rank * _passes(layer, *term)
    return beats


def check_layer(layer: Layer, config: AcceleratorConfig) -> None:
    """Raises CompileError where the configuration or numerics section 9 forbids the layer."""
    n, d = layer.x.shape
    for name, length in (("N", n), ("d", d), ("k", layer.outputs), ("r", layer.rank)):
        if length >= nx.K_LIMIT:
            raise CompileError(f"{name} = {length}: a reduction must be below {nx.K_LIMIT}")
    if config.int16:
        return
    for name in layer.present:
        if layer.operand(name).dtype != np.int8:
            raise CompileError(f"{name} is int16: the configuration was generated without int16")
    for name in _names(layer):
        if name not in ("dA", "dB") and layer.bits_of(name) != 8:
            raise CompileError(
                f"bits.{name} = {layer.bits_of(name)}: the configuration was generated without "
                "int16"
            )


class _Layer:
    """One layer on one device."""

    def __init__(self, device: CoreDevice, layer: Layer) -> None:
        self.device, self.layer = device, layer
        self.records = product_records(layer)
        self.amax: dict[str, int] = {}
        self.sticky = 0

    def set_scales(self) -> None:
        """The file's scales into their registers: all that software knows of scales."""
        scales, gain = self.layer.scales, self.layer.gain
        assert gain is not None
        for reg, scale in (
            (Reg.X, scales["x"]),
            (Reg.WEIGHT, scales["weight"]),
            (Reg.LORA_A, scales["lora_A"]),
            (Reg.LORA_B, scales["lora_B"]),
            (Reg.DY, scales["dy"]),
            (Reg.GAIN, gain),
        ):
            self.device.post(opcode=Opcode.SCALE_SET, dst=reg, imm=scale_imm(scale))

    def quantization(self, name: str) -> Quantization:
        layer = self.layer
        delayed = name in layer.delayed
        word = None
        if name in layer.stochastic:
            tensor = 0x10000 + 8 * layer.index + ("H", "Y", "dH", "dX").index(name)
            word = nx.seed_word(layer.seed, layer.step, tensor)
        return Quantization(
            bits=layer.bits_of(name),
            record=(layer.amax.get(name) or 0) if delayed else 0,
            word=word,
            transposed=name in ("H", "dH"),
            delayed=delayed,
        )

    async def product(self, name: str, **fields: Any) -> ProductResult:
        """Runs one product and keeps its record, maximum and sticky bits."""
        product = Product(name=name, edge=_SHAPES[name].edge, **fields)
        result, cycles, sticky = await _Compiler(self.device, product).run()
        self.records[list(_SHAPES).index(name)].cycles = cycles
        self.sticky |= sticky
        quantize = product.quantize
        if quantize is not None and quantize.delayed:
            self.amax[name] = result.amax or quantize.record
        return result

    async def run(self) -> LayerResult:
        layer = self.layer
        x, w = layer.x, layer.weight
        a, dy = layer.operand("lora_A"), layer.operand("dy")
        b_t = np.ascontiguousarray(layer.operand("lora_B").T)
        mul, div = Opcode.SCALE_MUL, Opcode.SCALE_DIV
        tensors: dict[str, Array] = {}
        scales: dict[str, Scale] = {}

        def quantized(name: str, result: ProductResult, transposed: bool) -> Array:
            """Stores a quantized tensor as files hold it, and returns it as the device holds it."""
            assert result.q is not None
            rows = result.q.astype(nx.operand_dtype(layer.bits_of(name)))
            tensors[name] = np.ascontiguousarray(rows.T) if transposed else rows
            scales[name] = result.q_scale
            return rows

        def sums(name: str, result: ProductResult, bits: int, transposed: bool) -> None:
            assert result.acc is not None
            rows = result.acc.astype(np.int32 if bits == nx.NARROW_BITS else np.int64)
            tensors[name] = np.ascontiguousarray(rows.T) if transposed else rows
            scales[name] = result.acc_scale

        self.set_scales()
        # Forward (numerics section 5, steps 1 to 3).
        result = await self.product(
            "H",
            streamed=a,
            stationary=x,
            acc_bits=layer.acc_bits("x", "lora_A"),
            scales=((mul, Reg.ACC, Reg.X, Reg.LORA_A),),
            quantize=self.quantization("H"),
            keep=Reg.H,
        )
        h_t = quantized("H", result, transposed=True)
        y_bits = layer.acc_bits("x", "weight")
        result = await self.product(
            "Y",
            streamed=x,
            stationary=w,
            acc_bits=y_bits,
            scales=(
                (mul, Reg.ACC, Reg.X, Reg.WEIGHT),
                (mul, Reg.SCRATCH, Reg.GAIN, Reg.H),
                (mul, Reg.SCRATCH, Reg.SCRATCH, Reg.LORA_B),
                (div, Reg.TERM, Reg.SCRATCH, Reg.ACC),
            ),
            low_rank=LowRank(h_t, b_t, layer.bias),
            emit=True,
            quantize=self.quantization("Y"),
        )
        quantized("Y", result, transposed=False)
        sums("Y_acc", result, y_bits, transposed=False)

        # Backward, steps 4 to 7.
        result = await self.product(
            "dH",
            streamed=b_t,
            stationary=dy,
            acc_bits=layer.acc_bits("dy", "lora_B"),
            scales=(
                (mul, Reg.SCRATCH, Reg.GAIN, Reg.DY),
                (mul, Reg.ACC, Reg.SCRATCH, Reg.LORA_B),
            ),
            quantize=self.quantization("dH"),
            keep=Reg.DH,
        )
        dh_t = quantized("dH", result, transposed=True)
        bits = layer.acc_bits("H", "dy")
        result = await self.product(
            "dB",
            streamed=h_t,
            stationary=dy,
            acc_bits=bits,
            scales=(
                (mul, Reg.SCRATCH, Reg.GAIN, Reg.H),
                (mul, Reg.ACC, Reg.SCRATCH, Reg.DY),
            ),
            emit=True,
        )
        sums("dB", result, bits, transposed=True)
        bits = layer.acc_bits("x", "dH")
        result = await self.product(
            "dA",
            streamed=dh_t,
            stationary=x,
            acc_bits=bits,
            scales=((mul, Reg.ACC, Reg.X, Reg.DH),),
            emit=True,
        )
        sums("dA", result, bits, transposed=False)
        if layer.want_dx:
            result = await self.product(
                "dX",
                streamed=dy,
                stationary=w,
                acc_bits=layer.acc_bits("dy", "weight"),
                scales=(
                    (mul, Reg.ACC, Reg.DY, Reg.WEIGHT),
                    (mul, Reg.SCRATCH, Reg.DH, Reg.LORA_A),
                    (div, Reg.TERM, Reg.SCRATCH, Reg.ACC),
                ),
                low_rank=LowRank(dh_t, a),
                quantize=self.quantization("dX"),
            )
            quantized("dX", result, transposed=False)
        sticky = {name for bit, name in enumerate(STICKY) if self.sticky >> bit & 1}
        return LayerResult(tensors=tensors, scales=scales, amax=self.amax, sticky=sticky)


async def compute_layer(
    device: CoreDevice, layer: Layer
) -> tuple[LayerResult, list[ProductRecord]]:
    """Runs a LoRA layer, forward and backward, on a device just reset.

    Returns the result as the golden model gives it, and a record of each product.

    Raises
    ------
    CompileError
        If the configuration cannot compute the layer.
    """
    check_layer(layer, device.config)
    run = _Layer(device, layer)
    return await run.run(), run.records
