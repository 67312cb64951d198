"""PyTorch models whose LoRA layers train in the device's arithmetic.

`quantize_lora(model, Recipe(...))` replaces the LoRA layers that PEFT has put into a model;
forward, backward and, where the recipe has an optimizer, the update are then those of the golden
model, bit for bit. docs/torch.md shows it. Needs the extra `torch`.
"""

try:
    import torch as _torch  # noqa: F401  (first, so that its absence is said in one line)
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error.name} is not installed: pip install 'systolora[torch]'", name=error.name
    ) from None

from systolora_sim.torch.handle import QuantizedAdapters, quantize_lora
from systolora_sim.torch.linear import QuantizedLoRALinear
from systolora_sim.torch.recipe import Recipe

__all__ = ["QuantizedAdapters", "QuantizedLoRALinear", "Recipe", "quantize_lora"]
