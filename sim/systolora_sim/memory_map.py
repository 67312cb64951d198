"""Where the tensors of a program lie in memory.

An image begins with what is only read; the part that programs write follows. Every tensor starts at
a multiple of 64 bytes, and so does each of its rows, whatever the bus up to 512 bits: one image
serves all these configurations (but for the identity matrix of some schedules, which is as large as
the array). For 1024 bits it is 128 bytes.
Scales are int32 [2] = [m, e], maxima and status words int64 [1], as in files.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolora.config import AcceleratorConfig
from systolora_sim.numerics import Scale

__all__ = [
    "ALIGNMENT", "Area", "MemoryMap", "Part", "Symbol", "View", "alignment", "cut", "round_up",
]  # fmt: skip

Array = NDArray[Any]

#: Bytes: the widest bus but one.
ALIGNMENT = 64


def alignment(config: AcceleratorConfig) -> int:
    """Bytes at a multiple of which every row must begin."""
    return max(ALIGNMENT, config.beat_bytes)


def round_up(value: int, unit: int) -> int:
    """The next multiple of `unit`, which may be the value itself."""
    return -(-value // unit) * unit


def cut(total: int, pieces: int) -> list[tuple[int, int]]:
    """(first, count) of nearly equal pieces, the larger ones first."""
    least, more = divmod(total, pieces)
    bounds = [each * least + min(each, more) for each in range(pieces + 1)]
    return [(first, end - first) for first, end in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class Symbol:
    """One tensor in memory.

    Parameters
    ----------
    name : as the files name it, with the layer's prefix
    address : of element (0, 0), bytes
    rows, cols : its shape as it lies in memory, row-major
    dtype : "int8", "int16", "int32" or "int64"; little-endian
    stride : bytes from a row to the next
    transposed : memory holds the transpose of the tensor of that name
    vector : the tensor of that name is one row, its only axis
    pieces : its columns are cut into so many (`cut`), each a tensor of `rows` rows of its own
    piece_stride : bytes from a piece to the next, where there are several
    """

    name: str
    address: int
    rows: int
    cols: int
    dtype: str
    stride: int
    transposed: bool = False
    vector: bool = False
    pieces: int = 1
    piece_stride: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return np.dtype(self.dtype).itemsize

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return 8 * self.itemsize

    @property
    def size(self) -> int:
        """Bytes from its first to its last, the ends of its rows included."""
        return (self.pieces - 1) * self.piece_stride + self.rows * self.stride

    def at(self, row: int, col: int = 0) -> int:
        """Address of an element."""
        start = self.address
        if self.pieces > 1:
            number = max(
                n for n, (first, _) in enumerate(cut(self.cols, self.pieces)) if first <= col
            )
            start += number * self.piece_stride
            col -= cut(self.cols, self.pieces)[number][0]
        return start + row * self.stride + col * self.itemsize

    def piece(self, number: int) -> "Symbol":
        """One piece, a tensor of its own."""
        _, cols = cut(self.cols, self.pieces)[number]
        address = self.address + number * self.piece_stride
        return replace(self, address=address, cols=cols, pieces=1, piece_stride=0)

    def lines(self, row0: int, rows: int) -> "Symbol":
        """Some of its rows, a tensor of its own."""
        return replace(self, address=self.at(row0), rows=rows)

    def area(self, row0: int = 0, rows: int = 0, col0: int = 0, cols: int = 0) -> "Area":
        """A part of it, if it is one piece; rows or cols of 0: all the others."""
        return Area(self, row0, rows or self.rows - row0, col0, cols or self.cols - col0)

    def _rows(self, image: NDArray[np.uint8], base: int) -> NDArray[np.uint8]:
        start = self.address - base
        if start < 0 or start + self.size > image.size:
            raise ValueError(
                f"{self.name}: bytes {self.address:#x}..{self.address + self.size:#x} are outside "
                f"the image {base:#x}..{base + image.size:#x}"
            )
        return image[start : start + self.size].reshape(self.rows, self.stride)

    def read(self, image: NDArray[np.uint8], base: int) -> Array:
        """The tensor as files hold it, from an image that begins at address `base`."""
        code = np.dtype(self.dtype).newbyteorder("<")
        parts = []
        for number in range(self.pieces):
            piece = self.piece(number)
            held = piece._rows(image, base)[:, : piece.cols * self.itemsize]
            parts.append(np.ascontiguousarray(held).view(code).astype(self.dtype))
        tensor = np.concatenate(parts, axis=1)
        if self.vector:
            return tensor[0]
        return np.ascontiguousarray(tensor.T) if self.transposed else tensor

    def write(self, image: NDArray[np.uint8], base: int, tensor: Array) -> None:
        """Puts a tensor, as files hold it, into the image."""
        held = np.atleast_2d(tensor)
        held = held.T if self.transposed else held
        if held.shape != (self.rows, self.cols):
            raise ValueError(f"{self.name}: shape {held.shape}: must be {(self.rows, self.cols)}")
        code = np.dtype(self.dtype).newbyteorder("<")
        for number, (first, count) in enumerate(cut(self.cols, self.pieces)):
            data = np.ascontiguousarray(held[:, first : first + count].astype(code))
            rows = self.piece(number)._rows(image, base)
            rows[:, : count * self.itemsize] = data.view(np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for JSON; those of pieces only where there are several."""
        content = asdict(self)
        if self.pieces == 1:
            del content["pieces"], content["piece_stride"]
        return content


