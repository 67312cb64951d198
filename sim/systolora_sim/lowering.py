"""The compiler: layers and training steps to a program in memory.

`compile_training`, `compile_layer` and `compile_product` lay out the memory (`layer_memory`), write
down the work item by item (`product_lowering`, `update_lowering`), bring operands into the buffers
(`staging`) and order the queues (`tokens`). All Scales are computed on the device, and everything
that a step changes lives in memory: the program can run again and again.

Mapping (numerics section 5; rank-r tensors are r-major in memory):

====================  ========  ==================  ==============  ============================
product               dataflow  stationary (edge)   streams         low-rank term, by OS
====================  ========  ==================  ==============  ============================
H^T = lora_A.X^T      WS        X (left)            lora_A rows
Y = X.W^T             WS        W (left)            X rows          rescale(H.lora_B^T)
dH^T = lora_B^T.dY^T  WS        dY (left)           lora_B^T rows
dB^T = H^T.dY         WS        dY (top)            H^T rows
dA = dH^T.X           WS        X (top)             dH^T rows
dX = dY.W             WS        W (top)             dY rows         rescale(dH.lora_A)
====================  ========  ==================  ==============  ============================

This is the schedule "auto"; others (`schedules`) take the terms weight stationary or the gradients
dB^T and dA output stationary, from H and dH turned to [N, r].

In a step the gradients come before dX and Y: the masters are updated beside those, whose rows leave
the post-processor time. dX comes before Y: what must wait for a tensor's maximum is then quantized
while the array computes the next product. Of layers with the same x, H and dA are one product each
(`sharing`). A batch may go through all of that in pieces (`pieces`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    PROGRAM_MAX,
    ROW_STEP,
    STEP_WORD,
    Action,
    Dataflow,
    Edge,
    Opcode,
)
from systolora_sim import numerics as nx
from systolora_sim.descriptor import encode
from systolora_sim.layer import Layer
from systolora_sim.layer_memory import STACKED, add_layer, add_product, add_training, add_turned
from systolora_sim.limits import CompileError, check_layer
from systolora_sim.memory_map import MemoryMap, Symbol
from systolora_sim.pieces import WHOLE, Piece, check_pieces, piece_symbols, pieces_of
from systolora_sim.post_builder import PostBuilder, too_long
from systolora_sim.product import Product as BareProduct
from systolora_sim.product_lowering import LowRank, Product, Quantization, lower_product
from systolora_sim.schedules import LayerSchedule, check_schedule, layer_schedule
from systolora_sim.sharing import computed_together, input_groups, lower_quantization, stack
from systolora_sim.staging import stage
from systolora_sim.step_program import PHASES, LayerStructure, StepProgram, Structure
from systolora_sim.tokens import place_tokens
from systolora_sim.training import TrainingState
from systolora_sim.transpose_lowering import lower_transpose
from systolora_sim.update_lowering import UpdateRule, lower_working_copy, update_steps
from systolora_sim.work import Control, Op

__all__ = ["PHASES", "CompileError", "compile_layer", "compile_product", "compile_training"]

#: The products of each phase in the order in which they run.
_PRODUCTS = {
    "step": ("dH", "H", "dA", "dB", "dX", "Y"),
    "forward": ("H", "Y"),
    "backward": ("dH", "dX", "dB", "dA"),
    "update": (),
}
#: A step in which what the gradients need as [N, r] finds its way through memory beside dX.
_TURNED_FIRST = ("dH", "H", "dX", "dA", "dB", "Y")
_GRADIENTS = ("dA", "dB")
#: What the results of each phase hold: forward what it computes, the others what the image has.
_RESULTS = ("H", "Y", "Y_acc", "dH", "dA", "dB", "dX")
_FORWARD = ("H", "Y", "Y_acc")


class _LayerLowering:
    """The products of one layer, of its batch or a piece of it.

    held : by name, tensors that are not all of what the memory has under that name.
    """

    def __init__(
        self,
        builder: PostBuilder,
        layer: Layer,
        prefix: str,
        schedule: LayerSchedule,
        piece: Piece = WHOLE,
        held: Mapping[str, Symbol] | None = None,
    ) -> None:
        self.builder, self.layer, self.prefix = builder, layer, prefix
        self.schedule, self.piece, self.held = schedule, piece, dict(held or {})
        self._turned: set[str] = set()

    def name(self, tensor: str) -> str:
        return self.prefix + tensor

    def scale(self, tensor: str) -> str:
        return f"{self.prefix}{tensor}.scale"

    def symbol(self, tensor: str) -> Any:
        return self.held.get(tensor) or self.builder.symbols[self.prefix + tensor]

    def quantization(self, name: str) -> Quantization:
        layer, piece, word, record, running = self.layer, self.piece, None, None, None
        if name in layer.stochastic:
            tensor = 0x10000 + 8 * layer.index + ("H", "Y", "dH", "dX").index(name)
            word = nx.seed_word(0, 0, tensor) + piece.first * ROW_STEP
        if name in layer.delayed:
            record = self.symbol(f"{name}.amax")
            running = self.symbol(f"{name}.running") if piece.of > 1 else None
        return Quantization(
            target=self.symbol(name),
            scale=self.scale(name),
            word=word,
            transposed=name in ("H", "dH"),
            record=record,
            streaming=record is not None and layer.amax.get(name, 0) != 0,
            running=running,
            first=piece.number == 0,
            last=piece.last,
        )

    def turn(self, product: str) -> None:
        """Transposes what a product needs as [N, r], unless that is done already."""
        for tensor in self.schedule.turns(product):
            if tensor not in self._turned:
                self._turned.add(tensor)
                identity = self.builder.symbols["identity"]
                source, target = self.symbol(tensor), self.symbol(f"{tensor}.turned")
                lower_transpose(self.builder, source, target, identity)

    def product(
        self, name: str, streamed: str, stationary: str, edge: Edge, unit: str, **fields: Any
    ) -> None:
        """Appends a product; `low_rank` names its operands."""
        layer, builder = self.layer, self.builder
        operands = self.symbol(streamed), self.symbol(stationary)
        side: Edge | None = edge
        if self.schedule.gradients.get(name) is Dataflow.OS:
            self.turn(name)
            operands, side = (self.symbol(f"{streamed}.turned"), operands[1]), None
        quantized = name in ("H", "Y", "dH", "dX")
        sums = {"Y": "Y_acc", "dA": "dA", "dB": "dB"}.get(name, f"{name}.sums")
        low_rank = fields.pop("low_rank", None)
        if low_rank is not None:
            self.turn(name)
            act, top = low_rank
            turned = f"{act}.turned" if self.schedule.turns(name) else ""
            low_rank = LowRank(
                self.symbol(act),
                self.symbol(top),
                "#term",
                self.schedule.terms[name],
                self.symbol(turned) if turned else None,
            )
        lower_product(
            builder,
            Product(
                name=self.name(name),
                streamed=operands[0],
                stationary=operands[1],
                edge=side,
                acc_bits=layer.acc_bits(streamed, stationary),
                unit=unit,
                low_rank=low_rank,
                addend=self.symbol(sums) if name == sums and self.piece.number else None,
                sums=self.symbol(sums),
                keep=not sums.endswith(".sums"),
                quantize=self.quantization(name) if quantized else None,
                **fields,
            ),
        )
        if unit.startswith("#"):
            builder.drop(unit)
        if low_rank is not None:
            builder.drop("#term")

    # Numerics section 5, steps 1 to 7; Scales in the order that it writes.

    def H(self) -> None:
        self.builder.mul("#unit", self.scale("x"), self.scale("lora_A"))
        self.product("H", "lora_A", "x", Edge.LEFT, "#unit")

    def Y(self) -> None:
        builder, unit = self.builder, self.scale("Y_acc")
        builder.mul(unit, self.scale("x"), self.scale("weight"))
        builder.store(unit)
        fields: dict[str, Any] = {}
        if not self.layer.is_frozen:
            builder.mul("#term", self.scale("gain"), self.scale("H"))
            builder.mul("#term", "#term", self.scale("lora_B"))
            builder.div("#term", "#term", unit)
            fields["low_rank"] = ("H", "lora_B")
        if self.layer.bias is not None:
            fields["bias"] = self.symbol("bias")
        self.product("Y", "x", "weight", Edge.LEFT, unit, **fields)

    def dH(self) -> None:
        builder = self.builder
        builder.mul("#unit", self.scale("gain"), self.scale("dy"))
        builder.mul("#unit", "#unit", self.scale("lora_B"))
        self.product("dH", "lora_B", "dy", Edge.LEFT, "#unit")

    def dB(self) -> None:
        builder, unit = self.builder, self.scale("dB")
        builder.mul("#gain", self.scale("gain"), self.scale("H"))
        builder.mul(unit, "#gain", self.scale("dy"))
        builder.drop("#gain")
        builder.store(unit)
        self.product("dB", "H", "dy", Edge.TOP, unit)

    def dA_scale(self) -> None:
        unit = self.scale("dA")
        self.builder.mul(unit, self.scale("x"), self.scale("dH"))
        self.builder.store(unit)

    def dA(self) -> None:
        self.dA_scale()
        self.product("dA", "dH", "x", Edge.TOP, self.scale("dA"))

    def dX(self) -> None:
        builder = self.builder
        builder.mul("#unit", self.scale("dy"), self.scale("weight"))
        fields: dict[str, Any] = {}
        if not self.layer.is_frozen:
            builder.mul("#term", self.scale("dH"), self.scale("lora_A"))
            builder.div("#term", "#term", "#unit")
            fields["low_rank"] = ("dH", "lora_A")
        self.product("dX", "dy", "weight", Edge.TOP, "#unit", **fields)

    def names(self, phase: str) -> list[str]:
        """The products of a phase in their order."""
        products = _PRODUCTS[phase]
        if phase == "step" and Dataflow.OS in self.schedule.gradients.values():
            products = _TURNED_FIRST
        left_out = set() if self.layer.want_dx else {"dX"}
        if self.layer.is_frozen:
            left_out |= {"H", "dH", "dB", "dA"}
        return [name for name in products if name not in left_out]

    def counting(self) -> AbstractContextManager[None]:
        """What is appended meanwhile sets the layer's sticky bits."""
        return self.builder.counting(self.symbol("results.sticky").area())

    def run(self, phase: str, ready: Callable[[], None]) -> None:
        """Appends the phase's products, and their sticky bits.

        ready is called as soon as no product changes the gradients any more.
        """
        names = self.names(phase)
        left = {name for name in names if name in _GRADIENTS}
        if not left:
            ready()
        if not names:
            return
        with self.counting():
            for name, following in zip(names, [*names[1:], ""], strict=True):
                if following in self.schedule.gradients:
                    # While this product runs the turned tensor finds its way through memory.
                    self.turn(following)
                getattr(self, name)()
                if left == {name}:
                    ready()
                left.discard(name)


