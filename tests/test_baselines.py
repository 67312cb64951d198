"""Baselines: the golden model's bits on the machine and on the RTL, and the textbook's cycles."""

import re
from pathlib import Path

import numpy as np
import pytest

from simulated import CONFIGS
from systolora.config import preset
from systolora.contract import Dataflow, Edge, Kind
from systolora_sim.baselines import (
    BASELINES,
    BaselineProgram,
    baseline_config,
    compile_baseline,
    textbook_cycles,
)
from systolora_sim.cycle_model import time_program
from systolora_sim.descriptor import decode
from systolora_sim.limits import CompileError
from systolora_sim.machine_backend import run_program
from systolora_sim.perf_attribution import attribute, model_times, split_label
from systolora_sim.perf_rtl import run_watched
from systolora_sim.rtl_backend import IMAGE_BASE, RtlOptions, run_on_rtl
from systolora_sim.runner import BUILD_DIR
from systolora_sim.scalesim import layer_products, ws_cycles
from systolora_sim.step_program import read_back
from systolora_sim.training import TrainingResult, TrainingState, run_steps
from systolora_sim.workload import Workload, WorkloadLayer, load_workload, state
from test_training import same_result, state_of

PAPER = preset("paper")
FENCED = ("textbook-ws", "textbook-ws-better")

#: Shares of the MAC limit in the K and V layers of SD 1.5, percent, by batch and rank: of the
#: closed forms alone, so of an array that memory and post-processor never hold up.
SHARES = {
    "textbook-ws": {(1, 4): 22, (1, 16): 24, (4, 4): 46, (4, 16): 49, (4, 64): 63},
    "textbook-ws-better": {(4, 4): 55, (4, 16): 59},
    "overlapped-ws": {(1, 4): 67, (1, 16): 72, (4, 4): 72, (4, 16): 78, (4, 64): 100},
    "best-of-ws-os": {(1, 4): 73, (1, 16): 78, (4, 4): 73, (4, 16): 78, (4, 64): 100},
}

#: Layers with one input and with one of their own, with and without dX.
LAYERS = (
    WorkloadLayer(name="a", input="x", rows=13, d=20, k=17, dx=False),
    WorkloadLayer(name="b", input="x", rows=13, d=20, k=40, dx=False),
    WorkloadLayer(name="c", input="y", rows=9, d=12, k=21, dx=True),
)


def workload(*layers: WorkloadLayer) -> Workload:
    return Workload(name="small", title="small", source="made up", layers=layers)


def share(layers: tuple[WorkloadLayer, ...], rank: int, batch: int, cycles: int) -> float:
    """Of the MAC limit."""
    macs = sum(sum(layer.macs(rank, batch).values()) for layer in layers)
    return macs / (PAPER.rows * PAPER.cols) / cycles


# Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARES)
def test_shares_by_the_closed_forms(name):
    layers = load_workload("sd15-kv").layers
    for (batch, rank), percent in SHARES[name].items():
        cycles = sum(textbook_cycles(name, layers, rank, batch, PAPER).values())
        # Half a percent is half: 72.5 is called 73
        assert share(layers, rank, batch, cycles) * 100 == pytest.approx(percent, abs=0.56)


def test_the_textbook_is_that_of_scalesim():
    """Two independent writings of the closed form, dB and dA as the step writes them."""
    for layer in load_workload("sd15-kv").layers:
        found = textbook_cycles("textbook-ws", (layer,), 4, 4, PAPER)
        gemms = layer_products(4 * layer.rows, layer.d, layer.k, 4, dx=False)
        gemms["Y term"] = gemms.pop("term")
        gemms["dA"] = gemms["dA"].transposed
        assert found == {name: ws_cycles(gemm) + 1 for name, gemm in gemms.items()}


def test_better_is_never_worse():
    layers = load_workload("sd15-kv").layers + LAYERS
    for batch, rank, bits in ((1, 4, 8), (4, 16, 8), (2, 7, 16)):
        cycles = {
            name: sum(textbook_cycles(name, layers, rank, batch, PAPER, bits).values())
            for name in BASELINES
        }
        assert cycles["textbook-ws-better"] <= cycles["textbook-ws"]
        assert cycles["overlapped-ws"] < cycles["textbook-ws-better"]
        assert cycles["best-of-ws-os"] <= min(cycles["overlapped-ws"], cycles["overlapped-os"])


# Bits -----------------------------------------------------------------------------------------


def check_bits(program: BaselineProgram, image: np.ndarray, before: TrainingState) -> None:
    """Results, masters and records of one step are the golden model's."""
    got, want = read_back(program, image), run_steps(before, 1)
    assert isinstance(got, TrainingResult)
    for name, result in want.results.items():
        del result.tensors["Y_acc"], result.scales["Y_acc"]  # not kept
        assert same_result(got.results[name], result), name
        for number in ("a", "b"):
            after, wanted = (getattr(each.state.layers[name], number) for each in (got, want))
            np.testing.assert_array_equal(after.w, wanted.w)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("config", ["tiny", "8x4s4", "8x16s8", "default"])