@dataclass(frozen=True, kw_only=True)
class Part(Symbol):
    """Rows of a larger tensor, `whole` from row `first` on, under a name of their own.

    What is written by the one name is read by the other: areas are the larger tensor's, so that
    whoever orders accesses sees one tensor.
    """

    whole: Symbol
    first: int

    def area(self, row0: int = 0, rows: int = 0, col0: int = 0, cols: int = 0) -> "Area":
        return self.whole.area(self.first + row0, rows or self.rows - row0, col0, cols)


@dataclass(frozen=True)
class Area:
    """A rectangle of a tensor, in its rows and columns as they lie in memory."""

    symbol: Symbol
    row0: int
    rows: int
    col0: int
    cols: int

    @property
    def address(self) -> int:
        """Address of its first element."""
        return self.symbol.at(self.row0, self.col0)

    @property
    def view(self) -> "View":
        """The area row by row."""
        return View(self, self.address, self.symbol.stride)

    @property
    def row_bytes(self) -> int:
        """Bytes of one of its rows."""
        return self.cols * self.symbol.itemsize


@dataclass(frozen=True)
class View:
    """Memory that a row operation walks through in its own way.

    area : what it touches; address : of the first element; stride : bytes from a row to the next.
    """

    area: Area
    address: int
    stride: int


class MemoryMap:
    """Lays out tensors, first all that is read only, and makes the image.

    `add` in any order, then `place`; symbols exist from then on.
    """

    def __init__(self, base: int, unit: int = ALIGNMENT) -> None:
        """unit : bytes of which every row begins at a multiple."""
        if base % unit:
            raise ValueError(f"base = {base:#x}: must be a multiple of {unit}")
        self.base, self.unit = base, unit
        self.symbols: dict[str, Symbol] = {}
        self._wanted: dict[str, dict[str, Any]] = {}
        self._aliases: dict[str, str] = {}
        self._stacks: dict[str, tuple[str, ...]] = {}
        self.write_base = self.end = base

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        *,
        data: Array | None = None,
        writable: bool = False,
        transposed: bool = False,
        lines: bool = False,
        pieces: int = 1,
    ) -> None:
        """A tensor of that shape, [n] or [rows, cols] as files hold it; without data it is zero.

        lines : its rows begin at multiples of as many elements; pieces : of its columns in memory.
        """
        if self.has(name):
            raise ValueError(f"{name}: is there already")
        vector = len(shape) == 1
        rows, cols = (1, *shape) if vector else shape
        if transposed:
            rows, cols = cols, rows
        self._wanted[name] = {
            "rows": rows,
            "cols": cols,
            "dtype": np.dtype(dtype).name,
            "transposed": transposed,
            "vector": vector,
            "data": data,
            "writable": writable,
            "unit": self.unit * (np.dtype(dtype).itemsize if lines else 1),
            "pieces": pieces,
        }

    def stack(self, names: Sequence[str]) -> None:
        """Puts tensors of one row length one behind the other, or so each of their pieces."""
        for name in names:
            self._stacks[name] = tuple(names)

    def has(self, name: str) -> bool:
        """Whether that name has a tensor."""
        return name in self._wanted or name in self._aliases

    def alias(self, name: str, other: str) -> None:
        """A second name of a tensor that is only read."""
        self._aliases[name] = other

    def add_scale(self, name: str, scale: Scale | None = None, *, writable: bool = False) -> None:
        """`<name>.scale`."""
        data = None if scale is None else np.array(scale, np.int32)
        self.add(f"{name}.scale", (2,), np.int32, data=data, writable=writable)

    def add_word(self, name: str, value: int = 0) -> None:
        """A 64-bit word that programs write."""
        self.add(name, (1,), np.int64, data=np.array([value], np.int64), writable=True)

    def _place(self, names: tuple[str, ...], address: int) -> int:
        """Places tensors one behind the other and returns where they end."""
        placed = []
        for name in names:
            wanted = self._wanted[name]
            itemsize, pieces = np.dtype(wanted["dtype"]).itemsize, wanted["pieces"]
            longest = -(-wanted["cols"] // pieces)
            fields = ("rows", "cols", "dtype", "transposed", "vector", "pieces")
            placed.append(
                Symbol(
                    name,
                    address,
                    stride=round_up(longest * itemsize, wanted["unit"]),
                    **{key: wanted[key] for key in fields},
                )
            )
            address += placed[-1].rows * placed[-1].stride
        step = address - placed[0].address
        for symbol in placed:
            assert (symbol.stride, symbol.pieces) == (placed[0].stride, placed[0].pieces)
            piece_stride = step if symbol.pieces > 1 else 0
            self.symbols[symbol.name] = replace(symbol, piece_stride=piece_stride)
        return placed[0].address + step * placed[0].pieces

    def place(self) -> NDArray[np.uint8]:
        """Gives every tensor its address and returns the image, uint8, from `base` to `end`."""
        address = self.base
        for writable in (False, True):
            if writable:
                self.write_base = address
            for name, wanted in self._wanted.items():
                if wanted["writable"] != writable:
                    continue
                if name not in self.symbols:
                    address = self._place(self._stacks.get(name, (name,)), address)
        self.end = address
        image = np.zeros(self.end - self.base, np.uint8)
        for name, wanted in self._wanted.items():
            if wanted["data"] is not None:
                self.symbols[name].write(image, self.base, wanted["data"])
        for name, other in self._aliases.items():
            self.symbols[name] = self.symbols[other]
        return image
