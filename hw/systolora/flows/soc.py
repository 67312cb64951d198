"""A system around the accelerator in plain Verilog: memory, what writes its registers, a check.

It shows the top on its buses, and runs: `trial`'s program from memory to interrupt. The harness in
C++ gives it a clock under Verilator.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from systolora.config import AcceleratorConfig
from systolora.contract import REGISTERS, pack
from systolora.flows.soc_memory import INDEX_BITS, MEMORY
from systolora.flows.trial import Trial, trial
from systolora.wrapper import WRAPPER

__all__ = ["HARNESS", "SOC", "harness", "soc"]

#: Name of the module and, with `.v`, of its file; of the harness's file.
SOC = "systolora_soc"
HARNESS = "systolora_soc_main.cpp"
#: Cycles after which the run counts as lost, by far more than it takes.
_TIMEOUT = 1 << 16
#: AXI4's members that the memory does without: bursts are of whole words, and wlast ends a write.
_IGNORED = frozenset(
    f"{channel}{name}" for channel in ("aw", "ar") for name in ("size", "burst", "cache", "prot")
) | {"awlen"}


def _setup(given: Trial) -> list[tuple[str, int]]:
    """The registers to write, in order: the last one starts the run."""
    values = []
    for quantity, value in (
        ("PROGRAM_ADDRESS", given.program),
        ("READ_BASE", given.base),
        ("READ_LIMIT", given.end),
        ("WRITE_BASE", given.output),
        ("WRITE_LIMIT", given.end),
    ):
        values.append((f"{quantity}_LO", value & 0xFFFF_FFFF))
        values.append((f"{quantity}_HI", value >> 32))
    values.append(("PROGRAM_LENGTH", given.length))
    values.append(("IRQ_MASK", pack(REGISTERS["IRQ_MASK"].fields, {"done": 1, "error": 1})))
    values.append(("CONTROL", pack(REGISTERS["CONTROL"].fields, {"start": 1})))
    return values


def _words(data: bytes, config: AcceleratorConfig, channel: int) -> list[int]:
    """The words of memory that lie in a channel: a beat is a word of each."""
    beats = range(0, len(data), config.beat_bytes)
    places = (beat + channel * config.bus_bytes for beat in beats)
    return [int.from_bytes(data[at : at + config.bus_bytes], "little") for at in places]


def _fill(name: str, words: Sequence[int], bits: int) -> list[str]:
    return [f"    {name}[{i}] = {bits}'h{word:0{bits // 4}x};" for i, word in enumerate(words)]


def soc(config: AcceleratorConfig, ports: Sequence[Mapping[str, Any]]) -> str:
    """Verilog of `systolora_soc`: it runs once after the reset, then `done`, and `failed` if so.

    Parameters
    ----------
    ports : of the top, as the manifest describes them
    """
    given, setup = trial(config), _setup(trial(config))
    bits, count = config.bus_bits, len(given.before) // config.beat_bytes
    buses = ["m_axi"] if config.channels == 1 else [f"m_axi_{n}" for n in range(config.channels)]
    wires, pins, memories, fills = [], ["    .aclk(clk)", "    .aresetn(rst_n)"], [], []
    for port in ports:
        name = port["name"]
        if port.get("role") in ("clock", "reset"):
            continue
        pins.append(f"    .{name}({name})")
        if not name.startswith("s_axil_"):
            span = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
            wires.append(f"  wire {span}{name};")
    for number, bus in enumerate(buses):
        members = [p["name"][len(bus) + 1 :] for p in ports if p["name"].startswith(f"{bus}_")]
        used = [name for name in members if name not in _IGNORED]
        memories += [
            f"  wire [{bits - 1}:0] peek_{number};",
            f"  reg [{bits - 1}:0] expected_{number} [0:{count - 1}];",
            f"  {MEMORY} #(",
            f"    .DATA_BITS({bits}),",
            f"    .ADDRESS_BITS({config.address_bits}),",
            f"    .WORDS({count}),",
            f"    .BASE({config.address_bits}'h{given.base // config.channels:x})",
            f"  ) memory_{number} (",
            "    .clk(clk),",
            "    .rst_n(rst_n),",
            *(f"    .{name}({bus}_{name})," for name in used),
            "    .peek_index(index),",
            f"    .peek_word(peek_{number})",
            "  );",
        ]
        fills += _fill(f"memory_{number}.words", _words(given.before, config, number), bits)
        fills += _fill(f"expected_{number}", _words(given.after, config, number), bits)
    unused = [
        p["name"]
        for p in ports
        if p["direction"] == "output"
        and p["name"].startswith("m_axi")
        and p["name"].rsplit("_", 1)[1] in _IGNORED
    ]
    same = " && ".join(
        f"peek_{n} == expected_{n}[index[{max(1, (count - 1).bit_length()) - 1}:0]]"
        for n in range(len(buses))
    )
    rom = [
        f"      {n}: setting = {{12'h{REGISTERS[name].offset:03x}, 32'h{value:08x}}};  // {name}"
        for n, (name, value) in enumerate(setup)
    ]
    status = pack(REGISTERS["STATUS"].fields, {"done": 1})
    pin_lines, unused_list = ",\n".join(pins), ", ".join(unused)
    return f"""\
