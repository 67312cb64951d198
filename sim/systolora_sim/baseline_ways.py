"""How a rigid array computes each product of a training step, and in how many cycles.

A product left [M, K] . right [K, N] has four ways:

=================  ==========  ======================  ========================  ========
way                stationary  streams                 tiles                     result
=================  ==========  ======================  ========================  ========
WS                 right       the M rows of left      ceil(K/R) * ceil(N/C)     [M, N]
WS, turned         left        the N rows of right^T   ceil(K/R) * ceil(M/C)     [N, M]
OS                 the sums    left^T and right        ceil(M/R) * ceil(N/C)     [M, N]
OS, turned         the sums    right^T and left        ceil(N/R) * ceil(M/C)     [N, M]
=================  ==========  ======================  ========================  ========

Cycles of a tile, each byte plane of an int16 operand a pass of its own:

- fenced (load, compute and drain one after the other): load + M + R + C - 2, the textbook's count;
  SCALE-Sim's closed form of a product is this, summed over its tiles, less 1 (`scalesim`);
- overlapped WS (the next tile loads meanwhile): max(load, M);
- overlapped OS (a tile drains while the next accumulates): max(K, R).

The load is the time that a tile takes to enter: R / segments cycles from the top, C / segments from
the left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow
from systolora_sim.blocks import ceil_div

__all__ = ["OS", "PRODUCTS", "STORED", "TERMS", "WS", "Factors", "Rules", "Way", "Ways", "choose"]
__all__ += ["way_cycles"]

WS, OS = Dataflow.WS, Dataflow.OS

#: Axes of the tensors that a step is given, as memory holds them; r-major as everywhere.
STORED = {"x": "Nd", "weight": "kd", "dy": "Nk", "lora_A": "rd", "lora_B": "rk"}


class Factors(NamedTuple):
    """A product as the training step writes it: left [M, K], right [K, N], axes "MKN"."""

    left: str
    right: str
    axes: str

    def sizes(self, axes: Mapping[str, int], turned: bool) -> tuple[int, int, int]:
        """(M, K, N) of the product, or of the transposed one."""
        m, k, n = (axes[axis] for axis in self.axes)
        return (n, k, m) if turned else (m, k, n)


#: The products of a step in the order in which reports name them.
PRODUCTS = {
    "H": Factors("x", "lora_A", "Ndr"),
    "Y": Factors("x", "weight", "Ndk"),
    "Y term": Factors("H", "lora_B", "Nrk"),
    "dH": Factors("dy", "lora_B", "Nkr"),
    "dB": Factors("dy", "H", "kNr"),
    "dA": Factors("x", "dH", "dNr"),
    "dX": Factors("dy", "weight", "Nkd"),
    "dX term": Factors("dH", "lora_A", "Nrd"),
}
#: Low-rank terms that join the sums of a product in the accumulators.
TERMS = {"Y": "Y term", "dX": "dX term"}
_TERM_FACTORS = tuple(PRODUCTS[name] for name in TERMS.values())


class Way(NamedTuple):
    """One way to compute a product.

    turned : the transposed product, see above
    """

    dataflow: Dataflow
    turned: bool

    def streamed(self, factors: Factors) -> tuple[str, str]:
        """What moves past: a tensor, and the order of its axes that it must lie in."""
        m, k, n = factors.axes
        tensor, row = (factors.right, n) if self.turned else (factors.left, m)
        return tensor, row + k if self.dataflow is WS else k + row

    def other(self, factors: Factors) -> tuple[str, str]:
        """The other operand; a stationary one may lie either way, since there are two edges."""
        m, k, n = factors.axes
        tensor, col = (factors.left, m) if self.turned else (factors.right, n)
        return tensor, k + col

    def result(self, factors: Factors) -> str:
        """The order of the result's axes in memory."""
        m, _, n = factors.axes
        return n + m if self.turned else m + n


