"""The registers as a configuration has them: which bits of each field exist, and what they read."""

from collections.abc import Iterator
from dataclasses import dataclass

from .config import AcceleratorConfig
from .contract import DocumentedEnum, Register, existing_bits, register_constants

__all__ = ["MappedField", "mapped_fields"]


@dataclass(frozen=True)
class MappedField:
    """A field of a register in one configuration.

    access : ro, rw, w1c or wo; of a constant, and of a field of which no bit exists: ro
    reset : what it reads after a reset
    fixed : hardware never changes it: a constant of the configuration, or bits that do not exist
    """

    name: str
    doc: str
    position: int
    width: int
    access: str
    reset: int
    fixed: bool
    values: type[DocumentedEnum] | None


def mapped_fields(register: Register, config: AcceleratorConfig) -> Iterator[MappedField]:
    """The fields of a register: the part that exists, or a read-only 0 of the whole width."""
    exists, constant = existing_bits(register, config), register_constants(config)
    position = 0
    for field in register.fields:
        mask = (1 << field.width) - 1
        width = ((exists >> position) & mask).bit_length()
        fixed = not width or register.name in constant
        value = constant.get(register.name, 0) >> position & mask
        yield MappedField(
            name=field.name,
            doc=field.doc,
            position=position,
            width=width or field.width,
            access="ro" if fixed else field.access or register.access,
            reset=value if register.name in constant else field.reset,
            fixed=fixed,
            values=field.values,
        )
        position += field.width
