"""Liberty files as a power calculation should read them, and how far OpenSTA's answer is off."""

import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from systolora.synth.liberty import Library
from systolora.synth.tools import SynthError, Tool, run_tool
from systolora.synth.workspace import Workspace

__all__ = ["corrected", "internal_factor", "library_head", "power_text", "power_texts", "reduced"]

_ENERGY = re.compile(r"\b(?:internal_power|leakage_power)\s*\(\s*\)\s*\{")
_GROUND = re.compile(r"pg_pin\s*\(\s*\"?(\w+)\"?\s*\)\s*\{[^}]*primary_ground")
_PIN = re.compile(r"\b(?:pin|cell)\s*\(")
_CELL = re.compile(r"\bcell\s*\(\s*\"?(\w+)\"?\s*\)\s*\{")
_BRACE = re.compile(r"[{}]")


def _end(text: str, position: int) -> int:
    """Behind the brace that closes the one just before `position`."""
    depth = 1
    while depth:
        brace = _BRACE.search(text, position)
        if brace is None:
            return len(text)
        depth += 1 if brace[0] == "{" else -1
        position = brace.end()
    return position


def _attribute(name: str, group: str) -> str:
    found = re.search(rf"\b{name}\s*:\s*\"?([^\";]*)", group)
    return found[1].strip() if found else ""


def power_text(text: str) -> str:
    """A Liberty file without the energies and leakages that would count twice.

    - Those of ground pins. Where a library has one for the supply and one for ground, it is the
      same charge: over a rise and a fall both are equal.
    - An energy without `when` beside others of the same pin with one: it is for states that those
      leave open, and OpenSTA 2.0.17 adds it in every state.
    """
    grounds = set(_GROUND.findall(text))
    pins = [match.start() for match in _PIN.finditer(text)]
    groups, owner = [], 0
    for match in _ENERGY.finditer(text):
        while owner + 1 < len(pins) and pins[owner + 1] < match.start():
            owner += 1
        end = _end(text, match.end())
        content = text[match.start() : end]
        supply = _attribute("related_pg_pin", content)
        key = (owner, _attribute("related_pin", content), supply)
        energy = match[0].startswith("internal")
        groups.append((match.start(), end, key, energy, _attribute("when", content)))
    conditional = {key for _, _, key, energy, when in groups if energy and when}
    kept, position = [], 0
    for start, end, key, energy, when in groups:
        if key[2] in grounds or (energy and not when and key in conditional):
            kept.append(text[position:start])
            position = end
    return "".join((*kept, text[position:]))


@cache
def _cells(text: str) -> tuple[tuple[str, int, int], ...]:
    """Name, begin and end of each cell."""
    found, position = [], 0
    while match := _CELL.search(text, position):
        position = _end(text, match.end())
        found.append((match[1], match.start(), position))
    return tuple(found)


def reduced(text: str, names: Collection[str]) -> str:
    """A Liberty file with these of its cells only, so that it is read sooner."""
    kept, position = [], 0
    for name, start, end in _cells(text):
        if name not in names:
            kept.append(text[position:start])
            position = end
    return "".join((*kept, text[position:]))


def power_texts(library: Library, used: Collection[str]) -> tuple[str, ...]:
    """The files of a library for OpenSTA: of the cells `used` and the driver, without what would
    count twice. Timing of a netlist with these cells is that of the whole files."""
    names = {library.driver.name, *used}
    return tuple(power_text(reduced(text, names)) for text in library.texts)


def corrected(values: Sequence[float], factor: float) -> dict[str, float]:
    """W from what OpenSTA returns (internal, switching, leakage, total), as "internal_w",
    "switching_w", "leakage_w", "total_w"; `factor` is that of `internal_factor`."""
    internal, switching, leakage = values[0] / factor, values[1], values[2]
    return {
        "internal_w": internal,
        "switching_w": switching,
        "leakage_w": leakage,
        "total_w": internal + switching + leakage,
    }