// A system around the accelerator: memory on its masters, and what a processor would do at its
// registers: set up, start, wait for the interrupt, look at STATUS. Then it compares all of memory
// with what it must hold.
module {SOC} (
  input wire clk,
  input wire rst_n,
  output reg done,
  output reg failed,
  output reg [31:0] cycles
);
{chr(10).join(wires)}
  reg [11:0] s_axil_awaddr, s_axil_araddr;
  reg s_axil_awvalid, s_axil_wvalid, s_axil_arvalid;
  reg [31:0] s_axil_wdata;
  wire s_axil_awready, s_axil_wready, s_axil_bvalid, s_axil_arready, s_axil_rvalid;
  wire [1:0] s_axil_bresp, s_axil_rresp;
  wire [31:0] s_axil_rdata;
  wire [2:0] s_axil_awprot = 3'b000, s_axil_arprot = 3'b000;
  wire [3:0] s_axil_wstrb = 4'b1111;
  wire s_axil_bready = 1'b1, s_axil_rready = 1'b1;
  reg [{INDEX_BITS - 1}:0] index;

  {WRAPPER} accelerator (
{pin_lines}
  );

{chr(10).join(memories)}
  wire unused = &{{1'b0, {unused_list}}};

  initial begin
{chr(10).join(fills)}
  end

  // Registers: offset and value
  localparam [{INDEX_BITS - 1}:0] SETTINGS = {len(setup)};
  reg [43:0] setting;
  always @* begin
    case (index)
{chr(10).join(rom)}
      default: setting = 44'h0;
    endcase
  end

  localparam [2:0] WRITE = 0, ANSWER = 1, WAIT = 2, READ = 3, STATUS = 4, COMPARE = 5, END = 6;
  reg [2:0] state;
  always @(posedge clk) begin
    cycles <= cycles + 1'b1;
    case (state)
      WRITE: begin
        {{s_axil_awaddr, s_axil_wdata}} <= setting;
        s_axil_awvalid <= 1'b1;
        s_axil_wvalid <= 1'b1;
        state <= ANSWER;
      end
      ANSWER: begin
        if (s_axil_awready) s_axil_awvalid <= 1'b0;
        if (s_axil_wready) s_axil_wvalid <= 1'b0;
        if (s_axil_bvalid) begin
          if (s_axil_bresp != 2'b00) failed <= 1'b1;
          index <= index + 1'b1;
          state <= index + 1'b1 == SETTINGS ? WAIT : WRITE;
        end
      end
      WAIT: if (irq) state <= READ;
      READ: begin
        s_axil_araddr <= 12'h{REGISTERS["STATUS"].offset:03x};
        s_axil_arvalid <= 1'b1;
        state <= STATUS;
      end
      STATUS: begin
        if (s_axil_arready) s_axil_arvalid <= 1'b0;
        if (s_axil_rvalid) begin
          if (s_axil_rresp != 2'b00 || s_axil_rdata != 32'h{status:x}) failed <= 1'b1;
          index <= 0;
          state <= COMPARE;
        end
      end
      COMPARE: begin
        if (!({same})) failed <= 1'b1;
        index <= index + 1'b1;
        if (index == {INDEX_BITS}'d{count - 1}) state <= END;
      end
      default: done <= 1'b1;
    endcase
    if (cycles == 32'd{_TIMEOUT}) begin
      done <= 1'b1;
      failed <= 1'b1;
    end
    if (!rst_n) begin
      state <= WRITE;
      index <= 0;
      cycles <= 0;
      done <= 1'b0;
      failed <= 1'b0;
      s_axil_awvalid <= 1'b0;
      s_axil_wvalid <= 1'b0;
      s_axil_arvalid <= 1'b0;
    end
  end
endmodule
"""


def harness() -> str:
    """C++ that clocks `systolora_soc` under Verilator; exit status 0 if the run went well."""
    return f"""\
// Clock and reset for {SOC} under Verilator.
#include "V{SOC}.h"
#include "verilated.h"
#include <cstdio>

int main(int argc, char **argv) {{
    VerilatedContext context;
    context.commandArgs(argc, argv);
    V{SOC} top{{&context}};
    top.rst_n = 0;
    for (int edge = 0; edge < 4 * {_TIMEOUT} && !top.done; ++edge) {{
        top.clk = edge & 1;
        if (edge == 16) top.rst_n = 1;
        top.eval();
    }}
    const bool good = top.done && !top.failed;
    std::printf("{SOC}: %s after %u cycles\\n", good ? "passed" : "FAILED", top.cycles);
    top.final();
    return good ? 0 : 1;
}}
"""
