"""The command `systolora run`: its options."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import integer, seed
from .backend_options import add_backend, add_build_dir
from .configuration_options import CONFIGURATION, add_configuration
from .training_options import add_schedule, add_training

__all__ = ["add_run"]

_DESCRIPTION = f"""\
Reads a LoRA layer (safetensors: x, weight, lora_A, lora_B, dy, gain) and writes the results of its
forward and backward pass, or trains one or many layers for some steps. A file without an adapter is
a frozen layer; one with a, b and metadata `product` (nt, nn, tn) is a bare product. The golden
model is the definition, in NumPy; machine executes the Core's commands without timing; rtl
generates the Verilog, builds a simulator and drives it. All write the same bytes, whatever the
configuration.

{CONFIGURATION}"""

_EXAMPLE = """\
examples:
  systolora run layer.safetensors -o out.safetensors --backend golden
  systolora run layer.safetensors -o out.safetensors --backend rtl --preset tiny --json cycles.json
      the backend rtl needs the extra: pip install 'systolora[sim]', g++, make and perl
  systolora run layer.safetensors -o state.safetensors --optimizer lion --lr 1e-4 --steps 3
  systolora run layer.safetensors -o state.safetensors --resume state.safetensors --steps 7
      ten steps in all; the second run goes on exactly where the first one ended"""


def _window(text: str) -> tuple[int, int] | str:
    if text == "mismatch":
        return text
    first, colon, limit = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first), int(limit)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be A:B, two cycles, or mismatch"
        ) from None


def add_run(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command."""
    run = commands.add_parser(
        "run",
        help="run a LoRA layer, forward and backward",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    run.add_argument("layer", metavar="LAYER.safetensors", type=Path, help="the layer")
    run.add_argument(
        "-o",
        "--output",
        metavar="OUT.safetensors",
        type=Path,
        required=True,
        help="where the results go; written complete or not at all",
    )
    add_backend(run)
    add_schedule(run)
    add_training(run)
    run.add_argument(
        "--json", metavar="FILE", type=Path, help="also write what ran, and its cycles and counters"
    )
    run.add_argument(
        "--stall-seed",
        metavar="N",
        type=seed,
        help="rtl: stall every channel of the buses at random, with this seed; the results stay "
        "the same",
    )
    run.add_argument(
        "--memory-latency",
        metavar="CYCLES",
        type=integer,
        help="rtl: from a read's address to its data, and from a write to its answer, default 40",
    )
    run.add_argument(
        "--check",
        action="store_true",
        help="rtl: compare with the golden model, and name the first element that differs",
    )
    run.add_argument(
        "--trace",
        metavar="FILE",
        type=Path,
        help="rtl: write a waveform, FILE.fst or FILE.vcd (a slower simulator, built once more)",
    )
    run.add_argument(
        "--trace-window",
        metavar="A:B|mismatch",
        type=_window,
        help="rtl: only of the cycles A to B-1, counted from the reset; or the word mismatch: only "
        "if --check finds one, of the cycles around it",
    )
    add_build_dir(run)
    add_configuration(run)
    return run
