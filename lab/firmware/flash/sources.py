# SPDX-License-Identifier: MIT
"""Where the bytes to write come from: an image file, with or without a block map, or a backup."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event
from typing import Protocol

from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.store.reader import StorageReader


class Source(Protocol):
    """Content by offset on the medium."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""


PIECE = 1 << 20


class ImageSource:
    """A file whose byte 0 belongs to byte ``base`` of the medium; its end is padded with ``fill`` to whole blocks."""

    def __init__(self, path: Path, base: int, fill: bytes) -> None:
        self.path, self.base, self.fill = path, base, fill
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise from_os_error(error, f"opening {path}") from error

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset - self.base)
        expected = max(0, min(length, self.size - (offset - self.base)))
        if len(data) != expected:
            raise KitError(ExitCode.MISMATCH, f"{self.path} changed while it was read", "plan again")
        return data + self.fill * (length - len(data))

    def digest(self, over: Event | None = None) -> str:
        """SHA-256 of the file that is open here; given up, with KitError (aborted), once ``over`` is set."""
        running, at = hashlib.sha256(), 0
        while part := os.pread(self._fd, PIECE, at):
            if over is not None and over.is_set():
                raise KitError(ExitCode.ABORTED, f"{self.path}: not read to its end")
            running.update(part)
            at += len(part)
        return running.hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class BackupSource:
    """A medium of a backup."""

    def __init__(self, reader: StorageReader) -> None:
        self.reader = reader

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(offset, length)
