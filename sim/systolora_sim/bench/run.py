"""Runs programs of tile and post commands on the generated Core, in a simulator of their own."""

import tempfile
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
from systolora_sim.bench.jobs import load_outcome, save_job
from systolora_sim.bench.wrapper import TOP
from systolora_sim.program import Outputs, Program

__all__ = ["run_program"]

DEFAULT_CACHE = Path("build") / "sim"


def _simulate(
    simulator: Simulator,
    config: AcceleratorConfig,
    program: Program,
    stall_seed: int | None,
    directory: Path,
) -> Path:
    """Runs one job in a directory of its own; returns the file with the outcome."""
    job, log = directory / "job.npz", directory / "sim.log"
    save_job(job, config, program, stall_seed)
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
    message = job.with_suffix(".error")
    if message.exists():
        raise BenchError(message.read_text(encoding="utf-8"))
    out = job.with_suffix(".out")
    if not out.exists():
        raise BenchError(f"the simulator stopped without a result ({failure}):\n{tail(log)}")
    return out


def run_program(
    config: AcceleratorConfig,
    program: Program,
    verilog: Path,
    stall_seed: int | None = None,
    *,
    cache: Path = DEFAULT_CACHE,
) -> Outputs:
    """A program of tile and post commands through the generated Core.

    Parameters
    ----------
    config, program : the program, and the configuration that the Verilog was generated from
    verilog : file that holds the module `systolora_core`
    stall_seed : seed of random stalls on every stream, None for none
    cache : directory of built simulators

    Raises
    ------
    BenchError
        If the simulator cannot be built, or the run fails: with the bench's own message, or the
        end of the simulator's log.
    """
    simulator = build_simulator(verilog, config, cache)
    with tempfile.TemporaryDirectory(prefix="systolora-") as directory:
        return load_outcome(_simulate(simulator, config, program, stall_seed, Path(directory)))
