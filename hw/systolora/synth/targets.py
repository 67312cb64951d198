"""The FPGA targets as a table: device, Yosys pass, what is counted, what there is, nextpnr."""

from dataclasses import dataclass, field, replace

from systolora.synth.harness import HarnessCells
from systolora.synth.tools import SynthError

__all__ = ["TARGETS", "PlaceAndRoute", "Target", "target"]


@dataclass(frozen=True)
class PlaceAndRoute:
    """How nextpnr is called: family, arguments for the device, `freq` in MHz to aim at.

    harness : the cells to put around a unit (`harness.py`), because no package has so many pins;
        None where the family can leave ports unplaced
    untimed : types of cells that nextpnr knows no delays of: paths through them do not count
    """

    family: str
    arguments: tuple[str, ...]
    freq: int
    harness: HarnessCells | None = None
    untimed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Target:
    """One FPGA (or `generic`: gates of no technology).

    Members
    -------
    device : part and speed grade in words
    synth : Yosys pass that maps to it; `{top}` is the top module
    counts : what a report counts, by its name: types of cells with their weights
    capacity : how many of each the device has; only these can overflow
    primary : the names of the logic element, register, multiplier and memory among the counts
    """

    name: str
    device: str
    synth: str
    counts: dict[str, dict[str, int]]
    capacity: dict[str, int] = field(default_factory=dict)
    primary: dict[str, str] = field(default_factory=dict)
    pnr: PlaceAndRoute | None = None


