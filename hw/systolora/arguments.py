"""Types of the command line's arguments: text to value, or an error that says the rule."""

import argparse
import re

__all__ = ["address", "clock_period", "count", "integer", "real", "seed"]


def integer(text: str) -> int:
    """Any integer."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer") from None


def count(text: str) -> int:
    """An option's number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 1 on")
    return value


def seed(text: str) -> int:
    """An integer from 0 on."""
    value = integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: must not be negative")
    return value


def real(text: str) -> float:
    """A number, whole or not."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number") from None


def address(text: str) -> int:
    """An address, in any of Python's notations."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: must be an address, as 0x1000") from None


def clock_period(text: str) -> float:
    """The period in ns of a frequency given as 500MHz or 1.2GHz."""
    match = re.fullmatch(r"([0-9.]+)\s*([MG])Hz", text)
    try:
        megahertz = float(match[1]) * {"M": 1, "G": 1000}[match[2]] if match else 0.0
    except ValueError:
        megahertz = 0.0
    if not 1 <= megahertz <= 100_000:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be a frequency from 1MHz to 100GHz, as 500MHz"
        )
    return 1000 / megahertz
