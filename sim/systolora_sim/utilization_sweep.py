"""All workloads beside SCALE-Sim's best of WS and OS, by the cycle model.

Layers with one input are a group; a group is a program of its own here, and alike ones are timed
once. A whole step overlaps the end of a group with the beginning of the next one, so the sum of the
groups is more than the step takes (`CHECKED` says how much).
"""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from systolora.config import AcceleratorConfig, preset
from systolora_sim.lowering import compile_training
from systolora_sim.rtl_backend import IMAGE_BASE
from systolora_sim.scalesim import peer_cycles
from systolora_sim.utilization_runs import Runs
from systolora_sim.workload import WORKLOADS, Workload, load_workload, state

__all__ = ["BATCHES", "CHECKED", "RANKS", "WIDTHS", "groups", "sweep"]

RANKS, BATCHES = (4, 16, 64), (1, 4)
#: Bits of the bus: the next one where a step on the one before takes longer than the peer.
WIDTHS = (512, 1024)
#: Whole steps that are timed, too, to see what the sum of groups is off.
CHECKED = (("sd15-attn", 16, 1), ("llama-7b-qv", 16, 1))


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


def _timed(
    parts: list[tuple[Workload, int]], rank: int, batch: int, config: AcceleratorConfig, runs: Runs
) -> dict[str, int]:
    """Cycles and bytes of parts, each as often as it occurs."""
    names = {"cycles": "cycles", "bytes_read": "BYTES_READ", "bytes_written": "BYTES_WRITTEN"}
    sums = dict.fromkeys(names, 0)
    for part, count in parts:
        training = state(part, rank=rank, batch=batch, blank=True)
        program = compile_training(training, config, base=IMAGE_BASE, sums=False)
        run = runs.model(program)
        for name, counter in names.items():
            sums[name] += count * run[counter]
    return sums


def _row(name: str, rank: int, batch: int, runs: Runs) -> dict[str, Any]:
    workload, base = load_workload(name), preset("paper")
    layers = [(each.rows, each.d, each.k, each.dx) for each in workload.layers]
    best = sum(peer_cycles(layers, rank, batch, base.rows, base.cols)["best"].values())
    macs = sum(sum(each.macs(rank, batch).values()) for each in workload.layers)
    widths = {}
    for width in WIDTHS:
        config = base.with_fields(bus_bits=width)
        found = _timed(groups(workload), rank, batch, config, runs)
        cycles = found["cycles"]
        widths[str(width)] = {
            **found,
            "share": round(macs / (base.rows * base.cols) / cycles, 4),
            "ratio": round(best / cycles, 4),
            "read": round(found["bytes_read"] / config.bus_bytes / cycles, 4),
            "write": round(found["bytes_written"] / config.bus_bytes / cycles, 4),
        }
        if cycles <= best:
            break
    return {"workload": name, "rank": rank, "batch": batch, "best": best, "widths": widths}


def _checks(runs: Runs) -> Iterator[dict[str, Any]]:
    config = preset("paper")
    for name, rank, batch in CHECKED:
        workload = load_workload(name)
        whole = _timed([(workload, 1)], rank, batch, config, runs)["cycles"]
        parts = _timed(groups(workload), rank, batch, config, runs)["cycles"]
        yield {
            "workload": name,
            "rank": rank,
            "batch": batch,
            "groups": parts,
            "whole": whole,
            "error": round(parts / whole - 1, 5),
        }


def sweep(runs: Runs) -> dict[str, Any]:
    """All workloads, ranks and batches, and how far the sums of groups are from whole steps."""
    listed = [(name, rank, batch) for name in WORKLOADS for rank in RANKS for batch in BATCHES]
    quiet = None if runs.progress else True  # None: only on a terminal
    rows = []
    for name, rank, batch in tqdm(listed, desc="workloads", file=sys.stderr, disable=quiet):
        rows.append(_row(name, rank, batch, runs))
    return {"rows": rows, "checks": list(_checks(runs))}
