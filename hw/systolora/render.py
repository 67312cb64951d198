"""The contract's tables as text: Markdown for people, a C header, SystemRDL.

All of it comes from `contract`; nothing is said here that is not in its tables.
"""

from collections.abc import Iterable, Iterator, Sequence

from . import __version__
from .config import AcceleratorConfig
from .contract import (
    AMAX_REGISTERS,
    COL_STEP,
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    DEVICE_ID,
    INFO,
    POST,
    PROGRAM_MAX,
    REGISTER_ADDRESS_BITS,
    REGISTER_BITS,
    REGISTER_VERSION,
    REGISTERS,
    ROW_STEP,
    SCALE,
    SCALE_REGISTERS,
    STEP_WORD,
    STICKY,
    TILE,
    TOKENS_MAX,
    Action,
    Buffer,
    Dataflow,
    DocumentedEnum,
    Edge,
    Fault,
    Field,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Register,
    RegisterField,
    Source,
    Status,
    register_constants,
)
from .register_map import MappedField, mapped_fields

__all__ = ["render_header", "render_markdown", "render_rdl"]

ENUMERATIONS: tuple[type[DocumentedEnum], ...] = (
    *(Kind, Action, Buffer, Layout, Dataflow, Edge),
    *(Opcode, Source, Mode, Quantize, Limit, Status, Fault),
)

_NUMBERS: dict[str, tuple[int, str]] = {
    "DEVICE_ID": (DEVICE_ID, "what register ID reads"),
    "VERSION_MAJOR": (REGISTER_VERSION[0], "of registers and descriptors"),
    "VERSION_MINOR": (REGISTER_VERSION[1], "of registers and descriptors"),
    "DESCRIPTOR_BYTES": (DESCRIPTOR_BYTES, "bytes of a descriptor"),
    "PROGRAM_MAX": (PROGRAM_MAX, "descriptors of a program at most"),
    "TOKENS_MAX": (TOKENS_MAX, "tokens outstanding in a channel at most"),
    "SCALE_REGISTERS": (SCALE_REGISTERS, "scale registers"),
    "AMAX_REGISTERS": (AMAX_REGISTERS, "maximum registers"),
    "ROW_STEP": (ROW_STEP, "step of the random word per row"),
    "COL_STEP": (COL_STEP, "step of the random word per column"),
    "STEP_WORD": (STEP_WORD, "step of WORD_BASE per training step"),
}

_ACCESS = {
    "ro": "read only",
    "rw": "read and write",
    "w1c": "a written 1 clears the bit",
    "wo": "write only, reads 0",
}


def _positions(fields: Iterable[Field]) -> Iterator[tuple[Field, int]]:
    """Each field with the position of its lowest bit."""
    position = 0
    for field in fields:
        yield field, position
        position += field.width


def _is_word(register: Register) -> bool:
    """The register is a number of 32 bits: its one field has no name worth telling."""
    return register.fields[0].width == REGISTER_BITS


def _field_access(register: Register, field: RegisterField) -> str:
    return field.access or register.access


# --- Markdown -------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines]


def _bits(position: int, width: int) -> str:
    return str(position) if width == 1 else f"{position + width - 1}:{position}"


def _markdown_fields(fields: Sequence[Field]) -> list[str]:
    return _table(
        ("bits", "field", "meaning"),
        (
            (_bits(p, f.width), f"`{f.name}`", f"{f.doc}{', signed' if f.signed else ''}")
            for f, p in _positions(fields)
        ),
    )


