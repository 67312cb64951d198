"""docs/results/scalesim.md: what SCALE-Sim measured, as tables."""

from collections.abc import Iterator
from typing import Any

from systolora_sim.markdown import table
from systolora_sim.scalesim import PRODUCTS, Gemm, best_cycles, os_cycles, peer_cycles, ws_cycles
from systolora_sim.scalesim_runs import BATCHES, KV_LAYERS, RANKS, layer_products

__all__ = ["render"]

_INTRO = """\
# SCALE-Sim as a peer

Written by `{command}` (scalesim {scalesim}, numpy {numpy}, Python {python}; \
configurations: `benchmarks/scalesim/*.cfg`; all figures: `scalesim.json`). Cycles of the tool's \
own COMPUTE_REPORT on a 64 x 64 array. The shapes are those of the cross-attention keys and \
values of Stable Diffusion 1.5: N = 77 * batch tokens, d = 768 inputs, k outputs, rank r.

What SCALE-Sim is given: one product [M, K] . [K, N] at a time, in the order in which a LoRA layer \
is written down. The first operand is its ifmap, which WS streams; the second is its filter, which \
WS holds:

| product | ifmap [M, K] | filter [K, N] |
| --- | --- | --- |
| H | x [N, d] | A^T [d, r] |
| Y | x [N, d] | W^T [d, k] |
| term | H [N, r] | B^T [r, k] |
| dH | dy [N, k] | B [k, r] |
| dB | dy^T [k, N] | H [N, r] |
| dA | dH^T [r, N] | x [N, d] |
| dX | dy [N, k] | W [k, d] |
| dX term | dH [N, r] | A [r, d] |

"Best" is the fastest of WS, OS and both of the transposed product (WS of which is the tool's IS), \
chosen for each product. Products are not shared among layers, the array empties between products, \
transposes are free, and neither the quantization of results nor the update takes time.
"""


