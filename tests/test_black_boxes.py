"""Memories as black boxes: what is emitted, and that it computes the same with the box's model."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from simulated import CACHE, CONFIGS, core_verilog
from system_rtl import Case, compare, rtl_run
from systolora.black_boxes import SRAM, black_boxes, sram_model
from systolora.cli import main
from systolora.config import PRESETS
from systolora.emit import MANIFEST, emit
from systolora_sim.bench.run import run_program
from systolora_sim.bench.system_build import build_system
from systolora_sim.runner import ensure_verilog
from test_rtl_core import assert_same, random_program


def joined(directory: Path, unit: str, model: str) -> Path:
    """Design and model in one file, as the benches take it."""
    file = directory / f"{unit}_with_model.v"
    file.write_text((directory / f"systolora_{unit}.v").read_text() + model)
    return file


@pytest.fixture(scope="module", name="core")
def _core(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("core")
    emit(CONFIGS["tiny"], directory, "core", memories="black-box")
    return directory


def test_the_manifest_lists_them(core):
    """Shapes as the configuration has them; all of them, and none of them twice."""
    config = CONFIGS["tiny"]
    told = json.loads((core / MANIFEST).read_text())["memories"]
    banks = [m for m in told if m["module"] == "accumulator_lane"]
    assert [m["name"] for m in banks] == ["bank_0", "bank_1", "bank_2", "bank_3"]
    for bank in banks:
        assert (bank["words"], bank["width"]) == (config.bank_depth, config.acc_bits)
        assert bank["mask"] == config.acc_bits and bank["instances"] == config.cols
    text = (core / "systolora_core.v").read_text()
    assert text.count(f"  {SRAM} #(") == len(told)
    left = re.findall(r"^  reg \[(\d+):0\] \w+ \[(\d+):0\];", text, re.M)
    assert left and all(int(words) < 16 for _, words in left)
    assert (core / f"{SRAM}.v").read_text() == sram_model()


def test_parts_of_an_entry_have_their_own_mask(tmp_path):
    """A beat is half of an entry: the mask says so."""
    config = PRESETS["tiny"].with_fields(rows=8, cols=8, acc_depth=128, bus_bits=64, wgt_bytes=8192)
    emitted = emit(config, tmp_path, "top", memories="black-box")
    buffers = [m for m in emitted.memories if m["module"].startswith("operand_buffer")]
    assert {(m["words"] * m["width"] // 8, m["mask"]) for m in buffers} == {
        (config.act_bytes, 64), (config.wgt_bytes, 64),
    }  # fmt: skip
    assert {m["width"] for m in buffers} == {128}


def test_without_them_nothing_changes(tmp_path):
    emit(CONFIGS["tiny"], tmp_path, "core")
    assert (tmp_path / "systolora_core.v").read_bytes() == core_verilog(
        CONFIGS["tiny"]
    ).read_bytes()
    assert "memories" not in json.loads((tmp_path / MANIFEST).read_text())


def test_the_core_computes_the_same(core):
    """Random programs, bit for bit, although what collides or was never written is garbage."""
    verilog = joined(core, "core", sram_model())
    for seed in (11, 12, 13):
        program, expected = random_program(CONFIGS["tiny"], seed, groups=12)
        assert len(expected.result) + len(expected.acc_out) > 20
        assert_same(run_program(CONFIGS["tiny"], program, verilog, seed, cache=CACHE), expected)


@pytest.mark.slow
def test_a_model_that_writes_wrongly_is_found(core):
    """Bit 0 is never written."""
    broken = sram_model().replace("(write_data & write_mask)", "(write_data & (write_mask << 1))")
    assert broken != sram_model()
    verilog = joined(core, "core", broken)
    program, expected = random_program(CONFIGS["tiny"], 11, groups=12)
    with pytest.raises(AssertionError):
        assert_same(run_program(CONFIGS["tiny"], program, verilog, 11, cache=CACHE), expected)


@pytest.mark.slow
def test_the_accelerator_computes_the_same(tmp_path, monkeypatch):
    """Programs from memory beside the functional machine, with every memory that is read
    synchronously a black box: so synthesis may leave collisions undefined in all of them."""
    monkeypatch.setattr("systolora.black_boxes._LEAST_BITS", 1)
    monkeypatch.setattr("systolora.black_boxes._LEAST_WORDS", 1)
    emitted = emit(CONFIGS["tiny"], tmp_path, "top", memories="black-box")
    assert min(m["words"] for m in emitted.memories) < 8
    simulator = build_system(joined(tmp_path, "top", sram_model()), CACHE, channels=1)
    for seed in range(20, 26):
        case = Case.random("tiny", seed)
        compare(case, rtl_run(simulator, case))


def test_the_command(tmp_path, capsys):
    """The files; the directory is not taken for a design that can be simulated as it is."""
    config, build = PRESETS["tiny"], tmp_path / "build"
    place = build / "tiny-core"
    assert main(
        ["generate", "--preset", "tiny", "--unit", "core", "--memories", "black-box",
         "-o", str(place)]
    ) == 0  # fmt: skip
    assert {f.name for f in place.iterdir()} == {"systolora_core.v", f"{SRAM}.v", MANIFEST}
    assert SRAM in (place / "systolora_core.v").read_text()
    made = ensure_verilog(config, build, "core")
    assert not made.reused and SRAM not in made.file.read_text()


def test_memories_that_stay():
    """Read without a clock, by two ports, or small: not a black box."""
    cell = """\
