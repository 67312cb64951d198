"""What the array computes of a product: each block's sums and its low-rank term as EXECs."""

from collections.abc import Iterator
from typing import NamedTuple

from systolora.config import AcceleratorConfig
from systolora.contract import Buffer, Dataflow, Edge
from systolora_sim.blocks import Block, ceil_div
from systolora_sim.memory_map import Symbol
from systolora_sim.product_spec import Product
from systolora_sim.tiling import Deep, Stationary, Streamed, segments
from systolora_sim.work import Exec, Rows, Tile

__all__ = ["ArrayWork", "load_cycles"]


def load_cycles(config: AcceleratorConfig, edge: Edge) -> int:
    """Cycles that a stationary tile takes to enter by that edge."""
    return config.left_load if edge == Edge.LEFT else config.top_load


class _Weights(NamedTuple):
    """Operands of weight-stationary tiles."""

    streamed: Streamed
    stationary: Stationary

    @classmethod
    def fit(
        cls, config: AcceleratorConfig, streamed: Symbol, stationary: Symbol, edge: Edge, rows: int
    ) -> "_Weights":
        """For blocks of at most that many rows."""
        return cls(
            Streamed.fit(config, streamed, rows), Stationary.fit(config, stationary, edge)
        )  # fmt: skip


class _Outputs(NamedTuple):
    """Operands of output-stationary tiles."""

    left: Deep
    top: Deep

    @classmethod
    def fit(cls, config: AcceleratorConfig, left: Symbol, top: Symbol, rows: int) -> "_Outputs":
        """For blocks of at most that many rows."""
        return cls(
            Deep.fit(config, left, Buffer.ACT, rows), Deep.fit(config, top, Buffer.WGT, 1)
        )  # fmt: skip


