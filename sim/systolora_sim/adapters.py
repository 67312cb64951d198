"""Adapters between training and the rest of the world: float32 tensors and int16 masters.

Both forms hold `lora_A` [r,d] and `lora_B` [k,r] of one layer, or of several with the prefix
`<layer>/`, as the ecosystem stores them; the masters are `lora_A.master` and `lora_B.master` int16
with `<name>.scale`. A file of masters is a state that a run can begin with (`systolora run
--resume`).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate, layerfile, numerics
from systolora_sim.layerfile import LayerFileError
from systolora_sim.numerics import Scale
from systolora_sim.statefile import load_masters

__all__ = ["FORMS", "convert_adapters", "real_values"]

FORMS = ("float32", "int16")


def real_values(w: NDArray[Any], scale: Scale) -> NDArray[np.float32]:
    """A master's values, each rounded once to float32.

    Quantizing them again in the same scale gives the same master: float32 keeps 24 bits of at most
    16 that matter.

    Raises
    ------
    ValueError
        If float32 cannot hold the values with all of its bits: the scale is below 2^-126, or the
        largest value beyond its range.
    """
    unit = calibrate.to_float(scale)
    info = np.finfo(np.float32)
    if numerics.amax(w) * unit > float(info.max) or unit < float(info.smallest_normal):
        raise ValueError(f"scale {unit:.3g}: the values do not fit float32")
    return (w.astype(np.float64) * unit).astype(np.float32)


def convert_adapters(path: str | Path, out_path: str | Path, form: str) -> None:
    """Writes the adapters of a file as float32 or as int16 masters with their scales.

    Parameters
    ----------
    path : str or Path
        Anything with adapters: lora_A and lora_B as floats or as integers with scales, a layer
        file, a state. Masters go before lora_A and lora_B where both are there. A master that is
        made has the scale that the file names, or that of numerics section 6.
    out_path : str or Path
        safetensors; written complete or not at all. It holds the adapters and nothing else.
    form : str
        "float32" or "int16".

    Raises
    ------
    LayerFileError
        If the file cannot be read or breaks a rule, or the output cannot be written.
    ValueError
        If form is neither of the two.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: must be one of {', '.join(FORMS)}")
    path, out_path = Path(path), Path(out_path)
    if path.resolve() == out_path.resolve():
        raise LayerFileError(f"{out_path}: cannot be written: it is also {path}")
    tensors: dict[str, NDArray[Any]] = {}
    for layer, masters in load_masters(path).items():
        prefix = f"{layer}/" if layer else ""
        for name, (w, scale) in masters.items():
            if form == "float32":
                try:
                    tensors[f"{prefix}{name}"] = real_values(w, scale)
                except ValueError as error:
                    raise LayerFileError(f"{path}: {prefix}{name}.master: {error}") from None
            else:
                tensors[f"{prefix}{name}.master"] = w
                tensors[f"{prefix}{name}.master.scale"] = np.array(scale, np.int32)
    layerfile.save_tensors(out_path, tensors, {})
