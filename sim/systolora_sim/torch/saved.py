"""The state of quantized layers as a dictionary of tensors, numbers and strings, and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from systolora.contract import STICKY
from systolora_sim import numerics
from systolora_sim.golden import Master
from systolora_sim.layer import ADAPTERS, OUTPUTS, LayerError
from systolora_sim.numerics import Scale
from systolora_sim.torch.linear import QuantizedLoRALinear, to_numpy
from systolora_sim.torch.recipe import Recipe

__all__ = ["load_state_dict", "state_dict"]

_VERSION = 1

Layers = Mapping[str, QuantizedLoRALinear]


def _master(master: Master) -> dict[str, Any]:
    held: dict[str, Any] = {"w": torch.from_numpy(master.w.copy()), "scale": list(master.scale)}
    if master.v is not None and master.v_scale is not None:
        held |= {"v": torch.from_numpy(master.v.copy()), "v_scale": list(master.v_scale)}
    return held


def _layer(layer: QuantizedLoRALinear) -> dict[str, Any]:
    calls = layer.calls
    if calls.masters is not None:
        adapters = [_master(master) for master in calls.masters]
    else:
        adapters = [{"float": parameter.detach().clone()} for parameter in layer.adapters]
    return {
        **dict(zip(ADAPTERS, adapters, strict=True)),
        "amax": dict(calls.amax),
        "step": calls.step,
        "sticky": sorted(calls.sticky),
    }


def state_dict(recipe: Recipe, lr: float, calls: int, layers: Layers) -> dict[str, Any]:
    """What `load_state_dict` takes; calls : number of the next record."""
    return {
        "version": _VERSION,
        "optimizer": recipe.optimizer,
        "seed": recipe.seed,
        "lr": lr,
        "calls": calls,
        "layers": {name: _layer(layer) for name, layer in layers.items()},
    }


def _loaded(held: Mapping[str, Any], before: Master) -> Master:
    """A master of the state; raises what Python raises on anything that is not one."""
    given: dict[str, Any] = {"w": to_numpy(held["w"]).copy(), "scale": Scale(*held["scale"])}
    if "v" in held:
        given |= {"v": to_numpy(held["v"]).copy(), "v_scale": Scale(*held["v_scale"])}
    master = replace(before, **{"v": None, "v_scale": None, **given})
    if master.w.shape != before.w.shape:
        raise ValueError(f"shape {master.w.shape}: must be {before.w.shape}")
    return master


def _floats(held: Mapping[str, Any], before: torch.Tensor) -> torch.Tensor:
    value = held["float"]
    if value.shape != before.shape:
        raise ValueError(f"shape {tuple(value.shape)}: must be {tuple(before.shape)}")
    return value


def _read(layer: QuantizedLoRALinear, held: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's part of a state, checked."""
    masters = layer.calls.masters
    if masters is not None:
        adapters = [_loaded(held[n], m) for n, m in zip(ADAPTERS, masters, strict=True)]
    else:
        adapters = [_floats(held[n], p) for n, p in zip(ADAPTERS, layer.adapters, strict=True)]
    amax = {str(name): int(record) for name, record in held["amax"].items()}
    if not (amax.keys() <= set(OUTPUTS) and set(held["sticky"]) <= set(STICKY)):
        raise ValueError("unknown tensors in amax, or unknown sticky bits")
    if not all(0 <= record <= numerics.V_LIMIT for record in amax.values()):
        raise ValueError("amax: must be from 0 to 2^47")
    return {
        "adapters": adapters,
        "amax": amax,
        "step": int(held["step"]),
        "sticky": set(held["sticky"]),
    }


def load_state_dict(recipe: Recipe, layers: Layers, state: Mapping[str, Any]) -> tuple[float, int]:
    """Puts a state into the layers, all of it or nothing; returns lr and the next record's number.

    Raises
    ------
    LayerError
        If the state is of other layers, another optimizer or seed, or damaged.
    """
    found: dict[str, dict[str, Any]] = {}
    where = "state"
    try:
        for key, wanted in (
            ("version", _VERSION), ("optimizer", recipe.optimizer), ("seed", recipe.seed)
        ):  # fmt: skip
            if state[key] != wanted:
                raise LayerError(f"state: {key} {state[key]!r}: must be {wanted!r}")
        if set(state["layers"]) != set(layers):
            odd = min(set(state["layers"]) ^ set(layers))
            raise LayerError(f"state: layer {odd!r} is only in one of the state and the model")
        lr, calls = float(state["lr"]), int(state["calls"])
        if recipe.optimizer is not None:
            recipe.update_rule(lr)
        for name, layer in layers.items():
            where = f"state: layer {name!r}"
            found[name] = _read(layer, state["layers"][name])
    except LayerError:
        raise
    except KeyError as error:
        raise LayerError(f"{where}: {error.args[0]!r} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise LayerError(f"{where}: {error}") from None
    for name, layer in layers.items():
        held, calls_of = found[name], layer.calls
        calls_of.amax, calls_of.step = held["amax"], held["step"]
        calls_of.sticky = held["sticky"]
        if calls_of.masters is not None:
            calls_of.set_masters(*held["adapters"])
            layer.show_masters()
            continue
        with torch.no_grad():
            for parameter, value in zip(layer.adapters, held["adapters"], strict=True):
                parameter.copy_(value)
    return lr, calls
