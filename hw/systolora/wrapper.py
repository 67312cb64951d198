"""The top for AXI systems: clock and reset with AMBA's names, the reset active low."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["WRAPPER", "axi_wrapper"]

#: Name of the module and, with `.v`, of its file.
WRAPPER = "systolora_axi"

#: A slave's readies: what they take while the top is still in reset would be lost.
_READIES = ("s_axil_awready", "s_axil_wready", "s_axil_arready")


def axi_wrapper(top: str, ports: Sequence[Mapping[str, Any]]) -> str:
    """Verilog of `systolora_axi`: the module `top` with `aclk`, `aresetn` and all other ports.

    aresetn may fall at any time and must be low for at least three cycles; it acts, and is
    released, synchronously to aclk, two cycles later; until then the slave is not ready, so that a
    master may begin right after aresetn.

    Parameters
    ----------
    top : name of the module inside, which has `clk` and `rst`
    ports : its ports as the manifest describes them
    """
    outer = [port for port in ports if port.get("role") not in ("clock", "reset")]
    declared, wired, held = [], [], []
    for port in outer:
        bits = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        declared.append(f"  {port['direction']} wire {bits}{port['name']}")
        inner = port["name"]
        if inner in _READIES:
            inner = f"top_{inner}"
            held += [f"  wire {inner};", f"  assign {port['name']} = {inner} & reset_sync[1];"]
        wired.append(f"    .{port['name']}({inner})")
    header = ["  input wire aclk", "  input wire aresetn", *declared]
    inside = ["    .clk(aclk)", "    .rst(~reset_sync[1])", *wired]
    return "\n".join(
        (
            f"module {WRAPPER} (",
            ",\n".join(header),
            ");",
            "  // Two registers: aresetn may change near an edge of aclk.",
            '  (* ASYNC_REG = "TRUE" *) reg [1:0] reset_sync = 2\'b00;',
            "  always @(posedge aclk) reset_sync <= {reset_sync[0], aresetn};",
            *held,
            f"  {top} top (",
            ",\n".join(inside),
            "  );",
            "endmodule",
            "",
        )
    )
