"""The runner and the demonstration: same bytes from every backend, clear errors, no leftovers."""

import json

import pytest

from systolora.config import preset
from systolora_sim import demo, machine_backend, runner
from systolora_sim.bench.cases import random_layer
from systolora_sim.compare import differences
from systolora_sim.examples import sd15_layer
from systolora_sim.golden import run_layer
from systolora_sim.layerfile import LayerFileError, write_layer
from systolora_sim.rtl_backend import RtlOptions
from systolora_sim.runner import BUILD_DIR, RunError, ensure_verilog, run_file
from systolora_sim.training import run_steps

TINY = preset("tiny")


@pytest.fixture
def layer_file(tmp_path):
    path = tmp_path / "layer.safetensors"
    layer = random_layer(
        1, 6, 9, 7, 2, want_dx=True, bias=True, delayed=frozenset({"Y"}), amax={"Y": 100}
    )  # fmt: skip
    write_layer(path, layer)
    return path


def test_all_backends_write_the_same_bytes(layer_file, tmp_path):
    written = {}
    for backend in runner.BACKENDS:
        out, report = tmp_path / f"{backend}.safetensors", tmp_path / f"{backend}.json"
        run_file(
            layer_file, out, backend, TINY, json_path=report, build_dir=BUILD_DIR, progress=False
        )
        written[backend] = out.read_bytes()
        content = json.loads(report.read_text(encoding="utf-8"))
        assert content["backend"] == backend
        assert content["layer"] == "layer"
        assert content["digest"] == TINY.digest
        assert content["sticky"] == ["clip_delayed"]
        products = content["products"]
        assert [p["name"] for p in products] == ["H", "Y", "dH", "dB", "dA", "dX"]
        assert [(p["m"], p["k"], p["n"]) for p in products[:2]] == [(2, 9, 6), (6, 9, 7)]
        if backend == "rtl":
            assert content["cycles"] == content["counters"]["CYCLES"] > 0
            assert content["counters"]["MACS"] == sum(p["macs"] for p in products)
        else:
            assert content["cycles"] is None and "counters" not in content
    assert written["golden"] == written["machine"] == written["rtl"]


