"""Timing constraints of `systolora_axi` as SDC."""

from collections.abc import Mapping, Sequence
from typing import Any

from systolora.wrapper import WRAPPER

__all__ = ["IO_SHARE", "sdc"]

#: Part of the period that a port's outside takes.
IO_SHARE = 0.3


def _names(ports: Sequence[Mapping[str, Any]], direction: str) -> str:
    found = [p["name"] for p in ports if p["direction"] == direction and "role" not in p]
    return " \\\n  ".join(found)


def sdc(ports: Sequence[Mapping[str, Any]], period_ns: float) -> str:
    """The constraints: the clock, aresetn at any time, delays outside of the ports.

    Parameters
    ----------
    ports : of the top, as the manifest describes them
    period_ns : of the clock, unless `systolora_period` is set before the file is read
    """
    return f"""\
# Constraints of {WRAPPER}. Set systolora_period (in the unit of the libraries, as a rule ns) or
# systolora_io (part of the period that is spent outside, at inputs and at outputs) before for other
# values.
if {{![info exists systolora_period]}} {{set systolora_period {period_ns:g}}}
if {{![info exists systolora_io]}} {{set systolora_io {IO_SHARE:g}}}
create_clock -name aclk -period $systolora_period [get_ports aclk]
# Two registers of the wrapper take aresetn in; it may change at any time.
set_false_path -from [get_ports aresetn]
set systolora_delay [expr {{$systolora_io * $systolora_period}}]
set systolora_inputs {{ \\
  {_names(ports, "input")} }}
set systolora_outputs {{ \\
  {_names(ports, "output")} }}
set_input_delay $systolora_delay -clock aclk [get_ports $systolora_inputs]
set_output_delay $systolora_delay -clock aclk [get_ports $systolora_outputs]
"""
