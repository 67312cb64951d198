"""Markdown, C header and SystemRDL against the contract's tables, read by other people's tools."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from peakrdl_cheader.exporter import CHeaderExporter
from systemrdl.compiler import RDLCompiler
from systemrdl.node import AddrmapNode
from systemrdl.rdltypes.builtin_enums import OnWriteType

from systolora.config import PRESETS, AcceleratorConfig
from systolora.contract import (
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    REGISTERS,
    DocumentedEnum,
    Fault,
    existing_bits,
    register_constants,
)
from systolora.render import ENUMERATIONS, render_header, render_markdown, render_rdl

ROOT = Path(__file__).parent.parent
CONFIGS = [PRESETS["tiny"], AcceleratorConfig(address_bits=64), AcceleratorConfig(channels=4)]
C99 = ["gcc", "-std=c99", "-ffreestanding", "-Wall", "-Wextra", "-Werror", "-pedantic"]
FLAGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]


def compiled(rdl: str, directory: Path) -> AddrmapNode:
    file = directory / "systolora.rdl"
    file.write_text(rdl, encoding="utf-8")
    compiler = RDLCompiler()
    compiler.compile_file(str(file))
    return compiler.elaborate().top


def test_markdown_is_committed():
    committed = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    assert committed == render_markdown(), "run scripts/render_contract.py"


def test_markdown_names_everything():
    text = render_markdown()
    for register in REGISTERS.values():
        name = f"{register.quantity}_LO" if register.quantity else register.name
        assert f"`{name}`" in text and f"0x{register.offset:03X}" in text
    for fields in DESCRIPTORS.values():
        for field in fields:
            assert f"`{field.name}`" in text
    assert "| 153:90 | `address` | address of the first row, bytes |" in text
    for enumeration in DocumentedEnum.__subclasses__():
        assert enumeration in ENUMERATIONS
        for member in enumeration:
            assert f"| {int(member)} | `{member.name}` | {member.doc} |" in text
    # Each row has as many cells as its table's head
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_script(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "render_contract.py"), "-o"]
    subprocess.run([*script, str(tmp_path / "x.md")], check=True)
    assert (tmp_path / "x.md").read_text(encoding="utf-8") == render_markdown()
    run = subprocess.run([*script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and run.stderr == f"{tmp_path}: Is a directory\n"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c.address_bits))
def test_rdl(config, tmp_path):
    """systemrdl-compiler accepts it and finds the registers, fields, resets and accesses."""
    top = compiled(render_rdl(config), tmp_path)
    found = {node.inst_name: node for node in top.registers()}
    assert list(found) == list(REGISTERS)
    constants = register_constants(config)
    for name, register in REGISTERS.items():
        node = found[name]
        assert node.address_offset == register.offset and node.get_property("regwidth") == 32
        exists, reset = existing_bits(register, config), 0
        fields = {field.inst_name: field for field in node.fields()}
        assert list(fields) == [field.name for field in register.fields]
        position = 0
        for field in register.fields:
            told = fields[field.name]
            mask = (exists >> position) & ((1 << field.width) - 1)
            assert told.low == position
            assert told.width == (mask.bit_length() or field.width)
            access = field.access or register.access
            assert told.is_sw_readable == (access != "wo")
            assert told.is_sw_writable == (access != "ro" and mask != 0)
            clears = access == "w1c"
            assert (told.get_property("onwrite") == OnWriteType.woclr) == clears
            value = told.get_property("reset")
            assert isinstance(value, int)
            reset |= value << position
            position += field.width
        assert reset == constants.get(name, register.reset), name
    encode = found["ERROR"].fields()[0].get_property("encode")
    assert encode is not None
    assert {member.name: member.value for member in encode} == {f.name: int(f) for f in Fault}


@pytest.mark.parametrize("config", [None, *CONFIGS], ids=lambda c: str(c and c.address_bits))
def test_header_compiles(config, tmp_path):
    """Alone, twice, as C99 and as C++; every name once."""
    text = render_header(config)
    (tmp_path / "systolora_regs.h").write_text(text, encoding="utf-8")
    source = tmp_path / "x.c"
    source.write_text('#include "systolora_regs.h"\n#include "systolora_regs.h"\nextern int x;\n')
    subprocess.run([*C99, "-fsyntax-only", str(source)], check=True)
    subprocess.run(["g++", "-x", "c++", *FLAGS, "-fsyntax-only", str(source)], check=True)
    names = re.findall(r"^#define (\w+) |^    (SYSTOLORA_\w+) =", text, re.M)
    names = [a or b for a, b in names]
    assert len(names) == len(set(names)) > 300
    assert (config is None) == ("CONFIG_ROWS" not in text)
    assert all(ord(character) < 128 for character in text)


def test_header_against_rdl(tmp_path):
    """The C header that PeakRDL makes of the SystemRDL has the same offsets, bits and masks."""
    config = PRESETS["default"]
    (tmp_path / "systolora_regs.h").write_text(render_header(config), encoding="utf-8")
    top = compiled(render_rdl(config), tmp_path)
    CHeaderExporter().export(top, str(tmp_path / "peakrdl.h"), reuse_typedefs=False)
    other = (tmp_path / "peakrdl.h").read_text(encoding="utf-8")
    checks = []
    for name, register in REGISTERS.items():
        checks.append(f"offsetof(systolora_t, {name}) == SYSTOLORA_REG_{name}")
        if register.fields[0].width == 32 or not existing_bits(register, config):
            continue
        for field in register.fields:
            theirs = f"SYSTOLORA__{name}__{field.name.upper()}"
            assert f"#define {theirs}_bm " in other
            ours = f"SYSTOLORA_{name}_{field.name.upper()}"
            checks += [f"{theirs}_bm == {ours}_MASK", f"{theirs}_bp == {ours}_SHIFT"]
    assert len(checks) > 80
    source = tmp_path / "x.c"
    lines = ["#include <stddef.h>", '#include "peakrdl.h"', '#include "systolora_regs.h"']
    lines += [f'_Static_assert({check}, "");' for check in checks]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run(["gcc", "-std=c11", "-fsyntax-only", str(source)], check=True)


def test_header_descriptors():
    """Positions as pack puts them."""
    text = render_header()
    numbers = {
        n: int(v) for n, v in re.findall(r"^#define SYSTOLORA_(DESC_\w+) +(\d+)u", text, re.M)
    }
    for kind, fields in DESCRIPTORS.items():
        position = 0
        for field in fields:
            name = f"DESC_{kind.name}_{field.name.upper()}"
            assert (numbers[f"{name}_BIT"], numbers[f"{name}_WIDTH"]) == (position, field.width)
            position += field.width
        assert position <= 8 * DESCRIPTOR_BYTES
    for enumeration in ENUMERATIONS:
        for member in enumeration:
            name = f"SYSTOLORA_{enumeration.__name__.upper()}_{member.name}"
            assert re.search(rf"^    {name} = {int(member)}\b", text, re.M)
