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
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.numerics import Scale
from systolora_sim.program import CoreDevice, Outputs

__all__ = ["CompileError", "ProductRecord", "compute_layer", "estimate_cycles", "layer_products"]

#: Deepest output-stationary pass: of two low planes, and of any other (numerics section 8).
LOW_DEPTH, DEPTH = 1 << 15, (1 << 17) - 1
#: Blocks that the array may be ahead of the post-processor: keeps the tokens below their maximum.
MAX_LEAD = 128

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


# Operands as beats ----------------------------------------------------------------------------


class Plane(NamedTuple):
    """One byte plane: value = bytes * 256^weight, unsigned bytes where `low`."""

    bytes: NDArray[np.uint8]
    weight: int
    low: bool


def _planes(tensor: Array) -> list[Plane]:
    """The byte planes of an int8 or int16 tensor, high plane first (numerics section 8)."""
    if tensor.dtype == np.int8:
        return [Plane(np.ascontiguousarray(tensor).view(np.uint8), 0, False)]
    high, low = nx.byte_planes(tensor)
    return [
        Plane(high.astype(np.int8).view(np.uint8), 1, False),
        Plane(low.astype(np.uint8), 0, True),
    ]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _padded(array: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.uint8]:
    wide = np.zeros((rows, cols), np.uint8)
    wide[: array.shape[0], : array.shape[1]] = array
    return wide


