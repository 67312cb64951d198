"""The compiler: layers and training steps to a program in memory.

`compile_training`, `compile_layer` and `compile_product` lay out the memory (`layer_memory`), write
down the work item by item (`step_lowering`, `layer_lowering`, `product_lowering`), bring operands
into the buffers (`staging`) and order the queues (`tokens`). All Scales are computed on the device,
and everything that a step changes lives in memory: the program can run again and again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    PROGRAM_MAX,
    STEP_WORD,
    Action,
    Edge,
)
from systolora_sim import numerics as nx
from systolora_sim.descriptor import encode
from systolora_sim.layer import Layer
from systolora_sim.layer_lowering import LayerLowering
from systolora_sim.layer_memory import (
    STACKED,
    add_base,
    add_layer,
    add_product,
    add_training,
    add_turned,
)
from systolora_sim.limits import CompileError, check_cached_base, check_layer
from systolora_sim.memory_map import MemoryMap, alignment
from systolora_sim.pieces import check_pieces, piece_symbols, pieces_of
from systolora_sim.post_builder import PostBuilder, too_long
from systolora_sim.product import Product as BareProduct
from systolora_sim.product_lowering import Product, lower_product
from systolora_sim.quantization import Quantization
from systolora_sim.schedules import LayerSchedule, StepSchedule, layer_schedule, step_schedule
from systolora_sim.sharing import input_groups, stack
from systolora_sim.staging import AHEAD, stage
from systolora_sim.step_lowering import Group, lower_copies, lower_pass
from systolora_sim.step_program import PHASES, LayerStructure, StepProgram, Structure
from systolora_sim.tokens import place_tokens
from systolora_sim.training import TrainingState
from systolora_sim.update_lowering import UpdateRule, update_steps
from systolora_sim.work import Control, Op

__all__ = ["PHASES", "CompileError", "check_limits", "compile_layer", "compile_product"]
__all__ += ["compile_training", "finish_program", "layer_structure"]

#: What the results of each phase hold: forward what it computes, the others what the image has.
_RESULTS = ("H", "Y", "Y_acc", "dH", "dA", "dB", "dX")
_FORWARD = ("H", "Y", "Y_acc")


def check_limits(layer: Layer, config: AcceleratorConfig) -> None:
    """Raises CompileError where the configuration cannot compute the layer or hold its records."""
    check_layer(layer, config)
    for name, record in sorted(layer.amax.items()):
        _check_record(name, record, config)


def _check_record(name: str, record: int, config: AcceleratorConfig) -> None:
    if record >= 1 << config.acc_bits:
        raise CompileError(
            f"{name}.amax = {record}: must be below 2^{config.acc_bits}, the accumulators of "
            "this configuration"
        )


def _phase(phase: str) -> None:
    if phase not in PHASES:
        raise CompileError(f"phase = {phase!r}: must be one of {', '.join(PHASES)}")


def layer_structure(layer: Layer, name: str, phase: str, sums: bool = True) -> LayerStructure:
    """What the image does not say of a layer; sums : whether those of Y are a result."""
    there = (
        {*layer.results}
        | ({"Y_acc"} if sums else set())
        | (set() if layer.is_frozen else {"dA", "dB"})
    )
    names = _FORWARD if phase == "forward" else _RESULTS
    return LayerStructure(
        name=name,
        title=layer.name,
        index=layer.index,
        want_dx=layer.want_dx,
        delayed=tuple(sorted(layer.delayed)),
        stochastic=tuple(sorted(layer.stochastic)),
        bits=dict(sorted(layer.bits.items())),
        adapter=not layer.is_frozen,
        results=tuple(each for each in names if each in there),
    )


def _encoded(ops: list[Op]) -> NDArray[np.uint8]:
    if len(ops) > PROGRAM_MAX:
        raise too_long(len(ops))
    data = b"".join(encode(op.kind, op.fields) for op in ops)
    return np.frombuffer(data, np.uint8).reshape(-1, DESCRIPTOR_BYTES)


def finish_program(
    builder: PostBuilder,
    memory: MemoryMap,
    image: NDArray[np.uint8],
    phase: str,
    seed: int,
    step: int,
    structure: Structure,
    schedule: str = "auto",
    ahead: tuple[int, int] = AHEAD,
) -> StepProgram:
    """The program of what the builder has collected; raises CompileError if it is too long.

    ahead : how far ahead operands are loaded (`staging`)
    """
    config = builder.config
    builder.finish()
    if structure.kind == "training" and phase in ("step", "update"):
        builder.control(Control(Action.STEP))
    builder.control(Control(Action.END))
    ops = stage(config, builder.items, ahead)
    place_tokens(config, ops)
    program = _encoded(ops)
    end = memory.end + program.size
    if end > 1 << config.address_bits:
        raise CompileError(
            f"image and program end at {end:#x}: must be at most 2^address_bits = "
            f"{1 << config.address_bits:#x}"
        )
    return StepProgram(
        config=config,
        phase=phase,
        program=program,
        image=image,
        base=memory.base,
        symbols=memory.symbols,
        write_base=memory.write_base,
        word_base=(seed + step * STEP_WORD) & 0xFFFFFFFF,
        step=step,
        structure=structure,
        schedule=schedule,
        labels=tuple(op.label for op in ops),
    )


def compile_layer(
    layer: Layer,
    config: AcceleratorConfig,
    phase: str = "step",
    *,
    base: int = 0,
    schedule: str = "auto",
) -> StepProgram:
    """A layer's forward and backward pass, with the adapter that it holds, as a program.

    Parameters
    ----------
    layer : Layer
    config : AcceleratorConfig
    phase : "step" (both), "forward" or "backward"
    base : first address of the image, a multiple of 64, and of a beat
    schedule : one of `schedules.SCHEDULES`; a frozen layer's products have no choice

    Raises
    ------
    CompileError
        If the configuration cannot compute the layer, or there is no such phase or schedule.
    """
    _phase(phase)
    dataflows = layer_schedule(schedule, layer.index)
    if phase == "update":
        raise CompileError("phase = 'update': a layer without masters has none")
    check_limits(layer, config)
    memory = MemoryMap(base, alignment(config))
    add_layer(memory, layer)
    add_turned(memory, layer, "", dataflows.turned(layer.want_dx), config.rows)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    only = LayerLowering(builder, layer, "", dataflows)
    lower_pass(
        builder,
        [Group([only])],
        forward=phase in ("step", "forward"),
        backward=phase in ("step", "backward"),
        updated=_nothing,
    )
    structure = Structure(
        kind="layer", layers=(layer_structure(layer, "", phase),), seed=layer.seed
    )  # fmt: skip
    return finish_program(
        builder, memory, image, phase, layer.seed, layer.step, structure, schedule
    )


def compile_product(
    product: BareProduct, config: AcceleratorConfig, *, base: int = 0
) -> StepProgram:
    """A bare product as a program.

    Parameters
    ----------
    product : Product
    config : AcceleratorConfig
    base : first address of the image, a multiple of 64, and of a beat

    Raises
    ------
    CompileError
        If the configuration cannot compute the product.
    """
    if not config.int16:
        for name in ("a", "b", "q"):
            if product.bits_of(name) != 8:
                raise CompileError(
                    f"{name} is int16: the configuration was generated without int16"
                )
    _check_record("q", product.amax, config)
    memory = MemoryMap(base, alignment(config))
    add_product(memory, product)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    symbols = memory.symbols
    seed_word = nx.seed_word(0, 0, 0x10000 + 1)

    def prepare() -> None:
        builder.mul("c.scale", "a.scale", "b.scale")
        builder.store("c.scale")

    lower_product(
        builder,
        Product(
            name="c",
            streamed=symbols["a"],
            stationary=symbols["b"],
            edge={"nt": Edge.LEFT, "nn": Edge.TOP, "tn": None}[product.kind],
            acc_bits=product.acc_bits,
            unit="c.scale",
            bias=symbols.get("bias"),
            addend=symbols.get("c.addend"),
            sums=symbols["c"],
            keep=True,
            quantize=Quantization(
                target=symbols["q"],
                scale="q.scale",
                word=seed_word if product.stochastic else None,
                record=symbols["q.amax"] if product.delayed else None,
                streaming=product.amax != 0,
            ),
            word=symbols["results.sticky"].area(),
            label="c",
        ),
        prepare,
    )
    names = ("q",)
    layer = LayerStructure(
        name="",
        title=product.name,
        index=0,
        want_dx=False,
        delayed=names if product.delayed else (),
        stochastic=names if product.stochastic else (),
        bits={},
        adapter=False,
        results=("c", "q"),
    )
    structure = Structure(kind="product", layers=(layer,), seed=product.seed)
    return finish_program(builder, memory, image, "step", product.seed, product.step, structure)


def compile_training(
    state: TrainingState,
    config: AcceleratorConfig,
    phase: str = "step",
    *,
    base: int = 0,
    schedule: str | StepSchedule = "auto",
    micro_batches: int = 1,
    sums: bool = True,
    cache_base: bool = False,
) -> StepProgram:
    """One training step of all layers, or a phase of it, as a program that can run again.

    A step: working copies of the masters, the products of both passes, the update, and the step
    counter. The phases forward (copies, H, Y), backward and update run one after the other on one
    image, which is the same for all of them.

    Parameters
    ----------
    state : TrainingState
        Where the first run begins.
    config : AcceleratorConfig
    phase : one of `PHASES`
    base : first address of the image, a multiple of 64, and of a beat
    schedule : one of `schedules.SCHEDULES`, or what `scheduler` found; the same for all phases on
        an image
    micro_batches : pieces in which each layer's batch goes through the passes before the update,
        the same for all phases on an image
    sums : whether the sums of Y in 32 bits are a result, too; training does not need them
    cache_base : whether the sums of X.W^T are constants in memory, which a step loads instead of
        computing them: the caller says that x does not change from step to step

    Raises
    ------
    CompileError
        If the configuration cannot compute a layer, there is no such phase or schedule, or the
        batch cannot be cut so (`pieces.check_pieces`), or with `cache_base` a layer has no low-rank
        term, or dX is asked for: then what computes x is trained, and x is no constant.
    """
    _phase(phase)
    if isinstance(schedule, str):
        schedule = step_schedule(schedule, state.layers)
    schedules = schedule.layers
    for name, each in state.layers.items():
        try:
            check_limits(each.layer, config)
            if cache_base:
                check_cached_base(each.layer)
        except CompileError as error:
            raise CompileError(f"layer {name}: {error}" if name else str(error)) from None
    check_pieces(state, micro_batches)
    groups = input_groups(state)
    memory = MemoryMap(base, alignment(config))
    add_training(memory, state, groups, micro_batches)
    for name, each in state.layers.items():
        layer, prefix = each.layer, f"{name}/" if name else ""
        turned = schedules[name].turned(layer.want_dx)
        add_turned(memory, layer, prefix, turned, config.rows)
        if cache_base:
            add_base(memory, layer, prefix)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    chosen = groups if schedule.together else [(name,) for name in state.layers]

    def updated(layer: LayerLowering, gradient: str) -> None:
        if phase == "step":
            _put_off_update(builder, state, layer, gradient)

    for number in range(micro_batches):
        lowered = _pass_groups(
            builder, state, chosen, schedules, (number, micro_batches), sums, cache_base
        )  # fmt: skip
        if phase == "update":
            for layer in (layer for group in lowered for layer in group.layers):
                for gradient in ("dA", "dB"):
                    _put_off_update(builder, state, layer, gradient)
            break
        if number == 0 and phase in ("step", "forward"):
            lower_copies(builder, lowered)
        lower_pass(
            builder,
            lowered,
            forward=phase in ("step", "forward"),
            backward=phase in ("step", "backward"),
            updated=updated,
        )
    structure = Structure(
        kind="training",
        layers=tuple(
            layer_structure(each.layer, name, phase, sums) for name, each in state.layers.items()
        ),
        optimizer=state.optimizer.kind,
        seed=state.seed,
    )
    return finish_program(
        builder, memory, image, phase, state.seed, state.step, structure, schedule.name
    )


def _pass_groups(
    builder: PostBuilder,
    state: TrainingState,
    chosen: Sequence[tuple[str, ...]],
    schedules: Mapping[str, LayerSchedule],
    piece: tuple[int, int],
    keep_sums: bool,
    cached: bool,
) -> list[Group]:
    """The layers as they go through one pass, those with one product for their x together.

    piece : its number and of how many, of each layer's batch
    """
    symbols, groups = builder.symbols, []
    for names in chosen:
        prefixes = [f"{name}/" if name else "" for name in names]
        pieces = [pieces_of(state.layers[name].layer.batch, piece[1])[piece[0]] for name in names]
        held = [
            {tensor: symbols[prefix + tensor] for tensor in STACKED if prefix + tensor in symbols}
            | piece_symbols(symbols, prefix, part)
            for prefix, part in zip(prefixes, pieces, strict=True)
        ]
        stacks = {}
        for tensor in STACKED if len(names) > 1 else ():
            stacks[tensor], members = stack([each[tensor] for each in held])
            for each, part in zip(held, members, strict=True):
                each[tensor] = part
        layers = [
            LayerLowering(
                builder, state.layers[name].layer, prefix, schedules[name], part, own,
                keep_sums=keep_sums, cached=cached,
            )
            for name, prefix, part, own in zip(names, prefixes, pieces, held, strict=True)
        ]  # fmt: skip
        groups.append(Group(layers, stacks))
    return groups


def _nothing(_layer: LayerLowering, _gradient: str) -> None:
    """What follows a gradient without an update."""


def _put_off_update(
    builder: PostBuilder, state: TrainingState, layer: LayerLowering, gradient: str
) -> None:
    """Lets the update of a master come when the post-processor has time."""
    name, offset = {"dA": ("lora_A", 0), "dB": ("lora_B", 1)}[gradient]
    rule = UpdateRule(state.optimizer.kind, not state.optimizer.weight_decay.is_zero)
    symbols, index = builder.symbols, state.layers[layer.prefix.rstrip("/")].layer.index
    steps = update_steps(
        builder,
        rule,
        symbols[f"{layer.prefix}{name}.master"],
        symbols.get(f"{layer.prefix}{name}.momentum"),
        layer.symbol(gradient),
        2 * index + offset,
        layer.label("update"),
    )
    builder.put_off(symbols[f"{layer.prefix}sticky"].area(), steps)
