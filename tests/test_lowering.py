"""Compiled programs on the functional machine: the bits of the golden model, in every schedule."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from systolora.config import AcceleratorConfig, preset
from systolora.contract import Fault, Kind, Opcode
from systolora_sim import golden
from systolora_sim.bench.cases import random_state
from systolora_sim.descriptor import decode
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.lowering import (
    CompileError,
    compile_layer,
    compile_product,
    compile_training,
)
from systolora_sim.numerics import ONE, Scale
from systolora_sim.post_builder import PostBuilder, Step
from systolora_sim.product import Product, ProductResult, run_product_golden
from systolora_sim.quantization import ASIDE, IN_PRODUCTS
from systolora_sim.step_program import StepProgram, read_back
from systolora_sim.system_machine import Memory, RunResult, SystemMachine
from systolora_sim.training import LayerState, TrainingResult, TrainingState, run_steps
from test_golden import gaussian, quantized_layer
from test_training import KINDS, same, same_result, state_of

SEED = 1311
TINY, ECP5, DEFAULT = preset("tiny"), preset("ecp5"), preset("default")
#: Arrays of other shapes, buses and buffers; the smallest of everything among them.
ODD = {
    "flat": AcceleratorConfig(
        rows=4, cols=16, segments=4, acc_depth=32, bus_bits=64, act_bytes=1 << 12,
        wgt_bytes=1 << 12,
    ),
    "tall": AcceleratorConfig(
        rows=16, cols=4, segments=2, acc_depth=64, bus_bits=512, act_bytes=1 << 12,
        wgt_bytes=1 << 13,
    ),
    "least": AcceleratorConfig(
        rows=4, cols=4, segments=4, acc_depth=16, bus_bits=64, act_bytes=128, wgt_bytes=64
    ),
    "wide bus": AcceleratorConfig(
        rows=8, cols=8, segments=8, acc_depth=32, bus_bits=512, act_bytes=1 << 10,
        wgt_bytes=1 << 10,
    ),
}  # fmt: skip


def run(
    program: StepProgram, image: np.ndarray | None = None, runs: int = 1
) -> tuple[np.ndarray, RunResult]:
    """Memory after the runs, proven free of races."""
    memory = Memory(program.base, program.memory())
    if image is not None:
        memory.data[: program.image.size] = image[: program.image.size]
    machine = SystemMachine(
        program.config, memory, program.read_window, program.write_window, strict=True
    )
    result = machine.run(program.address, program.length, runs, program.word_base, program.step)
    assert result.fault == Fault.NONE, result
    return memory.data, result


def explain(got: LayerResult, want: LayerResult) -> str:
    """Which tensors, scales and records differ."""
    names = [n for n, t in want.tensors.items() if not np.array_equal(t, got.tensors[n])]
    scales = [n for n, scale in want.scales.items() if scale != got.scales[n]]
    return f"tensors {names}, scales {scales}, {got.amax, want.amax, got.sticky, want.sticky}"


def check_training(state: TrainingState, config: AcceleratorConfig, runs: int = 1) -> StepProgram:
    program = compile_training(state, config)
    image, _ = run(program, runs=runs)
    got, want = read_back(program, image, runs), run_steps(state, runs)
    assert isinstance(got, TrainingResult)
    for name, result in want.results.items():
        if runs > 1:  # the program's words collect what the golden model gives for each step
            got.results[name].sticky = result.sticky
        assert same_result(got.results[name], result), explain(got.results[name], result)
    assert same(got, want)
    return program


def check_layer(layer: Any, config: AcceleratorConfig) -> StepProgram:
    program = compile_layer(layer, config)
    got, want = read_back(program, run(program)[0]), golden.run_layer(layer)
    assert isinstance(got, LayerResult)
    assert same_result(got, want), explain(got, want)
    return program


@pytest.mark.parametrize("config", [TINY, ECP5, DEFAULT, *ODD.values()])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_golden_step(config, kind):
    check_training(state_of(kind, decay=0.01), config)


@pytest.mark.parametrize("config", [TINY, ODD["flat"], ODD["tall"]])
def test_several_layers_and_runs(config):
    check_training(state_of("momentum", layers=3, delayed=frozenset(["Y", "dX"])), config, runs=3)


@pytest.mark.parametrize(
    "modes",
    [
        {"delayed": frozenset(["H", "Y", "dH", "dX"])},
        {"stochastic": frozenset(["H", "Y", "dH", "dX"])},
        {
            "delayed": frozenset(["H", "Y", "dH", "dX"]),
            "stochastic": frozenset(["H", "dX"]),
            "amax": {"H": 900, "Y": 5000, "dH": 1000, "dX": 3000},
        },
        {"bits": {"H": 16, "Y": 16, "dH": 16, "dX": 16}},
    ],
)
def test_modes(modes):
    for config in (TINY, ODD["least"]):
        check_training(state_of("sgd", **modes), config, runs=2)


@pytest.mark.parametrize(
    "widths",
    [
        16,
        {"x": 16, "weight": 8, "lora_A": 16, "lora_B": 8, "dy": 8},
        {"x": 8, "weight": 8, "lora_A": 8, "lora_B": 16, "dy": 16},
    ],
)
@pytest.mark.parametrize("config", [TINY, *ODD.values()])
def test_widths(widths, config):
    check_training(state_of("lion", widths=widths), config)


@pytest.mark.parametrize(
    ("n", "d", "k", "r"),
    [(1, 1, 1, 1), (37, 50, 21, 5), (9, 130, 40, 17), (70, 9, 66, 33), (20, 40, 300, 3)],
)
@pytest.mark.parametrize("config", [TINY, ECP5, DEFAULT, *ODD.values()])
def test_shapes(n, d, k, r, config):
    layer = quantized_layer(gaussian(n, d, k, r, SEED), want_dx=True)
    check_layer(layer, config)


# Frozen layers and bare products --------------------------------------------------------------


def operand(rng: np.random.Generator, rows: int, cols: int, bits: int) -> np.ndarray:
    limit = 1 << (bits - 1)
    return rng.integers(-limit, limit, (rows, cols)).astype(f"int{bits}")


@pytest.mark.parametrize("config", [TINY, DEFAULT, *ODD.values()])
@pytest.mark.parametrize("want_dx", [False, True])
def test_frozen_layers(want_dx, config):
    rng = np.random.default_rng(SEED)
    names = {"x": (19, 45), "weight": (23, 45)} | ({"dy": (19, 23)} if want_dx else {})
    layer = Layer(
        name="frozen",
        **{name: operand(rng, *shape, 8) for name, shape in names.items()},
        scales={name: Scale(40000 + n, -3 - n) for n, name in enumerate(names)},
        bias=rng.integers(-(1 << 31), 1 << 31, 23).astype(np.int32),
        want_dx=want_dx,
    )  # fmt: skip
    check_layer(layer, config)


@pytest.mark.parametrize("config", [TINY, DEFAULT, *ODD.values()])
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
def test_bare_products(kind, config):
    rng = np.random.default_rng(SEED)
    cases: list[tuple[tuple[int, int, int], tuple[int, int], dict[str, Any]]] = [
        ((33, 70, 18), (8, 8), {}),
        ((5, 300, 9), (16, 16), {"stochastic": True}),
        ((40, 21, 30), (8, 16), {"delayed": True, "amax": 1 << 18, "bits": 16}),
        ((20, 40, 50), (8, 8), {"delayed": True, "c": True, "bias": True}),
    ]
    for (m, k, n), widths, extra in cases:
        shapes = Product.AXES[kind]
        size = {"M": m, "K": k, "N": n}
        pair = {}
        for name, bits in zip("ab", widths, strict=True):
            rows, cols = (size[axis] for axis in shapes[name])
            pair[name] = operand(rng, rows, cols, bits)
        if extra.pop("c", False):
            extra["c"] = rng.integers(-(1 << 30), 1 << 30, (m, n)).astype(np.int64)
        if extra.pop("bias", False):
            extra["bias"] = rng.integers(-(1 << 31), 1 << 31, n).astype(np.int32)
        product = Product(
            name="p",
            kind=kind,
            **pair,
            scales={"a": Scale(50000, -5), "b": Scale(60000, 2)},
            seed=7,
            step=3,
            **extra,
        )  # fmt: skip
        program = compile_product(product, config)
        got, want = read_back(program, run(program)[0]), run_product_golden(product)
        assert isinstance(got, ProductResult)
        assert same_result(got, want), explain(got, want)


# Phases, images, what cannot be compiled ------------------------------------------------------


def test_phases_on_one_image_are_a_step():
    state = state_of("lion", layers=2, delayed=frozenset(["dX"]))
    whole = compile_training(state, TINY)
    expected = read_back(whole, run(whole)[0])
    assert isinstance(expected, TrainingResult)
    image = None
    for phase in ("forward", "backward", "update"):
        program = compile_training(state, TINY, phase)
        assert np.array_equal(program.image, whole.image)
        assert program.symbols == whole.symbols
        image, _ = run(program, image)
        got = read_back(program, image)
        assert isinstance(got, TrainingResult)
        for name, result in got.results.items():
            for tensor, values in result.tensors.items():
                assert np.array_equal(values, expected.results[name].tensors[tensor])
        if phase == "forward":
            assert list(got.results["mid"].tensors) == ["H", "Y", "Y_acc"]
        assert got.state.step == state.step + (phase == "update")
    assert same(got, expected)


def test_a_base_moves_everything():
    state = state_of()
    low, high = (compile_training(state, TINY, base=base) for base in (0, 1 << 39))
    assert np.array_equal(low.image, high.image)
    assert high.address - low.address == 1 << 39
    assert same(*(read_back(p, run(p)[0]) for p in (low, high)))  # type: ignore[arg-type]


def test_only_what_is_written_is_in_the_write_window():
    program = compile_training(state_of("momentum"), TINY)
    image, _ = run(program)
    first = program.write_window[0] - program.base
    assert np.array_equal(image[:first], program.image[:first])
    held = program.symbols["down/0/lora_A.master"]
    assert program.write_window[0] <= held.address
    assert program.symbols["down/0/x"].address < program.write_window[0]


def test_layers_share_equal_inputs():
    state = state_of(layers=2)
    first = state.layers["down/0"]
    shared = {name: replace(each, layer=each.layer) for name, each in state.layers.items()}
    twin = replace(first.layer, name="twin", index=1)
    shared["mid"] = LayerState(
        layer=twin, a=replace(first.a, tensor_id=2), b=replace(first.b, tensor_id=3)
    )
    state = replace(state, layers=shared)
    program = check_training(state, TINY, runs=2)
    assert program.symbols["mid/x"] == program.symbols["down/0/x"]


def test_what_cannot_be_compiled_is_refused():
    narrow = TINY.with_fields(int16=False)
    wide = state_of(widths=16)
    with pytest.raises(CompileError, match=r"layer down/0: x is int16: .* without int16"):
        compile_training(wide, narrow)
    with pytest.raises(CompileError, match=r"bits\.Y = 16: .* without int16"):
        compile_training(state_of(bits={"Y": 16}), narrow)
    with pytest.raises(CompileError, match=r"Y\.amax = 4294967296: must be below 2\^32"):
        compile_training(state_of(delayed=frozenset(["Y"]), amax={"Y": 1 << 32}), narrow)
    with pytest.raises(CompileError, match="phase = 'sideways': must be one of step, forward"):
        compile_training(state_of(), TINY, "sideways")
    layer = quantized_layer(gaussian(3, 4, 5, 2))
    with pytest.raises(CompileError, match="a layer without masters has none"):
        compile_layer(layer, TINY, "update")
    with pytest.raises(CompileError, match=r"end at 0x.*: must be at most 2\^address_bits"):
        compile_layer(layer, TINY, base=(1 << 40) - 64)
    product = Product(
        name="p",
        kind="nn",
        a=np.ones((2, 3), np.int16),
        b=np.ones((3, 2), np.int8),
        scales={"a": ONE, "b": ONE},
    )
    with pytest.raises(CompileError, match=r"a is int16: .* without int16"):
        compile_product(product, narrow)


def test_configurations_without_int16():
    check_training(state_of("lion", decay=0.01), TINY.with_fields(int16=False), runs=2)
    check_training(state_of("sgd"), ODD["tall"].with_fields(int16=False))


def test_more_column_blocks_than_tokens():
    layer = quantized_layer(gaussian(33, 1100, 5, 2, SEED), want_dx=True)
    check_layer(layer, TINY)


def test_a_program_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("systolora_sim.post_builder.PROGRAM_MAX", 50)
    with pytest.raises(CompileError, match="has 51 descriptors or more: must be at most"):
        compile_layer(quantized_layer(gaussian(33, 40, 50, 2)), TINY)


def test_many_layers_wait_for_quantization():
    """More tensors that are quantized late than there are Scale registers."""
    state = state_of(layers=2)
    first, second = state.layers["down/0"], state.layers["mid"]
    layers = {}
    for index in range(20):
        each = (first, second)[index % 2]
        layers[f"{index:02}"] = replace(
            each,
            layer=replace(each.layer, index=index),
            a=replace(each.a, tensor_id=2 * index),
            b=replace(each.b, tensor_id=2 * index + 1),
        )
    check_training(replace(state, layers=layers), ODD["least"])


# Large operands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("modes", [{}, {"H": 900, "Y": 5000, "dH": 1000, "dX": 3000}])
def test_large_tensors_are_quantized_in_pieces(modes, bits, monkeypatch):
    """Between pieces come other tensors' maxima, status words and steps that are needed first."""
    monkeypatch.setattr("systolora_sim.quantization.CHUNK", 8)
    names = frozenset(["H", "Y", "dH", "dX"]) if modes else frozenset[str]()
    for stochastic in (frozenset[str](), frozenset(["H", "dH"])):
        state = state_of(
            "momentum", layers=3, delayed=names, stochastic=stochastic, amax=modes, widths=bits
        )
        check_training(state, TINY, runs=2)
    layer = quantized_layer(gaussian(90, 33, 40, 7, SEED), want_dx=True)
    whole = compile_layer(layer, TINY)
    monkeypatch.setattr("systolora_sim.quantization.CHUNK", 1 << 20)
    assert compile_layer(layer, TINY).length < whole.length
    monkeypatch.setattr("systolora_sim.quantization.CHUNK", 8)
    check_layer(layer, TINY)


