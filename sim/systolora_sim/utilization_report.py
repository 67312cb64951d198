"""docs/results/utilization.md: the figures of `utilization.measure` as tables."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from systolora_sim.baselines import BASELINES
from systolora_sim.markdown import table
from systolora_sim.utilization_sweep import CUT, WIDTHS

__all__ = ["best", "cycles", "missed", "render"]

Row = dict[str, Any]

#: Ratios so near to 1 are not told from it.
MARGIN = 0.01

_INTRO = """\
# Utilization, measured

Written by `python scripts/utilization.py` ({tools}); all figures: `utilization.json`. \
One training step of the adapted layers (forward, backward, update, working copies) of K and V of \
all cross-attentions of Stable Diffusion 1.5 (`sd15-kv`) with SGD, as one program on the preset \
`paper`: 64 x 64, S = 4, memory of one beat a cycle each way after {latency} cycles. Y and dX are \
quantized with the maxima of the step before, but for "just in time". An int16 product \
is four passes of byte planes, each of which counts.

**Share**: MACs of the products / (64 * 64) / cycles, from the write that starts the program to \
the interrupt. **RTL**: the generated Verilog in Verilator, every result equal to the golden \
model's, bit for bit. **Model**: the [cycle model](../cycle-model.md); its error is stated \
wherever both were run. A *block* is K and V of 1280 outputs, a program of its own.
"""


def best(row: Row) -> Row:
    """The figures of a whole step: from RTL where it was simulated, else from the model."""
    return row["rtl"] or row["model"]


def cycles(row: Row) -> int:
    """Cycles of a whole step, as `best`."""
    return best(row)["cycles"]


def missed(row: Row) -> list[str]:
    """The targets that a case does not reach, a text for each."""
    found, target = best(row), row["target"]
    texts = []
    if target["share"] is not None and found["share"] < target["share"]:
        texts.append(f"{found['share']:.1%} of {target['share']:.0%}")
    for name, factor in target["over"].items():
        ratio = row["baselines"][name]["model"] / found["cycles"]
        if ratio < factor:
            texts.append(f"{ratio:.2f}x of {factor:g}x over {name}")
    return texts


def _source(row: Row) -> str:
    return "RTL" if row["rtl"] else "model"


def _asked(row: Row) -> str:
    target = row["target"]
    texts = [] if target["share"] is None else [f">= {target['share']:.0%}"]
    texts += [f"{factor:g}x {name}" for name, factor in target["over"].items()]
    return ", ".join(texts) or "-"


def _shares(rows: list[Row]) -> Iterator[str]:
    yield from ("## Share of the MAC limit, and what other arrays need", "")
    head = ["case", "target", "reached", "from", "cycles", "share", *BASELINES, "SCALE-Sim best"]

    def cells(row: Row) -> list[object]:
        own = cycles(row)
        reached = "; ".join(missed(row)) or "yes"
        line: list[object] = [row["name"], _asked(row)]
        line += ["-" if _asked(row) == "-" else reached, _source(row)]
        line += [f"{own:,}", f"{best(row)['share']:.1%}"]
        line += [f"{each['model'] / own:.2f}x" for each in row["baselines"].values()]
        peer = row["peers"].get("SCALE-Sim best")
        return [*line, f"{peer / own:.2f}x" if peer else "-"]

    yield from table(head, map(cells, rows), texts=4)
    blocks = [each["block"]["rtl"] for row in rows for each in row["baselines"].values()]
    simulated = any(found is not None for found in blocks)
    errors = "their errors below" if simulated else "no block of theirs was simulated"
    yield (
        "Factors: that array's cycles for the same step / ours. The [baselines](../baselines.md) "
        f'run whole programs with the same memory, in the cycle model ({errors}); "best" '
        "of [SCALE-Sim](scalesim.md) is its closed forms' fastest of WS and OS in either "
        "orientation for each product, with perfect memory, without copies, quantization and "
        "update; its elements have no width. With a cached base product the share counts the MACs "
        "of the whole step, X.W^T too, which is not computed; the baselines compute it."
    )
    yield ""


def _waits(rows: list[Row]) -> Iterator[str]:
    yield from ("## Where the cycles go", "")
    head = ["case", "from", "cycles", "computed", "padding", "loads", "post", "other"]
    names = head[2:]
    yield from table(
        head,
        ([row["name"], _source(row), *(f"{best(row)[name]:,}" for name in names)] for row in rows),
        texts=2,
    )
    yield (
        "Computed: MACs that the program does / (64 * 64). Padding: beats of tiles that are not "
        "full, and of transposes. Loads: the next tile waits for operands. Post: it waits for the "
        "post-processor, or for a bank of accumulators. Other: filling and draining the array "
        "where no tile runs beside that (one output-stationary tile after the other takes 64 "
        "cycles at least, and a weight-stationary one loads only after it), and cycles without a "
        "tile in the queue: copies before the first, updates after the last one."
    )
    yield ""


def _memory(rows: list[Row]) -> Iterator[str]:
    yield from ("## Memory", "")
    head = ["case", "bytes read", "bytes written", "read bus busy", "write bus busy"]
    head += ["array busy", "most busy"]

    def cells(row: Row) -> list[object]:
        found = best(row)
        busy = {
            "reading": found["read"],
            "writing": found["write"],
            "array": (found["computed"] + found["padding"]) / found["cycles"],
        }
        first = max(busy, key=lambda name: busy[name])
        shares = [f"{busy[name]:.1%}" for name in ("reading", "writing", "array")]
        bytes_ = [f"{found[name]:,}" for name in ("bytes_read", "bytes_written")]
        return [row["name"], *bytes_, *shares, first]

    yield from table(head, map(cells, rows))
    yield (
        "Busy: cycles with a beat / cycles. What is most busy is nearest to being the limit; what "
        "is below 100% by far waits for something else."
    )
    yield ""


def _limits(rows: list[Row]) -> Iterator[str]:
    """What holds back the cases that miss their target."""
    yield from ("## Targets that are not reached", "")
    found = False
    for row in rows:
        texts = missed(row)
        if not texts:
            continue
        found, figures = True, best(row)
        beat = _width(row) // 8
        reading, own = -(-figures["bytes_read"] // beat), figures["cycles"]
        waits = {name: figures[name] for name in ("loads", "post", "other")}
        longest = max(waits, key=lambda name: waits[name])
        yield (
            f"- {row['name']}: {'; '.join(texts)}. Reading alone takes {reading:,} of {own:,} "
            f"cycles, multiplying {figures['computed'] + figures['padding']:,}; the array waits "
            f"{waits['loads']:,} for loads, {waits['post']:,} for the post-processor, and is "
            f"empty in {waits['other']:,}: most of it {_CAUSES[longest]}."
        )
        wider = [
            each for each in rows
            if _width(each) > _width(row) and _alike(each, row) and not missed(each)
        ]  # fmt: skip
        if wider:
            yield f"  {_memory_name(wider[0])} reaches it."
    if not found:
        yield "None."
    yield ""


_CAUSES = {
    "loads": "operands that come too late",
    "post": "accumulators that the post-processor still has",
    "other": "draining, and no tile queued while the post-processor works",
}


def _width(row: Row) -> int:
    """Bits that memory brings in a cycle, and takes."""
    return row["bus_bits"] * row.get("channels", 1)


def _memory_name(row: Row) -> str:
    channels = row.get("channels", 1)
    if channels == 1:
        return f"A bus of {row['bus_bits']} bits"
    return f"Memory of {channels} channels of {row['bus_bits']} bits"


def _alike(one: Row, other: Row) -> bool:
    names = ("rank", "batch", "bits", "cache_base", "just_in_time")
    return all(one[name] == other[name] for name in names)


def _error(model: int, rtl: int | None) -> list[str]:
    if rtl is None:
        return [f"{model:,}", "-", "-"]
    return [f"{model:,}", f"{rtl:,}", f"{model / rtl - 1:+.3%}"]


def _errors(rows: list[Row]) -> Iterator[str]:
    yield from ("## The cycle model against RTL", "")
    lines: list[list[str]] = []
    for row in rows:
        if row["rtl"]:
            cells = _error(row["model"]["cycles"], row["rtl"]["cycles"])
            lines.append(["systolora", row["name"], "step", *cells])
    for row in rows:
        if row["block"]["rtl"] is not None:
            lines.append(["systolora", row["name"], "block", *_error(**row["block"])])
        for name, each in row["baselines"].items():
            if each["block"]["rtl"] is not None:
                lines.append([name, row["name"], "block", *_error(**each["block"])])
    yield from table(["array", "case", "what", "model", "RTL", "error"], lines, texts=3)
    yield "Each of these runs equals the golden model bit for bit."
    yield ""


def _phases(rows: list[Row]) -> Iterator[str]:
    yield from ("## Phases as programs of their own", "")
    yield (
        "Forward, backward and update one after the other, as a loop needs them that computes a "
        "loss in between; cycle model. A phase ends when all of its results are in memory, and "
        "dH and dA cannot run beside products of the other phase."
    )
    yield ""
    head = ["case", "forward", "backward", "update", "sum", "one program", "sum / one"]

    def cells(row: Row) -> list[object]:
        phases, one = row["phases"], row["model"]["cycles"]
        summed = sum(phases.values())
        numbers = [*phases.values(), summed, one]
        return [row["name"], *(f"{each:,}" for each in numbers), f"{summed / one:.3f}"]

    yield from table(head, map(cells, rows))


def _scaling(rows: list[Row]) -> Iterator[str]:
    pairs = [
        (row, other)
        for row in rows if row["just_in_time"]
        for other in rows
        if not other["just_in_time"] and _alike(row | {"just_in_time": False}, other)
        and _width(row) == _width(other)
    ]  # fmt: skip
    for row, other in pairs:
        ratio = row["model"]["cycles"] / other["model"]["cycles"]
        yield f"Just-in-time scaling of Y ({row['name']}): {ratio:.3f} times the cycles of delayed."
        yield (
            "All sums of Y go to memory and come back once their maximum is known: "
            f"{row['model']['bytes_written'] - other['model']['bytes_written']:,} bytes more are "
            "written."
        )
        yield ""


def _verdict(ratio: float) -> str:
    if abs(ratio - 1) < MARGIN:
        return "about equal"
    return "yes" if ratio > 1 else "NO"


def _never_below(known: dict[str, Any]) -> Iterator[str]:
    rows = known["rows"]
    yield from ("## All workloads beside SCALE-Sim's best of WS and OS", "")
    yield (
        "Cycle model, SGD, delayed scaling; groups of layers with one input as programs of their "
        "own, added up; where these are slower than SCALE-Sim, the step again as one program, by "
        "`systolora perf`; of groups, beyond "
        f"{CUT} rows cycles and bytes are extrapolated from {CUT // 2} and {CUT}. "
        "Ratio: SCALE-Sim's best / ours; bus: bits each way. SCALE-Sim has "
        "perfect memory and counts neither update nor quantization. A wider bus is tried where "
        "the ratio is below 1."
    )
    yield ""
    head = ["workload", "rank", "batch", "bus", "as", "cycles", "share", "read bus", "ratio"]
    head.append("never below")
    lines: list[list[object]] = []
    for row in rows:
        for width, found in row["widths"].items():
            line = [row["workload"], row["rank"], row["batch"], width, found["way"]]
            line += [
                f"{found['cycles']:,}",
                f"{found['share']:.1%}",
                f"{found['read']:.1%}",
                f"{found['ratio']:.2f}",
            ]
            lines.append([*line, _verdict(found["ratio"])])
    yield from table(head, lines)
    counts = Counter(
        next(
            (
                f"{_verdict(found['ratio'])} with {width} bits"
                for width, found in row["widths"].items()
                if found["ratio"] >= 1 - MARGIN
            ),
            f"NO even with {WIDTHS[-1]} bits",
        )
        for row in rows
    )
    told = "; ".join(f"{count} {text}" for text, count in sorted(counts.items(), reverse=True))
    yield (
        f'Of {len(rows)} combinations, at the narrowest bus that does: {told}. "About equal" is '
        f"within {MARGIN:.0%}, which is as far as the table may be off to our advantage."
    )
    yield ""
    for check in known["checks"]:
        yield (
            f"{check['workload']} (rank {check['rank']}, batch {check['batch']}, {WIDTHS[0]} "
            f"bits): {check['estimate']:,} cycles in this table, {check['exact']:,} as "
            f"{check['what']} ({check['error']:+.2%})."
        )
    yield ""


def render(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = figures["cases"]
    tools = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = [_INTRO.format(tools=tools, latency=figures["latency"])]
    lines += [*_shares(rows), *_limits(rows), *_waits(rows), *_memory(rows), *_phases(rows)]
    lines += [*_scaling(rows), *_errors(rows), *_never_below(figures["sweep"])]
    return "\n".join(lines).rstrip() + "\n"
