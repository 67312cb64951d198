"""The command `systolora generate`: its options, and what they start."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import clock_period
from .config import ConfigError
from .configuration_options import CONFIGURATION, add_configuration, configuration

__all__ = ["add_generate", "generate"]

_DESCRIPTION = f"""\
Writes systolora_top.v, systolora_axi.v (the same with AMBA's active-low reset), systolora_regs.h,
systolora.rdl and manifest.json (configuration, ports, modules, hashes); --flows adds what other
flows want. The same configuration always gives the same bytes.

{CONFIGURATION}"""

_EXAMPLE = """\
examples:
  systolora generate -o build/default
      the default configuration: 16 x 16 PEs, int8 and int16
  systolora generate --preset ecp5 --acc-depth 512 -o build/ecp5
      the preset for a small FPGA with a deeper accumulator buffer
  systolora generate --preset ecp5 --flows --clock 80MHz -o build/ecp5
      also systolora.core (FuseSoC), .xml (IP-XACT), .sdc, and an example system that runs
  systolora generate --config my.toml -o build/mine
      my.toml holds lines such as `preset = "ecp5"` and `rows = 16`"""


def add_generate(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command."""
    generate = commands.add_parser(
        "generate",
        help="write the Verilog of a configuration",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    generate.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="directory, made if missing"
    )
    generate.add_argument(
        "--unit",
        choices=("top", "core"),
        default="top",
        help="the whole accelerator (default), or its Core alone, behind streams",
    )
    generate.add_argument(
        "--memories",
        choices=("inferred", "black-box"),
        default="inferred",
        help="inferred: arrays, which synthesis makes memories of (default); black-box: instances "
        "for SRAM macros, with a model of them",
    )
    generate.add_argument(
        "--flows",
        action="store_true",
        help="also a FuseSoC core file, IP-XACT, constraints (SDC), and an example system",
    )
    generate.add_argument(
        "--clock",
        metavar="FREQUENCY",
        type=clock_period,
        help="of the constraints, as 80MHz; default 100MHz",
    )
    add_configuration(generate)
    return generate


def generate(args: argparse.Namespace) -> None:
    """Runs the command."""
    if args.flows and args.unit != "top":
        raise ConfigError("--flows: only with --unit top")
    if args.clock is not None and not args.flows:
        raise ConfigError("--clock: only with --flows")
    config = configuration(args)
    from .emit import MANIFEST, emit  # here: the other commands do not need amaranth

    emitted = emit(
        config,
        args.output,
        args.unit,
        memories=args.memories,
        flows=args.flows,
        period_ns=args.clock,
    )
    counts = f"{len(emitted.modules)} modules, {emitted.lines} lines"
    print(f"{args.output / emitted.name}.v: {counts}, {emitted.multipliers} multipliers")
    print(f"{args.output / MANIFEST}: configuration {config.digest}")