def library_head(name: str, volts: float) -> str:
    """The beginning of a Liberty file of ns, pF and mA; `one` is its template of energies."""
    return f"""library ({name}) {{
  delay_model : table_lookup; time_unit : "1ns"; voltage_unit : "1V"; current_unit : "1mA";
  capacitive_load_unit (1, pf); leakage_power_unit : "1nW"; pulling_resistance_unit : "1kohm";
  input_threshold_pct_rise : 50; input_threshold_pct_fall : 50;
  output_threshold_pct_rise : 50; output_threshold_pct_fall : 50;
  slew_lower_threshold_pct_rise : 20; slew_lower_threshold_pct_fall : 20;
  slew_upper_threshold_pct_rise : 80; slew_upper_threshold_pct_fall : 80;
  nom_voltage : {volts}; nom_temperature : 25; nom_process : 1;
  operating_conditions (typical) {{ process : 1; temperature : 25; voltage : {volts}; }}
  default_operating_conditions : typical;
  power_lut_template (one) {{ variable_1 : input_transition_time; index_1 ("0, 1"); }}
"""


#: A buffer and a flip-flop without capacitance: 1 pJ for a rise, 3 pJ for a fall.
_KNOWN = (
    library_head("known", 1.0)
    + """\
  cell (BUF) { area : 1;
    pin (A) { direction : input; capacitance : 0; }
    pin (Y) { direction : output; function : "A";
      internal_power () { related_pin : "A";
        rise_power (one) { values ("1, 1"); } fall_power (one) { values ("3, 3"); } }
      timing () { related_pin : "A"; timing_sense : positive_unate;
        cell_rise (scalar) { values ("0"); } cell_fall (scalar) { values ("0"); }
        rise_transition (scalar) { values ("0"); } fall_transition (scalar) { values ("0"); } } } }
  cell (DFF) { area : 1;
    ff (IQ, IQN) { clocked_on : "C"; next_state : "D"; }
    pin (C) { direction : input; clock : true; capacitance : 0;
      internal_power () {
        rise_power (one) { values ("1, 1"); } fall_power (one) { values ("3, 3"); } } }
    pin (D) { direction : input; capacitance : 0; }
    pin (Q) { direction : output; function : "IQ";
      timing () { related_pin : "C"; timing_type : rising_edge;
        cell_rise (scalar) { values ("0"); } cell_fall (scalar) { values ("0"); }
        rise_transition (scalar) { values ("0"); } fall_transition (scalar) { values ("0"); } } } }
}
"""
)
_DESIGN = """module t (clk, a, y, q);
  input clk, a; output y, q;
  BUF b (.A(a), .Y(y));
  DFF f (.C(clk), .D(a), .Q(q));
endmodule
"""
_SCRIPT = """read_liberty known.lib
read_verilog t.v
link_design t
create_clock -name clk -period 10 [get_ports clk]
set_input_delay 0 -clock clk [get_ports a]
sta::set_power_input_port_activity [get_ports a] 0.5 0.5
sta::set_power_pin_activity [get_pins b/A] 0.5 0.5
sta::set_power_pin_activity [get_pins b/Y] 0.5 0.5
set out [open known.json w]
set p [sta::instance_power [get_cells b] [sta::cmd_corner]]
set c [sta::instance_power [get_cells f] [sta::cmd_corner]]
puts $out "\\[[lindex $p 0], [lindex $c 0]\\]"
close $out
exit 0
"""


def internal_factor(sta: Tool, workspace: Workspace) -> float:
    """What OpenSTA reports as internal power, over what it is by Liberty's definition.

    From two cells of known energies. 2.0.17 takes the energies of a rise and a fall for every
    change, which is 2; later versions take their mean, which is 1.

    Raises
    ------
    SynthError
        If the two cells do not agree, or OpenSTA fails.
    """

    def run(directory: Path) -> None:
        (directory / "known.lib").write_text(_KNOWN, encoding="utf-8")
        (directory / "t.v").write_text(_DESIGN, encoding="utf-8")
        (directory / "known.tcl").write_text(_SCRIPT, encoding="utf-8")
        said = run_tool(sta, ["known.tcl"], directory, "sta.log", workspace.progress.tick)
        if not (directory / "known.json").is_file():
            raise SynthError(f"sta failed: {(said.strip().splitlines() or ['no result'])[-1]}")

    found = workspace.step("known energies", (sta.description, _KNOWN, _DESIGN, _SCRIPT), run)
    buffer, register = json.loads((found / "known.json").read_text(encoding="utf-8"))
    # 100 MHz: half a change a cycle of 2 pJ on average; a rise and a fall of the clock, 4 pJ
    factors = buffer / 1e-4, register / 4e-4
    if abs(factors[0] - factors[1]) > 0.01 or not 0.5 < factors[0] < 4:
        raise SynthError(
            f"{sta.description}: its power of known energies is {factors} times theirs"
        )
    return round(factors[0], 4)
