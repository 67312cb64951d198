"""Workloads: the shipped ones against their sources' arithmetic, user files, states."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from systolora.config import preset
from systolora_sim import machine_backend, numerics
from systolora_sim.lowering import compile_training
from systolora_sim.sharing import input_groups
from systolora_sim.training import run_steps
from systolora_sim.unet_macs import SD15, SDXL, count_ops
from systolora_sim.workload import (
    WORKLOADS,
    Workload,
    WorkloadError,
    WorkloadLayer,
    load_workload,
    state,
)
from test_training import same

KV = ("attn2.to_k", "attn2.to_v")
ALL = [f"{name}.to_{part}" for name in ("attn1", "attn2") for part in ("q", "k", "v", "out")]


def inputs(workload: Workload) -> set[str]:
    return {layer.input for layer in workload.layers}


# The shipped ones -----------------------------------------------------------------------------


def test_the_shipped_ones_load_and_say_where_they_come_from():
    assert WORKLOADS == (
        "flux-joint", "llama-7b-qv", "sd15-attn", "sd15-kv", "sd3-joint", "sdxl-kv"
    )  # fmt: skip
    for name in WORKLOADS:
        workload = load_workload(name)
        assert workload.name == name
        assert "config.json" in workload.source
        assert workload.title


@pytest.mark.parametrize(
    ("name", "channels", "down", "middle", "d"),
    [
        # block_out_channels, transformer blocks per attention of each stage, of the middle.
        ("sd15-kv", (320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768),
        ("sdxl-kv", (320, 640, 1280), (0, 2, 10), 10, 768 + 1280),
    ],
)
def test_k_and_v_of_a_u_net(name, channels, down, middle, d):
    """Each stage has layers_per_block = 2 attentions on the way down and one more on the way up."""
    widths = [
        width for width, depth in zip(channels, down, strict=True) for _ in range((2 + 3) * depth)
    ] + [channels[-1]] * middle
    layers = load_workload(name).layers
    assert len(layers) == 2 * len(widths) == {"sd15-kv": 32, "sdxl-kv": 140}[name]
    for part in ("to_k", "to_v"):
        assert sorted(layer.k for layer in layers if part in layer.name) == sorted(widths)
    assert {(layer.input, layer.rows, layer.d, layer.dx) for layer in layers} == {
        ("text", 77, d, False)
    }
    assert sum(layer.k for layer in layers) == {"sd15-kv": 24960, "sdxl-kv": 166400}[name]


def test_all_attention_of_sd15():
    workload = load_workload("sd15-attn")
    expected = []
    for number in range(16):
        stage = 3 if number == 15 else number // 5
        width, rows = (320, 640, 1280, 1280)[stage], 4096 >> 2 * stage
        expected += [(rows, width, width, number > 0)] * 3  # attn1: q, k, v
        expected += [(rows, width, width, True)] * 3  # attn1: out; attn2: q, out
        expected += [(77, 768, width, False)] * 2  # attn2: k, v
    got = [(layer.rows, layer.d, layer.k, layer.dx) for layer in workload.layers]
    assert sorted(got) == sorted(expected)
    # Each block: its hidden state, and the inputs of attn1's out and attn2's q and out; the text.
    assert len(inputs(workload)) == 16 * 4 + 1
    self_attention = [layer for layer in workload.layers if "hidden" in layer.input]
    for name in {layer.input for layer in self_attention}:
        parts = [layer.name for layer in self_attention if layer.input == name]
        assert sorted(part.split("to_")[1][0] for part in parts) == ["k", "q", "v"]


@pytest.mark.parametrize(
    ("name", "blocks", "heads", "head", "text", "last_out"),
    [("sd3-joint", 24, 24, 64, 77 + 256, 0), ("flux-joint", 19, 24, 128, 512, 1)],
)
def test_joint_attention(name, blocks, heads, head, text, last_out):
    layers, width = load_workload(name).layers, heads * head
    assert {(layer.d, layer.k) for layer in layers} == {(width, width)}
    image = [layer for layer in layers if ".to_" in layer.name and "add" not in layer.name]
    added = [layer for layer in layers if layer not in image]
    assert {layer.rows for layer in image} == {(128 // 2) ** 2}
    assert {layer.rows for layer in added} == {text}
    assert (len(image), len(added)) == (4 * blocks, 4 * blocks - 1 + last_out)
    assert sum(not layer.dx for layer in layers) == 2 * 3  # of the first block: q, k, v of both
    # Each block: image, text, and the inputs of both output layers.
    assert len({layer.input for layer in layers}) == 4 * blocks - 1 + last_out


def test_llama():
    layers = load_workload("llama-7b-qv").layers
    assert len(layers) == 2 * 32
    assert {(layer.rows, layer.d, layer.k) for layer in layers} == {(512, 4096, 4096)}
    pairs: dict[str, list[str]] = {}
    for layer in layers:
        pairs.setdefault(layer.input, []).append(layer.name.split(".")[1])
    assert list(pairs.values()) == [["q_proj", "v_proj"]] * 32
    assert [layer.name for layer in layers if not layer.dx] == ["first.q_proj", "first.v_proj"]


# The whole step -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "net", "adapted"),
    [("sd15-kv", SD15, KV), ("sd15-attn", SD15, ALL), ("sdxl-kv", SDXL, KV)],
)
def test_the_step_is_what_the_count_gives(name, net, adapted):
    workload = load_workload(name)
    ops = count_ops(net, adapted)
    assert workload.step is not None
    assert workload.step.macs == sum(op.forward + op.backward for op in ops)
    # The adapted layers' frozen products are those of the workload, found in another way.
    counted = [op for op in ops if op.name.endswith(tuple(adapted))]
    assert len(counted) == len(workload.layers)
    for product, field in (("Y", "forward"), ("dX", "backward")):
        macs = [layer.macs(4, 1).get(product, 0) for layer in workload.layers]
        assert sorted(macs) == sorted(getattr(op, field) for op in counted)


def test_the_count_of_sd15_by_hand():
    ops = {op.name: op for op in count_ops(SD15, KV)}
    assert ops["conv_in"].forward == 64 * 64 * 9 * 4 * 320
    assert ops["up_blocks.3.resnets.2.conv1"].forward == 64 * 64 * 9 * (320 + 320) * 320
    assert ops["up_blocks.2.resnets.0.conv_shortcut"].forward == 32 * 32 * (1280 + 640) * 640
    assert ops["down_blocks.1.downsamplers.0"].forward == 16 * 16 * 9 * 640 * 640
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    assert ops[f"{block}.attn1.scores"].forward == 4096 * 4096 * 320
    assert ops[f"{block}.ff.net.0.proj"].forward == 4096 * 320 * 2560
    # Nothing before the first adapted K and V has a gradient; their scores have one for K only.
    first = list(ops).index(f"{block}.attn2.to_k")
    assert all(op.backward == 0 for op in list(ops.values())[:first])
    assert ops[f"{block}.attn2.scores"].backward == ops[f"{block}.attn2.scores"].forward
    assert ops[f"{block}.attn2.values"].backward == 2 * ops[f"{block}.attn2.values"].forward
    assert ops["down_blocks.0.resnets.1.conv1"].backward == 4096 * 9 * 320 * 320
    again = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.scores"
    assert ops[again].backward == 2 * ops[again].forward
    forward = sum(op.forward for op in ops.values())
    kv = sum(op.forward for op in ops.values() if op.name.endswith(KV))
    assert kv == 77 * 768 * 24960
    assert round(1000 * kv / forward) == 4  # 0.4%


def test_step_share():
    workload = load_workload("sd15-kv")
    share = workload.step_share(4, 2)
    assert share is not None and workload.step is not None
    low_rank = 2 * 77 * 4 * (2 * 32 * 768 + 3 * 24960)
    assert share["adapted_macs"] == 2 * 77 * 768 * 24960 + low_rank
    assert share["whole_macs"] == 2 * workload.step.macs + low_rank
    assert share["share"] == share["adapted_macs"] / share["whole_macs"]
    assert share["step_speedup_bound"] == pytest.approx(1 / (1 - share["share"]))
    assert load_workload("llama-7b-qv").step_share(4, 2) is None


def test_a_report_shows_repeats_once():
    entries = load_workload("sd15-attn").to_dict()["layers"]
    assert sum(entry["count"] for entry in entries) == 128
    shown = {entry["name"]: entry for entry in entries}
    assert list(entries[0]) == ["name", "input", "rows", "d", "k", "dx", "count"]
    assert len(entries) == len(shown) == 3 + 4 * 8
    assert shown["r4096.attn1.to_k"] == {
        "name": "r4096.attn1.to_k", "input": "r4096.hidden",
        "rows": 4096, "d": 320, "k": 320, "dx": True, "count": 4,
    }  # fmt: skip
    assert shown["r256.attn2.to_v"]["input"] == "text"
    assert shown["r64.attn1.to_out"]["count"] == 1


def test_which_inputs_are_constant():
    """The text of the U-Nets: its encoder is frozen. Hidden states change as adapters do."""
    for name in WORKLOADS:
        constant = {layer.name for layer in load_workload(name).layers if layer.constant}
        text = {layer.name for layer in load_workload(name).layers if layer.input == "text"}
        assert constant == text
        entries = load_workload(name).to_dict()["layers"]
        shown = {entry["name"]: entry["input"] for entry in entries if "constant" in entry}
        assert set(shown.values()) == ({"text"} if text else set())
        assert all(entry.get("constant", True) is True for entry in entries)
        assert bool(text) == name.startswith(("sd15", "sdxl"))


# User files -----------------------------------------------------------------------------------

GOOD = """
title = "mine"
source = "made up"
[[layer]]
name = "q"
input = "hidden"
rows = 9
d = 20
k = 12
dx = true
count = 2
[[layer]]
name = "v"
input = "hidden"
rows = 9
d = 20
k = 8
dx = true
count = 2
[[layer]]
name = "c"
input = "text"
rows = 5
d = 10
k = 16
count = 2
shared = true
[[layer]]
name = "out"
rows = 9
d = 12
k = 20
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_user_file(tmp_path):
    workload = load_workload(written(tmp_path, GOOD))
    assert (workload.name, workload.title, workload.source) == ("mine", "mine", "made up")
    assert workload == load_workload(str(tmp_path / "mine.toml"))
    assert [(layer.name, layer.input, layer.k, layer.dx) for layer in workload.layers] == [
        ("q.0", "hidden.0", 12, True), ("q.1", "hidden.1", 12, True),
        ("v.0", "hidden.0", 8, True), ("v.1", "hidden.1", 8, True),
        ("c.0", "text", 16, False), ("c.1", "text", 16, False),
        ("out", "out", 20, False),
    ]  # fmt: skip
    assert workload.step is None and workload.rank is None


