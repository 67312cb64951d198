"""The whole accelerator in Verilog on buses of cocotbext-axi (system_protocol_bench)."""

import json

import pytest

from simulated import CACHE, CONFIGS
from systolora.wrapper import WRAPPER
from systolora_sim.bench.build import build_component
from systolora_sim.bench.component import run_bench
from systolora_sim.runner import BUILD_DIR, ensure_verilog

SEED = 8400


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_protocol(channels, tmp_path):
    """A random program with pauses on all channels, and the reset of the wrapper."""
    config = CONFIGS["tiny"].with_fields(channels=channels)
    print(f"seed {SEED}, configuration {config.digest}")
    top = ensure_verilog(config, BUILD_DIR, "top")
    # One file: the wrapper with what is inside
    verilog = tmp_path / f"{WRAPPER}.v"
    texts = [top.file.read_text("utf-8"), (top.file.parent / f"{WRAPPER}.v").read_text("utf-8")]
    verilog.write_text("".join(texts), encoding="utf-8")
    ports = [port["name"] for port in top.manifest["ports"] if "role" not in port]
    simulator = build_component(verilog, WRAPPER, ["aclk", "aresetn", *ports], CACHE)
    run_bench(
        simulator,
        WRAPPER,
        "system_protocol_bench",
        tmp_path,
        environment={
            "SYSTOLORA_CONFIG": json.dumps(config.to_dict()),
            "SYSTOLORA_SEED": str(SEED),
        },
    )
