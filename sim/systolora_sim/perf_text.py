"""A perf report as text: what `systolora perf` prints. ASCII, at most 120 columns."""

import textwrap
import unicodedata
from typing import Any

from systolora_sim.perf_figures import (
    best_peer,
    bus_bytes,
    computed,
    memory_lines,
    memory_width,
    number,
    peak,
    percent,
    ratio,
)

__all__ = ["text"]

_WIDTH = 118
_SHAPES = 3  # lines of shapes of a product, before the rest is only counted
_BACKENDS = {"model": "cycle model", "rtl": "RTL, simulated"}


def text(report: dict[str, Any]) -> str:
    """Products, step, memory, runs, peers and scope of a report; ends with a newline."""
    parts = [
        _head(report), _products(report), _step(report), _memory(report), _runs(report),
        _side_by_side(report), _peers(report), _scope(report), _notes(report),
    ]  # fmt: skip
    return _ascii("\n\n".join("\n".join(part) for part in parts if part) + "\n")


def _ascii(value: str) -> str:
    value = value.replace("\u00d7", "x").replace("\u00b7", ".").replace("\u2013", "-")
    return unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()


def _field(name: str, value: str) -> list[str]:
    indent = " " * 12
    return textwrap.wrap(value, _WIDTH, initial_indent=f"  {name:<10}", subsequent_indent=indent)


