# SPDX-License-Identifier: MIT
"""Command words: 64 bits, little-endian: target [63:48], value [47:16], register offset [15:0].

Evidence: RK3588 TRM part 1 chapter 36 (PC_REGISTER_AMOUNTS); Mesa src/gallium/drivers/rocket/rkt_regcmd.c (emit).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .register import Block, Register

TARGET_ENABLE = 0x0081
"""Target of the word whose value is the mask of blocks to enable."""
TARGET_SYNC = 0x0041
"""Target of the word that has to precede the enable word."""
OPERATION_ENABLE = 0x0008
"""Register offset of the enable word."""
NOP = 0
"""A word that does nothing."""


class Word(NamedTuple):
    """A decoded command word."""

    target: int
    offset: int
    value: int


def pack(target: int, offset: int, value: int) -> int:
    """One command word; ``value`` is taken modulo 2^32."""
    return (target & 0xFFFF) << 48 | (value & 0xFFFFFFFF) << 16 | (offset & 0xFFFF)


def write(register: Register, value: int) -> int:
    """The command word that writes ``value`` to ``register``."""
    return pack(register.block.target, register.offset, value)


def enable_mask(*blocks: Block) -> int:
    """The operation-enable mask of the given blocks."""
    mask = 0
    for block in blocks:
        if block.enable_bit is None:
            raise ValueError(f"{block.name} has no enable bit")
        mask |= 1 << block.enable_bit
    return mask


def unpack(words: npt.NDArray[np.uint64]) -> Iterator[Word]:
    """Decode an array of command words in order, fillers included."""
    for word in words.tolist():
        yield Word(word >> 48, word & 0xFFFF, (word >> 16) & 0xFFFFFFFF)
