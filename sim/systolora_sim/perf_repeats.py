"""Large workloads: of many equal layers a few are timed and stand for the rest.

Layers with one x are one unit: they share products. Units with the same shapes are one kind. In a
step they go through the array one after the other, each beside its neighbours' loads and
post-processing; of a kind, the ones in the middle all see the same neighbours. So a kind's first,
second and last one are kept, and what belongs to the second counts for all between.
"""

from dataclasses import dataclass, replace

from systolora_sim.workload import Workload, WorkloadLayer

__all__ = ["LARGE", "Shortened", "shorten"]

#: Layers of a workload that are all timed, whatever they are.
LARGE = 40
#: Units that are timed of each kind.
KEPT = 3


@dataclass(frozen=True)
class Shortened:
    """workload : what is timed; weights : by layer, for how many it stands, where not for one."""

    workload: Workload
    weights: dict[str, int]


def _units(workload: Workload) -> list[list[WorkloadLayer]]:
    """Layers by input, in the order of a step: that of their names."""
    units: dict[str, list[WorkloadLayer]] = {}
    for layer in sorted(workload.layers, key=lambda each: each.name):
        units.setdefault(layer.input, []).append(layer)
    return list(units.values())


def shorten(workload: Workload, large: int = LARGE) -> Shortened:
    """The layers to time of a workload; all of them where it has at most `large`."""
    if len(workload.layers) <= large:
        return Shortened(workload, {})
    kinds: dict[tuple[object, ...], list[list[WorkloadLayer]]] = {}
    for unit in _units(workload):
        kind = tuple((each.rows, each.d, each.k, each.dx) for each in unit)
        kinds.setdefault(kind, []).append(unit)
    kept, weights = set(), {}
    for units in kinds.values():
        some = units if len(units) <= KEPT else [*units[:2], units[-1]]
        kept |= {layer.name for unit in some for layer in unit}
        if len(units) > KEPT:
            weights |= {layer.name: len(units) - 2 for layer in units[1]}
    if not weights:
        return Shortened(workload, {})
    layers = tuple(layer for layer in workload.layers if layer.name in kept)
    return Shortened(replace(workload, layers=layers, step=None), weights)
