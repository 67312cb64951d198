"""Descriptors of programs for the whole accelerator: to bytes and back, and as readable text.

The tables are `systolora.contract`'s, the meaning is docs/system.md. The text has one line per
descriptor: its number (for the reader, the assembler does not check it), its kind, then what is not
0: a one-bit field as its name alone, enumerations by name, addresses and words in hexadecimal.

    0: LOAD signal_exec buffer=WGT layout=LEFT rows=8 row_bytes=8 row_step=1 address=0x1000 stride=8
    1: CONTROL action=END

Bytes that are no descriptor (another kind, or bits beyond the last field) are a line of DATA with
the 64 bytes in hexadecimal, so that every program comes back as it was. `#` begins a comment.
"""

import re
from collections.abc import Mapping
from enum import IntEnum

from systolora.contract import (
    DESCRIPTOR_BYTES,
    DESCRIPTORS,
    Action,
    Buffer,
    Dataflow,
    Edge,
    Field,
    Kind,
    Layout,
    Limit,
    Mode,
    Opcode,
    Quantize,
    Source,
    Status,
    pack,
    unpack,
)

__all__ = ["DescriptorError", "assemble", "decode", "disassemble", "encode"]

#: Fields whose values have names.
ENUMS: dict[str, type[IntEnum]] = {
    "buffer": Buffer, "layout": Layout, "dataflow": Dataflow, "edge": Edge, "opcode": Opcode,
    "source": Source, "mode": Mode, "quantize": Quantize, "limit": Limit, "status": Status,
    "action": Action,
}  # fmt: skip
#: Fields written in hexadecimal.
HEX = ("address", "in_address", "out_address", "imm", "word0")


class DescriptorError(ValueError):
    """Not a descriptor, or text that does not describe one; one line."""


def encode(kind: Kind, fields: Mapping[str, int] | None = None) -> bytes:
    """The 64 bytes of a descriptor; fields not named are 0.

    Raises
    ------
    DescriptorError
        On an unknown kind or field, or a value that does not fit its field. Values that fit but
        break the rules of docs/system.md are encoded: to refuse them is the accelerator's job.
    """
    try:
        kind = Kind(kind)
        values = {"kind": int(kind), **(fields or {})}
        if values["kind"] != kind:
            raise ValueError(f"kind = {values['kind']}: must be {int(kind)} in a {kind.name}")
        word = pack(DESCRIPTORS[kind], values)
    except ValueError as error:
        raise DescriptorError(str(error)) from None
    return word.to_bytes(DESCRIPTOR_BYTES, "little")


def decode(data: bytes) -> tuple[Kind, dict[str, int]]:
    """Kind and all fields but `kind` of the 64 bytes of a descriptor.

    Raises
    ------
    DescriptorError
        If these are not 64 bytes, the kind is unknown, or a bit beyond the last field is set.
    """
    if len(data) != DESCRIPTOR_BYTES:
        raise DescriptorError(f"{len(data)} bytes: a descriptor has {DESCRIPTOR_BYTES}")
    word = int.from_bytes(data, "little")
    number = unpack(DESCRIPTORS[Kind.CONTROL][:1], word)["kind"]
    if number not in tuple(Kind):
        raise DescriptorError(f"kind = {number}: must be {', '.join(k.name for k in Kind)}")
    kind = Kind(number)
    used = sum(field.width for field in DESCRIPTORS[kind])
    if word >> used:
        raise DescriptorError(f"{kind.name}: bits from {used} on must be 0")
    fields = unpack(DESCRIPTORS[kind], word)
    del fields["kind"]
    return kind, fields


def disassemble(program: bytes) -> str:
    """A program as text, one line per descriptor; `assemble` gives the same bytes back.

    Raises
    ------
    DescriptorError
        If the program is not a whole number of descriptors.
    """
    if len(program) % DESCRIPTOR_BYTES:
        raise DescriptorError(
            f"{len(program)} bytes: a program is a multiple of {DESCRIPTOR_BYTES}"
        )
    lines = []
    for start in range(0, len(program), DESCRIPTOR_BYTES):
        data = program[start : start + DESCRIPTOR_BYTES]
        lines.append(f"{start // DESCRIPTOR_BYTES}: {_line(data)}\n")
    return "".join(lines)


def _line(data: bytes) -> str:
    try:
        kind, fields = decode(data)
    except DescriptorError:
        return f"DATA {data.hex()}"
    words = [kind.name]
    for field in DESCRIPTORS[kind][1:]:
        value = fields[field.name]
        if value:
            words.append(_shown(field, value))
    return " ".join(words)


def _shown(field: Field, value: int) -> str:
    names = ENUMS.get(field.name)
    if names is not None:
        return f"{field.name}={names(value).name if value in tuple(names) else value}"
    if field.width == 1:
        return field.name
    return f"{field.name}={value:#x}" if field.name in HEX else f"{field.name}={value}"


def assemble(text: str) -> bytes:
    """The program that the text describes; the form is that of `disassemble`.

    Fields may come in any order, numbers as Python writes them, a one-bit field as its name alone
    or with `=0` or `=1`; the number of the descriptor may be left out.

    Raises
    ------
    DescriptorError
        The message names the line, and where there is one the field, its value and the rule.
    """
    program = bytearray()
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"^\s*\d+:", "", line.split("#", 1)[0]).split()
        if words:
            try:
                program += _assembled(words[0], words[1:])
            except DescriptorError as error:
                raise DescriptorError(f"line {number}: {error}") from None
    return bytes(program)


def _assembled(name: str, words: list[str]) -> bytes:
    if name == "DATA":
        text = "".join(words)
        if not re.fullmatch(f"[0-9a-fA-F]{{{2 * DESCRIPTOR_BYTES}}}", text):
            raise DescriptorError(f"DATA: must be {2 * DESCRIPTOR_BYTES} hexadecimal digits")
        return bytes.fromhex(text)
    if name not in Kind.__members__:
        raise DescriptorError(f"{name}: must be {', '.join(Kind.__members__)} or DATA")
    kind = Kind[name]
    table = {field.name: field for field in DESCRIPTORS[kind][1:]}
    fields: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in table:
            raise DescriptorError(f"{key}: no field of {name}")
        if key in fields:
            raise DescriptorError(f"{key}: given twice")
        fields[key] = _value(table[key], value if equals else None)
    return encode(kind, fields)


def _value(field: Field, text: str | None) -> int:
    """The number that the text of a field's value means; None is a name alone."""
    names = ENUMS.get(field.name)
    most = (1 << field.width) - 1
    if text is None:
        if field.width > 1 or names is not None:
            raise DescriptorError(f"{field.name}: needs a value")
        return 1
    if names is not None and text in names.__members__:
        return int(names[text])
    known = "" if names is None else f"{', '.join(names.__members__)} or "
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise DescriptorError(f"{field.name} = {text}: must be {known}0 to {most}")
    return value
