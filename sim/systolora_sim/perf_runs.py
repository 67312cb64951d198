"""A run of a perf report (docs/perf.md): a program's cycles, bytes and waits, by product."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from systolora.config import AcceleratorConfig
from systolora_sim.perf_attribution import (
    ArrayTimes,
    Attribution,
    ExecPart,
    attribute,
    layer_of,
    split_label,
)
from systolora_sim.perf_figures import ORDER
from systolora_sim.step_program import StepProgram
from systolora_sim.workload import Workload, WorkloadLayer

__all__ = ["Described", "describe"]

_TITLES = {
    "H": "H = X.A^T",
    "Y": "Y = X.W^T",
    "term": "Y += H.B^T",
    "dH": "dH = dY.B",
    "dB": "dB = dY^T.H",
    "dA": "dA = dH^T.X",
    "dX": "dX = dY.W",
    "copies": "working copies",
    "update": "update",
    "other": "other",
}
#: Those that multiply nothing.
_PLAIN = ("copies", "update", "other")
#: Tensors as reports name them, by their symbols.
_TENSORS = {"x": "X", "weight": "W", "dy": "dY", "lora_A": "A", "lora_B": "B"}


@dataclass(frozen=True)
class Described:
    """What a run is called, and what is said of it.

    backend : "model" or "rtl"; images : matrices that it was given transposed, free of charge.
    """

    name: str
    title: str
    backend: str
    schedule: str
    images: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _shape(product: str, layer: WorkloadLayer, n: int, rank: int, macs: int) -> list[list[int]]:
    """[M, K, N] of what one label stands for; macs tells how many layers' A it takes at once."""
    d, k = layer.d, layer.k
    ranks = macs // (n * d)  # of H and dA: of all layers that read this X
    shapes = {
        "H": [[n, d, ranks]],
        "Y": [[n, d, k]],
        "term": [[n, rank, k]] + ([[n, rank, d]] if layer.dx else []),
        "dH": [[n, k, rank]],
        "dB": [[k, n, rank]],
        "dA": [[ranks, n, d]],
        "dX": [[n, k, d]],
    }
    return shapes[product]


def _shapes(
    product: str, parts: list[ExecPart], workload: Workload, rank: int, batch: int
) -> list[list[int]]:
    layers = {layer.name: layer for layer in workload.layers}
    macs: defaultdict[tuple[str, int], int] = defaultdict(int)
    for part in parts:
        macs[part.label, part.weight] += part.macs // part.passes
    found: Counter[tuple[int, ...]] = Counter()
    for (label, weight), count in macs.items():
        layer = layers[layer_of(label)]
        n = layer.rows * batch
        for shape in _shape(product, layer, n, rank, count):
            found[tuple(shape)] += weight
    return [[*shape, count] for shape, count in found.items()]


def _joined(names: list[str]) -> str:
    return "/".join(dict.fromkeys(names)) or "-"


def _product(
    name: str,
    found: Attribution,
    parts: list[ExecPart],
    shapes: list[list[int]],
    peak: int,
) -> dict[str, Any]:
    # Turning a tensor over on the array is no multiplication of the step.
    macs = sum(part.macs for part in parts) if shapes else 0
    limit = macs / peak
    around = {"copies": found.copies, "update": found.update, "other": found.other}.get(name, 0)
    cycles = sum(part.cycles for part in parts) + around
    loads = sum(part.loads for part in parts)
    post = sum(part.post for part in parts) + (around if name != "other" else 0)
    waits = {"loads": loads, "post": post, "array": round(cycles - limit) - loads - post}
    wait = max(waits, key=lambda each: waits[each])
    title = _TITLES[name]
    if name == "Y" and not parts:
        title += ", loaded"
    if name == "term" and "dX" in found.bytes:
        title += ", dX += dH.A"
    stationary = [part.stationary for part in parts]
    return {
        "name": name,
        "title": title,
        "shapes": shapes,
        "dataflow": _joined([part.dataflow for part in parts]),
        "edge": _joined([part.edge for part in parts]),
        "stationary": _joined([_TENSORS.get(each, each) for each in stationary]),
        "macs": macs,
        "limit": limit,
        "cycles": cycles,
        "share": limit / cycles if cycles else 0.0,
        "bytes": found.bytes.get(name, 0),
        "wait": wait if waits[wait] > 0 else "-",
        "waits": waits,
    }


def describe(
    about: Described,
    program: StepProgram,
    times: ArrayTimes,
    counters: Mapping[str, int],
    workload: Workload,
    rank: int,
    batch: int,
    base: AcceleratorConfig,
    weights: Mapping[str, int],
    saved_macs: int = 0,
) -> dict[str, Any]:
    """The run as a report holds it.

    Where multiplications are saved, the run's macs, limit and share are those of the whole step,
    `computed_macs` are those that are done, and the waits go with these.

    Parameters
    ----------
    about : names and remarks
    program : with its labels
    times : of the array, from the same backend as the counters
    counters : by the names of contract.COUNTERS
    workload, rank, batch : what was compiled (a workload that has its layers at least)
    base : the report's configuration; the run's `config` is what differs from it
    weights : by layer of the program, for how many of the workload it stands, if not for one
    saved_macs : multiplications of the step that the program does not do: it loads the sums
    """
    config = program.config
    peak = config.rows * config.cols
    read, written = counters["BYTES_READ"], counters["BYTES_WRITTEN"]
    found = attribute(program, times, read, written, weights)
    by_product: defaultdict[str, list[ExecPart]] = defaultdict(list)
    for part in found.execs:
        by_product[split_label(part.label)[0]].append(part)
    products = []
    for name in ORDER:
        parts = by_product[name]
        shapes = [] if name in _PLAIN else _shapes(name, parts, workload, rank, batch)
        entry = _product(name, found, [part.all() for part in parts], shapes, peak)
        if entry["cycles"] or entry["bytes"]:
            products.append(entry)
    computed = sum(entry["macs"] for entry in products)
    macs, cycles = computed + saved_macs, sum(entry["cycles"] for entry in products)
    everything = [part.all() for part in found.execs]
    waits = {
        "padding": int(sum(part.padding for part in everything)),
        "loads": sum(part.loads for part in everything),
        "post": sum(part.post for part in everything) + found.copies + found.update,
    }
    waits["other"] = round(cycles - computed / peak) - sum(waits.values())
    limit = macs / peak
    fields, whole = config.to_dict(), base.to_dict()
    return {
        "name": about.name,
        "title": about.title,
        "backend": about.backend,
        "config": {key: fields[key] for key in fields if fields[key] != whole[key]},
        "schedule": about.schedule,
        "cycles": cycles,
        "macs": macs,
        **({"computed_macs": computed} if saved_macs else {}),
        "limit": limit,
        "share": limit / cycles,
        "bytes_read": found.read,
        "bytes_written": found.written,
        "post_cycles": found.post_cycles,
        "waits": waits,
        "products": products,
        "images": about.images,
        "notes": about.notes,
    }
