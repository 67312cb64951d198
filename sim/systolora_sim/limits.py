"""What a configuration, or numerics section 9, cannot compute: found before anything runs."""

import numpy as np

from systolora.config import AcceleratorConfig
from systolora_sim import numerics as nx
from systolora_sim.layer import Layer

__all__ = ["CompileError", "check_cached_base", "check_layer"]


class CompileError(ValueError):
    """A layer that this configuration cannot compute."""


def check_layer(layer: Layer, config: AcceleratorConfig) -> None:
    """Raises CompileError where the configuration or numerics section 9 forbids the layer."""
    n, d = layer.x.shape
    for name, length in (("N", n), ("d", d), ("k", layer.outputs), ("r", layer.rank)):
        if length >= nx.K_LIMIT:
            raise CompileError(f"{name} = {length}: a reduction must be below {nx.K_LIMIT}")
    if config.int16:
        return
    for name in layer.present:
        if layer.operand(name).dtype != np.int8:
            raise CompileError(f"{name} is int16: the configuration was generated without int16")
    for name in layer.results:
        if layer.bits_of(name) != 8:
            raise CompileError(
                f"bits.{name} = {layer.bits_of(name)}: the configuration was generated without "
                "int16"
            )


def check_cached_base(layer: Layer) -> None:
    """Raises CompileError where the sums of X.W^T are no constant that a step could load."""
    if layer.want_dx:
        raise CompileError(
            "cache_base: dX is asked for, so that x changes as what computes it is trained; the "
            "sums of X.W^T are no constant"
        )
    if layer.is_frozen:
        raise CompileError("cache_base: the layer has no adapter: nothing would be left of Y")
