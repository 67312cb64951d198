"""The command `systolora train-demo`: its options, and what they start."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .arguments import count
from .config import ConfigError

__all__ = ["add_train_demo", "train_demo"]

_DESCRIPTION = """\
Trains a small diffusion model: a U-Net with cross-attention is pre-trained on real digits without
one class, then LoRA on K and V of its cross-attentions learns that class, in float32 and in the
accelerator's arithmetic (int8, int16 gradients, delayed scaling, stochastic rounding), with several
seeds. Writes loss curves, samples, distances with intervals, memory and one page, report.html.
docs/train-demo.md says how to read it, and what a toy cannot show.

Needs the extra: pip install 'systolora[train]'. No network: the images are in packages. A run that
was stopped goes on where it was, with the same command."""

_EXAMPLE = """\
examples:
  systolora train-demo --quick -o build/quick
      two minutes: 8 x 8 digits, three recipes, two seeds
  systolora train-demo --jobs 2 -o build/demo
      the whole run: 14 x 14 digits, all recipes, five seeds
  systolora train-demo --recipes fp32,int8 --seeds 10 -o build/seeds"""


def add_train_demo(commands: "argparse._SubParsersAction[Any]") -> argparse.ArgumentParser:
    """Adds the command."""
    demo = commands.add_parser(
        "train-demo",
        help="train a small diffusion model in the accelerator's arithmetic",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    demo.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="directory, made if missing"
    )
    demo.add_argument("--quick", action="store_true", help="a small run, for tests")
    demo.add_argument("--seeds", metavar="N", type=count, help="how many, default 5; quick: 2")
    demo.add_argument(
        "--recipes", metavar="NAMES", help="with commas between them; fp32 is always among them"
    )
    demo.add_argument(
        "--jobs",
        metavar="N",
        type=count,
        default=1,
        help="processes side by side, each on one core, default 1; the figures stay the same",
    )
    demo.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    return demo


def train_demo(args: argparse.Namespace, known: Iterable[str], demo: Callable[..., str]) -> str:
    """Checks the options and runs the demonstration; returns what the command prints.

    known : names of recipes; demo : `systolora_sim.train_demo.demo`. Raises ConfigError.
    """
    recipes = None
    if args.recipes is not None:
        recipes = tuple(dict.fromkeys(["fp32", *filter(None, args.recipes.split(","))]))
        for name in recipes:
            if name not in known:
                raise ConfigError(f"--recipes: {name!r}: must be among {', '.join(known)}")
    return demo(
        args.output, quick=args.quick, seeds=args.seeds, recipes=recipes, jobs=args.jobs,
        progress=not args.quiet,
    )  # fmt: skip
