"""One adapter in training, in float32 or in the accelerator's arithmetic, behind the same methods.

SGD with momentum everywhere: v = momentum * v + G, w = w - lr * v.
"""

from typing import Any, Protocol

import torch

from systolora_sim.train_demo.model import adapter_parameters
from systolora_sim.train_demo.recipes import Way
from systolora_sim.train_demo.settings import Settings

__all__ = ["Trainer", "make_trainer"]


class Trainer(Protocol):
    """What fine-tuning needs of a recipe. The U-Net's adapters are trained in place."""

    def begin(self) -> None:
        """Forgets the gradients of the step before."""
        ...

    def zero_gradients(self) -> list[str]:
        """After the backward pass: the tensors whose gradient is zero in every element."""
        ...

    def step(self, lr: float) -> None:
        """Updates the adapters with that learning rate."""
        ...

    def status(self) -> dict[str, list[str]]:
        """Sticky bits of layers, by name, where any is set."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, for `checkpoint.save`."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        ...

    def restore(self) -> None:
        """From here on the U-Net computes in float32, with the adapter that was trained."""
        ...


class _Float:
    """torch's SGD on float32 adapters; rounded: to int8 in a fixed scale after each update."""

    #: The scale of the int8 masters: adapters in -range..range.
    _RANGE = 2.0

    def __init__(self, unet: torch.nn.Module, settings: Settings, rounded: bool) -> None:
        self._parameters = adapter_parameters(unet)
        self._rounded = rounded
        self._optimizer = torch.optim.SGD(
            self._parameters.values(), lr=settings.lr, momentum=settings.momentum
        )
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        if self._rounded:
            unit = self._RANGE / 127
            for parameter in self._parameters.values():
                parameter.copy_((parameter / unit).round().clamp(-127, 127) * unit)

    def begin(self) -> None:
        self._optimizer.zero_grad()

    def zero_gradients(self) -> list[str]:
        return [
            name for name, p in self._parameters.items()
            if p.grad is None or not bool(p.grad.any())
        ]  # fmt: skip

    def step(self, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._round()

    def status(self) -> dict[str, list[str]]:
        limit = self._RANGE * (1 - 1e-6)
        saturated = [
            name for name, p in self._parameters.items() if float(p.detach().abs().max()) >= limit
        ]
        return {name: ["master_range"] for name in saturated} if self._rounded else {}

    def state(self) -> dict[str, Any]:
        parameters = {name: p.detach() for name, p in self._parameters.items()}
        return {"parameters": parameters, "optimizer": self._optimizer.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    def restore(self) -> None:
        pass


def make_trainer(unet: torch.nn.Module, settings: Settings, way: Way, seed: int) -> Trainer:
    """The trainer of a recipe for a U-Net that has float32 adapters of PEFT."""
    if way.kind in ("float", "rounded", "untrained"):
        return _Float(unet, settings, way.kind == "rounded")
    from systolora_sim.train_demo.device_trainer import DeviceTrainer

    return DeviceTrainer(unet, settings, way, seed)
