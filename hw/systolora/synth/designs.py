"""What is synthesized: the whole, its parts, and the array with parts left out."""

from collections.abc import Callable
from dataclasses import dataclass

from amaranth.lib import wiring

from systolora.config import AcceleratorConfig
from systolora.emit import emit_component
from systolora.synth.baselines.tied import ABILITIES, TiedPE
from systolora.synth.tools import SynthError

__all__ = ["UNITS", "Design", "generate", "unit_names"]


@dataclass(frozen=True)
class Design:
    """A unit of a configuration as Verilog, and how many PEs are in it.

    flat : what is constant between its modules counts: they are mapped as one
    """

    unit: str
    top: str
    verilog: str
    pes: int
    flat: bool = False


def _array(config: AcceleratorConfig) -> dict[str, int]:
    return {
        "rows": config.rows,
        "cols": config.cols,
        "segments": config.segments,
        "operand_bits": config.operand_bits,
    }


def _pe(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.pe import PE

    return PE(operand_bits=config.operand_bits, psum_bits=config.psum_bits)


def _systolic_array(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.array import SystolicArray

    return SystolicArray(**_array(config), psum_bits=config.psum_bits)


def _edge(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.edge import ArrayEdge

    return ArrayEdge(**_array(config))


def _post_lane(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.post_lane import PostLane

    return PostLane(acc_bits=config.acc_bits, fused=config.fused_quantize)


def _scale_unit(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.scale_unit import ScaleUnit

    return ScaleUnit()


def _core(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.core import Core

    return Core(config)


def _top(config: AcceleratorConfig) -> wiring.Component:
    from systolora.rtl.top import Top

    return Top(config)


def _os_pe(config: AcceleratorConfig) -> wiring.Component:
    from systolora.synth.baselines.integer import OutputStationaryPE

    return OutputStationaryPE(operand_bits=config.operand_bits, psum_bits=config.psum_bits)


def _multiplier(config: AcceleratorConfig) -> wiring.Component:
    from systolora.synth.baselines.integer import Multiplier

    return Multiplier(operand_bits=config.operand_bits)


def _tied(unit: str) -> Callable[[AcceleratorConfig], wiring.Component]:
    _, ports, control = ABILITIES[unit]

    def make(config: AcceleratorConfig) -> wiring.Component:
        bits = {"operand_bits": config.operand_bits, "psum_bits": config.psum_bits}
        return TiedPE(**bits, ports=ports, control=control)

    return make


#: By name: what it is in words, how it is made, and whether it holds the R x C PEs.
UNITS: dict[str, tuple[str, Callable[[AcceleratorConfig], wiring.Component]]] = {
    "pe": ("one processing element", _pe),
    "array": ("the R x C PEs", _systolic_array),
    "edge": ("skew and windows of the array's operands", _edge),
    "post_lane": ("one column of the post-processor", _post_lane),
    "scale_unit": ("arithmetic on Scales", _scale_unit),
    "core": ("array, accumulators and post-processor behind streams", _core),
    "top": ("the accelerator", _top),
    "multiplier": ("a PE's multiplier alone, for its share", _multiplier),
    "os_pe": ("for comparison: a plain output-stationary PE", _os_pe),
    **{name: (f"for comparison: {words}", _tied(name)) for name, (words, *_) in ABILITIES.items()},
}
#: A PE alone, ours or one to compare with.
_PES = {"pe", "os_pe", *ABILITIES}
_WITH_PES = {"array", "core", "top"}


def unit_names(given: str) -> tuple[str, ...]:
    """The units that a list with commas names, or all.

    Raises
    ------
    SynthError
        If one is not known.
    """
    names = tuple(UNITS) if given == "all" else tuple(dict.fromkeys(given.split(",")))
    for name in names:
        if name not in UNITS:
            raise SynthError(f"unit = {name!r}: must be all or of {', '.join(UNITS)}")
    return names


def generate(config: AcceleratorConfig, unit: str) -> Design:
    """The Verilog of a unit; its top module is `systolora_<unit>`."""
    top = f"systolora_{unit}"
    emitted = emit_component(UNITS[unit][1](config), top)
    pes = config.rows * config.cols if unit in _WITH_PES else int(unit in _PES)
    return Design(unit, top, emitted.verilog, pes, flat=unit in ABILITIES)
