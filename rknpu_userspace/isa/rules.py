# SPDX-License-Identifier: MIT
"""Fields of a task's registers, and which registers a task leaves to what ran before it.

What is legal is the model's to say (``model.legality``): the disassembler asks it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from . import BY_NAME, REGISTERS, Block

Registers = dict[int, int]
"""Register words by offset."""

_UNWRITTEN = (
    "S_STATUS",
    "S_POINTER",
    "OPERATION_ENABLE",
    "CLK_GATE",
    "MAC_GATING",
    "LUT_ACCESS_CFG",
    "LUT_ACCESS_DATA",
)
"""Not part of a register group, or nothing that anybody writes."""
_NAMED = 4


def value(registers: Registers, register: str, name: str) -> int:
    """A field of a task's register; 0 if the task has never been given it."""
    entry = BY_NAME[register]
    return entry.field(name).decode(registers.get(entry.offset, 0))


def omitted(blocks: Sequence[Block], written: Collection[int]) -> list[int]:
    """Offsets of registers of the enabled blocks that are not in ``written``."""
    return [
        register.offset
        for register in REGISTERS
        if register.block in blocks and register.offset not in written and not register.name.endswith(_UNWRITTEN)
    ]


def named(offsets: Sequence[int]) -> str:
    """The first few names of registers, and how many more there are."""
    names = [register.name for register in REGISTERS if register.offset in set(offsets)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