def _agreement(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("## Closed forms and the tool", "")
    yield "    OS = ceil(M/R) * ceil(N/C) * (K + R + C - 2) - 1"
    yield "    WS = ceil(K/R) * ceil(N/C) * (R + M + R + C - 2) - 1"
    yield ""
    rows = []
    for memory in ("stall-free", "64-bytes"):
        for dataflow in ("WS", "OS"):
            chosen = [r for r in runs if (r["memory"], r["dataflow"]) == (memory, dataflow)]
            equal = sum(run["total"] == run["closed_form"] for run in chosen)
            stalled = sum(run["stall"] > 0 for run in chosen)
            cycles = sum(run["closed_form"] for run in chosen)
            rows.append((dataflow, memory, len(chosen), equal, stalled, cycles))
    head = ("dataflow", "memory", "runs", "equal", "with stalls", "cycles of all")
    yield from table(head, rows, texts=2)
    seconds = sum(run["seconds"] for run in runs)
    cycles = sum(run["closed_form"] for run in runs)
    yield f"The tool simulated {cycles} cycles in {seconds:.0f} s; the closed forms take none."
    yield ""


def _layers() -> Iterator[str]:
    yield from ("## One layer, training step, stall-free", "")
    yield "Closed forms. Share: multiplications / (64 * 64) / cycles. Gain: best against WS, OS."
    yield ""
    for dx in (False, True):
        yield f"{'With' if dx else 'Without'} dX:"
        yield ""
        rows = []
        for batch in BATCHES:
            for rank in RANKS:
                for n, d, k, _ in KV_LAYERS:
                    peer = peer_cycles([(n, d, k, dx)], rank, batch)
                    ws, os, best = (sum(peer[name].values()) for name in ("WS", "OS", "best"))
                    gemms = layer_products(n * batch, d, k, rank, dx).values()
                    limit = sum(gemm.macs for gemm in gemms) / 4096
                    shares = (f"{limit / cycles:.1%}" for cycles in (ws, os, best))
                    gains = (f"{ws / best:.2f}", f"{os / best:.2f}")
                    rows.append((batch, rank, k, ws, os, best, *shares, *gains))
        head = ("batch", "rank", "k", "WS", "OS", "best")
        head += ("share WS", "share OS", "share best", "WS / best", "OS / best")
        yield from table(head, rows, texts=0)


def _products(batch: int, rank: int) -> Iterator[str]:
    yield f"## Products, batch {batch}, rank {rank}, stall-free"
    yield ""
    rows = []
    for n, d, k, dx in KV_LAYERS:
        for name, gemm in layer_products(n * batch, d, k, rank, dx).items():
            rows.append((name, k, "x".join(map(str, gemm)), *_choice(gemm)))
    rows.sort(key=lambda row: (PRODUCTS.index(row[0]), row[1]))
    head = ("product", "k", "M x K x N", "best is", "WS", "OS", "best")
    yield from table(head, rows, texts=4)


def _choice(gemm: Gemm) -> tuple[str, int, int, int]:
    ways = {
        "WS": ws_cycles(gemm),
        "OS": os_cycles(gemm),
        "WS transposed": ws_cycles(gemm.transposed),
        "OS transposed": os_cycles(gemm.transposed),
    }
    return min(ways, key=lambda way: ways[way]), ways["WS"], ways["OS"], best_cycles(gemm)


def _rereads(run: dict[str, Any]) -> float:
    """How often the average byte of the operands is read from memory."""
    m, k, n = run["shape"]
    return (run["ifmap_reads"] + run["filter_reads"]) / (m * k + k * n)


def _memory(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("## With 64 bytes per cycle", "")
    yield (
        "In SCALE-Sim this is 64 bytes per cycle for each operand and for the results (a 512-bit "
        "bus shared by both operands, as systolora's, cannot be said), with single-cycle latency."
    )
    limited = [run for run in runs if run["memory"] == "64-bytes"]
    different = [run for run in limited if run["total"] != run["closed_form"] or run["stall"]]
    yield (
        f"Of {len(limited)} runs {len(different)} differ from the stall-free cycles"
        + (":" if different else ".")
    )
    yield ""
    if different:
        rows = [
            ("x".join(map(str, r["shape"])), r["products"][0].split()[0], r["dataflow"])
            + (r["closed_form"], r["total"], r["stall"], f"{_rereads(r):.1f}")
            for r in different
        ]
        head = ("M x K x N", "product", "dataflow", "stall-free", "64 bytes", "stalls", "reads")
        yield from table(head, rows, texts=3)
        yield (
            "Reads: bytes read from memory / bytes of both operands. These stalls say little of "
            "the shapes: they occur only where an operand is larger than half its buffer, because "
            "the tool then replaces half the buffer in a fixed cyclic order until what it needs "
            "comes by. Besides, service_reads in memory/read_buffer.py of 3.0.0 adds every wait to "
            "the time twice. The comparison therefore uses the stall-free cycles: its best case."
        )
        yield ""
    yield (
        "The tool counts the first filling of the buffers and the last draining apart, in its "
        '"Total Cycles (incl. prefetch)": what a product costs that overlaps with no other. Y and '
        "dX, and the sum of all distinct shapes:"
    )
    yield ""
    rows = [
        (run["products"][0].split(" r=")[0], "x".join(map(str, run["shape"])), run["dataflow"])
        + (run["total"], run["with_prefetch"], f"{run['with_prefetch'] / run['total']:.2f}")
        for run in limited
        if min(run["shape"]) > max(RANKS)
    ]
    for dataflow in ("WS", "OS"):
        chosen = [run for run in limited if run["dataflow"] == dataflow]
        alone, all_in = (sum(run[key] for run in chosen) for key in ("total", "with_prefetch"))
        rows.append(("all", "", dataflow, alone, all_in, f"{all_in / max(alone, 1):.2f}"))
    head = ("product", "M x K x N", "dataflow", "total", "incl. prefetch", "ratio")
    yield from table(head, rows, texts=3)


def render(figures: dict[str, Any]) -> str:
    """The page of the figures that `measure` returned."""
    runs = figures["runs"]
    lines = [_INTRO.format(command=figures["command"], **figures["versions"])]
    if figures["not_run"]:
        lines += [f"{figures['not_run']} larger cases were not run.", ""]
    lines += [*_agreement(runs), *_layers(), *_products(1, 4), *_products(4, 16), *_memory(runs)]
    return "\n".join(lines).rstrip() + "\n"
