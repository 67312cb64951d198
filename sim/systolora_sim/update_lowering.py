"""Working copies and updates of masters as row operations (numerics sections 4 and 6).

"->" writes the accumulators, "out" goes to memory, [n] rounds with the random words of stream n, W
and U are rows of the accumulators:

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

Operands that are used twice are streamed twice: one row a cycle either way. While the array works,
W and U share the bank that it has left; else they have a bank each, since a row operation from one
to the other takes twice as long in one bank. A row operation covers the rows of one block of C
columns, since a random word's row and column are the logical tensor's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from systolora.config import AcceleratorConfig
from systolora.contract import COL_STEP, ROW_STEP, Limit, Mode, Opcode, Status
from systolora_sim import numerics as nx
from systolora_sim.memory_map import Area, Symbol, View, alignment
from systolora_sim.post_builder import LATENCY, MAX_ROWS, PostBuilder, Step

__all__ = ["UpdateRule", "blocks", "lower_working_copy", "parts", "update_steps"]

#: The register of a master's maximum; products keep theirs in others.
MAXIMUM = 6
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
    master: Symbol, copy: Symbol, config: AcceleratorConfig, most: int = MAX_ROWS
) -> Iterator[tuple[int, int, Area | View, Area | View]]:
    """(rows, cols, from, to) of row operations that go through two tensors of one shape.

    most : rows of each

    The few rows of an adapter are long. Where the two have strides of as many elements, each is a
    list of lines, and a row operation takes the same columns of all lines, whatever rows they are
    of; the ends of the rows are zero in both.
    """
    cols = config.cols
    line = max(alignment(config), cols)
    width = master.stride // master.itemsize
    if width != copy.stride // copy.itemsize or width % line:
        for block in blocks(master, cols, most):
            yield block[1], block[3], master.area(*block), copy.area(*block)
        return

    def view(symbol: Symbol, first: int, col: int) -> View:
        start = symbol.address + (first * line + col) * symbol.itemsize
        return View(symbol.area(), start, line * symbol.itemsize)

    lines = master.rows * width // line
    for col in range(0, line, cols):
        for first in range(0, lines, most):
            count = min(most, lines - first)
            yield count, cols, view(master, first, col), view(copy, first, col)


def lower_working_copy(builder: PostBuilder, master: Symbol, copy: Symbol) -> None:
    """Appends what `golden.working_copy` computes: one pass for the maximum, one to quantize.

    The Scale `<master>.scale` is given, `<copy>.scale` is stored.
    """
    operations = list(parts(master, copy, builder.config))
    builder.post(Opcode.AMAX_SET, dst=MAXIMUM, imm=0)
    for rows, cols, source, _ in operations:
        builder.rows(rows, cols, source, mode=Mode.RAW, amax=1)
    builder.post(Opcode.COLLECT, dst=MAXIMUM)
    builder.ratio("#ratio", copy.bits, MAXIMUM)
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
        label: str,
    ) -> None:
        self.builder, self.rule, self.tensor_id, self.label = builder, rule, tensor_id, label
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

    def steps(self) -> Iterator[Step]:
        """The update in steps, to be appended in this order."""
        config = self.builder.config
        limit = min(config.bank_depth // 2, MAX_ROWS)
        places = list(blocks(self.master, config.cols, limit))
        posts = {"sgd": 2, "momentum": 4, "lion": 6}[self.rule.kind] + self.rule.decays
        for number, place in enumerate(places):
            first, last = number == 0, number == len(places) - 1
            append = partial(self._block, place, first, last)
            yield Step(append, place[1], posts, posts * (place[1] + LATENCY), self.label)

    def _block(
        self, place: tuple[int, int, int, int], first: bool, last: bool, at_w: int, at_u: int
    ) -> None:
        """Appends the row operations on a part of the tensors, with sums at rows at_w and at_u."""
        builder, kind = self.builder, self.rule.kind
        row, rows, col, cols = place
        if first:
            self.factors()

        def operate(
            source: Symbol | int,
            base: int,
            fields: dict[str, int],
            factor: str = "",
            stream: int = -1,
            out: Symbol | None = None,
        ) -> None:
            words = self.words(row, col, stream) if stream >= 0 else {}
            given = {"src_a": builder.scale(factor)} if factor else {}
            builder.rows(
                rows,
                cols,
                source.area(*place) if isinstance(source, Symbol) else source,
                None if out is None else out.area(*place),
                dst_base=base,
                **fields,
                **given,
                **words,
            )

        w, g, v = self.master, self.gradient, self.momentum
        write = {"write": 1}
        operate(w, at_w, {"mode": Mode.RAW} | write)
        if self.rule.decays:
            operate(w, at_w, _INTO_W | write, "#decay", STREAM_DECAY)
        if kind == "sgd":
            operate(g, at_w, _INTO_W, "#w", STREAM_W, w)
        elif kind == "momentum":
            assert v is not None
            operate(v, at_u, _TERM | write, "beta.scale", STREAM_V)
            operate(g, at_u, _INTO_V | write, "#v", STREAM_G, v)
            operate(at_u, at_w, _INTO_W, "#w", STREAM_W, w)
        else:
            assert v is not None
            # c, which only its sign leaves: saturated to 32 bits it keeps it
            operate(v, at_u, _TERM | write, "b1.scale")
            operate(g, at_u, _TERM | write | {"add": 1}, "#c")
            operate(at_u, at_w, _INTO_W | {"sign": 1}, "#w", STREAM_W, w)
            operate(v, at_u, _TERM | write, "b2.scale", STREAM_V)
            operate(g, at_u, _INTO_V, "#v", STREAM_G, v)
        if last:
            builder.drop(*self._temporary)


def update_steps(
    builder: PostBuilder,
    rule: UpdateRule,
    master: Symbol,
    momentum: Symbol | None,
    gradient: Symbol,
    tensor_id: int,
    label: str = "update",
) -> Iterator[Step]:
    """What `golden.update` computes, in place, in steps.

    Tensors as the device holds them, all of one shape; their Scales, and those of the rule
    (`lr.scale`, ...), are in memory by name.
    """
    yield from _Update(builder, rule, master, momentum, gradient, tensor_id, label).steps()