def _streamed(plane: Plane, config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Beats of a streamed operand [M, K]: [K blocks, M, R]."""
    m, k = plane.bytes.shape
    blocks = _ceil(k, config.rows)
    wide = _padded(plane.bytes, m, blocks * config.rows)
    return np.ascontiguousarray(wide.reshape(m, blocks, config.rows).transpose(1, 0, 2))


def _stationary(plane: Plane, edge: Edge, config: AcceleratorConfig) -> NDArray[np.uint8]:
    """Beats of a stationary operand: [output blocks, K blocks, beats, S * lanes].

    Stored [outputs, K] for the left edge, [K, outputs] for the top edge. Beat n, line s is line
    s * L + L-1-n of the tile: the element that travels furthest enters first.
    """
    rows, cols, s = config.rows, config.cols, config.segments
    if edge == Edge.LEFT:
        line_count, line_bytes, beats = cols, rows, config.left_load
        outs, ks = _ceil(plane.bytes.shape[0], cols), _ceil(plane.bytes.shape[1], rows)
        wide = _padded(plane.bytes, outs * cols, ks * rows)
        lines = wide.reshape(outs, cols, ks, rows).transpose(0, 2, 1, 3)
    else:
        line_count, line_bytes, beats = rows, cols, config.top_load
        ks, outs = _ceil(plane.bytes.shape[0], rows), _ceil(plane.bytes.shape[1], cols)
        wide = _padded(plane.bytes, ks * rows, outs * cols)
        lines = wide.reshape(ks, rows, outs, cols).transpose(2, 0, 1, 3)
    assert line_count == s * beats
    split = lines.reshape(outs, ks, s, beats, line_bytes)[:, :, :, ::-1].transpose(0, 1, 3, 2, 4)
    out = np.zeros((outs, ks, beats, s, config.lanes), np.uint8)
    out[..., :line_bytes] = split
    return out.reshape(outs, ks, beats, s * config.lanes)


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

    streamed [M, K]; stationary [N, K] (left) or [K, N] (top); acc_bits : width of the sums; acc :
    Scale commands that leave the sums' scale in `Reg.ACC` and a low-rank factor in `Reg.TERM`;
    emit : the sums leave as results; quantize : or None; keep : register for the quantized scale.
    """

    name: str
    formula: str
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


class Block(NamedTuple):
    """A block of a product's output and its place in the accumulator buffer."""

    index: int
    row0: int
    rows: int
    col_block: int
    col0: int
    cols: int
    base: int  # the sums
    term_base: int  # the low-rank term


@dataclass(frozen=True)
class Plan:
    """Blocks in order; `lead` : block b may start when the post-processor is done with b - lead."""

    blocks: list[Block]
    lead: int
    resident: bool


def _plan(config: AcceleratorConfig, m: int, n: int, low_rank: bool, want_resident: bool) -> Plan:
    """Places the blocks of an [m, n] output; all of them at once if wanted and possible."""
    bank = config.bank_depth
    limit = bank // (2 if low_rank else 1)
    rows = _ceil(m, _ceil(m, limit))
    if low_rank and _ceil(rows, config.rows) * config.rows <= limit:
        rows = min(m, _ceil(rows, config.rows) * config.rows)  # whole output-stationary tiles
    places = [
        (row0, min(rows, m - row0), column, col0, min(config.cols, n - col0))
        for column, col0 in enumerate(range(0, n, config.cols))
        for row0 in range(0, m, rows)
    ]
    per_bank = _ceil(len(places), 2)
    terms = min((bank - per_bank * rows) // rows, per_bank) if low_rank else 0
    resident = want_resident and per_bank * rows <= bank and (terms >= 1 or not low_rank)
    if resident:
        lead = 2 * terms if low_rank else len(places)
    else:
        slots = limit // rows
        lead = 2 * slots
    blocks = []
    for index, place in enumerate(places):
        start, turn = (index % 2) * bank, index // 2
        if resident:
            base = start + turn * rows
            term_base = start + (per_bank + turn % terms) * rows if low_rank else 0
        else:
            base = start + (turn % slots) * rows
            term_base = base + slots * rows
        blocks.append(Block(index, *place, base, term_base))
    return Plan(blocks, min(lead, MAX_LEAD), resident)


class _Compiler:
    """Queues one product on a device and collects what it gives."""

    def __init__(self, device: CoreDevice, product: Product) -> None:
        self.device, self.product = device, product
        self.config = config = device.config
        self.m, self.k = product.streamed.shape
        quantize = product.quantize
        self.plan = _plan(
            config,
            self.m,
            product.outputs,
            product.low_rank is not None,
            quantize is not None and quantize.record == 0,
        )
        planes = [_planes(product.streamed), _planes(product.stationary)]
        self.acts = [(p, _streamed(p, config)) for p in planes[0]]
        self.wgts = [(p, _stationary(p, product.edge, config)) for p in planes[1]]
        self.limit = Limit.ACC32 if product.acc_bits == nx.NARROW_BITS else Limit.ACC
        self._in_array: tuple[int, int, int] | None = None

    # Array --------------------------------------------------------------------------------------

    def tiles(self) -> None:
        """Queues all tile commands."""
        blocks, lead = self.plan.blocks, self.plan.lead
        for block in blocks:
            # Alternating the order of the two kinds halves the drains that weight-stationary
            # tiles must wait for.
            kinds = [self._main(block), self._term(block)]
            commands = [c for kind in (kinds if block.index % 2 == 0 else kinds[::-1]) for c in kind]
            for position, (act, wgt, fields) in enumerate(commands):
                wait = position == 0 and block.index >= lead
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
        for plane in _planes(term.top[:, block.col0 : block.col0 + block.cols]):
            tops.append((plane, _padded(plane.bytes, r, config.segments * config.lanes)))
        for row in range(0, block.rows, config.rows):
            count = min(config.rows, block.rows - row)
            start, first = block.row0 + row, True
            for left in _planes(term.act[:, start : start + count]):
                act = _padded(left.bytes, r, config.rows)
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
            post(opcode=Opcode.SCALE_SET, dst=Reg.QMAX, imm=_scale_imm(limit))
            post(opcode=Opcode.AMAX_SET, dst=AmaxReg.STEP, imm=0)
            if quantize.record:
                post(opcode=Opcode.AMAX_SET, dst=AmaxReg.RECORD, imm=quantize.record)
                self._ratio(AmaxReg.RECORD)
        blocks, lead = self.plan.blocks, self.plan.lead
        for block in blocks:
            wait = 1
            if term is not None and term.bias is not None:
                bias = np.zeros((1, self.config.cols), np.int64)
                bias[0, : block.cols] = term.bias[block.col0 : block.col0 + block.cols]
                post(bias, opcode=Opcode.BIAS)
            commands = self._block_posts(block)
            for position, fields in enumerate(commands):
                last = position == len(commands) - 1
                signal = int(last and block.index + lead < len(blocks))
                post(**fields, wait=wait, signal=signal)
                wait = 0
        if quantize is not None:
            self._scale(Opcode.COLLECT, AmaxReg.STEP)
            self._scale(Opcode.AMAX_READ, a=AmaxReg.STEP)
            if not quantize.record:
                self._ratio(AmaxReg.STEP)

    async def run(self) -> tuple[ProductResult, int | None, int]:
        """Queues everything, runs it and returns the result, cycles and sticky bits."""
        product, quantize, plan = self.product, self.product.quantize, self.plan
        self.tiles()
        self.posts()
        spilled = quantize is not None and not quantize.record and not plan.resident
        if quantize is not None and not spilled:
            if plan.resident:
                for block in plan.blocks:
                    self.device.post(**self._quantize_rows(block))
            self._finish()
        outputs = await self.device.flush()
        cycles, info = outputs.cycles, outputs.info
        acc = None
        if product.emit or spilled:
            acc = self._gathered(outputs.acc_out)
        result = outputs.result
        if spilled:
            second = await self._requantize(outputs.acc_out)
            result, info = second.result, info + second.info
            cycles = None if cycles is None else cycles + (second.cycles or 0)
            outputs = second
        done = ProductResult(acc if product.emit else None, _scale(info[0]), None, nx.ZERO, 0)
        if quantize is not None:
            done.q, done.amax, done.q_scale = self._gathered(result), info[1]["amax"], _scale(info[2])
        return done, cycles, outputs.sticky

    def _finish(self) -> None:
        self._scale(Opcode.SCALE_DIV, self.product.keep, Reg.ACC, Reg.RATIO)
        self._scale(Opcode.SCALE_READ, a=self.product.keep)

    async def _requantize(self, sums: NDArray[np.int64]) -> Outputs:
        """Streams spilled sums back to be quantized, now that their maximum is known."""
        start = 0
        for block in self.plan.blocks:
            fields = self._quantize_rows(block, source=Source.STREAM, src_base=0)
            self.device.post(sums[start : start + block.rows], **fields)
            start += block.rows
        self._finish()
        return await self.device.flush()

    def _gathered(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows in block order as the product's [M, N]."""
        whole = np.zeros((self.m, self.product.outputs), np.int64)
        start = 0
        for block in self.plan.blocks:
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

    def record(self) -> ProductRecord:
        product, term = self.product, self.product.low_rank
        passes = len(self.acts) * len(self.wgts)
        macs = self.m * self.k * product.outputs * passes
        if term is not None:
            count = len(_planes(term.act[:, :1])) * len(_planes(term.top[:, :1]))
            macs += self.m * term.act.shape[0] * product.outputs * count
        return ProductRecord(
            name=product.name,
            formula=product.formula,
            m=self.m,
            k=self.k,
            n=product.outputs,
            dataflow="WS" if term is None else "WS+OS",
            edge=product.edge.name.lower(),
            passes=passes,
            macs=macs,
        )


def _scale_imm(scale: Scale) -> int:
    return scale.m | (scale.e & 0x3FF) << 16


def _scale(info: dict[str, int]) -> Scale:
    return Scale(info["m"], info["e"])


# The layer ------------------------------------------------------------------------------------

_FORMULAS = {
    "H": "lora_A.X^T",
    "Y": "X.W^T + H.lora_B^T",
    "dH": "lora_B^T.dY^T",
    "dB": "H^T.dY",
    "dA": "dH^T.X",
    "dX": "dY.W + dH.lora_A",
}


def layer_products(layer: Layer) -> list[str]:
    """Names of the products of a layer, in the order in which they run."""
    return ["H", "Y", "dH", "dB", "dA"] + (["dX"] if layer.want_dx else [])


def _check(layer: Layer, config: AcceleratorConfig) -> None:
    """Raises CompileError where the configuration or numerics section 9 forbids the layer."""
    n, d = layer.x.shape
    k, r = layer.lora_B.shape
    for name, length in (("N", n), ("d", d), ("k", k), ("r", r)):
        if length >= nx.K_LIMIT:
            raise CompileError(f"{name} = {length}: a reduction must be below {nx.K_LIMIT}")
    if config.int16:
        return
    for name in ("x", "weight", "lora_A", "lora_B", "dy"):
        if getattr(layer, name).dtype != np.int8:
            raise CompileError(f"{name} is int16: the configuration was generated without int16")
    for name in layer_products(layer):
        if name not in ("dA", "dB") and layer.bits_of(name) != 8:
            raise CompileError(
                f"bits.{name} = {layer.bits_of(name)}: the configuration was generated without "
                "int16"
            )


def estimate_cycles(layer: Layer, config: AcceleratorConfig) -> dict[str, int]:
    """About how many cycles each product takes (tiles at their rate, no latencies)."""
    n, d = layer.x.shape
    k, r = layer.lora_B.shape
    rows, cols = config.rows, config.cols
    x, w, dy = (1 if t.dtype == np.int8 else 2 for t in (layer.x, layer.weight, layer.dy))

    def ws(m: int, depth: int, n: int, load: int, passes: int) -> int:
        return _ceil(depth, rows) * _ceil(n, cols) * max(m, load) * passes

    left, top = config.left_load, config.top_load
    cycles = {
        "H": ws(r, d, n, left, x * x),
        "Y": ws(n, d, k, left, x * w),
        "dH": ws(r, k, n, left, x * dy),
        "dB": ws(r, n, k, top, x * dy),
        "dA": ws(r, n, d, top, x * dy),
        "dX": ws(n, k, d, top, dy * w),
    }
    return {name: cycles[name] for name in layer_products(layer)}


class _Layer:
    """One layer on one device."""

    def __init__(self, device: CoreDevice, layer: Layer) -> None:
        self.device, self.layer = device, layer
        self.records: list[ProductRecord] = []
        self.amax: dict[str, int] = {}
        self.sticky = 0

    def set_scales(self) -> None:
        """The file's scales into their registers: all that software knows of scales."""
        scales = self.layer.scales
        for reg, scale in (
            (Reg.X, scales["x"]),
            (Reg.WEIGHT, scales["weight"]),
            (Reg.LORA_A, scales["lora_A"]),
            (Reg.LORA_B, scales["lora_B"]),
            (Reg.DY, scales["dy"]),
            (Reg.GAIN, self.layer.gain),
        ):
            self.device.post(opcode=Opcode.SCALE_SET, dst=reg, imm=_scale_imm(scale))

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
        product = Product(name=name, formula=_FORMULAS[name], **fields)
        compiler = _Compiler(self.device, product)
        result, cycles, sticky = await compiler.run()
        record = compiler.record()
        record.cycles = cycles
        self.records.append(record)
        self.sticky |= sticky
        quantize = product.quantize
        if quantize is not None and quantize.delayed:
            self.amax[name] = result.amax or quantize.record
        return result

    async def run(self) -> LayerResult:
        layer = self.layer
        x, w, a, dy = layer.x, layer.weight, layer.lora_A, layer.dy
        b_t = np.ascontiguousarray(layer.lora_B.T)
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
            edge=Edge.LEFT,
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
            edge=Edge.LEFT,
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
            edge=Edge.LEFT,
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
            edge=Edge.TOP,
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
            edge=Edge.TOP,
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
                edge=Edge.TOP,
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
    _check(layer, device.config)
    run = _Layer(device, layer)
    return await run.run(), run.records
