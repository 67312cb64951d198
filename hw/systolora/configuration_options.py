"""The options that describe a configuration, as several commands have them."""

import argparse
from dataclasses import fields
from pathlib import Path

from .arguments import integer
from .config import PRESETS, AcceleratorConfig, from_toml, preset

__all__ = ["CONFIGURATION", "add_configuration", "configuration"]

#: What a command says of them in its description.
CONFIGURATION = """\
The configuration starts from --preset, from --config, or from the preset `default`; the options
for single fields replace what is there. `systolora info` shows the presets."""


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Adds the options, in a group of their own."""
    group = parser.add_argument_group("configuration")
    base = group.add_mutually_exclusive_group()
    base.add_argument("--preset", metavar="NAME", help=f"one of {', '.join(PRESETS)}")
    base.add_argument("--config", metavar="FILE", type=Path, help="TOML file with the fields")
    group.add_argument(
        "--rows", metavar="N", type=integer, help="rows of the array, a power of two, 4 to 256"
    )
    group.add_argument(
        "--cols", metavar="N", type=integer, help="columns of the array, a power of two, 4 to 256"
    )
    group.add_argument(
        "--segments",
        metavar="S",
        type=integer,
        help="places where a stationary tile enters: 1, 2, 4 or 8; it loads in rows/S cycles",
    )
    group.add_argument(
        "--int16",
        action=argparse.BooleanOptionalAction,
        help="int16 operands beside int8: 9-bit multipliers, 48-bit accumulators",
    )
    group.add_argument(
        "--fused-quantize",
        action=argparse.BooleanOptionalAction,
        help="a second rescale per column: a row operation may quantize the sum that it joins",
    )
    group.add_argument(
        "--acc-depth",
        metavar="N",
        type=integer,
        help="rows of the accumulator buffer, a power of two, at least 2 * rows",
    )
    for option, text in (
        ("bus-bits", "data width of an AXI4 master: 64, 128, 256, 512 or 1024"),
        ("channels", "AXI4 masters, 1, 2 or 4, together at most 2048 bits wide"),
        ("address-bits", "width of an address, 40 to 64"),
        ("act-bytes", "bytes of the activation buffer, a power of two"),
        ("wgt-bytes", "bytes of the stationary buffer, a power of two"),
        ("outstanding", "bursts that each memory engine may have under way, 2 to 256"),
    ):
        group.add_argument(f"--{option}", metavar="N", type=integer, help=text)


def configuration(args: argparse.Namespace) -> AcceleratorConfig:
    """The configuration that the options describe; raises ConfigError."""
    if args.config is not None:
        base = from_toml(args.config)
    else:
        base = preset("default" if args.preset is None else args.preset)
    return base.with_fields(**{f.name: getattr(args, f.name) for f in fields(AcceleratorConfig)})
