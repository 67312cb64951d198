"""The recipes that are compared: how the LoRA layers compute, everything else being float32."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ABLATION", "METRICS", "RECIPES", "REFERENCE", "TENSORS", "Way"]

#: What every recipe is compared with.
REFERENCE = "fp32"
#: Figures of a trained adapter with their titles; lower is better but for the hit rate.
METRICS = {
    "mse": "held-out loss",
    "fd": "Fréchet distance",
    "hit": "hit rate",
    "mse_others": "held-out loss, other classes",
}
#: Every operand and quantized result of a K or V layer whose input needs no gradient.
TENSORS = ("x", "weight", "lora_A", "lora_B", "H", "Y", "dy", "dH")


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one recipe trains.

    kind : "device" (forward, backward and update in the accelerator's arithmetic), "masters" (its
    passes, but float masters updated by torch's SGD), "float" (all float32), "rounded" (float32
    with masters rounded to int8, to nearest, after each update), "untrained" (no adapter at all).
    control : it must fail, or the measurement can show no damage.
    """

    title: str
    kind: str
    bits: Mapping[str, int] = field(default_factory=dict)
    delayed: frozenset[str] = frozenset()
    stochastic: frozenset[str] = frozenset()
    control: bool = False

    @property
    def quantized(self) -> bool:
        """It infers in integers too."""
        return self.kind in ("device", "masters")

    def bits_of(self, tensor: str) -> int:
        """Width of a tensor of TENSORS in this recipe."""
        if not self.quantized:
            return 32
        return self.bits.get(tensor, 8)


def _wide(*narrow: str) -> dict[str, int]:
    """int16 everywhere but in these."""
    return {tensor: 16 for tensor in TENSORS if tensor not in narrow}


_QUANTIZED = frozenset({"H", "Y", "dH"})
_GRADIENTS = {"dy": 16, "dH": 16}

RECIPES = {
    "fp32": Way(title="float32", kind="float"),
    "int8": Way(title="int8, scales just in time", kind="device"),
    "grad16": Way(title="int8, gradients int16", kind="device", bits=_GRADIENTS),
    "delayed": Way(title="int8, delayed scaling of H, Y, dH", kind="device", delayed=_QUANTIZED),
    "stochastic": Way(
        title="int8, H, Y, dH rounded stochastically", kind="device", stochastic=_QUANTIZED
    ),
    "int16": Way(title="int16 throughout", kind="device", bits=_wide()),
    "master8": Way(title="control: float32, masters int8 to nearest", kind="rounded", control=True),
    "none": Way(title="control: no adapter", kind="untrained", control=True),
}

#: One tensor int8, all others int16; then the masters: the damage that each does alone.
ABLATION = {
    "only-x": Way(title="only X int8", kind="device", bits=_wide("x")),
    "only-weight": Way(title="only W int8", kind="device", bits=_wide("weight")),
    "only-copies": Way(
        title="only working copies of A, B int8", kind="device", bits=_wide("lora_A", "lora_B")
    ),
    "only-h": Way(title="only H int8", kind="device", bits=_wide("H")),
    "only-y": Way(title="only Y int8", kind="device", bits=_wide("Y")),
    "only-dy": Way(title="only dY int8", kind="device", bits=_wide("dy")),
    "only-dh": Way(title="only dH int8", kind="device", bits=_wide("dH")),
    "float-masters": Way(title="int8, float masters and update", kind="masters"),
}
