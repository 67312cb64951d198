"""Layer files for training: one or many layers, their masters, the optimizer; and what comes back.

Beside what a layer file holds (`systolora_sim.layerfile`), of each layer:

- `lora_A.master` int16 [r,d] and `lora_B.master` int16 [k,r] with `<name>.scale`. Without them the
  masters are made from `lora_A` and `lora_B`, integers or floats, with the scale that the file
  names or else that of numerics section 6. With them lora_A and lora_B may be absent, and count
  for nothing.
- `lora_A.momentum` and `lora_B.momentum` int16 with `<name>.scale`, where the optimizer has one.
  Without them a momentum is zero, its scale the one that the file names or else found by a dry run
  (`training.dry_run_momentum`).
- metadata `sticky`: the sticky bits of earlier steps, joined with those of the steps to come.

Working copies have x's width unless metadata `bits.lora_A` or `bits.lora_B` says otherwise.

Once for all layers: `seed` and `step` int32 [1] (default 0); `lr.scale`; `beta.scale` (momentum);
`b1.scale`, `b1c.scale`, `b2.scale`, `b2c.scale` (Lion; of b1 and b1c = 1 - b1 one may be absent,
and so with b2); `wd.scale`; metadata `optimizer`, one of sgd, momentum, lion, which beta and Lion's
factors imply. What the file lacks comes from `Options` and then from the defaults beta 0.9, b1 0.9,
b2 0.99, wd 0; the file wins.

A file of several layers puts `<layer>/` before the names of each layer's tensors and metadata keys.
Layers are numbered from 0 in sorted order of their names (by code points), unless each has `index`
int32 [1].

The output holds each layer's last results as the foundation writes them, and the state after the
last step: masters, momenta and their scales, records, seed, step, the optimizer's scales, metadata
`optimizer` and `sticky`. It is a state file: given beside the layer file, its state takes the place
of the layer file's, and the run goes on as if it had never stopped. (A state file must hold the
masters. One that holds nothing that stands once leaves seed, step and the optimizer to the layer
file; what else it lacks is filled in as in a layer file.) Results in a file that is read
are ignored, so that a layer file merged with an output is a layer file again.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora.contract import STICKY
from systolora_sim import calibrate, layerfile, numerics
from systolora_sim.golden import OPTIMIZERS, Master, Optimizer
from systolora_sim.layer import ADAPTERS, INPUTS, OUTPUTS, Layer, LayerError
from systolora_sim.layerfile import LayerFileError, Reader, Stored
from systolora_sim.numerics import ONE, ZERO, Scale
from systolora_sim.productfile import is_product
from systolora_sim.training import (
    FACTORS,
    LayerState,
    TrainingResult,
    TrainingState,
    dry_run_momentum,
    has_momentum,
    new_master,
)

__all__ = ["ADAPTER_KEY", "Options", "holds_training", "load_gains", "load_masters", "load_state"]
__all__ += ["adapter_metadata", "held_tensors", "shared_tensors", "write_training"]

#: Metadata that `systolora_sim.adapters` writes about names; it passes through training unread.
ADAPTER_KEY = "adapter"
_RESULTS = (*OUTPUTS, "Y_acc", "dA", "dB")
_FACTORS = tuple(name for names in FACTORS.values() for name in names)
#: Tensors that stand once, without a layer's prefix.
_SHARED = frozenset(["seed", "step", "lr.scale", "wd.scale", *(f"{f}.scale" for f in _FACTORS)])
_STATE = [f"{name}.{kind}" for name in ADAPTERS for kind in ("master", "momentum")]
_OF_LAYER = (layerfile.KNOWN - _SHARED) | frozenset(
    name for base in (*_STATE, *_RESULTS) for name in (base, f"{base}.scale")
)
#: The complement that each of Lion's factors has.
_COMPLEMENTS = {"b1": "b1c", "b1c": "b1", "b2": "b2c", "b2c": "b2"}
_DEFAULTS = {"beta": 0.9, "b1": 0.9, "b2": 0.99}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user gives beside the file; each fills in what the file lacks.

    Parameters
    ----------
    optimizer : str or None
        "sgd", "momentum" or "lion".
    lr : float or None
        Finite and positive.
    weight_decay : float or None
        Finite and not negative; None is 0.

    Raises
    ------
    LayerFileError
        Naming the option and the rule that it breaks.
    """

    optimizer: str | None = None
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in (None, *OPTIMIZERS):
            must = f"must be one of {', '.join(OPTIMIZERS)}"
            raise LayerFileError(f"optimizer {self.optimizer!r}: {must}")
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise LayerFileError(f"lr = {self.lr}: must be finite and positive")
        decay = self.weight_decay
        if decay is not None and not (math.isfinite(decay) and decay >= 0):
            raise LayerFileError(f"weight decay = {decay}: must be finite and not negative")


