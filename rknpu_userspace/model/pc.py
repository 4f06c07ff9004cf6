# SPDX-License-Identifier: MIT
"""PC: fetch of command words, their decoding into register accesses, and the chain of tasks.

Evidence: TRM ch. 36 (PC_REGISTER_AMOUNTS, op-enable words, interrupt bits); Mesa rkt_regcmd.c; RN
encodings/regcmd-task-model.md (TASK_NUMBER is what stops a chain).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rknpu_userspace.isa import BY_OFFSET, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Block

from .memory import Bytes
from .registers import BLOCK_INDEX, BLOCKS, S_POINTER, unknown_bits

WRITE, POINTER, LINK_BASE, LINK_AMOUNT, SYNC, ENABLE, UNKNOWN, LUT_CONFIG, LUT_DATA, FILLER = range(10)

_PC_BASE_ADDRESS = 0x0010
_PC_REGISTER_AMOUNTS = 0x0014
_AMOUNT_MASK = 0xFFFF
_TARGET_PC = 0x0101
_BLOCK_BITS = 0xFF00
_ONE_HOT = {block.target & _BLOCK_BITS: block for block in (Block.PC, *BLOCKS)}
_ENABLE_BITS = {block.enable_bit: block for block in BLOCKS}
_ENABLE_RESERVED = 1 << 1
_KEPT_WORDS = 1 << 14
LUT_PORT = {0x4100: LUT_CONFIG, 0x4104: LUT_DATA}
"""The look-up table's access port: not part of a register group."""
MAX_WORDS = 2 << 16
"""What PC_REGISTER_AMOUNTS can express."""

TASK_NUMBER_MASK = 0xFFF
IRQ_BIT = {Block.CNA: (0, 2, 4), Block.CORE: (6,), Block.DPU: (8,), Block.PPU: (10,)}
"""Interrupt bits of group 0 per block; group 1 is the next higher bit. The CNA has three units."""
IRQ_DMA_READ_ERROR = 1 << 12
IRQ_DMA_WRITE_ERROR = 1 << 13
TASK_STATUS_DONE = 0xF000


class Access(NamedTuple):
    """One decoded command word; ``block`` indexes BLOCKS, ``register`` the register's index in its group."""

    kind: int
    block: int
    register: int
    value: int
    text: str


def _unknown(word: int, why: str) -> Access:
    return Access(UNKNOWN, 0, 0, 0, f"command word {word:#018x}: {why}")


def _decode_word(word: int) -> Access:
    target, value, offset = word >> 48, (word >> 16) & 0xFFFFFFFF, word & 0xFFFF
    if word == 0 or target == 0x0001:
        return Access(FILLER, 0, 0, 0, "")
    if target == TARGET_SYNC:
        return Access(SYNC, 0, 0, 0, "")
    if target == TARGET_ENABLE:
        known = _ENABLE_RESERVED | sum(1 << bit for bit in _ENABLE_BITS if bit is not None)
        if offset != OPERATION_ENABLE or value & ~known:
            return _unknown(word, f"operation enable with offset {offset:#x} and mask {value:#x}")
        return Access(ENABLE, 0, 0, value & ~_ENABLE_RESERVED, "")
    block = _ONE_HOT.get(target & _BLOCK_BITS)
    if block is None or target & 0xFE:
        return _unknown(word, f"unknown target {target:#06x}")
    register = BY_OFFSET.get(offset)
    if register is None or register.block is not block:
        return _unknown(word, f"no register at {offset:#06x} of {block.name}")
    if block is Block.PC:
        if offset == _PC_BASE_ADDRESS:
            return Access(LINK_BASE, 0, 0, value & ~0xF, "")
        if offset == _PC_REGISTER_AMOUNTS:
            return Access(LINK_AMOUNT, 0, 0, value & _AMOUNT_MASK, "")
        return _unknown(word, f"{register.name} in a command stream")
    bits = unknown_bits(register, value)
    if bits:
        return _unknown(word, f"{register.name} = {value:#x} has undocumented bits {bits:#x}")
    local = offset - block.base
    if local == OPERATION_ENABLE or local == 0:
        return _unknown(word, f"{register.name} in a command stream")
    if offset in LUT_PORT:
        return Access(LUT_PORT[offset], 0, 0, value, "")
    return Access(POINTER if local == S_POINTER else WRITE, BLOCK_INDEX[block], local // 4, value, "")


class Decoder:
    """Decodes command streams. Most words of a task occur in the task before, so decoded words are kept."""

    def __init__(self) -> None:
        self._known: dict[int, Access] = {}

    def decode(self, raw: Bytes) -> list[Access]:
        """The accesses of a stream of 64-bit words."""
        words = np.frombuffer(raw.tobytes(), "<u8").tolist()
        known = self._known
        try:
            return [known[word] for word in words]
        except KeyError:
            if len(known) > _KEPT_WORDS:
                known.clear()
            for word in words:
                if word not in known:
                    known[word] = _decode_word(word)
            return [known[word] for word in words]


def enabled_blocks(mask: int) -> tuple[Block, ...]:
    """The blocks of an operation-enable mask."""
    return tuple(block for block in BLOCKS if block.enable_bit is not None and mask >> block.enable_bit & 1)
