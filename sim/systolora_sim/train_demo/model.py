"""The model: diffusers' UNet2DConditionModel at a small size, captions, noise and sampling."""

from collections.abc import Callable

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from peft import LoraConfig

from systolora_sim.train_demo.data import CLASSES, Batch, generator
from systolora_sim.train_demo.settings import Settings

__all__ = ["Diffusion", "adapter_parameters", "add_adapters", "make_unet"]

#: The layers that are adapted: K and V of every cross-attention.
TARGETS = ["attn2.to_k", "attn2.to_v"]
_SAMPLE_BATCH = 100


def make_unet(settings: Settings, size: int) -> UNet2DConditionModel:
    """The U-Net with random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=settings.channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            norm_num_groups=settings.groups,
            cross_attention_dim=settings.width,
            attention_head_dim=settings.head,
        )


def add_adapters(unet: UNet2DConditionModel, settings: Settings, seed: int) -> None:
    """LoRA on K and V of the cross-attentions, by PEFT; all else is frozen."""
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(
                r=settings.rank, lora_alpha=settings.rank, target_modules=TARGETS,
                init_lora_weights=True,
            )
        )  # fmt: skip


def adapter_parameters(unet: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """lora_A [r,d] and lora_B [k,r] of every layer, by name."""
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


class Diffusion:
    """Captions and the noise schedule around a U-Net; predicts the noise.

    A class's caption is `tokens` frozen random vectors [tokens, width]: the concept's caption is
    one that pre-training never saw, as a new word would be.
    """

    def __init__(self, unet: torch.nn.Module, settings: Settings, size: int) -> None:
        self.unet, self.size = unet, size
        self.schedule = DDIMScheduler(
            num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=True
        )
        draw = generator(4)
        self.captions = torch.randn(CLASSES, settings.tokens, settings.width, generator=draw)

    @property
    def times(self) -> int:
        """Noise levels of the schedule."""
        return len(self.schedule.alphas_cumprod)

    def predict(
        self, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The noise that the model sees in noisy images [n,1,s,s] with the classes' captions."""
        return self.unet(noisy, times, encoder_hidden_states=self.captions[labels]).sample

    def losses(self, batch: Batch) -> torch.Tensor:
        """Squared error of the predicted noise, a mean per image: [n]."""
        # The schedule's types say int for what is a tensor of time steps
        noisy = self.schedule.add_noise(batch.images, batch.noise, batch.times)  # type: ignore[arg-type]
        error = self.predict(noisy, batch.times, batch.labels) - batch.noise
        return error.square().mean(dim=(1, 2, 3))

    @torch.no_grad()
    def sample(
        self,
        label: int,
        noise: torch.Tensor,
        steps: int,
        progress: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Images [n,1,s,s] of a class from noise of the same shape, by DDIM."""
        self.schedule.set_timesteps(steps)
        parts = []
        for part in noise.split(_SAMPLE_BATCH):
            labels = torch.full((len(part),), label)
            images = part
            for time in self.schedule.timesteps:
                predicted = self.predict(images, time.expand(len(part)), labels)
                images = self.schedule.step(predicted, time, images).prev_sample  # type: ignore
                if progress is not None:
                    progress(1)
            parts.append(images.clamp(-1, 1))
        return torch.cat(parts)
