"""What a perf report says between the lines: roofs, intensities, where memory is the limit.

A report is the dict of format "systolora-perf 1" (docs/perf.md); a run and a product are parts of
it. Everything here is derived; nothing is measured.
"""

from typing import Any

__all__ = [
    "ORDER",
    "best_peer",
    "bus_bytes",
    "computed",
    "intensity",
    "memory_lines",
    "memory_width",
    "peak",
    "roof",
]
__all__ += ["compact", "number", "percent", "products", "ratio"]

#: Products in the order of a step.
ORDER = ("H", "Y", "term", "dH", "dB", "dA", "dX", "copies", "update", "other")


# Numbers as text ------------------------------------------------------------------------------


def number(value: float) -> str:
    """1,234,567; of what is no integer, one decimal."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def compact(value: float) -> str:
    """Three digits and a unit: 1.23 M, 45.6 k."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * factor:  # 999,600 is 1 M, not 1e+03 k
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """95.8%."""
    return f"{100 * share:.1f}%"


def ratio(value: float) -> str:
    """2.03x."""
    return f"{value:.2f}x"


# Machine --------------------------------------------------------------------------------------


def peak(report: dict[str, Any], run: dict[str, Any]) -> int:
    """Multiplications per cycle of a run's array: rows * cols."""
    config = report["config"] | run["config"]
    return config["rows"] * config["cols"]


def computed(run: dict[str, Any]) -> int:
    """Multiplications that a run does: all of the step, or fewer where results are kept."""
    return run.get("computed_macs", run["macs"])


def bus_bytes(report: dict[str, Any], run: dict[str, Any]) -> int:
    """Bytes per cycle of a run's memory, all channels, each way."""
    memory = report["memory"] | run["config"]
    return memory["channels"] * memory["bus_bits"] // 8


def memory_width(memory: dict[str, Any]) -> str:
    """The width of memory in words: of one bus, or of each of several channels."""
    if memory["channels"] == 1:
        return f"bus of {memory['bus_bits']} bits"
    return f"{memory['channels']} channels of {memory['bus_bits']} bits"


def intensity(macs: int, transferred: int) -> float:
    """Operational intensity, MACs per byte; 0 where no byte is transferred."""
    return macs / transferred if transferred else 0.0


def roof(report: dict[str, Any], run: dict[str, Any], macs_per_byte: float) -> float:
    """MACs per cycle that the array and one direction of memory allow."""
    return min(float(peak(report, run)), macs_per_byte * bus_bytes(report, run))


def products(run: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's products that multiply."""
    return [product for product in run["products"] if product["macs"]]


def best_peer(report: dict[str, Any]) -> str:
    """Whether the step takes longer than at the fastest of the peers, in a sentence; or ""."""
    if not report["peers"]:
        return ""
    best = min(report["peers"], key=lambda peer: peer["cycles"])
    times = best["cycles"] / report["runs"][0]["cycles"]
    return f"Never below {best['name']}: {'yes' if times >= 1 else 'no'}, {ratio(times)}."


# Memory ---------------------------------------------------------------------------------------


def memory_lines(report: dict[str, Any]) -> list[str]:
    """Sentences that say what is the limit of runs[0], and where memory is; the step first."""
    run = report["runs"][0]
    bus = bus_bytes(report, run)
    lines = [_step_line(report, run), _waits_line(run)]
    ridge = peak(report, run) / bus
    bound = []
    for product in products(run):
        if not product["bytes"]:
            continue
        macs_per_byte = intensity(product["macs"], product["bytes"])
        if macs_per_byte < ridge:
            bound.append(
                f"{product['name']} by itself: {percent(macs_per_byte / ridge)} of the MAC limit "
                f"at most, since one direction of memory brings {macs_per_byte:.1f} MACs with a "
                f"byte, {ridge / macs_per_byte:.2f} times too few for the array; it reached "
                f"{percent(product['share'])} beside the others."
            )
    if bound:
        lines += bound
    else:
        lines.append(
            f"Every product does more MACs per byte than the {ridge:.1f} from which on the array "
            "is the limit."
        )
    plain = [p for p in run["products"] if not p["macs"] and p["bytes"]]
    if plain:
        moved = sum(p["bytes"] for p in plain)
        names = ", ".join(p["name"] for p in plain)
        everything = run["bytes_read"] + run["bytes_written"]
        share = percent(moved / everything) if everything else "0.0%"
        lines.append(f"Without a MAC: {names} move {number(moved)} bytes, {share} of all.")
    return lines


def _step_line(report: dict[str, Any], run: dict[str, Any]) -> str:
    """Which of array, reading, writing and post-processor holds the whole step, and by how much."""
    bus, cycles = bus_bytes(report, run), run["cycles"]
    needs = {
        "the array": computed(run) / peak(report, run),
        "reading": run["bytes_read"] / bus,
        "writing": run["bytes_written"] / bus,
        "the post-processor": float(run["post_cycles"]),
    }
    worst = max(needs, key=lambda name: needs[name])
    limit = needs.pop(worst)
    memory = worst in ("reading", "writing")
    name = f"{worst.capitalize()} is the limit of the step, not memory: it"
    if memory:
        name = f"Memory is the limit of the step: {worst}"
    others = ", ".join(
        f"{each} {need:,.0f} ({percent(need / limit)})" for each, need in needs.items()
    )
    return (
        f"{name} takes at least {limit:,.0f} cycles, and the step {ratio(cycles / limit)} that; "
        f"of these cycles the others need at least: {others}. Memory brings {bus} bytes a cycle "
        "each way."
    )


def _waits_line(run: dict[str, Any]) -> str:
    loads, cycles = run["waits"]["loads"], run["cycles"]
    return (
        f"The array stood still for loads in {number(loads)} of {number(cycles)} cycles "
        f"({percent(loads / cycles)})."
    )
