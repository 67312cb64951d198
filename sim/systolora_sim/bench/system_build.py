"""Builds the simulator of a whole accelerator: the generated Verilog in the C++ of harness/.

Python takes no part in its simulation: a job goes in as a file, a result comes out as one.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from systolora_sim.bench.build import (
    BenchError,
    Simulator,
    build_environment,
    cached_build,
    package_version,
    simulator_name,
    tail,
)

__all__ = ["EXECUTABLE", "TOP", "build_system", "trace_format"]

TOP = "systolora_top"
#: The harness in a simulator's directory.
EXECUTABLE = "Vtop"

_HARNESS = Path(__file__).with_name("harness")
#: Options of Verilator and of the compiler; none of the harness's results may depend on X.
_OPTIONS = ["--cc", "--exe", "--build", "--build-jobs", "2", "-O3", "--x-assign", "fast"]
_OPTIONS += ["--x-initial", "fast", "--no-timing", "--noassert", "--prefix", EXECUTABLE]
#: Vectors of several fields look like loops to it where the fields do not form one.
_OPTIONS += ["-Wno-UNOPTFLAT"]
_CFLAGS = ["-std=c++17", "-Wall", "-Wextra"]
#: How to trace, by file name: Verilator's option, what the compiler and the linker need.
_TRACES: dict[str, tuple[str, list[str], list[str]]] = {
    ".fst": ("--trace-fst", [f"-I{_HARNESS / 'fst'}"], ["-lz"]),
    ".vcd": ("--trace-vcd", [], []),
}


def trace_format(file: Path) -> str:
    """The format of a trace file: its suffix.

    Raises
    ------
    BenchError
        If the suffix is no format's.
    """
    if file.suffix not in _TRACES:
        raise BenchError(f"{file}: a trace must end in {' or '.join(_TRACES)}")
    return file.suffix


def _has_zlib(work: Path) -> bool:
    source = work / "zlib_there.cpp"
    source.write_text("#include <zlib.h>\nint main() { return !zlibVersion(); }\n", "ascii")
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, str(source), "-o", str(work / "zlib_there"), "-lz"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build_system(
    verilog: Path,
    cache: Path,
    *,
    top: str = TOP,
    channels: int = 1,
    trace: str | None = None,
    driver: Path | None = None,
) -> Simulator:
    """The simulator of an accelerator's Verilog, from the cache if it is there already.

    Parameters
    ----------
    verilog : file that holds the module `top`
    cache : directory of simulators
    channels : memory ports of it, 1, 2 or 4
    trace : `.fst` or `.vcd`: a slower one that can write such traces
    driver : file of the C driver, which then is a part of the harness: with its header beside it,
        and systolora_regs.h beside the Verilog

    Raises
    ------
    BenchError
        With the end of the build's log, or if a tool is missing.
    """
    name = simulator_name()
    if name != "verilator":
        raise BenchError(f"SIM = {name}: the whole accelerator needs verilator")
    sources = sorted(_HARNESS.glob("*.cpp"))
    files = [verilog, *sorted(_HARNESS.rglob("*.h")), *sources]
    options, libraries = list(_OPTIONS), []
    flags = [*_CFLAGS, f"-DSYSTOLORA_CHANNELS={channels}"]
    if trace is not None:
        option, include, libraries = _TRACES[trace]
        options.append(option)
        flags += include
    includes: list[str] = []
    if driver is not None:
        files += [driver, driver.with_suffix(".h"), verilog.parent / "systolora_regs.h"]
        includes = [f"-I{file.parent.resolve()}" for file in (driver, verilog)]
        flags += ["-DSYSTOLORA_DRIVER", *includes]
    # The wheel's makefile asks for liblz4 too, whose part here is fst/lz4.h.
    make = f" LDLIBS={' '.join(libraries)}" if libraries else ""

    def compile_in(work: Path) -> None:
        if trace == ".fst" and not _has_zlib(work):
            raise BenchError(
                "traces in FST need zlib's header (Debian: zlib1g-dev); name the trace FILE.vcd"
            )
        # The lint of the Verilog is a test of its own.
        control = work / "control.vlt"
        control.write_text(f'`verilator_config\nlint_off -file "*/{verilog.name}"\n', "utf-8")
        os.environ["MAKEFLAGS"] += make
        objects = [_compile_driver(driver, includes, work)] if driver is not None else []
        command = ["verilator", *options, "--top-module", top, "-Mdir", str(work)]
        command += ["-CFLAGS", " ".join(flags), str(control), str(verilog.resolve())]
        command += [str(source.resolve()) for source in sources] + objects
        _run(command, work, f"{verilog}: verilator could not build it")

    parts = ["system", top, *options, *_CFLAGS, str(channels), str(trace), str(driver is not None)]
    parts += [build_environment(name)["MAKEFLAGS"], package_version("verilator")]
    return cached_build(name, parts, files, cache, compile_in)


def _compile_driver(driver: Path, includes: Sequence[str], work: Path) -> str:
    """The driver as an object, by a C compiler: it is no C++."""
    target = work / "systolora_driver.o"
    command = [os.environ.get("CC", "gcc"), "-std=c99", "-O1", "-c", str(driver.resolve())]
    command += [*includes, "-o", str(target)]
    _run(command, work, f"{driver}: the compiler refused it")
    return str(target.resolve())


def _run(command: list[str], work: Path, failure: str) -> None:
    log = work / "build.log"
    try:
        with log.open("ab") as file:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
            )
    except OSError as error:
        raise BenchError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        raise BenchError(f"{failure}:\n{tail(log)}")
