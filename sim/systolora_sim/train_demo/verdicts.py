"""What the demonstration was to show, and whether the figures of a report do."""

from typing import Any

from systolora_sim.train_demo.recipes import METRICS, REFERENCE

__all__ = ["verdicts"]

_NEAR = 0.02
_MEMORY = 3.5

Figures = dict[str, Any]


def verdicts(report: Figures) -> list[Figures]:
    """Each claim with what was measured: name, claim, value, shown, reached."""
    recipes = {each["name"]: each for each in report["recipes"]}
    made = []
    for recipe in recipes.values():
        if recipe["quantized"]:
            made += _parity(recipe, recipes[REFERENCE])
        elif recipe["control"]:
            made.append(_control(recipe, recipes[REFERENCE]))
    for table in report["memory"]:
        row = next(row for row in table["rows"] if row["name"] == "int8")
        made.append(
            {
                "name": f"memory.{table['name']}",
                "claim": f"{table['title']}: at least {_MEMORY}x less memory than float32",
                "value": row["ratio"],
                "shown": f"{row['ratio']:.2f}x",
                "reached": row["ratio"] >= _MEMORY,
            }
        )
    return made


def _parity(recipe: Figures, reference: Figures) -> list[Figures]:
    """Whether a recipe is as good as float32: within 2%; a distance, within the seeds' spread."""
    made = []
    words = {"int": "integer inference", "float": "float32 inference"}
    for key, difference in recipe["differences"].items():
        place, _, metric = key.partition(".")
        if key != "loss" and metric not in ("mse", "fd"):
            continue
        mean = difference["mean"]
        if key == "loss":
            what, spread = "final training loss", None
        else:
            what = f"{METRICS[metric]}, {words[place]}"
            whole = reference["metrics"][f"float.{metric}"]
            spread = whole["sd"] / whole["mean"] if metric == "fd" and whole["sd"] else None
        limit = max(_NEAR, spread or 0)
        claim = f"{recipe['title']}: {what} within {_NEAR:.0%} of float32's"
        if spread is not None:
            claim += f", or within the seeds' spread of {spread:.1%}"
        made.append(
            {
                "name": f"{recipe['name']}.{key}",
                "claim": claim,
                "value": mean,
                "shown": f"{mean:+.2%}",
                "reached": abs(mean) <= limit,
            }
        )
    if recipe["diverged"] or not made:
        made.append(
            {
                "name": f"{recipe['name']}.whole", "value": len(recipe["diverged"]),
                "claim": f"{recipe['title']}: no seed diverges",
                "shown": f"{len(recipe['diverged'])} diverged", "reached": False,
            }
        )  # fmt: skip
    return made


def _control(recipe: Figures, reference: Figures) -> Figures:
    """A control must fail what the recipes are held to, in its loss or its distance."""
    sides = [each for each in _parity(recipe, reference) if each["name"].count(".float.")]
    failed = [each for each in sides if not each["reached"]]
    worst = max(failed or sides, key=lambda each: abs(each["value"]), default=None)
    return {
        "name": f"{recipe['name']}.fails",
        "claim": f"{recipe['title']}: fails this comparison in held-out loss or distance, as it "
        "must",
        "value": None if worst is None else worst["value"],
        "shown": "no figure" if worst is None else worst["shown"],
        "reached": bool(failed),
    }