def _ecp5(size: str, comb: int, multipliers: int, memories: int) -> Target:
    return Target(
        name=f"ecp5-{size}",
        device=f"Lattice LFE5U-{size.upper().replace('85K', '85F')}, CABGA, speed grade 6",
        synth="synth_ecp5 -top {top}",
        counts={
            "LUT4": {"LUT4": 1},
            "CCU2C": {"CCU2C": 1},
            "FF": {"TRELLIS_FF": 1},
            "MULT18X18D": {"MULT18X18D": 1},
            "DP16KD": {"DP16KD": 1},
            "DPR16X4": {"TRELLIS_DPR16X4": 1},
            # A carry cell takes two LUTs of a slice, distributed memory four and two for its writes
            "COMB": {"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
        },
        capacity={"COMB": comb, "FF": comb, "MULT18X18D": multipliers, "DP16KD": memories},
        primary={"logic": "LUT4", "register": "FF", "multiplier": "MULT18X18D", "memory": "DP16KD"},
        pnr=PlaceAndRoute(
            "ecp5",
            (f"--{size}", "--package", {"25k": "CABGA381"}.get(size, "CABGA756"), "--speed", "6"),
            freq=200,
        ),
    )


_XILINX_LUTS = {f"LUT{n}": 1 for n in range(1, 7)}

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _ecp5("85k", 83640, 156, 208),
        _ecp5("45k", 43848, 72, 108),
        _ecp5("25k", 24288, 28, 56),
        Target(
            name="ice40-up5k",
            device="Lattice iCE40UP5K, SG48",
            synth="synth_ice40 -device u -dsp -top {top}",
            counts={
                "SB_LUT4": {"SB_LUT4": 1},
                "SB_CARRY": {"SB_CARRY": 1},
                "FF": {
                    f"SB_DFF{kind}": 1
                    for kind in ("", "E", "SR", "R", "SS", "S", "ESR", "ER", "ESS", "ES")
                },
                "SB_MAC16": {"SB_MAC16": 1},
                "SB_RAM40": {"SB_RAM40_4K": 1},
            },
            capacity={"SB_LUT4": 5280, "FF": 5280, "SB_MAC16": 8, "SB_RAM40": 30},
            primary={
                "logic": "SB_LUT4",
                "register": "FF",
                "multiplier": "SB_MAC16",
                "memory": "SB_RAM40",
            },
            pnr=PlaceAndRoute(
                "ice40",
                ("--up5k", "--package", "sg48"),
                freq=50,
                harness=HarnessCells(
                    register=("SB_DFF", "C", "D", "Q"),
                    luts=dict.fromkeys((2, 3, 4), "SB_LUT4"),
                    lut_output="O",
                    lut_init="LUT_INIT",
                ),
                # Times every port as a register's with 0.1 ns, whether there is one or not, and
                # nothing within (ice40/arch.cc, getPortTimingClass)
                untimed=frozenset({"SB_MAC16"}),
            ),
        ),
        Target(
            name="xilinx7",
            device="Xilinx 7 series; area alone, the open tools here have no timing for it",
            synth="synth_xilinx -family xc7 -noiopad -noclkbuf -top {top}",
            counts={
                "LUT": _XILINX_LUTS,
                "CARRY4": {"CARRY4": 1},
                "FF": {"FDRE": 1, "FDSE": 1, "FDCE": 1, "FDPE": 1},
                "DSP48E1": {"DSP48E1": 1},
                "RAMB18": {"RAMB18E1": 1, "RAMB36E1": 2},
                "LUTRAM": {"RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2},
                "SRL": {"SRL16E": 1, "SRLC32E": 1},
            },
            primary={
                "logic": "LUT",
                "register": "FF",
                "multiplier": "DSP48E1",
                "memory": "RAMB18",
            },
        ),
        Target(
            name="gowin",
            device="Gowin GW2A-18 (GW2A-LV18PG256C8/I7)",
            synth="synth_gowin -family gw2a -noiopads -top {top}",
            counts={
                "LUT": {"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1},
                "ALU": {"ALU": 1},
                "FF": {
                    f"DFF{kind}": 1
                    for kind in ("", "E", "S", "SE", "R", "RE", "P", "PE", "C", "CE")
                },
                "MULT9X9": {"MULT9X9": 1},
                "MULT18X18": {"MULT18X18": 1},
                "BSRAM": {"SDPB": 1, "SDPX9B": 1, "DPB": 1, "DPX9B": 1, "SPX9": 1, "pROM": 1},
                "RAM16SDP": {"RAM16SDP4": 1},
                "COMB": {"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "ALU": 1},
            },
            capacity={"COMB": 20736, "FF": 15552, "MULT9X9": 96, "MULT18X18": 48, "BSRAM": 46},
            primary={
                "logic": "LUT",
                "register": "FF",
                "multiplier": "MULT9X9",
                "memory": "BSRAM",
            },
            pnr=PlaceAndRoute(
                "himbaechel-gowin",
                ("--device", "GW2A-LV18PG256C8/I7", "--vopt", "family=GW2A-18"),
                freq=200,
                harness=HarnessCells(
                    register=("DFF", "CLK", "D", "Q"),
                    luts={2: "LUT2", 3: "LUT3", 4: "LUT4"},
                    lut_output="F",
                    lut_init="INIT",
                    constants=frozenset({"GND", "VCC"}),
                    buffers=("IBUF", "OBUF"),
                    # IOT27A, IOT30A (global clocks), IOT18B, IOT20B: nextpnr chooses no pins
                    pins={
                        "clk": "X26Y0/IOBA",
                        "harness_clk": "X29Y0/IOBA",
                        "harness_in": "X17Y0/IOBB",
                        "harness_out": "X19Y0/IOBB",
                    },
                ),
                # Its database has no delays of them (gowin_arch_gen.py, create_timing_info)
                untimed=frozenset(
                    {"MULT9X9", "MULT18X18", "SDPB", "SDPX9B", "DPB", "DPX9B", "SPX9", "pROM"}
                ),
            ),
        ),
        Target(
            name="generic",
            device="no device: four-input LUTs, multipliers as logic, memories as registers",
            synth="synth -flatten -lut 4 -top {top}",
            counts={"LUT4": {"$lut": 1}},
            primary={"logic": "LUT4", "register": "FF"},
        ),
    )
}


def _without_multipliers(full: Target, synth: str) -> Target:
    """The same device with multipliers as logic, all of whose paths nextpnr times."""
    return replace(
        full,
        name=f"{full.name}-nodsp",
        device=f"{full.device}, multipliers as logic",
        synth=synth,
        primary={name: count for name, count in full.primary.items() if name != "multiplier"},
    )


for _name, _synth in (
    ("ice40-up5k", "synth_ice40 -device u -top {top}"),
    ("gowin", "synth_gowin -family gw2a -noiopads -nodsp -top {top}"),
):
    TARGETS[f"{_name}-nodsp"] = _without_multipliers(TARGETS[_name], _synth)


def target(name: str) -> Target:
    """The target of that name; SynthError names the known ones."""
    if name not in TARGETS:
        raise SynthError(f"target = {name!r}: must be one of {', '.join(TARGETS)}")
    return TARGETS[name]
