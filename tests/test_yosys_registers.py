"""Registers matched by name, for proofs: what is equal then, and what is not."""

import pytest

from yosys_equal import prove_designs
from yosys_registers import cut_registers

#: A counter of the cycles in which a is 3; z is that r and s differ, which they never do.
COUNTER = """
module m(input clk, input [1:0] a, output [3:0] x, y, output z);
  reg [3:0] r = 4'd0, s = 4'd0;
  always @(posedge clk) begin
    r <= r + (a == 2'd3);
    s <= s + (a == 2'd3);
  end
  assign x = s;
  assign y = r ^ a;
  assign z = r != s;
endmodule
"""
IN_OTHER_WORDS = COUNTER.replace("s + (a == 2'd3)", "(&a ? ~(~s - 4'd1) : s)")
ONE_REGISTER = """
module m(input clk, input [1:0] a, output [3:0] x, y, output z);
  reg [3:0] r = 4'd0;
  wire [3:0] s = r;
  always @(posedge clk) r <= r + (a == 2'd3);
  assign x = s;
  assign y = r ^ a;
  assign z = 1'd0;
endmodule
"""


def verdict(directory, second: str, registers: str = "named") -> str:
    paths = directory / "first.v", directory / "second.v"
    for path, text in zip(paths, (COUNTER, second), strict=True):
        path.write_text(text, encoding="utf-8")
    return prove_designs(*paths, "m", registers=registers)


@pytest.mark.parametrize("second", [COUNTER, IN_OTHER_WORDS, ONE_REGISTER])
def test_equal(second, tmp_path):
    assert verdict(tmp_path, second) == "equal"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("r + (a == 2'd3)", "r + (a >= 2'd3) + (r == 4'd9)"), ("= r ^ a", "= r | a"), ("r != s", "1")],
    ids=["next value", "output", "constant"],
)
def test_different(right, wrong, tmp_path):
    assert right in COUNTER
    assert verdict(tmp_path, COUNTER.replace(right, wrong)) == "different"


def test_states_that_are_never_reached_count(tmp_path):
    """z is never 1; ABC finds that out, but matched registers may have any values."""
    never = COUNTER.replace("r != s", "1'd0")
    assert verdict(tmp_path, never) == "different"
    assert verdict(tmp_path, never, registers="found") == "equal"


def module(*registers: tuple[str, str], kind: str = "$dff", clocks: int = 1) -> dict:
    """Registers of one bit, name and power-up value, that hold their values."""
    nets = {
        name: {"hide_name": 0, "bits": [10 + number], "attributes": {"init": start}}
        for number, (name, start) in enumerate(registers)
    }
    cells = {
        f"cell {name}": {
            "type": kind,
            "parameters": {"CLK_POLARITY": "1"},
            "connections": {
                "CLK": [2 + number % clocks],
                "D": [10 + number],
                "Q": [10 + number],
            },
        }
        for number, (name, _) in enumerate(registers)
    }
    return {"ports": {}, "netnames": nets, "cells": cells}


def test_pairs():
    first, second = (module(("b", "0"), ("a", "1")), module(("a", "1"), ("b", "0")))
    assert cut_registers(first, second) == 2
    assert first["cells"] == second["cells"] == {}
    assert first["ports"].keys() == second["ports"].keys()
    assert first["ports"]["value_0"] == {"direction": "input", "bits": [11]}  # a
    assert second["ports"]["value_0"] == {"direction": "input", "bits": [10]}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (module(("a", "0")), module(("b", "0")), r"register a\[0\]: in the first design alone"),
        (module(), module(("b", "0")), r"register b\[0\]: in the second design alone"),
        # A number is no name: in another file it is that of something else
        (module(("_7_", "0")), module(("_7_", "0")), r"register \?\[0\]: in the first design"),
        (module(("a", "0")), module(("a", "1")), r"register a\[0\]: starts at 0 and at 1"),
        (module(("a", "0"), kind="$dffe"), module(), r"cell a: a \$dffe, not a \$dff"),
        (module(("a", "0"), ("b", "0"), clocks=2), module(), "2 clocks"),
    ],
)
def test_what_cannot_be_matched(first, second, message):
    with pytest.raises(ValueError, match=message):
        cut_registers(first, second)
