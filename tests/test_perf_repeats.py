"""Large workloads: a few of many equal layers stand for the rest, and how near that comes."""

from dataclasses import replace

import pytest

from systolora.config import preset
from systolora_sim import perf_repeats
from systolora_sim.perf import measure
from systolora_sim.perf_options import PerfOptions
from systolora_sim.perf_repeats import shorten
from systolora_sim.workload import WORKLOADS, load_workload

#: Long enough that updates do not pile up.
REPEATS = """\
title = "blocks of two layers with one x and a third one, and a text that all read"
source = "made by hand"

[[layer]]
name = "q"
input = "hidden"
rows = 256
d = 128
k = 112
dx = true
count = 9

[[layer]]
name = "v"
input = "hidden"
rows = 256
d = 128
k = 96
dx = true
count = 9

[[layer]]
name = "out"
rows = 256
d = 112
k = 128
dx = true
count = 9

[[layer]]
name = "text"
input = "text"
rows = 40
d = 128
k = 112
count = 5
shared = true
"""


@pytest.fixture(name="file")
def _file(tmp_path, monkeypatch):
    path = tmp_path / "repeats.toml"
    path.write_text(REPEATS, encoding="utf-8")
    monkeypatch.setattr(perf_repeats.shorten, "__defaults__", (20,))
    return str(path)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_layer_is_counted_once(name):
    workload = load_workload(name)
    found = shorten(workload)
    weight = {layer.name: found.weights.get(layer.name, 1) for layer in found.workload.layers}

    def count(layers, of):
        total = {}
        for layer in layers:
            kind = layer.rows, layer.d, layer.k, layer.dx
            total[kind] = total.get(kind, 0) + of(layer)
        return total

    assert count(found.workload.layers, lambda layer: weight[layer.name]) == count(
        workload.layers, lambda layer: 1
    )
    assert set(found.weights) <= {layer.name for layer in found.workload.layers}
    # All layers of the K and V of a U-Net are one unit
    assert (len(found.workload.layers) == len(workload.layers)) == name.endswith("-kv")


def test_few_layers_are_all_timed(file):
    workload = load_workload(file)
    assert shorten(workload, 32) == perf_repeats.Shortened(workload, {})
    some = shorten(workload, 31)
    assert some.weights == {"q.1": 7, "v.1": 7, "out.1": 7}
    assert [layer.name for layer in some.workload.layers if layer.name[0] == "q"] == [
        "q.0", "q.1", "q.8",
    ]  # fmt: skip


@pytest.mark.parametrize("baselines", [(), ("textbook-ws", "best-of-ws-os")])
def test_a_few_stand_for_the_rest(file, baselines):
    chosen = PerfOptions(
        workload=file, config=preset("default"), rank=4, batch=2, baselines=baselines
    )
    some, whole = (measure(replace(chosen, full=full))[0] for full in (False, True))
    assert any("Timed are 14 of 32 layers" in note for note in some["notes"])
    assert not any("Timed are" in note for note in whole["notes"])
    for key in ("workload", "peers", "step_share", "rank"):
        assert some[key] == whole[key]
    for one, other in zip(some["runs"], whole["runs"], strict=True):
        assert one["macs"] == other["macs"] and one["limit"] == other["limit"]
        for key in ("cycles", "bytes_read", "bytes_written", "post_cycles"):
            assert one[key] == pytest.approx(other[key], rel=0.01), key
        assert abs(one["limit"] + sum(one["waits"].values()) - one["cycles"]) < 1
        for key in ("cycles", "macs"):
            assert sum(product[key] for product in one["products"]) == one[key]
        moved = sum(product["bytes"] for product in one["products"])
        assert moved == one["bytes_read"] + one["bytes_written"]
        for product, same in zip(one["products"], other["products"], strict=True):
            assert sorted(product["shapes"]) == sorted(same["shapes"])
            assert product["macs"] == same["macs"]
