"""The views of a perf report: text, page (in a browser), charts, trace."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from perf_sample import sample_events, sample_report
from systolora_sim import perf_report
from systolora_sim.perf_figures import compact, memory_lines
from systolora_sim.perf_report import CHARTS, ReportError, html, perfetto, save_chart, text
from systolora_sim.timeline import lanes

SEED = 20260117
KINDS = tuple(CHARTS)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(name="report")
def _report():
    return sample_report()


# Text -----------------------------------------------------------------------------------------


def test_text_has_every_figure_of_the_step(report):
    printed = text(report)
    run = report["runs"][0]
    for product in run["products"]:
        line = next(x for x in printed.splitlines() if x.strip().startswith(product["title"]))
        assert f"{product['cycles']:,}" in line and f"{product['bytes']:,}" in line
        if product["macs"]:
            assert f"{100 * product['share']:.1f}%" in line
        assert f"loads {product['waits']['loads']:,}" in line
    for other in report["runs"]:
        line = next(x for x in printed.splitlines() if x.startswith(f"  {other['title']}  "))
        assert f"{other['cycles']:,}" in line
        if other is not run:
            assert f"{report['speedups'][other['name']]:.2f}x" in line
    assert report["scope"] in printed
    assert "0.4% of the whole step's MACs" in printed and "1.004x" in printed
    assert "SCALE-Sim WS" in printed and "150,000" in printed
    assert "free of charge: B^T" in printed


def test_text_is_ascii_in_120_columns(report):
    report["runs"] += [
        {**copy.deepcopy(report["runs"][1]), "name": f"textbook-ws-better-{i}"} for i in range(8)
    ]
    printed = text(report)
    assert printed.isascii() and printed.endswith("\n")
    assert max(map(len, printed.splitlines())) <= 120
    assert all(line == line.rstrip() for line in printed.splitlines())
    assert all(printed.count(run["name"]) >= 1 for run in report["runs"])


def test_text_of_a_lone_run(report):
    report |= {"runs": report["runs"][:1], "peers": [], "speedups": {}, "step_share": None}
    report["runs"][0]["notes"], report["notes"] = [], []
    printed = text(report)
    assert "Baselines" not in printed and "Peers" not in printed and "Notes" not in printed
    assert "not known for this workload" in printed


def test_numbers_of_three_digits():
    assert [compact(n) for n in (7, 999, 1000, 89_882, 999_499, 999_600, 1_234_567)] == [
        "7", "999", "1 k", "89.9 k", "999 k", "1 M", "1.23 M",
    ]  # fmt: skip


# Memory ---------------------------------------------------------------------------------------


def test_memory_is_not_the_limit(report):
    lines = memory_lines(report)
    # 1,900,000 bytes in beats of 64, against 313,184,256 MACs on 4096 multipliers
    assert lines[0].startswith("The array is the limit of the step")
    assert "76,461" in lines[0] and "29,688 (38.8%" in lines[0]
    # 2,838,528 MACs for 240,000 bytes are 11.8 a byte; 4096 / 64 would be balanced
    assert any(line.startswith("H by itself: 18.5%") and "5.41 times" in line for line in lines)
    # Y does 201 MACs per byte, dB reads nothing
    assert not any(line.startswith(("Y by", "dB by")) for line in lines)


def test_memory_is_the_limit(report):
    report["memory"]["bus_bits"] = 128
    first = memory_lines(report)[0]
    assert first.startswith("Memory is the limit of the step: reading takes at least 118,750")
    assert "1.55 times" in first
    report["runs"][0]["bytes_written"] = 3_800_000
    assert "writing takes at least 237,500" in memory_lines(report)[0]
    # A run's own configuration goes before the report's
    report["runs"][0]["config"] = {"bus_bits": 1024}
    assert memory_lines(report)[0].startswith("The array is the limit of the step")


# Charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_svg_chart(report, kind, tmp_path):
    save_chart(report, kind, tmp_path / "a.svg")
    save_chart(sample_report(), kind, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert root.findtext(f"{SVG}title") and root.findtext(f"{SVG}desc")
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert len(words) > 8
    width = float(root.attrib["width"])
    assert all(0 <= float(e.attrib["x"]) <= width for e in root.iter(f"{SVG}text"))
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "b.svg"}


def test_bars_are_as_long_as_shares(report, tmp_path):
    save_chart(report, "utilization", tmp_path / "a.svg")
    bars = {
        (e.attrib["data-run"], e.attrib["data-product"]): float(e.attrib["width"])
        for e in ElementTree.parse(tmp_path / "a.svg").iter(f"{SVG}rect")
        if "data-run" in e.attrib
    }
    shares = {
        (run["name"], part["name"]): part["share"]
        for run in report["runs"]
        for part in [*run["products"], {"name": "step", "macs": 1, "share": run["share"]}]
        if part["macs"]
    }
    assert bars.keys() == shares.keys()
    scale = bars["systolora", "step"] / shares["systolora", "step"]
    assert all(bars[k] == pytest.approx(share * scale, abs=0.02) for k, share in shares.items())


def test_cycles_fill_a_bar(report, tmp_path):
    save_chart(report, "cycles", tmp_path / "a.svg")
    lengths: dict[str, float] = {}
    for e in ElementTree.parse(tmp_path / "a.svg").iter(f"{SVG}rect"):
        if "data-run" in e.attrib:
            name = e.attrib["data-run"]
            lengths[name] = lengths.get(name, 0) + float(e.attrib["width"])
    cycles = {run["name"]: run["cycles"] for run in report["runs"]}
    scale = lengths["systolora"] / cycles["systolora"]
    assert lengths == pytest.approx({n: c * scale for n, c in cycles.items()}, abs=0.1)


def test_roofline_without_bytes(report, tmp_path):
    for run in report["runs"]:
        run["bytes_read"] = run["bytes_written"] = 0
        for product in run["products"]:
            product["bytes"] = 0
    save_chart(report, "roofline", tmp_path / "a.svg")
    assert "No run moves bytes" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_png_chart(report, kind, tmp_path):
    pytest.importorskip("matplotlib")
    save_chart(report, kind, tmp_path / "a.png")
    save_chart(report, kind, tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert content.startswith(b"\x89PNG") and int.from_bytes(content[16:20], "big") == 1920
    assert len(content) > 10_000  # an empty picture of this size has 6 kB


def test_what_no_chart_can_be(report, tmp_path, monkeypatch):
    with pytest.raises(ReportError, match="chart = 'pie': must be one of utilization, cycles, "):
        save_chart(report, "pie", tmp_path / "a.svg")
    with pytest.raises(ReportError, match=r"a\.pdf: must end in \.svg or \.png"):
        save_chart(report, "cycles", tmp_path / "a.pdf")
    with pytest.raises(ReportError, match=r"a\.svg: cannot be written: No such file"):
        save_chart(report, "cycles", tmp_path / "none" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"PNG needs Matplotlib: pip install"):
        save_chart(report, "cycles", tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# Trace ----------------------------------------------------------------------------------------


def test_trace_is_sorted_named_and_whole():
    events = sample_events(20)
    shuffled = events[:]
    random.Random(SEED).shuffle(shuffled)
    trace = perfetto(events)
    assert json.dumps(trace) == json.dumps(perfetto(shuffled))
    named = {
        e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"
    }
    assert list(named.values()) == ["LOAD", "LOAD 2", "POST", "array", "read bus", "write bus"]
    timed = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert {e["ph"] for e in trace["traceEvents"]} == {"M", "X"}
    assert [e["ts"] for e in timed] == sorted(e["ts"] for e in timed)
    found = sorted((e["cat"], e["name"], e["ts"], e["ts"] + e["dur"]) for e in timed)
    assert found == sorted((e["track"], e["name"], e["start"], e["end"]) for e in events)
    for thread in named:  # what overlaps in one thread would be drawn wrongly
        own = [e for e in timed if e["tid"] == thread]
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(own))


def test_lanes_use_no_more_than_they_need():
    def event(start, end):
        return {"track": "zebra", "name": "x", "start": start, "end": end, "args": {}}

    found = lanes([event(0, 10), event(2, 4), event(4, 6), event(10, 10), event(10, 12)])
    assert [(lane.label, len(lane.events), lane.busy) for lane in found] == [
        ("zebra", 3, 12),
        ("zebra 2", 2, 4),
    ]
    assert lanes([]) == [] and perfetto([])["traceEvents"][0]["ph"] == "M"
    with pytest.raises(ValueError, match="zebra: x ends at 1, before its start 2"):
        lanes([event(2, 1)])


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


@pytest.fixture(name="browser", scope="module")
def _browser():
    """Chromium: the system's, else Playwright's own. Skips where neither is."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with api.sync_playwright() as playwright:
        found = [shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome")]
        path = next((p for p in found if p), playwright.chromium.executable_path)
        if not Path(path).exists():
            pytest.skip("needs Chromium (Debian: chromium; or: playwright install chromium)")
        # No sandbox: it does not exist for root. Nothing but the page may use the network.
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(name="opened")
def _opened(browser, tmp_path):
    """Opens a page; afterwards there must have been no message and no request but for itself."""
    pages, said, asked = [], [], []

    def opened(content, **options):
        path = tmp_path / "report.html"
        perf_report.save_text(path, content)
        page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []
    assert asked == [(tmp_path / "report.html").as_uri()] * len(pages)


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
    print(page.evaluate(redraw))


def test_timeline_is_drawn_where_it_is_busy(report, opened):
    """Reads pixels: lane 1 is busy in its first half only, at both levels of detail."""
    long = [{"track": "array", "name": "Y x", "start": 0, "end": 5_000, "args": {}}]
    last = {"track": "program", "name": "other", "start": 9_999, "end": 10_000, "args": {}}
    short = [{**long[0], "start": i, "end": i + 1} for i in range(5_000)]
    for events in (long, short):
        page = opened(html(report, [*events, last]))
        colours = page.evaluate("""() => {
            const canvas = document.querySelector("#timeline canvas");
            const pen = canvas.getContext("2d"), y = 26 + 24 + 6;
            const at = (part) => 150 + Math.round((canvas.clientWidth - 150) * part);
            return [0.1, 0.4, 0.6, 0.9].map(
                (part) => [...pen.getImageData(at(part) + 3, y, 1, 1).data].slice(0, 3));
        }""")
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
