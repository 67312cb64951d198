# amaranth: UnusedElaboratable=no
"""The memory engines on the generated Verilog, against a memory behind AXI4 (memory_bench)."""

import re
from pathlib import Path

import pytest

from memory_engines import MemoryEngines
from systolora.emit import emit_component
from systolora.rtl.memory_reader import MemoryReader
from systolora.rtl.memory_writer import MemoryWriter
from systolora_sim.bench.build import build_component
from systolora_sim.bench.component import run_bench
from verilator_lint import assert_clean

CACHE = Path("build") / "sim"
ADDRESS_BITS = 40
TOP = "memory_engines"

#: Data width: bursts outstanding, beats of a burst, bytes of the smallest block.
BUSES = {64: (4, 16, 1), 128: (8, 64, 1), 512: (8, 16, 8)}


@pytest.mark.parametrize("data_bits", BUSES)
def test_memory_engines(data_bits, tmp_path):
    outstanding, burst_beats, align = BUSES[data_bits]
    seed = 1000 + data_bits
    print(f"seed {seed}, {data_bits} bits")
    emitted = emit_component(
        MemoryEngines(
            data_bits=data_bits,
            address_bits=ADDRESS_BITS,
            outstanding=outstanding,
            burst_beats=burst_beats,
            align=align,
        ),
        TOP,
    )
    verilog = tmp_path / f"{TOP}.v"
    verilog.write_text(emitted.verilog, encoding="utf-8")
    simulator = build_component(verilog, TOP, [port["name"] for port in emitted.ports], CACHE)
    log = run_bench(
        simulator,
        TOP,
        "memory_bench",
        tmp_path,
        environment={
            "SYSTOLORA_DATA_BITS": str(data_bits),
            "SYSTOLORA_ADDRESS_BITS": str(ADDRESS_BITS),
            "SYSTOLORA_OUTSTANDING": str(outstanding),
            "SYSTOLORA_BURST_BEATS": str(burst_beats),
            "SYSTOLORA_ALIGN": str(align),
            "SYSTOLORA_SEED": str(seed),
        },
    )
    for line in re.findall(r"throughput .*", log):
        print(line)


@pytest.mark.parametrize("engine", [MemoryReader, MemoryWriter])
@pytest.mark.parametrize("data_bits", BUSES)
def test_lint(engine, data_bits, tmp_path):
    """Nothing beyond the waivers; and a design key that misses a parameter is found."""
    emitted = emit_component(engine(data_bits=data_bits), check_keys=True)
    verilog = tmp_path / f"{emitted.name}.v"
    verilog.write_text(emitted.verilog, encoding="utf-8")
    assert_clean(str(verilog))


@pytest.mark.parametrize("engine", [MemoryReader, MemoryWriter])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_bits": 96}, r"data_bits must be one of \(64, 128, 256, 512, 1024, 2048\), not 96"),
        ({"address_bits": 8}, "address_bits must be 16 to 64, not 8"),
        ({"outstanding": 0}, "outstanding must be at least 1, not 0"),
        ({"burst_beats": 24}, "burst_beats must be a power of two up to 256, not 24"),
        ({"burst_beats": 512}, "burst_beats must be a power of two up to 256, not 512"),
        ({"queue_beats": 15}, "queue_beats must be at least burst_beats = 16, not 15"),
    ],
)
def test_parameters(engine, change, message):
    with pytest.raises(ValueError, match=message):
        engine(**{"data_bits": 128, **change})


@pytest.mark.parametrize("align", [0, 3, 32])
def test_align(align):
    with pytest.raises(ValueError, match=f"align must be a power of two up to 16, not {align}"):
        MemoryWriter(data_bits=128, align=align)
