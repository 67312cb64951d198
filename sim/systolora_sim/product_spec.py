"""What a product is to its lowering: operands, and what becomes of the sums."""

from dataclasses import dataclass

from systolora.contract import Dataflow, Edge
from systolora_sim.memory_map import Area, Symbol
from systolora_sim.quantization import Quantization

__all__ = ["LowRank", "Product"]


@dataclass(frozen=True)
class LowRank:
    """The low-rank term of a product: act^T @ top, act [r, M] and top [r, N], times `factor`.

    dataflows : of the blocks, block after block from the first on, again and again; rows : act
    transposed, [M, r], which the weight-stationary ones stream.
    """

    act: Symbol
    top: Symbol
    factor: str
    dataflows: tuple[Dataflow, ...] = (Dataflow.OS,)
    rows: Symbol | None = None


@dataclass(frozen=True)
class Product:
    """One product: its operands and what becomes of the sums.

    streamed : [M, K]; stationary : [N, K] (left edge) or [K, N] (top); edge : None: output
    stationary, both operands reduction-major, [K, M] and [K, N]; acc_bits : width of the sums; unit
    : the name of their Scale; bias : int32 [1, N] or None, in that unit; addend : sums [M, N] that
    are added, not together with a low-rank term, or None; sums : where they go, [M, N], or None;
    keep : whether that is a result, or only for a maximum that comes late; quantize : how they are
    quantized, or None; word : the status word that its events are for, or None if there are none;
    label, term_label : of the product and its low-rank term in reports; cached : the sums without
    the low-rank term, [M, N], of an earlier step: the array computes the term alone; or None;
    columns_first : whether all rows pass a column block before the next one comes; None: the order
    that reads less from memory.
    """

    name: str
    streamed: Symbol
    stationary: Symbol
    edge: Edge | None
    acc_bits: int
    unit: str
    low_rank: LowRank | None = None
    bias: Symbol | None = None
    addend: Symbol | None = None
    sums: Symbol | None = None
    keep: bool = False
    quantize: Quantization | None = None
    word: Area | None = None
    label: str = ""
    term_label: str = ""
    cached: Symbol | None = None
    columns_first: bool | None = None

    @property
    def m(self) -> int:
        return self.streamed.cols if self.edge is None else self.streamed.rows

    @property
    def k(self) -> int:
        return self.streamed.rows if self.edge is None else self.streamed.cols

    @property
    def n(self) -> int:
        return self.stationary.rows if self.edge == Edge.LEFT else self.stationary.cols

    @property
    def paired(self) -> bool:
        """Whether a block has sums and a term, in a bank each."""
        return self.low_rank is not None and self.cached is None
