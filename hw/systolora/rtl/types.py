"""Layouts of values that more than one block of the hardware passes on."""

from amaranth.hdl import signed
from amaranth.lib import data

__all__ = ["ScaleLayout"]


class ScaleLayout(data.Struct):
    """A Scale, value m * 2**(e - 15), of numerics section 1.

    `m` is at least 2**15; zero is exactly (0, 0).
    """

    m: 16
    e: signed(10)
