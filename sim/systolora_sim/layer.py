"""One LoRA layer in memory, checked: what every backend takes, and what it gives back.

Tensors are in the ecosystem's layout (numerics section 5): x [N,d], weight [k,d], lora_A [r,d],
lora_B [k,r], dy [N,k], bias [k]. A frozen layer has no lora_A, lora_B and gain; it needs dy only
where dX is asked for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from systolora_sim import numerics
from systolora_sim.numerics import K_LIMIT, Scale

__all__ = ["ADAPTERS", "INPUTS", "OUTPUTS", "Layer", "LayerError", "LayerResult"]
__all__ += ["check_bias", "check_integer", "check_operand"]

#: Tensors a layer is given.
INPUTS = ("x", "weight", "lora_A", "lora_B", "dy")
#: Tensors it quantizes: the ones that may be delayed or stochastic.
OUTPUTS = ("H", "Y", "dH", "dX")
#: The inputs that a frozen layer does not have.
ADAPTERS = ("lora_A", "lora_B")

#: Each input's axes, and the names of the dimensions.
_AXES = {
    "x": ("N", "d"),
    "weight": ("k", "d"),
    "lora_A": ("r", "d"),
    "lora_B": ("k", "r"),
    "dy": ("N", "k"),
}
#: The width a quantized tensor takes when `bits` does not name it (numerics section 5).
_FOLLOWS = {"H": "x", "Y": "x", "dH": "dy", "dX": "dy"}
#: Inputs whose scale must not be zero (numerics section 2). lora_A, lora_B and the gain may be
#: zero: an adapter starts with B = 0, and section 4 gives its working copy the zero scale.
_NOT_ZERO = ("x", "weight", "dy")


class LayerError(ValueError):
    """A layer that cannot run; the message names the tensor and the rule."""


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raises LayerError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise LayerError(f"{name}: {value!r}: must be an integer")
    if not low <= value <= high:
        raise LayerError(f"{name}: {value}: must be from {low} to {high}")


def check_operand(
    owner: str,
    name: str,
    tensor: NDArray[Any],
    axes: Sequence[str],
    reduced: Collection[str],
    known: dict[str, tuple[int, str]],
) -> None:
    """Checks width and shape of an operand, and enters its axes' sizes in `known`.

    Parameters
    ----------
    owner : for messages
    axes : of the tensor, by name
    reduced : axes over which something is summed, so that they must be shorter than K_LIMIT
    known : size of each axis so far, and the tensor that it is of

    Raises
    ------
    LayerError
        If it breaks a rule, or an axis has another size than before.
    """
    if tensor.dtype not in (np.int8, np.int16):
        raise LayerError(f"{name}: dtype {tensor.dtype}: must be int8 or int16")
    layout = f"[{', '.join(axes)}]"
    if tensor.ndim != 2:
        raise LayerError(f"{name}: rank {tensor.ndim}: must be 2, {layout}")
    for axis, size in zip(axes, tensor.shape, strict=True):
        if size == 0:
            raise LayerError(f"{name}: shape {tensor.shape}: {axis} must not be 0")
        if axis in reduced and size >= K_LIMIT:
            raise LayerError(
                f"{name}: {owner} has {axis} = {size}: a reduction must be shorter than {K_LIMIT}"
            )
        expected, source = known.setdefault(axis, (size, name))
        if size != expected:
            raise LayerError(
                f"{name}: shape {tensor.shape}: must be {layout} with {axis} = {expected} "
                f"as in {source}"
            )


def check_bias(bias: NDArray[Any] | None, axis: str, size: int, source: str) -> None:
    """Raises LayerError unless `bias` is None or int32 [axis], of the `size` that `source` has."""
    if bias is None:
        return
    if bias.dtype != np.int32:
        raise LayerError(f"bias: dtype {bias.dtype}: must be int32")
    if bias.shape != (size,):
        raise LayerError(
            f"bias: shape {bias.shape}: must be [{axis}] with {axis} = {size} as in {source}"
        )


@dataclass(kw_only=True)
class Layer:
    """Operands and modes of one LoRA layer's training step, or of a frozen layer's pass.

    Parameters
    ----------
    name : str
        For messages.
    x, weight, lora_A, lora_B, dy : int8 or int16 arrays
        [N,d], [k,d], [r,d], [k,r], [N,k]; each its own width. lora_A and lora_B are None in a
        frozen layer; dy may be None in a frozen layer without dX.
    scales : dict
        Scale of each of those that are there, by name. Not zero for x, weight and dy.
    gain : Scale or None
        alpha / r; None in a frozen layer.
    bias : int32 array [k] or None
        In units of S_x * S_w.
    want_dx : bool
        Whether dX is computed.
    delayed, stochastic : frozenset of str
        Tensors among H, Y, dH, dX that quantize in that mode; H and dH need the adapter.
    bits : dict
        Widths (8 or 16) of H, Y, dH, dX where they do not follow x and dy.
    amax : dict
        Delayed tensors' records of earlier steps, 0 (none) to 2^47.
    seed, step, index : int
        Of the random words: seed and step signed 32 bits, index the layer's number from 0.

    Raises
    ------
    LayerError
        On anything that breaks these rules, or a reduction of 131072 or more.
    """

    name: str
    x: NDArray[Any]
    weight: NDArray[Any]
    lora_A: NDArray[Any] | None = None
    lora_B: NDArray[Any] | None = None
    dy: NDArray[Any] | None = None
    scales: dict[str, Scale]
    gain: Scale | None = None
    bias: NDArray[np.int32] | None = None
    want_dx: bool = False
    delayed: frozenset[str] = frozenset()
    stochastic: frozenset[str] = frozenset()
    bits: dict[str, int] = field(default_factory=dict)
    amax: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    step: int = 0
    index: int = 0

    #: The axes of each input, by name.
    AXES: ClassVar[dict[str, tuple[str, str]]] = _AXES

    def __post_init__(self) -> None:
        self._check_presence()
        self._check_shapes()
        self._check_scales()
        self._check_modes()
        for name in ("seed", "step"):
            check_integer(name, getattr(self, name), *numerics.int_range(32))
        check_integer("index", self.index, 0, (1 << 28) - 1)

    def _check_presence(self) -> None:
        for name, other in (ADAPTERS, ADAPTERS[::-1]):
            if getattr(self, name) is None and getattr(self, other) is not None:
                raise LayerError(f"{name}: missing tensor: {other} is there")
        if self.is_frozen and self.gain is not None:
            raise LayerError("gain: must not be there without lora_A and lora_B")
        if not self.is_frozen and self.gain is None:
            raise LayerError("gain: missing: must be there with lora_A and lora_B")
        if self.dy is None and not self.is_frozen:
            raise LayerError("dy: missing tensor: must be there with lora_A and lora_B")
        if self.dy is None and self.want_dx:
            raise LayerError("dy: missing tensor: must be there with want_dx = 1")

    def _check_shapes(self) -> None:
        known: dict[str, tuple[int, str]] = {}
        for name in self.present:
            axes = _AXES[name]
            check_operand(f"layer {self.name!r}", name, self.operand(name), axes, axes, known)
        check_bias(self.bias, "k", self.outputs, "weight")

    def _check_scales(self) -> None:
        if set(self.scales) != set(self.present):
            raise LayerError(f"scales: must be those of {', '.join(self.present)}")
        for name, scale in [*self.scales.items(), ("gain", self.gain)]:
            if scale is None:
                continue
            try:
                scale.check()
            except ValueError as error:
                raise LayerError(f"{name}.scale: {error}") from None
        for name in _NOT_ZERO:
            if name in self.scales and self.scales[name].is_zero:
                raise LayerError(f"{name}.scale: the scale of {name} must not be zero")

    def _check_modes(self) -> None:
        named = {"delayed": self.delayed, "stochastic": self.stochastic, "bits": self.bits}
        for mode, tensors in named.items():
            for tensor in sorted(tensors):
                if tensor not in OUTPUTS:
                    raise LayerError(
                        f"{mode}: unknown tensor {tensor!r}: must be among {', '.join(OUTPUTS)}"
                    )
                if tensor in ("H", "dH") and self.is_frozen:
                    raise LayerError(f"{mode}: names {tensor}: needs lora_A and lora_B")
                if tensor == "dX" and not self.want_dx:
                    raise LayerError(f"{mode}: names dX: needs want_dx = 1")
        for tensor, width in self.bits.items():
            if width not in (8, 16):
                raise LayerError(f"bits.{tensor}: {width!r}: must be 8 or 16")
        for tensor, record in self.amax.items():
            if tensor not in self.delayed:
                raise LayerError(f"{tensor}.amax: {tensor} must be in `delayed` to have a record")
            check_integer(f"{tensor}.amax", record, 0, numerics.V_LIMIT)

    @property
    def is_frozen(self) -> bool:
        """Whether the layer has no adapter: nothing in it is trained."""
        return self.lora_A is None and self.lora_B is None

    @property
    def present(self) -> tuple[str, ...]:
        """The inputs that are there, in the order of `INPUTS`."""
        return tuple(name for name in INPUTS if getattr(self, name) is not None)

    @property
    def results(self) -> tuple[str, ...]:
        """The quantized tensors that the layer gives, in the order of `OUTPUTS`."""
        left_out = {"H", "dH"} if self.is_frozen else set()
        if not self.want_dx:
            left_out.add("dX")
        return tuple(name for name in OUTPUTS if name not in left_out)

    def operand(self, name: str) -> NDArray[Any]:
        """One of the inputs by name.

        Raises
        ------
        KeyError
            If the layer has no such input.
        """
        tensor = getattr(self, name) if name in INPUTS else None
        if tensor is None:
            raise KeyError(name)
        return tensor

    @property
    def batch(self) -> int:
        """N, rows of x."""
        return self.x.shape[0]

    @property
    def inputs(self) -> int:
        """d, columns of x."""
        return self.x.shape[1]

    @property
    def outputs(self) -> int:
        """k, rows of weight."""
        return self.weight.shape[0]

    @property
    def rank(self) -> int:
        """r, rows of lora_A; 0 in a frozen layer."""
        return 0 if self.lora_A is None else self.lora_A.shape[0]

    def bits_of(self, name: str) -> int:
        """Width of an operand: an input's from its type, another's from `bits` or what it follows.

        Raises
        ------
        KeyError
            If the tensor is not an operand of this layer.
        """
        if name in INPUTS:
            return 8 * self.operand(name).dtype.itemsize
        return self.bits.get(name) or self.bits_of(_FOLLOWS[name])

    def acc_bits(self, a: str, b: str) -> int:
        """Accumulator width of the product of two operands: 32 if both are int8, else 48."""
        return numerics.acc_bits(self.bits_of(a), self.bits_of(b))


@dataclass(kw_only=True)
class LayerResult:
    """What one training step of a layer gives.

    Parameters
    ----------
    tensors : dict
        H, Y, dH, (dX) int8 or int16; Y_acc [N,k], dA [r,d], dB [k,r] int32, or int64 where that
        accumulator is 48 bits wide. Of a frozen layer Y, Y_acc and (dX).
    scales : dict
        The Scale of each of them.
    amax : dict
        Record of each delayed tensor, for the next step.
    sticky : set of str
        Sticky bits that were set, by their names in `systolora.contract.STICKY`.
    """

    tensors: dict[str, NDArray[Any]]
    scales: dict[str, Scale]
    amax: dict[str, int] = field(default_factory=dict)
    sticky: set[str] = field(default_factory=set)
