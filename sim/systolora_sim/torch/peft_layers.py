"""Finds the LoRA layers that PEFT has put into a model, and refuses what the device cannot do."""

from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from systolora_sim.layer import LayerError
from systolora_sim.torch.linear import QuantizedLoRALinear

__all__ = ["Found", "find_layers"]

#: What `get_peft_model` puts before the names of a model's modules.
_PREFIX = "base_model.model."


@dataclass
class Found:
    """A LoRA layer: PEFT's module, the name of its active adapter, and where it is held.

    places : (parent, attribute) of each module that holds it.
    """

    module: Any
    adapter: str
    places: list[tuple[nn.Module, str]]


def _why_not(module: Any) -> str | None:
    """What of a layer of PEFT the device cannot do, None if nothing."""
    if isinstance(module, QuantizedLoRALinear):
        return "is quantized already: restore() of its handle must come first"
    if type(module) is not Linear or not isinstance(module.get_base_layer(), nn.Linear):
        base = type(module.get_base_layer()).__name__
        return f"{type(module).__name__} on {base}: must be the LoRA adapter of a linear layer"
    active = module.active_adapters
    if len(active) != 1 or active[0] not in module.lora_A:
        return f"active adapters {', '.join(active) or '(none)'}: must be exactly one"
    (adapter,) = active
    if module.merged or module.disable_adapters:
        return "the adapter is merged or disabled: must be neither"
    if adapter in module.lora_variant:
        kind = type(module.lora_variant[adapter]).__name__
        return f"{kind}: must be LoRA without a variant such as DoRA"
    if not isinstance(module.lora_dropout[adapter], nn.Identity):
        return "lora_dropout: must be 0, the device has no dropout"
    if module.lora_bias.get(adapter):
        return "lora_bias: must be off"
    if module.fan_in_fan_out:
        return "fan_in_fan_out: must be off"
    if module.scaling[adapter] < 0:
        return f"scaling {module.scaling[adapter]}: must not be negative"
    base = module.get_base_layer()
    if base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "the base layer wants a gradient: must be frozen"
    return None


def find_layers(model: nn.Module) -> dict[str, Found]:
    """The LoRA layers by name, in sorted order: the path in the model without PEFT's prefix.

    Raises
    ------
    LayerError
        If there is none, or one that the device cannot train, with its name.
    """
    found: dict[int, tuple[str, Found]] = {}
    parents = dict(model.named_modules(remove_duplicate=False))
    for path, module in parents.items():
        if not isinstance(module, BaseTunerLayer):
            continue
        name = path.removeprefix(_PREFIX)
        if (why := _why_not(module)) is not None:
            raise LayerError(f"{name}: {why}")
        parent, _, attribute = path.rpartition(".")
        if not attribute:
            raise LayerError("the model is itself a LoRA layer: must be inside a model")
        entry = Found(module, module.active_adapters[0], [])
        _, entry = found.setdefault(id(module), (name, entry))
        entry.places.append((parents[parent], attribute))
    if not found:
        raise LayerError("the model has no LoRA layers of PEFT: add an adapter first")
    return dict(sorted(found.values(), key=lambda each: each[0]))
