# SPDX-License-Identifier: MIT
"""Disassembler of command streams: block by block with field names, what each task computes, which rules it breaks.

    for line in disassemble(words): print(line)
    python3 -m rknpu_userspace disasm stream.bin

Works on any client's stream and never fails: words that make no sense are printed as such. Lines that start with ``!``
are problems, with ``*`` remarks, with ``=`` what the model expects of the task.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import BY_OFFSET, OPERATION_ENABLE, TARGET_ENABLE, TARGET_SYNC, Block, Word
from .stream_tasks import ENABLED, Listing, Task, listing, tasks
from .streams import Stream, Words, of_graph, parse

_BLOCK_BITS = 0xFFFE
_LUT_DATA = 0x4104
_LUT_RUN = 4
"""So many entries of a look-up table in a row are printed as one line."""


def _word_text(index: int, word: Word) -> str:
    if word.target == TARGET_ENABLE and word.offset == OPERATION_ENABLE:
        names = ", ".join(block.name for block, bit in ENABLED.items() if word.value & bit)
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


def _words(task: Task, zeros: bool) -> Iterator[str]:
    block: Block | None = None
    entries: list[int] = []
    for index, word in enumerate([*task.words, None], task.first):
        if word is not None and word.offset == _LUT_DATA and word.target == Block.DPU.target:
            entries.append(word.value)
            continue
        if entries:
            yield from _table_text(index - len(entries), entries, zeros)
            entries = []
        if word is None:
            return
        register = BY_OFFSET.get(word.offset)
        plain = register is not None and word.target == register.block.target
        if plain and not word.value and not zeros:
            continue
        owner = register.block if register is not None and plain else None
        if owner is not None and owner is not block:
            yield f" {owner.name}"
        block = owner or block
        yield _word_text(index, word)


def _table_text(index: int, entries: list[int], zeros: bool) -> Iterator[str]:
    if len(entries) >= _LUT_RUN:
        signed = [(entry & 0xFFFF ^ 0x8000) - 0x8000 for entry in entries]
        span = f"{signed[0]} ... {signed[-1]}, between {min(signed)} and {max(signed)}"
        yield f"  {index:5} {_LUT_DATA:#06x} {len(entries)} entries of the look-up table: {span}"
        return
    for number, entry in enumerate(entries):
        if entry or zeros:
            yield _word_text(index + number, Word(Block.DPU.target, _LUT_DATA, entry))


def _cost_text(task: Task) -> str:
    stats = task.verdict.stats if task.enable is not None else None
    if stats is None:
        return ""
    moved = ", ".join(f"{unit} {count}" for unit, count in stats.dma_bytes.items())
    work = f"{stats.macs} MACs ({100 * stats.utilisation:.0f} % of the array), " if stats.macs else ""
    return f"{work}DMA bytes: {moved}; about {stats.ns / 1000:.0f} us at 200 MHz"


def task_lines(number: int, task: Task, found: Listing, *, zeros: bool = False, brief: bool = False) -> Iterator[str]:
    """The lines of one task."""
    yield f"task {number}: {task.summary}"
    where = f" at {found.base + 8 * task.first:#010x}" if found.base is not None else ""
    yield f"  - words {task.first} to {task.first + len(task.words) - 1}{where}"
    for problem in task.problems:
        yield f"  ! {problem}"
    for remark in task.remarks:
        yield f"  * {remark}"
    for text, sign in ((_cost_text(task), "="), (found.link_text(task), "-")):
        if text:
            yield f"  {sign} {text}"
    if not brief:
        yield from _words(task, zeros)


def listing_lines(found: Listing, *, zeros: bool = False, brief: bool = False) -> Iterator[str]:
    """The lines of a stream: tasks, and the chains that they form."""
    if not found.tasks:
        yield f"no task in {len(found.stream.words)} words"
    for number, task in enumerate(found.tasks):
        yield from task_lines(number, task, found, zeros=zeros, brief=brief)
    for chain in found.chains:
        count = len(chain)
        yield (
            f"chain: tasks {chain[0]} to {chain[-1]} are linked; TASK_NUMBER {count} runs them in one go "
            "(the rocket driver writes 1 and starts every task itself)"
        )


def disassemble(words: Words, *, zeros: bool = False, base: int | None = None) -> Iterator[str]:
    """Lines of text. ``zeros`` also prints registers set to 0, ``base`` is the IOVA of the first word."""
    yield from listing_lines(listing(Stream("stream", words, base)), zeros=zeros)


def document(found: Sequence[Listing]) -> list[dict[str, Any]]:
    """The listings for JSON."""
    return [
        {
            "name": one.stream.name,
            "base": one.base,
            "chains": [list(chain) for chain in one.chains],
            "tasks": [{"number": number, **task.document()} for number, task in enumerate(one.tasks)],
        }
        for one in found
    ]


def read_streams(name: str, base: int | None = None) -> list[Stream]:
    """The streams of a file, of a program file (.npz), or of standard input for ``-``.

    OSError and ValueError say what is wrong.
    """
    if name == "-":
        return parse(sys.stdin.buffer.read(), "standard input", base)
    if name.endswith(".npz"):
        from rknpu_userspace.graph.file import load

        return of_graph(load(name))
    return parse(Path(name).read_bytes(), name, base)


def read(path: Path) -> Words:
    """Command words of a file with one stream. ValueError says what is wrong."""
    return parse(path.read_bytes(), str(path))[0].words


def address(text: str) -> int:
    """An IOVA of the command line."""
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address below 2^32")
    return number


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "file", metavar="FILE", help="buffer dump, hexadecimal words, JSON, or program file; - is standard input"
    )
    parser.add_argument("--base", type=address, metavar="IOVA", help="address of the first word as the NPU sees it")
    parser.add_argument("--brief", action="store_true", help="what the tasks compute, not their words")
    parser.add_argument("--zeros", action="store_true", help="also print registers that are set to zero")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="rknpu-disasm", description="Print NPU command streams.")
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        found = [listing(stream) for stream in read_streams(options.file, options.base)]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"ok": True, "streams": document(found)}, indent=2))
        return 0
    for one in found:
        if len(found) > 1:
            print(f"== {one.stream.name}")
        for line in listing_lines(one, zeros=options.zeros, brief=options.brief):
            print(line)
    return 0


__all__ = ["disassemble", "document", "listing", "listing_lines", "main", "read", "read_streams", "tasks"]

if __name__ == "__main__":
    from rknpu_userspace.console import quietly

    sys.exit(quietly(main))
