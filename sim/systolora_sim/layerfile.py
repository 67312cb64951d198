"""Layer files: safetensors in, safetensors out.

A layer file holds `x` [N,d], `weight` [k,d], `lora_A` [r,d], `lora_B` [k,r] and `dy` [N,k]. Each
tensor is either

- int8 or int16, with `<name>.scale` int32 [2] = [m, e] beside it, taken as it is, or
- float32, float16 or bfloat16 without a scale, quantized as numerics section 8 says.

A file may hold both kinds; each tensor stands for itself. The gain alpha/r is `gain.scale` int32
[2] or `gain`, one float. A file without `lora_A` and `lora_B` is a frozen layer: it has no gain
either, and needs `dy` only with `want_dx`. Optional: `bias` int32 [k] in units of S_x * S_w (int32
in files of float tensors too), `seed` and `step` int32 [1] of the random words (default 0),
`index` int32 [1], the layer's number for them (default 0), and `<tensor>.amax` int64 [1], the
record of a delayed tensor.

Metadata, all optional: `want_dx` "0" or "1"; `delayed` and `stochastic`, comma lists of tensors
among H, Y, dH, dX; `bits`, "8" or "16", the width of float tensors (default 8); `bits.<tensor>`,
the width of one tensor, quantized here or by the layer. Float lora_A and lora_B follow x when
`bits.<tensor>` does not name them. Other metadata is left to whoever wrote it.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from systolora_sim import calibrate
from systolora_sim.layer import ADAPTERS, INPUTS, OUTPUTS, Layer, LayerError, LayerResult
from systolora_sim.numerics import Scale

__all__ = [
    "Layer",
    "LayerError",
    "LayerFileError",
    "LayerResult",
    "Reader",
    "Stored",
    "layer_content",
    "load_layer",
    "parse",
    "read_bytes",
    "read_header",
    "save_tensors",
    "with_scales",
    "write_layer",
    "write_result",
]

#: safetensors' names of the types that this package reads and writes.
_DTYPES = {
    "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
INTEGERS = ("I8", "I16")
FLOATS = ("F32", "F16", "BF16")
KNOWN = frozenset(
    [*INPUTS, "gain", "bias", "seed", "step", "index"]
    + [f"{name}.scale" for name in (*INPUTS, "gain")]
    + [f"{name}.amax" for name in OUTPUTS]
)


class LayerFileError(LayerError):
    """A layer file that cannot be used, or a result that cannot be written.

    The message is one line that names the file, the tensor and the rule.
    """


@dataclass(frozen=True)
class Stored:
    """One tensor as the file holds it; bfloat16 has no NumPy type, so the bytes stay bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def array(self) -> NDArray[Any]:
        """The values; bfloat16 is widened to float32: its bits are float32's upper half."""
        if self.dtype == "BF16":
            upper = np.frombuffer(self.data, "<u2").astype(np.uint32)
            return (upper << np.uint32(16)).view(np.float32).reshape(self.shape)
        return np.frombuffer(self.data, _DTYPES[self.dtype]).reshape(self.shape)


