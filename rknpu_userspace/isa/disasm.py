# SPDX-License-Identifier: MIT
"""Disassembler of command streams: block by block with field names, what each task computes, which rules it breaks.

    for line in disassemble(words): print(line)
    python3 -m rknpu_userspace.isa.disasm stream.bin

A stream may hold several tasks; each ends with its enable word. Registers that a task does not write are taken from the
task two before, as the two register groups of the hardware do. Works on any client's stream and never fails: words that
make no sense are printed as such.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import BY_OFFSET, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Block, Word, unpack
from .rules import Registers, broken_rules
from .summary import summarise

_BLOCK_BITS = 0xFFFE
_ENABLED = {block: 1 << block.enable_bit for block in Block if block.enable_bit is not None}


@dataclass
class Task:
    """One task of a stream: its words, the mask of blocks it enables, and its registers including inherited ones."""

    first: int
    words: list[Word] = field(default_factory=list)
    enable: int | None = None
    registers: Registers = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)

    @property
    def blocks(self) -> list[Block]:
        """Blocks that the task enables."""
        mask = self.enable or 0
        return [block for block, bit in _ENABLED.items() if mask & bit]

    @property
    def summary(self) -> str:
        """What the task computes, in one line."""
        return summarise(self.registers, self.blocks)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the task, one line each."""
        if self.enable is None:
            return [*self.strange, "no enable word: the stream ends within the task"]
        return self.strange + broken_rules(self.registers, self.blocks, {word.offset for word in self.words})


def tasks(words: npt.NDArray[np.uint64]) -> Iterator[Task]:
    """Split a stream into its tasks, with the registers that each of them runs with."""
    groups: dict[Block, list[Registers]] = {block: [{}, {}] for block in Block}
    writer = dict.fromkeys(Block, 0)
    task = Task(0)
    for index, word in enumerate(unpack(words)):
        task.words.append(word)
        if word.target == TARGET_ENABLE and word.offset == OPERATION_ENABLE:
            task.enable = word.value
            for block in task.blocks:
                task.registers.update(groups[block][writer[block]])
                writer[block] ^= 1
            yield task
            task = Task(index + 1)
            continue
        problem = _store(word, groups, writer)
        if problem:
            task.strange.append(f"word {index}: {problem}")
    if any(word.target or word.value or word.offset for word in task.words):
        yield task


def _store(word: Word, groups: dict[Block, list[Registers]], writer: dict[Block, int]) -> str:
    """Apply a register write; returns what is strange about the word."""
    if word.target == TARGET_SYNC or word.target & _BLOCK_BITS == 0:
        return "" if word.target in (0, 1, TARGET_SYNC) else f"target {word.target:#06x} is none of the blocks"
    register = BY_OFFSET.get(word.offset)
    if register is None:
        return f"offset {word.offset:#06x} is not a register"
    if word.target != register.block.target:
        return f"target {word.target:#06x} does not own {register.name}"
    groups[register.block][writer[register.block]][word.offset] = word.value
    unknown = word.value & ~register.known_mask
    return f"{register.name}: bits {unknown:#010x} belong to no field" if unknown else ""


def _word_text(index: int, word: Word) -> str:
    if word.target == TARGET_ENABLE and word.offset == OPERATION_ENABLE:
        names = ", ".join(block.name for block, bit in _ENABLED.items() if word.value & bit)
        return f"  {index:5} enable {word.value:#04x}: {names or 'nothing'}"
    if word.target == TARGET_SYNC:
        return f"  {index:5} sync"
    register = BY_OFFSET.get(word.offset)
    if word.target & _BLOCK_BITS == 0:
        return f"  {index:5} nop"
    if register is None:
        return f"  {index:5} ? target {word.target:#06x} offset {word.offset:#06x} value {word.value:#010x}"
    fields = " ".join(f"{name}={value}" for name, value in register.decode(word.value).items() if value)
    return f"  {index:5} {register.offset:#06x} {register.name:32} {word.value:#010x}  {fields}".rstrip()


def disassemble(words: npt.NDArray[np.uint64], *, zeros: bool = False) -> Iterator[str]:
    """Lines of text: per task a summary, its problems, and its words. ``zeros`` also prints registers set to 0."""
    for number, task in enumerate(tasks(words)):
        yield f"task {number}: {task.summary}"
        for problem in task.problems:
            yield f"  ! {problem}"
        block: Block | None = None
        for index, word in enumerate(task.words, task.first):
            register = BY_OFFSET.get(word.offset)
            plain = register is not None and word.target == register.block.target
            if plain and not word.value and not zeros:
                continue
            owner = register.block if register is not None and plain else None
            if owner is not None and owner is not block:
                yield f" {owner.name}"
            block = owner or block
            yield _word_text(index, word)


def read(path: Path) -> npt.NDArray[np.uint64]:
    """Command words of a file: binary, or text with one hexadecimal word per line. ValueError says what is wrong."""
    data = path.read_bytes()
    text = data.strip()
    if text and all(byte in b"0123456789abcdefABCDEFxX \t\r\n" for byte in text):
        try:
            return np.array([int(word, 16) for word in text.split()], np.uint64)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not hexadecimal 64-bit words: {error}") from error
    if not data or len(data) % 8:
        raise ValueError(f"{path}: {len(data)} bytes are not a whole number of 64-bit command words")
    return np.frombuffer(data, "<u8").astype(np.uint64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="rknpu-disasm", description="Print NPU command streams.")
    parser.add_argument("file", type=Path, help="binary stream, or text with a hexadecimal word per line")
    parser.add_argument("--zeros", action="store_true", help="also print registers that are set to zero")
    options = parser.parse_args(arguments)
    try:
        for line in disassemble(read(options.file), zeros=options.zeros):
            print(line)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
