"""A LoRA layer of PEFT whose passes run in the device's arithmetic."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


class QuantizedLoRALinear(nn.Module):
    """In the place of PEFT's `lora.Linear`: y[..., k] = x[..., d] W^T + b + g (x A^T) B^T.

    Made by `quantize_lora`. Its parameters are those of the layer that it replaces, under the same
    names, so that state dicts keep their keys; with an optimizer in the recipe `lora_A` and
    `lora_B` show the masters, and must not be changed by anybody else.

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
        In forward and backward: on NaN or infinite values, and on parameters that others changed.
    """

    def __init__(
        self,
        original: Any,
        adapter: str,
        calls: LayerCalls,
        ran: Callable[["QuantizedLoRALinear", Layer, LayerResult], None],
    ) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = (
            original.base_layer, original.lora_A, original.lora_B,
        )  # fmt: skip
        self.adapter, self.calls, self._ran = adapter, calls, ran
        self._original = (original,)  # in a tuple: not a submodule
        self._versions = self._seen()

    @property
    def original(self) -> Any:
        """The layer of PEFT."""
        return self._original[0]

    @property
    def name(self) -> str:
        return self.calls.name

    @property
    def weight(self) -> Tensor:
        """The frozen weight [k,d]; some models look at its type."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @property
    def adapters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """lora_A [r,d] and lora_B [k,r]."""
        return self.lora_A[self.adapter].weight, self.lora_B[self.adapter].weight

    def _held(self) -> list[tuple[str, Tensor]]:
        """Parameters of which integers are kept, which nobody else may change."""
        held: list[tuple[str, Tensor]] = [("weight", self.weight)]
        if self.bias is not None:
            held.append(("bias", self.bias))
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

    def _check_parameters(self) -> None:
        for (name, *was), (_, *now) in zip(self._versions, self._seen(), strict=True):
            if was != now:
                raise LayerError(
                    f"{self.name}: {name}: was changed from outside: its integers are kept since "
                    "quantize_lora; load with load_state_dict of the handle, or quantize again"
                )

    def run_forward(self, x: Tensor) -> tuple[Tensor, Call]:
        self._check_parameters()
        a, b = (None, None) if self.calls.masters else map(to_numpy, self.adapters)
        y, call = self.calls.forward(to_numpy(x).reshape(-1, x.shape[-1]), a, b)
        return _like(y, torch.Size((*x.shape[:-1], y.shape[1])), x), call

    def run_backward(self, call: Call, dy: Tensor, want_dx: bool) -> LayerResult:
        layer, result = self.calls.backward(call, to_numpy(dy).reshape(-1, dy.shape[-1]), want_dx)
        self._ran(self, layer, result)
        return result

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Passes.apply(x, *self.adapters, self)  # type: ignore[return-value]
        return self.run_forward(x)[0]

    def extra_repr(self) -> str:
        a, _ = self.adapters
        return f"{self.in_features}, {self.out_features}, rank={a.shape[0]}"
