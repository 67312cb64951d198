"""Program files: the same program comes back, the bytes are the same, errors are one line."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from systolora.config import preset
from systolora_sim import layerfile
from systolora_sim.layerfile import LayerFileError
from systolora_sim.lowering import compile_layer, compile_training
from systolora_sim.machine_backend import run_program
from systolora_sim.step_file import load_step, save_step
from systolora_sim.step_program import StepProgram, read_back
from systolora_sim.training import run_steps
from test_golden import gaussian, quantized_layer
from test_training import same, state_of

TINY = preset("tiny")


def same_program(a: StepProgram, b: StepProgram) -> bool:
    names = ("config", "phase", "base", "write_base", "word_base", "step", "structure", "runs")
    return (
        all(getattr(a, name) == getattr(b, name) for name in names)
        and np.array_equal(a.program, b.program)
        and np.array_equal(a.image, b.image)
        and a.symbols == b.symbols
    )


def test_a_program_comes_back_and_runs(tmp_path):
    state = state_of("lion", layers=2, delayed=frozenset(["Y"]))
    program = compile_training(state, TINY, base=1 << 32)
    save_step(tmp_path / "a.slp", program)
    loaded = load_step(tmp_path / "a.slp")
    assert same_program(loaded, program)
    save_step(tmp_path / "b.slp", loaded)
    assert (tmp_path / "a.slp").read_bytes() == (tmp_path / "b.slp").read_bytes()
    assert same(read_back(loaded, run_program(loaded)), run_steps(state, 1))  # type: ignore[arg-type]


def test_a_layer_comes_back(tmp_path):
    program = compile_layer(quantized_layer(gaussian(5, 6, 7, 2)), TINY, "forward")
    save_step(tmp_path / "a.slp", program)
    assert same_program(load_step(tmp_path / "a.slp"), program)


def layer_of(content: dict[str, Any]) -> dict[str, Any]:
    return content["structure"]["layers"][0]


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.update(version=2), "step_program.version: 2: must be 1"),
    (lambda c: c.pop("phase"), "step_program.phase: missing"),
    (lambda c: c.update(phase="sleep"), "step_program.phase: 'sleep': must be step or forward"),
    (lambda c: c.update(extra=1), "step_program.extra: unknown field"),
    (lambda c: c.update(base=32), "step_program.base: 32: must be a multiple of 64"),
    (lambda c: c.update(base=1 << 40), "step_program.base: 1099511627776: must be from 0 to"),
    (lambda c: c.update(base=True), "step_program.base: True: must be an integer"),
    (lambda c: c.update(entry=0), "step_program.entry: 0: must be "),
    (lambda c: c.update(length=0), "step_program.length: 0: must be "),
    (lambda c: c.update(runs=0), "step_program.runs: 0: must be from 1 to 4294967295"),
    (lambda c: c.update(word_base=-1), "step_program.word_base: -1: must be from 0 to"),
    (lambda c: c.update(read_window=[0, 1]), "step_program.read_window: [0, 1]: must be [0, "),
    (lambda c: c.update(write_window=[0]), "step_program.write_window: [0]: must be two addresses"),
    (lambda c: c.update(write_window=[0, 5]), "write_window: [0, 5]: must begin in the image"),
    (lambda c: c.update(digest="0"), "step_program.digest: '0': must be "),
    (lambda c: c["config"].pop("rows"), "config.rows: missing"),
    (lambda c: c["config"].update(rows=5), "config: rows = 5: must be a power of two"),
    (lambda c: c["config"].update(speed=5), "config.speed: unknown field"),
    (lambda c: c.update(symbols=[]), "step_program.symbols: []: must be an object"),
    (lambda c: c["symbols"].pop("Y"), "symbols.Y: missing"),
    (lambda c: c["symbols"].pop("Y.scale"), "symbols.Y.scale: missing"),
    (lambda c: c["symbols"]["Y.scale"].update(cols=3), "int32 [1, 3]: must be int32 [2]"),
    (lambda c: c["symbols"]["x"].update(rows=0), "symbols.x.rows: 0: must be from 1 to"),
    (lambda c: c["symbols"]["x"].update(dtype="f4"), "symbols.x.dtype: 'f4': must be int8 or"),
    (lambda c: c["symbols"]["x"].update(address=8), "symbols.x.address: 8: must be a multiple"),
    (lambda c: c["symbols"]["x"].update(stride=65), "symbols.x.stride: 65: must be a multiple"),
    (lambda c: c["symbols"]["x"].update(stride=1 << 20), "symbols.x.address: 0: its 5242880 bytes"),
    (lambda c: c["symbols"]["x"].update(vector=0), "symbols.x.vector: 0: must be true or false"),
    (lambda c: c["structure"].update(kind="song"), "structure.kind: 'song': must be training or"),
    (lambda c: c["structure"].update(optimizer="x"), "structure.optimizer: 'x': must be "),
    (lambda c: c["structure"].update(layers=[]), "structure.layers: 0: must be one"),
    (lambda c: layer_of(c).update(results=["Z"]), "results: 'Z': must be among H, Y"),
    (lambda c: layer_of(c).update(bits={"Z": 8}), "bits.Z: must be among H, Y"),
    (lambda c: layer_of(c).update(bits={"Y": 9}), "bits.Y: 9: must be 8 or 16"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_errors_name_the_field(change, message, tmp_path):
    program = compile_layer(quantized_layer(gaussian(5, 6, 7, 2)), TINY)
    path = tmp_path / "a.slp"
    save_step(path, program)
    tensors, metadata = layerfile.parse(path.read_bytes())
    content = json.loads(metadata["step_program"])
    change(content)
    arrays = {name: stored.array() for name, stored in tensors.items()}
    layerfile.save_tensors(path, arrays, {"step_program": json.dumps(content)})
    with pytest.raises(LayerFileError) as caught:
        load_step(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "metadata", "message"),
    [
        ({"image": np.zeros(64, np.uint8)}, {"step_program": "{}"}, "program: missing tensor"),
        (
            {"program": np.zeros((1, 64), np.int8), "image": np.zeros(64, np.uint8)},
            {"step_program": "{}"},
            "program: dtype I8: must be U8",
        ),
        (
            {"program": np.zeros((1, 32), np.uint8), "image": np.zeros(64, np.uint8)},
            {"step_program": "{}"},
            "program: shape [1, 32]: must be [n, 64]",
        ),
        (
            {"program": np.zeros((1, 64), np.uint8), "image": np.zeros(65, np.uint8)},
            {"step_program": "{}"},
            "image: shape [65]: must be [n] with n a multiple of 64",
        ),
        (
            {"program": np.zeros((1, 64), np.uint8), "image": np.zeros(64, np.uint8)},
            {},
            "metadata step_program: missing: this is no program file",
        ),
        (
            {"program": np.zeros((1, 64), np.uint8), "image": np.zeros(64, np.uint8)},
            {"step_program": "{"},
            "metadata step_program: must be JSON",
        ),
        (
            {name: np.zeros(64, np.uint8) for name in ("program", "image", "song")},
            {"step_program": "{}"},
            "song: unknown tensor",
        ),
    ],
)
def test_other_files_are_refused(arrays, metadata, message, tmp_path):
    path = tmp_path / "a.slp"
    layerfile.save_tensors(path, arrays, metadata)
    with pytest.raises(LayerFileError) as caught:
        load_step(path)
    assert message in str(caught.value)