class ArrayWork:
    """The EXECs of a product whose blocks have at most `rows` rows."""

    def __init__(
        self,
        config: AcceleratorConfig,
        product: Product,
        rows: int,
        stationary: Stationary | None = None,
    ) -> None:
        """stationary : how that operand is cut where others have a say in it."""
        self.config, self.product = config, product
        edge, term = product.edge, product.low_rank
        #: How operands are cut, of the main product and of the term, by dataflow.
        self.operands: dict[tuple[str, Dataflow], _Weights | _Outputs] = {}
        if product.cached is not None:
            assert term is not None
        elif edge is None:
            self.operands["main", Dataflow.OS] = _Outputs.fit(
                config, product.streamed, product.stationary, rows
            )
        else:
            self.operands["main", Dataflow.WS] = _Weights(
                Streamed.fit(config, product.streamed, rows),
                stationary or Stationary.fit(config, product.stationary, edge),
            )
        if term is not None and Dataflow.OS in term.dataflows:
            self.operands["term", Dataflow.OS] = _Outputs.fit(config, term.act, term.top, rows)
        if term is not None and Dataflow.WS in term.dataflows:
            assert term.rows is not None
            self.operands["term", Dataflow.WS] = _Weights.fit(
                config, term.rows, term.top, Edge.TOP, rows
            )

    def part(self, name: str, block: Block, cuts: int = 1) -> list[Exec]:
        """The tiles of a block's main product ("main") or low-rank term ("term").

        cuts : in how many EXECs, at least, if there are as many tiles
        """
        config, product, base = self.config, self.product, block.base
        term = product.low_rank
        dataflow = Dataflow.OS if product.edge is None else Dataflow.WS
        if name == "term":
            if term is None:
                return []
            dataflow = term.dataflows[block.index % len(term.dataflows)]
            base = block.term_base if product.paired else block.base
        elif product.cached is not None:
            return []
        operands = self.operands[name, dataflow]
        if isinstance(operands, _Weights):
            return list(self._weight_stationary(operands, block, base, cuts))
        # Each drains beside the tiles of the main product. Weight-stationary ones have to wait with
        # their load for it; a deep one drains as well while the next one is computed.
        edge, depth = product.edge, operands.left.symbol.rows
        apart = edge is None or depth < config.rows - load_cycles(config, edge)
        single = name == "term" and product.paired and apart
        return list(self._output_stationary(operands, block, base, single))

    def _weight_stationary(
        self, operands: _Weights, block: Block, base: int, cuts: int
    ) -> Iterator[Exec]:
        """Weight-stationary tiles of a block, with their sums from accumulator row `base` on."""
        config, (streamed, stationary) = self.config, operands
        wide = streamed.symbol.itemsize == 2, stationary.symbol.itemsize == 2
        depth, load = streamed.symbol.cols, load_cycles(config, stationary.edge)
        tiles = ceil_div(depth, config.rows)
        places = {tiles * n // cuts * config.rows for n in range(cuts)}
        for row in range(0, block.rows, streamed.rows):
            rows = min(streamed.rows, block.rows - row)
            for start, end in segments(depth, streamed.bounds(), stationary.bounds(), places):
                act = streamed.at(block.row0 + row, rows, start)
                wgt = stationary.at(block.col0, block.cols, start)
                repeat = ceil_div(end - start, config.rows)
                passes = (1 + wide[1]) * max(load, rows * (1 + wide[0]))
                yield Exec(
                    {
                        "dataflow": Dataflow.WS,
                        "edge": stationary.edge,
                        "act_wide": int(wide[0]),
                        "wgt_wide": int(wide[1]),
                        "accumulate": int(start > 0),
                        "length": rows,
                        "repeat": repeat,
                        "last": end - start - (repeat - 1) * config.rows,
                        "cols": block.cols,
                        "act_stride": act.stride,
                        "act_step": act.step,
                        "wgt_stride": wgt.stride,
                        "wgt_step": wgt.step,
                        "acc_base": base + row,
                    },
                    act.tile,
                    act.unit,
                    wgt.tile,
                    wgt.unit,
                    Rows(base + row, base + row + rows),
                    repeat * passes,
                )

    def _output_stationary(
        self, operands: _Outputs, block: Block, acc: int, single: bool
    ) -> Iterator[Exec]:
        """Output-stationary tiles of a block, with their sums from accumulator row `acc` on.

        single : each tile is an EXEC of its own
        """
        config, (left, top) = self.config, operands
        wide = left.symbol.itemsize == 2, top.symbol.itemsize == 2
        row = 0
        while row < block.rows:
            most = config.rows if single else block.rows
            rows = left.columns(block.row0 + row, min(most, block.rows - row))
            for start, end in segments(left.symbol.rows, left.bounds(), top.bounds()):
                act = left.at(block.row0 + row, rows, start)
                wgt = top.at(block.col0, block.cols, start)
                repeat, base = ceil_div(rows, config.rows), acc + row
                passes = (1 + wide[0]) * (1 + wide[1]) * max(end - start, config.rows)
                yield Exec(
                    {
                        "dataflow": Dataflow.OS,
                        "act_wide": int(wide[0]),
                        "wgt_wide": int(wide[1]),
                        "accumulate": int(start > 0),
                        "length": end - start,
                        "repeat": repeat,
                        "last": rows - (repeat - 1) * config.rows,
                        "cols": block.cols,
                        "act_stride": act.stride,
                        "act_step": act.step,
                        "wgt_stride": wgt.stride,
                        "acc_base": base,
                        "acc_step": config.rows,
                    },
                    act.tile,
                    act.unit,
                    wgt.tile,
                    wgt.unit,
                    Rows(base, base + rows),
                    repeat * passes,
                )
            row += rows

    def pieces(self, block: Block) -> list[list[Exec]]:
        """The EXECs of a block by the tile of streamed rows, in order.

        Those of its term are spread among them: an output-stationary tile of a term drains while
        the next weight-stationary ones run.
        """
        product = self.product
        term = self.part("term", block)
        main = self.part("main", block, max(1, len(term)))
        for items, label in ((term, product.term_label), (main, product.label)):
            for item in items:
                item.label = label
        if not main:
            return [term]
        pieces: list[list[Exec]] = []
        held: Tile | None = None
        done = 0
        for number, item in enumerate(main, 1):
            if item.act != held:
                pieces.append([])
            held, share = item.act, ceil_div(len(term) * number, len(main))
            pieces[-1] += [*term[done:share], item]
            done = share
        return pieces
