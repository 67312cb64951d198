"""One recipe with one seed: fine-tunes the pre-trained U-Net to the concept and measures it."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from systolora_sim.layer import LayerError
from systolora_sim.train_demo import checkpoint
from systolora_sim.train_demo.data import Images, fine_tune_batch, generator
from systolora_sim.train_demo.metrics import Judge, held_out
from systolora_sim.train_demo.model import Diffusion, add_adapters, make_unet
from systolora_sim.train_demo.recipes import Way
from systolora_sim.train_demo.settings import Settings
from systolora_sim.train_demo.trainers import Trainer, make_trainer

__all__ = ["SHOWN", "Task", "Workbench", "fine_tune"]

#: Samples that are kept to be looked at.
SHOWN = 8
#: The points of a loss curve use one in so many images of the grid.
_CURVE_PART = 4
#: A loss is called diverging where it is this many times the mean of the first steps.
_DIVERGED = 4.0
_FIRST = 10


@dataclass(frozen=True)
class Workbench:
    """What all runs share."""

    settings: Settings
    images: Images
    weights: dict[str, torch.Tensor]
    judge: Judge
    directory: Path


@dataclass(frozen=True)
class Task:
    """A recipe with a seed; samples: draw images and judge them too."""

    recipe: str
    way: Way
    seed: int
    samples: bool

    @property
    def key(self) -> str:
        """Names its files."""
        return f"{self.recipe}-seed{self.seed}"


def fine_tune(bench: Workbench, task: Task, progress: Callable[[int], None]) -> dict[str, Any]:
    """The result of a task, from its file if it was done before, else from its last checkpoint on.

    progress is told steps done; the result is written to runs/<key>.json of the directory.
    """
    directory = bench.directory / "runs"
    directory.mkdir(exist_ok=True)
    result_file, state_file = directory / f"{task.key}.json", directory / f"{task.key}.pt"
    result = checkpoint.load_json(result_file)
    if result is not None:
        progress(bench.settings.steps)
        return result
    settings, size = bench.settings, bench.images.train.shape[-1]
    unet = make_unet(settings, size)
    unet.load_state_dict(bench.weights)
    diffusion = Diffusion(unet, settings, size)
    add_adapters(unet, settings, task.seed)
    trainer = make_trainer(unet, settings, task.way, task.seed)
    record = _Record.load(checkpoint.load(state_file), trainer)
    before, begun = record.seconds, time.process_time()
    progress(len(record.losses))
    run = _Run(bench, task, diffusion, trainer, record)
    while not run.finished:
        run.advance()
        progress(1)
        if not run.finished and len(record.losses) % settings.checkpoint_every == 0:
            record.seconds = before + time.process_time() - begun
            checkpoint.save(state_file, record.state(trainer))
    progress(settings.steps - len(record.losses))
    result = run.result()
    result["seconds"] = before + time.process_time() - begun
    shown = result.pop("shown", {})
    for name, images in shown.items():
        checkpoint.save(directory / f"{task.key}.{name}.pt", {"images": images})
    checkpoint.save_json(result_file, result)
    state_file.unlink(missing_ok=True)
    return result


@dataclass
class _Record:
    """What a run has seen so far."""

    losses: list[float]
    curve: list[list[float]]
    zeros: Counter[str]
    diverged: str
    seconds: float

    @classmethod
    def load(cls, state: dict[str, Any] | None, trainer: Trainer) -> "_Record":
        if state is None:
            return cls([], [], Counter(), "", 0.0)
        trainer.load(state["trainer"])
        zeros, names = Counter(state["zeros"]), ("losses", "curve", "diverged", "seconds")
        losses, curve, diverged, seconds = (state[name] for name in names)
        return cls(losses, curve, zeros, diverged, seconds)

    def state(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "losses": self.losses, "curve": self.curve, "zeros": dict(self.zeros),
            "diverged": self.diverged, "seconds": self.seconds, "trainer": trainer.state(),
        }  # fmt: skip


class _Run:
    def __init__(
        self, bench: Workbench, task: Task, diffusion: Diffusion, trainer: Trainer, record: _Record
    ) -> None:
        self.bench, self.task = bench, task
        self.diffusion, self.trainer, self.record = diffusion, trainer, record

    @property
    def finished(self) -> bool:
        trained = self.task.way.kind != "untrained"
        steps = self.bench.settings.steps if trained else 0
        return bool(self.record.diverged) or len(self.record.losses) >= steps

    def advance(self) -> None:
        """One step, and a point of the curve where one is due."""
        settings, record = self.bench.settings, self.record
        step = len(record.losses)
        if step % max(1, settings.steps // settings.curve_points) == 0:
            self._point(step)
        batch = fine_tune_batch(
            self.bench.images, settings, self.task.seed, step, self.diffusion.times
        )
        self.trainer.begin()
        try:
            loss = self.diffusion.losses(batch).mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                record.diverged = f"loss {value} in step {step}"
                return
            record.losses.append(value)
            first = record.losses[:_FIRST]
            if value > _DIVERGED * math.fsum(first) / len(first):
                record.diverged = f"loss {value:.4g} in step {step}"
                return
            loss.backward()
        except LayerError as error:  # NaN or infinite values, which the device refuses
            record.diverged = f"step {step}: {error}"
            return
        # lora_B is zero at first, and so is lora_A's gradient: of step 0 that says nothing
        if step:
            record.zeros.update(self.trainer.zero_gradients())
        self.trainer.step(settings.lr * (1 - step / settings.steps))

    def _point(self, step: int) -> None:
        self.record.curve.append([step, self._held_out(concept=True, part=_CURVE_PART)])

    def _held_out(self, *, concept: bool, part: int = 1) -> float:
        """Measures without leaving a trace in the trainer: delayed scales would move."""
        bench = self.bench
        return held_out(self.diffusion, bench.images, bench.settings, concept=concept, part=part)

    def result(self) -> dict[str, Any]:
        """All figures of the run; "shown" holds some images."""
        record, way = self.record, self.task.way
        result: dict[str, Any] = {
            "recipe": self.task.recipe,
            "seed": self.task.seed,
            "losses": record.losses,
            "diverged": record.diverged,
            "zero_gradients": dict(sorted(record.zeros.items())),
            "sticky": self.trainer.status(),
            "shown": {},
        }
        if not record.diverged:
            self._point(len(record.losses))
            if way.quantized:
                result["int"] = self._measure(result["shown"], "int")
            self.trainer.restore()
            result["float"] = self._measure(result["shown"], "float")
        result["curve"] = record.curve
        return result

    def _measure(self, shown: dict[str, torch.Tensor], name: str) -> dict[str, float]:
        """Figures of the adapter as the U-Net now computes."""
        bench, settings = self.bench, self.bench.settings
        found = {
            "mse": self._held_out(concept=True), "mse_others": self._held_out(concept=False)
        }  # fmt: skip
        if self.task.samples:
            shape = (settings.samples, 1, self.diffusion.size, self.diffusion.size)
            noise = torch.randn(shape, generator=generator(6, self.task.seed))
            samples = self.diffusion.sample(settings.concept, noise, settings.sampling_steps)
            shown[name] = samples[:SHOWN].clone()
            found |= bench.judge.judge(samples)
        return found
