"""The C driver: compiled as bare-metal C99, then run against a model of the registers."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from systolora.config import PRESETS, AcceleratorConfig
from systolora.contract import (
    COUNTERS,
    DEVICE_ID,
    REGISTER_VERSION,
    REGISTERS,
    Fault,
    existing_bits,
    pack,
    register_constants,
    unpack,
)
from systolora.render import render_header

SW = Path(__file__).parent.parent / "sw"
OK, E_DEVICE, E_RANGE, E_BUSY, E_IDLE, E_TIMEOUT, E_FAULT = 0, -1, -2, -3, -4, -5, -6

Read = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
Write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
u32, u64 = ctypes.c_uint32, ctypes.c_uint64


class Device(ctypes.Structure):
    _fields_ = [("read32", Read), ("write32", Write), ("context", ctypes.c_void_p)]


class Window(ctypes.Structure):
    _fields_ = [("base", u64), ("size", u64)]


class Run(ctypes.Structure):
    _fields_ = [
        ("program", u64),
        *((name, u32) for name in ("length", "runs", "word_base", "step")),
        ("read", Window),
        ("write", Window),
    ]


INFO = (
    *("version_major", "version_minor", "rows", "cols", "segments", "int16"),
    *("fused_quantize", "acc_depth"),
    *("act_bytes", "wgt_bytes", "bus_bits", "address_bits", "outstanding", "channels", "digest"),
)


class Info(ctypes.Structure):
    _fields_ = [(name, u32) for name in INFO]


class Progress(ctypes.Structure):
    _fields_ = [(name, u32) for name in ("runs_left", "word_base", "step")]


class Error(ctypes.Structure):
    _fields_ = [(name, u32) for name in ("code", "index")]


class Counters(ctypes.Structure):
    _fields_ = [(name.lower(), u64) for name in COUNTERS]


class Registers:
    """The registers as docs/contract.md has them; a refused access fails the test."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.values = {r.name: r.reset for r in REGISTERS.values()} | register_constants(config)
        self.by_offset = {r.offset: r for r in REGISTERS.values()}
        self.counters = {name: (n + 1) << 31 | n for n, name in enumerate(COUNTERS)}
        self.high: int | None = None
        self.order: list[str] = []
        self.reads = 0
        self.ends_after: tuple[int, Fault, int] | None = None  # reads of STATUS, fault, index
        self.refused: list[str] = []

    def status(self, **fields: int) -> None:
        self.values["STATUS"] = pack(REGISTERS["STATUS"].fields, fields)

    @property
    def busy(self) -> bool:
        return bool(self.values["STATUS"] & 1)

    def read(self, context: int | None, offset: int) -> int:
        register = self.by_offset[offset]
        self.reads += 1
        if register.quantity in self.counters:
            value = self.counters[register.quantity]
            self.counters[register.quantity] += 1 << 32  # it runs on
            if register.shift:
                assert self.high is not None
                value, self.high = self.high, None
            else:
                self.high = value >> 32
            return value & 0xFFFFFFFF
        if register.name == "STATUS" and self.busy and self.ends_after is not None:
            left, fault, index = self.ends_after
            self.ends_after = (left - 1, fault, index)
            if left == 1:
                self.status(error=1) if fault else self.status(done=1)
                self.values |= {"ERROR": fault, "ERROR_INDEX": index}
                self.values["IRQ_STATUS"] |= 2 if fault else 1
        return self.values[register.name]

    def write(self, context: int | None, offset: int, value: int) -> None:
        register = self.by_offset[offset]
        self.order.append(register.name)
        refused = register.access == "ro" or (register.locked and self.busy)
        if register.access == "rw":
            refused |= bool(value & ~existing_bits(register, self.config))
        if register.name == "CONTROL":
            refused |= bool(value & 1) and self.busy
            if value & 1:
                self.status(busy=1)
            if value & 2 and self.busy:
                self.ends_after = (1, Fault.ABORTED, 7)
        if refused:
            self.refused.append(register.name)
        elif register.access == "w1c":
            self.values[register.name] &= ~value
        elif register.access == "rw":
            self.values[register.name] = value


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("driver")
    (directory / "systolora_regs.h").write_text(render_header(), encoding="utf-8")
    flags = ["-I", str(directory), "-I", str(SW), "-Wall", "-Wextra", "-Werror", "-pedantic"]
    source = str(SW / "systolora.c")
    freestanding = ["gcc", "-std=c99", "-ffreestanding", "-Wconversion", *flags]
    subprocess.run([*freestanding, "-c", source, "-o", str(directory / "x.o")], check=True)
    # It needs nothing from a library
    names = subprocess.run(
        ["nm", "--undefined-only", str(directory / "x.o")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert names.stdout.replace("_GLOBAL_OFFSET_TABLE_", "").split() in ([], ["U"])
    user = directory / "user.cpp"
    user.write_text('#include "systolora.h"\nint f(systolora*);\n', encoding="utf-8")
    subprocess.run(["g++", *flags, "-fsyntax-only", str(user)], check=True)
    shared = directory / "libsystolora.so"
    subprocess.run(
        ["gcc", "-std=c99", "-shared", "-fPIC", *flags, source, "-o", str(shared)], check=True
    )
    return ctypes.CDLL(str(shared))


@pytest.fixture(params=[40, 64])
def registers(request) -> Registers:
    return Registers(AcceleratorConfig(address_bits=request.param))


@pytest.fixture
def call(library, registers) -> Callable[..., int]:
    """Calls a function of the driver, on a device that was found."""
    device = Device()
    read, write = Read(registers.read), Write(registers.write)

    def call(name: str, *arguments: object) -> int:
        function = getattr(library, f"systolora_{name}")
        if name == "init":
            return function(ctypes.byref(device), read, write, None)
        result = function(ctypes.byref(device), *arguments)
        assert registers.refused == []
        return result

    assert call("init") == OK
    return call


def run(**changes: object) -> Run:
    values: dict[str, object] = {
        "program": 0x12_3456_7840,
        "length": 99,
        "runs": 3,
        "word_base": 0xCAFEBABE,
        "step": 17,
        "read": Window(0x10_0000_0000, 0xF0_0000_0000),
        "write": Window(0x80_0000_1000, 0x2345),
    }
    return Run(**(values | changes))


def test_init(call, registers):
    registers.values["ID"] = DEVICE_ID ^ 1
    assert call("init") == E_DEVICE
    registers.values["ID"] = DEVICE_ID
    registers.values["VERSION"] += 1  # minor: compatible
    assert call("init") == OK
    registers.values["VERSION"] += 1 << 16
    assert call("init") == E_DEVICE


@pytest.mark.parametrize(
    "config", [*PRESETS.values(), AcceleratorConfig(channels=4)], ids=[*PRESETS, "channels"]
)
def test_info(call, registers, config):
    registers.values |= register_constants(config)
    info = Info()
    call("info", ctypes.byref(info))
    told = {name: getattr(info, name) for name in INFO}
    assert (told.pop("version_major"), told.pop("version_minor")) == REGISTER_VERSION
    assert f"{told.pop('digest'):08x}" == config.digest[:8]
    assert told == {name: int(value) for name, value in config.to_dict().items()}


def test_submit(call, registers):
    assert call("submit", ctypes.byref(run())) == OK
    values = registers.values

    def pair(name: str) -> int:
        return values[f"{name}_LO"] | values[f"{name}_HI"] << 32

    assert pair("PROGRAM_ADDRESS") == 0x12_3456_7840
    assert [values[n] for n in ("PROGRAM_LENGTH", "RUNS", "WORD_BASE", "STEP")] == [
        99, 3, 0xCAFEBABE, 17,
    ]  # fmt: skip
    assert pair("READ_BASE") == 0x10_0000_0000 and pair("READ_LIMIT") == 1 << 40
    assert pair("WRITE_BASE") == 0x80_0000_1000 and pair("WRITE_LIMIT") == 0x80_0000_3345
    assert values["LIMIT_TOP"] == 0
    # The start comes last, after pending interrupts are gone
    assert registers.order[-2:] == ["IRQ_STATUS", "CONTROL"]
    before = dict(values)
    assert call("submit", ctypes.byref(run(length=5))) == E_BUSY
    assert registers.values == before


def test_range(call, registers):
    """Addresses beyond the device's are refused before anything is written."""
    bits = registers.config.address_bits
    end, all_ones = 1 << bits, (1 << 64) - 1
    wrong = [Window(end - 4096, 4097), Window(4096, all_ones), Window(all_ones, 2)]
    if bits < 64:
        wrong += [Window(end, 0), Window(0, end + 1)]
        assert call("submit", ctypes.byref(run(program=end))) == E_RANGE
    for name in ("read", "write"):
        for window in wrong:
            assert call("submit", ctypes.byref(run(**{name: window}))) == E_RANGE
    assert registers.order == []
    for name, bit in (("read", 1), ("write", 2)):
        # A window that ends with the address space
        last = Window(end - 4096, 4096)
        assert call("submit", ctypes.byref(run(**{name: last}))) == OK
        quantity = f"{name.upper()}_LIMIT"
        values = registers.values
        assert values["LIMIT_TOP"] == (bit if bits == 64 else 0)
        assert values[f"{quantity}_LO"] == 0
        assert values[f"{quantity}_HI"] == (end >> 32) & 0xFFFFFFFF
        registers.status()
    assert call("submit", ctypes.byref(run(write=Window(0, 0)))) == OK


def test_wait(call, registers):
    assert call("wait", 10) == E_IDLE
    for polls in (0, 1, 5):
        call("submit", ctypes.byref(run()))
        registers.reads = 0
        assert call("wait", polls) == E_TIMEOUT
        assert registers.reads == max(1, polls)
        registers.ends_after = (3, Fault.NONE, 0)
        assert call("wait", 3) == OK
        assert call("wait", 0) == OK
    call("submit", ctypes.byref(run()))
    registers.ends_after = (1, Fault.WINDOW, 0x2FACE)
    assert call("wait", 1) == E_FAULT
    error = Error()
    call("error", ctypes.byref(error))
    assert (error.code, error.index) == (Fault.WINDOW, 0x2FACE)
    call("submit", ctypes.byref(run()))
    call("abort")
    assert call("wait", 5) == E_FAULT
    call("error", ctypes.byref(error))
    assert error.code == Fault.ABORTED


def test_the_rest(call, registers):
    progress, counters = Progress(), Counters()
    registers.values |= {"RUNS_LEFT": 4, "WORD_BASE": 0xFFFFFFFF, "STEP": 6, "STICKY": 0b10110}
    call("progress", ctypes.byref(progress))
    assert (progress.runs_left, progress.word_base, progress.step) == (4, 0xFFFFFFFF, 6)
    expected = dict(registers.counters)
    call("counters", ctypes.byref(counters))
    for name, value in expected.items():
        assert getattr(counters, name.lower()) == value, name
    assert call("sticky", 0) == 0b10110 and registers.values["STICKY"] == 0b10110
    assert call("sticky", 0b00010) == 0b10110 and registers.values["STICKY"] == 0b10100
    assert unpack(REGISTERS["STICKY"].fields, 0b10100)["clip_delayed"] == 1
    call("irq_enable", 0b11)
    assert registers.values["IRQ_MASK"] == 0b11
    registers.values["IRQ_STATUS"] = 0b10
    assert call("irq_take") == 0b10 and registers.values["IRQ_STATUS"] == 0
