"""The HTML page and the history of `systolora synth`, as text and in a browser."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from systolora.cli import main
from systolora.synth.history import append_run, read_history, run_of
from systolora.synth.page import html
from systolora.synth.regression import Figure, figures
from systolora.synth.tools import SynthError
from systolora_sim.runner import BUILD_DIR

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "synthesis"


@pytest.fixture(name="report")
def _report():
    """FPGA and standard cells in one report."""
    report = json.loads((RESULTS / "ecp5.json").read_text(encoding="utf-8"))
    cells = json.loads((RESULTS / "asap7.json").read_text(encoding="utf-8"))
    return report | {"cells": {"ASAP7 <fast>": next(iter(cells["cells"].values()))}}


def earlier(report, factor):
    """A run whose areas were `factor` times these, its frequencies these over it."""
    before = copy.deepcopy(report)
    for entry in before["fpga"]["ecp5-85k"]:
        entry["area"] = {name: round(value * factor) for name, value in entry["area"].items()}
        if "fmax_mhz" in entry:
            entry["fmax_mhz"] /= factor
    return run_of(before, f"x{factor}")


class _Page(HTMLParser):
    """Collects figures and the embedded report, and counts tags that must be closed."""

    VOID = frozenset({"meta", "link", "polyline", "circle"})

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.figures, self.shown = [], [], {}, {}
        self.embedded, self.key, self.inside = "", None, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[k] for k in ("src", "href") if k in given]
        self.inside, self.key = given.get("id"), None
        if "data-value" in given:
            self.key = tuple(given[f"data-{n}"] for n in ("target", "unit", "metric"))
            self.figures[self.key] = json.loads(given["data-value"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.key = None

    def handle_data(self, data):
        if self.inside == "report" and self.open[-1:] == ["script"]:
            self.embedded += data
        elif self.key is not None:
            self.shown[self.key] = data


def test_every_figure_is_on_the_page(report):
    page = html(report)
    assert page == html(report)
    read = _Page(page)
    assert read.open == [] and read.links == ["data:,"] and "default-src 'none'" in page
    assert json.loads(read.embedded) == report
    for key, value in figures(report).items():
        if value or key.name in ("LUT4", "MHz"):
            assert read.figures[tuple(key)] == value
    assert read.figures["ecp5-85k", "array", "LUT4/PE"] == 71.12
    assert read.figures["ASAP7 <fast>", "array", "multipliers %"] == pytest.approx(36, abs=1)
    assert read.figures["ecp5-85k", "array", "MULT18X18D %"] == pytest.approx(
        100 * 64 / 156, abs=0.01
    )
    for key, text in read.shown.items():
        assert float(text.replace(",", "")) == pytest.approx(
            read.figures[key], abs=0.051 if "." in text else 0
        )
    assert "No earlier run" in page


def test_what_became_worse_is_told_in_words(report):
    """Too much beyond the limits, within them only the difference; other configurations not."""
    strange = {**earlier(report, 0.5), "digest": "other"}
    page = html(report, [strange, earlier(report, 1.2), earlier(report, 0.9)])
    assert "2 earlier runs of this configuration, x1.2 to x0.9" in page
    worse = re.findall(r'<span class="worse">([^<]*), too much</span>', page)
    assert len(worse) >= 3 and all(text[0] in "+-" for text in worse)
    assert "too much" in page[page.index("<h2>History") :]
    spark = re.search(r"<title>([0-9., ]*)</title><polyline", page)
    assert spark is not None and spark[1].count(",") == 2
    within = html(report, [earlier(report, 0.97)])
    assert "too much</span>" not in within and '<span class="muted">+' in within


def test_the_command_keeps_a_history(tmp_path, capsys):
    """Twice the same: two runs, no change; against a better one: an error, and the page says it."""
    history, page, report = (tmp_path / name for name in ("h.jsonl", "p.html", "r.json"))
    command = ["synth", "-q", "--build-dir", str(BUILD_DIR), "--target", "ecp5-85k", "--no-pnr"]
    command += ["--unit", "pe", "--history", str(history), "--html", str(page)]
    assert main([*command, "--json", str(report)]) == 0
    assert "No earlier run" in page.read_text()
    assert main(command) == 0
    assert len(read_history(history)) == 2
    text = page.read_text()
    assert "1 earlier runs" in text and "too much</span>" not in text
    better = json.loads(report.read_text())
    better["fpga"]["ecp5-85k"][0]["area"]["FF"] //= 2
    report.write_text(json.dumps(better))
    assert main([*command, "--against", str(report)]) == 2
    assert "pe: FF 116, was 58" in capsys.readouterr().err
    assert "+100.0%, too much" in page.read_text()


@pytest.mark.parametrize("line", ["{", "[]", '{"when": "x"}', '{"when": 1, "digest": "d"}'])
def test_bad_history(line, tmp_path, report):
    file = tmp_path / "h.jsonl"
    append_run(file, report, [])
    with file.open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(SynthError, match=r"h\.jsonl: line 2: not a run of synth"):
        read_history(file)
    assert read_history(tmp_path / "none") == []


# In a browser ---------------------------------------------------------------------------------

READ = """() => [...document.querySelectorAll("[data-metric][data-value]")].map((e) =>
    [e.dataset.target, e.dataset.unit, e.dataset.metric, e.dataset.value, e.textContent])"""


def test_figures_read_back_from_the_browser(report, opened):
    page = opened(html(report, [earlier(report, 1.2), earlier(report, 0.9)]))
    found = {Figure(t, u, m): (json.loads(v), shown) for t, u, m, v, shown in page.evaluate(READ)}
    for key, value in figures(report).items():
        if value:
            assert found[key][0] == value, key
            assert float(found[key][1].replace(",", "")) == pytest.approx(value, abs=0.051), key
    embedded = page.evaluate("JSON.parse(document.getElementById('report').textContent)")
    assert embedded == report
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert page.locator("svg > title").count() == page.locator("svg").count() > 5


def test_dark_and_light(report, opened):
    colours = {
        scheme: opened(html(report), color_scheme=scheme).evaluate(
            "getComputedStyle(document.body).backgroundColor"
        )
        for scheme in ("light", "dark")
    }
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}
