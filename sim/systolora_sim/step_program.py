"""A compiled program with its memory image, and the results that a run leaves in it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import DESCRIPTOR_BYTES, STICKY
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import ADAPTERS, INPUTS, OUTPUTS, Layer, LayerResult
from systolora_sim.layer_memory import FACTOR_NAMES
from systolora_sim.memory_map import Symbol, round_up
from systolora_sim.numerics import ZERO, Scale
from systolora_sim.product import ProductResult
from systolora_sim.training import LayerState, TrainingResult, TrainingState

__all__ = [
    "KINDS", "PHASES", "LayerStructure", "StepProgram", "Structure", "needed_symbols", "read_back",
]  # fmt: skip

#: What programs are compiled from, and which parts of a step they do.
KINDS = ("training", "layer", "product")
PHASES = ("step", "forward", "backward", "update")

Bytes = NDArray[np.uint8]
Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LayerStructure:
    """What the image does not say of a layer.

    name : its prefix in the names of symbols, without the slash; title : for messages; index : its
    number; want_dx, delayed, stochastic, bits : as in `Layer`, the last three sorted; adapter :
    whether it has one; results : the tensors that the program computes, in the order of results.
    """

    name: str
    title: str
    index: int
    want_dx: bool
    delayed: tuple[str, ...]
    stochastic: tuple[str, ...]
    bits: dict[str, int]
    adapter: bool
    results: tuple[str, ...]

    def symbol(self, tensor: str) -> str:
        """The name of one of its tensors among the symbols."""
        return f"{self.name}/{tensor}" if self.name else tensor


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What kind of thing was compiled, and its layers.

    kind : "training", "layer" or "product" (then the only layer stands for it); optimizer : the
    update rule's name, of training; seed : of the random words.
    """

    kind: str
    layers: tuple[LayerStructure, ...]
    optimizer: str = ""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StepProgram:
    """A program, and the memory that it runs on.

    Parameters
    ----------
    config : AcceleratorConfig
        The accelerator it is compiled for.
    phase : str
        "step", "forward", "backward" or "update".
    program : uint8 [n, 64]
        Its descriptors; they lie behind the image.
    image : uint8 [size]
        Memory from address `base` on, before the first run.
    symbols : dict
        Where each tensor, Scale and record lies, by name.
    write_base : int
        First address of what the program writes, which reaches to the end of the image.
    word_base, step : int
        The registers of these names before the first run.
    structure : Structure
        What the results are.
    runs : int
        How often one start runs it.
    schedule : str
        Which dataflows it has (`schedules`).
    labels : tuple of str
        What each descriptor is for, "product layer", where the program was compiled just now; files
        do not keep them. A LOAD is for the first EXEC that needs it.
    """

    config: AcceleratorConfig
    phase: str
    program: Bytes
    image: Bytes = field(repr=False)
    base: int
    symbols: dict[str, Symbol] = field(repr=False)
    write_base: int
    word_base: int
    step: int
    structure: Structure
    runs: int = 1
    schedule: str = "auto"
    labels: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @property
    def length(self) -> int:
        """Descriptors."""
        return self.program.shape[0]

    @property
    def address(self) -> int:
        """Of the first descriptor."""
        return self.base + self.image.size

    @property
    def read_window(self) -> tuple[int, int]:
        """First address of the image, and the first one after the program's last beat."""
        return self.base, self.base + self.image.size + self._program_bytes

    @property
    def write_window(self) -> tuple[int, int]:
        """Of what the program writes."""
        return self.write_base, self.base + self.image.size

    @property
    def _program_bytes(self) -> int:
        """Bytes that the accelerator reads for the program: whole beats."""
        return round_up(self.length * DESCRIPTOR_BYTES, self.config.beat_bytes)

    def memory(self) -> Bytes:
        """A new copy of all memory from `base` on: the image, the program, the rest of a beat."""
        memory = np.zeros(self.image.size + self._program_bytes, np.uint8)
        memory[: self.image.size] = self.image
        memory[self.image.size :][: self.program.size] = self.program.reshape(-1)
        return memory


def needed_symbols(structure: Structure) -> Iterator[str]:
    """The names of the symbols that `read_back` reads, whatever else there may be."""
    for layer in structure.layers:
        names = [*layer.results]
        if structure.kind == "training":
            names += ["x", "weight", "dy", "lora_A.master", "lora_B.master"]
            yield from (layer.symbol(name) for name in (*ADAPTERS, "gain.scale", "sticky"))
            if structure.optimizer != "sgd":
                names += [f"{name}.momentum" for name in ADAPTERS]
        for name in names:
            yield layer.symbol(name)
            yield layer.symbol(f"{name}.scale")
        yield from (layer.symbol(f"{name}.amax") for name in layer.delayed)
        yield layer.symbol("results.sticky")
    if structure.kind == "training":
        yield from (f"{name}.scale" for name in ("lr", "wd", *FACTOR_NAMES))


