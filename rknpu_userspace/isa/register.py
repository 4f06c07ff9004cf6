# SPDX-License-Identifier: MIT
"""What a register is: its offset in the core, its block, its bit fields, and how values are put together.

A field is written as ``NAME[high:low]`` with an optional letter: ``s`` the field is a two's complement number,
``b`` its value is given in bytes and stored without the low bits (an address or stride with the low four bits zero).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_FIELD = re.compile(r"([A-Z0-9_]+)\[(\d+)(?::(\d+))?\]([sb]?)$")


class Block(Enum):
    """A hardware block: base offset, target id in a command word, bit in the operation-enable mask.

    Evidence: RK3588 TRM part 1 chapter 36.4.1 (address map) and 0xF008 (enable mask); bit 48 of a target is always set.
    """

    PC = (0x0000, 0x0101, None)
    CNA = (0x1000, 0x0201, 0)
    CORE = (0x3000, 0x0801, 2)
    DPU = (0x4000, 0x1001, 3)
    DPU_RDMA = (0x5000, 0x2001, 4)
    PPU = (0x6000, 0x4001, 5)
    PPU_RDMA = (0x7000, 0x8001, 6)

    @property
    def base(self) -> int:
        """Offset of the block's first register in the core's register window, bytes."""
        return int(self.value[0])

    @property
    def target(self) -> int:
        """Bits 63:48 of a command word that writes a register of this block."""
        return int(self.value[1])

    @property
    def enable_bit(self) -> int | None:
        """Bit of this block in the operation-enable mask; None for the PC."""
        bit: int | None = self.value[2]
        return bit


@dataclass(frozen=True)
class Field:
    """Bits ``high`` down to ``low`` of a register."""

    name: str
    high: int
    low: int
    signed: bool = False
    in_bytes: bool = False

    @property
    def width(self) -> int:
        """Number of bits."""
        return self.high - self.low + 1

    @property
    def mask(self) -> int:
        """The field's bits in the register."""
        return ((1 << self.width) - 1) << self.low

    def encode(self, value: int) -> int:
        """Put ``value`` into place; ValueError if it does not fit."""
        if self.in_bytes:
            if value & ~self.mask:
                raise ValueError(
                    f"{self.name}: {value:#x} must be a multiple of {1 << self.low} below 2^{self.high + 1}"
                )
            return value
        least = -(1 << (self.width - 1)) if self.signed else 0
        if not least <= value < (1 << self.width):
            raise ValueError(
                f"{self.name}: {value} does not fit in {self.width} bits ({least}..{(1 << self.width) - 1})"
            )
        return (value << self.low) & self.mask

    def decode(self, word: int) -> int:
        """The field's value in a register word, sign-extended or in bytes where the field says so."""
        if self.in_bytes:
            return word & self.mask
        value = (word & self.mask) >> self.low
        return value - (1 << self.width) if self.signed and value >> (self.width - 1) else value


@dataclass(frozen=True)
class Register:
    """A 32-bit register of the NPU core."""

    offset: int
    name: str
    block: Block
    fields: tuple[Field, ...]
    meaning: str

    def field(self, name: str) -> Field:
        """The field of that name; KeyError names the register when there is none."""
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(f"{self.name} has no field {name}")

    def encode(self, **values: int) -> int:
        """The register word with the given fields set and all others zero."""
        word = 0
        for name, value in values.items():
            word |= self.field(name).encode(value)
        return word

    def decode(self, word: int) -> dict[str, int]:
        """Field values of a register word."""
        return {field.name: field.decode(word) for field in self.fields}

    @property
    def known_mask(self) -> int:
        """Bits that belong to a named field."""
        mask = 0
        for field in self.fields:
            mask |= field.mask
        return mask


def block_of(offset: int) -> Block:
    """The block that owns a register offset; KeyError for a hole of the map."""
    for block in Block:
        if block.base == offset & 0xF000:
            return block
    raise KeyError(f"no block at {offset:#06x}")


def register(offset: int, name: str, fields: str, meaning: str) -> Register:
    """One row of the register table; ``fields`` is a blank-separated list in the notation of this module."""
    parsed = []
    for text in fields.split():
        match = _FIELD.match(text)
        if match is None:
            raise ValueError(f"{name}: {text!r} is not a field")
        field, high, low, kind = match.groups()
        parsed.append(Field(field, int(high), int(low or high), signed=kind == "s", in_bytes=kind == "b"))
    return Register(offset, name, block_of(offset), tuple(parsed), meaning)
