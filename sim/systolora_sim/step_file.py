"""Program files (.slp): a compiled program with its memory, as safetensors.

Tensors `program` uint8 [n, 64] and `image` uint8 [size]; everything else is the JSON of metadata
`step_program`: version, configuration and its digest, phase, base, entry (address of the first
descriptor), length, runs, schedule, read_window and write_window ([first, first after it]),
word_base, step, symbols and the structure of the layers. The same program gives the same bytes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from systolora.config import AcceleratorConfig, ConfigError
from systolora.contract import DESCRIPTOR_BYTES, PROGRAM_MAX
from systolora_sim import layerfile
from systolora_sim.layer import OUTPUTS, LayerError
from systolora_sim.layerfile import LayerFileError
from systolora_sim.memory_map import ALIGNMENT, Symbol
from systolora_sim.schedule_choice import CHOICES
from systolora_sim.step_program import (
    KINDS,
    PHASES,
    LayerStructure,
    StepProgram,
    Structure,
    needed_symbols,
)

__all__ = ["load_step", "save_step"]

VERSION = 1
_KEY = "step_program"
_DTYPES = ("int8", "int16", "int32", "int64")


def save_step(path: str | Path, program: StepProgram) -> None:
    """Writes a program file: deterministic bytes, all or nothing.

    Raises
    ------
    LayerFileError
        If the file cannot be written; no part of it is left behind.
    """
    content = {
        "version": VERSION,
        "config": program.config.to_dict(),
        "digest": program.config.digest,
        "phase": program.phase,
        "base": program.base,
        "entry": program.address,
        "length": program.length,
        "runs": program.runs,
        "schedule": program.schedule,
        "read_window": list(program.read_window),
        "write_window": list(program.write_window),
        "word_base": program.word_base,
        "step": program.step,
        "symbols": {name: symbol.to_dict() for name, symbol in program.symbols.items()},
        "structure": asdict(program.structure),
    }
    layerfile.save_tensors(
        path,
        {"program": program.program, "image": program.image},
        {_KEY: json.dumps(content, sort_keys=True, separators=(",", ":"))},
    )


class _Fields:
    """The fields of a JSON object, taken by name and rule; raises LayerError."""

    def __init__(self, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise LayerError(f"{where}: {_shown(value)}: must be an object")
        self.where, self.left = where, dict(value)

    def take(self, name: str, kind: type, rule: str) -> Any:
        """A field of that type."""
        if name not in self.left:
            raise LayerError(f"{self.where}.{name}: missing")
        value = self.left.pop(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise LayerError(f"{self.where}.{name}: {_shown(value)}: must be {rule}")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name, int, "an integer")
        if not low <= value <= high:
            raise LayerError(f"{self.where}.{name}: {value}: must be from {low} to {high}")
        return value

    def equal(self, name: str, wanted: Any) -> None:
        """A field that follows from others."""
        value = self.take(name, type(wanted), f"{wanted}")
        if value != wanted:
            raise LayerError(f"{self.where}.{name}: {_shown(value)}: must be {wanted}")

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        value = self.take(name, str, "a name")
        if value not in choices:
            raise LayerError(f"{self.where}.{name}: {value!r}: must be {' or '.join(choices)}")
        return value

    def names(self, name: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        """A list of some of the choices."""
        values = self.take(name, list, "a list")
        for value in values:
            if value not in choices:
                rule = f"must be among {', '.join(choices)}"
                raise LayerError(f"{self.where}.{name}: {_shown(value)}: {rule}")
        return tuple(values)

    def done(self) -> None:
        """Refuses what is left."""
        for name in sorted(self.left):
            raise LayerError(f"{self.where}.{name}: unknown field")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


@contextmanager
def _located(path: str | Path) -> Iterator[None]:
    try:
        yield
    except LayerFileError:
        raise
    except LayerError as error:
        raise LayerFileError(f"{path}: {error}") from None


def _configuration(content: _Fields) -> AcceleratorConfig:
    given = content.take("config", dict, "an object")
    known = {field.name for field in fields(AcceleratorConfig)}
    for name in sorted({*given, *known}):
        if name not in known or name not in given:
            raise LayerError(f"config.{name}: {'missing' if name in known else 'unknown field'}")
    try:
        config = AcceleratorConfig(**given)
    except ConfigError as error:
        raise LayerError(f"config: {error}") from None
    content.equal("digest", config.digest)
    return config


def _symbol(name: str, value: Any, base: int, end: int) -> Symbol:
    entry = _Fields(f"symbols.{name}", value)
    rows, cols = entry.integer("rows", 1, 1 << 24), entry.integer("cols", 1, 1 << 24)
    dtype = entry.choice("dtype", _DTYPES)
    pieces = entry.integer("pieces", 2, cols) if "pieces" in entry.left else 1
    stride = entry.integer("stride", -(-cols // pieces) * np.dtype(dtype).itemsize, 1 << 32)
    symbol = Symbol(
        name=entry.take("name", str, "a name"),
        address=entry.integer("address", base, end),
        rows=rows,
        cols=cols,
        dtype=dtype,
        stride=stride,
        transposed=entry.take("transposed", bool, "true or false"),
        vector=entry.take("vector", bool, "true or false"),
        pieces=pieces,
        piece_stride=entry.integer("piece_stride", rows * stride, 1 << 40) if pieces > 1 else 0,
    )
    entry.done()
    for field in ("address", "stride", "piece_stride"):
        if getattr(symbol, field) % ALIGNMENT:
            must = f"must be a multiple of {ALIGNMENT}"
            raise LayerError(f"symbols.{name}.{field}: {getattr(symbol, field)}: {must}")
    if symbol.address + symbol.size > end:
        must = f"its {symbol.size} bytes must end by {end}"
        raise LayerError(f"symbols.{name}.address: {symbol.address}: {must}")
    return symbol


def _check_shape(name: str, symbol: Symbol) -> None:
    """Refuses a Scale, record or status word that is not shaped as one."""
    kind = name.rpartition(".")[2]
    cols, dtype = {"scale": (2, "int32"), "amax": (1, "int64"), "sticky": (1, "int64")}.get(
        "sticky" if name.rpartition("/")[2] == "sticky" else kind, (0, "")
    )
    got = (symbol.rows, symbol.cols, symbol.dtype)
    if cols and (got != (1, cols, dtype) or not symbol.vector):
        raise LayerError(f"symbols.{name}: {got[2]} {list(got[:2])}: must be {dtype} [{cols}]")


def _layer(where: str, value: Any) -> LayerStructure:
    entry = _Fields(where, value)
    bits = _Fields(f"{where}.bits", entry.take("bits", dict, "an object"))
    widths = {}
    for name in sorted(bits.left):
        if name not in OUTPUTS:
            raise LayerError(f"{where}.bits.{name}: must be among {', '.join(OUTPUTS)}")
        widths[name] = bits.integer(name, 8, 16)
        if widths[name] not in (8, 16):
            raise LayerError(f"{where}.bits.{name}: {widths[name]}: must be 8 or 16")
    layer = LayerStructure(
        name=entry.take("name", str, "a name"),
        title=entry.take("title", str, "a name"),
        index=entry.integer("index", 0, (1 << 28) - 1),
        want_dx=entry.take("want_dx", bool, "true or false"),
        delayed=entry.names("delayed", (*OUTPUTS, "q")),
        stochastic=entry.names("stochastic", (*OUTPUTS, "q")),
        bits=widths,
        adapter=entry.take("adapter", bool, "true or false"),
        results=entry.names("results", (*OUTPUTS, "Y_acc", "dA", "dB", "c", "q")),
    )
    entry.done()
    return layer


def _structure(content: _Fields, symbols: Mapping[str, Symbol]) -> Structure:
    entry = _Fields("structure", content.take("structure", dict, "an object"))
    layers = entry.take("layers", list, "a list")
    kind = entry.choice("kind", KINDS)
    structure = Structure(
        kind=kind,
        layers=tuple(_layer(f"structure.layers.{n}", each) for n, each in enumerate(layers)),
        optimizer=entry.choice(
            "optimizer", ("sgd", "momentum", "lion") if kind == "training" else ("",)
        ),
        seed=entry.integer("seed", -(1 << 31), (1 << 31) - 1),
    )
    entry.done()
    if not structure.layers or (kind != "training" and len(structure.layers) > 1):
        raise LayerError(
            f"structure.layers: {len(structure.layers)}: must be one or, of training, more"
        )
    for name in needed_symbols(structure):
        if name not in symbols:
            raise LayerError(f"symbols.{name}: missing")
        _check_shape(name, symbols[name])
    return structure


def _program(tensors: Mapping[str, layerfile.Stored], metadata: Mapping[str, str]) -> StepProgram:
    if _KEY not in metadata:
        raise LayerError(f"metadata {_KEY}: missing: this is no program file")
    for name in sorted({*tensors, "program", "image"}):
        if name not in tensors:
            raise LayerError(f"{name}: missing tensor")
        if name not in ("program", "image"):
            raise LayerError(f"{name}: unknown tensor")
        if tensors[name].dtype != "U8":
            raise LayerError(f"{name}: dtype {tensors[name].dtype}: must be U8")
    shape = tensors["program"].shape
    if len(shape) != 2 or shape[1] != DESCRIPTOR_BYTES or not 1 <= shape[0] <= PROGRAM_MAX:
        must = f"must be [n, {DESCRIPTOR_BYTES}] with n from 1 to {PROGRAM_MAX}"
        raise LayerError(f"program: shape {list(shape)}: {must}")
    shape = tensors["image"].shape
    if len(shape) != 1 or shape[0] % ALIGNMENT or not shape[0]:
        must = f"must be [n] with n a multiple of {ALIGNMENT}"
        raise LayerError(f"image: shape {list(shape)}: {must}")
    try:
        parsed = json.loads(metadata[_KEY])
    except (ValueError, RecursionError):
        raise LayerError(f"metadata {_KEY}: must be JSON") from None
    content = _Fields(_KEY, parsed)
    content.equal("version", VERSION)
    config = _configuration(content)
    size = tensors["image"].shape[0]
    bytes_ = size + tensors["program"].shape[0] * DESCRIPTOR_BYTES
    base = content.integer("base", 0, (1 << config.address_bits) - bytes_)
    if base % ALIGNMENT:
        raise LayerError(f"{_KEY}.base: {base}: must be a multiple of {ALIGNMENT}")
    entries = content.take("symbols", dict, "an object")
    symbols = {
        name: _symbol(name, value, base, base + size) for name, value in sorted(entries.items())
    }
    window = content.take("write_window", list, "two addresses")
    if len(window) != 2 or not all(type(each) is int for each in window):
        raise LayerError(f"{_KEY}.write_window: {_shown(window)}: must be two addresses")
    if window[1] != base + size or not base <= window[0] <= window[1]:
        must = f"must begin in the image and end with it, at {base + size}"
        raise LayerError(f"{_KEY}.write_window: {window}: {must}")
    program = StepProgram(
        config=config,
        phase=content.choice("phase", PHASES),
        program=tensors["program"].array(),
        image=tensors["image"].array(),
        base=base,
        symbols=symbols,
        write_base=window[0],
        word_base=content.integer("word_base", 0, (1 << 32) - 1),
        step=content.integer("step", -(1 << 31), (1 << 31) - 1),
        runs=content.integer("runs", 1, (1 << 32) - 1),
        schedule=content.choice("schedule", CHOICES),
        structure=_structure(content, symbols),
    )
    content.equal("entry", program.address)
    content.equal("length", program.length)
    content.equal("read_window", list(program.read_window))
    content.done()
    return program


def load_step(path: str | Path) -> StepProgram:
    """The program of a file, checked.

    Raises
    ------
    LayerFileError
        If the file cannot be read, or breaks a rule: one line that names the file, the field, its
        value and the rule. What the descriptors say is the accelerator's to check.
    """
    content = layerfile.read_bytes(path)
    with _located(path):
        return _program(*layerfile.parse(content))
