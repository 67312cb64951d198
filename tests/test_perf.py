"""`systolora perf`: a report's figures add up and mean what docs/perf.md says; the command."""

import json
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from systolora.cli import main
from systolora.config import preset
from systolora_sim import perf_meter
from systolora_sim.baselines import BASELINES
from systolora_sim.cycle_model import time_program
from systolora_sim.lowering import compile_training
from systolora_sim.perf import measure
from systolora_sim.perf_attribution import ArrayTimes, attribute, exec_macs
from systolora_sim.perf_figures import ORDER
from systolora_sim.perf_options import PerfOptions
from systolora_sim.rtl_backend import IMAGE_BASE
from systolora_sim.runner import BUILD_DIR, RunError
from systolora_sim.timeline import lanes
from systolora_sim.workload import load_workload, state

TINY = """\
title = "two layers with dX, two with one input and none"
source = "made by hand"

[[layer]]
name = "q"
rows = 10
d = 12
k = 9
dx = true
count = 2

[[layer]]
name = "k"
input = "text"
rows = 7
d = 20
k = 12

[[layer]]
name = "v"
input = "text"
rows = 7
d = 20
k = 8

[step]
macs = 100000
source = "made up"
"""

ONE = """\
[[layer]]
name = "q"
rows = 10
d = 12
k = 9
"""


@pytest.fixture(name="file")
def _file(tmp_path):
    path = tmp_path / "work.toml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


def options(workload: str, name: str = "tiny", **fields) -> PerfOptions:
    return PerfOptions(**{"workload": workload, "config": preset(name), "rank": 2} | fields)


def expected_macs(workload: str, rank: int, batch: int) -> dict[str, int]:
    """By product of a report: a term is a term, whatever it is added to."""
    macs: defaultdict[str, int] = defaultdict(int)
    for layer in load_workload(workload).layers:
        for name, count in layer.macs(rank, batch).items():
            macs["term" if name.endswith("term") else name] += count
    return dict(macs)


