"""Energy of a PE and cycle, and of a MAC, in each mode of ours and of the textbook's arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from systolora.config import PRESETS
from systolora.emit import emit_component
from systolora.synth.activity import simulate
from systolora.synth.asic import map_to_cells, time_cells
from systolora.synth.designs import Design, generate
from systolora.synth.layer_data import (
    DATA,
    LayerData,
    float_bits,
    float_values,
    planes,
    quantized,
)
from systolora.synth.liberty import Library, read_library
from systolora.synth.netlist import read_netlist
from systolora.synth.power import power
from systolora.synth.power_liberty import internal_factor
from systolora.synth.saif import saif_text
from systolora.synth.streams import (
    Stream,
    idle,
    output_stationary,
    textbook,
    textbook_load,
    weight_stationary,
)
from systolora.synth.tools import SynthError, Tool, find_sta, find_yosys
from systolora.synth.workspace import Progress, Workspace

__all__ = ["ARRAYS", "VERSION", "EnergyOptions", "measure", "text"]

VERSION = 1
#: Rows of X that pass a WS tile while 4 beats load: 16 of 308 in the array of the preset `paper`.
_LENGTH = 77
#: Beats of an OS tile.
_DEPTH = 20
#: Cycles that count when nothing is done, and stages of the chain of registers.
_IDLE, _STAGES = 24, 8
ARRAYS = ("systolora", "int8", "bf16", "fp32", "skew")


@dataclass(frozen=True, kw_only=True)
class EnergyOptions:
    """What to calculate.

    liberty : files of one technology; period_ns : of the clock; size : rows and columns, 4 or 8;
    arrays : of ARRAYS; modes : of those, by name, none for all; unit_delay : count glitches, see
    activity
    """

    liberty: Sequence[Path]
    period_ns: float = 1.0
    size: int = 4
    arrays: Sequence[str] = ARRAYS
    modes: Sequence[str] = ()
    unit_delay: bool = False
    seed: int = 0
    yosys: str = "auto"
    build_dir: Path = Path("build")
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.size not in (4, 8):
            raise SynthError(f"size = {self.size}: must be 4 or 8")
        for name in self.arrays:
            if name not in ARRAYS:
                raise SynthError(f"array = {name!r}: must be of {', '.join(ARRAYS)}")


#: A mode: streams whose sum is one MAC (int16: four passes), and whether it multiplies.
Mode = tuple[str, Callable[[], list[Stream]], bool]


def _ours(size: int, segments: int, data: LayerData) -> list[Mode]:
    def operands(count: int, length: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
        a, b = data.tiles(count, length, size, size)
        return quantized(a, bits), quantized(b, bits)

    def stationary() -> list[Stream]:
        return [weight_stationary(*operands(3, _LENGTH, 8), segments)]

    def output() -> list[Stream]:
        a, _ = data.tiles(4, size, _DEPTH, size)
        _, b = data.tiles(4, size, _DEPTH, size)
        return [output_stationary(quantized(a, 8), quantized(b, 8), segments)]

    def wide() -> list[Stream]:
        a, b = operands(3, _LENGTH, 16)
        return [weight_stationary(x, y, segments) for y in planes(b) for x in planes(a)]

    def zeros() -> list[Stream]:
        a, b = operands(3, _LENGTH, 8)
        return [weight_stationary(0 * a, 0 * b, segments)]

    def nothing() -> list[Stream]:
        return [idle(size, size, segments, operands(1, 4, 8)[1][:, 0], _IDLE)]

    return [
        ("ws", stationary, True),
        ("os", output, True),
        ("ws int16", wide, True),
        ("zeros", zeros, False),
        ("idle", nothing, False),
    ]


def _textbook(name: str, size: int, data: LayerData) -> list[Mode]:
    def pattern(values: np.ndarray) -> np.ndarray:
        return quantized(values, 8) if name == "int8" else float_bits(values, name)

    def stream(idle_cycles: int) -> list[Stream]:
        x, y = data.tiles(1, 2 * _LENGTH, size, size)
        a, w = pattern(x[:, 0]), pattern(y[:, 0])
        if name == "int8":
            expected = a @ w
        else:
            total = np.zeros((len(a), a.shape[1], size), np.float32)
            for row in range(size):
                product = float_values(a[:, :, row, None], name) * float_values(
                    w[:, None, row, :], name
                )
                total = total + product
            expected = total.view(np.uint32).astype(np.int64)
        return [textbook(a, w, name, expected, idle_cycles)]

    def load() -> list[Stream]:
        _, y = data.tiles(8, 1, size, size)
        return [textbook_load(pattern(y), name)]

    return [
        ("ws", lambda: stream(0), True),
        ("load", load, False),
        ("idle", lambda: stream(_IDLE), False),
    ]


def _skew(data: LayerData) -> list[Mode]:
    a = quantized(data.tiles(1, _LENGTH, 1, 1)[0][:, 0, :, 0], 8).T

    def run(values: np.ndarray) -> list[Stream]:
        return [Stream({"a_0": values}, _STAGES + 1)]

    return [("busy", lambda: run(a), False), ("idle", lambda: run(0 * a), False)]


def _design(name: str, size: int) -> tuple[Design, int]:
    """A unit, and what its energy is divided by: PEs, or registers."""
    if name == "systolora":
        config = PRESETS["paper"].with_fields(rows=size, cols=size, segments=max(1, size // 4))
        return generate(config, "array"), size * size
    top = f"systolora_{name}_{size}"
    if name == "skew":
        from systolora.synth.baselines.skew import Skew

        component, count = Skew(width=8, depth=_STAGES), 8 * _STAGES
    else:
        from systolora.synth.baselines.textbook import TextbookArray

        component, count = TextbookArray(rows=size, cols=size, arithmetic=name), size * size
    return Design(name, top, emit_component(component, top).verilog, count), count


def measure(options: EnergyOptions) -> dict[str, Any]:
    """The report: of each array and mode, pJ per PE and cycle (`skew`: per register), pJ per MAC.

    Results of the simulated gates are compared with what they must be.

    Raises
    ------
    SynthError
        If a tool is missing or fails, a library lacks something, or gates compute something else.
    """
    library = read_library(options.liberty)
    yosys, sta = find_yosys(options.yosys), find_sta()
    progress = Progress(0, options.quiet)
    workspace = Workspace(options.build_dir / "synth", progress)
    data = LayerData(options.seed)
    modes = {
        name: _ours(options.size, max(1, options.size // 4), data)
        if name == "systolora"
        else _skew(data)
        if name == "skew"
        else _textbook(name, options.size, data)
        for name in options.arrays
    }
    if options.modes:
        modes = {n: [m for m in each if m[0] in options.modes] for n, each in modes.items()}
    progress.total = 1 + sum(3 + len(each) for each in modes.values())
    if any(mode == "ws int16" for each in modes.values() for mode, _, _ in each):
        progress.total += 3  # four passes
    try:
        factor = internal_factor(sta, workspace)
        report: dict[str, Any] = {
            "version": VERSION,
            "libraries": list(library.names),
            "tools": {tool.name: tool.description for tool in (yosys, sta)},
            "internal_factor": factor,
            "period_ns": options.period_ns,
            "size": options.size,
            "unit_delay": options.unit_delay,
            "data": DATA,
            "seed": options.seed,
            "arrays": {},
        }
        for name in options.arrays:
            report["arrays"][name] = _measured(
                name, modes[name], options, library, yosys, sta, factor, workspace
            )
    finally:
        progress.close()
    return report


def _measured(
    name: str,
    modes: list[Mode],
    options: EnergyOptions,
    library: Library,
    yosys: Tool,
    sta: Tool,
    factor: float,
    workspace: Workspace,
) -> dict[str, Any]:
    design, count = _design(name, options.size)
    entry, place = map_to_cells(design, library, options.period_ns, yosys, workspace)
    timing = time_cells(
        design, library, options.period_ns, place, entry["cells"], factor, sta, workspace
    )
    netlist = read_netlist(place, design.top, library, yosys, workspace)
    found: dict[str, Any] = {
        "area": round(entry["area"] / count, 3),
        "fmax_mhz": timing["fmax_mhz"],
        "modes": {},
    }
    for mode, streams, multiplies in modes:
        total = {"total": 0.0, "registers": 0.0, "logic": 0.0, "leakage": 0.0}
        passes = streams()
        for stream in passes:
            activity = simulate(
                netlist, library, stream.inputs, skip=stream.skip, unit_delay=options.unit_delay
            )
            if wrong := stream.check(activity.outputs):
                raise SynthError(f"{name}, {mode}: {wrong} results of the gates are wrong")
            watts = power(
                netlist, library, place, saif_text(netlist, activity), options.period_ns,
                factor, sta, workspace,
            )  # fmt: skip
            scale = 1e3 * options.period_ns / count  # W to pJ per PE and cycle
            for part in ("total", "registers", "logic"):
                total[part] += scale * watts[part]["total_w"]
            total["leakage"] += scale * watts["total"]["leakage_w"]
        figures = {f"pj_{part}": round(pj / len(passes), 6) for part, pj in total.items()}
        if multiplies:
            figures["pj_per_mac"] = round(total["total"], 6)
        found["modes"][mode] = figures
    return found


def text(report: dict[str, Any]) -> str:
    """The report as a table."""
    megahertz = 1e3 / report["period_ns"]
    lines = [
        f"{', '.join(report['libraries'])}; {megahertz:g} MHz, {report['size']} x {report['size']},"
        f" {'unit' if report['unit_delay'] else 'zero'} delay",
        f"{'array':<10} {'um2/PE':>9} {'MHz':>6} {'mode':<9} {'pJ/PE/cycle':>12} {'registers':>9} "
        f"{'logic':>9} {'leakage':>9} {'pJ/MAC':>9}",
    ]
    for name, array in report["arrays"].items():
        for mode, figures in array["modes"].items():
            lines.append(
                f"{name:<10} {array['area']:>9.1f} {array['fmax_mhz']:>6.0f} {mode:<9} "
                f"{figures['pj_total']:>12.4f} {figures['pj_registers']:>9.4f} "
                f"{figures['pj_logic']:>9.4f} {figures['pj_leakage']:>9.5f} "
                + (f"{figures['pj_per_mac']:>9.4f}" if "pj_per_mac" in figures else f"{'':>9}")
            )
    return "\n".join(lines) + "\n"
