"""Units behind a harness: its structure, what it lets through, and frequencies with it."""

import copy
import json
import random
import sys
from pathlib import Path

import pytest

from systolora.cli import main
from systolora.synth import flow
from systolora.synth.designs import Design
from systolora.synth.fpga import NETLIST, netlist_directory, too_many
from systolora.synth.harness import PREFIX, HarnessCells, wrap
from systolora.synth.targets import TARGETS, target
from systolora.synth.tools import SynthError, Tool, find_nextpnr, find_yosys
from systolora.synth.workspace import Progress, Workspace
from systolora_sim.runner import BUILD_DIR

#: Outputs of every kind: from registers, from logic, an input, twice the same net, constant.
TOY = """module toy(clk, en, a, b, y, z, through, again, one);
  input clk, en;
  input [4:0] a, b;
  output reg [6:0] y;
  output [4:0] z;
  output through, again, one;
  assign z = (a & b) ^ y[4:0];
  assign through = a[3];
  assign again = y[2];
  assign one = 1'b1;
  always @(posedge clk) if (en) y <= {^a, ^b, a ^ {b[0], b[4:1]} ^ (y[4:0] & z)};
endmodule
"""
INPUTS, OUTPUTS = 11, 13  # without the clock; without what is constant or there twice
HARNESSED = [name for name, t in TARGETS.items() if t.pnr is not None and t.pnr.harness is not None]
FAMILIES = ["ice40-up5k", "gowin"]
#: Clock, enable, input and output of the registers that Yosys makes of TOY.
REGISTERS = {
    "SB_DFF": ("C", None, "D", "Q"),
    "SB_DFFE": ("C", "E", "D", "Q"),
    "DFF": ("CLK", None, "D", "Q"),
    "DFFE": ("CLK", "CE", "D", "Q"),
}


class Gates:
    """A netlist of LUTs, registers and buffers, cycle by cycle; registers begin with 0."""

    def __init__(self, module: dict) -> None:
        self.ports = {name: port["bits"] for name, port in module["ports"].items()}
        self.values: dict[int | str, int] = {"0": 0, "1": 1}
        self.registers, self.logic = [], []
        for cell in module["cells"].values():
            pins = {pin: bits[0] for pin, bits in cell["connections"].items()}
            kind = cell["type"]
            if kind in REGISTERS:
                self.registers.append([pins.get(pin) for pin in REGISTERS[kind]])
            elif kind in ("IBUF", "OBUF"):
                self.logic.append(([pins["I"]], pins["O"], "10"))
            elif kind in ("VCC", "GND"):
                (net,) = pins.values()
                self.logic.append(([], net, "1" if kind == "VCC" else "0"))
            elif kind == "MUX2_LUT5":
                self.logic.append(([pins["I0"], pins["I1"], pins["S0"]], pins["O"], "11001010"))
            else:
                table = cell["parameters"]["LUT_INIT" if kind == "SB_LUT4" else "INIT"]
                inputs = [pins[pin] for pin in ("I0", "I1", "I2", "I3") if pin in pins]
                self.logic.append((inputs, pins["O" if kind == "SB_LUT4" else "F"], table))
        self.settle()

    def settle(self) -> None:
        for _ in range(len(self.logic) + 1):
            before = dict(self.values)
            for inputs, output, table in self.logic:
                index = sum(self.values.get(bit, 0) << n for n, bit in enumerate(inputs))
                self.values[output] = int(table[len(table) - 1 - index])
            if self.values == before:
                return
        raise AssertionError("logic does not settle")

    def drive(self, port: str, *bits: int) -> None:
        self.values |= dict(zip(self.ports[port], bits, strict=True))
        self.settle()

    def tick(self, port: str) -> None:
        """One cycle of the clock that the port drives, directly or through a buffer."""
        clock = self.ports[port][0]
        clock = next((out for bits, out, _ in self.logic if bits == [clock]), clock)
        new = {
            output: self.values.get(data, 0)
            for pin, enable, data, output in self.registers
            if pin == clock and (enable is None or self.values.get(enable, 0))
        }
        self.values |= new
        self.settle()

    def read(self, port: str) -> int:
        return self.values.get(self.ports[port][0], 0)


@pytest.fixture(scope="module", params=FAMILIES)
def toy(request) -> tuple[dict, HarnessCells]:
    """TOY mapped to a target that puts a harness around units, and the harness's cells."""
    goal = target(request.param)
    place = netlist_directory(
        Design("toy", "toy", TOY, 0),
        goal,
        find_yosys(),
        Workspace(BUILD_DIR / "synth", Progress(1, quiet=True)),
    )
    assert goal.pnr is not None and goal.pnr.harness is not None
    return json.loads((place / NETLIST).read_text()), goal.pnr.harness


