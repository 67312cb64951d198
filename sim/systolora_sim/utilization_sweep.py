"""All workloads beside SCALE-Sim's best of WS and OS, by the cycle model.

Layers with one input are a group; a group is a program of its own here, and alike ones are timed
once. With more than `CUT` rows, cycles and bytes go on as they grew up to there: tiles of more rows
only come more often. `sweep` says how far off that is, in cases that can be timed whole. The first
layer of a program has no other beside which its tensors could be quantized: where so many programs
seem slower than the peer, the step is timed again as one, as `systolora perf` does it.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from systolora.config import preset
from systolora_sim.lowering import compile_training
from systolora_sim.perf_meter import Meter
from systolora_sim.perf_options import PerfOptions
from systolora_sim.perf_repeats import shorten
from systolora_sim.rtl_backend import IMAGE_BASE
from systolora_sim.scalesim import peer_cycles
from systolora_sim.utilization_runs import Runs
from systolora_sim.workload import WORKLOADS, Workload, load_workload, state

__all__ = ["BATCHES", "CUT", "RANKS", "WIDTHS", "estimate", "groups", "sweep"]

#: Cycles and bytes.
Sums = dict[str, int]
_NAMES = {"cycles": "cycles", "bytes_read": "BYTES_READ", "bytes_written": "BYTES_WRITTEN"}

RANKS, BATCHES = (4, 16, 64), (1, 4)
#: Bits of the bus: the next one where a step on the one before takes longer than the peer.
WIDTHS = (512, 1024)
#: Rows up to which programs are timed as they are.
CUT = 1024


def groups(workload: Workload) -> list[tuple[Workload, int]]:
    """Groups of layers with one input, each as a workload, and how often it occurs.

    Groups are alike if their layers have the same shapes.
    """
    inputs: dict[str, list[int]] = {}
    for number, layer in enumerate(workload.layers):
        inputs.setdefault(layer.input, []).append(number)
    found: Counter[tuple[object, ...]] = Counter()
    first: dict[tuple[object, ...], list[int]] = {}
    for numbers in inputs.values():
        layers = [workload.layers[number] for number in numbers]
        key = tuple(sorted((each.rows, each.d, each.k, each.dx) for each in layers))
        found[key] += 1
        first.setdefault(key, numbers)
    return [
        (replace(workload, layers=tuple(workload.layers[n] for n in first[key]), step=None), count)
        for key, count in found.items()
    ]


def _group(part: Workload, rank: int, batch: int, bits: int, runs: Runs) -> Sums:
    """Cycles and bytes of a program of these layers."""
    training = state(part, rank=rank, batch=batch, blank=True)
    config = preset("paper").with_fields(bus_bits=bits)
    run = runs.model(compile_training(training, config, base=IMAGE_BASE, sums=False))
    return {name: run[counter] for name, counter in _NAMES.items()}


def _rows(part: Workload, rows: int) -> Workload:
    """The same layers with so many rows of X."""
    return replace(part, layers=tuple(replace(each, rows=rows) for each in part.layers))


def estimate(part: Workload, rank: int, batch: int, bits: int, runs: Runs) -> Sums:
    """Cycles and bytes of a group, extrapolated where it has more than `CUT` rows."""
    rows = part.layers[0].rows * batch  # of all: they have one input
    if rows <= CUT:
        return _group(part, rank, batch, bits, runs)
    half, full = (_group(_rows(part, n), rank, 1, bits, runs) for n in (CUT // 2, CUT))
    steps = (rows - CUT) / (CUT - CUT // 2)
    return {name: round(full[name] + (full[name] - half[name]) * steps) for name in full}


def _total(workload: Workload, rank: int, batch: int, bits: int, runs: Runs) -> Sums:
    """Of all groups, each as often as it occurs."""
    sums = dict.fromkeys(_NAMES, 0)
    for part, count in groups(workload):
        for name, value in estimate(part, rank, batch, bits, runs).items():
            sums[name] += count * value
    return sums


def _at_once(name: str, rank: int, batch: int, bits: int) -> Sums:
    """Of the step as one program, in which some of many equal layers stand for the others."""
    config = preset("paper").with_fields(bus_bits=bits)
    options = PerfOptions(workload=name, config=config, rank=rank, batch=batch)
    run, _, _ = Meter(options, shorten(load_workload(name)), rank).ours()
    return {each: run[each] for each in _NAMES}


def _row(name: str, rank: int, batch: int, runs: Runs) -> dict[str, Any]:
    workload, base = load_workload(name), preset("paper")
    layers = [(each.rows, each.d, each.k, each.dx) for each in workload.layers]
    best = sum(peer_cycles(layers, rank, batch, base.rows, base.cols)["best"].values())
    macs = sum(sum(each.macs(rank, batch).values()) for each in workload.layers)
    widths = {}
    for width in WIDTHS:
        found, way = _total(workload, rank, batch, width, runs), "groups"
        if found["cycles"] > best:
            found, way = _at_once(name, rank, batch, width), "one program"
        cycles, beat = found["cycles"], width // 8
        widths[str(width)] = {
            **found,
            "way": way,
            "share": round(macs / (base.rows * base.cols) / cycles, 4),
            "ratio": round(best / cycles, 4),
            "read": round(found["bytes_read"] / beat / cycles, 4),
            "write": round(found["bytes_written"] / beat / cycles, 4),
        }
        if cycles <= best:
            break
    return {"workload": name, "rank": rank, "batch": batch, "best": best, "widths": widths}


def _checks(runs: Runs) -> Iterator[dict[str, Any]]:
    """How far the table is off: a whole step of many groups; groups with all of their rows."""
    name, rank, batch, bits = "sd15-attn", 16, 1, WIDTHS[0]
    workload = load_workload(name)
    exact = _group(workload, rank, batch, bits, runs)["cycles"]
    yield _check(workload, rank, batch, exact, "one program", runs)
    name, rank, batch = "llama-7b-qv", 16, 4
    workload = load_workload(name)
    exact = sum(
        count * _group(part, rank, batch, bits, runs)["cycles"] for part, count in groups(workload)
    )
    yield _check(workload, rank, batch, exact, "groups with all of their rows", runs)


def _check(
    workload: Workload, rank: int, batch: int, exact: int, what: str, runs: Runs
) -> dict[str, Any]:
    found = _total(workload, rank, batch, WIDTHS[0], runs)["cycles"]
    return {
        "workload": workload.name,
        "rank": rank,
        "batch": batch,
        "what": what,
        "estimate": found,
        "exact": exact,
        "error": round(found / exact - 1, 5),
    }


def sweep(runs: Runs) -> dict[str, Any]:
    """All workloads, ranks and batches, and how far that is from whole steps."""
    listed = [(name, rank, batch) for name in WORKLOADS for rank in RANKS for batch in BATCHES]
    quiet = None if runs.progress else True  # None: only on a terminal
    rows = []
    for name, rank, batch in tqdm(listed, desc="workloads", file=sys.stderr, disable=quiet):
        rows.append(_row(name, rank, batch, runs))
    return {"rows": rows, "checks": list(_checks(runs))}