def parse(content: bytes) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; raises LayerError."""
    try:
        entries = deserialize(content)
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise LayerError(f"not a complete safetensors file: {reason}") from None
    tensors = {
        name: Stored(entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in entries
    }
    # `deserialize` has checked the header but does not return its metadata.
    length = int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__") or {}


class Reader:
    """The tensors and metadata of one layer in a file, taken by name and rule."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        metadata: Mapping[str, str],
        known: frozenset[str] = KNOWN,
    ) -> None:
        self.tensors, self.metadata = tensors, metadata
        for name in sorted(self.tensors):
            if name not in known:
                raise LayerError(f"{name}: unknown tensor")

    def has(self, name: str) -> bool:
        """Whether that tensor or its scale is there."""
        return name in self.tensors or f"{name}.scale" in self.tensors

    def take(self, name: str, dtypes: tuple[str, ...]) -> Stored:
        """That tensor, of one of those types."""
        if name not in self.tensors:
            raise LayerError(f"{name}: missing tensor")
        stored = self.tensors[name]
        if stored.dtype not in dtypes:
            raise LayerError(f"{name}: dtype {stored.dtype}: must be {' or '.join(dtypes)}")
        return stored

    def number(self, name: str, dtypes: tuple[str, ...]) -> Any:
        """The one value of a tensor of shape [1] or []."""
        stored = self.take(name, dtypes)
        if stored.shape not in ((), (1,)):
            raise LayerError(f"{name}: shape {list(stored.shape)}: must be [1]")
        return stored.array().reshape(1)[0].item()

    def scale(self, name: str) -> Scale:
        """A Scale from int32 [2] = [m, e]."""
        stored = self.take(name, ("I32",))
        if stored.shape != (2,):
            raise LayerError(f"{name}: shape {list(stored.shape)}: must be [2], m and e")
        m, e = stored.array().tolist()
        try:
            return Scale(m, e).check()
        except ValueError as error:
            raise LayerError(f"{name}: {error}") from None

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """A metadata value that must be one of a few."""
        value = self.metadata.get(key, default)
        if value not in choices:
            raise LayerError(f"metadata {key} = {value!r}: must be {' or '.join(choices)}")
        return value

    def names(self, key: str, known: tuple[str, ...] = OUTPUTS) -> frozenset[str]:
        """A metadata value that is a comma list of quantized tensors."""
        found = [part.strip() for part in self.metadata.get(key, "").split(",")]
        if found == [""]:
            return frozenset()
        for name in found:
            if name not in known:
                raise LayerError(
                    f"metadata {key}: unknown tensor {name!r}: must be among {', '.join(known)}"
                )
        return frozenset(found)

    def widths(self, known: tuple[str, ...] = (*INPUTS, *OUTPUTS)) -> dict[str, int]:
        """The `bits.<tensor>` metadata."""
        widths = {}
        for key in sorted(self.metadata):
            name = key.removeprefix("bits.")
            if name == key:
                continue
            if name not in known:
                raise LayerError(
                    f"metadata {key}: unknown tensor {name!r}: must be among {', '.join(known)}"
                )
            widths[name] = int(self.choice(key, ("8", "16"), ""))
        return widths

    def operand(
        self, name: str, bits: int | None, default: int, axes: tuple[str, ...] = ()
    ) -> tuple[NDArray[Any], Scale]:
        """One input: integers as they are, floats quantized to `bits`, or else `default`.

        axes : for messages, those of a layer's input if empty.
        """
        stored = self.take(name, (*INTEGERS, *FLOATS))
        if len(stored.shape) != 2:
            layout = ", ".join(axes or Layer.AXES[name])
            raise LayerError(f"{name}: rank {len(stored.shape)}: must be 2, [{layout}]")
        values = stored.array()
        if stored.dtype in INTEGERS:
            width = 8 * values.dtype.itemsize
            if bits not in (None, width):
                raise LayerError(f"metadata bits.{name} = {bits}: {name} is stored as int{width}")
            return values, self.scale(f"{name}.scale")
        if f"{name}.scale" in self.tensors:
            raise LayerError(f"{name}.scale: {name} is {stored.dtype}: must not have a scale")
        try:
            return calibrate.quantize_float(values, bits or default)
        except ValueError as error:
            raise LayerError(f"{name}: {error}") from None

    def frozen(self) -> bool:
        """Whether the layer has no adapter.

        Raises
        ------
        LayerError
            If something of an adapter is there all the same.
        """
        if any(name in self.tensors for name in ADAPTERS):
            return False
        parts = {*ADAPTERS, "gain", "H", "dH"}
        for name in sorted(self.tensors):
            if name.partition(".")[0] in parts:
                raise LayerError(f"{name}: must not be there without lora_A and lora_B")
        for name in (*ADAPTERS, "dy"):
            if f"bits.{name}" in self.metadata and not self.has(name):
                raise LayerError(f"metadata bits.{name}: there is no {name}")
        return True

    def gain(self) -> Scale:
        """alpha / r, from whichever of its two forms the file has."""
        if "gain.scale" in self.tensors:
            if "gain" in self.tensors:
                raise LayerError("gain: gain.scale is there too: must be one of the two")
            return self.scale("gain.scale")
        value = self.number("gain", FLOATS)
        try:
            return calibrate.from_float(value)
        except ValueError:
            raise LayerError(f"gain: {value}: must be finite and not negative") from None

    def settings(self) -> dict[str, Any]:
        """The fields of a `Layer` that are neither operands, gain nor the state of a step."""
        return {
            "bias": self.take("bias", ("I32",)).array() if "bias" in self.tensors else None,
            "want_dx": self.choice("want_dx", ("0", "1"), "0") == "1",
            "delayed": self.names("delayed"),
            "stochastic": self.names("stochastic"),
            "bits": {name: bits for name, bits in self.widths().items() if name in OUTPUTS},
        }

    def records(self) -> dict[str, int]:
        """The maxima that delayed tensors have from earlier steps."""
        return {
            name: self.number(f"{name}.amax", ("I64",))
            for name in OUTPUTS
            if f"{name}.amax" in self.tensors
        }

    def counter(self, name: str) -> int:
        """`seed`, `step` or `index`, 0 where the file has none."""
        return self.number(name, ("I32",)) if name in self.tensors else 0


