"""One product as items: EXECs of the array, row operations on the sums.

A product's output is cut into blocks (`tiling`). The array computes a block's sums and its low-rank
term, each weight or output stationary; a row operation joins them, folds the maximum, and stores
sums or quantized rows. Where the maximum must be known first (just in time), sums stay
in the accumulators if all of them fit, else they go to memory and come back.
"""

from collections.abc import Callable, Iterator

from systolora.config import ACC_BANKS, AcceleratorConfig
from systolora.contract import Dataflow, Limit, Mode, Opcode
from systolora_sim import numerics as nx
from systolora_sim.array_work import ArrayWork, load_cycles
from systolora_sim.block_order import chains, columns_first, rows_stay
from systolora_sim.blocks import Block, Plan, ceil_div, plan_blocks
from systolora_sim.memory_map import Area
from systolora_sim.post_builder import LATENCY, MAX_ROWS, PostBuilder
from systolora_sim.product_spec import Product
from systolora_sim.quantization import (
    IN_PRODUCTS,
    begin_maximum,
    end_maximum,
    late_ratio,
    quantizing,
    quantizing_value,
    row_cycles,
    streaming_ratio,
)
from systolora_sim.tiling import Stationary
from systolora_sim.work import Exec, Post, Rows

__all__ = ["ProductLowering", "lower_product"]

#: About how many cycles a bank's way from the array to the post-processor and back takes beyond the
#: array's depth and width; only the choice of a group's size depends on it.
HANDOVER = 64


