"""Schedule invariance: every schedule leaves the golden model's bits, on every array.

The functional machine is strict: it also proves that no program depends on luck.
"""

import json
from typing import Any

import numpy as np
import pytest

from systolora.cli import main
from systolora.config import AcceleratorConfig, preset
from systolora.contract import Action, Dataflow, Kind
from systolora_sim.bench.cases import random_layer, random_state
from systolora_sim.compare import differences
from systolora_sim.descriptor import decode, encode
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import write_layer
from systolora_sim.limits import CompileError
from systolora_sim.lowering import compile_layer, compile_training
from systolora_sim.machine_backend import run_layer as run_compiled
from systolora_sim.machine_backend import run_program
from systolora_sim.memory_map import MemoryMap
from systolora_sim.post_builder import PostBuilder
from systolora_sim.products import product_records
from systolora_sim.schedules import SCHEDULES, layer_schedule
from systolora_sim.staging import stage
from systolora_sim.step_file import load_step
from systolora_sim.step_program import read_back
from systolora_sim.system_machine import Memory, SystemMachine
from systolora_sim.tokens import place_tokens
from systolora_sim.training import TrainingResult, run_steps
from systolora_sim.transpose_lowering import lower_transpose
from systolora_sim.work import Control
from test_training import same, same_result

SEED = 5200
OUTPUTS = frozenset({"H", "Y", "dH", "dX"})
WIDE = dict.fromkeys(("x", "weight", "lora_A", "lora_B", "dy", *OUTPUTS), 16)

#: Arrays of the shapes and segments that the schedules must not be seen in; small buffers.
ARRAYS = {
    "4x4s1": preset("tiny"),
    "4x4s4": preset("tiny").with_fields(segments=4, acc_depth=16, bus_bits=128),
    "8x16s1": AcceleratorConfig(
        rows=8, cols=16, segments=1, acc_depth=64, bus_bits=128, act_bytes=1 << 13,
        wgt_bytes=1 << 12, outstanding=4,
    ),
    "8x16s4": AcceleratorConfig(
        rows=8, cols=16, segments=4, acc_depth=32, bus_bits=64, act_bytes=1 << 12,
        wgt_bytes=1 << 12,
    ),
    "16x16s1": preset("default").with_fields(segments=1, bus_bits=128, act_bytes=1 << 14),
    "16x16s4": preset("default"),
}  # fmt: skip
LEAST = AcceleratorConfig(
    rows=4, cols=4, segments=4, acc_depth=16, bus_bits=64, act_bytes=128, wgt_bytes=64
)

