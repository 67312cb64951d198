"""SCALE-Sim as a peer: its closed forms against what the tool itself measured."""

import hashlib
import json
from pathlib import Path

import pytest

from systolora_sim.runner import RunError
from systolora_sim.scalesim import (
    PRODUCTS,
    Gemm,
    Report,
    best_cycles,
    layer_products,
    os_cycles,
    peer_cycles,
    peers,
    read_report,
    ws_cycles,
)
from systolora_sim.scalesim_report import render
from systolora_sim.scalesim_runs import (
    BATCHES,
    KV_LAYERS,
    RANKS,
    Case,
    cases,
    make_environment,
    run_case,
    topology,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
STORED = json.loads((RESULTS / "scalesim.json").read_text(encoding="utf-8"))
FORMS = {"WS": ws_cycles, "OS": os_cycles}


def key(run):
    return (tuple(run["shape"]), run["dataflow"], run["memory"])


# What was measured ---------------------------------------------------------------------------


def test_measured_cycles_without_stalls_are_the_closed_forms():
    """The tool measured the stored totals (scripts/scalesim.py); the forms are computed here."""
    runs = [run for run in STORED["runs"] if run["memory"] == "stall-free"]
    for run in runs:
        gemm = Gemm(*run["shape"])
        assert run["stall"] == 0
        assert FORMS[run["dataflow"]](gemm) == run["total"] == run["closed_form"], run
    assert len(runs) > 200


def test_limited_cycles_are_the_closed_forms_and_stalls():
    runs = [run for run in STORED["runs"] if run["memory"] == "64-bytes"]
    for run in runs:
        assert run["total"] == FORMS[run["dataflow"]](Gemm(*run["shape"])) + run["stall"], run
        assert run["with_prefetch"] > run["total"]
        m, k, n = run["shape"]
        if run["stall"]:  # as the page says
            assert m * k > 1 << 18 or k * n > 1 << 17
    assert runs


def test_every_case_was_measured_once():
    measured = [key(run) for run in STORED["runs"]]
    assert len(set(measured)) == len(measured)
    wanted = {(tuple(case.gemm), case.dataflow, case.memory) for case in cases()}
    assert set(measured) == wanted and STORED["not_run"] == 0


def test_every_product_was_measured_in_both_dataflows():
    measured = {key(run) for run in STORED["runs"]}
    for batch in BATCHES:
        for rank in RANKS:
            for n, d, k, dx in KV_LAYERS:
                for gemm in layer_products(n * batch, d, k, rank, dx).values():
                    for dataflow in ("WS", "OS"):
                        assert (gemm, dataflow, "64-bytes") in measured
                        assert (gemm, dataflow, "stall-free") in measured
                        assert (gemm.transposed, dataflow, "stall-free") in measured


def test_configurations_are_those_measured_with():
    assert len(STORED["configurations"]) == 4
    for each in STORED["configurations"]:
        content = (ROOT / each["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"], each["file"]


def test_the_page_shows_the_stored_figures():
    assert (RESULTS / "scalesim.md").read_text(encoding="utf-8") == render(STORED)


def test_the_page_lists_stalls_and_what_was_left_out():
    changed = json.loads(json.dumps(STORED))
    run = next(run for run in changed["runs"] if run["memory"] == "64-bytes")
    run["stall"], run["total"] = 4321, run["closed_form"] + 4321
    changed["not_run"] = 17
    page = render(changed)
    assert "| 4321 |" in page and "17 larger cases were not run." in page


# Closed forms --------------------------------------------------------------------------------


def test_closed_forms_by_hand():
    # 2 x 3 tiles of the reduction and the columns, each: 4 rows to load, 7 rows to stream, and
    # 4 + 8 - 2 cycles of skew; the last cycle has the number one below the count.
    assert ws_cycles(Gemm(7, 5, 17), 4, 8) == 2 * 3 * (4 + 7 + 10) - 1
    assert os_cycles(Gemm(7, 5, 17), 4, 8) == 2 * 3 * (5 + 10) - 1
    assert os_cycles(Gemm(17, 5, 7), 4, 8) == 5 * 1 * (5 + 10) - 1
    assert best_cycles(Gemm(7, 5, 17), 4, 8) == 2 * 1 * (4 + 17 + 10) - 1  # WS, transposed


@pytest.mark.parametrize("gemm", [Gemm(77, 768, 4), Gemm(4, 308, 768), Gemm(308, 768, 320)])
def test_best_is_the_least_of_four(gemm):
    ways = [form(each) for form in FORMS.values() for each in (gemm, gemm.transposed)]
    assert best_cycles(gemm) == min(ways) == best_cycles(gemm.transposed)


def test_products_of_a_layer():
    products = layer_products(77, 768, 320, 4)
    assert tuple(products) == PRODUCTS
    assert products["dB"] == Gemm(320, 77, 4) and products["dA"] == Gemm(4, 77, 768)
    assert tuple(layer_products(77, 768, 320, 4, dx=False)) == PRODUCTS[:6]


def test_peer_cycles_sum_over_layers_and_batch():
    one, other = (77, 768, 320, False), (64, 640, 640, True)
    both = peer_cycles([one, other, other], rank=4, batch=2)
    first, second = (peer_cycles([layer], rank=4, batch=2) for layer in (one, other))
    for dataflow in ("WS", "OS", "best"):
        assert tuple(both[dataflow]) == PRODUCTS
        assert "dX" not in first[dataflow]
        for name, cycles in both[dataflow].items():
            assert cycles == first[dataflow].get(name, 0) + 2 * second[dataflow][name]
    assert first["WS"]["Y"] == ws_cycles(Gemm(154, 768, 320))
    assert first["best"]["dA"] == best_cycles(Gemm(4, 154, 768))


def test_peer_cycles_of_another_array():
    small = peer_cycles([(77, 768, 320, True)], rank=4, batch=1, rows=16, cols=8)
    assert small["OS"]["Y"] == 5 * 40 * (768 + 22) - 1


def test_peers_as_a_report_wants_them():
    entries = peers([(77, 768, 320, True)], rank=4, batch=1)
    assert [entry["name"] for entry in entries] == [
        "SCALE-Sim WS",
        "SCALE-Sim OS",
        "SCALE-Sim best of WS and OS",
    ]
    for entry in entries:
        assert list(entry) == ["name", "cycles", "macs", "share", "products", "source"]
        assert entry["cycles"] == sum(each["cycles"] for each in entry["products"])
        assert entry["macs"] == 77 * (2 * 768 * 320 + 3 * 768 * 4 + 3 * 320 * 4)
        assert entry["share"] == round(entry["macs"] / 4096 / entry["cycles"], 4) < 1
    assert entries[2]["cycles"] <= min(entry["cycles"] for entry in entries[:2])
    assert peers([], rank=4, batch=1)[0]["cycles"] == 0


# Files of the tool ---------------------------------------------------------------------------

COMPUTE = (
    "LayerID, Total Cycles (incl. prefetch), Total Cycles, Stall Cycles, Overall Util %, "
    "Mapping Efficiency %, Compute Util %,\n"
)
ACCESSES = "LayerID, SRAM IFMAP Reads, DRAM IFMAP Reads, DRAM Filter Reads,\n"


def test_reading_a_report():
    compute = f"{COMPUTE}0, 4184, 3203, 0, 1.80, 6.25, 1.46,\n1, 1795.0, 1400, 66, 1.8, 6.2, 1,\n"
    accesses = f"{ACCESSES}0, 9, 640, 64,\n1, 9, 128, 256,\n"
    assert read_report(compute, accesses) == [
        Report(3203, 0, 4184, 640, 64),
        Report(1400, 66, 1795, 128, 256),
    ]


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ("", "COMPUTE_REPORT.csv: list index out of range"),
        ("LayerID, Total Cycles,\n0, 1,\n", "COMPUTE_REPORT.csv: 'Stall Cycles' is not in list"),
        (f"{COMPUTE}0, 4184, many, 0,\n", "could not convert string to float: 'many'"),
        (f"{COMPUTE}0, 4184,\n", "could not convert string to float: ''"),
        (COMPUTE, "DETAILED_ACCESS_REPORT.csv: 1 layers, must be 0"),
    ],
)
def test_a_report_that_is_none(compute, message):
    with pytest.raises(ValueError) as caught:
        read_report(compute, f"{ACCESSES}0, 9, 640, 64,\n")
    assert message in str(caught.value)