class ProductLowering:
    """One product's way into a program; `lower_product` goes it."""

    def __init__(
        self,
        builder: PostBuilder,
        product: Product,
        plan: Plan | None = None,
        stationary: Stationary | None = None,
    ) -> None:
        """plan, stationary : how it is cut where others have a say in it."""
        self.builder, self.product = builder, product
        self.config: AcceleratorConfig = builder.config
        config, term = self.config, product.low_rank
        quantize = product.quantize
        self.just_in_time = quantize is not None and not quantize.streaming
        self.delayed = quantize is not None and quantize.record is not None
        self.plan = plan or plan_blocks(
            config,
            product.m,
            product.n,
            self._group(),
            low_rank=product.paired,
            whole_tiles=product.edge is None
            or (term is not None and Dataflow.OS in term.dataflows),
            want_resident=self.just_in_time,
            first=builder.bank,
            columns_first=columns_first(config, product),
        )
        if plan is None:
            # The array may go on with the next product while these sums are quantized.
            builder.bank = self.plan.next_bank
        rows = max(block.rows for block in self.plan.blocks)
        self.array = ArrayWork(config, product, rows, stationary)
        self.limit = Limit.ACC32 if product.acc_bits == nx.NARROW_BITS else Limit.ACC

    def _group(self) -> int:
        """How many blocks should share a bank, one after the other; all that it holds for a panel.

        The post-processor gets a bank when the last sum has left the array and returns it when it
        is done with the rows: until then the other banks must have work for the array.
        """
        config, product = self.config, self.product
        planes = product.streamed.itemsize, product.stationary.itemsize
        rows = min(product.m, config.bank_depth)
        if not rows_stay(self.config, self.product):
            return max(1, config.bank_depth // rows)
        if product.cached is not None:
            array = ceil_div(rows, config.rows) * config.rows
        elif product.edge is None:
            tiles = ceil_div(rows, config.rows)
            array = tiles * planes[0] * planes[1] * max(product.k, config.rows)
        else:
            tiles = ceil_div(product.k, config.rows)
            array = tiles * planes[1] * max(load_cycles(config, product.edge), rows * planes[0])
        passes = self._passes(product.keep or self.just_in_time)
        latency = config.rows + config.cols + HANDOVER + len(passes) * LATENCY
        return ceil_div(latency, max((chains(self.product) - 1) * array - sum(passes) * rows, 1))

    def tiles(self, block: Block) -> int:
        """Appends the EXECs of a block and returns about how many cycles they take."""
        return sum(self._append(piece) for piece in self.array.pieces(block))

    def _append(self, items: list[Exec]) -> int:
        for item in items:
            self.builder.exec(item)
        return sum(item.cycles for item in items)

    def _panels(self) -> list[list[list[Block]]]:
        """Groups that the array computes together, each piece of the streamed rows for all of them.

        Where a block's rows do not stay in their buffer, they come from memory once for a panel: as
        many groups of the same rows, side by side, as the accumulators hold.
        """
        groups = self.plan.groups
        if rows_stay(self.config, self.product):
            return [[group] for group in groups]
        panels: list[list[list[Block]]] = []
        for group in groups:
            last = panels[-1] if panels else []
            rows = {block.row0 for each in (*last, group) for block in each}
            if last and len(last) < chains(self.product) and len(rows) == 1:
                last.append(group)
            else:
                panels.append([group])
        return panels

    # Post-processor -----------------------------------------------------------------------------

    def _quantized(self, row0: int, col0: int) -> dict[str, int]:
        """Fields of a row operation that quantizes from that element on."""
        quantize = self.product.quantize
        assert quantize is not None
        return quantizing(quantize, row0, col0) | {"src_a": self.builder.scale(self._ratio)}

    def _quantize_block(self, block: Block, **fields: int) -> None:
        """A block of the accumulators to its place in memory."""
        quantize = self.product.quantize
        assert quantize is not None
        target = quantize.target.area(block.row0, block.rows, block.col0, block.cols)
        self.builder.rows(
            block.rows,
            block.cols,
            block.base,
            target,
            **self._quantized(block.row0, block.col0),
            **fields,
        )

    @property
    def _ratio(self) -> str:
        return f"#ratio {self.product.name}"

    def _passes(self, store: bool) -> list[int]:
        """Cycles per row of each row operation on a block, whose sums go to memory or not."""
        sums, quantize = self.product.sums, self.product.quantize
        first, moved = 1, sums if store else self.product.cached
        if moved is not None:
            first = row_cycles(self.config, moved)
        streaming = quantize is not None and quantize.streaming
        return [first, 1] if streaming and not self._at_once(store) else [first]

    def _at_once(self, store: bool) -> bool:
        """Whether a row operation that changes sums quantizes them, too."""
        quantize = self.product.quantize
        streaming = quantize is not None and quantize.streaming
        return streaming and not store and self.config.fused_quantize

    @property
    def _stores(self) -> bool:
        return self.product.keep or (self.just_in_time and not self.plan.resident)

    def post_cycles(self, group: list[Block]) -> int:
        """About how long the row operations on blocks take."""
        passes = self._passes(self._stores)
        return sum(cycles * block.rows + LATENCY for block in group for cycles in passes)

    def _block_posts(self, block: Block) -> None:
        """Row operations on a block while the array computes the next ones."""
        product, builder, quantize = self.product, self.builder, self.product.quantize
        term = product.low_rank
        store = self._stores
        streaming = quantize is not None and quantize.streaming
        changed = term is not None or product.bias is not None or product.addend is not None
        if streaming and not changed and not store:
            self._quantize_block(block, amax=1)
            return
        if product.bias is not None:
            area = product.bias.area(0, 1, block.col0, block.cols)
            builder.post(Opcode.BIAS, reads=area, cols=block.cols)
        fields = {
            "limit": self.limit,
            "amax": int(quantize is not None),
            "bias": int(product.bias is not None),
        }
        at_once = self._at_once(store)
        if changed and quantize is not None and not at_once and (self.plan.resident or streaming):
            fields |= {"write": 1, "dst_base": block.base}
        source: Area | int = block.base
        if product.addend is not None:
            fields |= {"add": 1, "dst_base": block.base}
            source = product.addend.area(block.row0, block.rows, block.col0, block.cols)
        if term is not None:
            fields |= {
                "mode": Mode.ACC,
                "src_a": builder.scale(term.factor),
                "add": 1,
                "dst_base": block.base,
            }
            source = block.term_base if self.product.paired else block.base
        out = None
        if store:
            assert product.sums is not None
            out = product.sums.area(block.row0, block.rows, block.col0, block.cols)
        if at_once:
            assert quantize is not None
            out = quantize.target.area(block.row0, block.rows, block.col0, block.cols)
            fields |= quantizing_value(quantize, block.row0, block.col0)
            fields["src_b"] = builder.scale(self._ratio)
        if product.cached is not None:
            area = product.cached.area(block.row0, block.rows, block.col0, block.cols)
            builder.join(block.base, area, out, **fields)
        else:
            builder.rows(block.rows, block.cols, source, out, **fields)
        if streaming and not at_once:
            self._quantize_block(block)

    def _free(self, panel: list[list[Block]]) -> tuple[Rows, Rows] | None:
        """Two banks in which the array does not work on these blocks, and that hold nothing."""
        depth = self.config.bank_depth
        blocks = [block for group in panel for block in group]
        if self.plan.resident and self.just_in_time:
            blocks = self.plan.blocks
        used = {block.base // depth for block in blocks}
        if self.product.paired:
            used |= {block.term_base // depth for block in blocks}
        # The next ones' turn comes soon; the one before is still at work on the last group.
        first = panel[0][0].base // depth
        order = [(first + n) % ACC_BANKS for n in (3, 2, 1)]
        free = [bank for bank in order if bank not in used][:2]
        if len(free) < 2:
            return None
        low, high = (Rows(bank * depth, (bank + 1) * depth) for bank in sorted(free))
        return low, high

    def _after(self, first: int, group: list[Block]) -> None:
        """Lets the row operations from that item on wait for the whole group.

        One that used its bank before would stop the array, which computes the group's other blocks.
        """
        if len(group) == 1:
            return
        rows = [Rows(block.base, block.base + block.rows) for block in group]
        if self.product.paired:
            rows += [Rows(block.term_base, block.term_base + block.rows) for block in group]
        for item in self.builder.items[first:]:
            if isinstance(item, Post) and item.acc:
                item.acc += tuple(rows)
                return

    def _begin(self) -> None:
        quantize, builder = self.product.quantize, self.builder
        if quantize is None:
            return
        begin_maximum(builder, quantize)
        if quantize.streaming:
            streaming_ratio(builder, quantize, self._ratio)

    def _interrupt(self) -> None:
        """Puts the lanes' maxima aside: other tensors' come in between."""
        self.builder.post(Opcode.COLLECT, dst=IN_PRODUCTS.step)

    def _resume(self) -> None:
        """Says again that the record is what quantizes, if that is so."""
        quantize = self.product.quantize
        assert quantize is not None
        if quantize.streaming:
            record, reference = IN_PRODUCTS.record, IN_PRODUCTS.reference
            self.builder.post(Opcode.AMAX_SELECT, dst=reference, src_a=record, src_b=record)

    def _end(self) -> None:
        quantize, builder = self.product.quantize, self.builder
        if quantize is None:
            return
        builder.post(Opcode.COLLECT, dst=IN_PRODUCTS.step)
        if not quantize.streaming:
            late_ratio(builder, quantize, self._ratio)
        builder.div(quantize.scale, self.product.unit, self._ratio)
        builder.store(quantize.scale)
        spilled = self.just_in_time and not self.plan.resident
        if self.just_in_time and self.plan.resident:
            for block in self.plan.blocks:
                self._quantize_block(block)
        if spilled:
            self._requantize(drop=not self.delayed)
        if spilled and self.delayed:
            builder.flush()  # what is clipped counts by the last AMAX_SELECT
        if not spilled or self.delayed:
            builder.drop(self._ratio)
        end_maximum(builder, quantize)

    def _requantize(self, drop: bool) -> None:
        """Puts the row operations that quantize spilled sums into the background."""
        product, quantize = self.product, self.product.quantize
        assert quantize is not None and product.sums is not None
        rows = min(product.m, MAX_ROWS)
        pieces = [
            (row, min(rows, product.m - row), col, min(self.config.cols, product.n - col))
            for col in range(0, product.n, self.config.cols)
            for row in range(0, product.m, rows)
        ]
        for number, (row, count, col, cols) in enumerate(pieces, 1):
            self.builder.later(
                count,
                cols,
                product.sums.area(row, count, col, cols),
                quantize.target.area(row, count, col, cols),
                drop=self._ratio if drop and number == len(pieces) else "",
                **self._quantized(row, col),
            )

    def begin(self, prepare: Callable[[], None]) -> None:
        """Appends what the first row operation needs."""
        builder = self.builder
        with builder.labelled(self.product.label):
            builder.count(self.product.word)
            prepare()
            self._begin()
        if self.product.quantize is not None:
            builder.guard = (self._interrupt, self._resume)

    def end(self, finish: Callable[[], None]) -> None:
        """Appends what follows the last row operation."""
        builder = self.builder
        with builder.labelled(self.product.label):
            builder.count(self.product.word)
            self._end()
            finish()
        if self.product.quantize is not None:
            builder.guard = None

    def posts(self, group: list[Block]) -> None:
        """Appends the row operations on a group of blocks, which wait for all of it."""
        builder, first = self.builder, len(self.builder.items)
        with builder.labelled(self.product.label):
            builder.count(self.product.word)
            for block in group:
                self._block_posts(block)
            self._after(first, group)

    def _array(self, panel: list[list[Block]]) -> Iterator[int]:
        """Appends the EXECs of a panel; stops behind each group's last one.

        Yields about how many cycles they take since the one before. The last piece of a group is
        deep enough for the array to be at work while the one before goes to the post-processor.
        """
        if len(panel) == 1:
            yield sum(self.tiles(block) for block in panel[0])
            return
        pieces = [[self.array.pieces(block) for block in group] for group in panel]
        count = len(pieces[0][0])
        cycles = 0
        for number in range(count):
            for group in pieces:
                cycles += sum(self._append(block[number]) for block in group)
                if number == count - 1:
                    yield cycles
                    cycles = 0

    def run(self, prepare: Callable[[], None], finish: Callable[[], None]) -> None:
        """Appends the product: the array's work first, that of the post-processor behind it."""
        first = True
        for panel in self._panels():
            for group, array in zip(panel, self._array(panel), strict=True):
                if first:
                    self.builder.settle()
                    self.begin(prepare)
                    first = False
                # The array works on these blocks, the post-processor is done with the ones before.
                self.builder.spare(array - self.post_cycles(group), self._free(panel))
                self.posts(group)
        if self.plan.resident and self.just_in_time:
            self.end(finish)  # before other sums come to these accumulators
        else:
            self.builder.settle_later(lambda: self.end(finish))


def _nothing() -> None:
    """What a product needs beside itself."""


def lower_product(
    builder: PostBuilder,
    product: Product,
    prepare: Callable[[], None] = _nothing,
    finish: Callable[[], None] = _nothing,
) -> None:
    """Appends a product's items; its last ones come with the next product's, or with `settle`.

    prepare : appends what gives the Scales `unit` and, of a low-rank term, `factor` their values;
    finish : what follows when the quantized tensor has its Scale
    """
    ProductLowering(builder, product).run(prepare, finish)
