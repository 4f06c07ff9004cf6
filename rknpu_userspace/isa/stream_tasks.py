# SPDX-License-Identifier: MIT
"""The tasks of a command stream: their words, the registers they run with, tiles of one operation, and chains.

A task ends with its enable word. Registers that it does not write are those of the task two before, because every
block has two register groups that alternate (TRM ch. 36.5.1; streams of Rockchip's compiler rely on it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from . import BY_NAME, BY_OFFSET, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Block, Word, unpack
from .rules import Registers, named, omitted, value
from .streams import Stream, Words, commands
from .summary import summarise

if TYPE_CHECKING:
    from rknpu_userspace.model.legality import Verdict

_BLOCK_BITS = 0xFFFE
ENABLED = {block: 1 << block.enable_bit for block in Block if block.enable_bit is not None}
_S_POINTER = 0x4
_PP_EN, _POINTER_CLEAR = 1 << 1, 1 << 4
_LINK_BASE, _LINK_AMOUNT = BY_NAME["PC_BASE_ADDRESS"].offset, BY_NAME["PC_REGISTER_AMOUNTS"].offset
_KNOWN = np.array([register.offset for register in BY_OFFSET.values()], np.uint16)
_DEPTHWISE = 3
_OUT_BITS = (8, 16, 16, 16, 32, 32, 4, 32)
"""By precision code."""
_SAME = (
    "CNA_CONV_CON1",
    "CNA_CONV_CON3",
    "CNA_WEIGHT_SIZE1",
    "DPU_FEATURE_MODE_CFG",
    "DPU_DATA_FORMAT",
    "DPU_DST_SURF_STRIDE",
    "DPU_BS_CFG",
    "DPU_BN_CFG",
    "DPU_EW_CFG",
    "DPU_OUT_CVT_OFFSET",
    "DPU_OUT_CVT_SCALE",
    "DPU_OUT_CVT_SHIFT",
)
"""Registers that the tiles of one operation have in common."""


@dataclass
class Task:
    """One task: its words from word ``first`` of the stream on, the mask of blocks it enables, its registers.

    ``inherited`` are the offsets it leaves to an earlier task of the stream; ``tile`` is (number, count) when several
    tasks compute parts of one operation.
    """

    first: int
    words: list[Word] = field(default_factory=list)
    enable: int | None = None
    registers: Registers = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    inherited: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    tile: tuple[int, int] | None = None

    @property
    def blocks(self) -> list[Block]:
        """Blocks that the task enables."""
        mask = self.enable or 0
        return [block for block, bit in ENABLED.items() if mask & bit]

    @property
    def link(self) -> tuple[int, int] | None:
        """IOVA and number of words of the task that the trailer leads to."""
        links = {word.offset: word.value for word in self.words if word.target == Block.PC.target}
        amount = links.get(_LINK_AMOUNT, 0) & 0xFFFF
        address = links.get(_LINK_BASE, 0) & ~0xF
        return (address, 2 * (amount + 1)) if amount and _LINK_BASE in links else None

    @property
    def summary(self) -> str:
        """What the task computes, in one line."""
        return summarise(self.registers, self.blocks, self.tile)

    @cached_property
    def verdict(self) -> Verdict:
        """What the model says about it."""
        from rknpu_userspace.model.legality import examine

        return examine(self.registers, self.blocks)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the task, one line each."""
        if self.enable is None:
            return [*self.strange, "no enable word: the stream ends within the task"]
        problems = self.strange + self.verdict.broken
        if not any(word.target == TARGET_SYNC for word in self.words):
            problems.append("the enable word has no sync word (target 0x0041) before it")
        if self.unknown:
            problems.append(f"not written, taken from an earlier job: {named(self.unknown)}")
        return problems

    @property
    def remarks(self) -> list[str]:
        """What is worth knowing about the task, one line each."""
        remarks = list(self.verdict.remarks) if self.enable is not None else []
        if self.inherited:
            count = len(self.inherited)
            remarks.append(f"delta: {count} registers come from the task two before: {named(self.inherited)}")
        return remarks

    def document(self) -> dict[str, Any]:
        """The task for JSON."""
        stats = self.verdict.stats if self.enable is not None else None
        registers = {}
        for word in self.words:
            register = BY_OFFSET.get(word.offset)
            if register is not None and word.target == register.block.target:
                registers[register.name] = {"value": word.value, "fields": register.decode(word.value)}
        cost = None
        if stats is not None:
            cost = {"macs": stats.macs, "cycles": stats.cycles, "ns": stats.ns, "dma_bytes": stats.dma_bytes}
        return {
            "first_word": self.first,
            "words": len(self.words),
            "summary": self.summary,
            "tile": list(self.tile) if self.tile else None,
            "enable": self.enable,
            "blocks": [block.name for block in self.blocks],
            "problems": self.problems,
            "remarks": self.remarks,
            "inherited": [BY_OFFSET[offset].name for offset in self.inherited],
            "link": list(self.link) if self.link else None,
            "cost": cost,
            "registers": registers,
        }


