# SPDX-License-Identifier: MIT
"""Media that this host sees itself: an SD card in a mux, a U-Boot ``ums`` disk, an NVMe adapter, an image file.

Also the *drill directory*: a board that exists as files only (``board.json`` and one image per medium). The rockusb
stand-in keeps its media in the same form, so one board can be reached both ways.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.identity import Identity, clean
from lab.firmware.medium import Medium, StorageInfo, check_range, link_error


class FileMedium:
    """A medium in a file or block device node."""

    def __init__(self, path: Path, info: StorageInfo, *, write: bool = False) -> None:
        self.path, self.info, self._write = path, info, write
        self._fd = -1
        self._open()

    def _open(self) -> None:
        flags = (os.O_RDWR if self._write else os.O_RDONLY) | os.O_CLOEXEC
        try:
            if self._write and stat.S_ISBLK(self.path.stat().st_mode):
                flags |= os.O_EXCL
            self._fd = os.open(self.path, flags)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise KitError(ExitCode.REFUSED, f"{self.path} is in use (mounted?)", "unmount it first") from error
            raise from_os_error(error, f"opening {self.path}") from error

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.info, offset, length, write=False)
        parts, got = [], 0
        try:
            while got < length:
                part = os.pread(self._fd, length - got, offset + got)
                if not part:
                    raise link_error(f"{self.path}: ends at byte {offset + got}, expected {self.info.size}")
                parts.append(part)
                got += len(part)
        except OSError as error:
            raise link_error(f"{self.path}: reading at byte {offset + got}: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        check_range(self.info, offset, len(data), write=True)
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                offset, view = offset + done, view[done:]
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise from_os_error(error, f"writing {self.path}") from error
            raise link_error(f"{self.path}: writing at byte {offset}: {error.strerror}") from error

    def erase(self, offset: int, length: int) -> None:
        step = 1 << 20
        fill = b"\xff" if self.info.kind == "spi-nor" else b"\0"
        for at in range(offset, offset + length, step):
            self.write(at, fill * min(step, offset + length - at))

    def flush(self) -> None:
        if self._write:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise link_error(f"{self.path}: flushing: {error.strerror}") from error

    def reopen(self) -> None:
        self.flush()
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.close()
        self._open()

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        at = start
        while at < end:
            try:
                first = os.lseek(self._fd, at, os.SEEK_DATA)
                last = os.lseek(self._fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data after this point
                    return
                yield at, end  # the file system cannot tell: all of it may be data
                return
            if first >= end:
                return
            yield max(first, start), min(last, end)
            at = last

    def digest(self, offset: int, length: int) -> str | None:
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _node_size(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            return stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise from_os_error(error, f"opening {path}") from error


class InReader:
    """What transports of one medium of a board, in a reader, have in common."""

    name: str
    _info: StorageInfo

    def storages(self) -> list[StorageInfo]:
        return [self._info]

    def _expect(self, storage: str) -> None:
        """KitError (no device) for another medium than the one that is in the reader."""
        if storage != self._info.name:
            raise KitError(ExitCode.NO_DEVICE, f"{self.name} holds {self._info.name}, not {storage}")

    def reset(self) -> None:
        raise KitError(ExitCode.USAGE, "a medium in a reader cannot be restarted", "put it back and power the board on")


class BlockTransport(InReader):
    """One medium of a board, in a reader on this host (or in an image file)."""

    def __init__(self, path: Path, storage: str, kind: str) -> None:
        self.path, self.name = path, f"block:{path}"
        if not path.exists():
            raise KitError(
                ExitCode.NO_DEVICE, f"{path} is not there", "is the medium in the reader, or the mux set to host?"
            )
        if path.is_dir() or path.is_char_device():
            raise KitError(ExitCode.USAGE, f"{path} is neither a block device nor an image file")
        size = _node_size(path)
        if not size or size % 512:
            raise KitError(ExitCode.NO_DEVICE, f"{path} has {size} bytes: no medium, or not a medium's image")
        block = 4096 if kind == "spi-nor" else 512
        mounted = tuple(_mounts(path))
        self._info = StorageInfo(storage, kind, size, block, mounted=mounted)

    def identify(self) -> Identity:
        values: dict[str, str | None] = {}
        storage = self._info.name
        if self.path.is_block_device():
            device = Path("/sys/class/block") / self.path.resolve().name / "device"
            for key, entry in (("sd-cid", "cid"), ("nvme-serial", "serial"), ("disk-serial", "wwid")):
                with contextlib.suppress(OSError):
                    values[f"{key}:{storage}"] = (device / entry).read_text()
        else:
            values[f"disk-serial:{storage}"] = f"image:{self.path.resolve()}"
        return clean(values)

    def open(self, storage: str, *, write: bool = False) -> Medium:
        self._expect(storage)
        if write and self._info.mounted:
            raise KitError(ExitCode.REFUSED, f"{self.path} is mounted at {self._info.mounted[0]}", "unmount it first")
        return FileMedium(self.path, self._info, write=write)

    def close(self) -> None:
        return


def _mounts(path: Path) -> list[str]:
    """Mount points of the device and its partitions."""
    if not path.is_block_device():
        return []
    base = path.resolve().name
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            source, target = line.split()[:2]
            name = Path(source).name
            if name == base or (name.startswith(base) and name[len(base) :].lstrip("p").isdigit()):
                found.append(target)
    return found


BOARD_FILE = "board.json"


class DrillTransport:
    """A board made of files: ``board.json`` and ``<storage>.img`` beside it."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, f"file:{root}"
        try:
            raw = json.loads((root / BOARD_FILE).read_text())
            self._identity = clean(dict(raw["identity"]))
            self._media = {
                name: StorageInfo(
                    name, entry["kind"], int(entry["size"]), int(entry.get("block", 512)), entry.get("controller")
                )
                for name, entry in raw["storages"].items()
            }
        except FileNotFoundError as error:
            raise KitError(
                ExitCode.NO_DEVICE,
                f"{root} is not a board directory: {BOARD_FILE} is missing",
                "`npulab board standin DIR --board NAME` makes one",
            ) from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KitError(ExitCode.USAGE, f"{root / BOARD_FILE}: not a board description ({error})") from error

    def identify(self) -> Identity:
        return dict(self._identity)

    def storages(self) -> list[StorageInfo]:
        return list(self._media.values())

    def open(self, storage: str, *, write: bool = False) -> Medium:
        if storage not in self._media:
            raise KitError(
                ExitCode.NO_DEVICE, f"{self.name} has no medium {storage}", f"it has: {', '.join(self._media)}"
            )
        path = self.root / f"{storage}.img"
        info = self._media[storage]
        if not path.exists() or path.stat().st_size != info.size:
            raise link_error(f"{path}: expected {info.size} bytes", "make the board directory again")
        return FileMedium(path, info, write=write)

    def reset(self) -> None:
        return

    def close(self) -> None:
        return


def make_drill(
    root: Path, media: dict[str, tuple[str, int, int]], identity: Identity, board: str, controllers: dict[str, int]
) -> None:
    """Make a board directory with empty media: name to (kind, size, block)."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name, (kind, size, _) in media.items():
            with (root / f"{name}.img").open("wb") as stream:
                if kind == "spi-nor":
                    for _ in range(size >> 16):
                        stream.write(b"\xff" * 65536)
                stream.truncate(size)
        entries = {
            name: {"kind": kind, "size": size, "block": block, "controller": controllers.get(name.partition(".")[0])}
            for name, (kind, size, block) in media.items()
        }
        document = {"board": board, "identity": dict(identity), "storages": entries}
        (root / BOARD_FILE).write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise from_os_error(error, f"making the board directory {root}") from error


def content_digest(path: Path) -> str:
    """SHA-256 of an image, for tests and drills."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
