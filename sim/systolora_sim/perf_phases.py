"""A training step as the three programs that a training loop runs, with its loss in between."""

from collections import Counter
from typing import Any

from systolora_sim.perf_figures import ORDER
from systolora_sim.perf_runs import Described

__all__ = ["PHASES", "in_sequence"]

#: The phases of a step, one after the other.
PHASES = ("forward", "backward", "update")
#: Figures of a run that add up.
_ADDED = ("cycles", "macs", "limit", "bytes_read", "bytes_written", "post_cycles")


def in_sequence(about: Described, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs of programs that go one after the other, as one run: everything adds up."""
    first = runs[0]
    products: dict[str, dict[str, Any]] = {}
    for product in (product for run in runs for product in run["products"]):
        held = products.get(product["name"])
        products[product["name"]] = product if held is None else _sum(held, product)
    whole = {key: sum(run[key] for run in runs) for key in _ADDED}
    if "computed_macs" in first:
        whole["computed_macs"] = sum(run.get("computed_macs", run["macs"]) for run in runs)
    return {
        **first,
        **whole,
        "name": about.name,
        "title": about.title,
        "schedule": about.schedule,
        "share": whole["limit"] / whole["cycles"],
        "waits": {key: sum(run["waits"][key] for run in runs) for key in first["waits"]},
        "products": [products[name] for name in ORDER if name in products],
        "notes": about.notes,
    }


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A product's parts in two programs; the one that multiplies more says how."""
    main = one if one["macs"] >= other["macs"] else other
    added = {key: one[key] + other[key] for key in ("macs", "limit", "cycles", "bytes")}
    waits = {key: one["waits"][key] + other["waits"][key] for key in one["waits"]}
    wait = max(waits, key=lambda each: waits[each])
    shapes: Counter[tuple[int, ...]] = Counter()
    for *shape, count in [*one["shapes"], *other["shapes"]]:
        shapes[tuple(shape)] += count
    return {
        **main,
        **added,
        "shapes": [[*shape, count] for shape, count in shapes.items()],
        "share": added["limit"] / added["cycles"] if added["cycles"] else 0.0,
        "wait": wait if waits[wait] > 0 else "-",
        "waits": waits,
    }
