"""What `generate --flows` adds, read and run by the tools that it is for."""

import io
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from ipyxact import ipxact2014
from peakrdl_ipxact import IPXACTImporter
from systemrdl.compiler import RDLCompiler
from systemrdl.node import AddrmapNode

from systolora.cli import main
from systolora.config import PRESETS, AcceleratorConfig
from systolora.contract import REGISTERS
from systolora.emit import EmitError, emit
from systolora.flows.ipxact import NAMESPACE
from systolora.flows.trial import trial
from systolora.render import render_rdl
from systolora_sim.bench.build import build_environment
from systolora_sim.system_machine import Memory, SystemMachine

#: Whose files are looked at: the smallest, and one in which everything is otherwise.
OTHER = AcceleratorConfig(
    rows=8, cols=4, segments=2, int16=False, acc_depth=64, bus_bits=64, channels=2,
    address_bits=64, act_bytes=1 << 13, wgt_bytes=1 << 12, outstanding=4,
)  # fmt: skip
CONFIGS = {"tiny": PRESETS["tiny"], "other": OTHER}


@pytest.fixture(scope="module", name="packages")
def _packages(tmp_path_factory):
    """Directory and manifest's ports by name of configuration."""
    made = {}
    for name, config in CONFIGS.items():
        directory = tmp_path_factory.mktemp(name)
        made[name] = directory, emit(config, directory, flows=True, period_ns=12.5).ports
    return made


@pytest.fixture(params=CONFIGS, name="package")
def _package(request, packages):
    """Configuration, directory, ports."""
    return CONFIGS[request.param], *packages[request.param]


# Emission -------------------------------------------------------------------------------------


