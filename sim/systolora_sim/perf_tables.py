"""The tables and figures of a perf report's HTML page; each figure with data- attributes."""

from html import escape
from typing import Any

from systolora.html_page import NONE, definitions, figure_element, row, table, text_cell
from systolora_sim.perf_charts import WAITS
from systolora_sim.perf_figures import (
    ORDER,
    best_peer,
    bus_bytes,
    computed,
    intensity,
    memory_width,
    number,
    peak,
    percent,
    products,
    ratio,
    roof,
)
from systolora_sim.timeline import Lane

__all__ = ["cycle_table", "headline", "layer_table", "peer_table", "product_table"]
__all__ += ["roofline_table", "settings", "timeline_table", "utilization_table"]


def _figure(run: str, product: str, metric: str, value: Any, shown: str, tag: str = "td") -> str:
    """An element with one figure of the report, exact in data-value."""
    return figure_element({"run": run, "product": product, "metric": metric}, value, shown, tag)


# Heading --------------------------------------------------------------------------------------


def settings(report: dict[str, Any]) -> str:
    """Workload, training, hardware, memory and versions, as a list of definitions."""
    config, memory, run = report["config"], report["memory"], report["runs"][0]
    workload = report["workload"]
    layers = sum(layer["count"] for layer in workload["layers"])
    source = {"model": "a model of the cycles", "rtl": "the RTL, simulated"}[run["backend"]]
    entries = {
        "Workload": f"{workload['name']}, {layers} layers; {workload['source']}",
        "Training": f"rank {report['rank']}, batch {report['batch']}, int{report['bits']}, "
        f"{report['optimizer']}",
        "Array": f"{config['rows']} x {config['cols']}, {config['segments']} segments, "
        f"{peak(report, run):,} MACs per cycle; configuration {report['digest']}",
        "Memory": f"{memory_width(memory)} each way, latency {memory['latency']} cycles",
        "Configuration": ", ".join(f"{key} {value}" for key, value in config.items()),
        "Cycles of": f"{source}; schedule {run['schedule']}",
        "Versions": ", ".join(f"{name} {value}" for name, value in report["versions"].items()),
    }
    return definitions(entries)


def headline(report: dict[str, Any]) -> str:
    """Cycles, share of the limit, speed-ups, and the adapted layers' share of the whole step."""
    run = report["runs"][0]
    name = run["name"]
    titles = {other["name"]: other["title"] for other in report["runs"]}
    titles |= {peer["name"]: peer["name"] for peer in report["peers"]}
    cards = [
        (_strong(name, "step", "cycles", run["cycles"], number(run["cycles"])), "cycles a step"),
        (_strong(name, "step", "share", run["share"], percent(run["share"])), "of the MAC limit"),
    ]
    cards += [
        (_strong(other, "step", "speedup", value, ratio(value)), f"against {titles[other]}")
        for other, value in report["speedups"].items()
    ]
    step = report["step_share"]
    if step is not None:
        cards.append(
            (
                _strong(name, "step", "step_share", step["share"], percent(step["share"])),
                "of the whole training step's MACs",
            )
        )
    boxes = "".join(
        f'<div class="card">{figure}<span>{escape(words)}</span></div>' for figure, words in cards
    )
    if step is None:
        words = "The adapted layers' share of the whole step is not known for this workload."
    else:
        words = (
            f"The adapted layers are {percent(step['share'])} of the whole step's MACs "
            f"({number(step['adapted_macs'])} of {number(step['whole_macs'])}; {step['source']}). "
            "With these layers done in no time, and time as MACs are, the whole step would be "
            f"{step['step_speedup_bound']:.3f}x as fast."
        )
    return f'<div class="cards">{boxes}</div><p id="step-share">{escape(words)}</p>'


def _strong(run: str, product: str, metric: str, value: Any, shown: str) -> str:
    return _figure(run, product, metric, value, shown, "strong")


# Beside the charts ----------------------------------------------------------------------------


def utilization_table(report: dict[str, Any]) -> str:
    """Shares of the MAC limit: products by runs."""
    runs = report["runs"]
    rows = []
    for name in ORDER:
        found = [{p["name"]: p for p in products(run)}.get(name) for run in runs]
        if any(found):
            cells = [
                _figure(run["name"], name, "share", product["share"], percent(product["share"]))
                if product
                else NONE
                for run, product in zip(runs, found, strict=True)
            ]
            rows.append(row(name, *cells))
    step = [_figure(r["name"], "step", "share", r["share"], percent(r["share"])) for r in runs]
    return table(
        "Share of the MAC limit (MACs / MACs per cycle / cycles)",
        ["product", *(run["title"] for run in runs)],
        [*rows, row("step", *step)],
    )


def cycle_table(report: dict[str, Any]) -> str:
    """Runs by what their cycles are, and their bytes."""
    rows = []
    for run in report["runs"]:
        name = run["name"]
        speedup = report["speedups"].get(name)
        figures = {"cycles": run["cycles"], "limit": run["limit"]} | run["waits"]
        figures |= {key: run[key] for key in ("macs", "bytes_read", "bytes_written")}
        cells = [_figure(name, "step", k, v, number(v)) for k, v in figures.items()]
        cells.append(
            NONE if speedup is None
            else _figure(name, "step", "speedup", speedup, ratio(speedup))
        )  # fmt: skip
        rows.append(row(run["title"], *cells))
    head = ["run", "cycles", *(words for _, _, words in WAITS), "MACs", "bytes read"]
    return table("Cycles of the step", [*head, "bytes written", "speed-up"], rows)


