"""One LoRA layer in the device's arithmetic, on float arrays: NumPy alone.

Floats become integers as `calibrate` says (numerics section 8), the passes are `golden`'s, the
update `golden.update`'s. Nothing is rounded anywhere else.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate, golden, numerics
from systolora_sim.golden import Forward, Master, Optimizer
from systolora_sim.layer import ADAPTERS, OUTPUTS, Layer, LayerError, LayerResult
from systolora_sim.numerics import ONE, Scale
from systolora_sim.torch.recipe import Recipe
from systolora_sim.training import (
    LayerState,
    TrainingResult,
    TrainingState,
    dry_run_momentum,
    has_momentum,
    new_master,
    rescale_saturated,
)

__all__ = ["Call", "LayerCalls"]

Floats = NDArray[Any]


def real(q: NDArray[Any], scale: Scale) -> NDArray[np.float32]:
    """Integers times their scale, each rounded once to float32."""
    return (q * calibrate.to_float(scale)).astype(np.float32)


@dataclass(frozen=True)
class Call:
    """A forward pass that waits for its gradient: the layer without dY, and what it gave."""

    layer: Layer
    forward: Forward


@dataclass
class LayerCalls:
    """A LoRA layer's constants, modes and state.

    Parameters
    ----------
    name : str
        For messages and records.
    index : int
        The layer's number, for the random words.
    recipe : Recipe
    weight, weight_scale : int8 or int16 array [k,d] and its Scale
    bias : float array [k] or None
    gain : Scale
        alpha / r.
    masters : (Master, Master) or None
        Of lora_A and lora_B; None where masters are floats.
    amax : dict
        The delayed tensors' records.
    step : int
        Number of the next step, for the random words.
    sticky : set of str
        Sticky bits seen so far.
    """

    name: str
    index: int
    recipe: Recipe
    weight: NDArray[Any]
    weight_scale: Scale
    bias: Floats | None
    gain: Scale
    masters: tuple[Master, Master] | None = None
    amax: dict[str, int] = field(default_factory=dict)
    step: int = 0
    sticky: set[str] = field(default_factory=set)
    _copies: tuple[tuple[NDArray[Any], Scale], ...] | None = field(default=None, repr=False)
    _copies_sticky: frozenset[str] = frozenset()

    def _quantized(self, tensor: str, values: Floats) -> tuple[NDArray[Any], Scale]:
        try:
            return calibrate.quantize_float(values, self.recipe.width(tensor))
        except ValueError as error:
            raise LayerError(f"{self.name}: {tensor}: {error}") from None

    def _working_copies(
        self, a: Floats | None, b: Floats | None
    ) -> tuple[tuple[NDArray[Any], Scale], ...]:
        """Of the masters, made once a step; of float masters a and b."""
        if self.masters is None:
            assert a is not None and b is not None
            return self._quantized("lora_A", a), self._quantized("lora_B", b)
        if self._copies is None:
            made, sticky = [], set()
            for tensor, master in zip(ADAPTERS, self.masters, strict=True):
                copy = golden.working_copy(master, self.recipe.width(tensor), sticky)
                made.append((copy.q, copy.scale))
            self._copies, self._copies_sticky = tuple(made), frozenset(sticky)
            self.sticky |= sticky
        return self._copies

    def _bias(self, x_scale: Scale) -> NDArray[np.int32] | None:
        if self.bias is None:
            return None
        unit = calibrate.to_float(numerics.mul(x_scale, self.weight_scale))
        q = np.rint(self.bias / unit) if unit else np.full(self.bias.shape, np.inf)
        if np.abs(q).max(initial=0) >= 1 << 31:
            raise LayerError(f"{self.name}: bias: does not fit 32 bits in units of x and weight")
        return q.astype(np.int32)

    def forward(
        self, x: Floats, a: Floats | None = None, b: Floats | None = None
    ) -> tuple[NDArray[np.float32], Call]:
        """y float32 [N,k] of x [N,d], and what `backward` needs.

        a, b : the float masters [r,d] and [k,r], where the layer has no others

        Raises
        ------
        LayerError
            On NaN or infinite values, or sizes that the device cannot take.
        """
        q, scale = self._quantized("x", x)
        (q_a, s_a), (q_b, s_b) = self._working_copies(a, b)
        # dY comes later; only its width counts until then, and a broadcast zero takes no memory.
        dy = np.zeros((), numerics.operand_dtype(self.recipe.width("dy")))
        modes = set(OUTPUTS) - {"dX"}
        layer = Layer(
            name=self.name,
            x=q,
            weight=self.weight,
            lora_A=q_a,
            lora_B=q_b,
            dy=np.broadcast_to(dy, (q.shape[0], self.weight.shape[0])),
            scales={
                "x": scale,
                "weight": self.weight_scale,
                "lora_A": s_a,
                "lora_B": s_b,
                "dy": ONE,
            },
            gain=self.gain,
            bias=self._bias(scale),
            delayed=self.recipe.delayed & modes,
            stochastic=self.recipe.stochastic & modes,
            bits={name: self.recipe.width(name) for name in OUTPUTS if name in modes},
            amax={name: record for name, record in self.amax.items() if name in modes},
            seed=self.recipe.seed,
            step=self.step,
            index=self.index,
        )
        done = golden.run_forward(layer)
        self.sticky |= done.sticky
        return real(done.y.q, done.y.scale), Call(layer, done)

    def backward(self, call: Call, dy: Floats, want_dx: bool) -> tuple[Layer, LayerResult]:
        """The gradients of a forward pass whose output has the gradient dy [N,k].

        The state does not change, but for the sticky bits: `commit` or `update` does that.
        """
        q, scale = self._quantized("dy", dy)
        layer = replace(call.layer, dy=q, scales=call.layer.scales | {"dy": scale})
        if want_dx:
            recipe = self.recipe
            layer = replace(
                layer,
                want_dx=True,
                delayed=recipe.delayed,
                stochastic=recipe.stochastic,
                bits={name: recipe.width(name) for name in OUTPUTS},
                amax={**layer.amax, **{n: v for n, v in self.amax.items() if n == "dX"}},
            )
        result = golden.run_backward(layer, call.forward)
        self.sticky |= result.sticky
        return layer, result

    def commit(self, result: LayerResult) -> None:
        """The state after a call whose update is torch's: records and the step's number."""
        self.amax = {**self.amax, **result.amax}
        self.step += 1

    def _before(self, layer: Layer, optimizer: Optimizer) -> TrainingState:
        """The state before a step that is a file's only layer, as a run of that file begins."""
        assert self.masters is not None
        a, b = self.masters
        made = LayerState(layer=layer, a=a, b=b)
        return TrainingState(
            layers={"": made}, optimizer=optimizer, seed=self.recipe.seed, step=self.step
        )

    def _scale_momenta(self, layer: Layer, optimizer: Optimizer) -> None:
        """Gives the masters momenta of zeros, where the rule has one and they have none yet."""
        assert self.masters is not None
        if not has_momentum(optimizer.kind) or self.masters[0].v is not None:
            return
        a, b = (new_master(each.w, each.scale, each.tensor_id, ONE) for each in self.masters)
        self.masters = a, b
        found = dry_run_momentum(self._before(layer, optimizer), [("", "lora_A"), ("", "lora_B")])
        a, b = (
            replace(master, v_scale=found["", tensor])
            for tensor, master in zip(ADAPTERS, self.masters, strict=True)
        )
        self.masters = a, b

    def update(
        self, layer: Layer, result: LayerResult, optimizer: Optimizer
    ) -> tuple[TrainingState, TrainingResult]:
        """One update of the masters (numerics section 6) after a backward pass.

        Momenta that are still missing get the scales of a dry run with this layer's x and dY.
        Returns the state before and after, both with the sticky bits of this step alone and the
        layer named "".
        """
        assert self.masters is not None
        self._scale_momenta(layer, optimizer)
        before = self._before(layer, optimizer)
        sticky = set(self._copies_sticky) | result.sticky
        a, b = (
            golden.update(
                master,
                result.tensors[gradient],
                result.scales[gradient],
                optimizer,
                seed=self.recipe.seed,
                step=self.step,
                sticky=sticky,
            )
            for master, gradient in zip(self.masters, ("dA", "dB"), strict=True)
        )
        # As `training.train` leaves it
        last = replace(layer, amax=dict(result.amax))
        made = LayerState(layer=last, a=a, b=b, sticky=frozenset(sticky))
        after = replace(before, layers={"": made}, step=before.step + 1)
        self.amax = {**self.amax, **result.amax}
        self.sticky |= sticky
        self.set_masters(a, b)
        if self.recipe.rescale:
            made = rescale_saturated(after).layers[""]
            self.set_masters(made.a, made.b)
        return before, TrainingResult(state=after, results={"": result})

    def set_masters(self, a: Master, b: Master) -> None:
        """Puts other masters in place; working copies are made anew."""
        self.masters, self._copies = (a, b), None
