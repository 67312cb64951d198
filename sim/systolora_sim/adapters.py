"""Adapters between training and the rest of the world: float32 tensors and int16 masters.

Plain files hold `lora_A` [r,d] and `lora_B` [k,r] of one layer, or of several with the prefix
`<layer>/`, as the ecosystem stores them; the masters are `lora_A.master` and `lora_B.master` int16
with `<name>.scale`, the gain alpha/r is `gain` float32 [1] or, beside masters, `gain.scale`. A file
of masters is a state that a run can begin with (`systolora run --resume`).

Files of PEFT, diffusers and kohya's scripts have names of their own (`adapter_names`). Metadata
`adapter` remembers them, as JSON: `format`, the scheme; `names`, the tensors' by `<layer>/lora_A`;
`alpha` by layer. Training carries it on, so that an export gives the names that were imported.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from systolora_sim import calibrate, layerfile, numerics
from systolora_sim.adapter_names import ROLES, SCHEMES, layer_names, parse_name, why_not
from systolora_sim.layer import ADAPTERS, LayerError
from systolora_sim.layerfile import LayerFileError, Reader, Stored
from systolora_sim.numerics import Scale
from systolora_sim.statefile import ADAPTER_KEY, load_gains, load_masters

__all__ = ["FORMATS", "FORMS", "convert_adapters", "real_values"]

FORMS = ("float32", "int16")
FORMATS = ("plain", *SCHEMES)


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


class _Matrix(NamedTuple):
    """lora_A or lora_B: floats as they are (scale None), or a master with its scale."""

    values: NDArray[Any]
    scale: Scale | None

    def real(self) -> NDArray[np.float32]:
        """Raises ValueError if float32 cannot hold the values."""
        if self.scale is not None:
            return real_values(self.values, self.scale)
        return self.values.astype(np.float32)

    def master(self) -> tuple[NDArray[np.int16], Scale]:
        """The master; of floats in the scale of numerics section 6."""
        if self.scale is not None:
            return self.values, self.scale
        scale = calibrate.master_scale(self.values)
        return calibrate.quantize_with_scale(self.values, 16, scale), scale


@dataclass
class _Adapters:
    """The adapters of a file.

    layers : lora_A and lora_B by layer; gains : alpha / r where it is known; alphas : alpha where
    it is known exactly; scheme : of the names, "plain" if they are this package's; names : by
    `<layer>/<role>` in that scheme.
    """

    layers: dict[str, dict[str, _Matrix]]
    gains: dict[str, Scale] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    scheme: str = "plain"
    names: dict[str, str] = field(default_factory=dict)

    def rank(self, layer: str) -> int:
        return self.layers[layer]["lora_A"].values.shape[0]

    def alpha(self, layer: str) -> float:
        """alpha, of a layer whose gain is known."""
        made = calibrate.to_float(self.gains[layer]) * self.rank(layer)
        return self.alphas.get(layer, made)

    def gain_of(self, layer: str, alpha: float) -> Scale:
        return calibrate.from_float(alpha / self.rank(layer))

    def know_alpha(self, layer: str, alpha: float) -> None:
        self.alphas[layer] = alpha
        self.gains.setdefault(layer, self.gain_of(layer, alpha))


# Reading --------------------------------------------------------------------------------------


def _alpha(reader: Reader, name: str) -> float:
    value = float(reader.number(name, (*layerfile.FLOATS, "I32", "I64")))
    if not (math.isfinite(value) and value >= 0):
        raise LayerError(f"{name}: {value}: must be finite and not negative")
    return value


def _matrix(reader: Reader, name: str) -> _Matrix:
    """lora_A or lora_B by its name in the file."""
    stored = reader.take(name, (*layerfile.FLOATS, "I16"))
    if len(stored.shape) == 4:
        raise LayerError(
            f"{name}: shape {list(stored.shape)}: belongs to a convolution: must be the adapter of "
            "a linear layer"
        )
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise LayerError(f"{name}: shape {list(stored.shape)}: must be 2-D, and no size 0")
    values, scale_name = stored.array(), f"{name}.scale"
    if stored.dtype == "I16":
        scale = reader.scale(scale_name)
        if scale.is_zero:
            raise LayerError(f"{scale_name}: the scale must not be zero")
        return _Matrix(values, scale)
    if scale_name in reader.tensors:
        raise LayerError(f"{scale_name}: {name} is {stored.dtype}: must not have a scale")
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise LayerError(
            f"{name}: {bad} of {values.size} values are NaN or infinite: must be finite"
        )
    return _Matrix(values, None)


def _foreign(tensors: dict[str, Stored]) -> _Adapters | None:
    """The adapters of a file with the ecosystem's names, None if it is a plain one."""
    parts = {name: parse_name(name) for name in sorted(tensors)}
    schemes = {part.scheme: name for name, part in parts.items() if part and part.role != "alpha"}
    if not schemes:
        return None
    if len(schemes) > 1:
        found = ", ".join(f"{scheme} ({schemes[scheme]})" for scheme in sorted(schemes))
        raise LayerError(f"names of {found}: must be of one scheme")
    (scheme,) = schemes
    names: dict[str, dict[str, str]] = {}
    for name, part in parts.items():
        if part is None:
            whole = parts.get(name.removesuffix(".scale"))
            if whole is not None and whole.role != "alpha":
                continue
            raise LayerError(f"{name}: {why_not(name)}")
        if "/" in part.layer:
            raise LayerError(f"{name}: must not have a slash in it")
        other = names.setdefault(part.layer, {}).setdefault(part.role, name)
        if other != name:
            raise LayerError(f"{name}: {other} is {part.role} of the same layer: must be one")
    reader = Reader(tensors, {}, frozenset(tensors))
    found = _Adapters({}, scheme=scheme)
    for layer, held in names.items():
        for role in ADAPTERS:
            if role not in held:
                raise LayerError(f"{next(iter(held.values()))}: {role} of its layer is missing")
        a, b = (_matrix(reader, held[role]) for role in ADAPTERS)
        if a.values.shape[0] != b.values.shape[1]:
            raise LayerError(
                f"{held['lora_B']}: shape {list(b.values.shape)}: must be [k, r] with "
                f"r = {a.values.shape[0]} as in {held['lora_A']}"
            )
        found.layers[layer] = {"lora_A": a, "lora_B": b}
        found.names |= {f"{layer}/{role}": name for role, name in held.items()}
        if "alpha" in held:
            found.know_alpha(layer, _alpha(reader, held["alpha"]))
    return found


