"""The command `systolora replay`: its options."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import count
from .backend_options import add_backend, add_build_dir

__all__ = ["add_replay"]

_DESCRIPTION = """\
Runs recorded layer calls again and compares every bit with what was recorded. A record is a layer
file, NAME.safetensors, with its results beside it, NAME.result.safetensors, as the PyTorch wrapper
writes them (quantize_lora(model, recipe, record=DIR)). One line for each call; exit status 1 at the
first difference, with the tensor, the index and both values."""

_EXAMPLE = """\
examples:
  systolora replay records --backend machine
  systolora replay records/00000007-blocks.0.to_k.safetensors --backend rtl --preset tiny"""


def add_replay(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command, without the options of a configuration."""
    replay = commands.add_parser(
        "replay",
        help="run recorded layer calls again and compare every bit",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    replay.add_argument("record", metavar="RECORD", type=Path, help="a record, or a directory")
    add_backend(replay)
    replay.add_argument("--limit", metavar="N", type=count, help="only the first N records")
    add_build_dir(replay)
    return replay
