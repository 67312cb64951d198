"""The views of a perf report but the page: text, charts, trace."""

import copy
import json
import random
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from perf_sample import sample_events, sample_report
from systolora_sim.perf_figures import compact, memory_lines
from systolora_sim.perf_report import CHARTS, ReportError, perfetto, save_chart, text
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
    assert lines[0].startswith("The array is the limit of the step, not memory")
    assert "76,461" in lines[0] and "reading 29,688 (38.8%)" in lines[0]
    assert "the post-processor 60,000 (78.5%)" in lines[0]
    # 2,838,528 MACs for 240,000 bytes are 11.8 a byte; 4096 / 64 would be balanced
    assert any(line.startswith("H by itself: 18.5%") and "5.41 times" in line for line in lines)
    # Y does 201 MACs per byte, dB reads nothing
    assert not any(line.startswith(("Y by", "dB by")) for line in lines)


def test_memory_is_the_limit(report):
    report["memory"]["bus_bits"] = 128
    first = memory_lines(report)[0]
    assert first.startswith("Memory is the limit of the step: reading takes at least 118,750")
    assert "the array 76,461 (64.4%)" in first
    report["runs"][0]["bytes_written"] = 3_800_000
    assert "writing takes at least 237,500" in memory_lines(report)[0]
    # Channels work side by side
    report["memory"]["channels"] = 2
    assert "writing takes at least 118,750" in memory_lines(report)[0]
    assert "Memory brings 32 bytes a cycle" in memory_lines(report)[0]
    assert "2 channels of 128 bits each way" in " ".join(text(report).split())
    # A run's own configuration goes before the report's
    report["runs"][0]["config"] = {"bus_bits": 1024}
    assert memory_lines(report)[0].startswith("The array is the limit of the step")


def test_the_post_processor_is_the_limit(report):
    run = report["runs"][0]
    run["post_cycles"] = 90_000
    first = memory_lines(report)[0]
    assert first.startswith("The post-processor is the limit of the step, not memory: it takes at")
    assert f"and the step {run['cycles'] / 90_000:.2f}x that" in first


def test_a_run_that_computes_less(report):
    """Its limit is that of the whole step; the array needs what is computed."""
    run = report["runs"][0]
    run["computed_macs"] = run["macs"] // 10
    printed = text(report)
    assert f"of which {run['macs'] // 10:,} are computed" in printed
    assert memory_lines(report)[0].startswith("The post-processor is the limit")
    assert f"the array {run['macs'] // 10 / 4096:,.0f}" in memory_lines(report)[0]


def test_a_share_beyond_the_limit_stays_on_the_chart(report, tmp_path):
    report["runs"][0]["share"] = 1.8
    save_chart(report, "utilization", tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    bars = [r.attrib for r in root.iter(f"{SVG}rect") if "x" in r.attrib]
    ends = [float(bar["x"]) + float(bar["width"]) for bar in bars]
    assert 0 < max(ends) < float(root.attrib["viewBox"].split()[2])


@pytest.mark.parametrize(("cycles", "word"), [(150_000, "yes, 1."), (50_000, "no, 0.")])
def test_the_best_peer(report, cycles, word):
    report["peers"][0]["cycles"] = cycles
    assert f"Never below SCALE-Sim WS: {word}" in text(report)
    report["peers"] = []
    assert "Never below" not in text(report)


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