def test_topology_has_columns_in_the_order_m_n_k():
    assert topology([Gemm(77, 768, 4)]) == "Layer,M,N,K,\nm77k768n4,77,4,768,\n"


def test_a_tool_that_fails(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho Traceback >&2\necho 'KeyError: bandwidth' >&2\nexit 1\n")
    broken.chmod(0o755)
    case = Case(Gemm(4, 4, 4), "WS", "stall-free", ())
    with pytest.raises(RunError, match="SCALE-Sim failed: KeyError: bandwidth"):
        run_case(case, broken, tmp_path, ROOT)
    broken.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(RunError, match=r"no usable report: .*COMPUTE_REPORT\.csv"):
        run_case(case, broken, tmp_path, ROOT)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("dataflow", ["WS", "OS"])
@pytest.mark.parametrize("memory", ["stall-free", "64-bytes"])
def test_the_real_tool_again(tmp_path, dataflow, memory):
    try:
        python = make_environment(ROOT / "build" / "scalesim")
    except RunError as error:
        pytest.skip(str(error))
    case = Case(Gemm(77, 4, 320), dataflow, memory, ())
    result = run_case(case, python, tmp_path, ROOT)
    (stored,) = [run for run in STORED["runs"] if key(run) == (case.gemm, dataflow, memory)]
    for field in Report._fields:
        assert result[field] == stored[field]
    assert result["total"] == case.closed_form
    assert run_case(case, python, tmp_path, ROOT) == result  # kept, not run again
