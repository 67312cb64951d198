"""The HTML page of a perf report, as text and in a browser."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from perf_sample import sample_events, sample_report
from systolora_sim.perf_report import html


@pytest.fixture(name="report")
def _report():
    return sample_report()


# Page -----------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Counts tags that must be closed, and keeps the embedded report."""

    VOID = frozenset({"meta", "link", "input", "br", "rect", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.embedded = ""
        self.inside = None

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        self.inside = given.get("id")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.inside == "report" and self.open[-1] == "script":
            self.embedded += data


def test_page_is_well_formed_and_alone(report):
    report["notes"].append("</script><script>alert(1)</script>")
    page = html(report, sample_events(3))
    assert page == html(report, sample_events(3))
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == [] and parsed.sources == ["data:,"]
    assert json.loads(parsed.embedded) == report
    assert "alert(1)</script>" not in page
    assert "default-src 'none'" in page


def test_page_without_a_timeline(report):
    page = html(report, [])
    assert "No timeline was recorded" in page and "<canvas" not in page


def test_page_does_not_need_matplotlib():
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from perf_sample import sample_report\n"
        "from systolora_sim.perf_report import html\n"
        "assert html(sample_report(), [])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# In a browser ---------------------------------------------------------------------------------


READ = """() => [...document.querySelectorAll("[data-metric][data-value]")].map((e) =>
    [e.dataset.run, e.dataset.product, e.dataset.metric, e.dataset.value, e.textContent])"""


def _expected(report):
    """Every figure that the page must show, by (run, product, metric)."""
    figures = {}
    for run in report["runs"]:
        step = ("cycles", "share", "macs", "limit", "bytes_read", "bytes_written")
        parts = {k: run[k] for k in step} | run["waits"]
        figures |= {(run["name"], "step", key): value for key, value in parts.items()}
        for product in run["products"]:
            parts = {k: product[k] for k in ("macs", "limit", "cycles", "share", "bytes")}
            parts |= {f"wait_{key}": value for key, value in product["waits"].items()}
            figures |= {(run["name"], product["name"], k): v for k, v in parts.items()}
    figures |= {(name, "step", "speedup"): v for name, v in report["speedups"].items()}
    for peer in report["peers"]:
        figures |= {(peer["name"], "step", k): peer[k] for k in ("cycles", "macs", "share")}
        figures |= {(peer["name"], p["name"], "cycles"): p["cycles"] for p in peer["products"]}
    for layer in report["workload"]["layers"]:
        keys = ("rows", "d", "k", "count")
        figures |= {("workload", layer["name"], key): layer[key] for key in keys}
    figures["systolora", "step", "step_share"] = report["step_share"]["share"]
    return figures


def test_figures_read_back_from_the_browser(report, opened):
    page = opened(html(report, sample_events(40)))
    expected, seen = _expected(report), set()
    for run, product, metric, value, shown in page.evaluate(READ):
        key = (run, product, metric)
        digits = float("".join(c for c in shown.split()[-1] if c in "0123456789."))
        exact = json.loads(value)
        scale = 100 if shown.endswith("%") else 1
        assert digits == pytest.approx(exact * scale, abs=0.051), key
        if key in expected:
            assert exact == expected[key], key
            seen.add(key)
        else:  # derived here, or of the timeline
            assert metric in ("intensity", "macs_per_cycle", "roof") or run == "timeline", key
    assert seen == expected.keys()
    embedded = page.evaluate("JSON.parse(document.getElementById('report').textContent)")
    assert embedded == report
    assert page.locator("h1").text_content() == report["workload"]["title"]
    assert report["scope"] in page.locator("p.scope").text_content()
    for element in page.locator("figure svg").all():
        assert element.locator(":scope > title").text_content()
        assert element.locator(":scope > desc").text_content()


def test_timeline_zooms_moves_and_finds(report, opened):
    events = sample_events(10_000)  # 50,000
    page = opened(html(report, events))
    canvas = page.locator("#timeline canvas")

    def view():
        page.evaluate("() => new Promise(requestAnimationFrame)")
        return tuple(float(canvas.get_attribute(f"data-{end}")) for end in ("from", "to"))

    end = max(event["end"] for event in events)
    assert view() == (0, end)
    page.get_by_role("button", name="Zoom in").click()
    assert view() == (end / 4, end * 3 / 4)
    page.get_by_role("button", name="Later").click()
    assert view() == (end * 3 / 8, end * 7 / 8)
    canvas.focus()
    canvas.press("0")
    assert view() == (0, end)
    canvas.press("+")
    canvas.press("ArrowLeft")
    assert view() == (end / 8, end * 5 / 8)
    page.locator("#timeline-find").fill("DB LAYER2")
    page.locator("#timeline-find").press("Enter")
    # The first in time: block 2 loads dB of layer 2
    told = page.locator("#timeline-told").text_content()
    assert told == "LOAD: dB layer2, cycles 640 to 1,140 (500); descriptor 6, bytes 4096"
    start, stop = view()
    assert start <= 640 and stop >= 1140 and stop - start < 10_000
    page.get_by_role("button", name="Whole step").click()
    page.locator("#timeline-find").fill("nothing")
    page.locator("#timeline-find").press("Enter")
    assert "No event" in page.locator("#timeline-told").text_content()
    redraw = """() => { const t = performance.now();
        for (const e of document.querySelectorAll("[data-action=in]")) e.click();
        return new Promise((r) => requestAnimationFrame(() => r(performance.now() - t))); }"""
    assert page.evaluate(redraw) < 2000  # milliseconds; it takes some 20


# Colours in the second lane at four places, from the left to the right
PIXELS = """() => {
    const canvas = document.querySelector("#timeline canvas");
    const row = canvas.getContext("2d").getImageData(0, 26 + 24 + 6, canvas.width, 1).data;
    const at = (part) => 4 * (153 + Math.round((canvas.clientWidth - 150) * part));
    return [0.1, 0.4, 0.6, 0.9].map((part) => [...row.slice(at(part), at(part) + 3)]);
}"""


def test_timeline_is_drawn_where_it_is_busy(report, opened):
    """Reads pixels: lane 1 is busy in its first half only, at both levels of detail."""
    long = [{"track": "array", "name": "Y x", "start": 0, "end": 5_000, "args": {}}]
    last = {"track": "program", "name": "other", "start": 9_999, "end": 10_000, "args": {}}
    short = [{**long[0], "start": i, "end": i + 1} for i in range(5_000)]
    for events in (long, short):
        page = opened(html(report, [*events, last]))
        colours = page.evaluate(PIXELS)
        assert colours[2] == colours[3] == [255, 255, 255]
        assert all(c[0] > c[1] + 40 for c in colours[:2]), "Y is red"


def test_dark_and_light(report, opened):
    content = html(report, sample_events(3))
    shown = {}
    for scheme in ("light", "dark"):
        page = opened(content, color_scheme=scheme)
        shown[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bar = page.locator("figure svg rect[data-product=Y]").first
        shown[f"{scheme} bar"] = bar.evaluate("e => getComputedStyle(e).fill")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 1200  # only tables may scroll sideways, in their own boxes
    assert shown["light"] == "rgb(255, 255, 255)" and shown["dark"] == "rgb(20, 24, 30)"
    assert shown["light bar"] == "rgb(10, 110, 189)" and shown["dark bar"] == "rgb(95, 180, 245)"
