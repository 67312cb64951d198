"""Files to program files, and program files to text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from systolora.config import AcceleratorConfig
from systolora_sim.descriptor import disassemble
from systolora_sim.layer import LayerError
from systolora_sim.layerfile import load_layer
from systolora_sim.lowering import CompileError, compile_layer, compile_product, compile_training
from systolora_sim.memory_map import alignment
from systolora_sim.productfile import is_product, load_product
from systolora_sim.runner import RunError, check_output
from systolora_sim.schedule_choice import check_choice, find_schedule, without_training
from systolora_sim.statefile import Options, holds_training, load_state
from systolora_sim.step_file import load_step, save_step
from systolora_sim.step_program import StepProgram
from systolora_sim.training import rescale_saturated

__all__ = ["compile_file", "disassemble_file"]


def _training(
    path: Path,
    config: AcceleratorConfig,
    phase: str,
    base: int,
    schedule: str,
    micro_batches: int,
    cache_base: bool,
    options: Options | None,
    resume: Path | None,
    rescale: bool,
    steps: int,
    note: Callable[[str], None] | None,
    progress: bool,
) -> StepProgram:
    state = load_state(path, options, resume, note)
    if rescale:
        state = rescale_saturated(state)
    if state.step + steps >= 1 << 31:
        raise RunError(f"step: {state.step} and {steps} more: must stay below 2^31")
    found = find_schedule(schedule, state, config, cache_base=cache_base, progress=progress)
    return compile_training(
        state,
        config,
        phase,
        base=base,
        schedule=found,
        micro_batches=micro_batches,
        cache_base=cache_base,
    )


def compile_file(
    path: str | Path,
    out_path: str | Path,
    config: AcceleratorConfig,
    *,
    phase: str = "step",
    base: int = 0,
    schedule: str = "auto",
    steps: int | None = None,
    trains: bool = False,
    options: Options | None = None,
    micro_batches: int = 1,
    cache_base: bool = False,
    resume: str | Path | None = None,
    rescale: bool = False,
    note: Callable[[str], None] | None = None,
    progress: bool = False,
) -> StepProgram:
    """Compiles a layer, product or training file and writes the program.

    Parameters
    ----------
    path, out_path : safetensors file in, program file out
    config : the accelerator
    phase : "step", or of layers "forward", "backward" and of training "update"
    base : first address of the image, a multiple of 64
    schedule : one of `schedule_choice.CHOICES`; a product has no choice, and of a layer "best" is
        "auto"
    steps : how often one start runs the program, 1 if None
    trains : whether the file is of training even if nothing in it says so
    options, micro_batches, cache_base, resume, rescale, note : of training, as for
        `train_runner.train_file`
    progress : whether stderr shows how many schedules were timed for "best"

    Raises
    ------
    LayerFileError
        If a file cannot be read or used, or the program not be written.
    RunError
        If an argument is wrong, or the configuration cannot compute what the file holds.
    """
    path, out_path = Path(path), Path(out_path)
    runs = 1 if steps is None else steps
    if not 1 <= runs < 1 << 32:
        raise RunError(f"steps = {runs}: must be from 1 to {(1 << 32) - 1}")
    unit = alignment(config)
    if base % unit or not 0 <= base < 1 << config.address_bits:
        must = f"must be a multiple of {unit} below 2^{config.address_bits}"
        raise RunError(f"base = {base:#x}: {must}")
    check_output(out_path, [path] + ([] if resume is None else [Path(resume)]))
    try:
        check_choice(schedule)
        if trains or holds_training(path):
            earlier = None if resume is None else Path(resume)
            program = _training(
                path,
                config,
                phase,
                base,
                schedule,
                micro_batches,
                cache_base,
                options,
                earlier,
                rescale,
                runs,
                note,
                progress,
            )
        elif cache_base:
            raise RunError("cache-base: only of training")
        elif is_product(path):
            if phase != "step":
                raise RunError(f"phase = {phase!r}: a product has none")
            program = compile_product(load_product(path), config, base=base)
        else:
            program = compile_layer(
                load_layer(path), config, phase, base=base, schedule=without_training(schedule)
            )  # fmt: skip
    except (CompileError, LayerError, RunError) as error:
        message = str(error)
        raise RunError(message if message.startswith(f"{path}") else f"{path}: {message}") from None
    program = replace(program, runs=runs)
    save_step(out_path, program)
    return program


def disassemble_file(path: str | Path) -> str:
    """A program file as text that `descriptor.assemble` takes; comments say what is around it.

    Raises
    ------
    LayerFileError
        If the file cannot be read or breaks a rule.
    """
    program = load_step(path)
    first, end = program.write_window
    lines = [
        f"# {program.structure.kind}, phase {program.phase}, configuration {program.config.digest}",
        f"# image {program.base:#x}..{program.address:#x}, written {first:#x}..{end:#x}",
        f"# program at {program.address:#x}, {program.length} descriptors, runs {program.runs}, "
        f"word_base {program.word_base:#x}, step {program.step}, schedule {program.schedule}",
    ]
    for name, symbol in sorted(program.symbols.items(), key=lambda item: item[1].address):
        shape = f"[{symbol.rows}, {symbol.cols}]"
        line = f"# {symbol.address:#x} {name} {symbol.dtype} {shape} stride {symbol.stride}"
        if symbol.pieces > 1:
            line += f", {symbol.pieces} pieces of columns every {symbol.piece_stride}"
        lines.append(line)
    return "\n".join(lines) + "\n" + disassemble(program.program.tobytes())
