"""SCALE-Sim's cycles for the products of LoRA layers: closed forms, and reading its reports.

SCALE-Sim (v3, github.com/scalesim-project/SCALE-Sim) simulates one product C[M, N] = A[M, K] .
B[K, N] at a time on a rigid array of R rows and C columns. Its input operand (ifmap) is A, its
filter is B, its output (ofmap) is C. Weight-stationary holds B[K, N], with K on the rows and N on
the columns, and streams A; output-stationary holds C[M, N]. Its cycles without memory stalls are
exactly these closed forms (docs/results/scalesim.json has them beside what the tool measured):

    OS = ceil(M/R) * ceil(N/C) * (K + R + C - 2) - 1
    WS = ceil(K/R) * ceil(N/C) * (R + M + R + C - 2) - 1

A product may also be computed transposed, as C^T = B^T . A^T: M and N change places. WS of the
transposed product is what SCALE-Sim calls input-stationary. Every product starts with an empty
array, and no product is shared among layers with one input: SCALE-Sim knows no such thing. Its
elements have no width, so int16 is out of its scope.
"""

import csv
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["PRODUCTS", "Gemm", "Report", "best_cycles", "layer_products", "os_cycles"]
__all__ += ["peer_cycles", "peers", "read_report", "ws_cycles"]

#: Names of products in the order of a training step.
PRODUCTS = ("H", "Y", "term", "dH", "dB", "dA", "dX", "dX term")

_SOURCE = (
    "closed forms of SCALE-Sim 3.0, equal to the tool's own cycles for the shapes in "
    "docs/results/scalesim.json; every product alone, no memory stalls"
)
_TITLES = {
    "WS": ("SCALE-Sim WS", "every product weight-stationary"),
    "OS": ("SCALE-Sim OS", "every product output-stationary"),
    "best": (
        "SCALE-Sim best of WS and OS",
        "the faster of WS and OS, the product transposed where that is faster, for each product",
    ),
}


class Gemm(NamedTuple):
    """A product [m, k] . [k, n] in SCALE-Sim's order of operands: ifmap, then filter."""

    m: int
    k: int
    n: int

    @property
    def macs(self) -> int:
        return self.m * self.k * self.n

    @property
    def transposed(self) -> "Gemm":
        return Gemm(self.n, self.k, self.m)


class Report(NamedTuple):
    """One layer of SCALE-Sim's reports.

    total : cycles from the first request of the array to its last output, stalls included; stall :
    of these, how many the memory caused; with_prefetch : total, the first filling of the buffers
    before and the last draining after it; ifmap_reads, filter_reads : elements read from memory.
    """

    total: int
    stall: int
    with_prefetch: int
    ifmap_reads: int
    filter_reads: int


