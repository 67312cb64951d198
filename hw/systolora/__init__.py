"""systolora: a generator of accelerators that fine-tune quantized LoRA layers."""

__version__ = "0.1.0"