# Reading --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _located(path: Path, layer: str = "") -> Iterator[None]:
    """Errors of a layer as LayerFileError, with the file and any prefix of the layer."""
    try:
        yield
    except LayerFileError:
        raise
    except LayerError as error:
        message, kind = str(error), "metadata " if str(error).startswith("metadata ") else ""
        prefix = f"{layer}/" if layer else ""
        raise LayerFileError(f"{path}: {kind}{prefix}{message.removeprefix(kind)}") from None


def _is_of_layer(key: str) -> bool:
    """Whether a metadata key, without its prefix, is one of a layer's."""
    return key in ("want_dx", "delayed", "stochastic", "bits", "sticky") or key.startswith("bits.")


class _File:
    """The readers of one file: of what all layers share, and of each layer by name, sorted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = layerfile.read_bytes(path)
        with _located(path):
            tensors, metadata = layerfile.parse(content)
            shared, layers = self._split(tensors)
            keys = self._split_metadata(metadata, layers)
            self.shared = Reader(shared, keys.pop(None), _SHARED)
        self.layers: dict[str, Reader] = {}
        for name in sorted(layers):
            with _located(path, name):
                self.layers[name] = Reader(layers[name], keys[name], _OF_LAYER)

    @staticmethod
    def _split(
        tensors: dict[str, Stored],
    ) -> tuple[dict[str, Stored], dict[str, dict[str, Stored]]]:
        """Tensors that are shared, and each layer's, without the prefix."""
        shared: dict[str, Stored] = {}
        layers: dict[str, dict[str, Stored]] = {}
        for name in sorted(tensors):
            layer, slash, base = name.rpartition("/")
            if slash and not layer:
                raise LayerError(f"{name}: the layer's name before / must not be empty")
            if base in _SHARED:
                if slash:
                    raise LayerError(f"{name}: must stand once, without a layer's prefix")
                shared[base] = tensors[name]
            else:
                layers.setdefault(layer, {})[base] = tensors[name]
        if "" in layers and len(layers) > 1:
            other = next(name for name in layers if name)
            raise LayerError(
                f"{min(layers[''])}: has no layer's prefix, {other}/{min(layers[other])} has one: "
                "must be the same for all"
            )
        return shared, layers or {"": {}}

    @staticmethod
    def _split_metadata(
        metadata: dict[str, str], layers: dict[str, dict[str, Stored]]
    ) -> dict[str | None, dict[str, str]]:
        """Metadata of each layer, without the prefix, and under None what all layers share.

        Keys that mean nothing here are left to whoever wrote them.
        """
        found: dict[str | None, dict[str, str]] = {None: {}, **{name: {} for name in layers}}
        for key in sorted(metadata):
            layer, slash, base = key.rpartition("/")
            if base == "optimizer":
                if slash:
                    raise LayerError(f"metadata {key}: must stand once, without a layer's prefix")
                found[None][base] = metadata[key]
            elif _is_of_layer(base):
                if layer not in layers:
                    rule = "there is no such layer" if slash else "must have a layer's prefix"
                    raise LayerError(f"metadata {key}: {rule}")
                found[layer][base] = metadata[key]
        return found


def _not_zero(reader: Reader, name: str) -> Scale:
    scale = reader.scale(name)
    if scale.is_zero:
        raise LayerError(f"{name}: the scale must not be zero")
    return scale


