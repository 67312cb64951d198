"""Small networks with LoRA adapters of PEFT, and what their layers were given."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from systolora_sim.golden import Master

NAMES = ("0", "2")


def plain_net(seed: int) -> nn.Sequential:
    """12 -> 10 -> 6, the first layer with a bias; only the second one's input needs a gradient."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6, bias=False))


def lora_net(seed: int, zero_b: bool = False, **config: Any) -> Any:
    """The net with adapters of rank 3 and alpha 6 on both layers."""
    options = {"r": 3, "lora_alpha": 6, "target_modules": list(NAMES)} | config
    net: Any = get_peft_model(plain_net(seed), LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed + 1)
    if not zero_b:
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.1, generator=generator)
    return net


def batches(seed: int, count: int, shape: tuple[int, ...] = (2, 7)) -> list[torch.Tensor]:
    """Inputs [*shape, 12], of different sizes from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (1 + 0.5 * number) * torch.randn(*shape, 12, generator=generator) for number in range(count)
    ]


def masters_of(layer: Any) -> tuple[Master, Master]:
    """The masters of a quantized layer, which must have some."""
    assert layer.calls.masters is not None
    return layer.calls.masters


@dataclass
class Seen:
    """What went into layers and came out, by layer, of the last call: x, y, dy and dx [N, ...]."""

    x: dict[str, np.ndarray] = field(default_factory=dict)
    y: dict[str, np.ndarray] = field(default_factory=dict)
    dy: dict[str, np.ndarray] = field(default_factory=dict)
    dx: dict[str, np.ndarray] = field(default_factory=dict)

    def watch(self, name: str, module: nn.Module) -> None:
        def rows(tensor: torch.Tensor) -> np.ndarray:
            return tensor.detach().reshape(-1, tensor.shape[-1]).numpy().copy()

        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor):
            self.x[name], self.y[name] = rows(inputs[0]), rows(output)
            if output.requires_grad:
                output.register_hook(lambda grad: self.dy.update({name: rows(grad)}))
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda grad: self.dx.update({name: rows(grad)}))

        module.register_forward_hook(hook)
