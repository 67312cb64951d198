"""Runs the real SCALE-Sim on the products of the sd15-kv layers, next to the closed forms.

The tool lives in an environment of its own, because it needs another NumPy than systolora does. A
run is kept in its directory, and is not repeated while the tool, configuration and shape are the
same.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from systolora_sim.runner import RunError, write_json
from systolora_sim.scalesim import Gemm, Report, layer_products, os_cycles, read_report, ws_cycles

__all__ = ["CONFIGURATIONS", "KV_LAYERS", "Case", "configuration", "make_environment", "measure"]
__all__ += ["cases", "run_case", "topology"]

#: Versions of the tool that were tried; its stores of traces fail with NumPy 2 (TypeError).
REQUIREMENTS = ("scalesim==3.0.*", "numpy>=1.26,<2")
CONFIGURATIONS = tuple(
    (dataflow, memory) for dataflow in ("WS", "OS") for memory in ("stall-free", "64-bytes")
)
#: Cross-attention keys and values of Stable Diffusion 1.5: 77 tokens, 768 inputs, k outputs. They
#: do not need dX while the text encoder is frozen; it is measured for layers that do.
KV_LAYERS = tuple((77, 768, k, True) for k in (320, 640, 1280))
BATCHES, RANKS = (1, 4), (4, 16)

_CONFIG_DIR = Path("benchmarks") / "scalesim"
_FORMS = {"WS": ws_cycles, "OS": os_cycles}
# Not `python -m scalesim.scale`: that always writes gigabytes of traces.
_PROGRAM = """
import sys
from scalesim.scale_sim import scalesim
config, topology, output = sys.argv[1:]
scalesim(save_disk_space=True, verbose=False, config=config, topology=topology, layout=topology,
         input_type_gemm=True).run_scale(top_path=output)
"""


class Case(NamedTuple):
    """A shape under a dataflow and a memory; `names` says which products have that shape."""

    gemm: Gemm
    dataflow: str
    memory: str
    names: tuple[str, ...]

    @property
    def closed_form(self) -> int:
        return _FORMS[self.dataflow](self.gemm)


def configuration(dataflow: str, memory: str, root: Path = Path()) -> Path:
    """The tool's configuration file below the root of the repository."""
    return root / _CONFIG_DIR / f"{dataflow.lower()}-{memory}.cfg"


def cases() -> list[Case]:
    """All distinct shapes of the sd15-kv layers, both orientations, the cheapest first.

    Transposed ones stand for "either orientation" of the best of WS and OS, stall-free only.
    """
    names: dict[Gemm, list[str]] = {}
    for batch in BATCHES:
        for rank in RANKS:
            for n, d, k, dx in KV_LAYERS:
                for name, gemm in layer_products(n * batch, d, k, rank, dx).items():
                    text = f"{name} N={n * batch} d={d} k={k} r={rank}"
                    names.setdefault(gemm, []).append(text)
    listed = [
        Case(gemm, dataflow, memory, tuple(texts))
        for gemm, texts in names.items()
        for dataflow, memory in CONFIGURATIONS
    ]
    for gemm, texts in names.items():
        turned = tuple(f"{text}, transposed" for text in texts)
        if gemm.transposed not in names:
            listed += [Case(gemm.transposed, each, "stall-free", turned) for each in _FORMS]
    return sorted(listed, key=lambda case: (case.closed_form, case[:3]))


def topology(gemms: Iterable[Gemm]) -> str:
    """A topology file: a comma ends every line, the columns are M, N, K."""
    lines = ["Layer,M,N,K,", *(f"m{m}k{k}n{n},{m},{n},{k}," for m, k, n in gemms)]
    return "\n".join(lines) + "\n"


