# SPDX-License-Identifier: MIT
"""Where the bytes to write come from: an image file, with or without a block map, or a backup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from lab.cache import file_digest
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.store.reader import StorageReader


class Source(Protocol):
    """Content by offset on the medium."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""

    def identity(self) -> str:
        """Something that changes when the content does."""


class ImageSource:
    """A file whose byte 0 belongs to byte ``base`` of the medium; its end is padded with ``fill`` to whole blocks."""

    def __init__(self, path: Path, base: int, fill: bytes) -> None:
        self.path, self.base, self.fill = path, base, fill
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as error:
            raise from_os_error(error, f"opening {path}") from error
        self._digest = ""

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset - self.base)
        expected = max(0, min(length, self.size - (offset - self.base)))
        if len(data) != expected:
            raise KitError(ExitCode.MISMATCH, f"{self.path} changed while it was read", "plan again")
        return data + self.fill * (length - len(data))

    def identity(self) -> str:
        if not self._digest:
            self._digest = file_digest(self.path)
        return f"image {self._digest} at {self.base}"

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class BackupSource:
    """A medium of a backup."""

    def __init__(self, backup: str, reader: StorageReader) -> None:
        self.backup, self.reader = backup, reader

    def read(self, offset: int, length: int) -> bytes:
        return self.reader.read(offset, length)

    def identity(self) -> str:
        return f"backup {self.backup}"
