# SPDX-License-Identifier: MIT
"""Register state of the blocks: two groups each (ping-pong), their pointers, and the decoding of a group into fields.

Evidence: RK3588 TRM part 1 ch. 36.5.1 ("this register and after this are all shadowed for ping-pong operation"), linux
drivers/accel/rocket/rocket_job.c (S_POINTER), and streams of Rockchip's compiler, which send only the difference to
the task two before.
"""

from __future__ import annotations

import numpy as np

from rknpu_userspace.isa import REGISTERS, Block, Register

Fields = dict[str, int]
"""Field values of one register group of one block, by the names of the register table."""

GROUP_SIZE = 0x200 // 4
S_STATUS = 0x0
S_POINTER = 0x4
OPERATION_ENABLE = 0x8
BLOCKS = (Block.CNA, Block.CORE, Block.DPU, Block.DPU_RDMA, Block.PPU, Block.PPU_RDMA)
BLOCK_INDEX = {block: index for index, block in enumerate(BLOCKS)}

_POINTER_PP_EN = 1 << 1
_EXECUTER_PP_EN = 1 << 2
_POINTER_PP_MODE = 1 << 3
_POINTER_PP_CLEAR = 1 << 4
_EXECUTER_PP_CLEAR = 1 << 5
_STORED = _POINTER_PP_EN | _EXECUTER_PP_EN | _POINTER_PP_MODE


class BlockState:
    """One block: two register groups, the writer's pointer, the executer's pointer, groups waiting to run."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.groups = [[0] * GROUP_SIZE, [0] * GROUP_SIZE]
        self.pending = [False, False]
        self.pointer = 0
        self.executer = 0
        self.mode = 0
        self.core_index = 0

    def write_pointer(self, value: int) -> None:
        """S_POINTER: bit 0 counts only while the pointer does not toggle by itself (every task rewrites 0xE)."""
        self.mode = value & _STORED
        self.core_index = value >> 28
        if not value & _POINTER_PP_EN:
            self.pointer = value & 1
        if value & _POINTER_PP_CLEAR:
            self.pointer = 0
        if value & _EXECUTER_PP_CLEAR:
            self.executer = 0

    def read_pointer(self) -> int:
        """S_POINTER as the CPU reads it."""
        return self.mode | self.pointer | self.executer << 16 | self.core_index << 28

    def enable(self) -> None:
        """Operation enable: the group that was written is ready, and the writer moves on."""
        self.pending[self.pointer] = True
        if self.mode & _POINTER_PP_EN and self.mode & _POINTER_PP_MODE:
            self.pointer ^= 1

    def finish(self) -> None:
        """The executer's group is done."""
        self.pending[self.executer] = False
        if self.mode & _EXECUTER_PP_EN:
            self.executer ^= 1
        if self.mode & _POINTER_PP_EN and not self.mode & _POINTER_PP_MODE:
            self.pointer = self.executer

    def status(self) -> int:
        """S_STATUS: 2 bits per group."""
        return (1 if self.pending[0] else 0) | (1 if self.pending[1] else 0) << 16


class _Decoder:
    """Turns a register group into a dict of fields."""

    def __init__(self, block: Block) -> None:
        rows: list[tuple[str, int, int, int, int]] = []
        for register in REGISTERS:
            if register.block is not block or register.offset - block.base <= OPERATION_ENABLE:
                continue
            for field in register.fields:
                low = 0 if field.in_bytes else field.low
                mask = field.mask if field.in_bytes else (1 << field.width) - 1
                sign = 1 << (field.width - 1) if field.signed else 0
                rows.append((field.name, (register.offset - block.base) // 4, low, mask, sign))
        names = [row[0] for row in rows]
        self.ambiguous = {name for name in names if names.count(name) > 1}
        self._names = names
        self._index, self._low, self._mask, sign = np.array([row[1:] for row in rows], np.int64).T.copy()
        self._sign = sign

    def decode(self, group: list[int]) -> Fields:
        values = (np.array(group, np.int64)[self._index] >> self._low) & self._mask
        values = (values ^ self._sign) - self._sign
        return dict(zip(self._names, values.tolist(), strict=True))


_DECODERS = {block: _Decoder(block) for block in BLOCKS}


def decode(block: Block, group: list[int]) -> Fields:
    """Fields of a register group. Field names are unique within each of the blocks."""
    return _DECODERS[block].decode(group)


def ambiguous_fields(block: Block) -> set[str]:
    """Names that two registers of the block share: must be empty, a test holds it."""
    return _DECODERS[block].ambiguous


def unknown_bits(register: Register, value: int) -> int:
    """Bits of a value that no field of the register names."""
    return value & ~register.known_mask & 0xFFFFFFFF