@pytest.mark.parametrize("name", BASELINES)
def test_the_machine_leaves_the_golden_bits(name, config, bits):
    before = state(workload(*LAYERS), rank=3, batch=2, bits=bits)
    program = compile_baseline(name, before, CONFIGS.get(config) or preset("default"))
    check_bits(program, run_program(program), before)


@pytest.mark.parametrize("name", BASELINES)
def test_other_modes(name):
    """Just in time, delayed without a record, random words, momenta."""
    modes = {"stochastic": frozenset(["H", "Y", "dH", "dX"]), "delayed": frozenset(["H", "Y"])}
    before = state_of("lion", decay=0.01, layers=2, **modes)
    program = compile_baseline(name, before, preset("tiny"))
    check_bits(program, run_program(program), before)


def test_images_are_what_is_read():
    """A wrong image gives wrong results: the bits above are no accident."""
    before = state(workload(*LAYERS), rank=3, batch=2)
    program = compile_baseline("textbook-ws", before, preset("tiny"))
    assert program.images == ("X as [d, N]", "dY as [k, N]", "dA as [r, d]", "dB as [r, k]")
    image, symbol = program.image.copy(), program.symbols["a/x.dN"]
    image[symbol.address : symbol.address + symbol.size] = 0
    left = read_back(program, run_program(program, image=image))
    assert isinstance(left, TrainingResult)
    assert not left.results["a"].tensors["dA"].any()
    assert left.results["a"].tensors["H"].any()


@pytest.mark.parametrize("name", BASELINES)
def test_blank_states_have_the_same_program(name):
    full, blank = (
        compile_baseline(
            name, state(workload(*LAYERS), rank=3, batch=2, blank=each), preset("tiny")
        )
        for each in (False, True)
    )
    np.testing.assert_array_equal(full.program, blank.program)
    assert full.images == blank.images


@pytest.mark.parametrize("name", BASELINES)
def test_the_rtl_leaves_the_golden_bits(name):
    """And takes the cycles that the model says."""
    before = state(workload(*LAYERS), rank=3, batch=2)
    program = compile_baseline(name, before, CONFIGS["tiny"], base=IMAGE_BASE)
    result = run_on_rtl(program, 1, RtlOptions(), Path(BUILD_DIR), progress=False)
    check_bits(program, result.image, before)
    np.testing.assert_array_equal(run_program(program), result.image)
    model = time_program(program.config, program.program)
    assert model.cycles == pytest.approx(result.cycles, rel=0.01)


# Cycles ---------------------------------------------------------------------------------------


def beyond(name: str, batch: int) -> list[int]:
    """For every EXEC of several tiles: cycles beyond the closed form, from its first tile on."""
    before = state(load_workload("sd15-kv"), rank=4, batch=batch, blank=True)
    program = compile_baseline(name, before, PAPER)
    config, found = program.config, []
    timing = time_program(config, program.program)
    for index, descriptor in enumerate(program.program):
        kind, fields = decode(bytes(descriptor))
        if kind != Kind.EXEC or fields["repeat"] == 1:
            continue
        assert fields["fence"] == (name in FENCED)
        length = fields["length"]
        load = config.left_load if fields["edge"] == Edge.LEFT else config.top_load
        if name in FENCED:
            tile = load + length + config.rows + config.cols + 4
        else:
            is_os = fields["dataflow"] == Dataflow.OS
            tile = max(config.rows if is_os else load, length)
        beats = int(timing.last_beat[index] - timing.first_beat[index]) + 1
        found.append(beats - (fields["repeat"] - 1) * tile - length)
    return found


@pytest.mark.parametrize("name", FENCED)
def test_fenced_tiles_take_the_textbook_and_six_cycles(name):
    """Exactly: load + length + R + C + 4, where the textbook has R + C - 2."""
    found = beyond(name, 1)
    assert len(found) > 200 and set(found) == {0}


@pytest.mark.parametrize("name", ["overlapped-ws", "overlapped-os"])
def test_overlapped_tiles_take_the_textbook(name):
    """Exactly, but for the few that wait in the middle for accumulators."""
    found = beyond(name, 1)
    assert len(found) > 200 and min(found) == 0
    assert found.count(0) >= 0.98 * len(found)


def by_product(program: BaselineProgram, rtl: bool = False) -> dict[str, int]:
    """Cycles from the EXEC before each product's to its own, in the cycle model or the Verilog."""
    times = model_times(program, time_program(program.config, program.program))
    if rtl:
        times = run_watched(program, times, 40, Path(BUILD_DIR), progress=False)[1]
    cycles: dict[str, int] = {}
    for part in attribute(program, times, 0, 0).execs:
        product = split_label(part.label)[0]
        cycles[product] = cycles.get(product, 0) + part.cycles
    return cycles


