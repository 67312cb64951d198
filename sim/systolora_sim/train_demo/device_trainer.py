"""Adapters that train in the accelerator's arithmetic, by `systolora_sim.torch`."""

from collections.abc import Mapping
from typing import Any

import torch

from systolora_sim.torch import Recipe, quantize_lora
from systolora_sim.train_demo.model import adapter_parameters
from systolora_sim.train_demo.recipes import Way
from systolora_sim.train_demo.settings import Settings

__all__ = ["DeviceTrainer"]


class DeviceTrainer:
    """A `Trainer`: passes in integers, and the update too unless the recipe has float masters.

    A master or momentum that saturates gets twice the scale before the next step.
    """

    def __init__(self, unet: torch.nn.Module, settings: Settings, way: Way, seed: int) -> None:
        on_device = way.kind == "device"
        self._handle = quantize_lora(
            unet,
            Recipe(
                optimizer="momentum" if on_device else None,
                lr=settings.lr,
                beta=settings.momentum,
                bits=dict(way.bits),
                delayed=way.delayed,
                stochastic=way.stochastic,
                seed=seed,
                rescale=True,
            ),
        )
        self._optimizer = None
        if not on_device:
            self._optimizer = torch.optim.SGD(
                adapter_parameters(unet).values(), lr=settings.lr, momentum=settings.momentum
            )

    def begin(self) -> None:
        self._handle.zero_grad()

    def zero_gradients(self) -> list[str]:
        return [
            f"{name}.{tensor}"
            for name, tensors in self._handle.zero_gradients.items()
            for tensor in sorted(tensors)
        ]

    def step(self, lr: float) -> None:
        if self._optimizer is None:
            self._handle.lr = lr
            self._handle.step()
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()

    def status(self) -> dict[str, list[str]]:
        return {name: sorted(bits) for name, bits in self._handle.sticky.items() if bits}

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"handle": self._handle.state_dict()}
        if self._optimizer is not None:
            state["optimizer"] = self._optimizer.state_dict()
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        self._handle.load_state_dict(state["handle"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])

    def restore(self) -> None:
        self._handle.restore()
