"""Measures programs of one workload: systolora's step, its phases, and the baselines'."""

from typing import Any

from systolora_sim.baselines import BASELINES, compile_baseline
from systolora_sim.cycle_model import Timing, time_program
from systolora_sim.lowering import compile_training
from systolora_sim.perf_attribution import model_times
from systolora_sim.perf_options import PerfOptions
from systolora_sim.perf_phases import PHASES, in_sequence
from systolora_sim.perf_repeats import Shortened
from systolora_sim.perf_rtl import run_watched
from systolora_sim.perf_runs import Described, describe
from systolora_sim.rtl_backend import IMAGE_BASE, check_results
from systolora_sim.scheduler import pick
from systolora_sim.schedules import StepSchedule
from systolora_sim.step_program import StepProgram
from systolora_sim.train_runner import bar
from systolora_sim.training import TrainingState, run_steps
from systolora_sim.workload import state

__all__ = ["Meter"]

#: Tensors with delayed scaling.
DELAYED = ("Y", "dX")


class Meter:
    """Measures programs of one workload.

    Attributes
    ----------
    training : the state that systolora and the baselines train
    schedule : what systolora's programs are compiled with
    tried : how many schedules were timed to find it, 0 if it was given
    """

    def __init__(self, options: PerfOptions, shortened: Shortened, rank: int) -> None:
        self.options, self.rank = options, rank
        self.workload, self.weights = shortened.workload, shortened.weights
        self.on_rtl = options.backend == "rtl"
        self.training = self._state(options.just_in_time, blank=not self.on_rtl)
        self.schedule: str | StepSchedule = options.schedule
        self.tried = 0
        if options.schedule == "best":
            blank = self._state(options.just_in_time, blank=True)
            with bar(0, options.progress, "schedules") as update:
                found = pick(
                    blank,
                    options.config,
                    memory_latency=options.latency,
                    progress=update,
                    sums=False,
                    cache_base=options.cache_base,
                )
            self.schedule, self.tried = found.schedule, found.tried

    def _state(self, just_in_time: bool, blank: bool) -> TrainingState:
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

    def _compile(self, training: TrainingState, phase: str = "step") -> StepProgram:
        return compile_training(
            training,
            self.options.config,
            phase,
            base=IMAGE_BASE,
            schedule=self.schedule,
            sums=False,
            cache_base=self.options.cache_base,
        )

    def _time(self, program: StepProgram, name: str) -> Timing:
        """The cycle model's times."""
        options = self.options
        with bar(program.length, options.progress, name) as update:
            return time_program(
                program.config, program.program, memory_latency=options.latency, progress=update
            )

    def _saved(self) -> int:
        """Multiplications of X.W^T of the layers that are timed and of those they stand for."""
        passes = (self.options.bits // 8) ** 2
        return passes * sum(
            layer.macs(self.rank, self.options.batch)["Y"] * self.weights.get(layer.name, 1)
            for layer in self.workload.layers
        )

    def _run(
        self, about: Described, program: StepProgram, saved_macs: int = 0
    ) -> tuple[dict[str, Any], Timing]:
        """A run of the report, from the backend that is asked for, and the model's times."""
        options = self.options
        timing = self._time(program, about.name)
        times, counters = model_times(program, timing), timing.counters
        if self.on_rtl:
            result, times = run_watched(
                program, times, options.latency, options.build_dir, options.progress
            )
            check_results(program, result, 1, run_steps(self.training, 1))
            counters, modelled = result.counters, timing.counters["CYCLES"]
            about.notes.append(
                f"every result equals the golden model's, bit for bit; the cycle model says "
                f"{modelled:,} cycles, {modelled / times.cycles - 1:+.2%}"
            )
        run = describe(
            about, program, times, counters, self.workload, self.rank, options.batch,
            options.config, self.weights, saved_macs,
        )  # fmt: skip
        return run, timing

    def ours(self) -> tuple[dict[str, Any], StepProgram, Timing]:
        """systolora's own run, its program and the model's times."""
        cached = self.options.cache_base
        program = self._compile(self.training)
        title = "systolora, X.W^T kept" if cached else "systolora"
        about = Described("systolora", title, self.options.backend, program.schedule)
        run, timing = self._run(about, program, self._saved() if cached else 0)
        return run, program, timing

    def phases(self) -> dict[str, Any]:
        """The step as one program for each phase, by the model."""
        runs = []
        for phase in PHASES:
            program = self._compile(self.training, phase)
            about = Described(phase, phase, "model", program.schedule)
            saved = self._saved() if self.options.cache_base and phase == "forward" else 0
            runs.append(self._run(about, program, saved)[0])
        parts = ", ".join(f"{run['name']} {run['cycles']:,}" for run in runs)
        about = Described(
            "systolora-phases", "systolora, in phases", "model", runs[0]["schedule"],
            notes=[f"three programs, one after the other, and a loss in between: {parts} cycles"],
        )  # fmt: skip
        return in_sequence(about, runs)

    def baseline(self, name: str) -> dict[str, Any]:
        """The run of a baseline."""
        program = compile_baseline(name, self.training, self.options.config, base=IMAGE_BASE)
        about = Described(
            name, name, self.options.backend, name,
            list(program.images), [BASELINES[name], *program.notes],
        )  # fmt: skip
        return self._run(about, program)[0]

    def other_scaling(self) -> int:
        """Cycles of the same step with the other way to scale Y and dX, by the model."""
        other = self._compile(self._state(not self.options.just_in_time, blank=True))
        return self._time(other, "other scaling").counters["CYCLES"]
