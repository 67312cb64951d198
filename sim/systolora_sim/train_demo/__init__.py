"""`systolora train-demo`: LoRA fine-tuning of a small diffusion model, in several arithmetics.

recipes    what is compared
run        the whole run: pretrain, finetune, figures, views
page       the report; docs/train-demo.md says how to read it

Importing this needs nothing beyond the base installation; `demo` needs the extra `train`.
"""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from systolora_sim.train_demo.recipes import RECIPES

__all__ = ["RECIPES", "demo"]

_NEEDED = ("torch", "diffusers", "peft", "sklearn", "mlxtend", "matplotlib", "tqdm")


def demo(
    directory: Path,
    *,
    quick: bool = False,
    seeds: int | None = None,
    recipes: tuple[str, ...] | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> str:
    """Runs the demonstration, or goes on with it; returns its verdicts and warnings as text.

    Parameters
    ----------
    directory : Path
        Takes all files: report.html, report.json, PNGs, checkpoints.
    quick : bool
        The small run.
    seeds, recipes
        In place of the run's own; the ablation stays away where recipes are given.
    jobs : int
        Processes side by side.

    Raises
    ------
    ModuleNotFoundError
        If a package of the extra is missing.
    DemoError
        If the directory holds a run with other settings, or a file in it cannot be read.
    """
    for name in _NEEDED:  # before hours of work, not after them
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    from systolora_sim.train_demo.presets import FULL, QUICK
    from systolora_sim.train_demo.run import run_demo
    from systolora_sim.train_demo.views import text

    settings = QUICK if quick else FULL
    if seeds is not None:
        settings = replace(settings, seeds=seeds)
    if recipes is not None:
        settings = replace(settings, recipes=recipes, ablation=())
    return text(run_demo(settings, directory, jobs=jobs, progress=progress))
