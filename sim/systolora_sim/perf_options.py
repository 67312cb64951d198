"""What `perf` measures, and where its views go."""

from dataclasses import dataclass, replace
from pathlib import Path

from systolora.config import AcceleratorConfig
from systolora_sim.baselines import BASELINES
from systolora_sim.perf_charts import CHARTS
from systolora_sim.runner import BUILD_DIR, RunError
from systolora_sim.schedule_choice import CHOICES
from systolora_sim.workload import Workload, from_adapter, load_workload

__all__ = ["BACKENDS", "Outputs", "PerfOptions", "check_constant", "load"]

BACKENDS = ("model", "rtl")
#: One program for a step, or one for each phase as well.
PHASES = ("step", "phases")
RANK = 4


@dataclass(frozen=True, kw_only=True)
class PerfOptions:
    """What is measured.

    Parameters
    ----------
    workload : name of a workload, a TOML file, or a .safetensors file of adapters
    config : AcceleratorConfig
    rank : of the adapters; None: that of a file of adapters, else 4
    batch : samples
    bits : 8 or 16, of all operands
    optimizer : "sgd", "momentum" or "lion"
    latency : of memory, cycles
    backend : one of BACKENDS
    baselines : names in `baselines.BASELINES`, in the order of the report
    just_in_time : Y and dX are quantized with the maximum of this step, not of the one before
    schedule : one of `schedule_choice.CHOICES`; only of systolora
    cache_base : systolora loads the sums of X.W^T, which does not change from step to step
    phase : "step", or "phases": also as three programs, forward, backward and update
    full : all layers are timed, not a few of many equal ones (`perf_repeats`); so they are on rtl
    limit_layers : only so many of the first layers, None for all
    sample_rows, text_rows : of a file of adapters: rows of X for each sample
        (`workload.from_adapter`)
    build_dir : rtl: where Verilog and simulators are kept
    progress : whether stderr shows progress bars
    """

    workload: str
    config: AcceleratorConfig
    rank: int | None = None
    batch: int = 1
    bits: int = 8
    optimizer: str = "sgd"
    latency: int = 40
    backend: str = "model"
    baselines: tuple[str, ...] = ()
    just_in_time: bool = False
    schedule: str = "auto"
    cache_base: bool = False
    phase: str = "step"
    full: bool = False
    limit_layers: int | None = None
    sample_rows: int | None = None
    text_rows: int | None = None
    build_dir: Path = BUILD_DIR
    progress: bool = False

    def __post_init__(self) -> None:
        for key, known in (
            ("backend", BACKENDS),
            ("baselines", tuple(BASELINES)),
            ("schedule", CHOICES),
            ("phase", PHASES),
        ):
            value = getattr(self, key)
            for name in (value,) if isinstance(value, str) else value:
                if name not in known:
                    raise RunError(f"{key} = {name!r}: must be one of {', '.join(known)}")
        if self.phase == "phases" and self.backend == "rtl":
            raise RunError("phase = 'phases': only with the backend model")
        if not 1 <= self.latency <= 1 << 20:
            raise RunError(f"memory latency = {self.latency}: must be from 1 to {1 << 20}")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files for the views of a report; charts : kind and file of each."""

    json: Path | None = None
    html: Path | None = None
    trace: Path | None = None
    charts: tuple[tuple[str, Path], ...] = ()

    def __post_init__(self) -> None:
        for kind, file in self.charts:  # here, before anything is measured
            if kind not in CHARTS:
                raise RunError(f"chart = {kind!r}: must be one of {', '.join(CHARTS)}")
            if file.suffix not in (".svg", ".png"):
                raise RunError(f"{file}: must end in .svg or .png")

    @property
    def files(self) -> list[Path]:
        named = (self.json, self.html, self.trace, *(file for _, file in self.charts))
        return [file for file in named if file is not None]


# Workload -------------------------------------------------------------------------------------


def _whole(options: PerfOptions) -> Workload:
    name = options.workload
    if name.endswith(".safetensors"):
        if options.sample_rows is None:
            raise RunError(
                f"{name}: sample-rows: missing: rows of X for each sample, which no file of "
                "adapters tells"
            )
        return from_adapter(name, options.sample_rows, options.text_rows)
    for key in ("sample_rows", "text_rows"):
        if getattr(options, key) is not None:
            option = key.replace("_", "-")
            raise RunError(f"{option}: only of a file of adapters (.safetensors), not of {name}")
    return load_workload(name)


def _first_layers(workload: Workload, count: int | None) -> Workload:
    if count is None:
        return workload
    if not 1 <= count <= len(workload.layers):
        raise RunError(
            f"layers = {count}: must be from 1 to {len(workload.layers)}, the layers of "
            f"{workload.name}"
        )
    return replace(workload, layers=workload.layers[:count], step=None)


def _rank(options: PerfOptions, workload: Workload) -> int:
    if workload.rank is None:
        return RANK if options.rank is None else options.rank
    if options.rank not in (None, workload.rank):
        raise RunError(
            f"{options.workload}: rank = {options.rank}: must be {workload.rank}, the rank of "
            "its adapters"
        )
    return workload.rank


def load(options: PerfOptions) -> tuple[Workload, Workload, int]:
    """The workload, as much of it as is measured, and the rank.

    Raises
    ------
    RunError, WorkloadError
        If there is no such workload, or an option does not fit it.
    """
    whole = _whole(options)
    return whole, _first_layers(whole, options.limit_layers), _rank(options, whole)


def check_constant(workload: Workload) -> None:
    """Raises RunError where the input of a layer changes from step to step."""
    for layer in workload.layers:
        if not layer.constant:
            raise RunError(
                f"{workload.name}: cache-base: layer {layer.name}: its input {layer.input} is not "
                "constant: X.W^T must be the same in every step"
            )
