"""Comparison with the golden model, options and traces of `systolora run --backend rtl`."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from systolora.cli import main
from systolora.config import preset
from systolora.contract import COUNTERS, Fault
from systolora_sim import rtl_backend
from systolora_sim.bench.cases import random_layer
from systolora_sim.bench.system import SystemResult
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import write_layer
from systolora_sim.lowering import compile_layer, compile_training
from systolora_sim.memory_map import Symbol
from systolora_sim.numerics import Scale
from systolora_sim.product import Product
from systolora_sim.productfile import write_product
from systolora_sim.rtl_backend import (
    IMAGE_BASE,
    RtlOptions,
    check_results,
    ideal_cycles,
    run_on_rtl,
)
from systolora_sim.runner import BUILD_DIR, RunError
from systolora_sim.statefile import Options, load_state
from systolora_sim.training import run_steps

SEED = 20262
TINY = preset("tiny")
LAYER = random_layer(SEED, 6, 9, 7, 2, want_dx=True, bias=True, delayed=frozenset({"Y"}))


@pytest.fixture
def layer_file(tmp_path):
    path = tmp_path / "layer.safetensors"
    write_layer(path, LAYER)
    return path


def _put(program, image, name: str, change) -> np.ndarray:
    """A copy of an image with one tensor changed."""
    symbol: Symbol = program.symbols[name]
    image = image.copy()
    symbol.write(image, program.base, change(symbol.read(image, program.base)))
    return image


def _add(index, value):
    def change(tensor):
        tensor[index] += value
        return tensor

    return change


def _result(program, image) -> SystemResult:
    """As if a run had left that image, and word n of it had been written in cycle 1000 + n."""
    words = len(image) // 64 + 1
    return SystemResult(
        fault=Fault.NONE, index=0, sticky=frozenset(), word_base=0, step=0, runs_left=0,
        counters=dict.fromkeys(COUNTERS, 0), cycles=0, image=image,
        last_writes=np.arange(1000, 1000 + words, dtype=np.uint64), bus={},
    )  # fmt: skip


def test_check_of_a_layer():
    """Whatever differs is named, with its place and its cycle; the first in program order."""
    program = compile_layer(LAYER, TINY, base=IMAGE_BASE)
    expected = run_layer(LAYER)
    # What the run left, by way of the golden results: every tensor where its symbol says.
    image = program.memory()
    for name, tensor in expected.tensors.items():
        image = _put(program, image, name, lambda _, tensor=tensor: tensor)
        scale = np.array(expected.scales[name], np.int32)
        image = _put(program, image, f"{name}.scale", lambda _, scale=scale: scale)
    record = np.array([expected.amax["Y"]])
    image = _put(program, image, "Y.amax", lambda _: record)
    check_results(program, _result(program, image), 1, expected)

    def refused(name, index, change, *more):
        wrong = _put(program, image, name, change)
        symbol = program.symbols[name]
        row, col = (0, *index) if len(index) == 1 else index[:: -1 if symbol.transposed else 1]
        address = symbol.at(row, col)
        cycle = 1000 + (address - program.base) // 64
        value = symbol.read(image, program.base)[index]
        got = symbol.read(wrong, program.base)[index]
        text = (
            f"not as the golden model: {name}[{', '.join(map(str, index))}] = {got}: must be "
            f"{value} (at {address:#x}, last written in cycle {cycle})"
        )
        with pytest.raises(RunError) as caught:
            check_results(program, _result(program, wrong), 1, expected)
        assert str(caught.value) == text + "".join(more)

    refused("dA", (1, 8), _add((1, 8), 1))
    refused("dB", (6, 1), _add((6, 1), -1))  # transposed in memory
    refused("Y.scale", (1,), _add(1, 1))
    refused("Y.amax", (0,), _add(0, 1))
    refused("Y", (2, 3), _add(([2, 2, 5], [3, 4, 0]), 1), "; 3 elements differ")
    never = dataclasses.replace(
        _result(program, _put(program, image, "H", _add((0, 0), 1))),
        last_writes=np.zeros(len(image), np.uint64),
    )
    with pytest.raises(RunError, match=r"H\[0, 0\] = -?\d+: must be -?\d+ \(at 0x\w+, never wri"):
        check_results(program, never, 1, expected)


def test_check_of_training(layer_file):
    """A whole run is as the golden one; after other steps it is not, and momentum is looked at."""
    options = Options(optimizer="momentum", lr=0.01, weight_decay=0.5)
    state = load_state(layer_file, options, None, None)
    program = compile_training(state, TINY, base=IMAGE_BASE)
    run = run_on_rtl(program, 2, RtlOptions(stall_seed=SEED), BUILD_DIR, progress=False)
    golden = run_steps(state, 2)
    check_results(program, run, 2, golden)
    with pytest.raises(RunError, match="not as the golden model: H"):
        check_results(program, run, 2, run_steps(state, 3))
    image = _put(program, run.image, "lora_B.momentum", _add((0, 1), 1))
    wrong = dataclasses.replace(run, image=image)
    with pytest.raises(RunError, match=r"model: lora_B.momentum\[0, 1\] = .* in cycle \d+\)$"):
        check_results(program, wrong, 2, golden)
    assert ideal_cycles(program) * 2 < run.counters["CYCLES"]


@pytest.mark.parametrize("kind", ["nt", "nn", "tn", "frozen"])
def test_products_and_frozen_layers(kind, tmp_path, capsys):
    """Files without an adapter, with stalls; every element is the golden model's."""
    path, out = tmp_path / "in.safetensors", tmp_path / "out"
    rng = np.random.default_rng(SEED)

    def operand(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    m, k, n = 9, 10, 7
    if kind == "frozen":
        write_layer(path, random_layer(SEED, m, k, n, 0, want_dx=True, bias=True))
    else:
        product = Product(
            name="p",
            kind=kind,
            a=operand(*((k, m) if kind == "tn" else (m, k))),
            b=operand(*((n, k) if kind == "nt" else (k, n))),
            scales={"a": Scale(40000, -20), "b": Scale(50000, -21)},
            c=rng.integers(-(1 << 20), 1 << 20, (m, n)).astype(np.int32),
            stochastic=True,
            bits=16,
        )
        write_product(path, product)
    rtl = ["--backend", "rtl", "--preset", "tiny", "--check", "--stall-seed", SEED]
    assert _run(path, "-o", out, *rtl) == 0
    assert _run(path, "-o", tmp_path / "golden") == 0
    assert out.read_bytes() == (tmp_path / "golden").read_bytes()
    assert capsys.readouterr() == ("", "")


def test_a_fault_is_told():
    program = compile_layer(LAYER, TINY, base=IMAGE_BASE)
    broken = program.program.copy()
    broken[3] = 0
    program = dataclasses.replace(program, program=broken)
    with pytest.raises(RunError, match=r"^the program ended with KIND at descriptor 3$"):
        run_on_rtl(program, 1, RtlOptions(), BUILD_DIR, progress=False)


def test_options_are_checked():
    for fields, message in (
        ({"memory_latency": 0}, "memory latency = 0: must be from 1 to 1048576"),
        ({"trace_window": (0, 5)}, "a trace window without a trace"),
        (
            {"trace_window": (5, 5), "trace": Path("a.fst")},
            "trace window = 5:5: must be FIRST:LIMIT, increasing",
        ),
        (
            {"trace_window": "mismatch", "trace": Path("a.fst")},
            "a trace of a mismatch without a check",
        ),
    ):
        with pytest.raises(RunError) as caught:
            RtlOptions(**fields)
        assert str(caught.value) == message


def _run(*args: object) -> int:
    return main(["run", *map(str, args), "--quiet"])


def test_command_line(layer_file, tmp_path, capsys):
    rtl = ["--backend", "rtl", "--preset", "tiny"]
    plain, traced, wave = (tmp_path / name for name in ("plain", "traced", "wave.vcd"))
    assert _run(layer_file, "-o", plain, *rtl, "--memory-latency", 3) == 0
    window = ["--trace", wave, "--trace-window", "300:320", "--check"]
    assert _run(layer_file, "-o", traced, *rtl, *window) == 0
    assert plain.read_bytes() == traced.read_bytes()
    times = [int(line[1:]) for line in wave.read_text().splitlines() if line.startswith("#")]
    assert (min(times), max(times)) == (3000, 3195)
    assert capsys.readouterr() == ("", "")

    def refused(message, *args):
        try:
            status = _run(layer_file, "-o", tmp_path / "out", *args)
        except SystemExit as stopped:  # argparse's own errors
            status = stopped.code
        assert (status, capsys.readouterr().err) == (2, f"systolora: error: {message}\n")
        assert not (tmp_path / "out").exists()

    refused("--trace: only with --backend rtl", "--trace", wave)
    refused("--check: only with --backend rtl", "--check", "--backend", "machine")
    refused("wave.txt: a trace must end in .fst or .vcd", *rtl, "--trace", "wave.txt")
    rule = "must be A:B, two cycles, or mismatch (see systolora run --help)"
    refused(f"argument --trace-window: '7': {rule}", *rtl, "--trace-window", 7)
    no = tmp_path / "no" / "wave.fst"
    refused(f"{no}: cannot be written: No such file or directory", *rtl, "--trace", no)


def test_a_difference_stops_the_run(layer_file, tmp_path, capsys, monkeypatch):
    """What --check finds is the command's error, and nothing is written."""
    run = rtl_backend.run_on_rtl

    def flipped(program, *args):
        result = run(program, *args)
        return dataclasses.replace(result, image=_put(program, result.image, "H", _add((0, 0), 1)))

    monkeypatch.setattr(rtl_backend, "run_on_rtl", flipped)
    rtl = ["--backend", "rtl", "--preset", "tiny", "--check"]
    assert _run(layer_file, "-o", tmp_path / "out", *rtl) == 2
    assert "error: not as the golden model: H[0, 0] = " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trace_around_a_mismatch(layer_file, tmp_path, capsys, monkeypatch):
    """Nothing is traced while all is right; a wrong element's last write is in the waveform."""
    wave, out = tmp_path / "wave.vcd", tmp_path / "out"
    options = ["--backend", "rtl", "--preset", "tiny", "--check"]
    options += ["--trace", wave, "--trace-window", "mismatch"]
    assert _run(layer_file, "-o", out, *options) == 0
    assert not wave.exists()
    out.unlink()

    def wrong(layer):
        result = run_layer(layer)
        result.tensors["dA"][1, 3] += 1
        return result

    monkeypatch.setattr("systolora_sim.runner.run_layer", wrong)
    assert _run(layer_file, "-o", out, *options) == 2
    message = capsys.readouterr().err
    found = re.search(
        r"dA\[1, 3\] = .*last written in cycle (\d+)\); cycles (\d+) to (\d+) are in", message
    )
    assert found is not None, message
    cycle, first, last = map(int, found.groups())
    assert first <= cycle < last
    times = [int(line[1:]) for line in wave.read_text().splitlines() if line.startswith("#")]
    assert (min(times), max(times)) == (10 * first, 10 * last + 5)
    assert not out.exists()
