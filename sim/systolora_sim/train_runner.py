"""Runs training steps of a layer file on a backend and writes the state: the same bytes from all.

The counterpart of `runner.run_file` for files of `systolora_sim.statefile`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systolora.config import AcceleratorConfig
from systolora_sim import runner
from systolora_sim.calibrate import to_float
from systolora_sim.layer import LayerError
from systolora_sim.limits import CompileError, check_cached_base, check_layer
from systolora_sim.pieces import check_pieces
from systolora_sim.runner import BACKENDS, BUILD_DIR, RunError
from systolora_sim.schedule_choice import LATENCY, check_choice, find_schedule
from systolora_sim.schedules import StepSchedule
from systolora_sim.statefile import Options, adapter_metadata, load_state, write_training
from systolora_sim.training import (
    TrainingResult,
    TrainingState,
    rescale_saturated,
    run_steps,
)

if TYPE_CHECKING:
    from systolora_sim.rtl_backend import RtlOptions

__all__ = ["train_file"]


@contextlib.contextmanager
def bar(total: int, show: bool, name: str) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on a terminal, as a function of how many steps of a layer are done.

    None where it is not shown or tqdm, which comes with the simulators, is not installed.
    """
    if show:
        with contextlib.suppress(ModuleNotFoundError):
            from tqdm import tqdm

            # disable=None: only on a terminal. These backends are fast; logs need no bar.
            with tqdm(total=total, desc=name, file=sys.stderr, disable=None) as bar:

                def update(done: int) -> None:
                    bar.update(done - bar.n)

                yield update
            return
    yield None


def _check_layers(
    state: TrainingState, config: AcceleratorConfig | None, cache_base: bool, path: Path
) -> None:
    """Raises RunError, naming the layer, where one cannot be computed so.

    config : None where no configuration computes it
    """
    for name, each in state.layers.items():
        try:
            if config is not None:
                check_layer(each.layer, config)
            if cache_base:
                check_cached_base(each.layer)
        except CompileError as error:
            where = f"layer {name}: " if name else ""
            raise RunError(f"{path}: {where}{error}") from None


def _on_rtl(
    state: TrainingState,
    steps: int,
    config: AcceleratorConfig,
    schedule: str | StepSchedule,
    micro_batches: int,
    cache_base: bool,
    options: "RtlOptions | None",
    build_dir: Path,
    progress: bool,
) -> tuple[TrainingResult, dict[str, int]]:
    """All steps in one simulation of the accelerator: the result, and its counters."""
    from systolora_sim.lowering import compile_training
    from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, run_and_check
    from systolora_sim.step_program import read_back

    options = options or RtlOptions()
    program = compile_training(
        state,
        config,
        base=IMAGE_BASE,
        schedule=schedule,
        micro_batches=micro_batches,
        cache_base=cache_base,
    )
    run = run_and_check(
        program, steps, options, build_dir, progress, lambda: run_steps(state, steps)
    )
    result = read_back(program, run.image, steps)
    assert isinstance(result, TrainingResult)
    return result, run.counters


