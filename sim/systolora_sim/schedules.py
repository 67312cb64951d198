"""Schedules: which dataflow computes each product that has a choice. None changes a bit.

=======  ================================  =============================
name     low-rank terms of Y and dX        gradients dB^T and dA
=======  ================================  =============================
auto     output stationary                 weight stationary
ws       weight stationary                 weight stationary
os       output stationary                 output stationary
mixed    blocks of the output alternate    layers and gradients alternate
=======  ================================  =============================

A weight-stationary term streams the rows of H or dH, an output-stationary gradient wants them
reduction-major: both need [N, r], which the array makes by a transposition (`transpose_lowering`).
"""

from dataclasses import dataclass

from systolora.contract import Dataflow
from systolora_sim.limits import CompileError

__all__ = ["SCHEDULES", "LayerSchedule", "check_schedule", "layer_schedule"]

SCHEDULES = ("auto", "ws", "os", "mixed")

#: What each product with a choice takes of a rank-r tensor that another one computes.
_TAKES = {"Y": "H", "dX": "dH", "dB": "H", "dA": "dH"}


@dataclass(frozen=True)
class LayerSchedule:
    """The dataflows of one layer.

    terms : of Y and dX, the low-rank term's, block after block from the first on, again and again;
    gradients : of dB and dA.
    """

    terms: dict[str, tuple[Dataflow, ...]]
    gradients: dict[str, Dataflow]

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
