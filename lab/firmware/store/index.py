# SPDX-License-Identifier: MIT
"""The index of a region: one line per chunk, in the order of the medium.

``<sha256> <length>`` or ``zero <length>`` for a run of zeros, which may be longer than a chunk. The file grows while a
backup is made and is the journal that a resumed run goes on from; lines are only added when their chunks are on disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.firmware.store import disk

_LINE = re.compile(rb"^(zero|[0-9a-f]{64}) ([1-9][0-9]*)$")


@dataclass(frozen=True)
class Piece:
    """``length`` bytes from ``offset`` (relative to the region); ``name`` is None for zeros."""

    offset: int
    length: int
    name: str | None


def _parse(line: bytes) -> tuple[str | None, int] | None:
    match = _LINE.match(line)
    if match is None:
        return None
    return (None if match[1] == b"zero" else match[1].decode()), int(match[2])


def pieces(path: Path) -> Iterator[Piece]:
    """The pieces of a finished index; KitError (mismatch) when a line is damaged."""
    offset = 0
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise KitError(ExitCode.MISMATCH, f"backup store: the index {path} is missing", "make a new backup") from None
    with stream:
        for number, line in enumerate(stream, 1):
            parsed = _parse(line.rstrip(b"\n"))
            if parsed is None:
                raise KitError(ExitCode.MISMATCH, f"{path}:{number}: damaged index", "make a new backup")
            yield Piece(offset, parsed[1], parsed[0])
            offset += parsed[1]


def recover(path: Path) -> list[Piece]:
    """What an interrupted run finished: first and last piece, and where it ended; cuts a torn last line off.

    Returns at most three pieces: the first stored chunk, the last stored chunk, and the last piece of all.
    """
    if not path.exists():
        return []
    good = offset = 0
    first = last = final = None
    with path.open("rb") as stream:
        for line in stream:
            parsed = _parse(line[:-1]) if line.endswith(b"\n") else None
            if parsed is None:
                break
            final = Piece(offset, parsed[1], parsed[0])
            if final.name is not None:
                first, last = first or final, final
            offset += parsed[1]
            good += len(line)
    if good != path.stat().st_size:
        disk.truncate(path, good)
    return [piece for piece in (first, last, final) if piece is not None]


def encode(found: list[tuple[str | None, int]]) -> bytes:
    """Lines for pieces; neighbouring zero runs become one."""
    merged: list[tuple[str | None, int]] = []
    for name, length in found:
        if name is None and merged and merged[-1][0] is None:
            merged[-1] = (None, merged[-1][1] + length)
        else:
            merged.append((name, length))
    return b"".join(f"{name or 'zero'} {length}\n".encode() for name, length in merged)


def digest(path: Path) -> str:
    """SHA-256 of the index file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
