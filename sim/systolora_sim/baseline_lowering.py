"""The products of one layer as a rigid array computes them (`baseline_ways`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from systolora.contract import Dataflow, Edge
from systolora_sim.baseline_memory import FILES, GRADIENTS, image_name
from systolora_sim.baseline_ways import PRODUCTS, TERMS, Ways
from systolora_sim.layer import Layer
from systolora_sim.layer_lowering import LayerLowering
from systolora_sim.memory_map import Symbol
from systolora_sim.post_builder import PostBuilder
from systolora_sim.product_lowering import lower_product
from systolora_sim.product_spec import LowRank, Product
from systolora_sim.quantization import Quantization
from systolora_sim.schedules import layer_schedule
from systolora_sim.step_lowering import due
from systolora_sim.work import Exec

__all__ = ["FencedBuilder", "RigidLayer", "lower_rigid_pass"]


class FencedBuilder(PostBuilder):
    """Collects the items of a program whose tiles load, compute and drain one after the other."""

    #: Its EXECs are long, and a product has few groups of blocks beside which steps can come.
    step_burst = 64

    def exec(self, item: Exec) -> None:
        config, fields = self.config, item.fields
        load = config.left_load if fields.get("edge") == Edge.LEFT else config.top_load
        if fields["dataflow"] == Dataflow.OS:
            load = 0
        passes = (1 + fields["wgt_wide"]) * (1 + fields["act_wide"])
        tile = load + passes * (fields["length"] + config.rows + config.cols)
        fields["fence"] = 1
        item.cycles = fields["repeat"] * tile
        super().exec(item)


class RigidLayer(LayerLowering):
    """The products of one layer, each in its way; nothing is shared among products.

    What the post-processor does is the same as for `LayerLowering`.
    """

    def __init__(self, builder: PostBuilder, layer: Layer, prefix: str, ways: Ways) -> None:
        super().__init__(builder, layer, prefix, layer_schedule("auto", 0), keep_sums=False)
        self.ways = ways

    def quantization(self, name: str) -> Quantization:
        transposed = self.ways.stored[name] != FILES[name]
        return replace(super().quantization(name), transposed=transposed)

    def ordered(self, tensor: str, order: str) -> Symbol:
        """A tensor with its axes in that order: itself, or its image."""
        if self.ways.stored[tensor] == order:
            return self.symbol(tensor)
        return self.symbol(image_name(tensor, order))

    def operands(self, name: str) -> tuple[Symbol, Symbol, Edge | None]:
        """What a product streams, its other operand and the edge by which that enters."""
        way, factors = self.ways[name], PRODUCTS[name]
        streamed, (tensor, order) = self.ordered(*way.streamed(factors)), way.other(factors)
        if way.dataflow is Dataflow.OS:
            return streamed, self.ordered(tensor, order), None
        edge = Edge.TOP if self.ways.stored[tensor] == order else Edge.LEFT
        return streamed, self.symbol(tensor), edge

    def gradient(self, name: str) -> Symbol:
        """dA or dB as its update reads it; its Scale has the name of the result."""
        return replace(self.ordered(name, GRADIENTS[name]), name=self.name(name))

    def _short(self, name: str) -> None:
        """Appends the sums of a product of rank r."""
        factors = PRODUCTS[name]
        streamed, other, edge = self.operands(name)
        for tensor in (factors.left, factors.right):
            # An image is there, whatever the device has done so far.
            if self.symbol(tensor) in (streamed, other):
                self.builder.need(self.name(tensor))
        sums = name if name in ("dA", "dB") else f"{name}.sums"
        lower_product(
            self.builder,
            Product(
                name=self.name(name),
                streamed=streamed,
                stationary=other,
                edge=edge,
                acc_bits=self.layer.acc_bits(factors.left, factors.right),
                unit="",
                sums=self.symbol(sums),
                keep=True,
                word=self.word,
                label=self.label(name),
            ),
        )

    def H(self) -> None:
        self.builder.need(self.name("lora_A"))
        self._short("H")

    def dH(self) -> None:
        """Appends the sums of dH."""
        self.builder.need(self.name("lora_B"))
        self._short("dH")

    def dB(self) -> None:
        """Appends the sums of dB."""
        self._short("dB")

    def dA(self) -> None:
        self._short("dA")

    def _low_rank(self, name: str) -> LowRank:
        """The low-rank term of Y or dX."""
        way, factors = self.ways[TERMS[name]], PRODUCTS[TERMS[name]]
        streamed = self.ordered(*way.streamed(factors))
        rows = streamed if way.dataflow is Dataflow.WS else None
        top = self.ordered(*way.other(factors))
        return LowRank(streamed, top, "#term", (way.dataflow,), rows)

    def _output(
        self,
        name: str,
        streamed: str,
        edge: Edge,
        unit: str,
        term: tuple[str, ...],
        prepare: Callable[[], None],
        bias: Symbol | None,
    ) -> None:
        builder = self.builder
        builder.need(*map(self.name, term))
        sums = "Y_acc" if name == "Y" else f"{name}.sums"
        moving, other, side = self.operands(name)

        def finish() -> None:
            builder.drop("#term")
            if unit.startswith("#"):
                builder.drop(unit)

        product = Product(
            name=self.name(name),
            streamed=moving,
            stationary=other,
            edge=side,
            acc_bits=self.layer.acc_bits(streamed, "weight"),
            unit=unit,
            low_rank=self._low_rank(name),
            bias=bias,
            sums=self.symbol(sums),
            keep=False,
            quantize=self.quantization(name),
            word=self.word,
            label=self.label(name),
            term_label=self.label("term"),
        )
        lower_product(builder, product, prepare, finish)


def lower_rigid_pass(
    builder: PostBuilder,
    layers: Sequence[RigidLayer],
    updated: Callable[[RigidLayer, str], None],
) -> None:
    """Appends the products of all layers.

    As in `step_lowering` the short products of a layer come before the long ones of the layer
    before, beside which the post-processor does the rest: H of layer n + 2, dH and dB of layer
    n + 1, dA, dX and Y of layer n. So what a product reads was quantized while others ran.

    updated : called with a layer and the name of its gradient when that has been computed
    """

    def finished(layer: RigidLayer, gradient: str) -> None:
        builder.put_off(layer.word, [layer.gradient_scale(gradient)])
        updated(layer, gradient)

    def forward(number: int) -> None:
        if number < len(layers):
            layers[number].H()
            steps = layers[number].quantize("H")
            builder.put_off_until(due("H", number), layers[number].word, steps)

    forward(0)
    for number, following in enumerate([*layers, None]):
        forward(number + 1)
        if following is not None:
            following.dH()
            builder.put_off_until(due("dH", number), following.word, following.quantize("dH"))
            following.dB()
            finished(following, "dB")
        if number:
            layer = layers[number - 1]
            layer.dA()
            finished(layer, "dA")
            if layer.layer.want_dx:
                layer.dX()
            layer.Y()
