"""The demonstration: a training step of a real LoRA layer through the generated Verilog.

    python -m systolora_sim.demo --build-dir build --layer examples/sd15_attn2_to_k.safetensors

Generates the Verilog of a configuration (`default`, or --preset), builds a simulator, compiles a
step of SGD (working copies, forward, backward, update) to a program, runs it from memory through
that Verilog, and compares every tensor, scale and status bit with the golden model. Ends with a
short table; exit status 1 if anything differs, 2 on bad input.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from systolora.config import PRESETS, AcceleratorConfig
from systolora_sim.examples import SD15_FILE
from systolora_sim.layerfile import LayerFileError
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_training
from systolora_sim.products import step_macs
from systolora_sim.rtl_backend import (
    IMAGE_BASE,
    RtlOptions,
    mismatches,
    run_on_rtl,
    simulator,
)
from systolora_sim.runner import BUILD_DIR, RunError, ensure_verilog
from systolora_sim.statefile import Options, load_state
from systolora_sim.training import run_steps

__all__ = ["main"]

OPTIONS = Options(optimizer="sgd", lr=1e-3)


def _table(config: AcceleratorConfig, verilog: Any, run: Any, macs: int, length: int) -> str:
    """The short table."""
    manifest = verilog.manifest
    width = "int8 and int16" if config.int16 else "int8"
    counters = run.counters
    limit = macs / (config.rows * config.cols)
    rows = [
        ("cycles, start to interrupt", f"{run.cycles}"),
        ("share of the MAC limit", f"{limit / run.cycles:.1%}"),
        ("array busy", f"{counters['ARRAY_BUSY']}"),
        ("waiting for loads", f"{counters['STALL_LOAD']}"),
        ("waiting for the post-processor", f"{counters['STALL_POST']}"),
        ("waiting for stores", f"{counters['STALL_STORE']}"),
        ("bytes read, written", f"{counters['BYTES_READ']}, {counters['BYTES_WRITTEN']}"),
    ]
    return "\n".join(
        (
            f"configuration   {config.rows} x {config.cols}, {config.segments} load segments, "
            f"{width}, {config.bus_bits}-bit bus ({config.digest})",
            f"Verilog         {verilog.file}: {len(manifest['modules'])} modules, "
            f"{manifest['verilog']['lines']} lines, {manifest['multipliers']} multipliers",
            f"program         {length} descriptors of 64 bytes",
            "",
            *(f"{name:<32}{value:>20}" for name, value in rows),
        )
    )


def _run(
    config: AcceleratorConfig, layer_path: Path, build_dir: Path, stall_seed: int | None
) -> int:
    state = load_state(layer_path, OPTIONS)
    program = compile_training(state, config, base=IMAGE_BASE)

    started = time.monotonic()
    verilog = ensure_verilog(config, build_dir)
    seconds = time.monotonic() - started
    how = "is up to date" if verilog.reused else f"generated in {seconds:.1f} s"
    print(f"{verilog.file}: {how}", flush=True)

    built = simulator(config, build_dir, None)
    how = f"built in {built.seconds:.1f} s" if built.seconds else "is up to date"
    print(f"{built.directory}: {built.name} simulator {how}", flush=True)

    started = time.monotonic()
    run = run_on_rtl(program, 1, RtlOptions(stall_seed=stall_seed), build_dir)
    seconds = time.monotonic() - started
    wrong = mismatches(program, run, 1, run_steps(state, 1))
    print(f"\n{layer_path.name}: one step of SGD from memory, in {seconds:.1f} s\n")
    print(_table(config, verilog, run, step_macs(state), program.length))
    print(f"\n{'every bit as the golden model' if not wrong else 'NOT as the golden model'}")
    for message in wrong:
        print(message, file=sys.stderr)
    return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m systolora_sim.demo", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--layer", type=Path, default=Path("examples") / SD15_FILE)
    parser.add_argument("--build-dir", type=Path, default=BUILD_DIR)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="default")
    parser.add_argument("--stall-seed", type=int, help="random stalls on every channel of the bus")
    args = parser.parse_args(argv)
    try:
        return _run(PRESETS[args.preset], args.layer, args.build_dir, args.stall_seed)
    except (LayerFileError, RunError, CompileError) as error:
        print(f"systolora_sim.demo: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