#: Shapes (N, d, k, r) of the layers, optimizer, fields of the layers.
CASES: dict[str, tuple[list[tuple[int, int, int, int]], str, dict[str, Any]]] = {
    "sgd": ([(37, 20, 50, 3)], "sgd", {}),
    "momentum": ([(9, 33, 12, 5), (41, 6, 21, 18)], "momentum", {"bias": True}),
    "lion": ([(30, 19, 26, 4)], "lion", {}),
    "ones": ([(1, 1, 1, 1)], "lion", {}),
    "int16": ([(23, 11, 35, 5)], "momentum", {"bits": WIDE, "extremes": True}),
    "extremes": ([(23, 35, 11, 6)], "sgd", {"extremes": True}),
    "dy-int16": ([(17, 10, 19, 4)], "sgd", {"bits": dict.fromkeys(("dy", "dH", "dX"), 16)}),
    "h-int16": ([(17, 10, 19, 4)], "lion", {"bits": {"H": 16, "lora_B": 16, "x": 16}}),
    "delayed": (
        [(18, 14, 20, 3)], "sgd",
        {"delayed": OUTPUTS, "amax": {"H": 900, "Y": 5000, "dH": 1000}},
    ),
    "stochastic": ([(18, 14, 20, 3)], "lion", {"stochastic": OUTPUTS}),
    "rank": ([(11, 8, 13, 37)], "sgd", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("array", ARRAYS)
def test_schedules_do_not_change_a_bit(array, case):
    shapes, kind, fields = CASES[case]
    state = random_state(SEED, shapes, kind, **fields)
    want = run_steps(state, 2)
    for schedule in SCHEDULES:
        print(f"seed {SEED}, schedule {schedule}, configuration {ARRAYS[array].digest}")
        program = compile_training(state, ARRAYS[array], schedule=schedule)
        got = read_back(program, run_program(program, 2), 2)
        assert isinstance(got, TrainingResult)
        for name, result in want.results.items():
            got.results[name].sticky = result.sticky  # the program's are those of both steps
            assert same_result(got.results[name], result)
        assert same(got, want)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("array", ["4x4s1", "8x16s4"])
def test_layers_with_one_input_and_micro_batches(array, pieces):
    """Products of several layers at once, and batches in pieces, leave the same bits."""
    shapes = [(20, 14, 17, 3), (20, 14, 9, 5), (20, 14, 30, 2)]
    records = {"H": 900, "Y": 5000, "dH": 1000, "dX": 4000}
    fields = {"delayed": OUTPUTS, "stochastic": OUTPUTS, "amax": records} if pieces > 1 else {}
    state = random_state(SEED, shapes, "momentum", **fields)
    first = state.layers["layer0"].layer
    for each in state.layers.values():
        each.layer.x, each.layer.scales["x"] = first.x, first.scales["x"]
    want = run_steps(state, 2)
    for schedule in SCHEDULES:
        program = compile_training(
            state, ARRAYS[array], schedule=schedule, micro_batches=pieces
        )  # fmt: skip
        got = read_back(program, run_program(program, 2), 2)
        assert isinstance(got, TrainingResult)
        for name, result in want.results.items():
            got.results[name].sticky = result.sticky
        assert same(got, want)


@pytest.mark.parametrize("seed", range(12))
def test_random_layers(seed):
    """Shapes, widths and modes at random, with and without dX, buffers from scarce to plenty."""
    rng = np.random.default_rng([SEED, seed])
    n, d, k = (int(rng.integers(1, limit)) for limit in (70, 60, 60))
    rank = int(rng.integers(1, 24))
    config = [*ARRAYS.values(), LEAST][seed % 7]
    layer = random_layer(
        seed, n, d, k, rank,
        bits={name: int(rng.choice([8, 16])) for name in WIDE if seed % 3 or name != "dX"},
        bias=bool(rng.random() < 0.5),
        want_dx=seed % 3 > 0,
        extremes=seed % 4 == 0,
        index=seed,
    )  # fmt: skip
    want = run_layer(layer)
    for schedule in SCHEDULES:
        print(f"seed {seed}, shape {(n, d, k, rank)}, {schedule}, {config}")
        assert differences(run_compiled(layer, config, schedule), want) == {}


def test_dataflows():
    """Each schedule does what it says, and no more than it must."""
    layer = random_layer(1, 20, 30, 40, 3, want_dx=True)
    config = ARRAYS["8x16s4"]
    streaming = {}
    for schedule in SCHEDULES:
        program = compile_layer(layer, config, schedule=schedule)
        execs = [
            fields
            for kind, fields in (decode(each.tobytes()) for each in program.program)
            if kind == Kind.EXEC
        ]
        streaming[schedule] = sum(each["dataflow"] == Dataflow.OS for each in execs)
        turned = {name for name in program.symbols if name.endswith(".turned")}
        assert turned == (set() if schedule == "auto" else {"H.turned", "dH.turned"})
        assert ("identity" in program.symbols) == (schedule != "auto")
        assert program.schedule == schedule
    assert streaming["ws"] == 0 < streaming["mixed"]
    assert streaming["os"] > streaming["auto"] > 0
    alone = random_layer(1, 20, 30, 40, 3, want_dx=False)
    symbols = compile_layer(alone, config, schedule="ws").symbols
    assert "H.turned" in symbols and "dH.turned" not in symbols
    odd, even = (layer_schedule("mixed", index).gradients for index in (1, 2))
    assert odd["dB"] == even["dA"] == Dataflow.WS and odd["dA"] == even["dB"] == Dataflow.OS


def test_product_records():
    layer = random_layer(1, 5, 7, 9, 3, want_dx=True)
    dataflows = {
        schedule: {record.name: record.dataflow for record in product_records(layer, schedule)}
        for schedule in SCHEDULES
    }
    assert dataflows["auto"] == {
        "H": "WS", "Y": "WS+OS", "dH": "WS", "dB": "WS", "dA": "WS", "dX": "WS+OS",
    }  # fmt: skip
    assert dataflows["ws"]["Y"] == "WS+WS" and dataflows["os"]["dA"] == "OS"
    assert dataflows["mixed"] | {"H": "", "dH": ""} == {
        "H": "", "Y": "WS+OS/WS", "dH": "", "dB": "OS", "dA": "WS", "dX": "WS+WS/OS",
    }  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_phases_on_one_image(schedule):
    state = random_state(SEED, [(13, 20, 17, 3), (8, 9, 10, 2)], "momentum")
    config = ARRAYS["4x4s1"]
    image = None
    for phase in ("forward", "backward", "update"):
        program = compile_training(state, config, phase, schedule=schedule)
        memory = run_program(program, image=image)
        image = memory[: program.image.size]
    whole = compile_training(state, config, schedule=schedule)
    assert image is not None and np.array_equal(whole.symbols, program.symbols)
    got = read_back(whole, image)
    assert isinstance(got, TrainingResult)
    assert same(got, run_steps(state, 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_most_negative_value_survives(bits):
    """H from elsewhere, full of -128 or -32768, in a backward pass of its own."""
    config = ARRAYS["8x16s1"]
    wide = {"bits": WIDE} if bits == 16 else {}
    layer = random_layer(SEED, 19, 20, 30, 5, want_dx=True, extremes=True, **wide)
    least = -(1 << (bits - 1))
    h = np.where(np.arange(19 * 5).reshape(19, 5) % 3 == 0, 1, least)
    results = {}
    for schedule in ("auto", "os"):
        program = compile_layer(layer, config, "backward", schedule=schedule)
        program.symbols["H"].write(program.image, 0, h)
        results[schedule] = read_back(program, run_program(program))
    want = h.T.astype(np.int64) @ layer.operand("dy").astype(np.int64)
    for result in results.values():
        assert np.array_equal(result.tensors["dB"].T, want)
        assert np.array_equal(result.tensors["dA"], results["auto"].tensors["dA"])


@pytest.mark.parametrize("config", [*ARRAYS.values(), LEAST])
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
@pytest.mark.parametrize(("r", "n"), [(1, 1), (5, 7), (4, 64), (37, 23), (3, 150)])
def test_transpositions_are_exact(config, dtype, r, n):
    rng = np.random.default_rng([SEED, r, n])
    info = np.iinfo(dtype)
    tensor = rng.integers(info.min, info.max + 1, (r, n)).astype(dtype)
    tensor[rng.random((r, n)) < 0.2] = info.min
    memory = MemoryMap(1 << 12)
    memory.add("source", (r, n), dtype, data=tensor)
    memory.add(
        "identity", (config.rows, config.rows), np.int8, data=np.eye(config.rows, dtype="i1")
    )
    memory.add("target", (n, r), dtype, writable=True)
    image = memory.place()
    builder = PostBuilder(config, memory.symbols)
    # Values of a target that are no more than rubbish before
    image[memory.write_base - memory.base :] = 0xA5
    lower_transpose(builder, *(memory.symbols[name] for name in ("source", "target", "identity")))
    builder.control(Control(Action.END))
    ops = stage(config, builder.items)
    place_tokens(config, ops)
    program = b"".join(encode(op.kind, op.fields) for op in ops)
    held = Memory(memory.base, np.concatenate([image, np.frombuffer(program, np.uint8)]))
    limit = memory.end + len(program)
    machine = SystemMachine(
        config, held, (memory.base, limit), (memory.write_base, memory.end), strict=True
    )
    result = machine.run(memory.end, len(ops), 1, 0, 0)
    assert not result.fault and not result.sticky
    assert np.array_equal(memory.symbols["target"].read(held.data, memory.base), tensor.T)


def test_what_has_no_choice_stays_as_it_is():
    frozen = random_layer(SEED, 19, 20, 30, 0, want_dx=True)
    config = ARRAYS["4x4s1"]
    programs = [compile_layer(frozen, config, schedule=name) for name in SCHEDULES]
    for program in programs[1:]:
        assert np.array_equal(program.program, programs[0].program)
        assert program.symbols == programs[0].symbols


def test_there_is_no_other_schedule(tmp_path, capsys):
    message = "schedule = 'fast': must be one of auto, ws, os, mixed"
    with pytest.raises(CompileError, match=message):
        compile_training(
            random_state(SEED, [(2, 3, 4, 1)], "sgd"), ARRAYS["4x4s1"], schedule="fast"
        )
    with pytest.raises(CompileError, match=message):
        compile_layer(random_layer(SEED, 2, 3, 4, 1), ARRAYS["4x4s1"], schedule="fast")
    layer, out = tmp_path / "layer.safetensors", tmp_path / "out"
    write_layer(layer, random_layer(SEED, 2, 3, 4, 1))
    for command in (
        ["compile", layer, "-o", out],
        ["run", layer, "-o", out, "--backend", "machine"],
        ["run", layer, "-o", out, "--backend", "machine", "--optimizer", "sgd", "--lr", "1"],
    ):
        assert main([*map(str, command), "--schedule", "fast"]) == 2
        captured = capsys.readouterr()
        assert captured.err == f"systolora: error: {layer}: {message}, best\n"
        assert not out.exists()


def test_the_command_line(tmp_path, capsys):
    layer, out, report = (tmp_path / name for name in ("layer.safetensors", "out", "report"))
    write_layer(layer, random_layer(SEED, 12, 13, 14, 3, want_dx=True))
    options = ["--preset", "tiny", "--schedule"]
    contents = set()
    for schedule in SCHEDULES:
        arguments = [layer, "-o", out, *options, schedule]
        assert (
            main(["run", *map(str, arguments), "--backend", "machine", "--json", str(report)]) == 0
        )
        contents.add(out.read_bytes())
        records = json.loads(report.read_text(encoding="utf-8"))["products"]
        assert ("OS" in {record["dataflow"] for record in records}) == (schedule in ("os", "mixed"))
        out.unlink()
        assert main(["compile", *map(str, arguments)]) == 0
        assert load_step(out).schedule == schedule
        capsys.readouterr()
        assert main(["disasm", str(out)]) == 0
        assert f", schedule {schedule}\n" in capsys.readouterr().out
        out.unlink()
    assert len(contents) == 1
    training = ["run", str(layer), "-o", str(out), "--optimizer", "sgd", "--lr", "0.01"]
    states = set()
    for extra in ([], ["--backend", "machine", *options, "mixed"]):
        assert main([*training, *extra]) == 0
        states.add(out.read_bytes())
    assert len(states) == 1
