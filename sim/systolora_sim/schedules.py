"""Schedules: how each product that has a choice is computed. None changes a bit.

=======  ================================  =============================
name     low-rank terms of Y and dX        gradients dB^T and dA
=======  ================================  =============================
auto     output stationary                 weight stationary
ws       weight stationary                 weight stationary
os       output stationary                 output stationary
mixed    blocks of the output alternate    layers and gradients alternate
=======  ================================  =============================

"best" is none of these: `scheduler` picks it for a training step by the cycle model.

A weight-stationary term streams the rows of H or dH, an output-stationary gradient wants them
reduction-major: both need [N, r], which the array makes by a transposition (`transpose_lowering`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from systolora.contract import Dataflow
from systolora_sim.limits import CompileError

__all__ = [
    "SCHEDULES", "LayerSchedule", "StepSchedule", "check_schedule", "layer_schedule",
    "step_schedule",
]  # fmt: skip

SCHEDULES = ("auto", "ws", "os", "mixed")

#: What each product with a choice takes of a rank-r tensor that another one computes.
_TAKES = {"Y": "H", "dX": "dH", "dB": "H", "dA": "dH"}


@dataclass(frozen=True)
class LayerSchedule:
    """The dataflows of one layer.

    terms : of Y and dX, the low-rank term's, block after block from the first on, again and again;
    gradients : of dB and dA; pair : whether dY is loaded once for dH and dB where that is possible;
    columns_first : whether all rows of Y and dX pass a column block before the next one comes;
    None: the order that reads less.
    """

    terms: dict[str, tuple[Dataflow, ...]]
    gradients: dict[str, Dataflow]
    pair: bool = True
    columns_first: bool | None = None

    def turns(self, product: str) -> tuple[str, ...]:
        """The tensors that must lie as [N, r] before a product can begin."""
        if product in self.terms:
            needed = Dataflow.WS in self.terms[product]
        else:
            needed = self.gradients.get(product) is Dataflow.OS
        return (_TAKES[product],) if needed else ()

    def turned(self, want_dx: bool) -> tuple[str, ...]:
        """All of those that a layer with an adapter needs."""
        products = [name for name in _TAKES if want_dx or name != "dX"]
        needed = {tensor for name in products for tensor in self.turns(name)}
        return tuple(sorted(needed, reverse=True))


@dataclass(frozen=True)
class StepSchedule:
    """The schedule of a training step.

    layers : by name; together : whether H and dA of layers with one x are one product each
    """

    name: str
    layers: Mapping[str, LayerSchedule]
    together: bool = True


def check_schedule(name: str) -> None:
    """Raises CompileError if there is no such schedule."""
    if name not in SCHEDULES:
        raise CompileError(f"schedule = {name!r}: must be one of {', '.join(SCHEDULES)}")


def layer_schedule(name: str, index: int) -> LayerSchedule:
    """A schedule's dataflows for the layer of that number; raises CompileError."""
    check_schedule(name)
    ws, os = Dataflow.WS, Dataflow.OS
    if name == "mixed":
        gradients = (os, ws) if index % 2 == 0 else (ws, os)
        return LayerSchedule(
            terms={"Y": (os, ws), "dX": (ws, os)},
            gradients=dict(zip(("dB", "dA"), gradients, strict=True)),
        )
    term, gradient = (ws if name == "ws" else os), (os if name == "os" else ws)
    return LayerSchedule(
        terms={"Y": (term,), "dX": (term,)}, gradients={"dB": gradient, "dA": gradient}
    )


def step_schedule(name: str, layers: Iterable[str]) -> StepSchedule:
    """A schedule's dataflows for layers in their order; raises CompileError."""
    return StepSchedule(name, {each: layer_schedule(name, n) for n, each in enumerate(layers)})
