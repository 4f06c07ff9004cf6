# SPDX-License-Identifier: MIT
"""``npulab npu disasm``: what a command stream computes, block by block, and which rules it breaks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.output import Output

HELP = "print a command stream block by block: what each task computes, which rules it breaks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a binary stream, or hexadecimal words")
    parser.add_argument("--zeros", action="store_true", help="also print registers that are set to zero")


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Print the stream."""
    from rknpu_userspace.isa.disasm import disassemble, read, tasks

    try:
        words = read(args.file)
    except ValueError as error:
        raise KitError(ExitCode.FAILED, str(error), "give a dump of command words") from error
    for line in disassemble(words, zeros=args.zeros):
        out.say(line)
    return {"tasks": [{"summary": task.summary, "problems": task.problems} for task in tasks(words)]}
