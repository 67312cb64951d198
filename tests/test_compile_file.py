"""`systolora compile` and `disasm`: layers, training and products to program files and text."""

import numpy as np
import pytest

from systolora.cli import main
from systolora.config import preset
from systolora_sim.descriptor import assemble
from systolora_sim.golden import run_layer
from systolora_sim.layer import Layer, LayerResult
from systolora_sim.layerfile import load_layer, write_layer
from systolora_sim.machine_backend import run_program
from systolora_sim.numerics import ONE
from systolora_sim.product import Product, run_product_golden
from systolora_sim.productfile import load_product, write_product
from systolora_sim.statefile import Options, load_state
from systolora_sim.step_file import load_step
from systolora_sim.step_program import read_back
from systolora_sim.training import TrainingResult, run_steps
from test_golden import gaussian, quantized_layer
from test_training import same, same_result


@pytest.fixture
def layer_file(tmp_path):
    path = tmp_path / "layer.safetensors"
    write_layer(path, quantized_layer(gaussian(9, 12, 10, 3), want_dx=True))
    return path


def run(*args) -> int:
    return main([str(arg) for arg in args])


def refused(capsys, message: str, *args) -> None:
    assert run(*args) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert message in captured.err


def test_training(layer_file, tmp_path, capsys):
    out = tmp_path / "step.slp"
    options = ["--optimizer", "momentum", "--lr", 0.5, "--steps", 3, "--preset", "tiny"]
    assert run("compile", layer_file, "-o", out, *options, "--base", "0x10000") == 0
    printed = capsys.readouterr()
    assert "descriptors at 0x" in printed.out and printed.err == ""
    program = load_step(out)
    assert (program.runs, program.base, program.config) == (3, 0x10000, preset("tiny"))
    state = load_state(layer_file, Options(optimizer="momentum", lr=0.5))
    got = read_back(program, run_program(program, 3), 3)
    want = run_steps(state, 3)
    assert isinstance(got, TrainingResult)
    assert same(got, want)


def test_layers_products_and_text(layer_file, tmp_path, capsys):
    out, other = tmp_path / "layer.slp", tmp_path / "product"
    assert run("compile", layer_file, "-o", out, "--rows", 8) == 0
    got = read_back(load_step(out), run_program(load_step(out)))
    assert isinstance(got, LayerResult)
    assert same_result(got, run_layer(load_layer(layer_file)))
    capsys.readouterr()
    assert run("disasm", out) == 0
    text = capsys.readouterr().out
    assert text.startswith("# layer, phase step, configuration ")
    assert " Y_acc int32 [9, 10] stride 64\n" in text
    assert assemble(text) == load_step(out).program.tobytes()

    a, b = np.arange(12, dtype=np.int8).reshape(3, 4), np.ones((4, 5), np.int8)
    write_product(other, Product(name="p", kind="nn", a=a, b=b, scales={"a": ONE, "b": ONE}))
    assert run("compile", other, "-o", out) == 0
    got = read_back(load_step(out), run_program(load_step(out)))
    assert isinstance(got, LayerResult)
    assert same_result(got, run_product_golden(load_product(other)))
    capsys.readouterr()
    refused(capsys, "phase = 'forward': a product has none", "compile", other, "-o", out,
            "--phase", "forward")  # fmt: skip


def test_bad_input_is_one_line(layer_file, tmp_path, capsys):
    out = tmp_path / "out"
    for message, *args in (
        ("layer.safetensors: phase = 'x': must be one of step, forward", "--phase", "x"),
        ("base = 0x20: must be a multiple of 64 below 2^40", "--base", 32),
        ("steps = 0: must be from 1 to", "--steps", 0, "--optimizer", "sgd", "--lr", 1),
        ("layer.safetensors: lr.scale: missing tensor", "--optimizer", "sgd"),
        ("layer.safetensors: phase = 'update': a layer without masters", "--phase", "update"),
    ):
        refused(capsys, message, "compile", layer_file, "-o", out, *args)
    refused(capsys, "none: cannot be read", "compile", tmp_path / "none", "-o", out)
    refused(capsys, "it is also", "compile", layer_file, "-o", layer_file)
    refused(capsys, "this is no program file", "disasm", layer_file)
    assert not out.exists()


def test_int16_needs_int16(tmp_path, capsys):
    path, wide = tmp_path / "wide", quantized_layer(gaussian(3, 4, 5, 2), 16)
    assert isinstance(wide, Layer)
    write_layer(path, wide)
    refused(capsys, "wide: x is int16: the configuration was generated without int16",
            "compile", path, "-o", tmp_path / "out", "--no-int16")  # fmt: skip
