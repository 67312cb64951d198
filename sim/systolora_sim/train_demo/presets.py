"""The two runs that the command offers, and settings as JSON."""

from dataclasses import asdict, fields
from typing import Any

from systolora_sim.train_demo.recipes import ABLATION, RECIPES
from systolora_sim.train_demo.settings import Settings

__all__ = ["FULL", "QUICK", "settings_from_json", "settings_json"]

FULL = Settings(
    name="full",
    data="mnist",
    pretrain_steps=2000,
    classifier_steps=800,
    steps=200,
    lr=20.0,
    samples=120,
    sampling_steps=20,
    grid_images=32,
    seeds=5,
    recipes=tuple(RECIPES),
    ablation=tuple(ABLATION),
    ablation_seeds=3,
)

QUICK = Settings(
    name="quick",
    data="digits",
    pretrain_steps=400,
    classifier_steps=300,
    steps=60,
    lr=4.0,
    samples=40,
    sampling_steps=10,
    grid_images=16,
    curve_points=6,
    seeds=2,
    recipes=("fp32", "int8", "none"),
    checkpoint_every=20,
)


def settings_json(settings: Settings) -> dict[str, Any]:
    """All fields, and the digest."""
    return asdict(settings) | {"digest": settings.digest}


def settings_from_json(value: Any) -> Settings | None:
    """What `settings_json` gave; None if it is something else."""
    names = {field.name for field in fields(Settings)}
    if not isinstance(value, dict) or set(value) != names | {"digest"}:
        return None
    given = {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}
    given = dict[str, Any](given)
    del given["digest"]
    return Settings(**given)
