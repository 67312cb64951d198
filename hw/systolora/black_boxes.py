"""Memories as instances of a black box, for SRAM macros: RTLIL to RTLIL, and the box's model."""

import re
from itertools import groupby
from math import gcd
from typing import Any

__all__ = ["SRAM", "black_boxes", "sram_model"]

#: Name of the module and, with `.v`, of the file of its model.
SRAM = "systolora_sram"
#: Bits and words of a memory from which on it is a black box; smaller ones are better registers.
_LEAST_BITS, _LEAST_WORDS = 1024, 16

_CELL = re.compile(r"^  cell \$mem_v2 (?P<name>\S+)\n(?P<body>.*?)^  end\n", re.M | re.S)
_PARAMETER = re.compile(r"^    parameter (?:signed )?\\(\w+) (.*)$", re.M)
_CONNECT = re.compile(r"^    connect \\(\w+) (.*)$", re.M)
_BITS = re.compile(r"(\\\S+)(?: \[(\d+)(?::(\d+))?\])?")

#: Ports of the black box by those of Yosys' memory cell.
_PORTS = {
    "RD_CLK": "clk",
    "RD_EN": "read_enable",
    "RD_ADDR": "read_address",
    "RD_DATA": "read_data",
    "WR_EN": "write_mask",
    "WR_ADDR": "write_address",
    "WR_DATA": "write_data",
}


def _common_enable(mask: str, width: int) -> int:
    """Bits of a word that are always written together: the greatest number that divides all."""
    bits: list[str] = []
    found = _BITS.findall(mask)
    # Neighbours of one vector are written as a slice, or by its name alone if they are all of it
    missing = width - sum(int(high) - int(low) + 1 if low else 1 for _, high, low in found)
    for name, high, low in found:
        if not high and missing:
            high, low, missing = str(missing), "0", 0
        if low:
            bits += [f"{name} {n}" for n in range(int(high), int(low) - 1, -1)]
        else:
            bits.append(f"{name} {high}")
    if len(bits) != width:
        return 1
    return gcd(*(len(list(group)) for _, group in groupby(bits)))


def black_boxes(rtlil: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Replaces memories that one port reads synchronously and one writes, of 1024 bits and
    16 words or more.

    Returns the text, and by the name of a module the boxes in it: name, words, width (bits), and
    mask (bits that are always written together).
    """
    found: dict[str, list[dict[str, Any]]] = {}

    def module_of(position: int) -> str:
        start = rtlil.rindex("\nmodule ", 0, position)
        return rtlil[start + 8 : rtlil.index("\n", start + 1)].removeprefix("\\")

    def replaced(match: re.Match[str]) -> str:
        parameters = dict(_PARAMETER.findall(match["body"]))
        wires = dict(_CONNECT.findall(match["body"]))
        words, width = int(parameters["SIZE"]), int(parameters["WIDTH"])
        fits = (
            (parameters["RD_PORTS"], parameters["WR_PORTS"]) == ("1", "1")
            and parameters["RD_CLK_ENABLE"] == "1'1"
            and parameters["RD_TRANSPARENCY_MASK"] == "1'0"
            and wires["RD_CLK"] == wires["WR_CLK"]
            and words * width >= _LEAST_BITS
            and words >= _LEAST_WORDS
        )
        if not fits:
            return match[0]
        found.setdefault(module_of(match.start()), []).append(
            {
                "name": match["name"].removeprefix("\\"),
                "words": words,
                "width": width,
                "mask": _common_enable(wires["WR_EN"], width),
            }
        )
        lines = [f"  cell \\{SRAM} {match['name']}"]
        lines += [
            f"    parameter \\{name} {value}"
            for name, value in (
                ("WIDTH", width),
                ("DEPTH", words),
                ("ADDRESS_BITS", parameters["ABITS"]),
            )
        ]
        lines += [f"    connect \\{ours} {wires[theirs]}" for theirs, ours in _PORTS.items()]
        return "\n".join([*lines, "  end\n"])

    return _CELL.sub(replaced, rtlil), found


def sram_model() -> str:
    """Verilog of a black box's behaviour, to simulate with and to replace by macros."""
    return f"""\
// The memory that stands for an SRAM macro: one port that reads, one that writes, one clock.
//
// read_data has the word at read_address from the cycle after read_enable on, until the next read.
// The bits of write_data whose write_mask is 1 are written. What a read gives of a word that is
// written in the same cycle, and what memory holds at the beginning, is not defined: this model
// gives other bits than were there, so that nothing that works with it relies on them.
module {SRAM} #(
  parameter WIDTH = 8,
  parameter DEPTH = 16,
  parameter ADDRESS_BITS = 4
) (
  input wire clk,
  input wire read_enable,
  input wire [ADDRESS_BITS-1:0] read_address,
  output reg [WIDTH-1:0] read_data,
  input wire [WIDTH-1:0] write_mask,
  input wire [ADDRESS_BITS-1:0] write_address,
  input wire [WIDTH-1:0] write_data
);
  reg [WIDTH-1:0] words [0:DEPTH-1];
  wire collision = |write_mask && read_address == write_address;
  integer i;
  initial begin
    for (i = 0; i < DEPTH; i = i + 1) words[i] = {{WIDTH{{1'b1}}}} ^ i[0];
    read_data = {{WIDTH{{1'b1}}}};
  end
  always @(posedge clk) begin
    if (read_enable) read_data <= words[read_address] ^ {{WIDTH{{collision}}}};
    if (|write_mask)
      words[write_address] <= (words[write_address] & ~write_mask) | (write_data & write_mask);
  end
endmodule
"""