def _ceil(value: int, step: int) -> int:
    return -(-value // step)


def ws_cycles(gemm: Gemm, rows: int = 64, cols: int = 64) -> int:
    """Cycles of a weight-stationary product without memory stalls."""
    folds = _ceil(gemm.k, rows) * _ceil(gemm.n, cols)
    return folds * (rows + gemm.m + rows + cols - 2) - 1


def os_cycles(gemm: Gemm, rows: int = 64, cols: int = 64) -> int:
    """Cycles of an output-stationary product without memory stalls."""
    folds = _ceil(gemm.m, rows) * _ceil(gemm.n, cols)
    return folds * (gemm.k + rows + cols - 2) - 1


def best_cycles(gemm: Gemm, rows: int = 64, cols: int = 64) -> int:
    """The fewest cycles of WS and OS, in either orientation."""
    return min(
        cycles(each, rows, cols)
        for cycles in (ws_cycles, os_cycles)
        for each in (gemm, gemm.transposed)
    )


_CYCLES = {"WS": ws_cycles, "OS": os_cycles, "best": best_cycles}


def layer_products(n: int, d: int, k: int, rank: int, dx: bool = True) -> dict[str, Gemm]:
    """The products of one LoRA layer, named as in PRODUCTS.

    x[n, d], W[k, d], A[rank, d], B[k, rank], dy[n, k]; `dx` says whether the gradient of x is
    wanted. Of every product the first operand is the ifmap and the second the filter:

        H = x.A^T   Y = x.W^T   term = H.B^T   dH = dy.B   dB = dy^T.H   dA = dH^T.x
        dX = dy.W   dX term = dH.A
    """
    products = {
        "H": Gemm(n, d, rank),
        "Y": Gemm(n, d, k),
        "term": Gemm(n, rank, k),
        "dH": Gemm(n, k, rank),
        "dB": Gemm(k, n, rank),
        "dA": Gemm(rank, n, d),
    }
    if dx:
        products |= {"dX": Gemm(n, k, d), "dX term": Gemm(n, rank, d)}
    return products


def _all_products(
    layers: Iterable[tuple[int, int, int, bool]], rank: int, batch: int
) -> Iterable[tuple[str, Gemm]]:
    for n, d, k, dx in layers:
        yield from layer_products(n * batch, d, k, rank, dx).items()


def peer_cycles(
    layers: Iterable[tuple[int, int, int, bool]],
    rank: int,
    batch: int,
    rows: int = 64,
    cols: int = 64,
) -> dict[str, dict[str, int]]:
    """Cycles of a training step's products on SCALE-Sim's array, by dataflow and product.

    layers : (rows of x of one sample, inputs d, outputs k, whether dX is wanted) of each layer; a
    layer that occurs more than once is given more than once. Keys: "WS", "OS", "best" (see
    `best_cycles`); in each the products of PRODUCTS that occur, in that order, summed over the
    layers.
    """
    listed = list(_all_products(layers, rank, batch))
    return {
        dataflow: {
            name: sum(cycles(gemm, rows, cols) for each, gemm in listed if each == name)
            for name in PRODUCTS
            if any(each == name for each, _ in listed)
        }
        for dataflow, cycles in _CYCLES.items()
    }


def peers(
    layers: Iterable[tuple[int, int, int, bool]],
    rank: int,
    batch: int,
    rows: int = 64,
    cols: int = 64,
) -> list[dict[str, Any]]:
    """`peer_cycles` as the entries of a performance report's "peers".

    share : multiplications / (rows * cols) / cycles.
    """
    layers = list(layers)
    macs = sum(gemm.macs for _, gemm in _all_products(layers, rank, batch))
    entries = []
    for dataflow, products in peer_cycles(layers, rank, batch, rows, cols).items():
        name, how = _TITLES[dataflow]
        cycles = sum(products.values())
        entries.append(
            {
                "name": name,
                "cycles": cycles,
                "macs": macs,
                "share": round(macs / (rows * cols) / cycles, 4) if cycles else 0.0,
                "products": [{"name": each, "cycles": products[each]} for each in products],
                "source": f"{_SOURCE}; {how}",
            }
        )
    return entries


def read_report(compute: str, accesses: str) -> list[Report]:
    """The layers of a COMPUTE_REPORT.csv and its DETAILED_ACCESS_REPORT.csv, in their order.

    Raises
    ------
    ValueError
        If a column is missing or is no number, or if the reports have different layers.
    """
    columns = ("Total Cycles", "Stall Cycles", "Total Cycles (incl. prefetch)")
    cycles = _columns("COMPUTE_REPORT.csv", compute, columns)
    columns = ("DRAM IFMAP Reads", "DRAM Filter Reads")
    reads = _columns("DETAILED_ACCESS_REPORT.csv", accesses, columns)
    if len(cycles) != len(reads):
        raise ValueError(f"DETAILED_ACCESS_REPORT.csv: {len(reads)} layers, must be {len(cycles)}")
    return [Report(*one, *other) for one, other in zip(cycles, reads, strict=True)]


def _columns(file: str, text: str, names: tuple[str, ...]) -> list[list[int]]:
    """The columns of those names, a list per line."""
    # A comma ends every line, and blanks follow the commas.
    lines = list(csv.reader(io.StringIO(text), skipinitialspace=True))
    try:
        indices = [lines[0].index(name) for name in names]
        return [[int(float(line[i])) for i in indices] for line in lines[1:] if line]
    except (IndexError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None