def _layer(name: str, content: bytes) -> Layer:
    reader = Reader(*parse(content))
    widths = reader.widths()
    default = int(reader.choice("bits", ("8", "16"), "8"))
    operands, scales = {}, {}
    frozen = reader.frozen()
    for tensor in INPUTS:
        if frozen and (tensor in ADAPTERS or (tensor == "dy" and not reader.has("dy"))):
            continue
        # Working copies of A and B follow x (numerics section 5); x comes first in INPUTS.
        follows_x = tensor.startswith("lora_")
        usual = 8 * operands["x"].dtype.itemsize if follows_x else default
        operands[tensor], scales[tensor] = reader.operand(tensor, widths.get(tensor), usual)
    return Layer(
        name=name,
        scales=scales,
        gain=None if frozen else reader.gain(),
        **operands,
        **reader.settings(),
        amax=reader.records(),
        seed=reader.counter("seed"),
        step=reader.counter("step"),
        index=reader.counter("index"),
    )


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; raises LayerFileError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LayerFileError(f"{path}: cannot be read: {error.strerror}") from None


def read_header(path: str | Path) -> tuple[set[str], dict[str, str]]:
    """Names of the tensors and the metadata of a file, without reading the rest of it.

    Both are empty for a file that cannot be read: whoever reads it says why.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            # The limit of safetensors itself, so that a wrong file is not read into memory.
            header = json.loads(file.read(length)) if length <= 100_000_000 else {}
        metadata = dict(header.pop("__metadata__", None) or {})
        return set(header), metadata
    except (OSError, ValueError, AttributeError, TypeError):
        return set(), {}


def load_layer(path: str | Path) -> Layer:
    """The layer of a file, checked and, where its tensors are floats, quantized.

    Its name is the file's without the ending.

    Raises
    ------
    LayerFileError
        If the file cannot be read, is not safetensors, or breaks a rule of this module or of
        `Layer`.
    """
    content = read_bytes(path)
    try:
        return _layer(Path(path).stem, content)
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None


# Writing ----------------------------------------------------------------------------------------


def _serialize(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """safetensors bytes, a function of the arguments' values alone.

    The library's own writer takes the metadata from a hash map, in an order that changes from run
    to run; this one sorts. Tensors go by descending size of element, then name, so that each is
    aligned in the file.
    """
    arrays = {
        name: np.ascontiguousarray(array).reshape(np.shape(array))
        for name, array in tensors.items()
    }
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = [arrays[name].astype(arrays[name].dtype.newbyteorder("<")).tobytes() for name in order]
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def _replace(path: Path, content: bytes) -> None:
    """Puts content at path, all or nothing: a temporary file beside it takes its name."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        if path.exists() and not path.is_file():
            raise LayerFileError(f"{path}: cannot be written: must be a regular file")
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise LayerFileError(f"{path}: cannot be written: {error.strerror}") from None


def save_tensors(
    path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file: deterministic bytes, all or nothing.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    _replace(Path(path), _serialize(tensors, metadata))


def with_scales(
    tensors: Mapping[str, NDArray[Any]], scales: Mapping[str, Scale], amax: Mapping[str, int]
) -> dict[str, NDArray[Any]]:
    """Tensors as a file holds them: each scale as `<name>.scale`, each record as `<name>.amax`."""
    return {
        **tensors,
        **{f"{name}.scale": np.array(scale, np.int32) for name, scale in scales.items()},
        **{f"{name}.amax": np.array([record], np.int64) for name, record in amax.items()},
    }


def write_result(path: str | Path, result: LayerResult) -> None:
    """Writes a result: each tensor with `<name>.scale`, the records, metadata `sticky`.

    `sticky` is a comma list in alphabetical order, empty when no bit was set. The bytes depend on
    the result alone, so that backends can be compared by file.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    tensors = with_scales(result.tensors, result.scales, result.amax)
    save_tensors(path, tensors, {"sticky": ",".join(sorted(result.sticky))})


def write_layer(path: str | Path, layer: Layer, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a layer file of integers that `load_layer` reads back as the same layer.

    `metadata` adds keys of the caller's own.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    tensors, more = layer_content(layer)
    save_tensors(path, tensors, {**(metadata or {}), **more})


def layer_content(
    layer: Layer, without: tuple[str, ...] = ()
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors and metadata of `write_layer`; `without` names inputs that are left out."""
    present = [name for name in layer.present if name not in without]
    operands = {name: layer.operand(name) for name in present}
    scales = {name: layer.scales[name] for name in present}
    gain = {} if layer.gain is None else {"gain": layer.gain}
    tensors = with_scales(operands, scales | gain, layer.amax)
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    for name in ("seed", "step", *(("index",) if layer.index else ())):
        tensors[name] = np.array([getattr(layer, name)], np.int32)
    return tensors, {
        "want_dx": str(int(layer.want_dx)),
        "delayed": ",".join(sorted(layer.delayed)),
        "stochastic": ",".join(sorted(layer.stochastic)),
        **{f"bits.{name}": str(width) for name, width in layer.bits.items()},
    }
