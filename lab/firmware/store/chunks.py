# SPDX-License-Identifier: MIT
"""Chunks: zstd frames named by the SHA-256 of what they hold."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import zstandard

from lab.errors import ExitCode, KitError
from lab.firmware.store import disk

CHUNK = 1 << 20
"""Bytes of the medium in a chunk; the last one of a region may be shorter."""

LEVEL = 3

_NAME = re.compile(r"^[0-9a-f]{64}\.zst$")


def corrupt(path: Path, why: str) -> KitError:
    """The error for a chunk that cannot be trusted."""
    return KitError(
        ExitCode.MISMATCH,
        f"backup store: {path.name[:16]}...: {why} ({path})",
        "this backup cannot be relied on: make a new one while the board still works; others in the store may be whole",
    )


class Chunks:
    """The chunk directory. Adding is safe from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._local = threading.local()

    def path(self, name: str) -> Path:
        """Where the chunk is or would be."""
        return self.root / name[:2] / f"{name}.zst"

    def prepare(self, data: bytes) -> tuple[str, Path | None]:
        """Name of the chunk and, when it is new, the file that waits for `commit`."""
        name = hashlib.sha256(data).hexdigest()
        final = self.path(name)
        if final.exists():
            return name, None
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        partial = final.with_name(f"{final.name}.{os.getpid()}-{threading.get_ident()}.partial")
        disk.make_dir(final.parent)
        disk.write_new(partial, compressor.compress(data))
        return name, partial

    def commit(self, pending: list[tuple[str, Path]]) -> int:
        """Give written chunks their names; returns the bytes added to the store."""
        added = 0
        directories = set()
        disk.sync_all([partial for _, partial in pending if partial.exists()])
        for name, partial in pending:
            final = self.path(name)
            if not partial.exists() and final.exists():  # the same content came twice within one batch
                continue
            added += partial.stat().st_size
            disk.rename(partial, final)
            directories.add(final.parent)
        disk.sync_dirs(sorted(directories))
        return added

    def read(self, name: str, length: int, *, checked: bool = False) -> bytes:
        """A chunk's content, checked against its name.

        ``checked``: that has just been done; this time the checksum within the zstd frame is enough.
        """
        path = self.path(name)
        try:
            packed = path.read_bytes()
        except FileNotFoundError:
            raise corrupt(path, "the chunk is missing") from None
        try:
            data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=length)
        except zstandard.ZstdError as error:
            raise corrupt(path, f"the chunk is damaged ({error})") from error
        if len(data) != length or not (checked or hashlib.sha256(data).hexdigest() == name):
            raise corrupt(path, "the chunk's content does not match its name")
        return data

    def names(self) -> Iterator[tuple[str, Path]]:
        """All chunks that are there."""
        for path in sorted(self.root.glob("??/*.zst")):
            if _NAME.match(path.name):
                yield path.name[:64], path

    def leftovers(self) -> Iterator[Path]:
        """Files of interrupted runs."""
        yield from self.root.glob("??/*.partial")
