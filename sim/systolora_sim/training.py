"""The training loop: steps of one or many LoRA layers, on any backend.

A step quantizes each layer's masters to its working copies, runs the layer forward and backward and
updates the masters (numerics sections 5 and 6). Between steps everything lives in a
`TrainingState`, a value that is never changed in place: n steps and then m are n + m steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from systolora_sim import golden, numerics
from systolora_sim.golden import Master, Optimizer
from systolora_sim.layer import Layer, LayerError, LayerResult
from systolora_sim.numerics import Scale
from systolora_sim.program import run_sync

__all__ = [
    "DRY_STEPS",
    "FACTORS",
    "GoldenBackend",
    "LayerState",
    "StepBackend",
    "TrainingResult",
    "TrainingState",
    "dry_run_momentum",
    "has_momentum",
    "new_master",
    "rescale_saturated",
    "run_steps",
    "train",
]

#: Steps of the dry run that finds momentum scales ("a few", numerics section 6).
DRY_STEPS = 4
#: The factors of each update rule, beside lr and weight_decay, by their names in `Optimizer`.
FACTORS = {"sgd": (), "momentum": ("beta",), "lion": ("b1", "b1c", "b2", "b2c")}


def has_momentum(kind: str) -> bool:
    """Whether that update rule keeps a momentum beside each master."""
    return kind != "sgd"


# State ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LayerState:
    """One layer between two steps.

    Parameters
    ----------
    layer : Layer
        The inputs and modes that stay, and the delayed tensors' records, which move on. Of lora_A
        and lora_B only the widths count: their values, and seed and step, are put in at each
        step (`TrainingState.operands`).
    a, b : Master
        The masters of lora_A [r,d] and lora_B [k,r] with their scales, tensor_ids and, where the
        optimizer has one, momenta.
    sticky : frozenset of str
        Sticky bits of all steps so far.

    Raises
    ------
    LayerError
        If a master's shape is not its tensor's.
    """

    layer: Layer
    a: Master
    b: Master
    sticky: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name, master in (("lora_A", self.a), ("lora_B", self.b)):
            wanted = getattr(self.layer, name).shape
            if master.w.shape != wanted:
                raise LayerError(f"{name}.master: shape {master.w.shape}: must be {wanted}")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything that a step reads and that the next step needs.

    Parameters
    ----------
    layers : dict
        `LayerState` by name, in sorted order of the names; a layer's number is its `Layer.index`,
        each another. The only layer of a file without prefixes has the name "".
    optimizer : Optimizer
        The rule with its factors as Scales.
    seed : int
        Of the random words; signed 32 bits.
    step : int
        Number of the next step; signed 32 bits.

    Raises
    ------
    LayerError
        If the layers are not in order, two have one number, a master's tensor_id is not its
        layer's, the optimizer's momentum is missing or one is there that it has not, or seed or
        step does not fit.
    """

    layers: dict[str, LayerState]
    optimizer: Optimizer
    seed: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(self.layers):
            raise LayerError("layers: must be at least one, in sorted order of their names")
        kind = self.optimizer.kind
        numbers: dict[int, str] = {}
        for name, state in self.layers.items():
            other = numbers.setdefault(state.layer.index, name)
            if other != name:
                raise LayerError(
                    f"layer {name!r}: index {state.layer.index}: layer {other!r} has it too"
                )
            for offset, (tensor, master) in enumerate((("lora_A", state.a), ("lora_B", state.b))):
                where = f"layer {name!r}: {tensor}"
                wanted = 2 * state.layer.index + offset
                if master.tensor_id != wanted:
                    raise LayerError(f"{where}: tensor_id {master.tensor_id}: must be {wanted}")
                if (master.v is not None) != has_momentum(kind):
                    must = "must have one" if has_momentum(kind) else "has none"
                    raise LayerError(f"{where}.momentum: optimizer {kind!r} {must}")
        low, high = numerics.int_range(32)
        for name, value in (("seed", self.seed), ("step", self.step)):
            if not low <= value <= high:
                raise LayerError(f"{name}: {value}: must be from {low} to {high}")

    def operands(
        self, name: str, a: tuple[NDArray[Any], Scale], b: tuple[NDArray[Any], Scale]
    ) -> Layer:
        """The layer of that name as this step runs it, with these working copies."""
        template = self.layers[name].layer
        return replace(
            template,
            lora_A=a[0],
            lora_B=b[0],
            scales=template.scales | {"lora_A": a[1], "lora_B": b[1]},
            seed=self.seed,
            step=self.step,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What `run_steps` gives: the state after the last step, and each layer's last results."""

    state: TrainingState
    results: dict[str, LayerResult] = field(default_factory=dict)


def new_master(
    w: NDArray[Any], scale: Scale, tensor_id: int, v_scale: Scale | None = None
) -> Master:
    """A master with, where a scale for it is given, a momentum of zeros."""
    v = None if v_scale is None else np.zeros(w.shape, np.int16)
    return Master(w=w, scale=scale, tensor_id=tensor_id, v=v, v_scale=v_scale)


# Backends -------------------------------------------------------------------------------------


class StepBackend(Protocol):
    """What computes the parts of a step.

    The methods are coroutines, so that a device in a simulator can wait for its clock. Each adds
    the sticky bits that it sets to `sticky`, `forward_backward` to its result's. All backends give
    the same bits.
    """

    async def working_copy(
        self, master: Master, bits: int, sticky: set[str]
    ) -> tuple[NDArray[Any], Scale]:
        """The master quantized to int8 or int16 (numerics section 4), and its scale.

        A master of zeros gives zeros and the zero Scale.
        """
        ...

    async def forward_backward(self, layer: Layer) -> LayerResult:
        """The layer up to its gradients (numerics section 5)."""
        ...

    async def update(
        self,
        master: Master,
        gradient: NDArray[Any],
        gradient_scale: Scale,
        optimizer: Optimizer,
        *,
        seed: int,
        step: int,
        sticky: set[str],
    ) -> Master:
        """The master, and its momentum, after one update (numerics section 6)."""
        ...


class GoldenBackend:
    """The golden model as a `StepBackend`: the definition."""

    async def working_copy(
        self, master: Master, bits: int, sticky: set[str]
    ) -> tuple[NDArray[Any], Scale]:
        copy = golden.working_copy(master, bits, sticky)
        return copy.q, copy.scale

    async def forward_backward(self, layer: Layer) -> LayerResult:
        return golden.run_layer(layer)

    async def update(
        self,
        master: Master,
        gradient: NDArray[Any],
        gradient_scale: Scale,
        optimizer: Optimizer,
        *,
        seed: int,
        step: int,
        sticky: set[str],
    ) -> Master:
        return golden.update(
            master, gradient, gradient_scale, optimizer, seed=seed, step=step, sticky=sticky
        )


# The loop -------------------------------------------------------------------------------------


async def _layer_step(
    state: TrainingState, name: str, backend: StepBackend
) -> tuple[LayerState, LayerResult]:
    """One step of one layer."""
    before = state.layers[name]
    sticky: set[str] = set(before.sticky)
    a = await backend.working_copy(before.a, before.layer.bits_of("lora_A"), sticky)
    b = await backend.working_copy(before.b, before.layer.bits_of("lora_B"), sticky)
    result = await backend.forward_backward(state.operands(name, a, b))
    masters = [
        await backend.update(
            master,
            result.tensors[gradient],
            result.scales[gradient],
            state.optimizer,
            seed=state.seed,
            step=state.step,
            sticky=sticky,
        )
        for master, gradient in ((before.a, "dA"), (before.b, "dB"))
    ]
    after = LayerState(
        layer=replace(before.layer, amax=dict(result.amax)),
        a=masters[0],
        b=masters[1],
        sticky=frozenset(sticky | result.sticky),
    )
    return after, result


async def train(
    state: TrainingState,
    steps: int,
    backend: StepBackend,
    progress: Callable[[int], None] | None = None,
) -> TrainingResult:
    """Runs whole steps of all layers, with the dY of each layer in every one of them.

    Parameters
    ----------
    state : TrainingState
        Where to begin; it is not changed.
    steps : int
        At least 1.
    backend : StepBackend
        What computes.
    progress : function or None
        Called after each layer of each step with the number of them done.

    Raises
    ------
    LayerError
        If steps is not positive, or the step counter would leave its 32 bits.
    """
    if steps < 1:
        raise LayerError(f"steps = {steps}: must be at least 1")
    high = numerics.int_range(32)[1]
    if state.step + steps > high:
        raise LayerError(f"step: {state.step} and {steps} steps more: must stay up to {high}")
    results: dict[str, LayerResult] = {}
    done = 0
    for _ in range(steps):
        layers: dict[str, LayerState] = {}
        for name in state.layers:
            layers[name], results[name] = await _layer_step(state, name, backend)
            done += 1
            if progress is not None:
                progress(done)
        state = replace(state, layers=layers, step=state.step + 1)
    return TrainingResult(state=state, results=results)


def run_steps(
    state: TrainingState,
    steps: int,
    backend: StepBackend | None = None,
    progress: Callable[[int], None] | None = None,
) -> TrainingResult:
    """`train` on a backend that never waits, the golden model unless another is given."""
    return run_sync(train(state, steps, backend or GoldenBackend(), progress))


# Software's answer to saturation --------------------------------------------------------------


def _halved(values: NDArray[Any], scale: Scale) -> tuple[NDArray[np.int16], Scale]:
    """Integers in a scale twice as large, ties to even."""
    doubled = Scale(scale.m, scale.e + 1).check()
    q, _ = numerics.rescale(values, Scale(numerics.M_MIN, -1), *numerics.int_range(16))
    return q.astype(np.int16), doubled


def rescale_saturated(state: TrainingState) -> TrainingState:
    """Doubles the scales of what saturated, and clears those sticky bits (numerics section 6).

    In a layer with `master_range` each master whose largest element uses more than half of its
    range is halved, ties to even, and its scale doubled; with `momentum_range` so is each momentum.

    Raises
    ------
    LayerError
        If a scale cannot be doubled.
    """
    layers: dict[str, LayerState] = {}
    for name, each in state.layers.items():
        masters = []
        for tensor, master in (("lora_A", each.a), ("lora_B", each.b)):
            try:
                masters.append(_rescaled(master, each.sticky))
            except ValueError as error:
                raise LayerError(f"layer {name!r}: {tensor}: {error}") from None
        rest = each.sticky - {"master_range", "momentum_range"}
        layers[name] = replace(each, a=masters[0], b=masters[1], sticky=rest)
    return replace(state, layers=layers)


def _rescaled(master: Master, sticky: frozenset[str]) -> Master:
    limit = numerics.qmax(16) // 2
    if "master_range" in sticky and numerics.amax(master.w) > limit:
        w, scale = _halved(master.w, master.scale)
        master = replace(master, w=w, scale=scale)
    v, v_scale = master.v, master.v_scale
    if v is None or v_scale is None:
        return master
    if "momentum_range" in sticky and numerics.amax(v) > limit:
        v, v_scale = _halved(v, v_scale)
    return replace(master, v=v, v_scale=v_scale)


# Momentum scales ------------------------------------------------------------------------------


def dry_run_momentum(
    state: TrainingState, wanted: Iterable[tuple[str, str]], steps: int = DRY_STEPS
) -> dict[tuple[str, str], Scale]:
    """Momentum scales from a dry run on the golden model (numerics section 6).

    The masters move in it as the optimizer moves them: each step starts from a momentum of zeros,
    in the scale that the gradients so far ask for, so that a lora_B that is still zero gives lora_A
    a gradient from the second step on. Nothing of the run is kept but the scales.

    Parameters
    ----------
    state : TrainingState
        Where to begin, with any momentum scales where they are wanted.
    wanted : (layer, "lora_A" or "lora_B") pairs
        The masters whose momentum scale is to be found; the others keep theirs.
    steps : int
        Length of the run.

    Returns
    -------
    dict
        The Scale of each wanted pair.
    """
    fields = {"lora_A": 0, "lora_B": 1}
    ids = {key: 2 * state.layers[key[0]].layer.index + fields[key[1]] for key in wanted}
    backend = _DryRun(ids.values())
    last = numerics.int_range(32)[1] - steps
    run_steps(replace(state, step=min(state.step, last)), steps, backend)
    return {key: golden.momentum_scale(backend.gradients[ids[key]]) for key in ids}


class _DryRun(GoldenBackend):
    """Notes the gradients of some masters, and scales their momenta for them."""

    def __init__(self, tensor_ids: Iterable[int]) -> None:
        self.gradients: dict[int, list[tuple[int, Scale]]] = {number: [] for number in tensor_ids}

    async def update(
        self, master: Master, gradient: NDArray[Any], gradient_scale: Scale, *args: Any, **rest: Any
    ) -> Master:
        seen = self.gradients.get(master.tensor_id)
        if seen is not None:
            seen.append((numerics.amax(gradient), gradient_scale))
            scale = golden.momentum_scale(seen)
            master = new_master(master.w, master.scale, master.tensor_id, scale)
        return await super().update(master, gradient, gradient_scale, *args, **rest)
