"""The options of the command `systolora perf`."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .arguments import integer
from .config import ConfigError

__all__ = ["add_perf", "baselines", "settle"]

_DESCRIPTION = """\
Measures one training step of a workload's adapted layers (forward, backward, update): cycles, share
of the multipliers' limit, waits and bytes, product by product, from a model of the hardware's
timing or from the simulated Verilog. docs/perf.md says how to read the report; docs/workloads.md,
what a workload is.

The configuration starts from --preset, from --config, or from the preset `paper`; the options for
single fields replace what is there."""

_EXAMPLE = """\
examples:
  systolora perf --workload sd15-kv --rank 4 --batch 4
      K and V of Stable Diffusion 1.5 on 64 x 64 multipliers
  systolora perf --workload my.toml --preset default --memory 128bit@200 --html perf.html
  systolora perf --workload adapter.safetensors --sample-rows 512 --trace perf.json
      the layers of a file of adapters; the trace is for ui.perfetto.dev"""

#: Of memory, cycles.
LATENCY = 40
_MEMORY = re.compile(r"(?:([0-9]+)x)?([0-9]+)bit@([0-9]+)", re.ASCII)


def _memory(text: str) -> tuple[int, int, int]:
    """Channels, bits of each, latency."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be [CHANNELSx]BITSbit@CYCLES, as 512bit@40 or 2x1024bit@40"
        )
    return int(match[1] or 1), int(match[2]), int(match[3])


def _chart(text: str) -> tuple[str, Path]:
    kind, equals, file = text.partition("=")
    if not equals or not file:
        raise argparse.ArgumentTypeError(f"{text!r}: must be KIND=FILE, as roofline=roof.svg")
    return kind, Path(file)


def add_perf(commands: "argparse._SubParsersAction[Any]") -> "argparse.ArgumentParser":
    """Adds the command, without the options of a configuration."""
    perf = commands.add_parser(
        "perf",
        help="measure a training step of known models' layers",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    perf.add_argument(
        "--workload",
        metavar="NAME|FILE",
        required=True,
        help="a workload's name, a .toml file, or a .safetensors file of adapters",
    )
    numbers = (
        ("rank", "R", "of the adapters, default 4; a file of adapters has its own"),
        ("batch", "B", "samples, default 1"),
        ("limit-layers", "N", "only the first N layers; the report says so"),
        ("sample-rows", "N", "of a file of adapters: rows of a layer's input for each sample"),
        ("text-rows", "N", "of a file of adapters: rows of what reads text, default as the others"),
    )
    for option, metavar, words in numbers:
        perf.add_argument(f"--{option}", metavar=metavar, type=integer, help=words)
    perf.add_argument(
        "--bits", type=integer, choices=(8, 16), default=8, help="of operands, default 8"
    )
    perf.add_argument(
        "--optimizer",
        metavar="NAME",
        choices=("sgd", "momentum", "lion"),
        default="sgd",
        help="sgd (default), momentum or lion",
    )
    perf.add_argument(
        "--memory",
        metavar="[Nx]BITSbit@CYCLES",
        type=_memory,
        help="width of the bus and latency of memory, and how many such channels it has, default "
        "one; default 40 cycles, and the width of the configuration (paper: 512bit@40)",
    )
    perf.add_argument(
        "--backend",
        choices=("model", "rtl"),
        default="model",
        help="model (default): a model of the cycles; rtl: the simulated Verilog, with random data "
        "and every result compared with the golden model",
    )
    perf.add_argument(
        "--baselines",
        metavar="NAMES",
        help="other arrays for comparison: all, none, or names with commas between them "
        "(docs/baselines.md); default all with the model, none with rtl",
    )
    perf.add_argument(
        "--schedule",
        metavar="NAME",
        default="auto",
        help="auto (default), ws, os, mixed, or best: the fewest cycles that a search by the model "
        "finds; only of systolora itself",
    )
    perf.add_argument(
        "--phase",
        metavar="NAME",
        default="step",
        help="step (default): one program; phases: also as three, forward, backward and update",
    )
    perf.add_argument(
        "--cache-base",
        action="store_true",
        help="load the sums of X.W^T instead of computing them; all inputs must be constant",
    )
    perf.add_argument(
        "--full",
        action="store_true",
        help="time every layer, not a few of many equal ones; so it is with rtl anyway",
    )
    perf.add_argument(
        "--just-in-time",
        action="store_true",
        help="quantize Y and dX with their maxima of this step, not of the step before",
    )
    for option, words in (
        ("json", "the report"),
        ("html", "the report as one page, with charts and a timeline"),
        ("trace", "the timeline, for ui.perfetto.dev or chrome://tracing"),
    ):
        perf.add_argument(f"--{option}", metavar="FILE", type=Path, help=f"also write {words}")
    perf.add_argument(
        "--chart",
        metavar="KIND=FILE",
        type=_chart,
        action="append",
        default=[],
        help="also write a chart, .svg or .png: utilization, cycles or roofline; may be repeated",
    )
    perf.add_argument(
        "--build-dir",
        metavar="DIR",
        type=Path,
        default=Path("build"),
        help="rtl: where Verilog and built simulators are kept and found again",
    )
    perf.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    return perf


def baselines(given: str | None, backend: str, known: Iterable[str]) -> tuple[str, ...]:
    """The names that --baselines stands for."""
    if given is None:
        given = "all" if backend == "model" else "none"
    if given in ("all", "none"):
        return tuple(known) if given == "all" else ()
    return tuple(dict.fromkeys(given.split(",")))


def settle(args: argparse.Namespace) -> int:
    """Gives the arguments this command's defaults of a configuration; returns memory's latency.

    Raises ConfigError where --memory contradicts --bus-bits or --channels.
    """
    if args.preset is None and args.config is None:
        args.preset = "paper"
    if args.memory is None:
        return LATENCY
    channels, bits, latency = args.memory
    for name, value in (("bus_bits", bits), ("channels", channels)):
        given = getattr(args, name)
        if given not in (None, value):
            raise ConfigError(f"{name} = {given}: --memory says {value}")
        setattr(args, name, value)
    return latency