def roofline_table(report: dict[str, Any]) -> str:
    """Intensity, speed and roof of each run's step and products."""
    rows = []
    for run in report["runs"]:
        moved = run["bytes_read"] + run["bytes_written"]
        step = {"name": "step", "macs": computed(run), "bytes": moved, "cycles": run["cycles"]}
        for product in [step, *products(run)]:
            if not product["bytes"] or not product["cycles"]:
                continue
            dense = intensity(product["macs"], product["bytes"])
            speed, top = product["macs"] / product["cycles"], roof(report, run, dense)
            figures = {"intensity": dense, "macs_per_cycle": speed, "roof": top}
            rows.append(
                row(
                    run["title"],
                    text_cell(product["name"]),
                    *(
                        _figure(run["name"], product["name"], key, value, f"{value:,.1f}")
                        for key, value in figures.items()
                    ),
                    text_cell("array" if top >= peak(report, run) else "memory"),
                )
            )
    first = report["runs"][0]
    head = ["run", "product", "MACs per byte", "MACs per cycle", "roof, MACs per cycle", "roof is"]
    return table(
        f"Roof: {peak(report, first):,} MACs per cycle, or MACs per byte times the bytes of one "
        f"direction of memory ({bus_bytes(report, first)} per cycle); reading and writing have one "
        "each",
        head, rows, 2,
    )  # fmt: skip


def timeline_table(stacked: list[Lane]) -> str:
    """Events and busy cycles of each lane."""
    end = max(1, *(lane.events[-1]["end"] for lane in stacked))
    rows = [
        row(
            lane.label,
            _figure("timeline", lane.label, "events", len(lane.events), number(len(lane.events))),
            _figure("timeline", lane.label, "busy", lane.busy, number(lane.busy)),
            _figure("timeline", lane.label, "share", lane.busy / end, percent(lane.busy / end)),
        )
        for lane in stacked
    ]
    return table(
        f"Events of {end:,} cycles", ["lane", "events", "busy cycles", "of all cycles"], rows
    )


# All figures ----------------------------------------------------------------------------------


def product_table(run: dict[str, Any]) -> str:
    """Everything that a run says of its products."""
    rows = []
    for product in run["products"]:
        shapes = [f"{count} of {m} x {k} x {n}" for m, k, n, count in product["shapes"]]
        figures = [
            ("macs", number), ("limit", number), ("cycles", number), ("share", percent),
            ("bytes", number),
        ]  # fmt: skip
        cells = [
            _figure(run["name"], product["name"], key, product[key], shown(product[key]))
            for key, shown in figures
        ]
        cells += [
            _figure(run["name"], product["name"], f"wait_{key}", cycles, number(cycles))
            for key, cycles in product["waits"].items()
        ]
        rows.append(
            row(
                product["title"],
                f'<td class="shapes">{"<br>".join(shapes) or "-"}</td>',
                *(text_cell(product[key]) for key in ("dataflow", "edge", "stationary")),
                *cells,
                text_cell(product["wait"]),
            )
        )
    config = ", ".join(f"{key} {value}" for key, value in run["config"].items())
    caption = (
        f"{run['title']}: {'the cycle model' if run['backend'] == 'model' else 'RTL'}, schedule "
        f"{run['schedule']}{', ' + config if config else ''}"
    )
    head = [
        "product",
        "how many of M x K x N",
        "dataflow",
        "edge",
        "stationary",
        "MACs",
        "MAC limit",
    ]
    head += ["cycles", "of limit", "bytes", "waits: loads", "post", "array", "waits for"]
    return f"<h3>{escape(run['title'])}</h3>{table(caption, head, rows, 5)}"


def peer_table(report: dict[str, Any]) -> str:
    """Other tools' figures for the same layers, where there are any."""
    if not report["peers"]:
        return ""
    ours = report["runs"][0]["cycles"]
    rows = [
        row(
            peer["name"],
            _figure(peer["name"], "step", "cycles", peer["cycles"], number(peer["cycles"])),
            _figure(peer["name"], "step", "macs", peer["macs"], number(peer["macs"])),
            _figure(peer["name"], "step", "share", peer["share"], percent(peer["share"])),
            f'<td class="n">{ratio(peer["cycles"] / ours)}</td>',
            "<td>" + ", ".join(
                _figure(peer["name"], p["name"], "cycles", p["cycles"],
                        f"{escape(p['name'])} {number(p['cycles'])}", "span")
                for p in peer["products"]
            ) + "</td>",
            text_cell(peer["source"]),
        )
        for peer in report["peers"]
    ]  # fmt: skip
    head = ["peer", "cycles", "MACs", "of limit", "cycles / ours", "by product", "source"]
    caption = f"Products only, as far as they are modelled there. {best_peer(report)}"
    return "<h2>Peers</h2>" + table(caption, head, rows, 1)


def layer_table(report: dict[str, Any]) -> str:
    """The adapted layers; equal inputs are one tensor."""
    rows = [
        row(
            layer["name"],
            text_cell(layer["input"]),
            *(
                _figure("workload", layer["name"], key, layer[key], number(layer[key]))
                for key in ("rows", "d", "k", "count")
            ),
            text_cell("yes" if layer["dx"] else "no"),
        )
        for layer in report["workload"]["layers"]
    ]
    head = ["layer", "input", "rows", "d", "k", "how often", "dX"]
    return table("Layers: Y [rows, k] from X [rows, d]", head, rows, 2)