def test_the_same_bytes_again(tmp_path, packages, capsys):
    """The command writes what `emit` does, but for the clock; the manifest names every file."""
    arguments = ["generate", "--preset", "tiny", "--flows", "-o", str(tmp_path)]
    assert main([*arguments, "--clock", "80MHz"]) == 0
    first, second = packages["tiny"][0], tmp_path
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
        assert name in (first / "manifest.json").read_text() or name == "manifest.json"
    assert main([*arguments, "--clock", "250MHz"]) == 0
    changed = [n for n in names if (first / n).read_bytes() != (second / n).read_bytes()]
    assert changed == ["manifest.json", "systolora.sdc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--flows", "--unit", "core"], "--flows: only with --unit top"),
        (["--clock", "80MHz"], "--clock: only with --flows"),
        (["--flows", "--clock", "80"], "'80': must be a frequency from 1MHz"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    try:
        status = main(["generate", "--preset", "tiny", "-o", str(tmp_path / "x"), *arguments])
    except SystemExit as error:  # argparse's own way
        status = error.code
    text = capsys.readouterr().err
    assert status == 2 and message in text and text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_only_the_top_has_packages(tmp_path):
    with pytest.raises(EmitError, match="unit = 'core': packages for flows are of the top only"):
        emit(CONFIGS["tiny"], tmp_path, "core", flows=True)


# FuseSoC --------------------------------------------------------------------------------------


def fusesoc(directory: Path, target: str, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Runs a target of the core file, found as its users find it: by its name."""
    file = next(directory.glob("*.core"))
    found = re.search(r"^name: (\S+)$", file.read_text(encoding="utf-8"), re.M)
    assert found is not None
    program = [sys.executable, "-m", "fusesoc.main", "--cores-root", str(directory), "run"]
    program += ["--work-root", str(scratch), "--target", target, found[1]]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    return subprocess.run(
        program,
        capture_output=True,
        text=True,
        check=False,
        cwd=scratch.parent,
        env=environment | build_environment("verilator"),
    )


def test_lint(package, tmp_path):
    run = fusesoc(package[1], "lint", tmp_path / "work")
    assert run.returncode == 0 and "%Warning" not in run.stdout + run.stderr, run.stderr[-3000:]


def test_lint_would_fail(packages, tmp_path):
    faulty = tmp_path / "faulty"
    shutil.copytree(packages["tiny"][0], faulty)
    file = faulty / "systolora_soc.v"
    text = file.read_text()
    file.write_text(
        text.replace("  wire irq;\n", "  wire irq;\n  wire none;\n  wire two = none;\n")
    )
    run = fusesoc(faulty, "lint", tmp_path / "work")
    assert run.returncode != 0 and "UNDRIVEN" in run.stdout + run.stderr


@pytest.mark.parametrize("name", ["tiny", pytest.param("other", marks=pytest.mark.slow)])
def test_simulation(name, packages, tmp_path):
    """The example system runs its program on the accelerator and finds memory as expected."""
    run = fusesoc(packages[name][0], "sim", tmp_path / "work")
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    assert re.search(r"systolora_soc: passed after \d+ cycles", run.stdout)


#: A clock, and what the example says, in Verilog.
BENCH = """module bench;
  reg clk = 0, rst_n = 0;
  wire done, failed;
  wire [31:0] cycles;
  systolora_soc soc(.clk(clk), .rst_n(rst_n), .done(done), .failed(failed), .cycles(cycles));
  always #5 clk = ~clk;
  initial begin
    #83 rst_n = 1;
    wait (done === 1'b1);
    $display("failed=%b after %0d cycles", failed, cycles);
    $finish;
  end
  initial begin
    #20000 $display("no end");  // 2000 cycles
    $finish;
  end
endmodule
"""


def icarus(directory: Path, scratch: Path) -> str:
    """What the example system says under Icarus, where all registers begin undefined."""
    if shutil.which("iverilog") is None:
        pytest.skip("needs Icarus Verilog (Debian: iverilog)")
    bench = scratch / "bench.v"
    bench.write_text(BENCH)
    files = map(str, sorted(directory.glob("*.v")))
    build = ["iverilog", "-g2005", "-s", "bench", "-o", "sim.vvp", str(bench), *files]
    for command in (build, ["vvp", "-n", "sim.vvp"]):
        run = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
    return run.stdout


def test_simulation_with_undefined_registers(package, tmp_path):
    """Nothing that was undefined at the beginning gets into what the program does."""
    assert re.search(r"failed=0 after \d{2,3} cycles", icarus(package[1], tmp_path))


def test_simulation_with_undefined_registers_would_fail(packages, tmp_path):
    """Without the reset of a counter of tiles in flight."""
    faulty = tmp_path / "faulty"
    shutil.copytree(packages["tiny"][0], faulty)
    file = faulty / "systolora_top.v"
    text = re.sub(r"reg (\[\d+:0\] flying_0) = \S+;", r"reg \1;", file.read_text())
    text, found = re.subn(r"if \(rst\) flying_0 <= \S+\s+else ", "", text)
    assert found == 1
    file.write_text(text)
    assert icarus(faulty, tmp_path) == "no end\n"


@pytest.mark.slow
def test_simulation_would_fail(packages, tmp_path):
    """One bit of the results otherwise than expected."""
    faulty = tmp_path / "faulty"
    shutil.copytree(packages["tiny"][0], faulty)
    file = faulty / "systolora_soc.v"
    text = file.read_text()
    last = re.findall(r"expected_0\[\d+\] = 64'h[0-9a-f]{15}([0-9a-f]);", text)[-1]
    changed = re.sub(
        rf"(expected_0\[\d+\] = 64'h[0-9a-f]{{15}}){last};(?!.*expected_0\[\d+\] = )",
        rf"\g<1>{int(last, 16) ^ 1:x};",
        text,
        flags=re.S,
    )
    assert changed != text
    file.write_text(changed)
    run = fusesoc(faulty, "sim", tmp_path / "work")
    assert run.returncode != 0 and "systolora_soc: FAILED" in run.stdout + run.stderr


@pytest.mark.parametrize("name", ["tiny", "ecp5", "default", "paper", "other"])
def test_the_program_against_the_machine(name):
    """The functional machine makes `after` of `before`."""
    config = OTHER if name == "other" else PRESETS[name]
    given = trial(config)
    memory = Memory(given.base, np.frombuffer(given.before, np.uint8).copy())
    assert given.before != given.after
    machine = SystemMachine(
        config, memory, (given.base, given.end), (given.output, given.end)
    )  # fmt: skip
    result = machine.run(given.program, given.length)
    assert not result.fault and memory.data.tobytes() == given.after


# IP-XACT --------------------------------------------------------------------------------------


def test_ip_xact_follows_the_schema(package):
    """ipyxact's classes, generated from the standard's XML schema, write it again as it is: no
    element is unknown, misplaced or of a type that it must not have."""

    # Optional elements that the classes write where they are absent, with their defaults
    added = ("bitSteering", "reserved")

    def outline(element: ElementTree.Element) -> tuple:
        name, text = element.tag.split("}")[-1], (element.text or "").strip()
        children = [child for child in element if child.tag.split("}")[-1] not in added]
        return name, text, tuple(map(outline, children))

    file = package[1] / "systolora.xml"
    written = io.StringIO()
    with warnings.catch_warnings():
        # What it says about values that their types forbid is an error; the defaults that it adds
        # to old Pythons' modules are not ours.
        warnings.simplefilter("error", UserWarning)
        root = ipxact2014.parse(str(file), silence=True)
        root.export(written, 0, name_="component")
    ours = ElementTree.parse(file).getroot()
    again = ElementTree.fromstring(written.getvalue())
    assert outline(again) == outline(ours)
    assert len(list(ours.iter())) > 1000


def test_ip_xact_is_read_back(package):
    """Buses, their wires, ports, registers and files are those of the manifest and the contract."""
    config, directory, ports = package
    names = {"": NAMESPACE}
    root = ElementTree.parse(directory / "systolora.xml").getroot()

    def told(element: ElementTree.Element, path: str) -> str:
        return element.findtext(path, "", names)

    assert told(root, "name") == f"systolora_{config.digest}"
    buses = {told(bus, "name"): bus for bus in root.iterfind("busInterfaces/*", names)}
    masters = ["m_axi"] if config.channels == 1 else ["m_axi_0", "m_axi_1"]
    assert list(buses) == ["s_axil", *masters, "irq", "aclk", "aresetn"]
    slaves = {name for name, bus in buses.items() if bus.find("slave", names) is not None}
    assert slaves == {"s_axil", "aclk", "aresetn"}
    wired = [
        (name, told(pair, "logicalPort/name"), told(pair, "physicalPort/name"))
        for name, bus in buses.items()
        for pair in bus.iterfind(".//portMap", names)
    ]
    declared = {"aclk": 1, "aresetn": 1} | {p["name"]: p["width"] for p in ports if "role" not in p}
    assert sorted(physical for _, _, physical in wired) == sorted(declared)
    assert (masters[-1], "AWADDR", f"{masters[-1]}_awaddr") in wired
    widths = {
        told(port, "name"): int(told(port, "wire/vectors/vector/left") or 0) + 1
        for port in root.iterfind("model/ports/port", names)
    }
    assert widths == declared
    found = {
        told(r, "name"): int(told(r, "addressOffset")[2:], 16)
        for r in root.iterfind("memoryMaps/memoryMap/addressBlock/register", names)
    }
    assert found == {name: register.offset for name, register in REGISTERS.items()}
    files = [told(file, "name") for file in root.iterfind("fileSets/fileSet/file", names)]
    assert len(files) == 3 and all((directory / name).is_file() for name in files)


def registers(top: AddrmapNode) -> dict[str, tuple]:
    """Offsets, fields with their places, accesses, resets and actions of a register."""
    return {
        node.inst_name: (
            node.absolute_address,
            tuple(
                (f.inst_name, f.low, f.width, f.is_sw_readable, f.is_sw_writable,
                 f.get_property("reset"), f.get_property("onwrite"))
                for f in node.fields()
            ),
        )
        for node in top.descendants()
        if type(node).__name__ == "RegNode"
    }  # fmt: skip


def test_ip_xact_agrees_with_the_register_description(package):
    """PeakRDL reads the same registers from IP-XACT as from SystemRDL."""
    config, directory, _ = package
    tops = []
    for name in ("systolora.rdl", "systolora.xml"):
        compiler = RDLCompiler()
        if name.endswith(".rdl"):
            compiler.compile_file(str(directory / name))
        else:
            IPXACTImporter(compiler).import_file(str(directory / name))
        tops.append(compiler.elaborate().top)
    assert registers(tops[1]) == registers(tops[0])
    assert len(registers(tops[0])) == len(REGISTERS)
    assert (directory / "systolora.rdl").read_text() == render_rdl(config)


# Constraints ----------------------------------------------------------------------------------

_TOY = """library (toy) { time_unit : "1ns"; capacitive_load_unit (1,pf);
  input_threshold_pct_rise : 50; input_threshold_pct_fall : 50;
  output_threshold_pct_rise : 50; output_threshold_pct_fall : 50;
  slew_lower_threshold_pct_rise : 20; slew_lower_threshold_pct_fall : 20;
  slew_upper_threshold_pct_rise : 80; slew_upper_threshold_pct_fall : 80;
  cell (TBUF) { area : 1; pin (A) { direction : input; } pin (Y) { direction : output;
  function : "A"; } } }
"""


def test_constraints(package, tmp_path):
    """OpenSTA takes them for the ports that there are."""
    if shutil.which("sta") is None:
        pytest.skip("needs OpenSTA (Debian: opensta)")
    _, directory, ports = package
    named = [p for p in ports if "role" not in p]
    lines = ["input aclk;", "input aresetn;"]
    for port in named:
        span = f"[{port['width'] - 1}:0] " if port["width"] > 1 else ""
        lines.append(f"{port['direction']} {span}{port['name']};")
    names = ", ".join(["aclk", "aresetn", *(p["name"] for p in named)])
    (tmp_path / "shell.v").write_text(
        f"module systolora_axi({names});\n" + "\n".join(lines) + "\nendmodule\n"
    )
    (tmp_path / "toy.lib").write_text(_TOY)
    (tmp_path / "go.tcl").write_text(
        "read_liberty toy.lib\nread_verilog shell.v\nlink_design systolora_axi\n"
        f"source {{{directory / 'systolora.sdc'}}}\n"
        "write_sdc out.sdc\nexit 0\n"
    )
    run = subprocess.run(
        ["sta", "-exit", "go.tcl"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    said = run.stdout + run.stderr
    assert run.returncode == 0 and "Warning" not in said and "Error" not in said, said
    written = (tmp_path / "out.sdc").read_text()
    assert "create_clock -name aclk -period 12.5000" in written
    for direction in ("input", "output"):
        bits = sum(p["width"] for p in named if p["direction"] == direction)
        assert len(re.findall(rf"^set_{direction}_delay 3\.7500", written, re.M)) == bits
    assert "set_false_path" in written and "get_ports {aresetn}" in written
