# SPDX-License-Identifier: MIT
"""Registers and command words of the RK3588 NPU: the one table that generator, model and disassembler use."""

from . import _dpu, _pc_cna_core, _ppu
from .register import Block, Field, Register, block_of
from .words import NOP, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Word, enable_mask, pack, unpack, write

REGISTERS: tuple[Register, ...] = _pc_cna_core.REGISTERS + _dpu.REGISTERS + _ppu.REGISTERS
BY_NAME: dict[str, Register] = {register.name: register for register in REGISTERS}
BY_OFFSET: dict[int, Register] = {register.offset: register for register in REGISTERS}

__all__ = [
    "BY_NAME",
    "BY_OFFSET",
    "NOP",
    "OPERATION_ENABLE",
    "REGISTERS",
    "TARGET_ENABLE",
    "TARGET_SYNC",
    "Block",
    "Field",
    "Register",
    "Word",
    "block_of",
    "enable_mask",
    "pack",
    "unpack",
    "write",
]
