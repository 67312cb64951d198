"""The codec of descriptors and its text: exact round trips, one-line errors."""

import random

import pytest

from systolora.contract import DESCRIPTOR_BYTES, DESCRIPTORS, Action, Buffer, Kind, Layout, Opcode
from systolora_sim.descriptor import (
    ENUMS,
    HEX,
    DescriptorError,
    assemble,
    decode,
    disassemble,
    encode,
)


def test_tables_fit_and_names_exist():
    names = {field.name for table in DESCRIPTORS.values() for field in table}
    assert set(ENUMS) <= names and set(HEX) <= names
    for kind, table in DESCRIPTORS.items():
        assert sum(field.width for field in table) <= 8 * DESCRIPTOR_BYTES, kind
        assert not any(field.signed for field in table)  # the text has no negative numbers


def test_bytes_by_hand():
    assert encode(Kind.CONTROL, {"action": Action.END}) == bytes([0x14]) + bytes(63)
    data = encode(Kind.LOAD, {"wait_exec": 1, "buffer": Buffer.WGT, "layout": Layout.TOP})
    # kind in bits 0-3, wait_exec 4, wait_store 5, signal_exec 6, buffer 7, layout 8-9
    assert data[:2] == bytes([0x91, 0x02]) and not any(data[2:])


@pytest.mark.parametrize("kind", Kind)
def test_round_trip_of_random_fields(kind):
    rng = random.Random(int(kind))
    for _ in range(50):
        fields = {f.name: rng.getrandbits(f.width) for f in DESCRIPTORS[kind][1:]}
        for name in fields:
            if rng.random() < 0.3:
                fields[name] = 0
        data = encode(kind, fields)
        assert decode(data) == (kind, fields)
        assert assemble(disassemble(data)) == data


def test_round_trip_of_any_bytes():
    rng = random.Random(7)
    program = b"".join(rng.randbytes(DESCRIPTOR_BYTES) for _ in range(40)) + bytes(64)
    text = disassemble(program)
    assert text.count("DATA") >= 30 and assemble(text) == program


def test_text_is_readable():
    program = encode(
        Kind.LOAD,
        {"signal_exec": 1, "buffer": 1, "layout": 1, "rows": 8, "row_bytes": 8, "address": 4096},
    ) + encode(Kind.POST, {"opcode": Opcode.SCALE_SET, "dst": 3, "imm": 0x8000})
    text = disassemble(program)
    assert text == (
        "0: LOAD signal_exec buffer=WGT layout=LEFT rows=8 row_bytes=8 address=0x1000\n"
        "1: POST opcode=SCALE_SET dst=3 imm=0x8000\n"
    )
    assert assemble(text) == program
    loose = """
    # a comment alone
    LOAD rows=0x8 address=4096 row_bytes=8 layout=1 buffer=WGT signal_exec=1 wait_exec=0 # and here
    POST dst=3 opcode=SCALE_SET imm=32768
    """
    assert assemble(loose) == program
    assert disassemble(b"") == "" and assemble("") == b""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nLOOD rows=1", r"^line 2: LOOD: must be LOAD, EXEC, POST, CONTROL or DATA$"),
        ("LOAD rows=65536", r"^line 1: rows = 65536: must be 0 to 65535$"),
        ("LOAD rows=-1", r"^line 1: rows = -1: must be 0 to 65535$"),
        ("LOAD rows=many", r"^line 1: rows = many: must be 0 to 65535$"),
        ("LOAD layout=UP", r"^line 1: layout = UP: must be PLAIN, LEFT, TOP or 0 to 3$"),
        ("LOAD rows", r"^line 1: rows: needs a value$"),
        ("LOAD buffer", r"^line 1: buffer: needs a value$"),
        ("LOAD cols=1", r"^line 1: cols: no field of LOAD$"),
        ("LOAD kind=2", r"^line 1: kind: no field of LOAD$"),
        ("LOAD rows=1 rows=1", r"^line 1: rows: given twice$"),
        ("DATA 00", r"^line 1: DATA: must be 128 hexadecimal digits$"),
    ],
)
def test_errors_of_text(text, message):
    with pytest.raises(DescriptorError, match=message):
        assemble(text)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode(9), r"^9 is not a valid Kind$"),  # type: ignore[arg-type]
        (lambda: encode(Kind.LOAD, {"kind": 2}), r"^kind = 2: must be 1 in a LOAD$"),
        (lambda: encode(Kind.LOAD, {"rows": 1 << 16}), r"^rows = 65536: must fit 16 bits$"),
        (lambda: encode(Kind.LOAD, {"cols": 1}), r"^unknown field 'cols'$"),
        (lambda: decode(bytes(63)), r"^63 bytes: a descriptor has 64$"),
        (lambda: decode(bytes(64)), r"^kind = 0: must be LOAD, EXEC, POST, CONTROL$"),
        (lambda: decode(b"\x04\x01" + bytes(62)), r"^CONTROL: bits from 8 on must be 0$"),
        (lambda: disassemble(bytes(65)), r"^65 bytes: a program is a multiple of 64$"),
    ],
)
def test_errors_of_the_codec(call, message):
    with pytest.raises(DescriptorError, match=message):
        call()