@dataclass(frozen=True)
class Rules:
    """What a kind of array may do.

    fenced : tiles come one after the other; dataflows : that it has; better : it may take the
    transposed product where that is faster, else right operands are stationary
    """

    fenced: bool
    dataflows: tuple[Dataflow, ...]
    better: bool

    def ways(self) -> list[Way]:
        turns = (False, True) if self.better else (False,)
        return [Way(dataflow, turned) for dataflow in self.dataflows for turned in turns]


def way_cycles(
    rules: Rules,
    way: Way,
    factors: Factors,
    axes: Mapping[str, int],
    planes: Mapping[str, int],
    config: AcceleratorConfig,
) -> int:
    """Cycles of a product by the textbook.

    Parameters
    ----------
    axes : sizes of N, d, k and r
    planes : byte planes of each tensor
    """
    m, k, n = factors.sizes(axes, way.turned)
    moving, other = (planes[each(factors)[0]] for each in (way.streamed, way.other))
    rows, cols = config.rows, config.cols
    if way.dataflow is OS:
        tiles = ceil_div(m, rows) * ceil_div(n, cols) * moving * other
        return tiles * (k + rows + cols - 2 if rules.fenced else max(k, rows))
    tensor, order = way.other(factors)
    top = STORED.get(tensor, order) == order
    load = config.top_load if top else config.left_load
    tiles = ceil_div(k, rows) * ceil_div(n, cols) * other
    if rules.fenced:
        return tiles * (load + moving * (m + rows + cols - 2))
    return tiles * max(load, m * moving)


@dataclass(frozen=True)
class Ways:
    """The way of each product of a layer, by name.

    cycles : of each, by the textbook; stored : the order of each tensor's axes in memory; images :
    (tensor, order) of what is read in another order than that
    """

    ways: dict[str, Way]
    cycles: dict[str, int]
    stored: dict[str, str]
    images: tuple[tuple[str, str], ...]

    def __getitem__(self, product: str) -> Way:
        return self.ways[product]


def _images(way: Way, factors: Factors, stored: Mapping[str, str]) -> set[tuple[str, str]]:
    """What a way reads in another order than the one in memory."""
    needed = [way.streamed(factors)]
    tensor, order = way.other(factors)
    # A term's stationary operand enters from the top, what else is stationary from either edge.
    if way.dataflow is OS or factors in _TERM_FACTORS:
        needed.append((tensor, order))
    return {each for each in needed if stored[each[0]] != each[1]}


def choose(
    rules: Rules,
    axes: Mapping[str, int],
    planes: Mapping[str, int],
    config: AcceleratorConfig,
    dx: bool,
) -> Ways:
    """The fastest way of each product; of equals the one that needs fewer operands turned.

    A term goes the way of its product: their sums lie in the accumulators alike.
    """
    stored, ways, cycles = dict(STORED), {}, {}
    images: set[tuple[str, str]] = set()

    def count(name: str, way: Way) -> tuple[int, int, int]:
        factors = PRODUCTS[name]
        rows = factors.sizes(axes, way.turned)[0]
        time = way_cycles(rules, way, factors, axes, planes, config)
        return time, len(_images(way, factors, stored)), rows

    for name in ("H", "dH", "dB", "dA", "Y", *(("dX",) if dx else ())):
        best: tuple[tuple[int, int, int], dict[str, Way]] | None = None
        for way in rules.ways():
            chosen, cost = {name: way}, count(name, way)
            if name in TERMS:
                term = TERMS[name]
                alike = [each for each in rules.ways() if each.turned == way.turned]
                extra, chosen[term] = min((count(term, each), each) for each in alike)
                cost = cost[0] + extra[0], cost[1] + extra[1], cost[2]
            if best is None or cost < best[0]:
                best = cost, chosen
        assert best is not None
        for each, way in best[1].items():
            factors = PRODUCTS[each]
            ways[each], cycles[each] = way, count(each, way)[0]
            images |= _images(way, factors, stored)
        stored[name] = ways[name].result(PRODUCTS[name])
    return Ways(ways, cycles, stored, tuple(sorted(images)))
