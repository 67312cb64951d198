"""The Verilog between the generated Core and Python: handshakes happen in Verilog.

Python looks at the simulation once a clock cycle, on the falling edge. The wrapper registers which
streams moved a beat at the rising edge before, with the beats that left, so that nothing is read
or driven near the edge that samples it: the same on every simulator, whatever the Core's `ready`
depends on, and one small read a cycle.
"""

from systolora.config import AcceleratorConfig
from systolora.contract import INFO, POST, STICKY, TILE, existing_fields

__all__ = ["CORE", "INPUTS", "OUTPUTS", "STATUS_BUSY", "STATUS_STICKY", "TOP", "widths", "wrapper"]
__all__ += ["control_file"]

TOP = "systolora_tb"
CORE = "systolora_core"

#: Streams into and out of the Core; bit n of `in_valid` and `out_ready`, in this order, and of
#: `status` the inputs first.
INPUTS = ("tile", "post", "act", "wgt", "acc_in")
OUTPUTS = ("acc_out", "result", "info")

#: Positions in `status` above the moved beats.
STATUS_BUSY = len(INPUTS) + len(OUTPUTS)
STATUS_STICKY = STATUS_BUSY + 1
STICKY_BITS = len(STICKY)


def widths(config: AcceleratorConfig) -> dict[str, int]:
    """Bits of every stream's payload."""
    return {
        "tile": sum(field.width for field in TILE),
        "post": sum(field.width for field in existing_fields(POST, config.fused_quantize)),
        "act": 8 * config.rows,
        "wgt": 8 * config.segments * config.lanes,
        "acc_in": config.cols * config.acc_bits,
        "acc_out": config.cols * config.acc_bits,
        "result": config.cols * config.result_bits,
        "info": sum(field.width for field in INFO),
    }


def _driven() -> list[str]:
    return ["clk", "rst", "sticky_clear", "in_valid", "out_ready", *(f"{n}_beat" for n in INPUTS)]


def _read() -> list[str]:
    return ["status", *(f"{name}_beat" for name in OUTPUTS)]


def control_file(core: str) -> str:
    """Verilator's control file: what Python reaches, and nothing else, stays visible.

    Warnings about the Core's file, of that name, are off.
    """
    lines = [f'lint_off -file "*/{core}"']
    lines += [f'public_flat_rw -module "{TOP}" -var "{name}"' for name in _driven() + _read()]
    return "\n".join(["`verilator_config", *lines, ""])


def wrapper(config: AcceleratorConfig) -> str:
    """The wrapper's Verilog for one configuration."""
    bits = widths(config)
    ports = [
        "input wire clk",
        "input wire rst",
        "input wire sticky_clear",
        f"input wire [{len(INPUTS) - 1}:0] in_valid",
        f"input wire [{len(OUTPUTS) - 1}:0] out_ready",
        *(f"input wire [{bits[name] - 1}:0] {name}_beat" for name in INPUTS),
        *(f"output reg [{bits[name] - 1}:0] {name}_beat" for name in OUTPUTS),
        f"output wire [{STATUS_STICKY + STICKY_BITS - 1}:0] status",
    ]
    pins = [".clk(clk)", ".rst(rst)", ".sticky(sticky)", ".sticky_clear(sticky_clear)"]
    pins.append(".busy(busy)")
    pins += [f".{name}()" for name in ("array_active", "waits_post", "waits_output")]
    moves = []
    for number, name in enumerate(INPUTS):
        pins += [
            f".{name}_payload({name}_beat)",
            f".{name}_valid(in_valid[{number}])",
            f".{name}_ready({name}_ready)",
        ]
        moves.append(f"in_valid[{number}] & {name}_ready")
    for number, name in enumerate(OUTPUTS):
        pins += [
            f".{name}_payload({name}_payload)",
            f".{name}_valid({name}_valid)",
            f".{name}_ready(out_ready[{number}])",
        ]
        moves.append(f"{name}_valid & out_ready[{number}]")
    wires = [
        f"wire [{STICKY_BITS - 1}:0] sticky;",
        "wire busy;",
        *(f"wire {name}_ready;" for name in INPUTS),
        *(f"wire {name}_valid;" for name in OUTPUTS),
        *(f"wire [{bits[name] - 1}:0] {name}_payload;" for name in OUTPUTS),
        f"wire [{STATUS_BUSY - 1}:0] moves = {{{', '.join(reversed(moves))}}};",
        f"reg [{STATUS_BUSY - 1}:0] moved;",
        "assign status = {sticky, busy, moved};",
    ]
    captures = [
        f"if (moves[{len(INPUTS) + number}]) {name}_beat <= {name}_payload;"
        for number, name in enumerate(OUTPUTS)
    ]

    def indented(lines: list[str], spaces: int, end: str = "\n") -> str:
        return end.join(" " * spaces + line for line in lines)

    return f"""\
module {TOP} (
{indented(ports, 4, "," + chr(10))}
);
{indented(wires, 4)}
    always @(posedge clk) begin
        moved <= rst ? {STATUS_BUSY}'d0 : moves;
{indented(captures, 8)}
    end
    {CORE} core (
{indented(pins, 8, "," + chr(10))}
    );
endmodule
"""