def _kind(reader: Reader, options: Options) -> str:
    """The update rule: the metadata's, the one that the scales imply, or the option's."""
    there = {
        kind: [f"{name}.scale" for name in names if f"{name}.scale" in reader.tensors]
        for kind, names in FACTORS.items()
    }
    if there["momentum"] and there["lion"]:
        raise LayerError(
            f"{there['lion'][0]}: {there['momentum'][0]} is there too: must be those of one "
            "optimizer, beta of momentum, b1, b1c, b2, b2c of lion"
        )
    implied = next((kind for kind, names in there.items() if names), None)
    if "optimizer" not in reader.metadata:
        kind = implied or options.optimizer
        if kind is None:
            raise LayerError("metadata optimizer: missing: must be there or given by --optimizer")
        return kind
    kind = reader.choice("optimizer", OPTIMIZERS, "")
    if implied not in (None, kind):
        assert implied is not None
        raise LayerError(f"{there[implied][0]}: optimizer {kind} has no such factor")
    return kind


def _complement(reader: Reader, name: str) -> Scale:
    """1 minus a factor of the file, rounded as any real number is."""
    value = 1.0 - calibrate.to_float(reader.scale(f"{name}.scale"))
    if value < 0:
        other = _COMPLEMENTS[name]
        raise LayerError(f"{name}.scale: is above 1: needs {other}.scale beside it")
    return calibrate.from_float(value)


def _factor(reader: Reader, name: str) -> Scale:
    """A factor from the file, from its complement in the file, or the default."""
    if f"{name}.scale" in reader.tensors:
        return reader.scale(f"{name}.scale")
    other = _COMPLEMENTS.get(name, "")
    if f"{other}.scale" in reader.tensors:
        return _complement(reader, other)
    if name in _DEFAULTS:
        return calibrate.from_float(_DEFAULTS[name])
    return calibrate.from_float(1 - _DEFAULTS[other])


def _overruled(optimizer: Optimizer, options: Options) -> list[str]:
    """The options that the file contradicts, each as a sentence; the file wins."""
    given = {
        "optimizer": (options.optimizer, optimizer.kind),
        "lr": (options.lr, optimizer.lr),
        "weight-decay": (options.weight_decay, optimizer.weight_decay),
    }
    sentences = []
    for name, (value, used) in given.items():
        wanted = calibrate.from_float(value) if isinstance(value, float) else value
        if wanted not in (None, used):
            shown = f"{calibrate.to_float(used):.6g}" if isinstance(used, Scale) else used
            sentences.append(f"--{name} {value} is not used: the file says {shown}")
    return sentences


def _optimizer(reader: Reader, options: Options) -> Optimizer:
    kind = _kind(reader, options)
    if "lr.scale" in reader.tensors:
        lr = _not_zero(reader, "lr.scale")
    elif options.lr is None:
        raise LayerError("lr.scale: missing tensor: must be there or given by --lr")
    else:
        lr = calibrate.from_float(options.lr)
    if "wd.scale" in reader.tensors:
        decay = reader.scale("wd.scale")
    else:
        decay = calibrate.from_float(options.weight_decay or 0.0)
    factors = {name: _factor(reader, name) for name in FACTORS[kind]}
    return Optimizer(kind=kind, lr=lr, weight_decay=decay, **factors)


def _sticky(reader: Reader) -> frozenset[str]:
    names = frozenset(filter(None, reader.metadata.get("sticky", "").split(",")))
    for name in sorted(names):
        if name not in STICKY:
            raise LayerError(
                f"metadata sticky: unknown bit {name!r}: must be among {', '.join(STICKY)}"
            )
    return names


def _matrix(reader: Reader, name: str, dtypes: tuple[str, ...], axes: str) -> NDArray[Any]:
    stored = reader.take(name, dtypes)
    if len(stored.shape) != 2:
        raise LayerError(f"{name}: rank {len(stored.shape)}: must be 2, {axes}")
    return stored.array()


