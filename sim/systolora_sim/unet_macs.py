"""Multiplications of a diffusion U-Net's training step, counted layer by layer.

The network is diffusers' UNet2DConditionModel. Counted are convolutions, linear layers and the two
products of each attention, of one sample; not norms, activations, softmax and sums.

Backward counts the gradients with respect to activations that training adapters needs: those of
whatever depends on an adapted layer. A linear layer or convolution has one such product of the
forward's size, where its input depends on one; a product of two activations has one for each that
does. A concatenation depends if a part of it does. Frozen weights have no gradient, and nothing is
computed twice (no activation checkpointing). The adapters' own low-rank products are not counted.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

__all__ = ["SD15", "SDXL", "Op", "UNet", "count_ops"]

#: A U-Net's resnets per stage on the way up are one more than on the way down.
_UP_EXTRA = 1


@dataclass(frozen=True, kw_only=True)
class UNet:
    """The fields of a `unet/config.json` that decide the shapes.

    Parameters
    ----------
    size : int
        Height and width of the latents (`sample_size`).
    channels : tuple of int
        `block_out_channels`.
    depths : tuple of int
        Transformer blocks per attention of each stage (`transformer_layers_per_block`), 0 where the
        stage has none (`down_block_types`).
    text : (int, int)
        Tokens, and their width (`cross_attention_dim`).
    latents, layers_per_block : int
        `in_channels`; resnets per stage on the way down.
    """

    size: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    text: tuple[int, int]
    latents: int = 4
    layers_per_block: int = 2


#: runwayml/stable-diffusion-v1-5, unet/config.json.
SD15 = UNet(size=64, channels=(320, 640, 1280, 1280), depths=(1, 1, 1, 0), text=(77, 768))
#: stabilityai/stable-diffusion-xl-base-1.0, unet/config.json.
SDXL = UNet(size=128, channels=(320, 640, 1280), depths=(0, 2, 10), text=(77, 2048))


@dataclass(frozen=True)
class Op:
    """One layer or product: multiplications forward and backward, of one sample."""

    name: str
    forward: int
    backward: int


@dataclass
class _Counter:
    """Walks the network; `live` : whether the activations depend on an adapted layer by now."""

    net: UNet
    adapted: Collection[str]
    ops: list[Op] = field(default_factory=list)
    live: bool = False

    def add(self, name: str, macs: int, gradients: int) -> None:
        self.ops.append(Op(name, macs, gradients * macs))

    def conv(self, name: str, size: int, inputs: int, outputs: int, kernel: int = 3) -> None:
        """A convolution with size^2 outputs."""
        self.add(name, size * size * kernel * kernel * inputs * outputs, int(self.live))

    def linear(self, name: str, rows: int, d: int, k: int, live: bool) -> bool:
        """A linear layer whose input is live or not; whether its output is."""
        self.add(name, rows * d * k, int(live))
        return live or ".".join(name.split(".")[-2:]) in self.adapted

    def resnet(self, name: str, size: int, inputs: int, outputs: int) -> None:
        self.conv(f"{name}.conv1", size, inputs, outputs)
        self.linear(f"{name}.time_emb_proj", 1, 4 * self.net.channels[0], outputs, False)
        self.conv(f"{name}.conv2", size, outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", size, inputs, outputs, 1)

    def attention(self, name: str, rows: int, width: int, text: tuple[int, int] | None) -> None:
        """Self-attention, or cross-attention to the text's (tokens, width)."""
        tokens, d = text or (rows, width)
        source = self.live and text is None
        q = self.linear(f"{name}.to_q", rows, width, width, self.live)
        k = self.linear(f"{name}.to_k", tokens, d, width, source)
        v = self.linear(f"{name}.to_v", tokens, d, width, source)
        self.add(f"{name}.scores", rows * tokens * width, q + k)
        weights = q or k
        self.add(f"{name}.values", rows * tokens * width, weights + v)
        out = self.linear(f"{name}.to_out", rows, width, width, weights or v)
        self.live = self.live or out

    def transformer(self, name: str, size: int, width: int, depth: int) -> None:
        rows = size * size
        self.conv(f"{name}.proj_in", size, width, width, 1)
        for number in range(depth):
            block = f"{name}.transformer_blocks.{number}"
            self.attention(f"{block}.attn1", rows, width, None)
            self.attention(f"{block}.attn2", rows, width, self.net.text)
            # GEGLU: 4 * width values and as many gates.
            self.linear(f"{block}.ff.net.0.proj", rows, width, 8 * width, self.live)
            self.linear(f"{block}.ff.net.2", rows, 4 * width, width, self.live)
        self.conv(f"{name}.proj_out", size, width, width, 1)


def count_ops(net: UNet, adapted: Collection[str]) -> list[Op]:
    """Every counted layer and product in the order of the forward pass.

    adapted : which layers are trained, as "attn2.to_k": of every transformer block. An attention's
    output layer is `to_out`; its products are `scores` (Q.K^T) and `values`.
    """
    counter = _Counter(net, adapted)
    size, channels = net.size, net.channels
    last = len(channels) - 1
    embedding = 4 * channels[0]
    counter.linear("time_embedding.linear_1", 1, channels[0], embedding, False)
    counter.linear("time_embedding.linear_2", 1, embedding, embedding, False)
    counter.conv("conv_in", size, net.latents, channels[0])
    width, skips = channels[0], [channels[0]]
    for stage, (outputs, depth) in enumerate(zip(channels, net.depths, strict=True)):
        name = f"down_blocks.{stage}"
        for number in range(net.layers_per_block):
            counter.resnet(f"{name}.resnets.{number}", size, width, outputs)
            width = outputs
            if depth:
                counter.transformer(f"{name}.attentions.{number}", size, width, depth)
            skips.append(width)
        if stage < last:
            size //= 2
            counter.conv(f"{name}.downsamplers.0", size, width, width)
            skips.append(width)
    counter.resnet("mid_block.resnets.0", size, width, width)
    # The middle has as many transformer blocks as the last stage would have, at least one.
    counter.transformer("mid_block.attentions.0", size, width, net.depths[-1] or 1)
    counter.resnet("mid_block.resnets.1", size, width, width)
    for stage, (outputs, depth) in enumerate(
        zip(reversed(channels), reversed(net.depths), strict=True)
    ):
        name = f"up_blocks.{stage}"
        for number in range(net.layers_per_block + _UP_EXTRA):
            counter.resnet(f"{name}.resnets.{number}", size, width + skips.pop(), outputs)
            width = outputs
            if depth:
                counter.transformer(f"{name}.attentions.{number}", size, width, depth)
        if stage < last:
            size *= 2
            counter.conv(f"{name}.upsamplers.0", size, width, width)
    counter.conv("conv_out", size, width, net.latents)
    return counter.ops