def test_pieces_select_their_own_maximum(monkeypatch):
    """Whether clipped values count depends on the last AMAX_SELECT, which others make, too."""
    monkeypatch.setattr("systolora_sim.quantization.CHUNK", 8)
    modes = dict.fromkeys(("H", "Y", "dH", "dX"), 700)
    state = random_state(SEED, [(60, 40, 60, 3), (60, 60, 40, 3), (60, 40, 40, 3)], "sgd")
    layers = {
        name: replace(each, layer=replace(each.layer, delayed=frozenset(modes), amax=modes))
        for name, each in state.layers.items()
    }
    program = check_training(replace(state, layers=layers), TINY)
    aside = [
        (symbol.address, symbol.address + symbol.size * symbol.itemsize)
        for name, symbol in program.symbols.items()
        if name.split("/")[-1] in ("H", "dH")
    ]
    selected, found, changes = -1, set(), 0
    for data in program.program:
        kind, fields = decode(data.tobytes())
        if kind != Kind.POST:
            continue
        if fields["opcode"] == Opcode.AMAX_SELECT:
            changes += fields["dst"] != selected
            selected = fields["dst"]
        elif fields["opcode"] == Opcode.ROWS and fields["delayed"]:
            is_aside = any(first <= fields["out_address"] < end for first, end in aside)
            found.add((is_aside, selected))
    assert found == {(True, ASIDE.reference), (False, IN_PRODUCTS.reference)}
    assert changes > 40  # pieces, and rows of products between them