def render_markdown() -> str:
    """All tables as Markdown: docs/contract.md."""
    lines = [
        "# The contract's tables",
        "",
        "Written by `scripts/render_contract.py` from `hw/systolora/contract.py`; do not edit.",
        "What descriptors mean is in [system.md](system.md), what the Core does in",
        "[core.md](core.md).",
        "",
        "## Registers",
        f"{REGISTER_BITS}-bit words of an AXI4-Lite slave of {1 << REGISTER_ADDRESS_BITS} bytes. A",
        "quantity of 64 bits is a pair _LO, _HI. Access:",
        "; ".join(f"{name}, {text}" for name, text in _ACCESS.items()) + ".",
        "",
        "SLVERR answers an address without a register, a write to a read-only register, a write to",
        "a register marked *idle* while busy, a set bit that does not exist in a `rw` register",
        "(such as one beyond `address_bits`), and a start while busy. Such a write changes",
        "nothing, except that a start while busy sets STATUS.start_ignored, and that an abort in",
        "the same write counts. Bytes without a strobe keep their value, and are 0 to `w1c` and",
        "`wo`. After a reset everything is 0, but the constants of the configuration, and RUNS,",
        "which is 1.",
        "",
    ]
    rows = []
    for register in REGISTERS.values():
        access = f"{register.access}, idle" if register.locked else register.access
        name, offset = f"`{register.name}`", f"0x{register.offset:03X}"
        if register.shift:  # joins the row of its other half
            rows[-1] = (f"{rows[-1][0]}, {offset}", f"{rows[-1][1]}, `_HI`", *rows[-1][2:])
        else:
            rows.append((offset, name, access, register.doc))
    lines += _table(("offset", "register", "access", "meaning"), rows)
    for register in REGISTERS.values():
        if _is_word(register):
            continue
        lines += ["", f"### {register.name}"]
        lines += _table(
            ("bits", "field", "access", "meaning"),
            (
                (_bits(p, f.width), f"`{f.name}`", _field_access(register, f), f.doc)
                for f, p in zip(register.fields, _offsets(register), strict=True)
            ),
        )
    lines += [
        "",
        "## Descriptors",
        f"{DESCRIPTOR_BYTES} bytes, little-endian; bits after the last field are 0.",
    ]
    for kind, fields in DESCRIPTORS.items():
        lines += ["", f"### {kind.name} ({int(kind)})", *_markdown_fields(fields)]
    lines += ["", "### Scale, in `imm` of SCALE_SET", *_markdown_fields(SCALE)]
    lines += ["", "## Streams of the Core"]
    for name, fields in (("tile", TILE), ("post", POST), ("info", INFO)):
        lines += ["", f"### `{name}`", *_markdown_fields(fields)]
    lines += ["", "## Values"]
    for enumeration in ENUMERATIONS:
        doc = (enumeration.__doc__ or "").strip().replace("\n    ", "\n")
        lines += ["", f"### {enumeration.__name__}", doc, ""]
        lines += _table(
            ("value", "name", "meaning"), ((int(m), f"`{m.name}`", m.doc) for m in enumeration)
        )
    lines += ["", "### Sticky bits", *_table(("bit", "name"), enumerate(f"`{s}`" for s in STICKY))]
    lines += ["", "### Numbers"]
    lines += _table(
        ("name", "value", "meaning"),
        ((f"`{name}`", _number(value), doc) for name, (value, doc) in _NUMBERS.items()),
    )
    # A table is its own paragraph
    spaced: list[str] = []
    for line in lines:
        if line.startswith("| ") and spaced and spaced[-1] and not spaced[-1].startswith("| "):
            spaced.append("")
        spaced.append(line)
    return "\n".join(spaced) + "\n"


def _offsets(register: Register) -> list[int]:
    return [position for _, position in _positions(register.fields)]


def _number(value: int) -> str:
    """Small numbers as people count, words of bits in hexadecimal."""
    return f"0x{value:08X}" if value > PROGRAM_MAX else str(value)


# --- C --------------------------------------------------------------------------------------------


def _comment(text: str) -> str:
    return "/* " + text.replace("*/", "* /") + " */"


