"""What the PyTorch wrapper records: every call, replayed bit by bit, in RTL too."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from systolora.config import preset  # noqa: E402
from systolora_sim.layer import OUTPUTS  # noqa: E402
from systolora_sim.replay import find_records, replay  # noqa: E402
from systolora_sim.torch import Recipe, quantize_lora  # noqa: E402
from torch_nets import batches, lora_net  # noqa: E402

SEED = 20263
ALL = frozenset(OUTPUTS)

RECIPES: dict[str, Recipe] = {
    "sgd": Recipe(lr=0.5, weight_decay=0.01),
    "momentum": Recipe(optimizer="momentum", lr=0.1, delayed=ALL, stochastic=ALL, seed=-5),
    "lion": Recipe(optimizer="lion", lr=0.01, bits={"dy": 16, "dH": 16}, rescale=True),
    "torch": Recipe(optimizer=None, delayed={"H"}, stochastic={"dX"}),
}


def record(directory: Path, recipe: Recipe, steps: int) -> Any:
    """Trains on batches of 14 rows; returns the handle."""
    net = lora_net(SEED)
    handle = quantize_lora(net, recipe, record=directory)
    trained = [each for each in net.parameters() if each.requires_grad]
    optimizer = None if recipe.optimizer else torch.optim.SGD(trained, lr=0.5)
    for x in batches(SEED, steps):
        with torch.no_grad():
            net(x)  # leaves no record
        (net(x) ** 2).mean().backward()
        if optimizer is None:
            handle.step()
        else:
            optimizer.step()
            optimizer.zero_grad()
    return handle


@pytest.mark.parametrize("name", RECIPES)
def test_every_call_is_recorded_and_replayed(tmp_path, name):
    handle = record(tmp_path / "made" / "records", RECIPES[name], 3)
    found = find_records(tmp_path / "made" / "records")
    order = ("2", "0") if name == "torch" else ("0", "2")  # backward passes, or updates
    assert [path.name for path in found] == [
        f"{number:08}-{order[number % 2]}.safetensors" for number in range(6)
    ]
    for backend in ("golden", "machine"):
        calls = list(replay(tmp_path / "made" / "records", backend, preset("tiny"), progress=False))
        assert [call.difference for call in calls] == [None] * 6
    # A resumed run numbers its records on.
    assert handle.state_dict()["calls"] == 6


def test_at_least_twenty_calls_on_the_simulated_verilog(tmp_path):
    for name, recipe in RECIPES.items():
        record(tmp_path / name, recipe, 3)
    calls = [
        call
        for name in RECIPES
        for call in replay(tmp_path / name, "rtl", preset("tiny"), progress=False)
    ]
    assert len(calls) == 24
    assert [call.difference for call in calls] == [None] * 24
    assert all(call.cycles is not None and call.cycles > 500 for call in calls)
