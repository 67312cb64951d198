"""Measures a workload's training step and makes its report (docs/perf.md)."""

import json
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from systolora.config import AcceleratorConfig
from systolora_sim.cycle_model import Timing, time_program
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_training
from systolora_sim.perf_attribution import model_times
from systolora_sim.perf_report import ReportError, html, perfetto, save_chart, save_text, text
from systolora_sim.perf_rtl import run_watched
from systolora_sim.perf_runs import Described, describe
from systolora_sim.perf_timeline import events
from systolora_sim.rtl_backend import IMAGE_BASE, check_results
from systolora_sim.runner import BUILD_DIR, RunError, check_output
from systolora_sim.scalesim import peers
from systolora_sim.step_program import StepProgram
from systolora_sim.train_runner import bar
from systolora_sim.training import TrainingState, run_steps
from systolora_sim.workload import Workload, WorkloadError, from_adapter, load_workload, state

__all__ = ["BACKENDS", "Outputs", "PerfOptions", "measure", "perf"]

FORMAT = "systolora-perf 1"
SCOPE = "adapted layers, one training step: forward, backward, update"
BACKENDS = ("model", "rtl")
#: Tensors with delayed scaling, and their name in remarks.
DELAYED = ("Y", "dX")
RANK = 4


@dataclass(frozen=True, kw_only=True)
class PerfOptions:
    """What is measured.

    Parameters
    ----------
    workload : name of a workload, a TOML file, or a .safetensors file of adapters
    config : AcceleratorConfig
    rank : of the adapters; None: that of a file of adapters, else 4
    batch : samples
    bits : 8 or 16, of all operands
    optimizer : "sgd", "momentum" or "lion"
    latency : of memory, cycles
    backend : one of BACKENDS
    just_in_time : Y and dX are quantized with the maximum of this step, not of the one before
    limit_layers : only so many of the first layers, None for all
    sample_rows, text_rows : of a file of adapters: rows of X for each sample
        (`workload.from_adapter`)
    build_dir : rtl: where Verilog and simulators are kept
    progress : whether stderr shows progress bars
    """

    workload: str
    config: AcceleratorConfig
    rank: int | None = None
    batch: int = 1
    bits: int = 8
    optimizer: str = "sgd"
    latency: int = 40
    backend: str = "model"
    just_in_time: bool = False
    limit_layers: int | None = None
    sample_rows: int | None = None
    text_rows: int | None = None
    build_dir: Path = BUILD_DIR
    progress: bool = False


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files for the views of a report; charts : kind and file of each."""

    json: Path | None = None
    html: Path | None = None
    trace: Path | None = None
    charts: tuple[tuple[str, Path], ...] = field(default=())

    @property
    def files(self) -> list[Path]:
        named = (self.json, self.html, self.trace, *(file for _, file in self.charts))
        return [file for file in named if file is not None]


# Workload -------------------------------------------------------------------------------------


def _load(options: PerfOptions) -> Workload:
    name = options.workload
    if name.endswith(".safetensors"):
        if options.sample_rows is None:
            raise RunError(
                f"{name}: sample-rows: missing: rows of X for each sample, which no file of "
                "adapters tells"
            )
        return from_adapter(name, options.sample_rows, options.text_rows)
    for key in ("sample_rows", "text_rows"):
        if getattr(options, key) is not None:
            option = key.replace("_", "-")
            raise RunError(f"{option}: only of a file of adapters (.safetensors), not of {name}")
    return load_workload(name)


def _first_layers(workload: Workload, count: int | None) -> Workload:
    if count is None:
        return workload
    if not 1 <= count <= len(workload.layers):
        raise RunError(
            f"layers = {count}: must be from 1 to {len(workload.layers)}, the layers of "
            f"{workload.name}"
        )
    return replace(workload, layers=workload.layers[:count], step=None)


def _rank(options: PerfOptions, workload: Workload) -> int:
    if workload.rank is None:
        return RANK if options.rank is None else options.rank
    if options.rank not in (None, workload.rank):
        raise RunError(
            f"{options.workload}: rank = {options.rank}: must be {workload.rank}, the rank of "
            "its adapters"
        )
    return workload.rank


# Measurement ----------------------------------------------------------------------------------


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
        self, name: str, title: str, program: StepProgram, training: TrainingState
    ) -> tuple[dict[str, Any], Timing]:
        """A run of the report, from the backend that is asked for, and the model's times.

        training : what the program was compiled from
        """
        options = self.options
        timing = self.time(program, name)
        times, counters = model_times(program, timing), timing.counters
        notes = []
        if self.on_rtl:
            result, times = run_watched(
                program, times, options.latency, options.build_dir, options.progress
            )
            check_results(program, result, 1, run_steps(training, 1))
            counters, modelled = result.counters, timing.counters["CYCLES"]
            notes.append(
                f"every result equals the golden model's, bit for bit; the cycle model says "
                f"{modelled:,} cycles, {modelled / times.cycles - 1:+.2%}"
            )
        about = Described(name, title, options.backend, program.schedule, notes=notes)
        run = describe(
            about, program, times, counters,
            self.workload, self.rank, options.batch, options.config,
        )  # fmt: skip
        return run, timing


def _scaling_note(just_in_time: bool, cycles: int, other: int) -> str:
    """What the two ways to scale Y and dX cost, in the cycle model."""
    ways = [
        "with the maxima of the step before (delayed scaling)",
        "with those of the same step (just in time), for which their sums wait",
    ]
    used, left = ways[::-1] if just_in_time else ways
    return (
        f"Y and dX are quantized {used}. {left.capitalize()} a step takes {other:,} cycles, "
        f"{other / cycles:.3f} times as many (cycle model)."
    )


def _measure(options: PerfOptions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if options.backend not in BACKENDS:
        raise RunError(f"backend = {options.backend!r}: must be one of {', '.join(BACKENDS)}")
    whole, config = _load(options), options.config
    workload = _first_layers(whole, options.limit_layers)
    rank = _rank(options, workload)
    meter = _Meter(options, workload, rank)
    training = meter.state(options.just_in_time, blank=not meter.on_rtl)
    program = compile_training(training, config, base=IMAGE_BASE)
    run, timing = meter.run("systolora", "systolora", program, training)
    other = compile_training(meter.state(not options.just_in_time, blank=True), config)
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
        "runs": [run],
        "peers": peers(shapes, rank, options.batch, config.rows, config.cols) if compared else [],
        "speedups": {},
        "step_share": workload.step_share(rank, options.batch),
        "notes": notes,
    }
    return report, events(program, timing)


def measure(options: PerfOptions) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and the timeline of its first run (module timeline).

    Raises
    ------
    RunError
        If an option is wrong, the workload cannot be read, or the configuration cannot compute it.
    """
    try:
        return _measure(options)
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
    written: list[Path] = []
    for file in outputs.files:
        check_output(file, written)
        written.append(file)
    report, timeline = measure(options)
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
