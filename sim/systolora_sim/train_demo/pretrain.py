"""Pre-training on all classes but the concept, and the classifier that judges the samples."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from systolora_sim.train_demo import checkpoint
from systolora_sim.train_demo.data import CLASSES, Images, generator, pretrain_batch
from systolora_sim.train_demo.model import Diffusion, make_unet
from systolora_sim.train_demo.settings import Settings

__all__ = ["Classifier", "pretrain", "train_classifier"]

Progress = Callable[[int], None]


def pretrain(
    images: Images, settings: Settings, directory: Path, progress: Progress
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights of the U-Net and the losses of all steps; goes on from a checkpoint there.

    AdamW with a learning rate that falls as a cosine to zero.
    """
    path = directory / "pretrained.pt"
    size = images.train.shape[-1]
    unet = make_unet(settings, size)
    diffusion = Diffusion(unet, settings, size)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.pretrain_lr)
    losses: list[float] = []
    state = checkpoint.load(path)
    if state is not None:
        unet.load_state_dict(state["unet"])
        losses = state["losses"]
        if len(losses) < settings.pretrain_steps:
            optimizer.load_state_dict(state["optimizer"])
        progress(len(losses))
    unet.train()
    while len(losses) < settings.pretrain_steps:
        step = len(losses)
        angle = math.pi * step / settings.pretrain_steps
        for group in optimizer.param_groups:
            group["lr"] = settings.pretrain_lr * (1 + math.cos(angle)) / 2
        loss = diffusion.losses(pretrain_batch(images, settings, step, diffusion.times)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        progress(1)
        done = len(losses) == settings.pretrain_steps
        if done or len(losses) % settings.checkpoint_every == 0:
            state = {"unet": unet.state_dict(), "losses": losses}
            if not done:
                state["optimizer"] = optimizer.state_dict()
            checkpoint.save(path, state)
    return {name: tensor.detach() for name, tensor in unet.state_dict().items()}, losses


class Classifier(nn.Module):
    """A small convolutional network; its last hidden layer [n,32] is the space of distances."""

    FEATURES = 32

    def __init__(self, size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (-(-size // 2)) ** 2, self.FEATURES),
            nn.ReLU(),
        )
        self.last = nn.Linear(self.FEATURES, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.features(images))


def train_classifier(
    images: Images, settings: Settings, directory: Path, progress: Progress
) -> tuple[Classifier, float]:
    """The classifier, trained on the images to train on (all classes), and its test accuracy."""
    path = directory / "classifier.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(images.train.shape[-1])
    state = checkpoint.load(path)
    if state is not None:
        network.load_state_dict(state["network"])
        progress(settings.classifier_steps)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for step in range(settings.classifier_steps):
            pick = torch.randint(0, len(images.train), (64,), generator=generator(5, step))
            scores = network(images.train[pick])
            loss = nn.functional.cross_entropy(scores, images.train_labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(1)
        checkpoint.save(path, {"network": network.state_dict()})
    network.eval().requires_grad_(False)
    with torch.no_grad():
        right = network(images.test).argmax(1) == images.test_labels
    return network, float(right.float().mean())