def test_repeats_that_differ_in_being_constant_are_two_entries():
    layer = WorkloadLayer(name="a.0", input="x", rows=3, d=4, k=5, dx=False)
    other = replace(layer, name="a.1", input="y", constant=True)
    workload = Workload(name="w", title="t", source="s", layers=(layer, other))
    assert [entry["name"] for entry in workload.to_dict()["layers"]] == ["a.0", "a.1"]


def test_numbers_have_one_width(tmp_path):
    text = GOOD.replace("count = 2\nshared", "count = 11\nshared")
    names = [layer.name for layer in load_workload(written(tmp_path, text)).layers]
    assert [name for name in names if name[0] == "c"] == [f"c.{n:02}" for n in range(11)]


def test_a_step(tmp_path):
    text = GOOD + '[step]\nmacs = 1000000\nsource = "counted"\n'
    step = load_workload(written(tmp_path, text)).step
    assert step is not None and (step.macs, step.source) == (1000000, "counted")


#: Two layers with the input "text", one of them constant.
SAME = """input = "text"
rows = 5
d = 10
k = 3
constant = true
[[layer]]
name = "q.2"
input = "text"
rows = 5
d = 10
k = 3"""

BAD = [
    (('title = "mine"', ""), "title: missing: must be there"),
    (('source = "made up"', "source = 3"), "source: 3: must be a string"),
    (("title", "colour = 1\ntitle"), "colour: unknown key: must be among title, source"),
    (("title", "title = = 1\ntitle"), "not valid TOML: "),
    (("dx = true", "dX = true"), "layer q: dX: unknown key: must be among name, "),
    (("dx = true", "dx = 1"), "layer q: dx: 1: must be true or false"),
    (("k = 8", "k = 0"), "layer v: k: 0: must be from 1 to 131071"),
    (("k = 8", "k = 131072"), "layer v: k: 131072: must be from 1 to 131071"),
    (("k = 8", "k = true"), "layer v: k: True: must be an integer"),
    (("k = 8", "k = 8.0"), "layer v: k: 8.0: must be an integer"),
    (("k = 8", ""), "layer v: k: missing: must be there"),
    (("count = 2", "count = 0"), "layer q: count: 0: must be from 1 to 4096"),
    (("count = 2", "count = 1000000000"), "layer q: count: 1000000000: must be from 1 to 4096"),
    (("count = 2\nshared", "count = 4096\nshared"), "4101 layers: must be from 1 to 4096"),
    (('name = "q"', 'name = ""'), "layer number 1: name: '': must be a name without a slash"),
    (('name = "q"', 'name = "a/b"'), "layer a/b: name: 'a/b': must be a name without a slash"),
    (('name = "v"', 'name = "q"'), "layer q.0: name: two layers have it: must be unique"),
    (('input = "text"', 'input = "hidden.0"'), "layer c.0: rows: 5: must be 9 as in q.0, which"),
    (("shared = true", "shared = true\nconstant = 1"), "layer c: constant: 1: must be true or "),
    (("dx = true", "dx = true\nconstant = true"), "layer q: constant: true: must be false with dx"),
    (
        ('input = "hidden"\nrows = 9\nd = 20\nk = 12\ndx = true\ncount = 2', SAME),
        "layer q.2: constant: false: must be true as in q, which has the same input text",
    ),
    (("[[layer]]\nname", "[step]\nmacs = 0\nsource = ''\n[[layer]]\nname"), "step: macs: 0: must "),
    (("[[layer]]\nname", "[step]\nmacs = 5\n[[layer]]\nname"), "step: source: missing"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_files_get_one_clear_line(tmp_path, change, message):
    assert change[0] in GOOD
    path = written(tmp_path, GOOD.replace(change[0], change[1], 1))
    with pytest.raises(WorkloadError) as caught:
        load_workload(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    for text, message in (
        ('title = "a"\nsource = "b"\n', "layer: must be at least one [[layer]]"),
        ('title = "a"\nsource = "b"\nlayer = 1\n', "layer: must be at least one [[layer]]"),
        ('title = "a"\nsource = "b"\nlayer = [1]\n', "layer number 1: 1: must be a table"),
    ):
        with pytest.raises(WorkloadError) as caught:
            load_workload(written(tmp_path, text))
        assert str(caught.value) == f"{tmp_path / 'mine.toml'}: {message}"
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    for path, message in (
        (tmp_path / "mine.toml", "not valid TOML: not UTF-8 text"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "none.toml", "cannot be read: No such file or directory"),
        ("none.toml", "cannot be read: No such file or directory"),
        ("sd14-kv", "no such workload: must be one of flux-joint, "),
        ("a\0b.toml", "cannot be read: "),
    ):
        with pytest.raises(WorkloadError) as caught:
            load_workload(path)
        assert str(caught.value).startswith(f"{path}: {message}")


# States ---------------------------------------------------------------------------------------


def small(tmp_path: Path) -> Workload:
    return load_workload(written(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("bits", "optimizer", "delayed"),
    [(8, "sgd", ("Y", "dX")), (16, "lion", ("H", "dH")), (8, "momentum", ())],
)
def test_a_state_trains_bit_exact_and_in_range(tmp_path, bits, optimizer, delayed):
    given = {"bits": bits, "optimizer": optimizer, "delayed": delayed, "seed": 3}
    begin = state(small(tmp_path), rank=3, batch=2, **given)
    golden = run_steps(begin, 2)
    assert same(machine_backend.run_steps(begin, 2, preset("tiny")), golden)
    for name, each in golden.state.layers.items():
        # A record of the first step is a guess, so that values may be cut off; nothing else may.
        assert each.sticky <= {"clip_delayed"}
        for before, after in ((begin.layers[name].a, each.a), (begin.layers[name].b, each.b)):
            assert not np.array_equal(before.w, after.w)
        assert any(np.any(result) for result in golden.results[name].tensors.values())


def test_a_state_has_the_workload_s_shapes_and_modes(tmp_path):
    workload = small(tmp_path)
    made = state(workload, rank=3, batch=2)
    assert list(made.layers) == sorted(layer.name for layer in workload.layers)
    for given in workload.layers:
        layer = made.layers[given.name].layer
        assert (layer.batch, layer.inputs, layer.outputs) == (2 * given.rows, given.d, given.k)
        assert (layer.rank, layer.want_dx) == (3, given.dx)
        assert layer.delayed == ({"Y", "dX"} if given.dx else {"Y"})
        assert set(layer.amax) == layer.delayed and min(layer.amax.values()) > 0
        for name in ("x", "weight", "dy"):
            assert 64 <= numerics.amax(layer.operand(name)) <= 127
    groups = {frozenset(names) for names in input_groups(made)}
    assert groups == {
        frozenset(layer.name for layer in workload.layers if layer.input == name)
        for name in inputs(workload)
    }
    assert made.layers["q.0"].layer.x is made.layers["v.0"].layer.x


def test_records_are_about_what_a_step_finds():
    workload = load_workload("sd15-kv")
    workload = replace(workload, layers=workload.layers[::8])
    begin = state(workload, rank=4, batch=1, delayed=("H", "Y", "dH"))
    after = run_steps(begin, 1).state
    for name, each in begin.layers.items():
        for tensor, record in each.layer.amax.items():
            # H has few elements, whose largest is nearer to the middle.
            assert 0.3 < after.layers[name].layer.amax[tensor] / record < 1.1, (name, tensor)


def test_the_same_arguments_give_the_same_state(tmp_path):
    workload = small(tmp_path)
    states = [state(workload, rank=3, batch=2, seed=seed) for seed in (1, 1, 2)]
    data = [[each.layer.weight.tobytes() for each in made.layers.values()] for made in states]
    assert data[0] == data[1] != data[2]
    # A layer's numbers are its own: not those of another with the same shape.
    assert data[0][3] != data[0][4]


@pytest.mark.parametrize("name", WORKLOADS)
def test_blank_states_take_no_memory(name):
    workload = load_workload(name)
    made = state(workload, rank=4, batch=4, blank=True, optimizer="lion")
    for each in made.layers.values():
        for tensor in (each.layer.x, each.layer.weight, each.layer.dy, each.a.w, each.b.w):
            assert tensor is not None and tensor.strides == (0, 0) and tensor[0, 0] == 0
    assert len({each.layer.scales["x"] for each in made.layers.values()}) == len(inputs(workload))


def test_a_blank_state_compiles_to_the_program_of_the_full_one(tmp_path):
    workload = small(tmp_path)
    full, blank = (
        compile_training(state(workload, rank=3, batch=2, blank=blank), preset("tiny"))
        for blank in (False, True)
    )
    assert np.array_equal(full.program, blank.program)
    assert not np.array_equal(full.image, blank.image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank: 0: must be from 1 to 131071"),
        ({"batch": 1.5}, "batch: 1.5: must be an integer"),
        ({"bits": 4}, "bits: 4: must be 8 or 16"),
        ({"seed": -1}, "seed: -1: must be from 0 to 2147483647"),
        ({"delayed": ("Y", "dA")}, "delayed: 'dA': must be among H, Y, dH, dX"),
        ({"optimizer": "adam"}, "optimizer 'adam': must be one of sgd, momentum, lion"),
        ({"batch": 20000}, "batch: 20000: layer q.0 would have 180000 rows: must be below 131072"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(WorkloadError) as caught:
        state(small(tmp_path), **{"rank": 3, "batch": 2} | change)
    assert str(caught.value) == message
