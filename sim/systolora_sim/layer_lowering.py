"""The products of one LoRA layer, each as items of a program (numerics section 5).

Mapping (rank-r tensors are r-major in memory):

====================  ========  ==================  ==============  ============================
product               dataflow  stationary (edge)   streams         low-rank term, by OS
====================  ========  ==================  ==============  ============================
H^T = lora_A.X^T      WS        X (left)            lora_A rows
Y = X.W^T             WS        W (left)            X rows          rescale(H.lora_B^T)
dH^T = lora_B^T.dY^T  WS        dY (left)           lora_B^T rows
dB^T = H^T.dY         WS        dY (top)            H^T rows
dA = dH^T.X           WS        X (top)             dH^T rows
dX = dY.W             WS        W (top)             dY rows         rescale(dH.lora_A)
====================  ========  ==================  ==============  ============================

This is the schedule "auto"; others (`schedules`) take the terms weight stationary or the gradients
dB^T and dA output stationary, from H and dH turned to [N, r].

The sums of H and dH go to memory and are quantized from there, when the post-processor has time:
the array never waits for their maxima.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from systolora.contract import ROW_STEP, Dataflow, Edge
from systolora_sim import numerics as nx
from systolora_sim.gradient_pair import lower_gradients
from systolora_sim.layer import Layer
from systolora_sim.memory_map import Area, Symbol
from systolora_sim.pieces import WHOLE, Piece
from systolora_sim.post_builder import PostBuilder, Step
from systolora_sim.product_lowering import lower_product
from systolora_sim.product_spec import LowRank, Product
from systolora_sim.quantization import CHAIN, Quantization, quantization_steps
from systolora_sim.schedules import LayerSchedule
from systolora_sim.transpose_lowering import lower_transpose

__all__ = ["LayerLowering"]


class LayerLowering:
    """The products of one layer, of its batch or a piece of it.

    prefix : of its names among the symbols; held : by name, tensors that are not all of what the
    memory has under that name; keep_sums : whether the sums of Y are a result, too; cached : the
    sums of X.W^T are in memory, of an earlier step.
    """

    def __init__(
        self,
        builder: PostBuilder,
        layer: Layer,
        prefix: str,
        schedule: LayerSchedule,
        piece: Piece = WHOLE,
        held: Mapping[str, Symbol] | None = None,
        *,
        keep_sums: bool = True,
        cached: bool = False,
    ) -> None:
        self.builder, self.layer, self.prefix = builder, layer, prefix
        self.schedule, self.piece, self.held = schedule, piece, dict(held or {})
        self.keep_sums, self.cached = keep_sums, cached
        self._turned: set[str] = set()

    def name(self, tensor: str) -> str:
        """The name of a tensor among the symbols, and of the step that quantizes it."""
        return self.prefix + tensor

    def scale(self, tensor: str) -> str:
        return f"{self.prefix}{tensor}.scale"

    def symbol(self, tensor: str) -> Any:
        return self.held.get(tensor) or self.builder.symbols[self.prefix + tensor]

    def label(self, product: str) -> str:
        """What reports call items of a product."""
        return f"{product} {self.prefix.rstrip('/')}".rstrip()

    @property
    def word(self) -> Area:
        """The status word of its products."""
        return self.symbol("results.sticky").area()

    def quantization(self, name: str) -> Quantization:
        layer, piece, word, record, running = self.layer, self.piece, None, None, None
        if name in layer.stochastic:
            tensor = 0x10000 + 8 * layer.index + ("H", "Y", "dH", "dX").index(name)
            word = nx.seed_word(0, 0, tensor) + piece.first * ROW_STEP
        if name in layer.delayed:
            record = self.symbol(f"{name}.amax")
            running = self.symbol(f"{name}.running") if piece.of > 1 else None
        return Quantization(
            target=self.symbol(name),
            scale=self.scale(name),
            word=word,
            transposed=name in ("H", "dH"),
            record=record,
            streaming=record is not None and layer.amax.get(name, 0) != 0,
            running=running,
            first=piece.number == 0,
            last=piece.last,
        )

    # Quantization of H and dH -------------------------------------------------------------------

    def quantize(self, name: str) -> list[Step]:
        """The steps that quantize H or dH from the sums in memory."""
        return quantization_steps(
            self.builder, self.symbol(f"{name}.sums"), self.quantization(name),
            partial(self._unit, name), label=self.label(name), name=self.name(name),
        )  # fmt: skip

    def _unit(self, name: str, unit: str) -> None:
        """The Scale `unit` of the sums of H or dH."""
        builder = self.builder
        if name == "H":
            builder.mul(unit, self.scale("x"), self.scale("lora_A"))
        else:
            builder.mul(unit, self.scale("gain"), self.scale("dy"))
            builder.mul(unit, unit, self.scale("lora_B"))

    def gradient_scale(self, name: str) -> Step:
        """The step that stores the Scale of dA or dB."""
        append = partial(self._gradient_scale, name)
        return Step(append, 0, 5, CHAIN, label=self.label(name))

    def _gradient_scale(self, name: str, _at_w: int, _at_u: int) -> None:
        builder, unit = self.builder, self.scale(name)
        if name == "dA":
            builder.mul(unit, self.scale("x"), self.scale("dH"))
        else:
            builder.mul("#unit", self.scale("gain"), self.scale("H"))
            builder.mul(unit, "#unit", self.scale("dy"))
            builder.drop("#unit")
        builder.store(unit)

    # Products -----------------------------------------------------------------------------------

    def turn(self, product: str) -> None:
        """Transposes what a product needs as [N, r], unless that is done already."""
        for tensor in self.schedule.turns(product):
            self.builder.need(self.name(tensor))
            if tensor not in self._turned:
                self._turned.add(tensor)
                identity = self.builder.symbols["identity"]
                source, target = self.symbol(tensor), self.symbol(f"{tensor}.turned")
                with self.builder.labelled(self.label(product)):
                    lower_transpose(self.builder, source, target, identity)

    def _sums(self, name: str, streamed: str, stationary: str, edge: Edge) -> Product:
        """A product of rank r whose sums go to memory."""
        layer, sums = self.layer, {"dA": "dA", "dB": "dB"}.get(name, f"{name}.sums")
        operands, side = (self.symbol(streamed), self.symbol(stationary)), edge
        if self.schedule.gradients.get(name) is Dataflow.OS:
            operands, side = (self.symbol(f"{streamed}.turned"), operands[1]), None
        return Product(
            name=self.name(name),
            streamed=operands[0],
            stationary=operands[1],
            edge=side,
            acc_bits=layer.acc_bits(streamed, stationary),
            unit="",
            addend=self.symbol(sums) if name == sums and self.piece.number else None,
            sums=self.symbol(sums),
            keep=True,
            word=self.word,
            label=self.label(name),
        )

    def H(self) -> None:
        """Appends the sums of H^T."""
        self.builder.need(self.name("lora_A"))
        lower_product(self.builder, self._sums("H", "lora_A", "x", Edge.LEFT))

    def dH_dB(self) -> None:
        """Appends the sums of dH^T and dB^T, from one load of dY where that is possible."""
        builder = self.builder
        builder.need(self.name("lora_B"), self.name("H"))
        dh, db = self._sums("dH", "lora_B", "dy", Edge.LEFT), self._sums("dB", "H", "dy", Edge.TOP)
        if db.edge is None:
            self.turn("dB")
        apart = db.edge is None or not self.schedule.pair
        if apart or not lower_gradients(builder, dh, db):
            lower_product(builder, dh)
            lower_product(builder, db)

    def dA(self) -> None:
        """Appends the sums of dA."""
        self.builder.need(self.name("dH"))
        self.turn("dA")
        lower_product(self.builder, self._sums("dA", "dH", "x", Edge.TOP))

    def Y(self) -> None:
        """Appends Y."""
        builder, unit = self.builder, self.scale("Y_acc")
        factors = ("gain", "H", "lora_B") if not self.layer.is_frozen else ()

        def prepare() -> None:
            builder.mul(unit, self.scale("x"), self.scale("weight"))
            builder.store(unit)
            self._factor(factors, unit)

        bias = self.symbol("bias") if self.layer.bias is not None else None
        term = ("H", "lora_B") if factors else ()
        self._output("Y", "x", Edge.LEFT, unit, term, prepare, bias)

    def dX(self) -> None:
        """Appends dX."""
        builder, unit = self.builder, "#dX"
        factors = ("dH", "lora_A") if not self.layer.is_frozen else ()

        def prepare() -> None:
            builder.mul(unit, self.scale("dy"), self.scale("weight"))
            self._factor(factors, unit)

        self._output("dX", "dy", Edge.TOP, unit, factors, prepare, None)

    def _factor(self, factors: tuple[str, ...], unit: str) -> None:
        """The Scale "#term": the product of these, in `unit`."""
        if factors:
            self.builder.mul("#term", self.scale(factors[0]), self.scale(factors[1]))
            for name in factors[2:]:
                self.builder.mul("#term", "#term", self.scale(name))
            self.builder.div("#term", "#term", unit)

    def _output(
        self,
        name: str,
        streamed: str,
        edge: Edge,
        unit: str,
        term: tuple[str, ...],
        prepare: Any,
        bias: Symbol | None,
    ) -> None:
        """Appends Y or dX, with the low-rank term of these two tensors."""
        builder, low_rank = self.builder, None
        if term:
            builder.need(*map(self.name, term))
            self.turn(name)
            rows = self.symbol(f"{term[0]}.turned") if self.schedule.turns(name) else None
            dataflows = self.schedule.terms[name]
            low_rank = LowRank(
                self.symbol(term[0]), self.symbol(term[1]), "#term", dataflows, rows
            )  # fmt: skip
        sums = "Y_acc" if name == "Y" else f"{name}.sums"
        operands = self.symbol(streamed), self.symbol("weight")
        product = Product(
            name=self.name(name),
            streamed=operands[0],
            stationary=operands[1],
            edge=edge,
            acc_bits=self.layer.acc_bits(streamed, "weight"),
            unit=unit,
            low_rank=low_rank,
            bias=bias,
            sums=self.symbol(sums),
            keep=name == "Y" and self.keep_sums,
            quantize=self.quantization(name),
            word=self.word,
            label=self.label(name),
            term_label=self.label("term"),
            columns_first=self.schedule.columns_first,
            cached=self.symbol("Y_base") if name == "Y" and self.cached else None,
        )

        def finish() -> None:
            if term:
                builder.drop("#term")
            if unit.startswith("#"):
                builder.drop(unit)

        lower_product(builder, product, prepare, finish)
