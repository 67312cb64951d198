"""The products of a layer: their shapes and how many multiplications they are."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from systolora.contract import Dataflow, Edge
from systolora_sim.layer import Layer
from systolora_sim.product import Product
from systolora_sim.schedules import layer_schedule
from systolora_sim.training import TrainingState

__all__ = ["ProductRecord", "bare_record", "product_records", "step_macs"]


@dataclass
class ProductRecord:
    """What one product is.

    m, k, n : shape of the main product as the device computes it, [m, k] times [k, n]; dataflow :
    of the main product, then of the low-rank term, with a slash where its blocks alternate; passes
    : of the array, by byte planes; macs : multiplications with true operands, m * k * n * passes
    plus those of the low-rank term.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


def product_records(layer: Layer, schedule: str = "auto") -> list[ProductRecord]:
    """The products of a layer in the order in which they run, their cycles unknown."""
    dataflows = layer_schedule(schedule, layer.index)
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
        main = dataflows.gradients.get(name, Dataflow.WS)
        names = [main.name]
        if low_rank is not None:
            names.append("/".join(each.name for each in dataflows.terms[name]))
        records.append(
            ProductRecord(
                name=name,
                formula=shape.formula.partition(" + ")[0] if layer.is_frozen else shape.formula,
                m=m,
                k=k,
                n=n,
                dataflow="+".join(names),
                edge="" if main is Dataflow.OS else shape.edge.name.lower(),
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


def bare_record(product: Product) -> ProductRecord:
    """What a bare product is, its cycles unknown."""
    passes = product.bits_of("a") // 8 * (product.bits_of("b") // 8)
    return ProductRecord(
        name="c",
        formula={"nt": "a.b^T", "nn": "a.b", "tn": "a^T.b"}[product.kind],
        m=product.m,
        k=product.k,
        n=product.n,
        dataflow="OS" if product.kind == "tn" else "WS",
        edge={"nt": "left", "nn": "top", "tn": ""}[product.kind],
        passes=passes,
        macs=product.m * product.k * product.n * passes,
    )


def step_macs(state: TrainingState) -> int:
    """Multiplications of the products of one training step of all layers."""
    return sum(
        record.macs for each in state.layers.values() for record in product_records(each.layer)
    )
