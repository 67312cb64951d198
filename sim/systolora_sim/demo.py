"""The demonstration: a real LoRA layer through the generated Verilog, compared bit by bit.

    python -m systolora_sim.demo --build-dir build --layer examples/sd15_attn2_to_k.safetensors

Generates the Verilog of a configuration (`default`, or --preset), builds a simulator, drives the
layer forward and backward through it, and compares every tensor, scale and status bit with the
golden model. Ends with a short table; exit status 1 if anything differs, 2 on bad input.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from systolora.config import PRESETS, AcceleratorConfig
from systolora_sim.compiler import CompileError, ProductRecord
from systolora_sim.examples import SD15_FILE
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import LayerFileError, LayerResult, load_layer
from systolora_sim.runner import (
    BUILD_DIR,
    RunError,
    Verilog,
    ensure_verilog,
    layer_on_rtl,
    simulator,
)

__all__ = ["differences", "main"]

#: Results that a product makes.
_MAKES = {"Y": ("Y", "Y_acc")}


def differences(result: LayerResult, golden: LayerResult) -> dict[str, str]:
    """What is different, by tensor (or `sticky`, `amax`): empty where all bits are the same."""
    found = {}
    for name in golden.tensors.keys() | result.tensors.keys():
        if name not in golden.tensors or name not in result.tensors:
            found[name] = "is missing"
            continue
        have, want = result.tensors[name], golden.tensors[name]
        if have.dtype != want.dtype or have.shape != want.shape:
            found[name] = f"{have.dtype} {have.shape}, not {want.dtype} {want.shape}"
        elif not np.array_equal(have, want):
            where = tuple(int(i) for i in np.argwhere(have != want)[0])
            count = int((have != want).sum())
            found[name] = (
                f"{count} elements differ, first at {where}: {have[where]}, not {want[where]}"
            )
        elif result.scales.get(name) != golden.scales.get(name):
            found[name] = f"scale {result.scales.get(name)}, not {golden.scales.get(name)}"
    for name in ("amax", "sticky"):
        if getattr(result, name) != getattr(golden, name):
            found[name] = f"{getattr(result, name)}, not {getattr(golden, name)}"
    return found


def _table(
    config: AcceleratorConfig,
    verilog: Verilog,
    records: list[ProductRecord],
    wrong: dict[str, str],
    seconds: dict[str, float],
) -> str:
    """The short table."""
    manifest = verilog.manifest
    width = "int8 and int16" if config.int16 else "int8"
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    lines = [
        f"configuration   {config.rows} x {config.cols}, {config.segments} load segments, {width}, "
        f"{config.acc_depth} accumulator rows ({config.digest})",
        f"Verilog         {verilog.file}: {len(manifest['modules'])} modules, "
        f"{manifest['verilog']['lines']} lines, {manifest['multipliers']} multipliers",
        f"seconds         {spent}",
        "",
        f"{'product':<8} {'M x K x N':<15} {'dataflow, edge':<15} {'cycles':>8} "
        f"{'of MAC limit':>13}  bit-exact",
    ]
    for record in records:
        made = _MAKES.get(record.name, (record.name,))
        share = record.share(config.rows * config.cols)
        lines.append(
            f"{record.name:<8} {f'{record.m} x {record.k} x {record.n}':<15} "
            f"{f'{record.dataflow}, {record.edge}':<15} {record.cycles:>8} "
            f"{'' if share is None else f'{share:.1%}':>13}  "
            f"{'NO' if any(name in wrong for name in made) else 'yes'}"
        )
    cycles = sum(record.cycles or 0 for record in records)
    macs = sum(record.macs for record in records)
    share = f"{macs / (config.rows * config.cols) / cycles:.1%}" if cycles else ""
    lines.append(
        f"{'all':<8} {'':<15} {'':<15} {cycles:>8} {share:>13}  {'NO' if wrong else 'yes'}"
    )
    return "\n".join(lines)


def _run(
    config: AcceleratorConfig, layer_path: Path, build_dir: Path, stall_seed: int | None
) -> int:
    layer = load_layer(layer_path)
    seconds: dict[str, float] = {}

    started = time.monotonic()
    verilog = ensure_verilog(config, build_dir, "core")
    seconds["generate"] = time.monotonic() - started
    how = "is up to date" if verilog.reused else f"generated in {seconds['generate']:.1f} s"
    print(f"{verilog.file}: {how}", flush=True)

    started = time.monotonic()
    built = simulator(verilog.file, config, build_dir)
    seconds["build"] = time.monotonic() - started
    how = f"built in {built.seconds:.1f} s" if built.seconds else "is up to date"
    print(f"{built.directory}: {built.name} simulator {how}", flush=True)

    started = time.monotonic()
    result, records = layer_on_rtl(layer, config, verilog.file, build_dir, stall_seed=stall_seed)
    seconds["simulate"] = time.monotonic() - started
    started = time.monotonic()
    golden = run_layer(layer)
    seconds["golden"] = time.monotonic() - started
    wrong = differences(result, golden)
    print(f"\n{layer_path.name}, forward and backward, Verilog against the golden model\n")
    print(_table(config, verilog, records, wrong, seconds))
    for name, text in sorted(wrong.items()):
        print(f"{name}: {text}", file=sys.stderr)
    return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m systolora_sim.demo", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--layer", type=Path, default=Path("examples") / SD15_FILE)
    parser.add_argument("--build-dir", type=Path, default=BUILD_DIR)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="default")
    parser.add_argument("--stall-seed", type=int, help="random stalls on every stream")
    args = parser.parse_args(argv)
    try:
        return _run(PRESETS[args.preset], args.layer, args.build_dir, args.stall_seed)
    except (LayerFileError, RunError, CompileError) as error:
        print(f"systolora_sim.demo: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
