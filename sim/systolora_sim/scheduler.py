"""Picks the schedule of a training step by the cycle model.

The choices of a layer: the dataflow of its low-rank terms, the dataflow of its gradients, whether
dY is loaded once for dH and dB, and whether rows or columns of Y and dX come first; of a step:
whether layers with one x share its loads. Layers of one shape choose alike. Every candidate is
compiled and timed as the whole step, with memory. Few combinations are all tried; of many, one kind
of layer after the other takes its best choice, beginning with "auto", until none gains.
"""

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from systolora.config import AcceleratorConfig
from systolora.contract import Dataflow
from systolora_sim.cycle_model import time_program
from systolora_sim.layer import Layer
from systolora_sim.lowering import compile_training
from systolora_sim.schedules import LayerSchedule, StepSchedule, layer_schedule
from systolora_sim.sharing import input_groups
from systolora_sim.training import TrainingState

__all__ = ["Found", "candidates", "kinds", "pick"]

#: So many combinations are all tried.
ALL = 64

#: What layers of one kind have in common.
Kind = tuple[object, ...]


@dataclass(frozen=True)
class Found:
    """The best schedule, its cycles by the model, and how many were timed."""

    schedule: StepSchedule
    cycles: int
    tried: int


def _kind(layer: Layer) -> Kind:
    bits = tuple(layer.bits_of(name) for name in ("x", "weight", "lora_A", "lora_B", "dy", "H"))
    sizes = layer.batch, layer.inputs, layer.outputs, layer.rank
    return (*sizes, layer.want_dx, layer.is_frozen, bits)


def kinds(state: TrainingState) -> dict[Kind, list[str]]:
    """The names of the layers of each kind."""
    found: dict[Kind, list[str]] = {}
    for name, each in state.layers.items():
        found.setdefault(_kind(each.layer), []).append(name)
    return found


def candidates(layer: Layer, config: AcceleratorConfig) -> list[LayerSchedule]:
    """All schedules of a layer that differ, "auto" first."""
    auto = layer_schedule("auto", 0)
    orders = (None, False, True) if layer.batch > config.bank_depth else (None,)
    if layer.is_frozen:
        return [replace(auto, columns_first=order) for order in orders]
    gradients = [(Dataflow.WS, True), (Dataflow.WS, False), (Dataflow.OS, True)]
    return [
        LayerSchedule(
            terms={"Y": (term,), "dX": (term,)},
            gradients={"dB": gradient, "dA": gradient},
            pair=pair,
            columns_first=order,
        )
        for term in (Dataflow.OS, Dataflow.WS)
        for gradient, pair in gradients
        for order in orders
    ]


def _descend(
    choices: list[list[LayerSchedule]], togethers: tuple[bool, ...]
) -> Generator[tuple[list[int], bool], bool, None]:
    """Combinations to try, each from the best so far, which the caller sends."""
    best, together = [0] * len(choices), True
    gained = True
    while gained:
        gained = False
        for number, own in enumerate(choices):
            for choice in range(len(own)):
                if choice != best[number]:
                    trial = [*best[:number], choice, *best[number + 1 :]]
                    if (yield trial, together):
                        best, gained = trial, True
        for other in togethers:
            if other != together and (yield best, other):
                together, gained = other, True


def pick(
    state: TrainingState,
    config: AcceleratorConfig,
    *,
    memory_latency: int = 40,
    progress: Callable[[int], None] | None = None,
    sums: bool = True,
    cache_base: bool = False,
) -> Found:
    """The schedule with the fewest cycles for a whole step.

    Parameters
    ----------
    memory_latency : cycles of a read
    progress : called with the number of schedules timed so far
    sums, cache_base : as of `compile_training`

    Raises
    ------
    CompileError
        If the configuration cannot compute the step.
    """
    groups = kinds(state)
    choices = [candidates(state.layers[names[0]].layer, config) for names in groups.values()]
    togethers = (True, False) if len(input_groups(state)) < len(state.layers) else (True,)
    tried: dict[tuple[tuple[int, ...], bool], int] = {}

    def schedule(chosen: Sequence[int], together: bool) -> StepSchedule:
        layers = {
            name: choices[number][chosen[number]]
            for number, names in enumerate(groups.values())
            for name in names
        }
        return StepSchedule("best", layers, together)

    def cycles(chosen: list[int], together: bool) -> int:
        key = tuple(chosen), together
        if key not in tried:
            program = compile_training(
                state, config, schedule=schedule(*key), sums=sums, cache_base=cache_base
            )
            timing = time_program(config, program.program, memory_latency=memory_latency)
            tried[key] = timing.cycles
            if progress is not None:
                progress(len(tried))
        return tried[key]

    total = len(togethers)
    for own in choices:
        total *= len(own)
    cycles([0] * len(choices), True)
    if total <= ALL:
        ranges = (range(len(own)) for own in choices)
        for chosen, together in itertools.product(itertools.product(*ranges), togethers):
            cycles(list(chosen), together)
    else:
        steps = _descend(choices, togethers)
        trial = next(steps, None)
        while trial is not None:
            least = min(tried.values())
            try:
                trial = steps.send(cycles(*trial) < least)
            except StopIteration:
                trial = None
    best = min(tried, key=lambda each: tried[each])  # of equals the first: "auto" if it is one
    return Found(schedule(list(best[0]), best[1]), tried[best], len(tried))