class _Groups:
    """The register groups of all blocks, as a stream writes them. The driver has set S_POINTER to 0xE."""

    def __init__(self) -> None:
        self.groups: dict[Block, list[Registers]] = {block: [{}, {}] for block in Block}
        self.pointer = dict.fromkeys(Block, 0)
        self.toggles = dict.fromkeys(Block, True)

    def store(self, word: Word) -> str:
        """Apply a register write; returns what is strange about the word."""
        if word.target == TARGET_SYNC or word.target & _BLOCK_BITS == 0:
            return "" if word.target in (0, 1, TARGET_SYNC) else f"target {word.target:#06x} is none of the blocks"
        register = BY_OFFSET.get(word.offset)
        if register is None:
            return f"offset {word.offset:#06x} is not a register"
        block = register.block
        if word.target != block.target:
            return f"target {word.target:#06x} does not own {register.name}"
        if word.offset - block.base == _S_POINTER and block is not Block.PC:
            self.toggles[block] = bool(word.value & _PP_EN)
            if not word.value & _PP_EN:
                self.pointer[block] = word.value & 1
            if word.value & _POINTER_CLEAR:
                self.pointer[block] = 0
        self.groups[block][self.pointer[block]][word.offset] = word.value
        unknown = word.value & ~register.known_mask
        return f"{register.name}: bits {unknown:#010x} belong to no field" if unknown else ""

    def run(self, task: Task) -> None:
        """Give a task the groups of the blocks that it enables, and move on."""
        written = {word.offset for word in task.words}
        for block in task.blocks:
            task.registers.update(self.groups[block][self.pointer[block]])
            if self.toggles[block]:
                self.pointer[block] ^= 1
        missing = omitted(task.blocks, written)
        task.inherited = [offset for offset in missing if offset in task.registers]
        task.unknown = [offset for offset in missing if offset not in task.registers]


def tasks(words: Words) -> Iterator[Task]:
    """Split a stream into its tasks, with the registers that each of them runs with. Data between them is left out."""
    groups = _Groups()
    for first, last in commands(words, _KNOWN):
        yield from _tasks(words[first:last], first, groups)


def _tasks(words: Words, at: int, groups: _Groups) -> Iterator[Task]:
    task = Task(at)
    for index, word in enumerate(unpack(words), at):
        if not task.words and not any(word):
            task.first = index + 1  # padding before a task
            continue
        task.words.append(word)
        if word.target == TARGET_ENABLE and word.offset == OPERATION_ENABLE:
            task.enable = word.value
            groups.run(task)
            yield task
            task = Task(index + 1)
            continue
        problem = groups.store(word)
        if problem:
            task.strange.append(f"word {index}: {problem}")
    if any(word.target or word.value or word.offset for word in task.words):
        yield task


def mark_tiles(found: Sequence[Task]) -> None:
    """Number the tasks that compute parts of one operation: alike but for sizes and addresses, one after the other.

    Tiles of a convolution share their weights or their features with one before them; those of a depthwise one that is
    cut by channels share neither, but write one behind the other.
    """
    run: list[Task] = []
    for task in [*found, None]:
        if task is not None and run and _alike(run[0], task) and _joins(run, task):
            run.append(task)
            continue
        if len(run) > 1:
            for number, tile in enumerate(run, 1):
                tile.tile = (number, len(run))
        run = [task] if task is not None and Block.CNA in task.blocks else []


def _joins(run: Sequence[Task], task: Task) -> bool:
    for register, name in (
        ("CNA_DCOMP_ADDR0", "DECOMPRESS_ADDR0"),
        ("CNA_FEATURE_DATA_ADDR", "FEATURE_BASE_ADDR"),
    ):
        if any(value(task.registers, register, name) == value(one.registers, register, name) for one in run):
            return True
    depthwise = value(task.registers, "CNA_CONV_CON1", "CONV_MODE") == _DEPTHWISE
    return depthwise and _output_end(run[-1]) == value(task.registers, "DPU_DST_BASE_ADDR", "DST_BASE_ADDR")


def _output_end(task: Task) -> int:
    """Address behind the last surface that a task writes."""
    bits = _OUT_BITS[value(task.registers, "DPU_DATA_FORMAT", "OUT_PRECISION")]
    channels = value(task.registers, "DPU_DATA_CUBE_CHANNEL", "CHANNEL") + 1
    stride = value(task.registers, "DPU_DST_SURF_STRIDE", "DST_SURF_STRIDE")
    return value(task.registers, "DPU_DST_BASE_ADDR", "DST_BASE_ADDR") + -(-channels * bits // 128) * stride


def _alike(left: Task, right: Task) -> bool:
    offsets = (BY_NAME[name].offset for name in _SAME)
    return left.enable == right.enable and all(left.registers.get(o) == right.registers.get(o) for o in offsets)


@dataclass
class Listing:
    """The tasks of a stream, where they lie, and where their links lead.

    ``base`` is the IOVA of the stream's first word: given, or the only one for which the links lead to tasks.
    """

    stream: Stream
    tasks: list[Task]
    base: int | None
    chains: list[tuple[int, ...]]
    """Numbers of tasks that are linked one to the next."""

    def link_text(self, task: Task) -> str:
        """Where a task's link leads, in words; empty without a link."""
        if task.link is None:
            return ""
        address, count = task.link
        target = self._at(address)
        if target is None:
            return f"link to {count} words at {address:#010x}" + ("" if self.base is None else ", outside of this dump")
        need = len(self.tasks[target].words)
        short = f"; too few, the task has {need}" if count < need else ""
        return f"link to {count} words at {address:#010x}, task {target}{short}"

    def _at(self, address: int) -> int | None:
        if self.base is None:
            return None
        return next((n for n, task in enumerate(self.tasks) if self.base + 8 * task.first == address), None)


def listing(stream: Stream) -> Listing:
    """Everything about a stream."""
    found = list(tasks(stream.words))
    mark_tiles(found)
    base = stream.base
    if base is None:
        linked = [task.link[0] - 8 * after.first for task, after in pairwise(found) if task.link]
        base = linked[0] if linked and len(set(linked)) == 1 and linked[0] >= 0 else None
    result = Listing(stream, found, base, [])
    chain: list[int] = []
    for number, task in enumerate(found):
        chain.append(number)
        if task.link is None or result._at(task.link[0]) != number + 1:
            if len(chain) > 1:
                result.chains.append(tuple(chain))
            chain = []
    return result
