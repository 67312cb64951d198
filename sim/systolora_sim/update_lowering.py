"""Working copies and updates of masters as row operations (numerics sections 4 and 6).

"->" writes the accumulators, "out" goes to memory, [n] rounds with the random words of stream n, W
is in bank 0, U in bank 1:

==============  =====================================================================
every rule      w -> W
weight decay    W - w * (lr wd) [1] -> W
sgd             W - G * (lr S_g / S_w) [0] out
momentum        v * beta [2] -> U;  U + G * (S_g / S_v) [3] -> U, out
                W - U * (lr S_v / S_w) [0] out
lion            v * b1 -> U;  U + G * (b1c S_g / S_v) -> U
                W - sign(U) * (lr / S_w) [0] out
                v * b2 [2] -> U;  U + G * (b2c S_g / S_v) [3] out
==============  =====================================================================

Operands that are used twice are streamed twice: one row a cycle either way, and no row operation
reads and writes one bank in the same cycle, which would halve its rate. A row operation covers the
rows of one block of C columns, since a random word's row and column are the logical tensor's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from systolora.contract import COL_STEP, ROW_STEP, Limit, Mode, Opcode, Status
from systolora_sim import numerics as nx
from systolora_sim.memory_map import ALIGNMENT, Area, Symbol, View
from systolora_sim.post_builder import MAX_ROWS, PostBuilder
from systolora_sim.product_lowering import STEP

__all__ = ["UpdateRule", "blocks", "lower_update", "lower_working_copy", "parts"]

#: Streams of random words (numerics section 6).
STREAM_W, STREAM_DECAY, STREAM_V, STREAM_G = range(4)

#: A rescaled term that becomes the start of a sum: 32 bits, and no saturation of it is an event.
_TERM: dict[str, int] = {"mode": Mode.ACC, "limit": Limit.ACC32, "status": Status.NONE}
#: The sums that have a range of their own.
_SUM: dict[str, int] = {"mode": Mode.ACC, "limit": Limit.INT16, "add": 1}
_INTO_W: dict[str, int] = _SUM | {"negate": 1, "status": Status.MASTER}
_INTO_V: dict[str, int] = _SUM | {"status": Status.MOMENTUM}


def blocks(symbol: Symbol, cols: int, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(row0, rows, col0, cols) of parts of a tensor."""
    for col in range(0, symbol.cols, cols):
        for row in range(0, symbol.rows, rows):
            yield row, min(rows, symbol.rows - row), col, min(cols, symbol.cols - col)


def parts(
    master: Symbol, copy: Symbol, cols: int
) -> Iterator[tuple[int, int, Area | View, Area | View]]:
    """(rows, cols, from, to) of row operations that go through two tensors of one shape.

    The few rows of an adapter are long. Where the two have strides of as many elements, each is a
    list of lines, and a row operation takes the same columns of all lines, whatever rows they are
    of; the ends of the rows are zero in both.
    """
    line = max(ALIGNMENT, cols)
    width = master.stride // master.itemsize
    if width != copy.stride // copy.itemsize or width % line:
        for block in blocks(master, cols, MAX_ROWS):
            yield block[1], block[3], master.area(*block), copy.area(*block)
        return

    def view(symbol: Symbol, first: int, col: int) -> View:
        start = symbol.address + (first * line + col) * symbol.itemsize
        return View(symbol.area(), start, line * symbol.itemsize)

    lines = master.rows * width // line
    for col in range(0, line, cols):
        for first in range(0, lines, MAX_ROWS):
            count = min(MAX_ROWS, lines - first)
            yield count, cols, view(master, first, col), view(copy, first, col)


def lower_working_copy(builder: PostBuilder, master: Symbol, copy: Symbol) -> None:
    """Appends what `golden.working_copy` computes: one pass for the maximum, one to quantize.

    The Scale `<master>.scale` is given, `<copy>.scale` is stored.
    """
    operations = list(parts(master, copy, builder.config.cols))
    builder.post(Opcode.AMAX_SET, dst=STEP, imm=0)
    for rows, cols, source, _ in operations:
        builder.rows(rows, cols, source, mode=Mode.RAW, amax=1)
    builder.post(Opcode.COLLECT, dst=STEP)
    builder.ratio("#ratio", copy.bits, STEP)
    builder.div(f"{copy.name}.scale", f"{master.name}.scale", "#ratio")
    builder.store(f"{copy.name}.scale")
    ratio = builder.scale("#ratio")
    mode = Mode.INT8 if copy.itemsize == 1 else Mode.INT16
    for rows, cols, source, out in operations:
        builder.rows(rows, cols, source, out, mode=mode, src_a=ratio)
    builder.drop("#ratio")


@dataclass(frozen=True)
class UpdateRule:
    """Which rule, and whether weight decay comes first; its Scales are in memory by name."""

    kind: str
    decays: bool


