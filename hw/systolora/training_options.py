"""The options of training and of schedules, which `run` and `compile` share."""

import argparse
from pathlib import Path

from .arguments import integer, real

__all__ = ["add_schedule", "add_training", "trains"]


def add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the options of whole training steps."""
    group = parser.add_argument_group(
        "training",
        "Any of these, or a file with masters, an optimizer or several layers, runs whole steps: "
        "forward, backward and update. What the file says wins.",
    )
    group.add_argument(
        "--optimizer", metavar="NAME", choices=("sgd", "momentum", "lion"),
        help="sgd, momentum or lion",
    )  # fmt: skip
    group.add_argument("--lr", metavar="X", type=real, help="learning rate")
    group.add_argument("--weight-decay", metavar="X", type=real, help="decoupled, default 0")
    group.add_argument("--steps", metavar="N", type=integer, help="how many steps, default 1")
    group.add_argument(
        "--micro-batches",
        metavar="M",
        type=integer,
        help="take each batch through the passes in M pieces, default 1; the results stay the same",
    )
    group.add_argument(
        "--cache-base",
        action="store_true",
        help="compute the sums of X.W^T once, before the first step, and keep them: x must not "
        "change from step to step; the results stay the same",
    )
    group.add_argument(
        "--resume",
        metavar="STATE.safetensors",
        type=Path,
        help="go on from an earlier output of the same layers",
    )
    group.add_argument(
        "--rescale",
        action="store_true",
        help="first double the scales of masters and momenta that saturated in earlier steps",
    )


def add_schedule(parser: argparse.ArgumentParser) -> None:
    """Adds the option --schedule."""
    parser.add_argument(
        "--schedule",
        metavar="NAME",
        default="auto",
        help="dataflow of products that have a choice, the low-rank terms and gradients: auto "
        "(default), ws, os or mixed; of training also best, the fewest cycles that a search by the "
        "cycle model finds; the results stay the same",
    )


def trains(args: argparse.Namespace) -> bool:
    """Whether an option says that whole steps are meant."""
    named = ("optimizer", "lr", "weight_decay", "steps", "micro_batches", "resume")
    return args.rescale or any(getattr(args, name) is not None for name in named)
