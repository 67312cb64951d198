"""The commands `systolora compile` and `systolora disasm`: their options."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import address
from .configuration_options import CONFIGURATION, add_configuration
from .training_options import add_schedule, add_training

__all__ = ["add_compile", "add_disasm"]

_DESCRIPTION = f"""\
Compiles the file that `run` would run to a program for the accelerator, with the memory that it
works on: one training step of all layers (or the passes of one layer, or a product), which may run
again and again.

{CONFIGURATION}"""

_EXAMPLE = """\
examples:
  systolora compile layer.safetensors -o step.slp --optimizer sgd --lr 0.1
  systolora compile layer.safetensors -o forward.slp --phase forward --preset tiny
  systolora disasm step.slp"""


def add_compile(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command `compile`."""
    compiler = commands.add_parser(
        "compile",
        help="compile a layer or training step to a program",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    compiler.add_argument("layer", metavar="LAYER.safetensors", type=Path, help="the layer")
    compiler.add_argument(
        "-o", "--output", metavar="STEP.slp", type=Path, required=True, help="the program file"
    )
    compiler.add_argument(
        "--phase",
        metavar="NAME",
        default="step",
        help="step (default), forward, backward or update; the phases of a step run one after the "
        "other on one image",
    )
    compiler.add_argument(
        "--base",
        metavar="ADDRESS",
        type=address,
        default=0,
        help="first address of the image, a multiple of 64, default 0",
    )
    add_schedule(compiler)
    compiler.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    add_training(compiler)
    add_configuration(compiler)
    return compiler


def add_disasm(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command `disasm`."""
    listing = commands.add_parser(
        "disasm",
        help="show a program as text",
        description="Prints the descriptors of a program file, one a line, and where its tensors "
        "lie.",
    )
    listing.add_argument("program", metavar="STEP.slp", type=Path)
    return listing
