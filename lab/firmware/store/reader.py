# SPDX-License-Identifier: MIT
"""Reading a backup: any byte range of a saved region, every chunk checked against its name."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.medium import is_zero
from lab.firmware.store import index
from lab.firmware.store.index import Piece
from lab.firmware.store.manifest import Manifest, RegionRecord
from lab.firmware.store.store import Store

HOLE = 64 << 10
"""Zeros in blocks of this size become holes of a restored file."""

ZEROS = memoryview(bytes(HOLE))


class Extent(Protocol):
    """A range of a medium, as plans and manifests describe it."""

    @property
    def storage(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def length(self) -> int: ...


class RegionReader:
    """One region. The table of pieces is kept compact: 48 bytes per stored chunk. ``checked`` as for `Chunks.read`."""

    def __init__(self, store: Store, path: Path, region: Extent, *, checked: bool = False) -> None:
        self._checked = checked
        self._store, self.region, self.label = store, region, f"{region.storage}/{region.name}"
        self._starts: list[int] = []
        self._names: list[bytes | None] = []
        end = 0
        for piece in index.pieces(path):
            self._starts.append(piece.offset)
            self._names.append(bytes.fromhex(piece.name) if piece.name else None)
            end = piece.offset + piece.length
        if end != region.length:
            raise KitError(ExitCode.MISMATCH, f"{path}: holds {end} of {region.length} bytes", "use another backup")
        self._last: tuple[int, bytes] = (-1, b"")

    @staticmethod
    def of(store: Store, backup: Manifest, region: RegionRecord, *, checked: bool = False) -> RegionReader:
        """A region of a backup; KitError (mismatch) when its index is damaged."""
        path = store.directory(backup) / region.index
        if not path.exists() or index.digest(path) != region.index_sha256:
            message = f"{backup.id}: the index of {region.label} is missing or damaged"
            raise KitError(ExitCode.MISMATCH, message, "use another backup")
        return RegionReader(store, path, region, checked=checked)

    def pieces(self) -> Iterator[Piece]:
        """The pieces in order."""
        for position, start in enumerate(self._starts):
            name = self._names[position]
            yield Piece(start, self._end(position) - start, name.hex() if name else None)

    def _end(self, position: int) -> int:
        return self._starts[position + 1] if position + 1 < len(self._starts) else self.region.length

    def chunk(self, position: int) -> bytes:
        """Content of a stored piece."""
        last = self._last  # several threads may read: each its own pair
        if last[0] != position:
            name = self._names[position]
            assert name is not None
            length = self._end(position) - self._starts[position]
            last = (position, self._store.chunks.read(name.hex(), length, checked=self._checked))
            self._last = last
        return last[1]

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether the range lies within one run of zeros."""
        position = bisect_right(self._starts, offset) - 1
        return self._names[position] is None and offset + length <= self._end(position)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the region, ``offset`` relative to its start."""
        if offset < 0 or offset + length > self.region.length:
            raise KitError(ExitCode.USAGE, f"{self.label}: {offset}+{length} lies outside the region")
        parts = []
        position = bisect_right(self._starts, offset) - 1
        while length > 0:
            start, end = self._starts[position], self._end(position)
            take = min(end - offset, length)
            if self._names[position] is None:
                parts.append(bytes(take))
            else:
                parts.append(self.chunk(position)[offset - start : offset - start + take])
            offset, length, position = offset + take, length - take, position + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)


class StorageReader:
    """A medium of a backup, by absolute byte offset."""

    def __init__(self, name: str, readers: list[RegionReader]) -> None:
        self.name = name
        self._readers = sorted(readers, key=lambda reader: reader.region.start)

    @staticmethod
    def of(store: Store, backup: Manifest, storage: str, *, checked: bool = False) -> StorageReader:
        """A medium of a backup. ``checked`` as for `Chunks.read`."""
        regions = [region for region in backup.regions if region.storage == storage]
        return StorageReader(storage, [RegionReader.of(store, backup, region, checked=checked) for region in regions])

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; KitError when the backup does not hold them."""
        parts = []
        for reader in self._readers:
            region = reader.region
            if length and region.start <= offset < region.start + region.length:
                take = min(length, region.start + region.length - offset)
                parts.append(reader.read(offset - region.start, take))
                offset, length = offset + take, length - take
        if length:
            raise KitError(ExitCode.FAILED, f"the backup does not hold {self.name} at byte {offset}")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def extract(store: Store, backup: Manifest, storage: str, target: Path) -> int:
    """Write a medium of a backup to a sparse file and compare; returns the bytes that are not zero.

    The file is made under another name first: the target is whole or not there.
    """
    partial = target.with_name(target.name + ".partial")
    size = int(backup.medium(storage)["size"])
    written = 0
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            for region in (r for r in backup.regions if r.storage == storage):
                written += _extract_region(RegionReader.of(store, backup, region), descriptor)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            for region in (r for r in backup.regions if r.storage == storage):
                _compare_region(RegionReader.of(store, backup, region), descriptor, target)
        finally:
            os.close(descriptor)
        partial.rename(target)
    except OSError as error:
        raise from_os_error(error, f"restoring {storage} to {target}") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def _extract_region(reader: RegionReader, descriptor: int) -> int:
    written = 0
    for position, piece in enumerate(reader.pieces()):
        if piece.name is not None:
            data = memoryview(reader.chunk(position))
            for at in range(0, piece.length, HOLE):
                part = data[at : at + HOLE]
                if part != ZEROS[: len(part)]:
                    os.pwrite(descriptor, part, reader.region.start + piece.offset + at)
                    written += len(part)
    return written


def _compare_region(reader: RegionReader, descriptor: int, target: Path) -> None:
    for position, piece in enumerate(reader.pieces()):
        at = reader.region.start + piece.offset
        if piece.name is not None:
            same = os.pread(descriptor, piece.length, at) == reader.chunk(position)
        else:
            same = _zero(descriptor, at, at + piece.length)
        if not same:
            raise KitError(ExitCode.MISMATCH, f"{target}: reads back differently at byte {at}", "is the disk failing?")


def _zero(descriptor: int, start: int, end: int) -> bool:
    at = start
    while at < end:
        try:
            at = max(start, os.lseek(descriptor, at, os.SEEK_DATA))
        except OSError:
            return True
        if at >= end:
            return True
        step = min(1 << 20, end - at)
        if not is_zero(os.pread(descriptor, step, at)):
            return False
        at += step
    return True


def plain_restore(store: Store, backup: Manifest) -> list[str]:
    """Shell lines that restore a backup with zstd, dd and truncate alone.

    They write image files ``<storage>.img`` in the current directory; each file can then be written with dd.
    """
    lines = ["set -e", f"cd_store={_quote(str(store.root))}"]
    for storage in backup.storages():
        size = int(backup.medium(storage)["size"])
        lines.append(f"truncate -s 0 {storage}.img; truncate -s {size} {storage}.img")
        for region in (r for r in backup.regions if r.storage == storage):
            path = f'"$cd_store/backups/{backup.id}/{region.index}"'
            lines += [
                f"at={region.start}",
                "while read -r name length; do",
                '  [ "$name" = zero ] || zstd -dcq "$cd_store/chunks/$(printf %.2s "$name")/$name.zst" |',
                f'    dd of={storage}.img bs=1M oflag=seek_bytes seek="$at" conv=notrunc status=none',
                "  at=$((at + length))",
                f"done < {path}",
            ]
    return lines


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
