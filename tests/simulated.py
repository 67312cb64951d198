"""The configurations that tests simulate: few, so that each simulator is built once for all."""

from pathlib import Path

from systolora.config import AcceleratorConfig, preset
from systolora_sim.runner import BUILD_DIR, ensure_verilog

CACHE = BUILD_DIR / "sim"

CONFIGS = {
    "tiny": preset("tiny"),
    "8x4s4": AcceleratorConfig(
        rows=8, cols=4, segments=4, int16=True, acc_depth=64,
        bus_bits=256, act_bytes=1 << 13, wgt_bytes=1 << 13, outstanding=4, fused_quantize=True,
    ),
    "4x8s2-int8": AcceleratorConfig(
        rows=4, cols=8, segments=2, int16=False, acc_depth=64,
        bus_bits=64, act_bytes=1 << 13, wgt_bytes=1 << 13, outstanding=16, fused_quantize=True,
    ),
    # Tiles load in one cycle: every accumulator comes back while it is still on its way.
    "8x8s8": AcceleratorConfig(
        rows=8, cols=8, segments=8, int16=True, acc_depth=32,
        bus_bits=512, act_bytes=1 << 14, wgt_bytes=1 << 14, outstanding=8, address_bits=64,
    ),
    # The largest bus whose rows are longer than a beat, in one and in the other buffer.
    "8x16s8": AcceleratorConfig(
        rows=8, cols=16, segments=8, int16=True, acc_depth=64,
        bus_bits=128, act_bytes=1 << 14, wgt_bytes=1 << 14, outstanding=4,
    ),
    # The widest bus: two descriptors in a beat, several rows of a buffer in an entry.
    "4x8s2-1024": AcceleratorConfig(
        rows=4, cols=8, segments=2, int16=True, acc_depth=64,
        bus_bits=1024, act_bytes=1 << 13, wgt_bytes=1 << 13, outstanding=8,
    ),
    # Several channels: the smallest, and the widest beat with four descriptors in it.
    "tiny-2x64": preset("tiny").with_fields(channels=2),
    "4x8s2-4x512": AcceleratorConfig(
        rows=4, cols=8, segments=2, int16=True, acc_depth=64,
        bus_bits=512, channels=4, act_bytes=1 << 14, wgt_bytes=1 << 14, outstanding=8,
    ),
}  # fmt: skip


def core_verilog(config: AcceleratorConfig) -> Path:
    """The configuration's Verilog, generated unless it is up to date."""
    return ensure_verilog(config, BUILD_DIR, "core").file
