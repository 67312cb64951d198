"""The command `systolora adapter`, with its short forms: its options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arguments import real

__all__ = ["add_adapter"]

_DESCRIPTION = """\
Converts the adapters of a safetensors file, of one layer (lora_A, lora_B) or of several
(<layer>/lora_A, ...), or with the names of PEFT, diffusers or kohya's scripts: `import` chooses the
scales of the int16 masters that training updates, `export` gives float32 back, with the names that
were imported unless --format says otherwise."""

_EXAMPLE = """\
examples:
  systolora adapter import lora.safetensors -o masters.safetensors
  systolora run layer.safetensors --resume masters.safetensors --optimizer sgd --lr 0.1 -o state
  systolora adapter export state -o trained.safetensors
  systolora adapter export lora.safetensors -o peft.safetensors --format peft
      the same adapter with other names"""


def add_adapter(
    commands: "argparse._SubParsersAction[Any]", function: Callable[[argparse.Namespace], None]
) -> None:
    """Adds the command, and its actions as commands; all call `function`."""
    adapter = commands.add_parser(
        "adapter",
        help="convert adapters: float32 to int16 masters and back",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    actions = adapter.add_subparsers(dest="action", metavar="ACTION", required=True)
    for parent in (actions, commands):  # `systolora import` is short for `systolora adapter import`
        for action in _add_conversions(parent):
            action.set_defaults(function=function)


def _add_conversions(
    actions: "argparse._SubParsersAction[Any]",
) -> list[argparse.ArgumentParser]:
    made = []
    for name, text in (
        ("import", "int16 masters with their scales, for `run --resume`"),
        ("export", "lora_A and lora_B for others, as float32 or as integers with scales"),
    ):
        action = actions.add_parser(name, help=text, description=f"Writes {text}.")
        action.add_argument("adapter", metavar="IN.safetensors", type=Path)
        action.add_argument(
            "-o", "--output", metavar="OUT.safetensors", type=Path, required=True
        )  # fmt: skip
        action.add_argument(
            "--alpha", metavar="X", type=real, help="alpha of layers whose file does not tell it"
        )
        made.append(action)
    imports, exports = made
    imports.set_defaults(form="int16", format="plain")
    exports.add_argument(
        "--format",
        choices=("plain", "peft", "diffusers", "kohya"),
        help="whose names the tensors have (default: those of the file that was imported)",
    )
    exports.add_argument(
        "--form",
        choices=("float32", "int16"),
        default="float32",
        help="float32 (default), or the int16 masters with their scales",
    )
    return made
