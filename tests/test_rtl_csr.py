# amaranth: UnusedElaboratable=no
"""The register file on the generated Verilog, behind an AXI4-Lite master (csr_bench)."""

import json
from pathlib import Path

import pytest

from systolora.config import AcceleratorConfig
from systolora.contract import (
    REGISTER_ADDRESS_BITS,
    REGISTERS,
    existing_bits,
    pack,
    register_constants,
    unpack,
)
from systolora.emit import emit_component
from systolora.rtl.axi_lite import LiteSignature
from systolora.rtl.csr import Csr
from systolora_sim.bench.build import build_component
from systolora_sim.bench.component import run_bench
from verilator_lint import assert_clean

CACHE = Path("build") / "sim"
CONFIGS = [
    AcceleratorConfig(),
    AcceleratorConfig(
        rows=4, cols=8, segments=2, int16=False, address_bits=64, bus_bits=64, outstanding=256
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.address_bits))
def test_csr(config, tmp_path):
    seed = 2000 + config.address_bits
    print(f"seed {seed}, configuration {config.digest}")
    emitted = emit_component(Csr(config), check_keys=True)
    verilog = tmp_path / f"{emitted.name}.v"
    verilog.write_text(emitted.verilog, encoding="utf-8")
    assert_clean(str(verilog))
    ports = [port["name"] for port in emitted.ports]
    simulator = build_component(verilog, emitted.name, ports, CACHE)
    run_bench(
        simulator,
        emitted.name,
        "csr_bench",
        tmp_path,
        environment={
            "SYSTOLORA_CONFIG": json.dumps(config.to_dict()),
            "SYSTOLORA_SEED": str(seed),
            "SYSTOLORA_LATENCY": str(Csr.LATENCY),
        },
    )


def test_table():
    """Each register is one word of the page; fields fit; software learns the configuration."""
    assert len({r.offset for r in REGISTERS.values()}) == len(REGISTERS)
    for name, register in REGISTERS.items():
        assert register.name == name and register.offset % 4 == 0
        assert 0 <= register.offset < 1 << REGISTER_ADDRESS_BITS
        assert register.access in ("ro", "rw", "w1c", "wo")
        assert sum(field.width for field in register.fields) <= 32
        assert register.shift == (32 if name.endswith("_HI") else 0)
    for config in CONFIGS:
        constants = register_constants(config)
        array = unpack(REGISTERS["ARRAY"].fields, constants["ARRAY"])
        assert array == {
            "rows": config.rows,
            "cols": config.cols,
            "segments": config.segments,
            "int16": config.int16,
            "fused_quantize": config.fused_quantize,
        }
        bus = unpack(REGISTERS["BUS"].fields, constants["BUS"])
        names = ("bus_bits", "address_bits", "outstanding", "channels")
        assert bus == {n: getattr(config, n) for n in names}
        assert f"{constants['DIGEST']:08x}" == config.digest[:8]
        assert constants["ACT_BYTES"] == config.act_bytes
        assert constants["WGT_BYTES"] == config.wgt_bytes
        assert constants["ACC"] == config.acc_depth
    # The greatest configuration fits
    pack(REGISTERS["ARRAY"].fields, {"rows": 256, "cols": 256, "segments": 8, "int16": 1})
    pack(REGISTERS["ACC"].fields, {"depth": 1 << 16})
    bus = {"bus_bits": 1024, "address_bits": 64, "outstanding": 256, "channels": 4}
    pack(REGISTERS["BUS"].fields, bus)


@pytest.mark.parametrize(
    ("address_bits", "base_high", "limit_high", "top"),
    [(40, 0xFF, 0x1FF, 0), (63, 0x7FFFFFFF, 0xFFFFFFFF, 0), (64, 0xFFFFFFFF, 0xFFFFFFFF, 3)],
)
def test_existing_bits(address_bits, base_high, limit_high, top):
    config = AcceleratorConfig(address_bits=address_bits)
    for name, bits in (
        ("READ_BASE_LO", 0xFFFFFFFF),
        ("READ_BASE_HI", base_high),
        ("PROGRAM_ADDRESS_HI", base_high),
        ("READ_LIMIT_HI", limit_high),
        ("WRITE_LIMIT_HI", limit_high),
        ("LIMIT_TOP", top),
        ("CYCLES_HI", 0xFFFFFFFF),
        ("STICKY", 31),
    ):
        assert existing_bits(REGISTERS[name], config) == bits, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "address_bits must be 1 to 64, not 0"),
        ((12, 128), r"data_bits must be one of \(32, 64\), not 128"),
    ],
)
def test_lite_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        LiteSignature(*arguments)