def _master(reader: Reader, tensor: str, made: bool) -> tuple[str, NDArray[np.int16], Scale]:
    """(tensor it is from, master, scale); made from lora_A or lora_B where allowed and needed."""
    name = f"{tensor}.master"
    axes = f"[{', '.join(Layer.AXES[tensor])}]"
    if name in reader.tensors or not made:
        return name, _matrix(reader, name, ("I16",), axes), _not_zero(reader, f"{name}.scale")
    if tensor not in reader.tensors:
        raise LayerError(f"{tensor}: missing tensor: must be there unless {name} is")
    values = _matrix(reader, tensor, (*layerfile.INTEGERS, *layerfile.FLOATS), axes)
    if reader.tensors[tensor].dtype in layerfile.INTEGERS:
        values = values * calibrate.to_float(reader.scale(f"{tensor}.scale"))
    elif f"{tensor}.scale" in reader.tensors:
        dtype = reader.tensors[tensor].dtype
        raise LayerError(f"{tensor}.scale: {tensor} is {dtype}: must not have a scale")
    try:
        scale = calibrate.master_scale(values)
    except ValueError as error:
        raise LayerError(f"{tensor}: {error}") from None
    if f"{name}.scale" in reader.tensors:
        scale = _not_zero(reader, f"{name}.scale")
        largest = float(np.max(np.abs(values.astype(np.float64)), initial=0.0))
        if np.rint(largest / calibrate.to_float(scale)) > numerics.qmax(16):
            raise LayerError(f"{name}.scale: too small: the largest of {tensor} does not fit int16")
    return tensor, calibrate.quantize_with_scale(values, 16, scale), scale


def _momentum(
    reader: Reader, tensor: str, kind: str, shape: tuple[int, ...]
) -> tuple[NDArray[np.int16] | None, Scale | None]:
    """(momentum, scale), None where they are to be made."""
    name = f"{tensor}.momentum"
    present = [part for part in (name, f"{name}.scale") if part in reader.tensors]
    if not has_momentum(kind):
        if present:
            raise LayerError(f"{present[0]}: optimizer {kind} has no momentum")
        return None, None
    if name not in reader.tensors:
        return None, _not_zero(reader, f"{name}.scale") if present else None
    axes = f"[{', '.join(Layer.AXES[tensor])}]"
    values = _matrix(reader, name, ("I16",), axes)
    if values.shape != shape:
        raise LayerError(f"{name}: shape {values.shape}: must be {shape} as the master has")
    return values, _not_zero(reader, f"{name}.scale")


def _check_masters(layer: dict[str, NDArray[Any]], masters: dict[str, NDArray[Any]]) -> None:
    """Shapes of [r,d] and [k,r] against x [N,d] and weight [k,d]; `masters` by the file's names."""
    known = {"d": (layer["x"].shape[1], "x"), "k": (layer["weight"].shape[0], "weight")}
    for tensor, (name, values) in zip(ADAPTERS, masters.items(), strict=True):
        axes = Layer.AXES[tensor]
        for axis, size in zip(axes, values.shape, strict=True):
            wanted, source = known.setdefault(axis, (size, name))
            if size != wanted:
                raise LayerError(
                    f"{name}: shape {values.shape}: must be [{', '.join(axes)}] with "
                    f"{axis} = {wanted} as in {source}"
                )


def _layer_state(
    title: str, name: str, index: int, file: _File, state: _File, kind: str
) -> tuple[LayerState, list[str]]:
    """One layer, and the adapters whose momentum scale is still to be found."""
    made = state is file
    reader, kept = file.layers[name], state.layers[name]
    operands: dict[str, NDArray[Any]] = {}
    scales: dict[str, Scale] = {}
    with _located(file.path, name):
        parts = {part for base in ADAPTERS for part in (base, f"{base}.master")}
        if parts.isdisjoint(reader.tensors) and parts.isdisjoint(kept.tensors):
            raise LayerError("lora_A: missing tensor: a frozen layer has nothing to train")
        widths = reader.widths()
        default = int(reader.choice("bits", ("8", "16"), "8"))
        number = reader.counter("index") if "index" in reader.tensors else index
        for tensor in INPUTS:
            if tensor not in ADAPTERS:
                operands[tensor], scales[tensor] = reader.operand(
                    tensor, widths.get(tensor), default
                )
    unscaled: list[str] = []
    masters: dict[str, Master] = {}
    with _located(state.path, name):
        found = {tensor: _master(kept, tensor, made) for tensor in ADAPTERS}
        _check_masters(operands, {source: w for source, w, _ in found.values()})
        for offset, (tensor, (_, w, scale)) in enumerate(found.items()):
            v, v_scale = _momentum(kept, tensor, kind, w.shape)
            if has_momentum(kind) and v_scale is None:
                unscaled.append(tensor)
                v_scale = ONE
            master = new_master(w, scale, 2 * number + offset, v_scale)
            masters[tensor] = master if v is None else replace(master, v=v)
        records, sticky = kept.records(), _sticky(kept)
    with _located(file.path, name):
        width = 8 * operands["x"].dtype.itemsize
        for tensor, master in masters.items():
            # Values come from the masters at each step; only the width counts here.
            dtype = numerics.operand_dtype(widths.get(tensor, width))
            operands[tensor], scales[tensor] = np.zeros(master.w.shape, dtype), ZERO
        layer = Layer(
            name=title,
            scales=scales,
            index=number,
            # An imported adapter brings its gain along.
            gain=reader.gain() if reader.has("gain") or not kept.has("gain") else kept.gain(),
            **operands,
            **reader.settings(),
        )
    with _located(state.path, name):
        layer = replace(layer, amax=records)
        a, b = masters["lora_A"], masters["lora_B"]
        return LayerState(layer=layer, a=a, b=b, sticky=sticky), unscaled