def _table(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Aligned columns; the first `left` of them to the left."""
    width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  " + "  ".join(
            cell.ljust(width[i]) if i < left else cell.rjust(width[i])
            for i, cell in enumerate(row)
        ).rstrip()
        for row in [head, ["-" * n for n in width], *rows]
    ]  # fmt: skip


# Sections -------------------------------------------------------------------------------------


def _head(report: dict[str, Any]) -> list[str]:
    workload, config = report["workload"], report["config"]
    layers = sum(layer["count"] for layer in workload["layers"])
    inputs = len({layer["input"] for layer in workload["layers"]})
    run = report["runs"][0]
    memory = report["memory"]
    lines = [f"{workload['title']} ({workload['name']})"]
    lines += _field("scope", report["scope"])
    lines += _field("layers", f"{layers}, groups of inputs: {inputs}; {workload['source']}")
    lines += _field(
        "training",
        f"rank {report['rank']}, batch {report['batch']}, int{report['bits']}, "
        f"{report['optimizer']}",
    )
    lines += _field(
        "hardware",
        f"{config['rows']} x {config['cols']} MACs, {config['segments']} segments, "
        f"configuration {report['digest']}; {memory_width(memory)} each way, latency "
        f"{memory['latency']} cycles",
    )
    tools = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return lines + _field("cycles of", f"{_BACKENDS[run['backend']]} ({tools})")


def _products(report: dict[str, Any]) -> list[str]:
    rows = []
    for product in report["runs"][0]["products"]:
        shapes = [f"{count} of {m} x {k} x {n}" for m, k, n, count in product["shapes"]]
        if len(shapes) > _SHAPES:
            rest = sum(count for *_, count in product["shapes"][_SHAPES - 1 :])
            shapes = [*shapes[: _SHAPES - 1], f"{rest} of others"]
        rows.append(
            [
                product["title"], (shapes or ["-"])[0], product["dataflow"], product["edge"],
                number(product["cycles"]),
                percent(product["share"]) if product["macs"] else "-",
                number(product["bytes"]), _wait(product),
            ]
        )  # fmt: skip
        rows += [["", shape, "", "", "", "", "", ""] for shape in shapes[1:]]
    head = ["product", "how many of M x K x N", "dataflow", "edge", "cycles", "of limit", "bytes"]
    title = f"{report['runs'][0]['title']}, by product (of limit: MACs / MACs per cycle / cycles)"
    return [title, *_table([*head, "waits for, cycles"], rows, 4)]


def _wait(product: dict[str, Any]) -> str:
    """What a product waits for most, and for how many cycles: "loads 1,234", or "-"."""
    wait = product["wait"]
    return "-" if wait == "-" else f"{wait} {number(product['waits'][wait])}"


def _step(report: dict[str, Any]) -> list[str]:
    run = report["runs"][0]
    macs, cached = f"{number(run['macs'])}", "computed_macs" in run
    if cached:
        macs += f", of which {number(computed(run))} are computed"
    name = "computed MACs" if cached else "MAC limit"
    parts = {name: round(computed(run) / peak(report, run))} | run["waits"]
    where = ", ".join(
        f"{name} {number(cycles)} ({percent(cycles / run['cycles'])})"
        for name, cycles in parts.items()
    )
    lines = ["Step"]
    lines += _field("cycles", f"{number(run['cycles'])}, {percent(run['share'])} of the MAC limit")
    lines += _field("MACs", f"{macs}, at most {number(peak(report, run))} per cycle")
    lines += _field(
        "bytes",
        f"{number(run['bytes_read'])} read, {number(run['bytes_written'])} written, at most "
        f"{bus_bytes(report, run)} per cycle each way",
    )
    return lines + _field("cycles go", where)


def _memory(report: dict[str, Any]) -> list[str]:
    return ["Memory"] + [
        line
        for sentence in memory_lines(report)
        for line in textwrap.wrap(sentence, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    ]


def _runs(report: dict[str, Any]) -> list[str]:
    if len(report["runs"]) == 1:
        return []
    rows = []
    for run in report["runs"]:
        speedup = report["speedups"].get(run["name"])
        waits = [number(run["waits"][key]) for key in ("padding", "loads", "post", "other")]
        rows.append(
            [
                run["title"], number(run["cycles"]), percent(run["share"]),
                "-" if speedup is None else ratio(speedup), *waits,
            ]
        )  # fmt: skip
    head = ["run", "cycles", "of limit", "speed-up", "padding", "loads", "post", "other"]
    title = "Runs (speed-up: cycles of that run / cycles of ours; then what is lost, cycles)"
    return [title, *_table(head, rows)]


def _side_by_side(report: dict[str, Any]) -> list[str]:
    """Cycles of each product in each run, a run per column; blocks of what fits."""
    runs = report["runs"]
    if len(runs) == 1:
        return []
    names = list(dict.fromkeys(p["name"] for run in runs for p in run["products"]))
    cycles = [{p["name"]: number(p["cycles"]) for p in run["products"]} for run in runs]
    lines = ["Cycles by product"]
    start = 0
    while start < len(runs):
        end, width = start, 12
        while end < len(runs) and (
            end == start or width + max(len(runs[end]["name"]), 11) + 2 <= _WIDTH
        ):
            width += max(len(runs[end]["name"]), 11) + 2
            end += 1
        rows = [[name, *(cycles[i].get(name, "-") for i in range(start, end))] for name in names]
        rows.append(["step", *(number(run["cycles"]) for run in runs[start:end])])
        lines += _table(["product", *(run["name"] for run in runs[start:end])], rows)
        start = end
    return lines


def _peers(report: dict[str, Any]) -> list[str]:
    if not report["peers"]:
        return []
    ours = report["runs"][0]["cycles"]
    rows = [
        [peer["name"], number(peer["cycles"]), percent(peer["share"]), ratio(peer["cycles"] / ours)]
        for peer in report["peers"]
    ]
    lines = ["Peers (products only, as far as they are modelled there; ratio: theirs / ours)"]
    lines += _table(["peer", "cycles", "of limit", "ratio"], rows)
    lines.append(f"  {best_peer(report)}")
    for source in dict.fromkeys(peer["source"] for peer in report["peers"]):
        lines += _field("source", source)
    return lines


def _scope(report: dict[str, Any]) -> list[str]:
    lines = ["Scope", *_field("counted", report["scope"])]
    step = report["step_share"]
    if step is None:
        return [*lines, *_field("share", "of the whole training step: not known for this workload")]
    lines += _field(
        "share",
        f"{percent(step['share'])} of the whole step's MACs ({number(step['adapted_macs'])} of "
        f"{number(step['whole_macs'])}); with these layers done in no time, and time as MACs are, "
        f"the whole step would be {step['step_speedup_bound']:.3f}x as fast",
    )
    return lines + _field("source", step["source"])


def _notes(report: dict[str, Any]) -> list[str]:
    notes = list(report["notes"])
    for run in report["runs"]:
        if run["images"]:
            notes.append(
                f"{run['title']}: given transposed, free of charge: {', '.join(run['images'])}"
            )
        notes += [f"{run['title']}: {note}" for note in run["notes"]]
    lines = [
        line
        for note in notes
        for line in textwrap.wrap(note, _WIDTH, initial_indent="  - ", subsequent_indent="    ")
    ]
    return ["Notes", *lines] if lines else []
