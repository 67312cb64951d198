"""Runs layers, programs and training on the generated Verilog, in a simulator of their own."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from systolora.config import AcceleratorConfig
from systolora_sim.bench.build import (
    BenchError,
    Simulator,
    build_simulator,
    make_runner,
    quiet_environment,
    tail,
)
from systolora_sim.bench.jobs import (
    Work,
    layer_outcome,
    program_outcome,
    save_job,
    training_outcome,
)
from systolora_sim.bench.wrapper import TOP
from systolora_sim.compiler import ProductRecord
from systolora_sim.device_training import LayerStepRecord, TrainingJob
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.program import Outputs, Program
from systolora_sim.training import TrainingResult, TrainingState

__all__ = ["run_program", "run_rtl", "run_training", "simulate"]

DEFAULT_CACHE = Path("build") / "sim"


def simulate(
    simulator: Simulator,
    config: AcceleratorConfig,
    work: Work,
    stall_seed: int | None,
    progress: Callable[[int], None] | None,
    directory: Path,
) -> Path:
    """Runs one job in a directory of its own; returns the file with the outcome.

    progress is called with the `act` beats consumed so far, from another thread.

    Raises
    ------
    BenchError
        With the bench's own message, or the end of the simulator's log.
    """
    job, log = directory / "job.npz", directory / "sim.log"
    save_job(job, config, work, stall_seed)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(0.25):
            _report(job, progress)

    watcher = threading.Thread(target=watch, daemon=True)
    if progress is not None:
        watcher.start()
    failure = ""
    try:
        with quiet_environment():
            make_runner(simulator.name).test(
                test_module="systolora_sim.bench.tb",
                hdl_toplevel=TOP,
                hdl_toplevel_lang="verilog",
                build_dir=simulator.directory,
                test_dir=directory,
                results_xml=str(directory / "results.xml"),
                extra_env={"SYSTOLORA_JOB": str(job)},
                log_file=log,
            )
    except (SystemExit, OSError, RuntimeError) as error:
        failure = str(error)
    finally:
        finished.set()
        if progress is not None:
            watcher.join()
            _report(job, progress)
    message = job.with_suffix(".error")
    if message.exists():
        raise BenchError(message.read_text(encoding="utf-8"))
    out = job.with_suffix(".out")
    if not out.exists():
        raise BenchError(f"the simulator stopped without a result ({failure}):\n{tail(log)}")
    return out


def _report(job: Path, progress: Callable[[int], None] | None) -> None:
    if progress is None:
        return
    try:
        progress(int(job.with_suffix(".progress").read_text(encoding="ascii")))
    except (OSError, ValueError):
        return  # not written yet, or just being written


def run_rtl(
    layer: Layer,
    config: AcceleratorConfig,
    verilog: Path,
    stall_seed: int | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    cache: Path = DEFAULT_CACHE,
) -> tuple[LayerResult, list[ProductRecord]]:
    """A LoRA layer through the generated Verilog: its result, and a record of each product.

    Parameters
    ----------
    layer, config : the layer and the configuration that the Verilog was generated from
    verilog : file that holds the module `systolora_core`
    stall_seed : seed of random stalls on every stream, None for none
    progress : called with the `act` beats consumed so far
    cache : directory of built simulators

    Raises
    ------
    BenchError
        If the simulator cannot be built, or the run fails.
    """
    simulator = build_simulator(verilog, config, cache)
    with tempfile.TemporaryDirectory(prefix="systolora-") as directory:
        out = simulate(simulator, config, layer, stall_seed, progress, Path(directory))
        return layer_outcome(out)


def run_training(
    state: TrainingState,
    steps: int,
    config: AcceleratorConfig,
    verilog: Path,
    stall_seed: int | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    cache: Path = DEFAULT_CACHE,
) -> tuple[TrainingResult, list[LayerStepRecord]]:
    """`training.train` on the generated Verilog, all steps in one simulation; raises as `run_rtl`.

    Returns the state and results after the last step, and what each step of each layer cost.
    """
    simulator = build_simulator(verilog, config, cache)
    job = TrainingJob(state=state, steps=steps)
    with tempfile.TemporaryDirectory(prefix="systolora-") as directory:
        out = simulate(simulator, config, job, stall_seed, progress, Path(directory))
        return training_outcome(out)


def run_program(
    config: AcceleratorConfig,
    program: Program,
    verilog: Path,
    stall_seed: int | None = None,
    *,
    cache: Path = DEFAULT_CACHE,
) -> Outputs:
    """A program of tile and post commands through the generated Verilog; raises as `run_rtl`."""
    simulator = build_simulator(verilog, config, cache)
    with tempfile.TemporaryDirectory(prefix="systolora-") as directory:
        return program_outcome(
            simulate(simulator, config, program, stall_seed, None, Path(directory))
        )
