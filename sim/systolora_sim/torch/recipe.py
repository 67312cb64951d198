"""How the LoRA layers of a model train: widths, modes and the update rule."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from systolora_sim import calibrate, numerics
from systolora_sim.golden import OPTIMIZERS, Optimizer
from systolora_sim.layer import INPUTS, OUTPUTS, LayerError

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How layers train.

    Parameters
    ----------
    optimizer : str or None
        "sgd", "momentum" or "lion": updates in the device's arithmetic on int16 masters. None:
        masters are float parameters, gradients arrive in their `.grad` for any torch optimizer.
    lr, weight_decay, beta, b1, b2 : float
        As `calibrate.make_optimizer` takes them; of no effect without an optimizer.
    bits : dict
        Width, 8 or 16, of x, weight, lora_A, lora_B, dy, H, Y, dH, dX; 8 where it is not named.
    delayed, stochastic : frozenset of str
        Tensors among H, Y, dH, dX that quantize in that mode (numerics section 4). dX counts in
        layers whose input needs a gradient.
    seed : int
        Of the random words; signed 32 bits.
    rescale : bool
        Whether masters and momenta that saturate get a doubled scale before the next step
        (`training.rescale_saturated`).

    Raises
    ------
    LayerError
        Naming the field and the rule that it breaks.
    """

    optimizer: str | None = "sgd"
    lr: float = 1e-3
    weight_decay: float = 0.0
    beta: float = 0.9
    b1: float = 0.9
    b2: float = 0.99
    bits: Mapping[str, int] = field(default_factory=dict)
    delayed: frozenset[str] = frozenset()
    stochastic: frozenset[str] = frozenset()
    seed: int = 0
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in (None, *OPTIMIZERS):
            must = f"must be None or one of {', '.join(OPTIMIZERS)}"
            raise LayerError(f"optimizer {self.optimizer!r}: {must}")
        for name, width in self.bits.items():
            if name not in (*INPUTS, *OUTPUTS):
                known = ", ".join((*INPUTS, *OUTPUTS))
                raise LayerError(f"bits: unknown tensor {name!r}: must be among {known}")
            if width not in (8, 16):
                raise LayerError(f"bits.{name}: {width!r}: must be 8 or 16")
        for mode in ("delayed", "stochastic"):
            object.__setattr__(self, mode, frozenset(getattr(self, mode)))
            for name in sorted(getattr(self, mode)):
                if name not in OUTPUTS:
                    raise LayerError(
                        f"{mode}: unknown tensor {name!r}: must be among {', '.join(OUTPUTS)}"
                    )
        low, high = numerics.int_range(32)
        if not low <= self.seed <= high:
            raise LayerError(f"seed: {self.seed}: must be from {low} to {high}")
        if self.optimizer is not None:
            self.update_rule(self.lr)

    def width(self, tensor: str) -> int:
        """8 or 16."""
        return self.bits.get(tensor, 8)

    def update_rule(self, lr: float) -> Optimizer:
        """The optimizer's settings as Scales, with that learning rate.

        Raises
        ------
        LayerError
            If a number is out of its range, or the recipe has no optimizer.
        """
        if self.optimizer is None:
            raise LayerError("optimizer: the recipe has none: updates are torch's")
        try:
            return calibrate.make_optimizer(
                self.optimizer, lr, beta=self.beta, b1=self.b1, b2=self.b2,
                weight_decay=self.weight_decay,
            )  # fmt: skip
        except ValueError as error:
            raise LayerError(str(error)) from None
