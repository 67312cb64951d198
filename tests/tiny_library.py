"""A library of standard cells that is small enough to count by hand."""

from pathlib import Path

from systolora.synth.liberty import Library, read_library
from systolora.synth.power_liberty import library_head

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
    library_head("tiny", 2.0)
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
