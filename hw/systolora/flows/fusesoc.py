"""A FuseSoC core file (CAPI2) of the generated files."""

from collections.abc import Sequence

from systolora.flows.soc import HARNESS, SOC
from systolora.wrapper import WRAPPER

__all__ = ["core_file", "vlnv"]


def vlnv(digest: str, version: str) -> tuple[str, str, str, str]:
    """Vendor, library, name and version of a configuration's package."""
    return "systolora", "generated", f"systolora_{digest}", version


def core_file(
    digest: str, version: str, rtl: Sequence[str], waivers: str, soc: Sequence[str], sdc: str
) -> str:
    """The text of the core file.

    Parameters
    ----------
    rtl : the Verilog, for every use
    waivers : of lint
    soc : Verilog of the example system, without its harness
    sdc : constraints
    """
    return f"""\
CAPI=2:
# Generated. fusesoc --cores-root . run --target lint (or sim) {":".join(vlnv(digest, version))}
name: {":".join(vlnv(digest, version))}
description: Trains quantized LoRA layers; AXI4 masters, an AXI4-Lite slave, an interrupt

filesets:
  rtl:
    files: [{", ".join(rtl)}]
    file_type: verilogSource-2005
  constraints:
    files: [{sdc}]
    file_type: SDC
  waivers:
    files: [{waivers}]
    file_type: vlt
  soc:
    files: [{", ".join(soc)}]
    file_type: verilogSource-2005
  harness:
    files: [{HARNESS}]
    file_type: cppSource

targets:
  default:
    filesets: [rtl, constraints]
    toplevel: {WRAPPER}

  lint:
    description: Verilator's lint of the example system, and so of everything
    flow: lint
    flow_options:
      tool: verilator
      # UNOPTFLAT: Verilator takes a vector of several fields for a loop where one field depends on
      # another
      verilator_options: [-Wall, -Wno-UNOPTFLAT]
    filesets: [waivers, rtl, soc]
    toplevel: {SOC}

  sim:
    description: A program from memory, run by the example system and checked
    flow: sim
    flow_options:
      tool: verilator
      mode: cc
      verilator_options: [-Wno-UNOPTFLAT]
    filesets: [waivers, rtl, soc, harness]
    toplevel: {SOC}
"""
