"""What a rigid array makes of the same training step: docs/baselines.md.

The baselines run on the same hardware without load segments, with the same buffers and memory, and
their programs come from the same compiler: order of the products, post-processing, working copies
and updates are those of any other step. They differ in how the array computes each product
(`baseline_ways`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial

from systolora.config import MAX_ACC_DEPTH, MAX_BUFFER_BYTES, AcceleratorConfig
from systolora_sim.baseline_lowering import FencedBuilder, RigidLayer, lower_rigid_pass
from systolora_sim.baseline_memory import FILES, GRADIENTS, place_baseline
from systolora_sim.baseline_ways import OS, PRODUCTS, WS, Rules, Ways, choose
from systolora_sim.layer import Layer
from systolora_sim.limits import CompileError
from systolora_sim.lowering import check_limits, finish_program, layer_structure
from systolora_sim.memory_map import MemoryMap, alignment
from systolora_sim.post_builder import PostBuilder
from systolora_sim.staging import AHEAD
from systolora_sim.step_lowering import Group, lower_copies
from systolora_sim.step_program import StepProgram, Structure
from systolora_sim.training import TrainingState
from systolora_sim.update_lowering import UpdateRule, update_steps
from systolora_sim.workload import WorkloadLayer

__all__ = ["BASELINES", "BaselineProgram", "baseline_config", "compile_baseline", "textbook_cycles"]

#: Titles of the baselines, by name.
BASELINES = {
    "textbook-ws": "textbook array: weight stationary; load, compute, drain one after the other",
    "textbook-ws-better": "textbook array, the better operand of each product stationary",
    "overlapped-ws": "weight stationary, loads hidden, the better operand stationary",
    "overlapped-os": "output stationary, drains hidden",
    "best-of-ws-os": "the better of overlapped WS and OS for each product",
}
_RULES = {
    "textbook-ws": Rules(True, (WS,), False),
    "textbook-ws-better": Rules(True, (WS,), True),
    "overlapped-ws": Rules(False, (WS,), True),
    "overlapped-os": Rules(False, (OS,), True),
    "best-of-ws-os": Rules(False, (WS, OS), True),
}
#: Rows that may stream past a tile of an array whose tiles are fenced, in array heights. Where they
#: are cut the tile is loaded again, and its load and drain count anew.
_FENCED_ROWS = 64

#: How far ahead operands are loaded for overlapped weight-stationary tiles: less than usual, since
#: many loads before short EXECs hold them up in the queues.
_NEAR = (4096, 12)

_TITLES = {"x": "X", "weight": "W", "dy": "dY", "lora_A": "A", "lora_B": "B"}


@dataclass(frozen=True, kw_only=True)
class BaselineProgram(StepProgram):
    """The program of a baseline's step. It is right for one run: its images do not move on.

    images : operands that it was given in another order of their axes, free of charge; notes : what
    else a reader of its cycles should know.
    """

    images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _rules(name: str) -> Rules:
    if name not in _RULES:
        raise CompileError(f"baseline = {name!r}: must be one of {', '.join(BASELINES)}")
    return _RULES[name]


def baseline_config(name: str, config: AcceleratorConfig) -> AcceleratorConfig:
    """The configuration of a baseline beside an accelerator: no load segments.

    A textbook array has room for all rows that a tile streams (64 array heights, in a bank of the
    accumulators and in a quarter of the activation buffer): a gift to it, since the formula knows
    no such limit.

    Raises
    ------
    CompileError
        If there is no such baseline.
    """
    if not _rules(name).fenced:
        return config.with_fields(segments=1)
    rows = 4 * min(_FENCED_ROWS * config.rows, MAX_ACC_DEPTH // 4)
    return config.with_fields(
        segments=1,
        acc_depth=max(config.acc_depth, rows),
        act_bytes=max(config.act_bytes, min(rows * config.act_entry_bytes, MAX_BUFFER_BYTES)),
    )


def textbook_cycles(
    name: str,
    layers: Sequence[WorkloadLayer],
    rank: int,
    batch: int,
    config: AcceleratorConfig,
    bits: int = 8,
) -> dict[str, int]:
    """Cycles of each product of a step, summed over the layers, by the closed forms.

    Memory and post-processor never hold up the array, and products do not overlap.

    Parameters
    ----------
    name : one of `BASELINES`
    config : of the baseline, or of an accelerator beside it
    bits : of all operands

    Raises
    ------
    CompileError
        If there is no such baseline.
    """
    rules, config = _rules(name), baseline_config(name, config)
    planes = dict.fromkeys(FILES, bits // 8)
    total: dict[str, int] = {}
    for each in layers:
        axes = {"N": each.rows * batch, "d": each.d, "k": each.k, "r": rank}
        found = choose(rules, axes, planes, config, each.dx)
        for product in PRODUCTS:
            if product in found.cycles:
                total[product] = total.get(product, 0) + found.cycles[product]
    return total


def _ways(rules: Rules, layer: Layer, config: AcceleratorConfig) -> Ways:
    """How a layer's products are computed, with the images that its updates read."""
    axes = {"N": layer.batch, "d": layer.inputs, "k": layer.outputs, "r": layer.rank}
    names = ("x", "weight", "dy", "lora_A", "lora_B", "H", "dH")
    planes = {name: layer.bits_of(name) // 8 for name in names}
    found = choose(rules, axes, planes, config, layer.want_dx)
    read = tuple(each for each in GRADIENTS.items() if found.stored[each[0]] != each[1])
    return Ways(found.ways, found.cycles, found.stored, found.images + read)


def _check(state: TrainingState, config: AcceleratorConfig) -> None:
    for name, each in state.layers.items():
        try:
            check_limits(each.layer, config)
            if each.layer.bias is not None:
                raise CompileError("bias: must not be there, baselines have none")
        except CompileError as error:
            raise CompileError(f"layer {name}: {error}" if name else str(error)) from None


def compile_baseline(
    name: str, state: TrainingState, config: AcceleratorConfig, *, base: int = 0
) -> BaselineProgram:
    """One training step of all layers as a baseline runs it.

    Parameters
    ----------
    name : one of `BASELINES`
    state : where the step begins; of blank ones (`workload.state`) the images are zero, too
    config : of the baseline, or of an accelerator beside it
    base : first address of the image, a multiple of 64

    Raises
    ------
    CompileError
        If there is no such baseline, or the configuration cannot compute a layer.
    """
    rules, config = _rules(name), baseline_config(name, config)
    _check(state, config)
    ways = {each: _ways(rules, held.layer, config) for each, held in state.layers.items()}
    memory = MemoryMap(base, alignment(config))
    image = place_baseline(memory, state, ways)
    builder = (FencedBuilder if rules.fenced else PostBuilder)(config, memory.symbols)
    layers = {
        each: RigidLayer(builder, held.layer, f"{each}/" if each else "", ways[each])
        for each, held in state.layers.items()
    }
    lower_copies(builder, [Group([layer]) for layer in layers.values()])
    updated = partial(_put_off_update, builder, state)
    lower_rigid_pass(builder, list(layers.values()), updated)
    structure = Structure(
        kind="training",
        layers=tuple(
            layer_structure(held.layer, each, "step", sums=False)
            for each, held in state.layers.items()
        ),
        optimizer=state.optimizer.kind,
        seed=state.seed,
    )
    ahead = _NEAR if WS in rules.dataflows and not rules.fenced else AHEAD
    program = finish_program(
        builder, memory, image, "step", state.seed, state.step, structure, ahead=ahead
    )
    given = {each.name: getattr(program, each.name) for each in fields(program)}
    return BaselineProgram(**given, images=_images(ways), notes=_notes(rules, config))


def _put_off_update(
    builder: PostBuilder, state: TrainingState, layer: RigidLayer, gradient: str
) -> None:
    """Lets the update of a master come when the post-processor has time."""
    name, offset = {"dA": ("lora_A", 0), "dB": ("lora_B", 1)}[gradient]
    rule = UpdateRule(state.optimizer.kind, not state.optimizer.weight_decay.is_zero)
    index = state.layers[layer.prefix.rstrip("/")].layer.index
    master = f"{layer.prefix}{name}.master"
    momentum = builder.symbols.get(f"{layer.prefix}{name}.momentum")
    steps = update_steps(
        builder, rule, builder.symbols[master], momentum, layer.gradient(gradient),
        2 * index + offset, layer.label("update"),
    )  # fmt: skip
    builder.put_off(builder.symbols[f"{layer.prefix}sticky"].area(), steps)


def _images(ways: Mapping[str, Ways]) -> tuple[str, ...]:
    """What any layer was given in another order, for reports."""
    given = {each for layer in ways.values() for each in layer.images}
    return tuple(
        f"{_TITLES.get(tensor, tensor)} as [{order[0]}, {order[1]}]"
        for tensor, order in sorted(given, key=lambda each: (list(FILES).index(each[0]), each[1]))
    )


def _notes(rules: Rules, config: AcceleratorConfig) -> tuple[str, ...]:
    notes = ("no sharing among layers or products; load segments: 1",)
    if rules.fenced:
        notes += (
            f"accumulators of {config.acc_depth} rows and an activation buffer of "
            f"{config.act_bytes} bytes, so that no tile is loaded twice",
        )
    return notes
