"""What is measured of a trained adapter, and how sure it is.

The Fréchet distance is between features of a small classifier trained on the same data set: it is
no FID, and can be compared with nothing outside its own report.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from systolora_sim.train_demo.data import Batch, Images, generator
from systolora_sim.train_demo.model import Diffusion
from systolora_sim.train_demo.pretrain import Classifier
from systolora_sim.train_demo.settings import Settings

__all__ = ["Judge", "frechet", "held_out", "interval"]

_BATCH = 64
_SPLITS = 20


def frechet(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Fréchet distance of two normal distributions fitted to features [n,f] and [m,f].

    |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), in float64.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(c_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c_b @ root), 0)).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return float(apart + np.trace(c_a) + np.trace(c_b) - 2 * shared)


def interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Mean, standard deviation and Student's interval of the mean of independent values.

    One value has neither deviation nor interval: those are None.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    from scipy.stats import t

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


@torch.no_grad()
def held_out(
    diffusion: Diffusion, images: Images, settings: Settings, *, concept: bool, part: int = 1
) -> float:
    """Mean squared error of the noise on the held-out grid: images x noise levels.

    The grid is the same for every adapter and seed: differences are of the adapters alone.
    concept : images of the concept, else of the other classes. part : one in so many images.
    """
    wanted = (images.test_labels == settings.concept) == concept
    chosen = torch.nonzero(wanted)[:, 0][: settings.grid_images : part]
    count = settings.grid_times
    levels = (torch.arange(count) * 2 + 1) * diffusion.times // (2 * count)
    draw = generator(7, int(concept), part)
    grid = Batch(
        images=images.test[chosen].repeat_interleave(count, 0),
        labels=images.test_labels[chosen].repeat_interleave(count),
        noise=torch.randn(len(chosen) * count, *images.test.shape[1:], generator=draw),
        times=levels.repeat(len(chosen)),
    )
    total = 0.0
    for begin in range(0, len(grid.labels), _BATCH):
        rows = slice(begin, begin + _BATCH)
        batch = Batch(grid.images[rows], grid.labels[rows], grid.noise[rows], grid.times[rows])
        total += float(diffusion.losses(batch).double().sum())
    return total / len(grid.labels)


class Judge:
    """Distance and hit rate of samples of the concept, against its held-out real images."""

    def __init__(self, classifier: Classifier, images: Images, concept: int) -> None:
        self.classifier, self.concept = classifier, concept
        self.real = self._features(images.of(concept, "test"))
        self.other = self._features(images.of(concept, "train"))

    @torch.no_grad()
    def _features(self, images: torch.Tensor) -> NDArray[Any]:
        return self.classifier.features(images).numpy()

    @torch.no_grad()
    def judge(self, samples: torch.Tensor) -> dict[str, float]:
        """fd and hit (share classified as the concept) of generated images [n,1,s,s]."""
        found = self.classifier(samples).argmax(1) == self.concept
        return {
            "fd": frechet(self._features(samples), self.real),
            "hit": float(found.double().mean()),
        }

    def floors(self) -> dict[str, float]:
        """Distances of real images to real images: below these nothing can be told apart.

        fd_other_half : the concept's images of the training half to those of the other half.
        fd_split : two random halves of the latter, a mean over many splits.
        hit_real : the classifier's hit rate on real held-out images of the concept.
        """
        draw = np.random.default_rng(8)
        splits = []
        for _ in range(_SPLITS):
            order = draw.permutation(len(self.real))
            half = len(order) // 2
            splits.append(frechet(self.real[order[:half]], self.real[order[half:]]))
        with torch.no_grad():
            scores = self.classifier.last(torch.from_numpy(self.real))
        return {
            "fd_other_half": frechet(self.other, self.real),
            "fd_split": math.fsum(splits) / len(splits),
            "hit_real": float((scores.argmax(1) == self.concept).double().mean()),
        }