def _remembered(text: str, found: _Adapters) -> None:
    """Puts what metadata `adapter` says about the layers that are there into `found`."""
    try:
        memory = json.loads(text)
        scheme, names, alphas = memory["format"], memory["names"], memory["alpha"]
        good = (
            scheme in SCHEMES
            and all(isinstance(name, str) for name in names.values())
            and all(
                isinstance(alpha, (int, float)) and math.isfinite(alpha) and alpha >= 0
                for alpha in alphas.values()
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise LayerError("metadata adapter: must be as `systolora adapter import` writes it")
    found.scheme = scheme
    for layer in found.layers:
        kept = {f"{layer}/{role}" for role in ROLES} & set(names)
        if {f"{layer}/{role}" for role in ADAPTERS} <= kept:
            found.names |= {key: names[key] for key in kept}
        gain = found.gains.get(layer)
        # Whoever changed the gain since then has changed alpha.
        if layer in alphas and gain in (None, found.gain_of(layer, alphas[layer])):
            found.know_alpha(layer, float(alphas[layer]))


def _read(path: Path) -> _Adapters:
    try:
        tensors, metadata = layerfile.parse(layerfile.read_bytes(path))
        found = _foreign(tensors)
        if found is None:
            masters = load_masters(path)
            layers = {
                layer: {name: _Matrix(*pair) for name, pair in pairs.items()}
                for layer, pairs in masters.items()
            }
            found = _Adapters(layers, load_gains(path))
            if ADAPTER_KEY in metadata:
                _remembered(metadata[ADAPTER_KEY], found)
        return found
    except LayerFileError:
        raise
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None


# Writing --------------------------------------------------------------------------------------


def _memory(adapters: _Adapters) -> dict[str, str]:
    """Metadata that remembers the scheme; none if there is nothing to remember."""
    if adapters.scheme == "plain":
        return {}
    memory = {
        "format": adapters.scheme,
        "names": dict(sorted(adapters.names.items())),
        "alpha": dict(sorted(adapters.alphas.items())),
    }
    return {ADAPTER_KEY: json.dumps(memory, separators=(",", ":"))}


def _plain(adapters: _Adapters, form: str) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {}
    for layer, held in adapters.layers.items():
        prefix = f"{layer}/" if layer else ""
        for name, matrix in held.items():
            if form == "float32":
                try:
                    tensors[f"{prefix}{name}"] = matrix.real()
                except ValueError as error:
                    raise LayerError(f"{prefix}{name}.master: {error}") from None
            else:
                w, scale = matrix.master()
                tensors[f"{prefix}{name}.master"] = w
                tensors[f"{prefix}{name}.master.scale"] = np.array(scale, np.int32)
        if layer in adapters.gains:
            gain = adapters.gains[layer]
            if form == "float32":
                tensors[f"{prefix}gain"] = np.array([calibrate.to_float(gain)], np.float32)
            else:
                tensors[f"{prefix}gain.scale"] = np.array(gain, np.int32)
    return tensors


def _in_scheme(adapters: _Adapters, scheme: str, form: str) -> dict[str, NDArray[Any]]:
    same = scheme == adapters.scheme
    known = adapters.names if same else {}
    try:
        names = layer_names(adapters.layers, scheme, known)
    except ValueError as error:
        raise LayerError(str(error)) from None
    tensors: dict[str, NDArray[Any]] = {}
    for layer, held in adapters.layers.items():
        for role, matrix in held.items():
            name = names[layer][role]
            if form == "float32":
                try:
                    tensors[name] = matrix.real()
                except ValueError as error:
                    raise LayerError(f"{layer}/{role}: {error}") from None
            else:
                w, scale = matrix.master()
                tensors[name], tensors[f"{name}.scale"] = w, np.array(scale, np.int32)
        if scheme != "kohya":
            continue
        if layer in adapters.gains:
            tensors[names[layer]["alpha"]] = np.array(adapters.alpha(layer), np.float32)
        elif f"{layer}/lora_A" not in known:
            raise LayerError(f"{layer}: alpha is not known, kohya's files tell it: give --alpha")
    return tensors


def _note_alpha(adapters: _Adapters, scheme: str, note: Callable[[str], None]) -> None:
    """Says which alpha belongs beside a file whose tensors cannot tell it.

    A file that keeps its scheme has had its alpha beside it from the beginning, and diffusers takes
    the rank where it is told nothing.
    """
    unusual = [layer for layer, gain in adapters.gains.items() if gain != numerics.ONE]
    told = {"peft": list(adapters.gains), "diffusers": unusual}.get(scheme, [])
    if scheme == adapters.scheme or not told:
        return
    shown = ", ".join(sorted({f"{adapters.alpha(layer):g}" for layer in told}))
    place = "in adapter_config.json" if scheme == "peft" else "where the adapter is loaded"
    note(f"alpha is {shown}: the file does not tell it, say lora_alpha {place}")


def convert_adapters(
    path: str | Path,
    out_path: str | Path,
    form: str,
    *,
    scheme: str | None = None,
    alpha: float | None = None,
    note: Callable[[str], None] | None = None,
) -> None:
    """Writes the adapters of a file as float32 or as int16 masters with their scales.

    Parameters
    ----------
    path : str or Path
        Anything with adapters: a file of PEFT, diffusers or kohya's scripts; or lora_A and lora_B
        as floats or as integers with scales, a layer file, a state. Masters go before lora_A and
        lora_B where both are there. A master that is made has the scale that the file names, or
        that of numerics section 6.
    out_path : str or Path
        safetensors; written complete or not at all. It holds the adapters and nothing else.
    form : str
        "float32" or "int16".
    scheme : str or None
        Whose names the output has: one of `FORMATS`; None: those that the file has or remembers.
    alpha : float or None
        Of the layers whose alpha and gain the file does not tell.
    note : takes a sentence that the user should know

    Raises
    ------
    LayerFileError
        If the file cannot be read or breaks a rule, the output cannot be written, or the layers
        have no names in the scheme.
    ValueError
        If form, scheme or alpha is none of those.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: must be one of {', '.join(FORMS)}")
    if scheme not in (None, *FORMATS):
        raise ValueError(f"format {scheme!r}: must be one of {', '.join(FORMATS)}")
    if alpha is not None and not (math.isfinite(alpha) and alpha >= 0):
        raise LayerFileError(f"alpha = {alpha}: must be finite and not negative")
    path, out_path = Path(path), Path(out_path)
    if path.resolve() == out_path.resolve():
        raise LayerFileError(f"{out_path}: cannot be written: it is also {path}")
    note = note or (lambda _: None)
    adapters = _read(path)
    if alpha is not None:
        unknown = [layer for layer in adapters.layers if layer not in adapters.gains]
        for layer in unknown:
            adapters.know_alpha(layer, alpha)
        if not unknown:
            note(f"{path}: --alpha {alpha:g} is not used: the file tells it of every layer")
    scheme = scheme or adapters.scheme
    try:
        if scheme == "plain":
            tensors, metadata = _plain(adapters, form), _memory(adapters)
        else:
            # torch's loaders ask for the format.
            tensors, metadata = _in_scheme(adapters, scheme, form), {"format": "pt"}
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None
    layerfile.save_tensors(out_path, tensors, metadata)
    _note_alpha(adapters, scheme, note)
