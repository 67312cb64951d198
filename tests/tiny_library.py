"""A library of standard cells that is small enough to count by hand."""

from pathlib import Path

from systolora.synth.liberty import Library, read_library

_TABLE = 'cell_rise (scalar) { values ("0.01"); } cell_fall (scalar) { values ("0.01"); }'
_TABLE += ' rise_transition (scalar) { values ("0.01"); }'
_TABLE += ' fall_transition (scalar) { values ("0.01"); }'


def _gate(name: str, inputs: str, function: str) -> str:
    pins = "".join(f" pin ({i}) {{ direction : input; capacitance : 0.002; }}" for i in inputs)
    arcs = "".join(f' timing () {{ related_pin : "{i}"; {_TABLE} }}' for i in inputs)
    return (
        f"cell ({name}) {{ area : 1;{pins}"
        f' pin (Y) {{ direction : output; function : "{function}";{arcs} }} }}\n'
    )


LIBERTY = (
    """library (tiny) {
  delay_model : table_lookup; time_unit : "1ns"; voltage_unit : "1V"; current_unit : "1mA";
  capacitive_load_unit (1, pf); leakage_power_unit : "1nW"; pulling_resistance_unit : "1kohm";
  input_threshold_pct_rise : 50; input_threshold_pct_fall : 50;
  output_threshold_pct_rise : 50; output_threshold_pct_fall : 50;
  slew_lower_threshold_pct_rise : 20; slew_lower_threshold_pct_fall : 20;
  slew_upper_threshold_pct_rise : 80; slew_upper_threshold_pct_fall : 80;
  nom_voltage : 2.0; nom_temperature : 25; nom_process : 1;
  operating_conditions (typical) { process : 1; temperature : 25; voltage : 2.0; }
  default_operating_conditions : typical;
  power_lut_template (one) { variable_1 : input_transition_time; index_1 ("0, 1"); }
"""
    + _gate("BUF", "A", "A")
    + _gate("INV", "A", "!A")
    + _gate("AND2", "AB", "A B")
    + _gate("XOR2", "AB", "(A*B')+(A'*B)")
    + """cell (DFF) { area : 4;
  ff (IQ, IQN) { clocked_on : "C"; next_state : "D"; }
  pin (C) { direction : input; clock : true; capacitance : 0;
    internal_power () { when : "D"; rise_power (one) { values ("1, 1"); }
      fall_power (one) { values ("3, 3"); } }
    internal_power () { when : "!D"; rise_power (one) { values ("1, 1"); }
      fall_power (one) { values ("3, 3"); } }
    internal_power () { rise_power (one) { values ("9, 9"); }
      fall_power (one) { values ("9, 9"); } } }
  pin (D) { direction : input; capacitance : 0.002; }
  pin (Q) { direction : output; function : "IQ"; timing () { related_pin : "C";
    timing_type : rising_edge; """
    + _TABLE
    + """ } } }
}
"""
)


def tiny_library(directory: Path) -> Library:
    """As `read_library` has it."""
    file = directory / "tiny.lib"
    file.write_text(LIBERTY, encoding="utf-8")
    return read_library([file])
