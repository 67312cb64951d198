"""A LoRA layer of PEFT whose passes run in the device's arithmetic."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from systolora_sim.layer import Layer, LayerError, LayerResult
from systolora_sim.torch.calls import Call, LayerCalls, real

__all__ = ["QuantizedLoRALinear", "to_numpy"]


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """The values as NumPy has them: the tensor's own memory where it lies in the CPU's."""
    values = tensor.detach().cpu()
    # NumPy has no bfloat16; float32 holds all of its values.
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _like(values: NDArray[np.float32], shape: torch.Size, other: Tensor) -> Tensor:
    return torch.from_numpy(values).reshape(shape).to(device=other.device, dtype=other.dtype)


class _Passes(torch.autograd.Function):
    """Forward and backward of one call; the adapters are inputs so that backward is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, layer: "QuantizedLoRALinear") -> Tensor:
        y, ctx.call = layer.run_forward(x)
        ctx.layer, ctx.like, ctx.shape = layer, (x.new_empty(0), a, b), x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        want_dx = ctx.needs_input_grad[0]
        result = ctx.layer.run_backward(ctx.call, grads[0], want_dx)
        x, a, b = ctx.like
        d_x = (
            _like(real(result.tensors["dX"], result.scales["dX"]), ctx.shape, x)
            if want_dx
            else None
        )
        d_a, d_b = (
            _like(real(result.tensors[name], result.scales[name]), like.shape, like)
            for name, like in (("dA", a), ("dB", b))
        )
        return d_x, d_a, d_b, None


class QuantizedLoRALinear(Linear):
    """In the place of PEFT's `lora.Linear`: y[..., k] = x[..., d] W^T + b + g (x A^T) B^T.

    Made by `quantize_lora`. It shares parameters, submodules and settings with the layer that it
    replaces, so that state dicts keep their keys and PEFT and diffusers save adapters as ever. With
    an optimizer in the recipe the parameters lora_A and lora_B show the masters; nobody else may
    change them.

    Parameters
    ----------
    original : peft.tuners.lora.Linear
        What it replaces.
    adapter : str
        The name of the active adapter.
    calls : LayerCalls
        The arithmetic and its state.
    ran : function
        Takes (this layer, the `Layer`, its result) of each call that had a backward pass.

    Raises
    ------
    LayerError
        In forward and backward: on NaN or infinite values, and where parameters or settings were
        changed from outside.
    """

    def __init__(
        self,
        original: Linear,
        adapter: str,
        calls: LayerCalls,
        ran: Callable[["QuantizedLoRALinear", Layer, LayerResult], None],
    ) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(original))
        # Plain attributes; the original in a tuple, so that it is no submodule.
        self._original, self.adapter, self.calls, self._ran = (original,), adapter, calls, ran
        self._gain = self.scaling[adapter]
        self._versions = self._seen()

    @property
    def original(self) -> Linear:
        """The layer of PEFT."""
        return self._original[0]

    @property
    def name(self) -> str:
        return self.calls.name

    @property
    def adapters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """lora_A [r,d] and lora_B [k,r]."""
        a: Any = self.lora_A[self.adapter]
        b: Any = self.lora_B[self.adapter]
        return a.weight, b.weight

    def merge(self, *_: Any, **__: Any) -> None:
        raise LayerError(f"{self.name}: merge: restore() of the handle must come first")

    def _held(self) -> list[tuple[str, Tensor]]:
        """Parameters of which integers are kept, which nobody else may change."""
        base: Any = self.get_base_layer()
        held: list[tuple[str, Tensor]] = [("weight", base.weight)]
        if base.bias is not None:
            held.append(("bias", base.bias))
        if self.calls.masters is not None:
            held += zip(("lora_A", "lora_B"), self.adapters, strict=True)
        return held

    def _seen(self) -> list[tuple[str, int, int]]:
        return [(name, id(each), each._version) for name, each in self._held()]

    def show_masters(self) -> None:
        """Puts the masters' values into the parameters lora_A and lora_B."""
        if self.calls.masters is None:
            return
        with torch.no_grad():
            for parameter, master in zip(self.adapters, self.calls.masters, strict=True):
                parameter.copy_(torch.from_numpy(real(master.w, master.scale)))
        self._versions = self._seen()

    def _check(self) -> None:
        """Raises LayerError if somebody else has changed what the integers were made of."""
        if self.active_adapters != [self.adapter] or self.disable_adapters:
            raise LayerError(
                f"{self.name}: adapter {self.adapter!r} is not the active one any more: "
                "restore() of the handle must come first"
            )
        if self.scaling[self.adapter] != self._gain:
            raise LayerError(
                f"{self.name}: scaling: was changed from {self._gain} to "
                f"{self.scaling[self.adapter]}: restore() of the handle must come first"
            )
        for (name, *was), (_, *now) in zip(self._versions, self._seen(), strict=True):
            if was != now:
                raise LayerError(
                    f"{self.name}: {name}: was changed from outside, by an optimizer or by "
                    "loading: must be left to step() and load_state_dict() of the handle"
                )

    def run_forward(self, x: Tensor) -> tuple[Tensor, Call]:
        self._check()
        a, b = (None, None) if self.calls.masters else map(to_numpy, self.adapters)
        y, call = self.calls.forward(to_numpy(x).reshape(-1, x.shape[-1]), a, b)
        return _like(y, torch.Size((*x.shape[:-1], y.shape[1])), x), call

    def run_backward(self, call: Call, dy: Tensor, want_dx: bool) -> LayerResult:
        layer, result = self.calls.backward(call, to_numpy(dy).reshape(-1, dy.shape[-1]), want_dx)
        self._ran(self, layer, result)
        return result

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            raise LayerError(f"{self.name}: takes its input and nothing else")
        if torch.is_grad_enabled():
            return _Passes.apply(x, *self.adapters, self)  # type: ignore[return-value]
        return self.run_forward(x)[0]