def test_nothing_with_maxima_comes_between_pieces():
    """What is needed first waits for the rest of a tensor that has begun."""
    program = compile_training(state_of("sgd"), TINY)
    builder = PostBuilder(TINY, program.symbols)
    word = next(s for name, s in program.symbols.items() if name.endswith("sticky")).area()
    came: list[str] = []

    def step(text: str, name: str, opens: bool = False) -> Step:
        return Step(
            lambda _w, _u: came.append(text), 0, 1, 10, name=name, maxima=True, opens=opens
        )  # fmt: skip

    builder.put_off_until(5, word, [step("H 0", "H", True), step("H 1", "H", True)])
    builder.put_off_until(5, word, [step("H 2", "H")])
    builder.step_burst = 1
    builder.spare(1000)
    assert came == ["H 0"]
    builder.put_off_until(2, word, [step("copy", "A"), step("other", "B")])
    builder.spare(1000)
    assert came == ["H 0", "H 1"]
    builder.need("B")
    assert came == ["H 0", "H 1", "H 2", "other"]
    builder.need("H", "A")
    assert came == ["H 0", "H 1", "H 2", "other", "copy"]


def loaded(program: StepProgram, name: str) -> int:
    """Bytes that the LOADs of a program take from a tensor."""
    symbol, total = program.symbols[name], 0
    for data in program.program:
        kind, fields = decode(data.tobytes())
        if kind == Kind.LOAD and 0 <= fields["address"] - symbol.address < symbol.size:
            total += fields["rows"] * fields["row_bytes"]
    return total


@pytest.mark.parametrize(("rank", "blocks"), [(0, 4), (3, 2)])
def test_rows_that_do_not_stay_come_once_for_a_panel(rank, blocks):
    """Of as many column blocks as there are banks, or pairs of them with a low-rank term."""
    config = TINY.with_fields(act_bytes=1 << 10)
    n, d, k = config.bank_depth, 6 * config.cols, 160
    assert n * k > config.act_bytes
    layer = quantized_layer(gaussian(n, k, d, max(rank, 1), SEED))
    if not rank:
        scales = {name: layer.scales[name] for name in ("x", "weight")}
        layer = Layer(name="frozen", x=layer.x, weight=layer.weight, scales=scales)
    program = check_layer(layer, config)
    panels = -(-(d // config.cols) // blocks)
    others = 2 * n * k if rank else 0  # H and dA
    assert panels * n * k <= loaded(program, "x") <= panels * n * k + others