#: By how much a step may exceed its closed forms, and a product its own, as a part of the step's.
#: dH and dB need about a beat from memory per cycle: they wait for what else comes meanwhile.
BOUNDS = {
    "textbook-ws": (0.02, 0.015),
    "textbook-ws-better": (0.02, 0.015),
    "overlapped-ws": (0.03, 0.015),
    "overlapped-os": (0.04, 0.02),
    "best-of-ws-os": (0.04, 0.02),
}


@pytest.mark.parametrize("name", BASELINES)
def test_products_take_about_their_closed_forms(name):
    """With memory, buffers and a post-processor; six layers, two of each width."""
    layers = load_workload("sd15-kv").layers
    layers = tuple(layer for layer in layers if layer.name.endswith(".0"))
    assert sorted(layer.k for layer in layers) == [320, 320, 640, 640, 1280, 1280]
    before = state(workload(*layers), rank=4, batch=4, blank=True)
    found = by_product(compile_baseline(name, before, PAPER))
    wanted = textbook_cycles(name, layers, 4, 4, PAPER)
    wanted["term"] = wanted.pop("Y term")
    assert found.keys() == wanted.keys()
    whole, (of_step, of_product) = sum(wanted.values()), BOUNDS[name]
    print(name, {key: f"{(found[key] - wanted[key]) / whole:.4f}" for key in wanted})
    assert -0.001 < sum(found.values()) / whole - 1 < of_step
    for product, cycles in wanted.items():
        assert -0.002 * whole < found[product] - cycles < of_product * whole, product


#: Tiles of Y and its term in the layer below on 16 x 16: W stationary, X stationary.
TILES = {"textbook-ws": 6 * 8 + 6, "textbook-ws-better": 4 * 8 + 4}


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_products_on_the_rtl(name):
    """Y with its term in the Verilog: fenced tiles exactly, the others within 4%."""
    layer = WorkloadLayer(name="a", input="x", rows=64, d=128, k=96, dx=False)
    before = state(workload(layer), rank=2, batch=1)
    program = compile_baseline(name, before, preset("default"), base=IMAGE_BASE)
    found = by_product(program, rtl=True)
    wanted = textbook_cycles(name, (layer,), 2, 1, program.config)
    cycles, closed = found["Y"] + found["term"], wanted["Y"] + wanted["Y term"]
    print(name, found, wanted)
    if name in FENCED:
        assert cycles == closed + 6 * TILES[name]
    else:
        assert closed <= cycles <= 1.04 * closed


def documented() -> dict[tuple[str, int], tuple[float, float]]:
    """Of docs/baselines.md: measured share and that of the closed forms, by name and batch."""
    text = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text(encoding="utf-8")
    found = {}
    for name, *cells in re.findall(r"^\| ([a-z-]+)" + r" \| ([\d.]+)%" * 4, text, re.MULTILINE):
        four, closed_four, one, closed_one = map(float, cells)
        found |= {(name, 4): (four, closed_four), (name, 1): (one, closed_one)}
    return found


def test_the_documented_closed_forms():
    layers, table = load_workload("sd15-kv").layers, documented()
    assert len(table) == 2 * len(BASELINES)
    for (name, batch), (_, closed) in table.items():
        cycles = sum(textbook_cycles(name, layers, 4, batch, PAPER).values())
        assert round(100 * share(layers, 4, batch, cycles), 1) == closed


@pytest.mark.slow
def test_the_documented_shares():
    """Within half a point: the compiler's order of loads may move them a little."""
    given = load_workload("sd15-kv")
    for (name, batch), (measured, _) in documented().items():
        before = state(given, rank=4, batch=batch, blank=True)
        program = compile_baseline(name, before, PAPER)
        cycles = time_program(program.config, program.program).cycles
        assert 100 * share(given.layers, 4, batch, cycles) == pytest.approx(measured, abs=0.5)


# Configurations and refusals ------------------------------------------------------------------


def test_configurations():
    for name in BASELINES:
        config = baseline_config(name, PAPER)
        assert config.segments == 1
        assert baseline_config(name, config) == config
        assert (config.acc_depth > PAPER.acc_depth) == (name in FENCED)
        same = ("rows", "cols", "bus_bits", "wgt_bytes")
        assert all(getattr(config, field) == getattr(PAPER, field) for field in same)


def test_refusals():
    before = state(workload(*LAYERS), rank=3, batch=1)
    with pytest.raises(CompileError, match=r"^baseline = 'ws': must be one of textbook-ws, "):
        compile_baseline("ws", before, PAPER)
    with pytest.raises(CompileError, match=r"^baseline = 'ws'"):
        baseline_config("ws", PAPER)
    wide = state(workload(*LAYERS), rank=3, batch=1, bits=16)
    with pytest.raises(CompileError, match=r"^layer a: x is int16: "):
        compile_baseline("overlapped-ws", wide, preset("tiny").with_fields(int16=False))