module \\m
  cell $mem_v2 \\x
    parameter \\ABITS 6
    parameter \\RD_CLK_ENABLE 1'1
    parameter \\RD_PORTS 1
    parameter \\RD_TRANSPARENCY_MASK 1'0
    parameter \\SIZE 64
    parameter \\WIDTH 32
    parameter \\WR_PORTS 1
    connect \\RD_ADDR \\ra
    connect \\RD_CLK \\clk
    connect \\RD_DATA \\rd
    connect \\RD_EN \\re
    connect \\WR_ADDR \\wa
    connect \\WR_CLK \\clk
    connect \\WR_DATA \\wd
    connect \\WR_EN \\we
  end
end
"""
    text, found = black_boxes("\n" + cell)
    assert found == {"m": [{"name": "x", "words": 64, "width": 32, "mask": 1}]}
    assert f"cell \\{SRAM} \\x" in text and "$mem_v2" not in text
    mask = "connect \\WR_EN { " + "\\e [2] " * 15 + "\\e [2:1] " + "\\e [1] " * 15 + "}"
    _, found = black_boxes("\n" + cell.replace("connect \\WR_EN \\we", mask))
    assert found["m"][0]["mask"] == 16
    for old, new in (
        ("RD_CLK_ENABLE 1'1", "RD_CLK_ENABLE 1'0"),
        ("RD_PORTS 1", "RD_PORTS 2"),
        ("MASK 1'0", "MASK 1'1"),
        ("SIZE 64", "SIZE 8"),
        ("WIDTH 32", "WIDTH 4"),
        ("WR_CLK \\clk", "WR_CLK \\other"),
    ):
        changed = "\n" + cell.replace(old, new)
        assert changed != "\n" + cell and black_boxes(changed) == (changed, {})


def test_the_model_alone(tmp_path):
    """Masked writes, reads that stay, a collision that gives other bits."""
    if shutil.which("iverilog") is None:
        pytest.skip("needs Icarus Verilog")
    (tmp_path / "model.v").write_text(sram_model())
    (tmp_path / "tb.v").write_text(f"""
module tb; reg clk = 0; always #1 clk = ~clk;
reg re = 0; reg [3:0] ra = 0, wa = 0; reg [7:0] mask = 0, wd = 0; wire [7:0] rd;
{SRAM} s(clk, re, ra, rd, mask, wa, wd);
initial begin
  @(negedge clk) mask = 8'hff; wa = 3; wd = 8'h5a;
  @(negedge clk) mask = 8'h0f; wd = 8'hff;
  @(negedge clk) mask = 0; re = 1; ra = 3;
  @(negedge clk) $display("%h", rd); re = 0; ra = 4;
  @(negedge clk) $display("%h", rd); re = 1; ra = 3; mask = 8'hff; wd = 8'h00;
  @(negedge clk) $display("%h", rd); mask = 0;
  @(negedge clk) $display("%h", rd); $finish;
end endmodule
""")
    files = ["tb.v", "model.v"]
    subprocess.run(["iverilog", "-g2005", "-o", "tb.vvp", *files], cwd=tmp_path, check=True)
    run = subprocess.run(
        ["vvp", "tb.vvp"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[:4] == ["5f", "5f", "a0", "00"]
