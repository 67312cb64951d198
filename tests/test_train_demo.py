"""`systolora train-demo`: the demonstration end to end, small."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra: pip install 'systolora[train]'")
pytest.importorskip("mlxtend", reason="needs the extra: pip install 'systolora[train]'")

import torch

from systolora.cli import main
from systolora_sim.train_demo import checkpoint, finetune, run
from systolora_sim.train_demo.data import fine_tune_batch, load_images
from systolora_sim.train_demo.errors import DemoError
from systolora_sim.train_demo.memory import count, device_widths, float_widths
from systolora_sim.train_demo.metrics import frechet, interval
from systolora_sim.train_demo.presets import FULL, QUICK, settings_from_json, settings_json
from systolora_sim.train_demo.recipes import ABLATION, RECIPES, TENSORS, Way
from systolora_sim.train_demo.run import run_demo

#: A run of seconds: it shows nothing but that all parts work.
TINY = dataclasses.replace(
    QUICK, name="tiny", pretrain_steps=6, pretrain_batch=8, classifier_steps=20, steps=6, batch=4,
    samples=20, sampling_steps=2, grid_images=4, grid_times=2, curve_points=2, seeds=1,
    recipes=("fp32", "int8"), checkpoint_every=2,
)  # fmt: skip


def without_time(report):
    """A report without what two equal runs do not share."""
    return json.loads(
        json.dumps(report), object_hook=lambda d: {k: v for k, v in d.items() if k != "seconds"}
    )


# The whole run --------------------------------------------------------------------------------


@pytest.fixture(name="quick", scope="module")
def _quick(tmp_path_factory):
    """The report of --quick, made by the command, with its directory."""
    directory = tmp_path_factory.mktemp("quick")
    assert main(["train-demo", "--quick", "-q", "-o", str(directory)]) == 0
    return json.loads((directory / "report.json").read_text()), directory


def test_quick_run_learns(quick):
    report, _ = quick
    recipes = {each["name"]: each for each in report["recipes"]}
    assert list(recipes) == list(QUICK.recipes)
    for name in ("fp32", "int8"):
        curve = recipes[name]["curve"]
        assert [curve[0][0], curve[-1][0]] == [0, QUICK.steps]
        assert curve[-1][1] < 0.93 * curve[0][1], name
    assert report["pretraining"][-1][1] < 0.5 * report["pretraining"][0][1]
    assert report["floors"]["classifier_accuracy"] > 0.85
    difference = recipes["int8"]["differences"]["int.mse"]
    assert 0 < abs(difference["mean"]) < 0.02  # it is another arithmetic, and nearly as good
    reached = {each["name"]: each["reached"] for each in report["verdicts"]}
    assert reached["none.fails"] and reached["int8.int.mse"] and reached["memory.sd15"]


def test_files_of_the_report(quick):
    report, directory = quick
    for name in ("held-out", "losses", "distances", "samples-real", "samples-int8-int"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (directory / "report.html").read_text()
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert report["settings"] == json.loads(json.dumps(settings_json(QUICK)))
    assert not [p for p in directory.rglob("*") if p.name.startswith(".")]  # no remains


def test_a_second_call_only_reports(quick, capsys):
    _, directory = quick
    before = {p: p.stat().st_mtime_ns for p in (directory / "runs").iterdir()}
    page = (directory / "report.html").read_bytes()
    assert main(["train-demo", "--quick", "-q", "-o", str(directory)]) == 0
    assert {p: p.stat().st_mtime_ns for p in (directory / "runs").iterdir()} == before
    assert (directory / "report.html").read_bytes() == page
    assert "float32" in capsys.readouterr().out


class _StopError(Exception):
    pass


def test_interrupted_run_goes_on_with_the_same_figures(tmp_path, monkeypatch):
    """Stopped in pre-training and in each recipe, off the checkpoints; twice the same bits."""
    settings = dataclasses.replace(TINY, recipes=("fp32", "delayed"), ablation=("float-masters",))
    settings = dataclasses.replace(settings, ablation_seeds=1)
    whole = run_demo(settings, tmp_path / "whole", progress=False)
    stops = 0
    for limit in (3, 24, 29, 35, 41):
        done = 0

        def advance(count, limit=limit):
            nonlocal done
            done += count
            if done >= limit:
                raise _StopError

        class _Bar:
            def __init__(self, *args):
                pass

            def __enter__(self):
                return advance

            def __exit__(self, *args):
                return False

        monkeypatch.setattr(run, "_bar", _Bar)
        try:
            run_demo(settings, tmp_path / "parts", progress=False)
        except _StopError:
            stops += 1
    monkeypatch.undo()
    assert stops == 5
    parts = run_demo(settings, tmp_path / "parts", progress=False)
    assert without_time(parts) == without_time(whole)
    for path in (tmp_path / "whole").glob("samples-*.png"):
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_two_processes_give_the_same_figures(tmp_path):
    one = run_demo(TINY, tmp_path / "one", progress=False)
    (tmp_path / "two").mkdir()
    for name in ("settings.json", "classifier.pt", "pretrained.pt"):
        shutil.copy(tmp_path / "one" / name, tmp_path / "two")
    two = run_demo(TINY, tmp_path / "two", jobs=2, progress=False)
    assert without_time(one) == without_time(two)


# What goes wrong is seen ----------------------------------------------------------------------


def test_divergence_and_saturation_are_in_the_report(tmp_path):
    settings = dataclasses.replace(TINY, lr=1e30, recipes=("fp32", "int8"))
    report = run_demo(settings, tmp_path, progress=False)
    fp32, int8 = report["recipes"]
    assert fp32["diverged"].keys() == {"0"} and "step" in fp32["diverged"]["0"]
    assert "float.mse" not in fp32["metrics"]
    assert int8["sticky"].get("master_range") and not int8["differences"]
    text = "\n".join(report["warnings"])
    assert "float32: seed 0 diverged" in text and "end of its range" in text
    assert "int8, scales just in time: learned nothing" in text
    assert not any(e["reached"] for e in report["verdicts"] if e["name"].startswith("int8"))
    page = (tmp_path / "report.html").read_text()
    assert "diverged" in page.split('id="warnings"')[1].split("</ul>")[0]


def test_zero_gradients_are_in_the_report(tmp_path, monkeypatch):
    """Without a learning rate lora_B stays zero, and with it every gradient of lora_A."""
    monkeypatch.setattr(
        "systolora_sim.train_demo.trainers._Float.step", lambda self, lr: None
    )  # fmt: skip
    settings = dataclasses.replace(TINY, recipes=("fp32",))
    report = run_demo(settings, tmp_path, progress=False)
    zeros = report["recipes"][0]["zero_gradients"]
    assert len(zeros) == 8 and all("lora_A" in name for name in zeros)
    assert set(zeros.values()) == {settings.steps - 1}
    assert "learned nothing" in report["warnings"][0]
    assert "gradients of zeros" in report["warnings"][1]


def test_bad_input_is_one_line(tmp_path, capsys):
    def fails(*arguments):
        assert main(["train-demo", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1
        return err

    assert "'int9': must be among fp32" in fails("-o", tmp_path, "--recipes", "int9")
    (tmp_path / "settings.json").write_text(json.dumps(settings_json(TINY)))
    said = fails("--quick", "-o", tmp_path)
    assert "settings.json" in said and TINY.digest in said and QUICK.digest in said
    (tmp_path / "settings.json").write_text("{")
    assert "settings.json: not a result" in fails("--quick", "-o", tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps(settings_json(QUICK)))
    (tmp_path / "classifier.pt").write_bytes(b"nothing")
    assert "classifier.pt: not a checkpoint" in fails("--quick", "-q", "-o", tmp_path)
    (tmp_path / "file").write_text("")
    assert "file" in fails("--quick", "-o", tmp_path / "file")


def test_without_the_extra_one_line(tmp_path):
    program = (
        "import sys; sys.modules['mlxtend'] = None\n"
        "from systolora.cli import main\n"
        f"sys.exit(main(['train-demo', '--quick', '-o', {str(tmp_path)!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2 and "pip install 'systolora[train]'" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


# Parts ----------------------------------------------------------------------------------------


def test_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"step": 1})

    def fail(*args):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_images_are_split_and_the_concept_is_held_back():
    images = load_images("digits")
    assert len(images.train) + len(images.test) == 1797
    assert images.train.min() == -1 and images.train.max() == 1
    rows = {each.numpy().tobytes() for each in images.train}
    assert sum(each.numpy().tobytes() in rows for each in images.test) == 0
    batch = fine_tune_batch(images, QUICK, 3, 7, 1000)
    again = fine_tune_batch(images, QUICK, 3, 7, 1000)
    assert all(torch.equal(getattr(batch, n), getattr(again, n)) for n in ("images", "noise"))
    assert int((batch.labels == QUICK.concept).sum()) == QUICK.batch // 2
    few = images.of(QUICK.concept, "train")[: QUICK.concept_images].unbind()
    chosen = batch.images[batch.labels == QUICK.concept].unbind()
    assert all(any(torch.equal(a, b) for b in few) for a in chosen)


def test_frechet_of_known_distributions():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(500, 3))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + [3, 0, 4]) == pytest.approx(25)
    # Of one dimension: (difference of means)^2 + (difference of deviations)^2, in each
    assert frechet(a, 2 * a) == pytest.approx(
        np.square(a.mean(0)).sum() + np.trace(np.cov(a, rowvar=False))
    )


def test_interval_against_a_table():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3 and found["sd"] == pytest.approx(2.5**0.5)
    assert found["high"] - 3 == pytest.approx(2.776 * 0.5**0.5, rel=1e-3)  # t(0.975, 4)
    assert interval([2.0])["low"] is None


def test_memory_against_a_hand_count():
    """Two layers of [10,6] -> 4 that share X, rank 2."""
    layers = [{"input": "x", "rows": 10, "d": 6, "k": 4}] * 2
    adapter = 2 * (6 + 4)
    float32 = count(layers, 2, float_widths(half=False))
    assert float32 == {
        "weights": 2 * 24 * 4,
        "adapters": 2 * adapter * 4,
        "activations": 60 * 4 + 2 * (20 + 40) * 4,
        "gradients": 2 * (20 + 40 + adapter) * 4,
        "optimizer": 2 * adapter * 4,
        "sums": 0,
        "total": 192 + 160 + 720 + 640 + 160,
    }
    half = count(layers, 2, float_widths(half=True))
    assert (half["weights"], half["adapters"]) == (96, 2 * adapter * (4 + 2))
    assert half["gradients"] == 2 * (60 * 2 + adapter * 4)
    int8 = count(layers, 2, device_widths(RECIPES["int8"]))
    assert int8 == {
        "weights": 48,
        "adapters": 2 * adapter * (2 + 1),
        "activations": 60 + 2 * 60,
        "gradients": 2 * (60 + adapter * 4),
        "optimizer": 2 * adapter * 2,
        "sums": 40 * 4,
        "total": 48 + 120 + 180 + 280 + 80 + 160,
    }
    assert count(layers, 2, device_widths(RECIPES["delayed"]))["sums"] == 0
    wide = count(layers, 2, device_widths(RECIPES["grad16"]))
    assert wide["gradients"] == 2 * (60 * 2 + adapter * 8)  # 48-bit sums lie in 64 bits


def test_recipes_are_what_they_say():
    assert {name for name in RECIPES if RECIPES[name].control} == {"master8", "none"}
    for way in (RECIPES["int16"], *ABLATION.values()):
        narrow = [t for t in TENSORS if way.bits_of(t) == 8]
        assert len(narrow) == {"int16": 0}.get(way.title.split()[0], len(narrow))
    narrow = {n: [t for t in TENSORS if w.bits_of(t) == 8] for n, w in ABLATION.items()}
    assert narrow["only-copies"] == ["lora_A", "lora_B"] and narrow["only-dh"] == ["dH"]
    single = {tuple(t) for n, t in narrow.items() if n.startswith("only")}
    assert {t for each in single for t in each} == set(TENSORS)
    assert Way(title="", kind="float").bits_of("x") == 32


def test_settings_as_json():
    for settings in (FULL, QUICK, TINY):
        there = json.loads(json.dumps(settings_json(settings)))
        assert settings_from_json(there) == settings
    assert settings_from_json({"name": "full"}) is None and settings_from_json([]) is None
    assert FULL.digest != QUICK.digest
    assert issubclass(DemoError, ValueError) and TINY.samples >= finetune.SHOWN


# In a browser ---------------------------------------------------------------------------------


READ = """() => [...document.querySelectorAll("[data-metric][data-value]")].map((e) =>
    [e.dataset.name, e.dataset.metric, e.dataset.value, e.textContent])"""


def _expected(report):
    """Every figure that the page must show, by (name, metric)."""
    figures = {}
    for recipe in (*report["recipes"], *report["ablation"]):
        name = recipe["name"]
        figures |= {(name, key): each["mean"] for key, each in recipe["metrics"].items()}
        if name != "fp32":
            figures |= {
                (name, f"difference.{key}"): each["mean"]
                for key, each in recipe["differences"].items()
                if key == "loss" or key.split(".")[1] in ("mse", "fd")
            }
    figures |= {("real", key): value for key, value in report["floors"].items()}
    for table in report["memory"]:
        for row in table["rows"]:
            name = f"{table['name']}.{row['name']}"
            figures |= {(name, k): v for k, v in row.items() if k not in ("name", "title")}
    return figures | {(each["name"], "verdict"): each["value"] for each in report["verdicts"]}


def test_figures_read_back_from_the_browser(quick, browser):
    report, directory = quick
    said, asked = [], []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((directory / "report.html").as_uri())
    expected, seen = _expected(report), set()
    for name, metric, value, shown in page.evaluate(READ):
        exact = json.loads(value)
        assert exact == expected[name, metric], (name, metric)
        first = shown.split(" ±")[0]
        digits = float(first.strip("%x").replace(",", ""))
        scale = 100 if first.endswith("%") else 1
        assert digits == pytest.approx(exact * scale, rel=1e-3, abs=0.051), (name, metric)
        seen.add((name, metric))
    assert seen == expected.keys()
    embedded = page.evaluate("JSON.parse(document.getElementById('report').textContent)")
    assert embedded == report
    for each in report["verdicts"]:
        cell = page.locator(f"[data-verdict='{each['name']}']")
        assert cell.text_content() == ("reached" if each["reached"] else "not reached")
    page.set_viewport_size({"width": 1100, "height": 900})
    for each in report["verdicts"]:
        seen_in = page.locator(f"[data-verdict='{each['name']}']").bounding_box()
        assert seen_in["x"] + seen_in["width"] <= 1100
    for image in page.locator("img.samples").all():
        assert image.evaluate("e => e.complete && e.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [
        (directory / "report.html").as_uri()
    ]