def pins(ports: dict) -> dict[str, str]:
    """Ports by name without what those with a buffer begin with."""
    return {name.removeprefix("harness_pin_"): name for name in ports}


def test_the_chain_has_an_input_per_register_and_there_is_one_output(toy):
    netlist, kinds = toy
    wrapped, harness = wrap(netlist, "toy", kinds)
    module = wrapped["modules"]["toy"]
    assert (harness.inputs, harness.outputs) == (INPUTS, OUTPUTS)
    # Outputs, then nodes of at most four: 13, 4, 1
    assert harness.registers == INPUTS + OUTPUTS + 4 + 1 and harness.luts == 3 + 1
    assert set(pins(module["ports"])) == {"clk", "harness_clk", "harness_in", "harness_out"}
    unit = netlist["modules"]["toy"]["ports"]
    expected = [bit for name in ("en", "a", "b") for bit in unit[name]["bits"]]
    _, clock, data, output = kinds.register
    chain = [module["cells"][f"{PREFIX}in_{n}_reg"]["connections"] for n in range(INPUTS)]
    assert [cell[output][0] for cell in chain] == expected
    first = module["netnames"]["harness_in"]["bits"]
    assert [cell[data][0] for cell in chain] == [*first, *expected[:-1]]
    assert {cell[clock][0] for cell in chain} == {*module["netnames"]["harness_clk"]["bits"]}


def test_the_unit_stays_what_it_is(toy):
    """Without the harness's cells there are just the unit's, untouched; so its area is the same."""
    netlist, kinds = toy
    before = copy.deepcopy(netlist)
    wrapped, harness = wrap(netlist, "toy", kinds)
    assert netlist == before
    cells = wrapped["modules"]["toy"]["cells"]
    own = {name: cell for name, cell in cells.items() if not name.startswith(PREFIX)}
    assert own == before["modules"]["toy"]["cells"]
    added = [cell["type"] for name, cell in cells.items() if name not in own]
    assert added.count(kinds.register[0]) == harness.registers
    assert sum(kind in kinds.luts.values() for kind in added) == harness.luts
    assert len(added) == harness.registers + harness.luts + (4 if kinds.buffers else 0)
    others = {name: module for name, module in wrapped["modules"].items() if name != "toy"}
    assert others == {name: m for name, m in before["modules"].items() if name != "toy"}


def test_values_pass_through_the_harness(toy):
    """What is shifted in reaches the unit; what comes out is the parity of all its outputs."""
    netlist, kinds = toy
    wrapped, _ = wrap(netlist, "toy", kinds)
    alone, behind = Gates(netlist["modules"]["toy"]), Gates(wrapped["modules"]["toy"])
    name = pins(behind.ports)
    distinct = {
        bit
        for port in ("y", "z", "through", "again")
        for bit in netlist["modules"]["toy"]["ports"][port]["bits"]
    }
    assert len(distinct) == OUTPUTS
    random_bits = random.Random(7)
    seen = set()
    for _ in range(100):
        bits = [random_bits.getrandbits(1) for _ in range(INPUTS)]
        for bit in reversed(bits):
            behind.drive(name["harness_in"], bit)
            behind.tick(name["harness_clk"])
        for port, values in (("en", bits[:1]), ("a", bits[1:6]), ("b", bits[6:])):
            alone.drive(port, *values)
        alone.tick("clk")
        behind.tick(name["clk"])
        for _ in range(3):  # the outputs' registers and two levels of the tree
            behind.tick(name["harness_clk"])
        expected = sum(alone.values.get(bit, 0) for bit in distinct) % 2
        assert behind.read(name["harness_out"]) == expected
        seen.add(expected)
    assert seen == {0, 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["ports"].update(io={"direction": "inout", "bits": [2]}), "io: a port in both"),
        (
            lambda m: m["cells"].update(harness_x={"connections": {}}),
            "harness_x: no name may begin",
        ),
        (lambda m: m.update(ports={"clk": m["ports"]["clk"]}), "without inputs or outputs"),
    ],
)
def test_units_that_no_harness_goes_around(toy, change, message):
    netlist, kinds = copy.deepcopy(toy[0]), toy[1]
    change(netlist["modules"]["toy"])
    with pytest.raises(SynthError, match=f"^toy: .*{message}|^toy: {message}"):
        wrap(netlist, "toy", kinds)


LOG = """Info: Device utilisation:
Info: \t         ICESTORM_LC:    5500/   5280   104%
Info: \t        ICESTORM_RAM:       0/     30     0%
Info: \t        ICESTORM_DSP:       9/      8   112%
ERROR: Unable to place cell 'x', no BELs remaining to implement cell type 'ICESTORM_LC'
"""


