"""CPU time of a training step with quantized LoRA layers beside fp32: docs/torch.md has figures."""

import sys
import time
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from peft import LoraConfig

from systolora_sim.torch import Recipe, quantize_lora

SMALL: Any = {
    "sample_size": 16, "in_channels": 1, "out_channels": 1, "cross_attention_dim": 64,
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "attention_head_dim": 8,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}  # fmt: skip


def seconds(targets: list[str], recipe: Recipe | None, steps: int = 8) -> float:
    """CPU seconds of the fastest of some steps; SGD in fp32 without a recipe."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=0.01)
    step = optimizer.step if recipe is None else quantize_lora(unet, recipe).step
    x, context, t = torch.randn(16, 1, 16, 16), torch.randn(16, 4, 64), torch.arange(16)
    times = []
    for _ in range(steps):
        begin = time.process_time()
        (unet(x, t, encoder_hidden_states=context).sample ** 2).mean().backward()
        step()
        optimizer.zero_grad()
        times.append(time.process_time() - begin)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for targets in (["attn2.to_k", "attn2.to_v"], ["to_q", "to_k", "to_v", "to_out.0"]):
        fp32, ours = seconds(targets, None), seconds(targets, Recipe(stochastic=frozenset("H")))
        sys.stdout.write(f"{targets}: fp32 {fp32:.3f} s, ours {ours:.3f} s, {ours / fp32:.2f}x\n")