def test_stalls_do_not_change_the_bytes(layer_file, tmp_path, capfd):
    for name, seed in (("a", None), ("b", 5)):
        run_file(
            layer_file,
            tmp_path / name,
            "rtl",
            TINY,
            rtl=RtlOptions(stall_seed=seed, check=True),
            build_dir=BUILD_DIR,
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    out, err = capfd.readouterr()
    assert out == ""
    assert "rtl:" in err and "100%" in err  # the progress bar


def refused(message, *args, error: type[Exception] = RunError, **options):
    with pytest.raises(error, match=message):
        run_file(*args, **options)


def test_what_is_refused(layer_file, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the layer was run before everything was checked")

    monkeypatch.setattr(runner, "run_layer", never)
    out = tmp_path / "out"
    refused("backend = 'gpu': must be one of golden, machine, rtl", layer_file, out, "gpu", TINY)
    missing = tmp_path / "no" / "out"
    refused("no/out: cannot be written: No such file", layer_file, missing, "golden", TINY)
    refused("must be a regular file", layer_file, tmp_path, "golden", TINY)
    refused("cannot be written: it is also .*layer", layer_file, layer_file, "golden", TINY)
    refused("out: cannot be written: it is also", layer_file, out, "golden", TINY, json_path=out)
    refused("cannot be written: No such file", layer_file, out, "golden", TINY, json_path=missing)
    refused("cannot be read", tmp_path / "none", out, "golden", TINY, error=LayerFileError)
    narrow = TINY.with_fields(int16=False)
    wide = tmp_path / "wide"
    write_layer(wide, random_layer(1, 2, 2, 2, 1, bits={"x": 16}))
    for backend in ("machine", "rtl"):
        refused("wide: x is int16: .* without int16", wide, out, backend, narrow)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer.safetensors", "wide"]


def test_nothing_is_left_when_a_run_fails(layer_file, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_layer", fail)
    with pytest.raises(KeyboardInterrupt):
        run_file(layer_file, tmp_path / "out", "golden", TINY, json_path=tmp_path / "json")
    assert [p.name for p in tmp_path.iterdir()] == ["layer.safetensors"]


def test_verilog_is_generated_when_it_must_be(tmp_path):
    config = TINY.with_fields(acc_depth=32)
    first = ensure_verilog(config, tmp_path)
    assert not first.reused
    assert first.file.parent.name == config.digest
    assert first.manifest["configuration"] == config.to_dict()
    text = first.file.read_bytes()
    assert ensure_verilog(config, tmp_path).reused
    first.file.write_text("// edited\n", encoding="utf-8")
    again = ensure_verilog(config, tmp_path)
    assert not again.reused
    assert again.file.read_bytes() == text


def test_the_generator_s_error_is_passed_on(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(RunError, match=r"generating the Verilog failed: .*file"):
        ensure_verilog(TINY, blocked)


# The demonstration --------------------------------------------------------------------------------


def run_demo(layer_file) -> int:
    return demo.main(
        ["--layer", str(layer_file), "--build-dir", str(BUILD_DIR), "--preset", "tiny"]
    )


def test_demo(layer_file, capsys):
    assert run_demo(layer_file) == 0
    out = capsys.readouterr().out
    assert f"4 x 4, 1 load segments, int8 and int16, 64-bit bus ({TINY.digest})" in out
    manifest = ensure_verilog(TINY, BUILD_DIR).manifest
    assert f"{len(manifest['modules'])} modules, {manifest['verilog']['lines']} lines" in out
    table = {line[:32].strip(): line[32:].strip() for line in out.splitlines()}
    assert int(table["cycles, start to interrupt"]) > int(table["array busy"]) > 0
    assert table["share of the MAC limit"].endswith("%")
    assert "every bit as the golden model" in out
    # A second run finds everything as it was.
    assert run_demo(layer_file) == 0
    assert capsys.readouterr().out.count("is up to date") == 2


def test_demo_tells_a_difference(layer_file, capsys, monkeypatch):
    """One wrong element, one wrong scale: exit status 1, and messages say where."""

    def wrong(state, steps):
        result = run_steps(state, steps)
        (layer,) = result.results.values()
        layer.tensors["dA"][1, 2] += 1
        layer.scales["H"] = layer.scales["H"]._replace(e=-99)
        return result

    monkeypatch.setattr(demo, "run_steps", wrong)
    assert run_demo(layer_file) == 1
    out, err = capsys.readouterr()
    assert "NOT as the golden model" in out
    assert [line.split("[")[0] for line in err.splitlines() if "must be" in line] == [
        "H.scale",
        "dA",
    ]
    assert "dA[1, 2] = " in err and "last written in cycle" in err


def test_demo_with_bad_input(tmp_path, capsys):
    assert demo.main(["--layer", str(tmp_path / "none"), "--build-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("systolora_sim.demo: error: ")


def test_differences():
    layer = random_layer(1, 4, 5, 6, 2)
    golden = run_layer(layer)
    for name, change in {
        "Y": lambda r: r.tensors.pop("Y"),
        "dB": lambda r: r.tensors.update(dB=r.tensors["dB"].astype("int64")),
        "sticky": lambda r: r.sticky.add("acc_sat"),
        "amax": lambda r: r.amax.update(H=1),
    }.items():
        result = run_layer(layer)
        assert differences(result, golden) == {}
        change(result)
        assert list(differences(result, golden)) == [name]


def test_the_shipped_layer_on_the_machine():
    """The demonstration's layer, as a program of the default configuration."""
    layer = sd15_layer()
    result = machine_backend.run_layer(layer, preset("default"))
    assert differences(result, run_layer(layer)) == {}