def test_what_nextpnr_has_too_few_of():
    assert too_many(LOG) == [
        "ICESTORM_LC 5500 of 5280 (220 too many)",
        "ICESTORM_DSP 9 of 8 (1 too many)",
    ]
    assert too_many("ERROR: no such device\n") == []


def synth(*arguments: str) -> int:
    return main(["synth", "-q", "--build-dir", str(BUILD_DIR), *arguments])


def test_a_unit_that_nextpnr_has_no_room_for(monkeypatch, tmp_path, capsys):
    """One line if it is the only target, a line of the report among others."""
    says = f"print({LOG!r}); raise SystemExit(1)"
    full = Tool("nextpnr-full", (sys.executable, "-c", says), "1", "here")
    monkeypatch.setattr(flow, "find_nextpnr", lambda family: full)
    assert synth("--target", "ice40-up5k", "--unit", "pe", "--seeds", "2") == 2
    phrase = "ICESTORM_LC 5500 of 5280 (220 too many, the harness included)"
    line = capsys.readouterr().err
    assert line.startswith(f"systolora: error: pe does not fit ice40-up5k: {phrase}, ICESTORM_DSP")
    assert line.count("\n") == 1
    file = tmp_path / "report.json"
    arguments = ("--target", "ice40-up5k,generic", "--unit", "pe", "--seeds", "2")
    assert synth(*arguments, "--json", str(file)) == 0
    assert f"pe does not fit: {phrase}" in capsys.readouterr().out
    (entry,) = json.loads(file.read_text())["fpga"]["ice40-up5k"]
    assert entry["seeds"] == {"1": None, "2": None} and "fmax_mhz" not in entry


def test_another_error_of_nextpnr_is_one_line(monkeypatch, capsys):
    broken = (sys.executable, "-c", "print('ERROR: no such device'); raise SystemExit(1)")
    monkeypatch.setattr(flow, "find_nextpnr", lambda family: Tool("toy", broken, "1", "here"))
    assert synth("--target", "gowin", "--unit", "pe") == 2
    assert capsys.readouterr().err == (
        "systolora: error: toy failed (status 1): ERROR: no such device\n"
    )


def test_too_many_multipliers(capsys):
    assert synth("--target", "ice40-up5k", "--unit", "array", "--preset", "tiny", "--no-pnr") == 2
    assert capsys.readouterr().err == (
        "systolora: error: array does not fit ice40-up5k: SB_MAC16 16 of 8 (8 too many)\n"
    )


def routed(goal: str, unit: str, file: Path, *arguments: str) -> dict:
    pnr = target(goal).pnr
    assert pnr is not None
    try:
        find_nextpnr(pnr.family)
    except SynthError as error:
        pytest.skip(str(error))
    assert synth("--target", goal, "--unit", unit, "--json", str(file), *arguments) == 0
    return json.loads(file.read_text())["fpga"][goal][0]


@pytest.mark.parametrize(
    "goal",
    [
        pytest.param(goal, marks=pytest.mark.slow if goal.endswith("-nodsp") else ())
        for goal in HARNESSED
    ],
)
def test_a_pe_placed_and_routed(goal, tmp_path, capsys):
    """A frequency from paths within the PE, and the area that it has without the harness."""
    page = tmp_path / "page.html"
    entry = routed(goal, "pe", tmp_path / "timed.json", "--seeds", "1", "--html", str(page))
    printed = capsys.readouterr().out
    assert entry["seeds"] == {"1": entry["fmax_mhz"]} and entry["fmax_mhz"] > 10
    path = entry["critical_path"]
    assert PREFIX not in " ".join((path["from"], path["to"], *path["through"]))
    # Paths from and to the harness do not count; the period is that of the path reported
    assert sum(path["ns"].values()) == pytest.approx(1000 / entry["fmax_mhz"], abs=0.05)
    assert (entry["harness"]["inputs"], entry["harness"]["outputs"]) == (99, 89)
    multipliers = {} if goal.endswith("-nodsp") else {"ice40-up5k": {"SB_MAC16": 1}}.get(
        goal, {"MULT9X9": 1}
    )  # fmt: skip
    assert entry.get("untimed", {}) == multipliers
    for said in (printed, page.read_text()):
        assert ("which nextpnr does not time" in said) == bool(multipliers)
    assert synth("--target", goal, "--unit", "pe", "--no-pnr", "--json", str(tmp_path / "a")) == 0
    (alone,) = json.loads((tmp_path / "a").read_text())["fpga"][goal]
    assert alone == {name: entry[name] for name in alone}
