"""Micro-batches: a batch goes through a step in pieces of its rows, with the bits of the whole.

Rows of x, dy and of what has a row for each of them are cut in place; tensors that memory holds
transposed lie piece by piece (`memory_map`), since a piece may begin anywhere. Sums of gradients
add up in memory. All pieces must quantize alike, by records of earlier steps.
"""

from collections.abc import Mapping
from typing import NamedTuple

from systolora_sim.layer import Layer
from systolora_sim.limits import CompileError
from systolora_sim.memory_map import Symbol, cut
from systolora_sim.training import TrainingState

__all__ = ["WHOLE", "Piece", "check_pieces", "piece_symbols", "pieces_of"]

#: Tensors with a row for each row of x, and those with a column for each in memory.
_BY_ROWS = ("x", "dy", "Y", "Y_acc", "Y_base", "dX", "dX.sums", "H.turned", "dH.turned")
_BY_COLS = ("H", "H.sums", "dH", "dH.sums")


class Piece(NamedTuple):
    """Rows of a batch: number and of how many; the first row and how many there are."""

    number: int
    of: int
    first: int
    rows: int

    @property
    def last(self) -> bool:
        return self.number == self.of - 1


#: A batch in one piece, whatever its rows.
WHOLE = Piece(0, 1, 0, 0)


def pieces_of(batch: int, count: int) -> list[Piece]:
    """The pieces of a batch of that many rows."""
    return [Piece(n, count, *bounds) for n, bounds in enumerate(cut(batch, count))]


def piece_symbols(symbols: Mapping[str, Symbol], prefix: str, piece: Piece) -> dict[str, Symbol]:
    """A layer's tensors that are cut, by name without its prefix: what a piece has of them."""
    held = {}
    for name in _BY_ROWS:
        if prefix + name in symbols:
            held[name] = symbols[prefix + name].lines(piece.first, piece.rows)
    for name in _BY_COLS:
        if prefix + name in symbols:
            held[name] = symbols[prefix + name].piece(piece.number)
    return held


def _check_layer(layer: Layer, count: int) -> None:
    if count > layer.batch:
        raise CompileError(f"micro-batches = {count}: must be at most N = {layer.batch}")
    for name in layer.results:
        why = ""
        if name not in layer.delayed:
            why = "is quantized just in time"
        elif not layer.amax.get(name, 0):
            why = "has no record of an earlier step"
        if why:
            raise CompileError(
                f"micro-batches = {count}: {name} {why}: must be delayed with {name}.amax not 0, "
                "so that all pieces have one scale"
            )


def check_pieces(state: TrainingState, count: int) -> None:
    """Refuses a number of micro-batches with which a step would not be that of the whole batch.

    Raises
    ------
    CompileError
        If there are fewer than 1 or more than rows of a layer; or, with more than one, if a
        quantized tensor of a layer is not delayed with a record that is not zero.
    """
    if count < 1:
        raise CompileError(f"micro-batches = {count}: must be at least 1")
    for name, each in state.layers.items() if count > 1 else ():
        try:
            _check_layer(each.layer, count)
        except CompileError as error:
            raise CompileError(f"layer {name}: {error}" if name else str(error)) from None
