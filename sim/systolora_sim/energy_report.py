"""docs/results/energy.md from its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from systolora_sim.energy_steps import ARRAYS
from systolora_sim.markdown import table

__all__ = ["render"]

_PARTS = ("multiplying", "other cycles", "edge", "SRAM", "DRAM", "all")
_TITLES = {
    "ours": "ours, int8",
    "int8": "textbook WS, int8",
    "bf16": "textbook WS, bf16",
    "fp32": "textbook WS, fp32",
}
_ASSUMPTIONS = (
    (
        "gates",
        "mapped by Yosys and ABC, before layout: no wires, an ideal clock without a tree, "
        "no clock gating; clock pins of registers count, in waiting cycles too",
    ),
    (
        "activity",
        "netlists simulated with zero delay, every result checked: a net changes at most "
        'once a cycle, so no glitches; "with glitches" gives every cell one unit of '
        "delay, which is more than real cells pass on",
    ),
    (
        "power",
        "OpenSTA with the activity of every pin; of a pin's energies only those of the "
        "supply (ASAP7 has the same charge for ground once more); OpenSTA's internal power "
        "divided by what it makes of two cells of known energies (2.0.17: 2.0)",
    ),
    (
        "PEs",
        "energy of a PE and cycle from 4 x 4 PEs, times 64 x 64; all beats of the program "
        "as full ones, padding too",
    ),
    (
        "ours",
        "the PE of the preset `paper`: int8 and int16, both dataflows, sums of 32 bits; "
        "accumulators of 48 bits (6 bytes)",
    ),
    (
        "textbook PEs",
        "one dataflow, one stationary register, int8 alone: less than ours. bf16: "
        "multiplies bf16, adds fp32; fp32: both in fp32; no infinities, NaN or subnormals",
    ),
    (
        "textbook arrays",
        "the program `textbook-ws` of docs/baselines.md in the cycle model: load, compute, "
        "drain; floats take the cycles of int8, although their adders take four cycles, "
        "their operands two or four times the bandwidth",
    ),
    (
        "bytes of floats",
        "operands two or four times those of int8 in buffers and memory, in the same number "
        "of transfers, as if buffers were so many times larger; streams of 32 bits (sums, "
        "masters) as they are; sums of 4 bytes",
    ),
    (
        "edge",
        "registers that skew operands, energy of a bit from a chain of registers; of floats "
        "one register a row, although their adders take four cycles",
    ),
    (
        "SRAM",
        "operand buffers written and read, accumulators read and written, by the array and "
        "by row operations; no leakage, no wires",
    ),
    (
        "DRAM",
        "LPDDR4, 64 pJ per byte, every byte on the bus; no idle power, no refresh",
    ),
    (
        "left out for all",
        "post-processor, controllers, host. Ours needs the post-processor to quantize, floats "
        "do not: the clock pins of its 64 lanes of 1158 registers alone would be 45 pJ a cycle "
        "in ASAP7, 4.6% of what multiplying takes at batch 4, rank 16",
    ),
)


def _macs(macs: Mapping[str, Any]) -> list[str]:
    rows = []
    ours = macs["arrays"]["systolora"]["modes"]["ws"]["pj_total"]
    for name, array in macs["arrays"].items():
        if name == "skew":
            continue
        for mode, found in array["modes"].items():
            per_mac = found.get("pj_per_mac")
            rows.append([
                name, mode, f"{array['area']:.1f}", f"{array['fmax_mhz']:.0f}",
                f"{found['pj_total']:.3f}", f"{found['pj_registers']:.3f}",
                f"{found['pj_logic']:.3f}", f"{found['pj_leakage']:.4f}",
                f"{per_mac:.3f}" if per_mac else "", f"{per_mac / ours:.2f}" if per_mac else "",
            ])  # fmt: skip
    header = ("array", "mode", "um2 per PE", "MHz", "pJ per PE and cycle", "registers", "logic",
              "leakage", "pJ per MAC", "to ours, WS")  # fmt: skip
    return list(table(header, rows))


def _ratio(step: Mapping[str, Any], column: str, parts: Sequence[str]) -> str:
    ours = sum(step["ours"][part] for part in parts)
    return f"{sum(step[column][part] for part in parts) / ours:.2f}"


def _steps(steps: Mapping[str, Any]) -> list[str]:
    rows = []
    for case, columns in steps.items():
        for column in ARRAYS:
            parts = columns[column]
            rows.append([
                case, _TITLES[column], *(f"{parts[part]:,.0f}" for part in _PARTS),
                _ratio(columns, column, ("multiplying", "other cycles", "edge")),
                _ratio(columns, column, _PARTS[:4]), _ratio(columns, column, ("all",)),
            ])  # fmt: skip
    header = ("case", "array", *_PARTS, "array, to ours", "with SRAM", "all")
    return list(table(header, rows))


def _sensitivity(entry: Mapping[str, Any]) -> list[str]:
    kinds = {"LPDDR4": entry["steps"]} | entry["other_dram"]
    if "steps_with_glitches" in entry:
        kinds["LPDDR4, with glitches"] = entry["steps_with_glitches"]
    rows = []
    for name, steps in kinds.items():
        for case, columns in steps.items():
            rows.append(
                [name, case, *(_ratio(columns, c, ("all",)) for c in ARRAYS if c != "ours")]
            )
    return list(table(("", "case", "int8 / ours", "bf16 / ours", "fp32 / ours"), rows))


def render(figures: Mapping[str, Any]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {value}" for name, value in figures["versions"].items())
    lines = [
        "# Energy, calculated",
        "",
        f"Written by `{figures['command']}` ({versions}); all figures: `energy.json`. **Nothing"
        " here is measured**: energies of gates are calculated from simulated activity before"
        " layout, those of memories are quoted. Ratios between arrays in one flow say more than"
        " any pJ.",
        "",
        "CDM-QTA (arXiv 2504.07998) reports 5.50 times the energy efficiency of its baseline, which"
        " its abstract does not define; so the tables give the ratio to each array that could be"
        " meant, with and without memory.",
        "",
        "## Assumptions",
        "",
        *table(("what", "how"), [list(each) for each in _ASSUMPTIONS]),
        "DRAM: "
        + "; ".join(f"{n} {d['pj_per_byte']} pJ per byte ({d['source']})"
                    for n, d in figures["dram"].items())
        + ".",
        "",
    ]  # fmt: skip
    for name, entry in figures["technologies"].items():
        macs, sram = entry["macs"], entry["sram"]
        lines += [
            f"## {name}, {1e3 / macs['period_ns']:.0f} MHz",
            "",
            f"{macs['size']} x {macs['size']} PEs; {'; '.join(macs['tools'].values())}. Data: "
            f"{macs['data']}, seed {macs['seed']}.",
            "",
            "### A MAC",
            "",
            *_macs(macs),
            "`ws int16`: the four passes of byte planes of one product are one MAC. `zeros`:"
            " streams of zeros; `idle`: nothing moves but the clock.",
            "",
        ]
        if "glitches" in entry:
            found = entry["glitches"]["arrays"]
            lines += [
                "With glitches (unit delay), pJ per MAC: "
                + ", ".join(
                    f"{array} {mode} {value['pj_per_mac']:.3f}"
                    for array, each in found.items()
                    for mode, value in each["modes"].items()
                    if "pj_per_mac" in value
                )
                + ".",
                "",
            ]
        lines += [
            "### A training step of `sd15-kv`, uJ",
            "",
            f"64 x 64, preset `paper`; cycles and bytes: [utilization](utilization.md). SRAM: "
            f"{sram['read_pj_per_byte']:.2f} pJ per byte read, {sram['write_pj_per_byte']:.2f} "
            f"written ({sram['source']}).",
            "",
            *_steps(entry["steps"]),
            "### What the ratio rests on",
            "",
            *_sensitivity(entry),
        ]
    return "\n".join(lines).rstrip() + "\n"
