"""A training step with quantized layers is practical: at most five times fp32's CPU time."""

import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from systolora_sim.torch import Recipe  # noqa: E402

SCRIPT = Path(__file__).parent.parent / "scripts" / "torch_speed.py"


@pytest.mark.parametrize("optimizer", ["sgd", "lion"])
def test_a_step_of_a_small_unet(optimizer):
    """K and V of all cross-attentions, rank 4, batch 16. CPU time: others use the machine too."""
    spec = importlib.util.spec_from_file_location("torch_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        targets = ["attn2.to_k", "attn2.to_v"]
        recipe = Recipe(optimizer=optimizer, stochastic={"H", "Y", "dH"}, delayed={"Y"})
        fp32, ours = script.seconds(targets, None, 4), script.seconds(targets, recipe, 4)
    finally:
        torch.set_num_threads(threads)
    assert ours < 5 * fp32, f"{ours:.3f} s, fp32 {fp32:.3f} s"