def train_file(
    layer_path: str | Path,
    out_path: str | Path,
    backend: str,
    config: AcceleratorConfig,
    *,
    options: Options | None = None,
    steps: int | None = None,
    resume: str | Path | None = None,
    rescale: bool = False,
    schedule: str = "auto",
    micro_batches: int = 1,
    cache_base: bool = False,
    json_path: str | Path | None = None,
    rtl: "RtlOptions | None" = None,
    build_dir: str | Path | None = None,
    progress: bool = True,
    note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Runs steps of a file's layers and writes the last results and the state after them.

    The files appear complete or not at all. Cycles are null on the backends without time.

    Parameters
    ----------
    layer_path, out_path : safetensors files, in and out
    backend : one of `runner.BACKENDS`
    config : the accelerator; the golden model's results do not depend on it
    options : optimizer, lr and weight decay where the file lacks them
    steps : how many, 1 if None
    resume : an earlier output whose state takes the place of the layer file's; it may be `out_path`
    rescale : whether masters and momenta that saturated get larger scales before the first step
        (`training.rescale_saturated`)
    schedule : machine and rtl: one of `schedule_choice.CHOICES`
    micro_batches : pieces of each batch, at least 1 (`pieces.check_pieces`)
    cache_base : the sums of X.W^T are computed once, by the compiler, and loaded (machine and rtl)
    json_path : where the report goes, None for nowhere
    rtl : rtl: how the simulation runs
    build_dir : rtl: where Verilog and simulators are kept, `build` if None
    progress : whether stderr shows a progress bar
    note : takes a sentence for each option that the file contradicts

    Raises
    ------
    LayerFileError
        If a file cannot be read or used, or the results not be written.
    RunError
        If an argument is wrong, an output cannot be written, or the backend fails.
    """
    layer_path, out_path = Path(layer_path), Path(out_path)
    steps = 1 if steps is None else steps
    if backend not in BACKENDS:
        raise RunError(f"backend = {backend!r}: must be one of {', '.join(BACKENDS)}")
    if steps < 1:
        raise RunError(f"steps = {steps}: must be at least 1")
    state = load_state(layer_path, options, resume, note)
    if rescale:
        try:
            state = rescale_saturated(state)
        except LayerError as error:
            raise RunError(f"{layer_path if resume is None else resume}: {error}") from None
    if state.step + steps >= 1 << 31:
        source = layer_path if resume is None else resume
        raise RunError(f"{source}: step: {state.step} and {steps} more: must stay below 2^31")
    runner.check_output(out_path, [layer_path])
    if json_path is not None:
        json_path = Path(json_path)
        others = [layer_path, out_path] + ([] if resume is None else [Path(resume)])
        runner.check_output(json_path, others)
    counters: dict[str, int] = {}
    build_dir = BUILD_DIR if build_dir is None else Path(build_dir)
    _check_layers(state, None if backend == "golden" else config, cache_base, layer_path)
    try:
        check_choice(schedule)
        check_pieces(state, micro_batches)
        found: str | StepSchedule = schedule
        if backend != "golden":
            latency = LATENCY if rtl is None else rtl.memory_latency
            found = find_schedule(
                schedule, state, config,
                memory_latency=latency, cache_base=cache_base, progress=progress,
            )  # fmt: skip
        if backend == "rtl":
            result, counters = _on_rtl(
                state, steps, config, found, micro_batches, cache_base, rtl, build_dir, progress
            )
        else:
            with bar(steps * len(state.layers), progress, backend) as update:
                if backend == "machine":
                    from systolora_sim import machine_backend

                    result = machine_backend.run_steps(
                        state, steps, config, update, found, micro_batches, cache_base
                    )
                else:
                    result = run_steps(state, steps, None, update)
    except CompileError as error:
        raise RunError(f"{layer_path}: {error}") from None
    if json_path is not None:
        report = _report(state, result, backend, config)
        if counters:
            report |= {"cycles": counters["CYCLES"], "counters": counters}
        runner.write_json(json_path, report)
    write_training(out_path, result, adapter_metadata(layer_path, resume))
    return result


def _report(
    before: TrainingState,
    result: TrainingResult,
    backend: str,
    config: AcceleratorConfig,
) -> dict[str, Any]:
    """What ran."""
    after = result.state
    return {
        "backend": backend,
        "configuration": config.to_dict(),
        "digest": config.digest,
        "optimizer": after.optimizer.kind,
        "lr": to_float(after.optimizer.lr),
        "weight_decay": to_float(after.optimizer.weight_decay),
        "seed": after.seed,
        "first_step": before.step,
        "steps": after.step - before.step,
        "layers": [
            {"name": name, "sticky": sorted(each.sticky)} for name, each in after.layers.items()
        ],
        "cycles": None,
    }
