"""What docs/results/utilization.* measures: training steps of SD 1.5's K and V, and their programs.

A *step* is the whole workload `sd15-kv`; a *block* is one cross-attention block of 1280 outputs, K
and V, for what is simulated where the whole step takes too long.
"""

from dataclasses import dataclass, replace

from systolora.config import AcceleratorConfig, preset
from systolora_sim.baselines import BASELINES, compile_baseline
from systolora_sim.lowering import compile_training
from systolora_sim.rtl_backend import IMAGE_BASE
from systolora_sim.step_program import PHASES, StepProgram
from systolora_sim.training import TrainingState
from systolora_sim.workload import Workload, load_workload, state

__all__ = ["BLOCK", "CASES", "LATENCY", "OURS", "STEP", "Case", "Target", "compiled", "training"]

#: Cycles that memory takes.
LATENCY = 40
OURS = "systolora"
STEP, BLOCK = "step", "block"
#: The layers of a block, by their names in the workload.
_BLOCK_LAYERS = ("w1280.to_k.0", "w1280.to_v.0")


@dataclass(frozen=True)
class Target:
    """What a case is meant to reach: a share of the MAC limit, and how many times faster than a
    baseline it is; None where nothing is asked."""

    share: float | None = None
    over: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step of `sd15-kv` with SGD on the preset `paper`.

    rank, batch, bits : of the workload; bus_bits : of a channel of memory, each way; channels : how
    many there are; cache_base : whether the sums of X.W^T are constants in memory; just_in_time : Y
    and dX are quantized with the maxima of this step, not of the one before; target : what it is
    meant to reach; whole : whether the whole step is simulated in Verilog, "long": only if asked
    for; blocks : which baselines' blocks are
    """

    rank: int
    batch: int
    bits: int = 8
    bus_bits: int = 512
    channels: int = 1
    cache_base: bool = False
    just_in_time: bool = False
    target: Target = Target()
    whole: bool = False
    blocks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the case, unique."""
        name = f"batch {self.batch}, rank {self.rank}"
        name += ", int16" if self.bits == 16 else ""
        name += ", cached base" if self.cache_base else ""
        name += ", just in time" if self.just_in_time else ""
        channels = f"{self.channels}x" if self.channels > 1 else ""
        return f"{name}, {channels}{self.bus_bits} bits"

    @property
    def config(self) -> AcceleratorConfig:
        """The accelerator's."""
        return preset("paper").with_fields(bus_bits=self.bus_bits, channels=self.channels)


def _target(share: float, textbook: float, overlapped: float) -> Target:
    return Target(share, (("textbook-ws", textbook), ("overlapped-ws", overlapped)))


_B4R16, _B4R4 = _target(0.90, 1.81, 1.15), _target(0.88, 1.85, 1.2)
_B1R16, _B1R4 = _target(0.87, 3, 1.15), _target(0.83, 3, 1.2)
_CACHED = Target(over=(("textbook-ws", 10),))

CASES = (
    Case(batch=4, rank=16, target=_B4R16, whole=True),
    Case(batch=4, rank=4, target=_B4R4, whole=True, blocks=tuple(BASELINES)),
    Case(batch=1, rank=16, target=_B1R16, whole=True),
    Case(batch=1, rank=16, bus_bits=1024, target=_B1R16, whole=True),
    Case(batch=1, rank=4, target=_B1R4, whole=True, blocks=tuple(BASELINES)),
    Case(batch=1, rank=4, bus_bits=1024, target=_B1R4, whole=True),
    Case(batch=4, rank=16, bits=16, target=Target(0.85)),
    Case(batch=4, rank=4, cache_base=True, target=_CACHED),
    Case(batch=4, rank=4, bus_bits=1024, cache_base=True, target=_CACHED),
    Case(batch=4, rank=4, bus_bits=1024, channels=2, cache_base=True, target=_CACHED, whole=True),
    Case(batch=4, rank=4, just_in_time=True),
)


def _workload(part: str) -> Workload:
    whole = load_workload("sd15-kv")
    if part == STEP:
        return whole
    layers = tuple(layer for layer in whole.layers if layer.name in _BLOCK_LAYERS)
    assert len(layers) == len(_BLOCK_LAYERS), "names of sd15-kv"
    return replace(whole, layers=layers, step=None)


def training(case: Case, part: str = STEP, *, blank: bool = True) -> TrainingState:
    """What a case trains, the whole step or a block; blank: without data."""
    return state(
        _workload(part),
        rank=case.rank,
        batch=case.batch,
        bits=case.bits,
        delayed=() if case.just_in_time else ("Y", "dX"),
        blank=blank,
    )


def compiled(
    case: Case, state: TrainingState, name: str = OURS, phase: str = PHASES[0]
) -> StepProgram:
    """The program of a case: `systolora`'s own, a phase of it, or a baseline's whole step.

    A baseline computes X.W^T anew even where ours has it in memory.
    """
    if name != OURS:
        return compile_baseline(name, state, case.config, base=IMAGE_BASE)
    return compile_training(
        state, case.config, phase, base=IMAGE_BASE, sums=False, cache_base=case.cache_base
    )