def make_environment(build_dir: Path) -> Path:
    """The Python of an environment with SCALE-Sim, made below `build_dir` where it is missing.

    Raises
    ------
    RunError
        If it cannot be installed.
    """
    directory = build_dir / "env"
    python, stamp = directory / "bin" / "python", directory / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS) + "\n"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    venv.create(directory, with_pip=True, clear=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, *REQUIREMENTS], env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise RunError(f"{directory}: cannot install {' '.join(REQUIREMENTS)}: {reason}")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _environment() -> dict[str, str]:
    """The variables of this process without those that are meant for its own Python.

    One thread: a shape is too small for more, and another core may be at work.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**own, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def versions(python: Path) -> dict[str, str]:
    """Versions of Python and of what decides about the tool's figures."""
    program = (
        "import json, platform; from importlib.metadata import version\n"
        "found = {name: version(name) for name in ('scalesim', 'numpy')}\n"
        "print(json.dumps({**found, 'python': platform.python_version()}))"
    )
    done = subprocess.run(
        [python, "-c", program], env=_environment(), check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def run_case(case: Case, python: Path, build_dir: Path, root: Path = Path()) -> dict[str, Any]:
    """What the tool says of one case: the fields of a Report, and the seconds that it took.

    Raises
    ------
    RunError
        If the tool fails, or writes other reports than those of version 3.0.
    """
    config = configuration(case.dataflow, case.memory, root).read_text(encoding="utf-8")
    shape = topology([case.gemm])
    key = hashlib.sha256("\0".join((config, shape, *REQUIREMENTS)).encode()).hexdigest()[:16]
    directory = build_dir / "runs" / key
    # Written last, so it says that the reports are whole.
    kept = directory / "seconds.json"
    if kept.exists():
        return {**_read(directory, case)._asdict(), **json.loads(kept.read_text(encoding="utf-8"))}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "scale.cfg").write_text(config, encoding="utf-8")
    (directory / "shape.csv").write_text(shape, encoding="utf-8")
    started = time.monotonic()
    done = subprocess.run(
        [python.absolute(), "-c", _PROGRAM, "scale.cfg", "shape.csv", "out"],
        cwd=directory,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RunError(f"{directory}: SCALE-Sim failed: {reason}")
    report = _read(directory, case)
    seconds = {"seconds": round(time.monotonic() - started, 1)}
    write_json(kept, seconds)
    return {**report._asdict(), **seconds}


def _read(directory: Path, case: Case) -> Report:
    reports = directory / "out" / f"{case.dataflow.lower()}-{case.memory}"
    names = ("COMPUTE_REPORT.csv", "DETAILED_ACCESS_REPORT.csv")
    try:
        texts = [(reports / name).read_text(encoding="utf-8") for name in names]
        (report,) = read_report(*texts)
    except (OSError, ValueError) as error:
        raise RunError(f"{directory}: no usable report: {error}") from None
    return report


def measure(build_dir: Path, most_cycles: int | None, command: str) -> dict[str, Any]:
    """Runs all cases of at most `most_cycles` cycles, with a progress bar in cycles on stderr."""
    from tqdm import tqdm

    python = make_environment(build_dir)
    chosen = [case for case in cases() if most_cycles is None or case.closed_form <= most_cycles]
    runs = []
    total = sum(case.closed_form for case in chosen)
    with tqdm(total=total, unit=" cycles", unit_scale=True, file=sys.stderr) as bar:
        for case in chosen:
            bar.set_description(f"{case.dataflow} {case.memory} {'x'.join(map(str, case.gemm))}")
            result = run_case(case, python, build_dir)
            runs.append(
                {
                    "products": list(case.names),
                    "shape": list(case.gemm),
                    "dataflow": case.dataflow,
                    "memory": case.memory,
                    "closed_form": case.closed_form,
                    **result,
                }
            )
            bar.update(case.closed_form)
    return {
        "format": "systolora-scalesim 1",
        "what": "cycles that SCALE-Sim itself reports, written by scripts/scalesim.py",
        "command": command,
        "requirements": list(REQUIREMENTS),
        "versions": versions(python),
        "configurations": [
            {
                "dataflow": dataflow,
                "memory": memory,
                "file": configuration(dataflow, memory).as_posix(),
                "sha256": hashlib.sha256(configuration(dataflow, memory).read_bytes()).hexdigest(),
            }
            for dataflow, memory in CONFIGURATIONS
        ],
        "shape": "M, K, N of [M, K] . [K, N]: the ifmap, then the filter",
        "not_run": len(cases()) - len(chosen),
        "runs": runs,
    }
