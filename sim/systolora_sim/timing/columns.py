"""The fields of a program's descriptors as columns, by kind."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from systolora.contract import DESCRIPTORS, Field, Kind

__all__ = ["Columns", "Rows", "columns"]

Column = NDArray[np.uint64]


class Rows:
    """Descriptors of one kind: `index` in the program, and a list per field, by its name."""

    def __init__(self, index: NDArray[np.int64], fields: dict[str, Column]) -> None:
        self.index: list[int] = index.tolist()
        self._fields = {name: column.tolist() for name, column in fields.items()}

    def __len__(self) -> int:
        return len(self.index)

    def __getattr__(self, name: str) -> list[int]:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(name) from None


Columns = dict[Kind, Rows]


def _extract(data: NDArray[np.uint8], table: Sequence[Field]) -> dict[str, Column]:
    fields, bit = {}, 0
    for field in table:
        first, shift = divmod(bit, 8)
        value = np.zeros(len(data), np.uint64)
        for number in range(-(-(shift + field.width) // 8)):
            part = data[:, first + number].astype(np.uint64)
            move = 8 * number - shift
            value |= part << np.uint64(move) if move >= 0 else part >> np.uint64(-move)
        fields[field.name] = value & np.uint64((1 << field.width) - 1)
        bit += field.width
    return fields


def columns(program: NDArray[np.uint8]) -> Columns:
    """Splits a program, uint8 [n, 64], into the fields of its descriptors."""
    kinds = program[:, 0] & 0xF
    out: Columns = {}
    for kind in Kind:
        (index,) = np.nonzero(kinds == kind)
        out[kind] = Rows(index, _extract(program[index], DESCRIPTORS[kind]))
    return out
