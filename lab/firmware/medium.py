# SPDX-License-Identifier: MIT
"""The one interface between media and everything that copies, compares or writes them.

A `Transport` reaches a board and lists its media; a `Medium` is one of them, opened. Offsets and lengths are bytes.
Errors are KitError: ``LINK`` for a device that fails or falls silent, ``NO_DEVICE`` for none or several, ``REFUSED``
for what would be unsafe.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lab.errors import ExitCode, KitError
from lab.firmware.identity import Identity

ZERO_PIECE = bytes(1 << 20)


@dataclass(frozen=True)
class StorageInfo:
    """A medium as a transport sees it.

    ``name`` is the board file's name, ``emmc.boot0`` for a hardware partition. ``readable`` is how many bytes from the
    start can be read truthfully, when that is less than ``size`` (the loader's window). ``mounted`` lists the mount
    points of file systems that are mounted read-write on it.
    """

    name: str
    kind: str
    size: int
    block: int = 512
    controller: int | None = None
    readable: int | None = None
    mounted: tuple[str, ...] = ()
    detail: dict[str, str] = field(default_factory=dict)


class Medium(Protocol):
    """An open medium."""

    info: StorageInfo

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; a shorter answer is an error, never a short result."""

    def write(self, offset: int, data: bytes) -> None:
        """Write whole blocks."""

    def erase(self, offset: int, length: int) -> None:
        """Bring whole blocks to the erased state."""

    def flush(self) -> None:
        """Everything written is on the medium when this returns."""

    def reopen(self) -> None:
        """Open again so that the next read comes from the medium, not from a cache."""

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Ranges that may hold something else than zeros, in order."""

    def digest(self, offset: int, length: int) -> str | None:
        """SHA-256 computed on the board itself, after its caches were dropped; None where that is impossible."""

    def close(self) -> None:
        """Let go of the medium; closing twice is fine."""


class Transport(Protocol):
    """A way to a board."""

    name: str

    def identify(self) -> Identity:
        """What this transport can read of the board's identity."""

    def storages(self) -> list[StorageInfo]:
        """The media it can reach, in the order of the board file."""

    def open(self, storage: str, *, write: bool = False) -> Medium:
        """Open a medium."""

    def reset(self) -> None:
        """Restart the board, if the transport can."""

    def close(self) -> None:
        """Release the board."""


class Stillness(Protocol):
    """Mounted file systems that are held still: mount point to how; ``kept`` says afterwards whether all were."""

    mounts: dict[str, str]
    kept: bool


@runtime_checkable
class Quiescer(Protocol):
    """A transport to a running system, which can hold its file systems still."""

    def quiesce(self, storages: Sequence[str]) -> AbstractContextManager[Stillness | None]:
        """Hold still what is mounted of these media; None when that is nothing, or cannot be done."""


def link_error(
    message: str, hint: str = "check the cable and the power, then run it again: it goes on where it was"
) -> KitError:
    """The device or the link failed."""
    return KitError(ExitCode.LINK, message, hint)


def check_range(info: StorageInfo, offset: int, length: int, *, write: bool) -> None:
    """Refuse what lies outside the medium or, for writes, splits a block."""
    if offset < 0 or length < 0 or offset + length > info.size:
        raise KitError(
            ExitCode.USAGE,
            f"{info.name}: bytes {offset}..{offset + length} lie outside its {info.size} bytes",
            "was the plan made for another medium?",
        )
    if write and (offset % info.block or length % info.block):
        raise KitError(
            ExitCode.USAGE, f"{info.name}: a write at {offset} of {length} bytes splits a {info.block}-byte block"
        )


def find(transport: Transport, storage: str) -> StorageInfo:
    """The medium of that name, or the error that lists those there are."""
    media = transport.storages()
    for info in media:
        if info.name == storage:
            return info
    raise KitError(
        ExitCode.NO_DEVICE,
        f"{transport.name}: no medium {storage} on this board",
        f"it shows: {', '.join(info.name for info in media) or 'none'}",
    )


def is_zero(data: bytes) -> bool:
    """Whether all bytes are zero; compares with a block of zeros because that is memcmp."""
    view = memoryview(data)
    return all(
        view[start : start + len(ZERO_PIECE)] == memoryview(ZERO_PIECE)[: min(len(ZERO_PIECE), len(data) - start)]
        for start in range(0, len(data), len(ZERO_PIECE))
    )
