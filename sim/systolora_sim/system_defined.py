"""Proves that a program uses nothing that was never written."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora.contract import AMAX_REGISTERS, SCALE_REGISTERS, Mode, Opcode, Source
from systolora_sim.machine import MachineError
from systolora_sim.system_checks import Fields

__all__ = ["Defined", "UndefinedError"]

_SETS_SCALE = (
    Opcode.SCALE_SET, Opcode.SCALE_MUL, Opcode.SCALE_DIV, Opcode.SCALE_AMAX, Opcode.SCALE_LOAD,
)  # fmt: skip
_SETS_AMAX = (Opcode.AMAX_SET, Opcode.AMAX_LOAD)


class UndefinedError(MachineError):
    """A program whose result depends on something that was never written."""


class Defined:
    """What has been written, byte by byte and register by register.

    act, wgt : bytes of the buffers; acc [D, C] : accumulators whose value depends on defined
    operands only; bias [C], scales, amaxes : registers of the Core.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.act = np.zeros(config.act_bytes, bool)
        self.wgt = np.zeros(config.wgt_bytes, bool)
        self.acc = np.zeros((config.acc_depth, config.cols), bool)
        self.bias = np.zeros(config.cols, bool)
        self.scales = np.zeros(SCALE_REGISTERS, bool)
        self.amaxes = np.zeros(AMAX_REGISTERS, bool)

    def check_post(self, index: int, f: Fields) -> None:
        """Checks what a POST uses, notes what it defines.

        Raises
        ------
        UndefinedError
            Naming the descriptor and what was never written.
        """
        opcode, a, b, dst = f["opcode"], f["src_a"], f["src_b"], f["dst"]
        scales, amaxes = self.scales, self.amaxes

        def need(marks: NDArray[np.bool_], what: str, where: int = 0) -> None:
            if not marks.all():
                first = np.argwhere(~np.atleast_1d(marks))[0].tolist()
                first[0] += where
                place = ", column ".join(str(n) for n in first)
                raise UndefinedError(
                    f"descriptor {index} (POST) uses {what} {place}, which is undefined"
                )

        if opcode in (Opcode.SCALE_MUL, Opcode.SCALE_DIV):
            need(scales[a : a + 1], "scale", a)
            need(scales[b : b + 1], "scale", b)
        elif opcode == Opcode.SCALE_READ:
            need(scales[a : a + 1], "scale", a)
        elif opcode in (Opcode.SCALE_AMAX, Opcode.AMAX_READ, Opcode.AMAX_SELECT):
            need(amaxes[a : a + 1], "maximum", a)
        elif opcode == Opcode.COLLECT:
            need(amaxes[dst : dst + 1], "maximum", dst)
        elif opcode == Opcode.ROWS:
            self._check_rows(f, need)
        if opcode in _SETS_SCALE:
            scales[dst] = True
        elif opcode in _SETS_AMAX:
            amaxes[dst] = True
        elif opcode == Opcode.AMAX_SELECT:
            # Which of the two it is depends on the value: the second may be missing while the
            # first is not 0, but then the result must not be used, which is the stricter rule
            need(amaxes[b : b + 1], "maximum", b)
            amaxes[dst] = True
        elif opcode == Opcode.BIAS:
            self.bias[:] = np.arange(self.bias.size) < f["cols"]

    def _check_rows(self, f: Fields, need: Callable[..., None]) -> None:
        rows, cols, src, dst = f["rows"], f["cols"], f["src_base"], f["dst_base"]
        if f["source"] == Source.BUFFER:
            need(self.acc[src : src + rows, :cols], "accumulator row", src)
        if f["add"] and not f["add_stream"]:
            need(self.acc[dst : dst + rows, :cols], "accumulator row", dst)
        if f["bias"]:
            need(self.bias[:cols], "bias column")
        if f["mode"] != Mode.RAW:
            need(self.scales[f["src_a"] : f["src_a"] + 1], "scale", f["src_a"])
        if f["quantize"]:
            need(self.scales[f["src_b"] : f["src_b"] + 1], "scale", f["src_b"])
        if f["write"]:
            self.acc[dst : dst + rows] = True  # columns from cols on are written as 0