class _GroupLowering:
    """The products of layers with one input.

    layers : they hold their tensors among `STACKED` as parts of `stacks`, by name.
    """

    def __init__(
        self, builder: PostBuilder, layers: Sequence[_LayerLowering], stacks: Mapping[str, Symbol]
    ) -> None:
        self.builder, self.layers, self.stacks = builder, layers, stacks

    def _each(self, *names: str) -> None:
        for layer in self.layers:
            there = [name for name in names if name in layer.names("step")]
            if there:
                with layer.counting():
                    for name in there:
                        getattr(layer, name)()

    def _product(self, name: str, streamed: str, edge: Edge, sums: str) -> None:
        first = self.layers[0]
        lower_product(
            self.builder,
            Product(
                name=f"{first.name(name)} and {len(self.layers) - 1} more",
                streamed=self.stacks[streamed],
                stationary=first.symbol("x"),
                edge=edge,
                acc_bits=first.layer.acc_bits(streamed, "x"),
                unit="",
                addend=self.stacks[sums] if name == sums and first.piece.number else None,
                sums=self.stacks[sums],
                keep=True,
            ),
        )

    def H(self) -> None:
        self._product("H", "lora_A", Edge.LEFT, "H.sums")
        for layer in self.layers:
            with layer.counting():
                self.builder.mul("#unit", layer.scale("x"), layer.scale("lora_A"))
                quantize = layer.quantization("H")
                lower_quantization(self.builder, layer.symbol("H.sums"), quantize, "#unit")
                self.builder.drop("#unit")

    def dA(self) -> None:
        for layer in self.layers:
            with layer.counting():
                layer.dB()
                layer.dA_scale()
        self._product("dA", "dH", Edge.TOP, "dA")

    def run(self, phase: str, ready: Callable[[], None]) -> None:
        """Appends the phase's products, and their sticky bits; `ready` as for a layer."""
        if phase in ("step", "backward"):
            self._each("dH")
        if phase in ("step", "forward"):
            self.H()
        if phase in ("step", "backward"):
            if all(each.schedule.gradients["dA"] is Dataflow.WS for each in self.layers):
                self.dA()
            else:
                self._each("dB", "dA")
        ready()
        if phase in ("step", "backward"):
            self._each("dX")
        if phase in ("step", "forward"):
            self._each("Y")


