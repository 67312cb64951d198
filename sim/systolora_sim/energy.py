"""Energy of a training step: an account of what happens, times what each of it takes.

No measurement: energies of gates are calculated from simulated activity before layout, those of
memories are quoted. docs/results/energy.md has the assumptions with their sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from systolora.config import AcceleratorConfig
from systolora_sim.step_traffic import Traffic

__all__ = ["DRAMS", "Memories", "Step", "skew_registers", "step_energy"]

#: pJ per byte, and whose figure it is.
DRAMS: dict[str, tuple[float, str]] = {
    "LPDDR4": (64.0, "8 pJ/bit: Accelergy's CACTI plug-in, cacti_wrapper.py"),
    "HBM2": (31.2, "3.9 pJ/bit: the same"),
    "DDR4": (162.5, "1300 pJ per 64 bits: Jouppi et al., ISCA 2021, table 2"),
}


@dataclass(frozen=True)
class Memories:
    """pJ per byte of SRAM read and written, of DRAM either way."""

    read: float
    write: float
    dram: float


@dataclass(frozen=True)
class Step:
    """A training step on an array.

    Members
    -------
    array : name in the report of energies of MACs: systolora, int8, bf16, fp32
    cycles, bytes_read, bytes_written : of the step with operands of one byte
    traffic : of the same program
    config : of the same program
    element : bytes of an operand
    word : bytes of an accumulator
    """

    array: str
    cycles: int
    bytes_read: int
    bytes_written: int
    traffic: Traffic
    config: AcceleratorConfig
    element: int
    word: int


def skew_registers(config: AcceleratorConfig) -> tuple[int, int]:
    """Registers of an ArrayEdge's chains: of the streamed and of the stationary operand."""
    rows, cols, segments = config.rows, config.cols, config.segments
    act = sum(row + 2 for row in range(rows))
    wgt = 0
    for segment in range(segments):
        for lane in range(max(rows, cols)):
            top = 1 + segment * (rows // segments) + lane if lane < cols else 0
            left = 1 + segment * (cols // segments) + lane if lane < rows else 0
            wgt += max(top, left)
    return act * config.operand_bits, wgt * config.operand_bits


def _array(step: Step, modes: Mapping[str, Any]) -> tuple[float, float]:
    """pJ of the PEs: while they multiply; while they load, wait and drain."""
    traffic, config = step.traffic, step.config
    pes = config.rows * config.cols

    def pj(mode: str) -> float:
        return modes[mode]["pj_total"]

    if step.array == "systolora":
        # Loads are beside the beats, and in their energy
        busy = traffic.ws_beats * pj("ws") + traffic.os_beats * pj("os")
        waiting = step.cycles - traffic.ws_beats - traffic.os_beats
        return pes * busy, pes * waiting * pj("idle")
    loads = traffic.ws_tiles * config.rows
    waiting = step.cycles - traffic.ws_beats - loads
    return pes * traffic.ws_beats * pj("ws"), pes * (loads * pj("load") + waiting * pj("idle"))


def _edge(step: Step, modes: Mapping[str, Any]) -> float:
    """pJ of the registers that skew operands."""
    traffic, config = step.traffic, step.config
    busy, idle = modes["busy"]["pj_total"], modes["idle"]["pj_total"]
    beats = traffic.ws_beats + traffic.os_beats
    if step.array == "systolora":
        act, wgt = skew_registers(config)
        loading = min(step.cycles, traffic.os_beats + traffic.ws_tiles * config.top_load)
    else:
        # One register a row and PE, whatever the adder takes; the operand is loaded without skew
        act, wgt, loading = 8 * step.element * config.rows * (config.rows + 1) // 2, 0, 0
    return sum(
        registers * (count * busy + (step.cycles - count) * idle)
        for registers, count in ((act, beats), (wgt, loading))
    )


def step_energy(step: Step, report: Mapping[str, Any], memories: Memories) -> dict[str, float]:
    """uJ of a step: multiplying PEs, other cycles of the PEs, edge, SRAM, DRAM, and all.

    `report` is what `systolora.synth.mac_energy.measure` returns. Operands of more than one byte
    take so many times the bytes in buffers and memory; 32-bit streams (sums, masters) stay.
    """
    arrays, traffic = report["arrays"], step.traffic
    busy, waiting = _array(step, arrays[step.array]["modes"])
    edge = _edge(step, arrays["skew"]["modes"])
    sram = memories.read * (
        step.element * (traffic.act_read + traffic.wgt_read) + step.word * traffic.acc_read
    ) + memories.write * (step.element * traffic.buffer_write + step.word * traffic.acc_write)
    more = step.element - 1
    moved = step.bytes_read + step.bytes_written
    moved += more * (traffic.narrow_read + traffic.narrow_write)
    parts = {
        "multiplying": busy,
        "other cycles": waiting,
        "edge": edge,
        "SRAM": sram,
        "DRAM": memories.dram * moved,
    }
    found = {name: round(value * 1e-6, 3) for name, value in parts.items()}
    return {**found, "all": round(sum(parts.values()) * 1e-6, 3)}