def _defines(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """`#define` lines with their values in a column; a row is name, value, comment or ''."""
    rows = list(rows)
    width = max((len(name) for name, _, _ in rows), default=0)
    return [
        f"#define SYSTOLORA_{name:<{width}} {value}{' ' + _comment(doc) if doc else ''}"
        for name, value, doc in rows
    ]


def _header_registers() -> list[str]:
    lines = [_comment("Registers: offsets in bytes.")]
    lines += _defines(
        (f"REG_{r.name}", f"0x{r.offset:03X}u", f"{r.access}: {r.doc}") for r in REGISTERS.values()
    )
    lines += ["", _comment("Fields of registers: lowest bit, and mask in place.")]
    rows = []
    for register in REGISTERS.values():
        if _is_word(register):
            continue
        for field, position in zip(register.fields, _offsets(register), strict=True):
            name = f"{register.name}_{field.name.upper()}"
            mask = ((1 << field.width) - 1) << position
            rows.append((f"{name}_SHIFT", f"{position}u", field.doc))
            rows.append((f"{name}_MASK", f"0x{mask:08X}u", ""))
    return lines + _defines(rows)


def _header_descriptors() -> list[str]:
    lines = [
        _comment("Descriptors: a field's lowest bit, counted from bit 0 of byte 0, and its width.")
    ]
    rows = []
    for name, fields in (
        *((kind.name, fields) for kind, fields in DESCRIPTORS.items()),
        ("SCALE", SCALE),
    ):
        for field, position in _positions(fields):
            doc = f"{field.doc}{', signed' if field.signed else ''}"
            rows.append((f"DESC_{name}_{field.name.upper()}_BIT", f"{position}u", doc))
            rows.append((f"DESC_{name}_{field.name.upper()}_WIDTH", f"{field.width}u", ""))
    return lines + _defines(rows)


def _header_enumerations() -> list[str]:
    lines: list[str] = []
    for enumeration in ENUMERATIONS:
        name = enumeration.__name__.lower()
        lines += ["", f"enum systolora_{name} {{"]
        members = list(enumeration)
        for member in members:
            comma = "," if member is not members[-1] else ""
            constant = f"SYSTOLORA_{name.upper()}_{member.name} = {int(member)}{comma}"
            lines.append(f"    {constant} {_comment(member.doc)}")
        lines.append("};")
    return lines


def render_header(config: AcceleratorConfig | None = None) -> str:
    """The C99 header `systolora_regs.h`: registers, descriptors, enumerations; no code.

    With a configuration it also has that configuration's fields as SYSTOLORA_CONFIG_*; software
    that reads the registers ARRAY, ACC, ... instead runs on any.
    """
    of = "" if config is None else f", configuration {config.digest}"
    lines = [
        _comment(f"Registers and descriptors of systolora {__version__}{of}. Generated."),
        "#ifndef SYSTOLORA_REGS_H",
        "#define SYSTOLORA_REGS_H",
        "",
        *_defines((n, _literal(value), doc) for n, (value, doc) in _NUMBERS.items()),
        "",
        *_header_registers(),
        "",
        *_header_descriptors(),
        *_header_enumerations(),
    ]
    if config is not None:
        lines += ["", _comment("The configuration.")]
        rows = [(f"CONFIG_{n.upper()}", f"{int(v)}u", "") for n, v in config.to_dict().items()]
        digest = register_constants(config)["DIGEST"]
        rows.append(("CONFIG_DIGEST", f"0x{digest:08X}u", "what register DIGEST reads"))
        lines += _defines(rows)
    return "\n".join([*lines, "", "#endif"]) + "\n"


def _literal(value: int) -> str:
    return f"{_number(value)}u"


# --- SystemRDL ------------------------------------------------------------------------------------

#: Properties of a field by its access.
_RDL_ACCESS = {
    "ro": "sw = r; hw = w;",
    "rw": "sw = rw; hw = r;",
    "w1c": "sw = rw; onwrite = woclr; hw = rw;",
    "wo": "sw = w; hw = r; singlepulse;",
}


def _text(text: str) -> str:
    """A string of SystemRDL."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rdl_field(field: MappedField) -> Iterator[str]:
    access = "sw = r; hw = na;" if field.fixed else _RDL_ACCESS[field.access]
    encode = f" encode = {field.values.__name__};" if field.values is not None else ""
    yield f"        field {{ desc = {_text(field.doc)}; {access}{encode} }}"
    high = field.position + field.width - 1
    yield f"            \\{field.name}[{high}:{field.position}] = {field.width}'h{field.reset:x};"


def render_rdl(config: AcceleratorConfig) -> str:
    """The registers of a configuration as SystemRDL 2.0: an addrmap `systolora`."""
    lines = [
        f"// Registers of systolora {__version__}, configuration {config.digest}. Generated.",
        "",
    ]
    encoded = {f.values for r in REGISTERS.values() for f in r.fields if f.values is not None}
    for enumeration in sorted(encoded, key=lambda e: e.__name__):
        width = max(enumeration).bit_length()
        lines.append(f"enum {enumeration.__name__} {{")
        for member in enumeration:
            lines.append(
                f"    \\{member.name} = {width}'d{int(member)} {{ desc = {_text(member.doc)}; }};"
            )
        lines += ["};", ""]
    lines += [
        "addrmap systolora {",
        f"    name = {_text(f'systolora, configuration {config.digest}')};",
        f"    default regwidth = {REGISTER_BITS};",
        f"    default accesswidth = {REGISTER_BITS};",
    ]
    for register in REGISTERS.values():
        lines += ["    reg {", f"        desc = {_text(register.doc)};"]
        for field in mapped_fields(register, config):
            lines += _rdl_field(field)
        lines.append(f"    }} \\{register.name} @ 0x{register.offset:03X};")
    return "\n".join([*lines, "};"]) + "\n"
