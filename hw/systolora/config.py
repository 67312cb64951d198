"""The one configuration object: every parameter of a generated accelerator, checked.

Imports neither amaranth nor numpy, so that the generator and the models share it.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

__all__ = ["ACC_BANKS", "PRESETS", "AcceleratorConfig", "ConfigError", "from_toml", "preset"]

MIN_SIDE, MAX_SIDE = 4, 256
MAX_ACC_DEPTH = 1 << 16
#: Banks of the accumulator buffer: the uppermost rows' address bits.
ACC_BANKS = 4
SEGMENTS = (1, 2, 4, 8)
BUS_BITS = (64, 128, 256, 512, 1024)
CHANNELS = (1, 2, 4)
#: Width of a beat of all channels, at most.
MAX_BEAT_BITS = 2048
MAX_BUFFER_BYTES = 1 << 26
#: Fields that are true or false.
_FLAGS = ("int16", "fused_quantize")
#: Fields that the first configurations did not have, and what those are in them.
LATER = {"fused_quantize": False, "channels": 1}


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field, its value and the rule."""


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Parameters of one accelerator.

    Parameters
    ----------
    rows, cols : int
        Rows R and columns C of the array: powers of two, 4 to 256, not necessarily equal.
    segments : int
        Load segments S in {1, 2, 4, 8}, at most min(R, C): a stationary tile enters the array at S
        places and loads in R/S cycles (from the top) or C/S cycles (from the left).
    int16 : bool
        int16 operands by byte planes: 9-bit multiplier operands, 48-bit accumulators.
    acc_depth : int
        Rows of the accumulator buffer (each of C accumulators), split into four banks of a quarter
        of the depth: a power of two, at least 4 * rows (a bank holds an output-stationary tile),
        at most 65536.
    bus_bits : int
        Data width of an AXI4 master: 64, 128, 256, 512 or 1024, the most that AXI4 has.
    channels : int
        AXI4 masters, 1, 2 or 4, together at most 2048 bits wide: a beat of memory is a word of
        each, channel 0's first.
    address_bits : int
        Width of an address, 40 to 64.
    act_bytes, wgt_bytes : int
        Sizes of the activation and the stationary buffer: powers of two, at most 64 MiB, at least
        16 entries (activation) and two tiles (stationary).
    outstanding : int
        Bursts that each memory engine may have under way, 2 to 256; to keep the bus busy it should
        exceed the memory's latency in cycles, since short rows are bursts of one beat.
    fused_quantize : bool
        A second rescale in each lane of the post-processor: a row operation that joins a term may
        quantize its sum in the same pass.

    Raises
    ------
    ConfigError
        If a field breaks its rule.
    """

    rows: int = 16
    cols: int = 16
    segments: int = 4
    int16: bool = True
    acc_depth: int = 512
    bus_bits: int = 512
    channels: int = 1
    address_bits: int = 40
    act_bytes: int = 1 << 18
    wgt_bytes: int = 1 << 17
    outstanding: int = 64
    fused_quantize: bool = False

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name in _FLAGS:
                if not isinstance(value, bool):
                    raise ConfigError(f"{name} = {value!r}: must be true or false")
            elif not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"{name} = {value!r}: must be an integer")
        for name in ("rows", "cols"):
            value = getattr(self, name)
            if not (MIN_SIDE <= value <= MAX_SIDE and _power_of_two(value)):
                raise ConfigError(
                    f"{name} = {value}: must be a power of two from {MIN_SIDE} to {MAX_SIDE}"
                )
        if self.segments not in SEGMENTS:
            raise ConfigError(f"segments = {self.segments}: must be one of 1, 2, 4, 8")
        if self.segments > min(self.rows, self.cols):
            raise ConfigError(
                f"segments = {self.segments}: must be at most min(rows, cols) = "
                f"{min(self.rows, self.cols)}"
            )
        least = ACC_BANKS * self.rows
        if not (least <= self.acc_depth <= MAX_ACC_DEPTH and _power_of_two(self.acc_depth)):
            raise ConfigError(
                f"acc_depth = {self.acc_depth}: must be a power of two from {ACC_BANKS} * rows = "
                f"{least} to {MAX_ACC_DEPTH}"
            )

        if self.bus_bits not in BUS_BITS:
            raise ConfigError(
                f"bus_bits = {self.bus_bits}: must be one of {', '.join(map(str, BUS_BITS))}"
            )
        if self.channels not in CHANNELS:
            raise ConfigError(
                f"channels = {self.channels}: must be one of {', '.join(map(str, CHANNELS))}"
            )
        if self.beat_bits > MAX_BEAT_BITS:
            raise ConfigError(
                f"channels = {self.channels}: channels * bus_bits = {self.beat_bits}: must be at "
                f"most {MAX_BEAT_BITS}"
            )
        if not 40 <= self.address_bits <= 64:
            raise ConfigError(f"address_bits = {self.address_bits}: must be from 40 to 64")
        if not 2 <= self.outstanding <= 256:
            raise ConfigError(f"outstanding = {self.outstanding}: must be from 2 to 256")
        for name, least in (
            ("act_bytes", 16 * self.act_entry_bytes),
            ("wgt_bytes", 2 * self.lanes * self.wgt_entry_bytes),
        ):
            value = getattr(self, name)
            if not (least <= value <= MAX_BUFFER_BYTES and _power_of_two(value)):
                raise ConfigError(
                    f"{name} = {value}: must be a power of two from {least} to {MAX_BUFFER_BYTES}"
                )

    # Derived widths: their only home.
    @property
    def operand_bits(self) -> int:
        """Width of a signed multiplier operand: 9 holds a signed and an unsigned byte plane."""
        return 9 if self.int16 else 8

    @property
    def psum_bits(self) -> int:
        """Width of a partial sum inside the array (numerics.md section 8)."""
        return 32

    @property
    def acc_bits(self) -> int:
        """Width of one accumulator in the buffer (numerics.md section 1)."""
        return 48 if self.int16 else 32

    @property
    def result_bits(self) -> int:
        """Width of one quantized result."""
        return 16 if self.int16 else 8

    @property
    def lanes(self) -> int:
        """Bytes of one line on the `wgt` stream: a row (top edge) or a column (left edge)."""
        return max(self.rows, self.cols)

    @property
    def top_load(self) -> int:
        """Cycles a stationary tile takes to load from the top, R/S."""
        return self.rows // self.segments

    @property
    def left_load(self) -> int:
        """Cycles a stationary tile takes to load from the left, C/S."""
        return self.cols // self.segments

    @property
    def bank_depth(self) -> int:
        """Rows of one of the four accumulator banks."""
        return self.acc_depth // ACC_BANKS

    @property
    def bus_bytes(self) -> int:
        """Bytes of one beat of one AXI4 master."""
        return self.bus_bits // 8

    @property
    def beat_bits(self) -> int:
        """Bits of one beat of memory: a word of every channel."""
        return self.channels * self.bus_bits

    @property
    def beat_bytes(self) -> int:
        """Bytes of one beat of memory, B."""
        return self.beat_bits // 8

    @property
    def stream_beats(self) -> int:
        """Beats that the reader of the POSTs' rows holds ahead: sums of a bank, at most 1024."""
        row = -(-self.cols * 4 // self.beat_bytes)
        return min(self.bank_depth * row, 1024)

    @property
    def _planes(self) -> int:
        return 2 if self.int16 else 1

    @property
    def act_entry_bytes(self) -> int:
        """Bytes of one entry of the activation buffer: a beat, or a row of R operands if larger."""
        return max(self.beat_bytes, self.rows * self._planes)

    @property
    def wgt_entry_bytes(self) -> int:
        """Bytes of one entry of a bank of the stationary buffer: a beat, or a line if larger."""
        return max(self.beat_bytes, self.lanes * self._planes)

    @property
    def act_entries(self) -> int:
        """Entries of the activation buffer."""
        return self.act_bytes // self.act_entry_bytes

    @property
    def wgt_entries(self) -> int:
        """Entries of one of the S banks of the stationary buffer."""
        return self.wgt_bytes // self.wgt_entry_bytes // self.segments

    @property
    def act_unit(self) -> int:
        """Bytes that `act_base` and its steps count: a row of R bytes."""
        return self.rows

    @property
    def wgt_unit(self) -> int:
        """Bytes that `wgt_base` and its steps count: min(R, C)."""
        return min(self.rows, self.cols)

    def to_dict(self) -> dict[str, int | bool]:
        return asdict(self)

    @property
    def digest(self) -> str:
        """First 12 hex digits of the SHA-256 of the canonical JSON of the fields.

        Later fields are left out where they have their first values: what was generated, compiled
        or measured before a field existed is of the same configuration.
        """
        named = self.to_dict()
        for name, first in LATER.items():
            if named[name] == first:
                del named[name]
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def with_fields(self, **overrides: int | bool | None) -> "AcceleratorConfig":
        """This configuration with the fields that are not None replaced (and checked again)."""
        return replace(self, **{k: v for k, v in overrides.items() if v is not None})


PRESETS: dict[str, AcceleratorConfig] = {
    "tiny": AcceleratorConfig(
        rows=4,
        cols=4,
        segments=1,
        int16=True,
        acc_depth=128,
        bus_bits=64,
        act_bytes=1 << 13,
        wgt_bytes=1 << 12,
        outstanding=8,
    ),
    "ecp5": AcceleratorConfig(
        rows=8,
        cols=8,
        segments=2,
        int16=True,
        acc_depth=256,
        bus_bits=128,
        act_bytes=1 << 15,
        wgt_bytes=1 << 14,
        outstanding=16,
    ),
    "default": AcceleratorConfig(rows=16, cols=16, segments=4, int16=True, acc_depth=512),
    "paper": AcceleratorConfig(
        rows=64,
        cols=64,
        segments=4,
        int16=True,
        acc_depth=1024,
        act_bytes=1 << 19,
        wgt_bytes=1 << 19,
        fused_quantize=True,
    ),
}


def preset(name: object) -> AcceleratorConfig:
    """The preset of that name; ConfigError names the known ones."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset = {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError("not valid TOML: not UTF-8 text") from None
    except RecursionError:
        raise ConfigError("not valid TOML: nested too deeply") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(getattr(error, "strerror", None) or str(error)) from None


def from_toml(path: str | Path) -> AcceleratorConfig:
    """Reads a TOML file: the fields at its top level, optionally `preset` as the base.

    Raises
    ------
    ConfigError
        If the file cannot be read or parsed, names an unknown field, or a field breaks its rule;
        the message starts with the file's name.
    """
    known = [f.name for f in fields(AcceleratorConfig)]
    try:
        data = _read_toml(Path(path))
        for name in data:
            if name not in (*known, "preset"):
                raise ConfigError(f"{name}: unknown field; known are preset, {', '.join(known)}")
        base = preset(data.pop("preset", "default"))
        return replace(base, **data)  # type: ignore[arg-type]  # AcceleratorConfig checks types
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
