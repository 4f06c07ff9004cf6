# SPDX-License-Identifier: MIT
"""``npulab npu disasm``: what a command stream computes, block by block, and which rules it breaks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import ExitCode, KitError
from lab.output import Output

if TYPE_CHECKING:
    from rknpu_userspace.isa.streams import Stream

HELP = "print a command stream block by block: what each task computes, which rules it breaks"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options."""
    from rknpu_userspace.isa.disasm import add_options

    add_options(parser)


def _of_model(file: str) -> list[Stream]:
    """What a TensorFlow Lite model is compiled to."""
    from lab.npu.run import load
    from rknpu_userspace.isa.streams import of_graph

    return of_graph(load(Path(file)))


def run(args: argparse.Namespace, out: Output) -> dict[str, Any]:
    """Print the streams; ``ok`` whatever the tasks are like, their problems stand in the document."""
    from rknpu_userspace.isa.disasm import document, listing, listing_lines, read_streams

    try:
        streams = _of_model(args.file) if args.file.endswith(".tflite") else read_streams(args.file, args.base)
    except OSError as error:
        reason = error.strerror or str(error)
        raise KitError(ExitCode.USAGE, f"{args.file} can not be read: {reason}", "name a dump of commands") from error
    except ValueError as error:
        hint = "dumps of a buffer, words in hexadecimal, and JSON of the library are understood: docs/npu.md"
        raise KitError(ExitCode.FAILED, str(error), hint) from error
    found = [listing(stream) for stream in streams]
    for one in found:
        if len(found) > 1:
            out.say(f"== {one.stream.name}")
        for line in listing_lines(one, zeros=args.zeros, brief=args.brief):
            out.say(line)
    return {"streams": document(found)}