def assert_adds_up(report) -> None:
    """What docs/perf.md says of runs and their products."""
    for run in report["runs"]:
        config = report["config"] | run["config"]
        peak = config["rows"] * config["cols"]
        assert run["limit"] == run["macs"] / peak and run["share"] == run["limit"] / run["cycles"]
        assert abs(run["limit"] + sum(run["waits"].values()) - run["cycles"]) < 1
        assert min(run["waits"].values()) >= 0
        products = run["products"]
        names = [product["name"] for product in products]
        assert names == [name for name in ORDER if name in names]
        for key in ("cycles", "macs"):
            assert sum(product[key] for product in products) == run[key]
        moved = sum(product["bytes"] for product in products)
        assert moved == run["bytes_read"] + run["bytes_written"]
        for product in products:
            assert min(product["waits"].values()) >= 0 and product["bytes"] >= 0
            lost = product["cycles"] - product["limit"]
            assert abs(sum(product["waits"].values()) - lost) < 1
            assert product["limit"] <= product["cycles"]
            longest = max(product["waits"].values())
            assert product["wait"] == "-" or product["waits"][product["wait"]] == longest > 0
            passes = (report["bits"] // 8) ** 2
            shapes = sum(m * k * n * count for m, k, n, count in product["shapes"])
            assert passes * shapes == product["macs"]
        for other in ("loads", "post"):
            assert run["waits"][other] == sum(product["waits"][other] for product in products)


# Figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tiny", {}),
        ("tiny", {"bits": 16, "optimizer": "lion"}),
        ("ecp5", {"batch": 3, "just_in_time": True, "latency": 200}),
        ("default", {"batch": 5, "optimizer": "momentum", "rank": 4}),
    ],
)
def test_figures_add_up(file, name, fields):
    chosen = options(file, name, **fields)
    report, events = measure(chosen)
    assert_adds_up(report)
    run = report["runs"][0]
    macs = expected_macs(file, report["rank"], report["batch"])
    passes = (chosen.bits // 8) ** 2
    counted = {product["name"]: product["macs"] for product in run["products"] if product["macs"]}
    assert counted == {product: passes * count for product, count in macs.items()}
    assert {"copies", "update", "other"} < {product["name"] for product in run["products"]}
    array = sorted(
        (event["start"], event["end"]) for event in events if event["track"] == "array"
    )  # fmt: skip
    assert all(one[1] <= other[0] for one, other in pairwise(array))
    assert max(event["end"] for event in events) <= run["cycles"] + 16
    assert {lane.track for lane in lanes(events)} == {
        "program", "LOAD", "EXEC", "POST", "array", "read bus", "write bus",
    }  # fmt: skip


def test_an_exec_has_what_the_array_spends_on_it(tmp_path):
    """Y [10, 9] of 12 inputs on 4 x 4: 9 tiles of 10 rows, a third of which has 1 column of 4."""
    path = tmp_path / "one.toml"
    path.write_text(TINY.split("[[layer]]")[0] + ONE, encoding="utf-8")
    training = state(load_workload(path), rank=2, batch=1, blank=True)
    program = compile_training(training, preset("tiny"), sums=False)
    timing = time_program(program.config, program.program)
    macs = exec_macs(program)
    assert macs.sum() == timing.counters["MACS"]
    count = len(macs)
    times = ArrayTimes(
        cycles=1000 * count + 500,
        first=100,
        last=1000 * np.arange(1, count + 1) - 1,
        loads=np.full(count, 7),
        post=np.arange(count),
        copies=60,
        updates=20,
    )
    moved = timing.counters["BYTES_READ"], timing.counters["BYTES_WRITTEN"]
    found = attribute(replace(program, labels=("all",) * program.length), times, *moved)
    assert [part.cycles for part in found.execs] == [900] + [1000] * (count - 1)
    assert [part.loads for part in found.execs] == [7] * count
    assert [part.post for part in found.execs] == list(range(count))
    assert (found.copies, found.update, found.other) == (60, 20, 520)
    # Everything that no descriptor moves is the program itself.
    assert found.bytes["other"] == program.program.size
    assert (found.read, found.written) == moved
    parts = [part for part in attribute(program, times, *moved).execs if part.label == "Y q"]
    assert sum(part.macs for part in parts) == 10 * 12 * 9
    assert sum(part.padding for part in parts) == 3 * 10 * (3 - 9 / 4)


def test_baselines_add_up(file):
    report, _ = measure(options(file, "ecp5", baselines=tuple(BASELINES)))
    assert_adds_up(report)
    assert [run["name"] for run in report["runs"]] == ["systolora", *BASELINES]
    ours = report["runs"][0]
    peers = [peer["name"] for peer in report["peers"]]
    assert list(report["speedups"]) == [*BASELINES, *peers]
    for peer in report["peers"]:
        assert report["speedups"][peer["name"]] == peer["cycles"] / ours["cycles"]
    for run in report["runs"][1:]:
        assert report["speedups"][run["name"]] == run["cycles"] / ours["cycles"]
        assert run["macs"] == ours["macs"] and run["config"]["segments"] == 1
        assert run["images"] and BASELINES[run["name"]] in run["notes"]
    dataflows = {run["name"]: {p["dataflow"] for p in run["products"]} for run in report["runs"]}
    assert dataflows["overlapped-os"] == {"OS", "-"} and dataflows["textbook-ws"] == {"WS", "-"}


def test_products_say_how_they_are_computed(file):
    report, _ = measure(options(file))
    found = {
        product["name"]: (product["dataflow"], product["edge"], product["stationary"])
        for product in report["runs"][0]["products"]
    }
    assert found["H"] == ("WS", "left", "X") and found["Y"] == ("WS", "left", "W")
    assert found["dX"] == ("WS", "top", "W") and found["term"] == ("OS", "-", "-")
    assert found["dA"] == ("WS", "top", "X") and found["dH"] == ("WS", "left", "dY")
    assert found["dB"] == ("WS", "top", "dY") and found["update"] == ("-", "-", "-")


def test_shared_inputs_are_one_product():
    report, _ = measure(
        PerfOptions(workload="sd15-kv", config=preset("paper"), batch=4, limit_layers=3)
    )
    shapes = {product["name"]: product["shapes"] for product in report["runs"][0]["products"]}
    assert shapes["H"] == [[308, 768, 12, 1]] and shapes["dA"] == [[12, 308, 768, 1]]
    assert shapes["Y"] == [[308, 768, 320, 3]]


def test_slow_memory_shows_as_waits_for_loads():
    near, far = (
        measure(
            PerfOptions(workload="sd15-kv", config=preset("paper"), limit_layers=2, latency=cycles)
        )[0]["runs"][0]
        for cycles in (1, 2000)
    )
    more = far["cycles"] - near["cycles"]
    assert more > 4000
    loads = far["waits"]["loads"] - near["waits"]["loads"]
    assert loads > more // 4 and far["limit"] == near["limit"]


def test_the_other_scaling_is_what_the_note_says(file):
    delayed, now = (measure(options(file, just_in_time=flag))[0] for flag in (False, True))
    for one, other in ((delayed, now), (now, delayed)):
        assert f"takes {other['runs'][0]['cycles']:,} cycles" in one["notes"][0]
    assert delayed["runs"][0]["cycles"] != now["runs"][0]["cycles"]


def test_first_layers_only(file):
    report, _ = measure(options(file, limit_layers=1))
    assert [layer["name"] for layer in report["workload"]["layers"]] == ["q.0"]
    assert report["step_share"] is None
    assert any("first 1 of 4 layers" in note for note in report["notes"])
    whole, _ = measure(options(file))
    assert whole["step_share"]["whole_macs"] > 100_000 and len(whole["notes"]) == 3


# Options --------------------------------------------------------------------------------------

CONSTANT = """\
title = "three layers of one constant input"
source = "made by hand"

[[layer]]
name = "k"
input = "text"
rows = 45
d = 20
k = 12
count = 3
shared = true
constant = true
"""


@pytest.fixture(name="constant")
def _constant(tmp_path):
    path = tmp_path / "constant.toml"
    path.write_text(CONSTANT, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_kept_base_product(constant, bits):
    chosen = options(constant, batch=2, bits=bits, baselines=("best-of-ws-os",))
    computing, _ = measure(chosen)
    report, _ = measure(replace(chosen, cache_base=True))
    run, base = report["runs"]
    passes = (bits // 8) ** 2
    assert run["macs"] == base["macs"] == computing["runs"][0]["macs"]
    assert run["macs"] - run["computed_macs"] == passes * 3 * 90 * 20 * 12
    assert run["limit"] == run["macs"] / 16 and run["share"] == run["limit"] / run["cycles"]
    done = run["computed_macs"] / 16
    assert abs(done + sum(run["waits"].values()) - run["cycles"]) < 1
    assert min(run["waits"].values()) >= 0
    assert sum(product["macs"] for product in run["products"]) == run["computed_macs"]
    assert sum(product["cycles"] for product in run["products"]) == run["cycles"]
    (loaded,) = (product for product in run["products"] if product["name"] == "Y")
    assert loaded["title"].endswith("loaded") and loaded["macs"] == loaded["cycles"] == 0
    assert loaded["bytes"] > 3 * 90 * 12 * 4  # the sums, in 32 bits at least
    assert "computed_macs" not in base and base == computing["runs"][1]
    assert report["speedups"]["best-of-ws-os"] == base["cycles"] / run["cycles"]
    assert any(f"{run['computed_macs']:,} MACs are computed" in note for note in report["notes"])


def test_a_kept_base_product_on_rtl(constant):
    chosen = options(constant, cache_base=True, schedule="best", build_dir=BUILD_DIR)
    model, rtl = (measure(replace(chosen, backend=name))[0] for name in ("model", "rtl"))
    one, other = model["runs"][0], rtl["runs"][0]
    assert abs(other["cycles"] / one["cycles"] - 1) < 0.01
    assert other["computed_macs"] == one["computed_macs"] and other["schedule"] == "best"


def test_the_best_schedule(constant):
    found = {
        name: measure(options(constant, batch=2, schedule=name))[0]
        for name in ("auto", "ws", "os", "mixed", "best")
    }
    cycles = {name: report["runs"][0]["cycles"] for name, report in found.items()}
    assert cycles["best"] == min(cycles.values()) < max(cycles.values())
    for name, report in found.items():
        assert report["runs"][0]["schedule"] == name
        assert any("schedules by the cycle model" in note for note in report["notes"]) == (
            name == "best"
        )


@pytest.mark.parametrize("cached", [False, True])
def test_phases_add_up(constant, cached):
    report, _ = measure(options(constant, phase="phases", cache_base=cached))
    step, phases = report["runs"]
    assert phases["name"] == "systolora-phases" and phases["macs"] == step["macs"]
    training = state(load_workload(constant), rank=2, batch=1, blank=True)
    cycles = [
        time_program(program.config, program.program).counters["CYCLES"]
        for phase in ("forward", "backward", "update")
        for program in [
            compile_training(
                training, preset("tiny"), phase, base=IMAGE_BASE, sums=False, cache_base=cached
            )
        ]
    ]
    assert phases["cycles"] == sum(cycles)
    for key in ("macs", "cycles"):
        whole = phases.get("computed_macs", phases["macs"]) if key == "macs" else phases[key]
        assert sum(product[key] for product in phases["products"]) == whole
    computed = phases.get("computed_macs", phases["macs"]) / 16
    assert abs(computed + sum(phases["waits"].values()) - phases["cycles"]) < 1
    moved = sum(product["bytes"] for product in phases["products"])
    assert moved == phases["bytes_read"] + phases["bytes_written"]
    assert any(f"in all {phases['cycles']:,}" in note for note in report["notes"])
    assert report["speedups"]["systolora-phases"] == phases["cycles"] / step["cycles"]
    assert len(measure(options(constant))[0]["runs"]) == 1


# RTL ------------------------------------------------------------------------------------------


def test_rtl_agrees_with_the_model(file):
    chosen = options(file, backend="rtl", build_dir=BUILD_DIR)
    report, _ = measure(chosen)
    model, _ = measure(replace(chosen, backend="model"))
    assert_adds_up(report)
    run, other = report["runs"][0], model["runs"][0]
    assert run["backend"] == "rtl" and "verilator" in report["versions"]
    assert abs(run["cycles"] / other["cycles"] - 1) < 0.01
    for key in ("macs", "bytes_read", "bytes_written"):
        assert run[key] == other[key]
    for one, two in zip(run["products"], other["products"], strict=True):
        assert one["name"] == two["name"]
        # Times come from readings every dozen cycles.
        assert abs(one["cycles"] - two["cycles"]) <= 0.05 * run["cycles"]
    assert any("equals the golden model's" in note for note in run["notes"])


def test_rtl_results_are_compared(file, monkeypatch):
    def wrong(state, steps):
        result = run_steps(state, steps)
        result.results["q.0"].tensors["Y"][0, 0] ^= 1
        return result

    run_steps = perf_meter.run_steps
    monkeypatch.setattr(perf_meter, "run_steps", wrong)
    with pytest.raises(RunError, match=r"not as the golden model: q\.0/Y\[0, 0\]"):
        measure(options(file, backend="rtl", build_dir=BUILD_DIR))


# Command --------------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    return main(["perf", *map(str, arguments)])


def test_command_writes_every_view(file, tmp_path, capsys):
    def run(folder: Path) -> str:
        folder.mkdir()
        status = command(
            "--workload", file, "--preset", "tiny", "--rank", 2, "--memory", "64bit@30",
            "--baselines", "textbook-ws", "--json", folder / "r.json", "--html", folder / "r.html",
            "--trace", folder / "t.json", "--chart", f"roofline={folder / 'roof.svg'}",
            "--chart", f"cycles={folder / 'cycles.svg'}", "-q",
        )  # fmt: skip
        assert status == 0
        return capsys.readouterr().out

    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first == second
    names = ["cycles.svg", "r.html", "r.json", "roof.svg", "t.json"]
    for folder in ("a", "b"):
        assert sorted(file.name for file in (tmp_path / folder).iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    report = json.loads((tmp_path / "a" / "r.json").read_text("utf-8"))
    assert_adds_up(report)
    assert list(report) == [
        "format", "scope", "workload", "rank", "batch", "bits", "optimizer", "config", "digest",
        "memory", "versions", "runs", "peers", "speedups", "step_share", "notes",
    ]  # fmt: skip
    assert report["memory"] == {"bus_bits": 64, "channels": 1, "latency": 30}
    assert [run["name"] for run in report["runs"]] == ["systolora", "textbook-ws"]
    assert f"{report['runs'][0]['cycles']:,}" in first and report["scope"] in first
    assert max(map(len, first.splitlines())) <= 120
    assert report["digest"] in (tmp_path / "a" / "r.html").read_text("utf-8")
    trace = json.loads((tmp_path / "a" / "t.json").read_text("utf-8"))
    assert {"Y q.0", "dX q.1", "update v"} <= {event["name"] for event in trace["traceEvents"]}


def test_file_of_adapters(tmp_path, capsys):
    path = tmp_path / "lora.safetensors"
    a, b = np.zeros((3, 16), np.float32), np.zeros((8, 3), np.float32)
    names = ("down.attn2.to_k", "down.attn2.to_v")
    save_file(
        {f"{name}.lora_{x}.weight": t for name in names for x, t in (("A", a), ("B", b))}, path
    )
    common = ("--workload", path, "--preset", "tiny", "--baselines", "none", "-q")
    file = tmp_path / "r.json"
    assert command(*common, "--sample-rows", 50, "--text-rows", 6, "--json", file) == 0
    report = json.loads(file.read_text("utf-8"))
    assert report["rank"] == 3 and report["workload"]["layers"][0]["rows"] == 6
    assert_adds_up(report)
    capsys.readouterr()
    for more, parts in (
        (["--sample-rows", 5, "--rank", 4], ["rank = 4", "must be 3"]),
        ([], ["sample-rows: missing"]),
    ):
        assert command(*common, *more) == 2
        assert_line(capsys.readouterr(), *parts)


def test_memory_of_several_channels(file, tmp_path, capsys):
    """The cycles are those of one bus that is as wide as all channels; the report names them."""
    found = []
    for memory in ("2x64bit@30", "128bit@30"):
        arguments = ("--preset", "tiny", "--rank", 2, "--memory", memory, "--baselines", "none")
        assert command("--workload", file, *arguments, "--json", tmp_path / "r.json", "-q") == 0
        found.append(
            (json.loads((tmp_path / "r.json").read_text("utf-8")), capsys.readouterr().out)
        )
    (two, text), (one, _) = found
    assert two["memory"] == {"bus_bits": 64, "channels": 2, "latency": 30}
    assert (two["config"]["bus_bits"], two["config"]["channels"]) == (64, 2)
    assert "2 channels of 64 bits each way" in " ".join(text.split())
    assert two["runs"][0]["cycles"] == one["runs"][0]["cycles"]
    assert two["runs"][0]["bytes_read"] == one["runs"][0]["bytes_read"]


def assert_line(captured, *parts: str) -> None:
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("systolora: error: ")
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--workload", "sd16"], ["sd16", "sd15-kv", "flux-joint"]),
        (["--workload", "none.toml"], ["none.toml: cannot be read"]),
        (["--workload", "none.safetensors", "--sample-rows", "4"], ["none.safetensors"]),
        (["--workload", "sd15-kv", "--batch", "0"], ["batch: 0"]),
        (["--workload", "sd15-kv", "--batch", "2000"], ["batch: 2000", "131072"]),
        (["--workload", "sd15-kv", "--rank", "-1"], ["rank: -1"]),
        (["--workload", "sd15-kv", "--limit-layers", "33"], ["layers = 33", "1 to 32"]),
        (["--workload", "sd15-kv", "--sample-rows", "5"], ["sample-rows", "file of adapters"]),
        (
            ["--workload", "llama-7b-qv", "--cache-base"],
            ["llama-7b-qv: cache-base: layer first.q_proj", "not constant"],
        ),
        (["--workload", "sd15-kv", "--schedule", "fast"], ["schedule = 'fast'", "mixed, best"]),
        (["--workload", "sd15-kv", "--phase", "forward"], ["phase = 'forward'", "step, phases"]),
        (["--workload", "sd15-kv", "--phase", "phases", "--backend", "rtl"], ["backend model"]),
        (["--workload", "sd15-kv", "--memory", "500bit@40"], ["bus_bits = 500"]),
        (["--workload", "sd15-kv", "--memory", "512bit@0"], ["latency = 0"]),
        (["--workload", "sd15-kv", "--memory", "512bit@40", "--bus-bits", "64"], ["bus_bits = 64"]),
        (["--workload", "sd15-kv", "--memory", "3x512bit@40"], ["channels = 3", "1, 2, 4"]),
        (["--workload", "sd15-kv", "--memory", "0x512bit@40"], ["channels = 0"]),
        (["--workload", "sd15-kv", "--memory", "4x1024bit@40"], ["channels * bus_bits = 4096"]),
        (
            ["--workload", "sd15-kv", "--memory", "2x512bit@40", "--channels", "4"],
            ["channels = 4", "--memory says 2"],
        ),
        (
            ["--workload", "sd15-kv", "--memory", "512bit@40", "--channels", "2"],
            ["channels = 2", "--memory says 1"],
        ),
        (["--workload", "sd15-kv", "--baselines", "best"], ["best", "overlapped-ws"]),
        (["--workload", "sd15-kv", "--bits", "16", "--no-int16"], ["int16"]),
        (["--workload", "sd15-kv", "--chart", "pie=x.svg"], ["pie", "roofline"]),
        (["--workload", "sd15-kv", "--chart", "cycles=x.pdf"], ["x.pdf", ".svg"]),
        (["--workload", "sd15-kv", "--json", "no/dir.json"], ["no/dir.json"]),
        (["--workload", "sd15-kv", "--json", "x", "--html", "x"], ["x: cannot be written"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_bad_input(arguments, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    assert_line(capsys.readouterr(), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "memory",
    [
        *("512", "512bit", "512bit@", "bit@40", "512bit@-1", "512bit@40 ", "\uff15bit@4"),
        *("x512bit@40", "2X512bit@40", "2x2x512bit@40", "2x@40", "\uff12x64bit@4"),
    ],
)
def test_bad_memory(memory, capsys):
    with pytest.raises(SystemExit) as stop:
        command("--workload", "sd15-kv", "--memory", memory)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "must be [CHANNELSx]BITSbit@CYCLES" in error


def test_the_workload_is_not_overwritten(file, capsys):
    assert command("--workload", file, "--json", file, "-q") == 2
    assert_line(capsys.readouterr(), "work.toml: cannot be written")
    assert Path(file).read_text("utf-8") == TINY


def test_nothing_is_half_written(file, tmp_path, monkeypatch, capsys):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(perf_meter, "time_program", interrupted)
    before = sorted(tmp_path.iterdir())
    assert command("--workload", file, "--json", tmp_path / "r.json", "-q") == 130
    assert sorted(tmp_path.iterdir()) == before
    assert capsys.readouterr().err == "systolora: error: interrupted\n"
