"""All files that `systolora generate --flows` adds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from systolora.config import AcceleratorConfig
from systolora.flows.constraints import sdc
from systolora.flows.fusesoc import core_file
from systolora.flows.ipxact import component
from systolora.flows.soc import HARNESS, SOC, harness, soc
from systolora.flows.soc_memory import MEMORY, memory

__all__ = ["PERIOD_NS", "flow_files"]

#: Of the clock in the constraints where nothing else is asked for: 100 MHz.
PERIOD_NS = 10.0
CORE, IP_XACT, SDC, WAIVERS = "systolora.core", "systolora.xml", "systolora.sdc", "systolora.vlt"


def flow_files(
    config: AcceleratorConfig,
    version: str,
    ports: Sequence[Mapping[str, Any]],
    rtl: Sequence[str],
    period_ns: float = PERIOD_NS,
) -> dict[str, str]:
    """Texts by name: constraints, IP-XACT, an example system, the FuseSoC core file.

    Parameters
    ----------
    ports : of the top, as the manifest describes them
    rtl : names of the Verilog files, beside these
    period_ns : of the clock in the constraints
    """
    waivers = Path(__file__).parent.parent / "lint.vlt"
    modules = [f"{name}.v" for name in (MEMORY, SOC)]
    return {
        SDC: sdc(ports, period_ns),
        IP_XACT: component(config, version, ports, rtl, SDC),
        f"{MEMORY}.v": memory(),
        f"{SOC}.v": soc(config, ports),
        HARNESS: harness(),
        WAIVERS: waivers.read_text(encoding="utf-8"),
        CORE: core_file(config.digest, version, rtl, WAIVERS, modules, SDC),
    }
