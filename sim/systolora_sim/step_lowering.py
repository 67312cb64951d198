"""The order of a step's products, and what the post-processor does beside them.

The long products, Y and dX, give the post-processor time. So what the short ones need of it
(working copies, the quantization of H and dH, updates) is done beside the long product before: with

    H of layer n + 2, dH and dB of layer n + 1, dA of layer n, dX and Y of layer n

for all layers n, what a product needs has been quantized while another one ran. Layers with the
same x (`sharing`) have one dA, before the last layer's long products, and their H in a few
products: the first of few layers, so that the array has work as soon as their copies are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from systolora.contract import Dataflow, Edge
from systolora_sim.blocks import ceil_div
from systolora_sim.layer_lowering import LayerLowering
from systolora_sim.memory_map import Symbol
from systolora_sim.post_builder import LATENCY, PostBuilder, Step
from systolora_sim.product_lowering import lower_product
from systolora_sim.product_spec import Product
from systolora_sim.quantization import CHAIN
from systolora_sim.sharing import part
from systolora_sim.update_lowering import lower_working_copy

__all__ = ["Group", "due", "lower_copies", "lower_pass"]

#: Of how many times as many layers the next product of H is.
GROWTH = 4
#: A product of dA leaves one of so many layers to the next one.
TAIL = 3


def due(tensor: str, number: int) -> int:
    """When a layer's working copy, or H or dH, is needed: numbers in the order of the products."""
    place = ("lora_A", "lora_B", "H", "dH").index(tensor)
    ahead = (2, 1, 1, 0)[place]  # layers between the product that needs it and the long ones
    return 4 * (number - ahead) + place