def _check(layer: Layer, config: AcceleratorConfig) -> None:
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


def _structure(layer: Layer, name: str, phase: str) -> LayerStructure:
    there = {*layer.results, "Y_acc"} | (set() if layer.is_frozen else {"dA", "dB"})
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


def _finish(
    builder: PostBuilder,
    memory: MemoryMap,
    image: NDArray[np.uint8],
    phase: str,
    seed: int,
    step: int,
    structure: Structure,
    schedule: str = "auto",
) -> StepProgram:
    config = builder.config
    builder.finish()
    if structure.kind == "training" and phase in ("step", "update"):
        builder.control(Control(Action.STEP))
    builder.control(Control(Action.END))
    ops = stage(config, builder.items)
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
    base : first address of the image, a multiple of 64
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
    _check(layer, config)
    memory = MemoryMap(base)
    add_layer(memory, layer)
    add_turned(memory, layer, "", dataflows.turned(layer.want_dx), config.rows)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    _LayerLowering(builder, layer, "", dataflows).run(phase, _nothing)
    structure = Structure(
        kind="layer", layers=(_structure(layer, "", phase),), seed=layer.seed
    )  # fmt: skip
    return _finish(builder, memory, image, phase, layer.seed, layer.step, structure, schedule)


def compile_product(
    product: BareProduct, config: AcceleratorConfig, *, base: int = 0
) -> StepProgram:
    """A bare product as a program.

    Parameters
    ----------
    product : Product
    config : AcceleratorConfig
    base : first address of the image, a multiple of 64

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
    memory = MemoryMap(base)
    add_product(memory, product)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    symbols = memory.symbols
    word = symbols["results.sticky"].area()
    builder.post(Opcode.STICKY_LOAD, reads=word)
    builder.mul("c.scale", "a.scale", "b.scale")
    builder.store("c.scale")
    seed_word = nx.seed_word(0, 0, 0x10000 + 1)
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
        ),
    )
    builder.flush()
    builder.post(Opcode.STICKY_READ, writes=word)
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
    return _finish(builder, memory, image, "step", product.seed, product.step, structure)


def compile_training(
    state: TrainingState,
    config: AcceleratorConfig,
    phase: str = "step",
    *,
    base: int = 0,
    schedule: str = "auto",
    micro_batches: int = 1,
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
    base : first address of the image, a multiple of 64
    schedule : one of `schedules.SCHEDULES`, the same for all phases on an image
    micro_batches : pieces in which each layer's batch goes through the passes before the update,
        the same for all phases on an image

    Raises
    ------
    CompileError
        If the configuration cannot compute a layer, there is no such phase or schedule, or the
        batch cannot be cut so (`pieces.check_pieces`).
    """
    _phase(phase)
    check_schedule(schedule)
    for name, each in state.layers.items():
        try:
            _check(each.layer, config)
        except CompileError as error:
            raise CompileError(f"layer {name}: {error}" if name else str(error)) from None
    check_pieces(state, micro_batches)
    groups = input_groups(state)
    memory = MemoryMap(base)
    add_training(memory, state, groups, micro_batches)
    schedules = {}
    for index, (name, each) in enumerate(state.layers.items()):
        layer, prefix = each.layer, f"{name}/" if name else ""
        schedules[name] = layer_schedule(schedule, index)
        turned = schedules[name].turned(layer.want_dx)
        add_turned(memory, layer, prefix, turned, config.rows)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    for names in computed_together(config, state, groups, micro_batches):
        _lower_group_step(builder, state, names, phase, schedules, micro_batches)
    structure = Structure(
        kind="training",
        layers=tuple(_structure(each.layer, name, phase) for name, each in state.layers.items()),
        optimizer=state.optimizer.kind,
        seed=state.seed,
    )
    return _finish(builder, memory, image, phase, state.seed, state.step, structure, schedule)


