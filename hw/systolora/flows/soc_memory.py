"""The example system's memory: a small AXI4 slave in plain Verilog."""

__all__ = ["INDEX_BITS", "MEMORY", "memory"]

#: Name of the module and, with `.v`, of its file.
MEMORY = "systolora_soc_memory"
#: Width of the index with which a testbench looks at a word.
INDEX_BITS = 16


def memory() -> str:
    """Verilog of an AXI4 memory: INCR bursts, one read and one write at a time."""
    return f"""\
// AXI4 memory for simulation and as an example: INCR bursts of whole words, one read and one write
// at a time. An access outside of its words gets DECERR.
module {MEMORY} #(
  parameter DATA_BITS = 64,
  parameter ADDRESS_BITS = 40,
  parameter WORDS = 16,
  parameter [ADDRESS_BITS-1:0] BASE = 0
) (
  input wire clk,
  input wire rst_n,
  input wire awid,
  input wire [ADDRESS_BITS-1:0] awaddr,
  input wire awvalid,
  output wire awready,
  input wire [DATA_BITS-1:0] wdata,
  input wire [DATA_BITS/8-1:0] wstrb,
  input wire wlast,
  input wire wvalid,
  output wire wready,
  output reg bid,
  output reg [1:0] bresp,
  output reg bvalid,
  input wire bready,
  input wire arid,
  input wire [ADDRESS_BITS-1:0] araddr,
  input wire [7:0] arlen,
  input wire arvalid,
  output wire arready,
  output reg rid,
  output wire [DATA_BITS-1:0] rdata,
  output wire [1:0] rresp,
  output wire rlast,
  output reg rvalid,
  input wire rready,
  // What a testbench looks at
  input wire [{INDEX_BITS - 1}:0] peek_index,
  output wire [DATA_BITS-1:0] peek_word
);
  localparam SHIFT = $clog2(DATA_BITS / 8);
  localparam [ADDRESS_BITS-1:0] LIMIT = WORDS;
  reg [DATA_BITS-1:0] words [0:WORDS-1];
  assign peek_word = words[peek_index[$clog2(WORDS)-1:0]];

  // Writes: an address, its words, an answer
  reg writing;
  reg [ADDRESS_BITS-1:0] write_word;
  wire write_hit = write_word < LIMIT;
  assign awready = !writing && !bvalid;
  assign wready = writing;
  integer lane;
  always @(posedge clk) begin
    if (awvalid && awready) begin
      write_word <= (awaddr - BASE) >> SHIFT;
      writing <= 1'b1;
      bid <= awid;
      bresp <= 2'b00;
    end
    if (wvalid && wready) begin
      if (write_hit) begin
        for (lane = 0; lane < DATA_BITS / 8; lane = lane + 1)
          if (wstrb[lane]) words[write_word[$clog2(WORDS)-1:0]][8*lane +: 8] <= wdata[8*lane +: 8];
      end else bresp <= 2'b11;
      write_word <= write_word + 1'b1;
      if (wlast) begin
        writing <= 1'b0;
        bvalid <= 1'b1;
      end
    end
    if (bvalid && bready) bvalid <= 1'b0;
    if (!rst_n) begin
      writing <= 1'b0;
      bvalid <= 1'b0;
    end
  end

  // Reads: an address, then a word in each cycle in which it is taken
  reg [ADDRESS_BITS-1:0] read_word;
  reg [7:0] left;
  wire read_hit = read_word < LIMIT;
  assign arready = !rvalid;
  assign rdata = words[read_word[$clog2(WORDS)-1:0]];
  assign rresp = read_hit ? 2'b00 : 2'b11;
  assign rlast = left == 8'd0;
  always @(posedge clk) begin
    if (arvalid && arready) begin
      read_word <= (araddr - BASE) >> SHIFT;
      left <= arlen;
      rid <= arid;
      rvalid <= 1'b1;
    end
    if (rvalid && rready) begin
      read_word <= read_word + 1'b1;
      left <= left - 1'b1;
      if (rlast) rvalid <= 1'b0;
    end
    if (!rst_n) rvalid <= 1'b0;
  end
endmodule
"""