class _Update:
    def __init__(
        self,
        builder: PostBuilder,
        rule: UpdateRule,
        master: Symbol,
        momentum: Symbol | None,
        gradient: Symbol,
        tensor_id: int,
    ) -> None:
        self.builder, self.rule, self.tensor_id = builder, rule, tensor_id
        self.master, self.momentum, self.gradient = master, momentum, gradient
        self._temporary: list[str] = []

    def _factor(self, name: str) -> str:
        self._temporary.append(name)
        return name

    def factors(self) -> None:
        """Computes the factors in the order that section 6 writes."""
        builder, kind = self.builder, self.rule.kind
        master, gradient = f"{self.master.name}.scale", f"{self.gradient.name}.scale"
        if self.rule.decays:
            builder.mul(self._factor("#decay"), "lr.scale", "wd.scale")
        into_w = self._factor("#w")
        if kind == "sgd":
            builder.mul(into_w, "lr.scale", gradient)
            builder.div(into_w, into_w, master)
            return
        assert self.momentum is not None
        momentum, into_v = f"{self.momentum.name}.scale", self._factor("#v")
        builder.div(into_v, gradient, momentum)
        if kind == "momentum":
            builder.mul(into_w, "lr.scale", momentum)
            builder.div(into_w, into_w, master)
            return
        builder.mul(self._factor("#c"), "b1c.scale", into_v)
        builder.mul(into_v, "b2c.scale", into_v)
        builder.div(into_w, "lr.scale", master)

    def words(self, row: int, col: int, stream: int) -> dict[str, int]:
        """Fields of a stochastic row operation (numerics section 7)."""
        transposed = self.master.transposed
        steps = (COL_STEP, ROW_STEP) if transposed else (ROW_STEP, COL_STEP)
        word = nx.seed_word(0, 0, self.tensor_id, stream) + row * steps[0] + col * steps[1]
        return {"stochastic": 1, "transposed": int(transposed), "word0": word & 0xFFFFFFFF}

    def run(self) -> None:
        self.factors()
        builder, kind = self.builder, self.rule.kind
        bank = builder.config.bank_depth
        limit = min(bank, MAX_ROWS)
        turn = 0
        for row, rows, col, cols in blocks(self.master, builder.config.cols, limit):
            if turn + rows > bank:
                turn = 0
            bank_w, bank_u = turn, bank + turn
            turn += rows

            def part(symbol: Symbol) -> Area:
                return symbol.area(row, rows, col, cols)  # noqa: B023  # called in this turn only

            def operate(
                source: Symbol | int,
                base: int,
                fields: dict[str, int],
                factor: str = "",
                stream: int = -1,
                out: Symbol | None = None,
            ) -> None:
                words = self.words(row, col, stream) if stream >= 0 else {}  # noqa: B023
                given = {"src_a": builder.scale(factor)} if factor else {}
                builder.rows(
                    rows,  # noqa: B023
                    cols,  # noqa: B023
                    part(source) if isinstance(source, Symbol) else source,
                    None if out is None else part(out),
                    dst_base=base,
                    **fields,
                    **given,
                    **words,
                )

            w, g, v = self.master, self.gradient, self.momentum
            write = {"write": 1}
            operate(w, bank_w, {"mode": Mode.RAW} | write)
            if self.rule.decays:
                operate(w, bank_w, _INTO_W | write, "#decay", STREAM_DECAY)
            if kind == "sgd":
                operate(g, bank_w, _INTO_W, "#w", STREAM_W, w)
                continue
            assert v is not None
            if kind == "momentum":
                operate(v, bank_u, _TERM | write, "beta.scale", STREAM_V)
                operate(g, bank_u, _INTO_V | write, "#v", STREAM_G, v)
                operate(bank_u, bank_w, _INTO_W, "#w", STREAM_W, w)
                continue
            # c, which only its sign leaves: saturated to 32 bits it keeps it
            operate(v, bank_u, _TERM | write, "b1.scale")
            operate(g, bank_u, _TERM | write | {"add": 1}, "#c")
            operate(bank_u, bank_w, _INTO_W | {"sign": 1}, "#w", STREAM_W, w)
            operate(v, bank_u, _TERM | write, "b2.scale", STREAM_V)
            operate(g, bank_u, _INTO_V, "#v", STREAM_G, v)
        builder.drop(*self._temporary)


def lower_update(
    builder: PostBuilder,
    rule: UpdateRule,
    master: Symbol,
    momentum: Symbol | None,
    gradient: Symbol,
    tensor_id: int,
) -> None:
    """Appends what `golden.update` computes, in place.

    Tensors as the device holds them, all of one shape; their Scales, and those of the rule
    (`lr.scale`, ...), are in memory by name.
    """
    _Update(builder, rule, master, momentum, gradient, tensor_id).run()