class _Reader:
    def __init__(self, program: StepProgram, image: Bytes) -> None:
        self.program, self.image = program, image

    def tensor(self, name: str) -> Array:
        return self.program.symbols[name].read(self.image, self.program.base)

    def scale(self, name: str) -> Scale:
        m, e = self.tensor(f"{name}.scale").tolist()
        return Scale(m, e)

    def sticky(self, name: str) -> set[str]:
        word = int(self.tensor(name)[0])
        return {bit for position, bit in enumerate(STICKY) if word >> position & 1}

    def result(self, layer: LayerStructure) -> LayerResult:
        names = {name: layer.symbol(name) for name in layer.results}
        kind = ProductResult if self.program.structure.kind == "product" else LayerResult
        return kind(
            tensors={name: self.tensor(symbol) for name, symbol in names.items()},
            scales={name: self.scale(symbol) for name, symbol in names.items()},
            amax=self.records(layer),
            sticky=self.sticky(layer.symbol("results.sticky")),
        )

    def records(self, layer: LayerStructure) -> dict[str, int]:
        return {
            name: int(self.tensor(layer.symbol(f"{name}.amax"))[0])
            for name in (*OUTPUTS, "q")
            if name in layer.delayed and name in layer.results
        }

    def _master(self, layer: LayerStructure, number: int) -> Master:
        name = layer.symbol(f"{ADAPTERS[number]}.master")
        momentum = layer.symbol(f"{ADAPTERS[number]}.momentum")
        has = momentum in self.program.symbols
        return Master(
            w=self.tensor(name),
            scale=self.scale(name),
            tensor_id=2 * layer.index + number,
            v=self.tensor(momentum) if has else None,
            v_scale=self.scale(momentum) if has else None,
        )

    def layer_state(self, layer: LayerStructure) -> LayerState:
        tensors: dict[str, Any] = {}
        scales: dict[str, Scale] = {}
        for name in INPUTS:
            symbol = layer.symbol(name)
            tensors[name], scales[name] = self.tensor(symbol), ZERO
            if name in ADAPTERS:  # of these only the widths count
                tensors[name] = np.zeros_like(tensors[name])
            else:
                scales[name] = self.scale(symbol)
        bias = layer.symbol("bias")
        records = {
            name: int(self.tensor(layer.symbol(f"{name}.amax"))[0]) for name in layer.delayed
        }
        return LayerState(
            layer=Layer(
                name=layer.title,
                **tensors,
                scales=scales,
                gain=self.scale(layer.symbol("gain")),
                bias=self.tensor(bias) if bias in self.program.symbols else None,
                want_dx=layer.want_dx,
                delayed=frozenset(layer.delayed),
                stochastic=frozenset(layer.stochastic),
                bits=dict(layer.bits),
                amax=records,
                index=layer.index,
            ),
            a=self._master(layer, 0),
            b=self._master(layer, 1),
            sticky=frozenset(
                self.sticky(layer.symbol("sticky")) | self.sticky(layer.symbol("results.sticky"))
            ),
        )

    def optimizer(self) -> Optimizer:
        kind = self.program.structure.optimizer
        return Optimizer(
            kind=kind,
            lr=self.scale("lr"),
            weight_decay=self.scale("wd"),
            **{name: self.scale(name) for name in FACTOR_NAMES},
        )


def read_back(
    program: StepProgram, image: Bytes, steps: int | None = None
) -> TrainingResult | LayerResult:
    """The results that runs of a program left in its memory.

    Parameters
    ----------
    program : StepProgram
    image : uint8
        Memory from the program's base on, after the runs; at least as long as its image.
    steps : int or None
        How many runs of a program that updates have ended; None: one.

    Returns
    -------
    TrainingResult, LayerResult or ProductResult
        As `training.run_steps`, `golden.run_layer` or `run_product_golden` gives it, of training
        with the state after the last run. A layer's sticky bits among the results are those of all
        runs of its products on this image; its state's those of everything.
    """
    reader, structure = _Reader(program, image), program.structure
    if structure.kind != "training":
        return reader.result(structure.layers[0])
    done = (1 if steps is None else steps) if program.phase in ("step", "update") else 0
    state = TrainingState(
        layers={layer.name: reader.layer_state(layer) for layer in structure.layers},
        optimizer=reader.optimizer(),
        seed=structure.seed,
        step=program.step + done,
    )
    results = {layer.name: reader.result(layer) for layer in structure.layers}
    return TrainingResult(state=state, results=results)