@dataclass
class Group:
    """Layers with one x, whose products with it are one; or a single layer.

    stacks : of several layers, their tensors among `layer_memory.STACKED` as one, by name; members
    : numbers of the layers.
    """

    layers: list[LayerLowering]
    stacks: dict[str, Symbol] = field(default_factory=dict)

    def rows(self, tensor: str, first: int, count: int) -> Symbol:
        """The rows of some layers in a stack."""
        whole = self.stacks[tensor]
        start = sum(layer.symbol(tensor).rows for layer in self.layers[:first])
        rows = sum(layer.symbol(tensor).rows for layer in self.layers[first : first + count])
        return part(whole, f"{whole.name}, {count}", start, rows)

    def portions(self) -> list[tuple[int, int]]:
        """(first, count) of the layers whose H is one product."""
        if len(self.layers) == 1:
            return [(0, 1)]
        config, rank = self.layers[0].builder.config, self.layers[0].layer.rank
        first, portions, count = 0, [], ceil_div(config.left_load, rank)
        while first < len(self.layers):
            count = min(count, len(self.layers) - first)
            portions.append((first, count))
            first, count = first + count, count * GROWTH
        return portions

    def endings(self) -> list[tuple[int, int]]:
        """(first, count) of the layers whose dA is one product.

        Ever fewer: beside the long products of those that are left there is time for the updates.
        """
        config, rank = self.layers[0].builder.config, max(1, self.layers[0].layer.rank)
        least, first, endings = ceil_div(config.top_load, rank), 0, []
        while first < len(self.layers):
            left = len(self.layers) - first
            count = left if left < 2 * least else max(least, left - max(least, left // TAIL))
            endings.append((first, count))
            first += count
        return endings


class _Pass:
    """One pass over all layers, of a batch or a piece of it."""

    def __init__(
        self,
        builder: PostBuilder,
        groups: Sequence[Group],
        forward: bool,
        backward: bool,
        updated: Callable[[LayerLowering, str], None],
    ) -> None:
        self.builder, self.forward, self.backward, self.updated = (
            builder, forward, backward, updated,
        )  # fmt: skip
        self.layers = [(group, n) for group in groups for n in range(len(group.layers))]
        #: By layer: the layer before whose long products its H is computed.
        self.portions: dict[int, tuple[Group, int, int]] = {}
        first = 0
        for group in groups:
            for start, count in group.portions():
                self.portions[first + start] = (group, start, count)
            first += len(group.layers)

    def _at(self, number: int) -> LayerLowering:
        group, inside = self.layers[number]
        return group.layers[inside]

    def H(self, number: int) -> None:
        """H of this layer, and of those with which it is one product."""
        if number not in self.portions or self._at(number).layer.is_frozen:
            return
        group, first, count = self.portions[number]
        some = group.layers[first : first + count]
        if count == 1:
            some[0].H()
        else:
            self.builder.need(*(layer.name("lora_A") for layer in some))
            self._together(group, "H", "lora_A", Edge.LEFT, "H.sums", first, count)
        for offset, layer in enumerate(some):
            self.builder.put_off_until(due("H", number + offset), layer.word, layer.quantize("H"))

    def gradients(self, number: int) -> None:
        layer = self._at(number)
        if layer.layer.is_frozen:
            return
        layer.dH_dB()
        group, inside = self.layers[number]
        ends = (first + count - 1 for first, count in group.endings())
        last = number - inside + min(end for end in ends if end >= inside)
        self.builder.put_off_until(due("dH", last), layer.word, layer.quantize("dH"))
        self._updated(layer, "dB")

    def _updated(self, layer: LayerLowering, gradient: str) -> None:
        if layer.piece.last:
            self.builder.put_off(layer.word, [layer.gradient_scale(gradient)])
            self.updated(layer, gradient)

    def dA(self, number: int) -> None:
        """dA of this layer, or with the last one of those with which it is one product."""
        group, inside = self.layers[number]
        layer = group.layers[inside]
        if layer.layer.is_frozen:
            return
        together = len(group.layers) > 1 and all(
            each.schedule.gradients["dA"] is Dataflow.WS for each in group.layers
        )
        if not together:
            layer.dA()
            self._updated(layer, "dA")
            return
        for first, some in group.endings():
            if inside == first + some - 1:
                layers = group.layers[first : first + some]
                self.builder.need(*(each.name("dH") for each in layers))
                self._together(group, "dA", "dH", Edge.TOP, "dA", first, some)
                for each in layers:
                    self._updated(each, "dA")

    def _together(
        self, group: Group, name: str, streamed: str, edge: Edge, sums: str, first: int, count: int
    ) -> None:
        layer = group.layers[first]
        more = f" and {count - 1} more" if count > 1 else ""
        target = group.rows(sums, first, count)
        addend = target if name == sums and layer.piece.number else None
        lower_product(
            self.builder,
            Product(
                name=layer.name(name) + more,
                streamed=group.rows(streamed, first, count),
                stationary=layer.symbol("x"),
                edge=edge,
                acc_bits=layer.layer.acc_bits(streamed, "x"),
                unit="",
                addend=addend,
                sums=target,
                keep=True,
                label=layer.label(name) + more,
            ),
        )

    def _forward(self, number: int) -> None:
        if self.forward and number < len(self.layers):
            self.H(number)

    def _backward(self, number: int) -> None:
        if self.backward and number < len(self.layers):
            self.gradients(number)

    def _long(self, number: int) -> None:
        layer = self._at(number)
        if self.backward:
            self.dA(number)
            if layer.layer.want_dx:
                layer.dX()
        if self.forward:
            layer.Y()

    def run(self) -> None:
        self._forward(0)
        self._backward(0)
        # Only the first layer has nothing beside which the next one could be prepared: its own
        # long products come first.
        self._long(0)
        self._forward(1)
        self._forward(2)
        self._backward(1)
        for number in range(1, len(self.layers)):
            self._forward(number + 2)
            self._backward(number + 1)
            self._long(number)


def lower_pass(
    builder: PostBuilder,
    groups: Sequence[Group],
    *,
    forward: bool,
    backward: bool,
    updated: Callable[[LayerLowering, str], None],
) -> None:
    """Appends the products of all layers, for a batch or a piece of it.

    Parameters
    ----------
    forward, backward : which products
    updated : called with a layer and the name of its gradient as soon as nothing adds to it
    """
    _Pass(builder, groups, forward, backward, updated).run()


def lower_copies(builder: PostBuilder, groups: Sequence[Group]) -> None:
    """Puts off the working copies of all masters until they are needed."""
    number = 0
    for group in groups:
        for first, count in group.portions():
            for inside, layer in enumerate(group.layers[first : first + count]):
                _copy(builder, layer, "lora_A", due("lora_A", number))
                _copy(builder, layer, "lora_B", due("lora_B", number + inside))
            number += count


def _copy(builder: PostBuilder, layer: LayerLowering, tensor: str, need: int) -> None:
    master = builder.symbols[f"{layer.prefix}{tensor}.master"]
    copy = layer.symbol(tensor)
    lines = ceil_div(master.rows * master.cols, builder.config.cols)

    def append(_at_w: int, _at_u: int) -> None:
        lower_working_copy(builder, master, copy)

    step = Step(
        append, 0, 8, 2 * (lines + LATENCY) + CHAIN // 2,
        label=layer.label("copies"), name=layer.name(tensor), maxima=True,
    )  # fmt: skip
    builder.put_off_until(need, builder.symbols[f"{layer.prefix}sticky"].area(), [step])
