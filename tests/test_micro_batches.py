"""Steps of a batch in pieces: the bits of the whole batch, on the machine and on the Verilog."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simulated import CONFIGS
from systolora.cli import main
from systolora.config import AcceleratorConfig, preset
from systolora_sim.bench.cases import random_state
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.memory_map import Symbol, cut
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, mismatches, run_on_rtl
from systolora_sim.runner import BUILD_DIR
from systolora_sim.step_file import load_step
from systolora_sim.step_program import read_back
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from test_lowering import ODD
from test_sharing import shared_state
from test_training import same, same_result

SEED = 6300
TINY = preset("tiny")
OUTPUTS = frozenset({"H", "Y", "dH", "dX"})
#: Records that clip some values, and that the next one exceeds.
RECORDS = {"H": 4000, "Y": 9000, "dH": 4000, "dX": 9000}
MODES: dict[str, Any] = {"delayed": OUTPUTS, "amax": RECORDS, "stochastic": OUTPUTS}


def state_of(
    shapes: list[tuple[int, int, int, int]], kind: str = "momentum", **fields: Any
) -> TrainingState:
    return random_state(SEED, shapes, kind, **(MODES | fields))


def check(
    state: TrainingState, config: AcceleratorConfig, pieces: int, runs: int = 2, **options: Any
) -> None:
    program = compile_training(state, config, micro_batches=pieces, **options)
    got, want = read_back(program, run_program(program, runs), runs), run_steps(state, runs)
    assert isinstance(got, TrainingResult)
    for name, result in want.results.items():
        if runs > 1:
            got.results[name].sticky = result.sticky  # the words collect those of all steps
        assert same_result(got.results[name], result)
    assert same(got, want)


def test_pieces_are_nearly_equal():
    assert cut(13, 5) == [(0, 3), (3, 3), (6, 3), (9, 2), (11, 2)]
    assert cut(4, 4) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert cut(7, 1) == [(0, 7)]


@pytest.mark.parametrize("config", [TINY, preset("default"), *ODD.values()])
@pytest.mark.parametrize("pieces", [2, 5, 13])
def test_pieces_give_the_bits_of_the_batch(pieces, config):
    check(state_of([(13, 20, 17, 3)]), config, pieces)


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy"), 16)},
        {"bits": {"H": 16, "dX": 16}, "bias": True},
        {"extremes": True},
    ],
)
def test_widths_and_extremes(fields):
    state = state_of([(21, 19, 9, 4), (17, 6, 30, 2)], "lion", **fields)
    for config in (TINY, ODD["wide bus"]):
        check(state, config, 4, runs=1)


@pytest.mark.parametrize("schedule", ["ws", "os", "mixed"])
def test_schedules_in_pieces(schedule):
    check(state_of([(21, 19, 9, 4), (17, 6, 30, 2)]), TINY, 3, schedule=schedule)


@pytest.mark.parametrize("schedule", ["auto", "mixed"])
def test_pieces_of_shared_inputs(schedule):
    state = shared_state([(18, 3), (9, 5), (7, 2)], n=23, apart=1, **MODES)
    for config in (TINY, ODD["least"]):
        check(state, config, 3, schedule=schedule)


def test_the_image_but_for_its_order_is_that_of_the_batch():
    """Everything that a result is read from, after every phase."""
    state = state_of([(13, 20, 17, 3)])
    image, phases = None, ("forward", "backward", "update")
    for phase in phases:
        program = compile_training(state, TINY, phase, micro_batches=4)
        image = run_program(program, image=image)
    assert image is not None
    got, want = read_back(program, image), run_steps(state, 1)
    assert isinstance(got, TrainingResult)
    assert same(got, want)


def test_records_are_maxima_of_all_pieces():
    """The largest value is in the first piece, in the last one, and below the old record."""
    state = state_of([(12, 8, 6, 2)])
    each = state.layers["layer0"]
    for row in (0, 11):
        x, dy = np.zeros_like(each.layer.x), np.zeros_like(each.layer.dy)
        x[row], dy[row] = 100, -100
        layer = replace(each.layer, x=x, dy=dy)
        check(replace(state, layers={"layer0": replace(each, layer=layer)}), TINY, 3, runs=3)
    zero = replace(each.layer, x=np.zeros_like(each.layer.x), dy=np.zeros_like(each.layer.dy))
    check(replace(state, layers={"layer0": replace(each, layer=zero)}), TINY, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_pieces_on_rtl(name):
    state = shared_state([(18, 3), (9, 5), (7, 2)], n=23, apart=1, **MODES)
    print(f"seed {SEED}, stall seed 8")
    program = compile_training(state, CONFIGS[name], micro_batches=3, base=IMAGE_BASE)
    options = RtlOptions(stall_seed=8)
    result = run_on_rtl(program, 2, options, Path(BUILD_DIR), progress=False)
    assert mismatches(program, result, 2, run_steps(state, 2)) == []
    np.testing.assert_array_equal(run_program(program, 2), result.image)


# What is refused ------------------------------------------------------------------------------


def refused(state: TrainingState, pieces: int, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        compile_training(state, TINY, micro_batches=pieces)


def test_what_has_no_scale_yet_is_refused():
    shapes = [(6, 5, 4, 2), (5, 5, 4, 2)]
    others = {tensor: record for tensor, record in RECORDS.items() if tensor != "dH"}
    late = state_of(shapes, delayed=OUTPUTS - {"dH"}, amax=others)
    refused(late, 2, r"layer layer0: micro-batches = 2: dH is quantized just in time: must be del")
    new = state_of(shapes, amax={**RECORDS, "Y": 0})
    refused(new, 3, r"layer layer0: .* = 3: Y has no record .*: must be delayed with Y.amax not 0")
    good = state_of(shapes)
    refused(good, 6, r"layer layer1: micro-batches = 6: must be at most N = 5")
    refused(good, 0, r"micro-batches = 0: must be at least 1")
    compile_training(late, TINY, micro_batches=1)


# Files ----------------------------------------------------------------------------------------


@pytest.fixture
def layers(tmp_path) -> Path:
    """Two layers of float32 tensors with one x, in all the modes that pieces need."""
    rng = np.random.default_rng(SEED)
    x, tensors = rng.normal(size=(7, 9)).astype(np.float32), {}
    for name in ("q", "v"):
        tensors[f"{name}/x"] = x
        for tensor, shape in (
            ("weight", (6, 9)), ("lora_A", (2, 9)), ("lora_B", (6, 2)), ("dy", (7, 6)),
        ):  # fmt: skip
            tensors[f"{name}/{tensor}"] = rng.normal(size=shape).astype(np.float32)
        tensors[f"{name}/gain"] = np.array([0.5], np.float32)
    modes = {"want_dx": "1", "delayed": "H,Y,dH,dX", "stochastic": "H,Y,dH,dX"}
    metadata = {f"{name}/{key}": value for name in ("q", "v") for key, value in modes.items()}
    path = tmp_path / "layers.safetensors"
    save_file(tensors, path, metadata)
    return path


def test_run_and_compile(layers, tmp_path, capsys):
    first, whole, out = (tmp_path / name for name in ("first", "whole", "out"))

    def run(command: str, *args: object) -> int:
        return main([command, *map(str, (layers, "-o", *args))])

    assert run("run", first, "--optimizer", "lion", "--lr", 0.01) == 0
    again = ["--resume", first, "--steps", 2]
    assert run("run", whole, *again) == 0
    for backend in ("golden", "machine", "rtl"):
        pieces = ["--micro-batches", 3, "--backend", backend, "--preset", "tiny", "-q"]
        assert run("run", out, *again, *pieces) == 0
        assert out.read_bytes() == whole.read_bytes()
    assert run("compile", out, *again, "--micro-batches", 3, "--preset", "tiny") == 0
    program = load_step(out)
    assert program.symbols["q/H"].pieces == 3
    got = read_back(program, run_program(program, 2), 2)
    assert isinstance(got, TrainingResult)
    held = load_file(whole)
    assert np.array_equal(got.results["v"].tensors["dH"], held["v/dH"])
    assert np.array_equal(got.state.layers["v"].a.w, held["v/lora_A.master"])
    capsys.readouterr()
    assert main(["disasm", str(out)]) == 0
    assert "q/H int8 [2, 7] stride 64, 3 pieces of columns every 128" in capsys.readouterr().out


def test_options_that_cannot_be(layers, tmp_path, capsys):
    out = str(tmp_path / "out")
    args = [str(layers), "-o", out, "--optimizer", "sgd", "--lr", "0.1", "--micro-batches"]
    for command, count, message in (
        ("run", "2", "layer q: micro-batches = 2: H has no record of an earlier step: must be"),
        ("compile", "2", "layer q: micro-batches = 2: H has no record of an earlier step: must be"),
        ("run", "0", "micro-batches = 0: must be at least 1"),
        ("run", "8", "layer q: micro-batches = 8: must be at most N = 7"),
    ):
        assert main([command, *args, count]) == 2
        assert message in capsys.readouterr().err


def test_a_tensor_in_pieces():
    rows = Symbol("H", 64, 2, 7, "int8", 64, transposed=True, pieces=3, piece_stride=128)
    tensor = np.arange(14, dtype=np.int8).reshape(7, 2)
    image = np.zeros(512, np.uint8)
    rows.write(image, 0, tensor)
    assert np.array_equal(rows.read(image, 0), tensor)
    assert [int(image[rows.at(1, col)]) for col in range(7)] == tensor[:, 1].tolist()
    assert rows.at(0, 3) == 64 + 128 and rows.size == 2 * 128 + 2 * 64
    assert rows.piece(2).at(1, 1) == rows.at(1, 6)
