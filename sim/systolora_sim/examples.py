"""The shipped example layer: a cross-attention K projection of Stable Diffusion 1.x.

What is real: the shapes. `attn2.to_k` of the first transformer block projects 77 text tokens of 768
channels to 320, and rank 4 is a common choice for its adapter.

What is synthetic: every number. No trained model is involved. Activations imitate a text encoder's
output: channels of log-normal spread, three of them outliers several times above the rest, and a
first token of its own. The frozen weight has heavy-tailed entries (Student's t) and columns of
unequal spread. lora_A and lora_B come from gradient descent in float64 towards a low-rank teacher,
so that lora_B is not zero, and dy is the gradient of that objective after the last step.

The file holds int8 tensors with their scales (numerics section 8).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate
from systolora_sim.layerfile import Layer, write_layer

__all__ = ["SD15_FILE", "SD15_SEED", "sd15_layer", "write_sd15_layer"]

SD15_SEED = 1501
SD15_FILE = "sd15_attn2_to_k.safetensors"

TOKENS, CHANNELS, OUTPUTS, RANK, ALPHA = 77, 768, 320, 4, 4.0
TRAINING_STEPS = 8

Array = NDArray[np.float64]


def _activations(rng: np.random.Generator) -> Array:
    """Text embeddings [TOKENS, CHANNELS] with outlier channels."""
    spread = np.exp(0.5 * rng.standard_normal(CHANNELS))
    outliers = rng.choice(CHANNELS, 3, replace=False)
    spread[outliers] = 4.0
    x = rng.standard_normal((TOKENS, CHANNELS)) * spread
    x[:, outliers] += [6.0, -5.0, 4.0]
    x[0] *= 0.5  # the start token carries no text
    return x


def _frozen_weight(rng: np.random.Generator) -> Array:
    """Projection [OUTPUTS, CHANNELS]: Student's t with 8 degrees, columns of unequal spread."""
    columns = np.exp(0.3 * rng.standard_normal(CHANNELS))
    return 0.02 * rng.standard_t(8, (OUTPUTS, CHANNELS)) * columns


def _train(rng: np.random.Generator, x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """(lora_A, lora_B, dy) after a few steps towards a low-rank teacher.

    The objective is half the mean square of Y - Y_teacher, over its elements. Each factor's step is
    normalised by its gradient's largest entry, so that no learning rate has to be tuned.
    """
    gain = ALPHA / RANK
    a = rng.uniform(-1.0, 1.0, (RANK, CHANNELS)) * np.sqrt(3.0 / CHANNELS)
    b = np.zeros((OUTPUTS, RANK))
    teacher_a = rng.standard_normal((RANK, CHANNELS)) / np.sqrt(CHANNELS)
    teacher_b = 0.3 * rng.standard_normal((OUTPUTS, RANK))
    target = x @ (weight + teacher_b @ teacher_a).T

    def backward() -> Array:
        y = x @ weight.T + gain * (x @ a.T) @ b.T
        return (y - target) / y.size

    for _ in range(TRAINING_STEPS):
        dy = backward()
        grad_a, grad_b = gain * (dy @ b).T @ x, gain * dy.T @ (x @ a.T)
        # In the first step lora_B is still zero, and so is lora_A's gradient.
        if grad_a.any():
            a -= 0.01 * grad_a / np.max(np.abs(grad_a))
        b -= 0.01 * grad_b / np.max(np.abs(grad_b))
    return a, b, backward()


def sd15_layer(seed: int = SD15_SEED) -> Layer:
    """The example layer of that seed, int8, with dX asked for."""
    rng = np.random.default_rng(seed)
    x, weight = _activations(rng), _frozen_weight(rng)
    a, b, dy = _train(rng, x, weight)
    reals: dict[str, Array] = {"x": x, "weight": weight, "lora_A": a, "lora_B": b, "dy": dy}
    quantized = {name: calibrate.quantize_float(value, 8) for name, value in reals.items()}
    q: dict[str, NDArray[Any]] = {name: pair[0] for name, pair in quantized.items()}
    return Layer(
        name=Path(SD15_FILE).stem,
        x=q["x"],
        weight=q["weight"],
        lora_A=q["lora_A"],
        lora_B=q["lora_B"],
        dy=q["dy"],
        scales={name: pair[1] for name, pair in quantized.items()},
        gain=calibrate.from_float(ALPHA / RANK),
        want_dx=True,
        seed=seed,
    )


def write_sd15_layer(path: str | Path, seed: int = SD15_SEED) -> None:
    """Writes the example layer; the same seed gives the same bytes.

    Raises
    ------
    LayerFileError
        If the file cannot be written.
    """
    about = "shapes of Stable Diffusion 1.x attn2.to_k (768 -> 320, 77 tokens); synthetic values"
    write_layer(path, sd15_layer(seed), {"about": about, "made_by": "scripts/make_sd15_layer.py"})
