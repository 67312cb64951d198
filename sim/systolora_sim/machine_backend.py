"""Runs compiled programs on the functional machine: the accelerator without time."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import Fault
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.lowering import compile_layer, compile_product, compile_training
from systolora_sim.product import Product, ProductResult
from systolora_sim.schedules import StepSchedule
from systolora_sim.step_program import StepProgram, read_back
from systolora_sim.system_machine import Memory, SystemMachine
from systolora_sim.training import TrainingResult, TrainingState

__all__ = ["run_layer", "run_product", "run_program", "run_steps"]


def run_program(
    program: StepProgram,
    runs: int = 1,
    *,
    image: NDArray[np.uint8] | None = None,
    strict: bool = True,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Memory from the program's base on, after runs of it.

    Parameters
    ----------
    program : StepProgram
    runs : how often, at least 1
    image : what the memory holds at the start, the program's image if None; it is not changed
    strict : whether to prove that the program does not depend on luck
    progress : called after each run with the number of them done

    Raises
    ------
    RuntimeError
        If the program ends with a fault, which a compiled one never does.
    MachineError
        If `strict` and the proof fails: as above.
    """
    memory = Memory(program.base, program.memory())
    if image is not None:
        memory.data[: program.image.size] = image[: program.image.size]
    machine = SystemMachine(
        program.config, memory, program.read_window, program.write_window, strict=strict
    )
    word_base, step = program.word_base, program.step & 0xFFFFFFFF
    for done in range(1, runs + 1):
        result = machine.run(program.address, program.length, 1, word_base, step)
        if result.fault != Fault.NONE:
            raise RuntimeError(f"{result.fault.name} at descriptor {result.index}")
        word_base, step = result.word_base, result.step
        if progress is not None:
            progress(done)
    return memory.data


def run_layer(layer: Layer, config: AcceleratorConfig, schedule: str = "auto") -> LayerResult:
    """`golden.run_layer` as a program; raises CompileError."""
    program = compile_layer(layer, config, schedule=schedule)
    result = read_back(program, run_program(program))
    assert isinstance(result, LayerResult)
    return result


def run_product(product: Product, config: AcceleratorConfig) -> ProductResult:
    """`run_product_golden` as a program; raises CompileError."""
    program = compile_product(product, config)
    result = read_back(program, run_program(program))
    assert isinstance(result, ProductResult)
    return result


def run_steps(
    state: TrainingState,
    steps: int,
    config: AcceleratorConfig,
    progress: Callable[[int], None] | None = None,
    schedule: str | StepSchedule = "auto",
    micro_batches: int = 1,
    cache_base: bool = False,
) -> TrainingResult:
    """`training.run_steps` as one program that runs `steps` times; raises CompileError.

    progress is called after each step with the number of layers done in all of them.
    """
    program = compile_training(
        state, config, schedule=schedule, micro_batches=micro_batches, cache_base=cache_base
    )
    layers = len(state.layers)

    def update(done: int) -> None:
        if progress is not None:
            progress(done * layers)

    result = read_back(program, run_program(program, steps, progress=update), steps)
    assert isinstance(result, TrainingResult)
    return result