def _other_gains(file: _File, state: _File) -> list[str]:
    """A sentence for each layer whose two files have different gains: the layer file's counts."""
    sentences = []
    for name, reader in file.layers.items():
        kept = state.layers[name]
        if reader.has("gain") and kept.has("gain"):
            with _located(state.path, name):
                theirs = kept.gain()
            with _located(file.path, name):
                ours = reader.gain()
            if theirs != ours:
                where = f"{name}/gain" if name else "gain"
                unused, used = (f"{calibrate.to_float(gain):.6g}" for gain in (theirs, ours))
                sentences.append(
                    f"{state.path}: {where} {unused} is not used: {file.path} says {used}"
                )
    return sentences


def load_state(
    path: str | Path,
    options: Options | None = None,
    resume: str | Path | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainingState:
    """The state in which a training run begins.

    Parameters
    ----------
    path : the layer file
    options : what fills in what the files lack
    resume : an output of an earlier run of the same layers, whose state takes the place of the
        layer file's masters, momenta, records, seed, step, optimizer and sticky bits
    note : takes a sentence for each option that a file contradicts

    Raises
    ------
    LayerFileError
        If a file cannot be read or breaks a rule, naming the file, the tensor and the rule.
    """
    options = options or Options()
    if is_product(path):
        raise LayerFileError(f"{path}: holds a bare product: there is nothing to train")
    file = _File(Path(path))
    state = file if resume is None else _File(Path(resume))
    if list(state.layers) != list(file.layers):
        theirs, ours = (", ".join(n or "(no prefix)" for n in f.layers) for f in (state, file))
        raise LayerFileError(f"{state.path}: layers {theirs}: must be those of {path}: {ours}")
    # A file of masters alone, such as an imported adapter, leaves the rest to the layer file.
    source = state if state.shared.tensors or state.shared.metadata else file
    with _located(source.path):
        optimizer = _optimizer(source.shared, options)
        seed, step = source.shared.counter("seed"), source.shared.counter("step")
    if note is not None:
        for sentence in _overruled(optimizer, options):
            note(f"{source.path}: {sentence}")
        if state is not file:
            for sentence in _other_gains(file, state):
                note(sentence)
    layers: dict[str, LayerState] = {}
    wanted: list[tuple[str, str]] = []
    for index, name in enumerate(file.layers):
        title = name or Path(path).stem
        layers[name], unscaled = _layer_state(title, name, index, file, state, optimizer.kind)
        wanted += [(name, tensor) for tensor in unscaled]
    with _located(file.path):
        training = TrainingState(layers=layers, optimizer=optimizer, seed=seed, step=step)
    if not wanted:
        return training
    for (name, tensor), scale in dry_run_momentum(training, wanted).items():
        field = "a" if tensor == "lora_A" else "b"
        master = replace(getattr(layers[name], field), v_scale=scale)
        layers[name] = replace(layers[name], **{field: master})
    return replace(training, layers=layers)


def load_masters(path: str | Path) -> dict[str, dict[str, tuple[NDArray[np.int16], Scale]]]:
    """The masters of a file by layer and name ("lora_A", "lora_B"), made where it has none.

    The file may hold anything else that a training file holds; nothing else has to be there.

    Raises
    ------
    LayerFileError
        If the file cannot be read or breaks a rule, naming the file, the tensor and the rule.
    """
    file = _File(Path(path))
    masters: dict[str, dict[str, tuple[NDArray[np.int16], Scale]]] = {}
    for name, reader in file.layers.items():
        with _located(file.path, name):
            found = {tensor: _master(reader, tensor, made=True) for tensor in ADAPTERS}
            (a_name, a, _), (b_name, b, _) = found.values()
            if b.shape[1] != a.shape[0]:
                raise LayerError(
                    f"{b_name}: shape {b.shape}: must be [k, r] with r = {a.shape[0]} as in "
                    f"{a_name}"
                )
            masters[name] = {tensor: (w, scale) for tensor, (_, w, scale) in found.items()}
    return masters


def load_gains(path: str | Path) -> dict[str, Scale]:
    """The gains alpha / r of a file's layers, of those that have one.

    Raises
    ------
    LayerFileError
        If the file cannot be read or breaks a rule.
    """
    file = _File(Path(path))
    gains: dict[str, Scale] = {}
    for name, reader in file.layers.items():
        if reader.has("gain"):
            with _located(file.path, name):
                gains[name] = reader.gain()
    return gains


def holds_training(path: str | Path) -> bool:
    """Whether a file's header has something that only files for training have.

    Says no to a file that cannot be read: whoever reads it says why.
    """
    names, metadata = layerfile.read_header(path)
    only = _SHARED - {"seed", "step"} | {f"{b}{s}" for b in _STATE for s in ("", ".scale")}
    return "optimizer" in metadata or any("/" in name or name in only for name in names)


def adapter_metadata(path: str | Path, resume: str | Path | None = None) -> dict[str, str]:
    """What the state's file remembers of its adapters' names, for the output to remember.

    The file that resumes goes before the layer file, as its masters do.
    """
    for source in (resume, path):
        if source is not None:
            _, metadata = layerfile.read_header(source)
            if ADAPTER_KEY in metadata:
                return {ADAPTER_KEY: metadata[ADAPTER_KEY]}
    return {}


# Writing --------------------------------------------------------------------------------------


def shared_tensors(optimizer: Optimizer, seed: int, step: int) -> dict[str, NDArray[Any]]:
    """What stands once in a file for training, but for the metadata `optimizer`."""
    factors = {name: getattr(optimizer, name) for name in FACTORS[optimizer.kind]}
    scales = {"lr": optimizer.lr, "wd": optimizer.weight_decay, **factors}
    return {
        **{f"{name}.scale": np.array(scale, np.int32) for name, scale in scales.items()},
        **{name: np.array([value], np.int32) for name, value in (("seed", seed), ("step", step))},
    }


def held_tensors(layer: LayerState) -> tuple[dict[str, NDArray[Any]], dict[str, Scale]]:
    """Masters and momenta of a layer by their names in files, and their scales."""
    tensors: dict[str, NDArray[Any]] = {}
    scales: dict[str, Scale] = {}
    for tensor, master in (("lora_A", layer.a), ("lora_B", layer.b)):
        tensors[f"{tensor}.master"], scales[f"{tensor}.master"] = master.w, master.scale
        if master.v is not None and master.v_scale is not None:
            tensors[f"{tensor}.momentum"] = master.v
            scales[f"{tensor}.momentum"] = master.v_scale
    return tensors, scales


def write_training(
    path: str | Path, result: TrainingResult, more: Mapping[str, str] | None = None
) -> None:
    """Writes each layer's last results and the state after them; a state file to go on from.

    `more` is metadata that is carried on. The bytes depend on that and on the result alone, so that
    backends can be compared by file.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    state = result.state
    tensors = shared_tensors(state.optimizer, state.seed, state.step)
    metadata = {**(more or {}), "optimizer": state.optimizer.kind}
    for name, layer in state.layers.items():
        prefix = f"{name}/" if name else ""
        metadata[f"{prefix}sticky"] = ",".join(sorted(layer.sticky))
        held, held_scales = held_tensors(layer)
        last = result.results[name]
        stored = layerfile.with_scales(
            {**last.tensors, **held}, {**last.scales, **held_scales}, layer.layer.amax
        )
        tensors |= {f"{prefix}{tensor}": array for tensor, array in stored.items()}
    layerfile.save_tensors(path, tensors, metadata)