def _stacked(held: Sequence[dict[str, Symbol]]) -> dict[str, Symbol]:
    """Tensors of all layers of a group, in whose dictionaries each becomes a part of its own."""
    stacks = {}
    for tensor in STACKED:
        stacks[tensor], members = stack([each[tensor] for each in held])
        for each, part in zip(held, members, strict=True):
            each[tensor] = part
    return stacks


def _lower_group_step(
    builder: PostBuilder,
    state: TrainingState,
    names: Sequence[str],
    phase: str,
    schedules: Mapping[str, LayerSchedule],
    micro_batches: int,
) -> None:
    """Appends a step's part of layers with one input."""
    symbols = builder.symbols
    prefixes = [f"{name}/" if name else "" for name in names]
    layers = [state.layers[name].layer for name in names]
    batches: list[_LayerLowering | _GroupLowering] = []
    held: list[dict[str, Symbol]] = []
    for piece in pieces_of(layers[0].batch, micro_batches):
        held = [
            {name: symbols[prefix + name] for name in STACKED}
            | piece_symbols(symbols, prefix, piece)
            for prefix in prefixes
        ]
        stacks = _stacked(held) if len(names) > 1 else {}
        lowerings = [
            _LayerLowering(builder, layer, prefix, schedules[name], piece, own)
            for layer, prefix, name, own in zip(layers, prefixes, names, held, strict=True)
        ]
        batches.append(
            _GroupLowering(builder, lowerings, stacks) if len(names) > 1 else lowerings[0]
        )
    if phase in ("step", "forward"):
        for prefix, own in zip(prefixes, held, strict=True):
            with builder.counting(symbols[f"{prefix}sticky"].area()):
                for tensor in ("lora_B", "lora_A"):  # in the order of their use
                    copy = own.get(tensor) or symbols[prefix + tensor]
                    lower_working_copy(builder, symbols[f"{prefix}{tensor}.master"], copy)

    def update() -> None:
        if phase in ("step", "update"):
            for name, prefix, own in zip(names, prefixes, held, strict=True):
                index = list(state.layers).index(name)
                _put_off_updates(builder, state, index, prefix, own)

    for batch in batches[:-1]:
        batch.run(phase, _nothing)
    batches[-1].run(phase, update)


def _nothing() -> None:
    """What is done while gradients still add up."""


def _put_off_updates(
    builder: PostBuilder,
    state: TrainingState,
    index: int,
    prefix: str,
    held: Mapping[str, Symbol],
) -> None:
    """Lets the updates of one layer's masters come when the post-processor has time."""
    symbols = builder.symbols
    rule = UpdateRule(state.optimizer.kind, not state.optimizer.weight_decay.is_zero)
    for offset, (name, gradient) in enumerate((("lora_A", "dA"), ("lora_B", "dB"))):
        steps = update_steps(
            builder,
            rule,
            symbols[f"{prefix}{name}.master"],
            symbols.get(f"{prefix}{name}.momentum"),
            held.get(gradient) or symbols[prefix + gradient],
            2 * index + offset,
        )
        builder.put_off(symbols[f"{prefix}sticky"].area(), steps)
