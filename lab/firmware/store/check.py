# SPDX-License-Identifier: MIT
"""Verification: the medium against the store (a second, independent read), and the store against itself."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.firmware.ahead import ahead
from lab.firmware.identity import Verdict, compare
from lab.firmware.medium import Medium, Transport, find, is_zero
from lab.firmware.store import index
from lab.firmware.store.index import Piece
from lab.firmware.store.manifest import Manifest, RegionRecord
from lab.firmware.store.reader import Extent, RegionReader
from lab.firmware.store.store import Store
from lab.output import Meter

PIECE = 3 << 18
"""Bytes of a request of the second read: not the first read's, so that a fault tied to a request shows."""

FIRST = 33 * 512
"""Length of the first request, so that all following ones start elsewhere than in the first read."""

DIGEST_PIECE = 32 << 20
"""Bytes per digest where the board computes them itself."""

MAX_UNSTABLE = 64


def record() -> dict[str, Any]:
    """The manifest's entry about a second read that just ended."""
    now = datetime.datetime.now(datetime.UTC)
    return {"at": now.isoformat(timespec="seconds"), "method": "second read after re-open", "piece": PIECE}


def _stored(store: Store, path: Path) -> Iterator[tuple[Piece, bytes | None]]:
    for piece in index.pieces(path):
        yield piece, store.chunks.read(piece.name, piece.length) if piece.name else None


class _Expected:
    """The stored content as a stream: ``take(n)`` gives the next bytes, or None for zeros."""

    def __init__(self, store: Store, path: Path) -> None:
        self._pieces = _stored(store, path)
        self._data: bytes | None = b""
        self._left = 0
        self._at = 0

    def _fill(self) -> None:
        piece, self._data = next(self._pieces)
        self._left, self._at = piece.length, 0

    def hole(self) -> int:
        """Bytes of zeros that follow, when a run of zeros is next."""
        if not self._left:
            self._fill()
        return self._left if self._data is None else 0

    def take(self, length: int) -> bytes | None:
        parts: list[bytes] = []
        zeros = True
        while length:
            if not self._left:
                self._fill()
            step = min(self._left, length)
            if self._data is None:
                parts.append(b"" if zeros and step == length and not parts else bytes(step))
            else:
                zeros = False
                parts.append(self._data[self._at : self._at + step])
            self._at, self._left, length = self._at + step, self._left - step, length - step
        if zeros:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)


def second_read(
    store: Store, path: Path, medium: Medium, region: Extent, meter: Meter, before: int, total: int
) -> tuple[int, ...]:
    """Read a region again after re-opening the medium; offsets (on the medium) where it differs from the store."""
    medium.reopen()
    if region.length and medium.digest(region.start, min(512, region.length)) is not None:
        unlike = _digest_read(store, path, medium, region, meter, before, total)
        if not unlike:
            return ()
    expected = _Expected(store, path)
    ranges = medium.data_ranges(region.start, region.start + region.length)
    data = next(ranges, None)
    found: list[int] = []
    end, at = region.start + region.length, region.start
    while at < end:
        length = min(FIRST if at == region.start else PIECE, end - at)
        while data is not None and data[1] <= at:
            data = next(ranges, None)
        gap = (end if data is None else data[0]) - at
        if gap > 0 and expected.hole():  # both say zeros: go on to the first byte that may differ
            length = min(gap, expected.hole())
            expected.take(length)
        else:
            want = expected.take(length)
            got = medium.read(at, length)
            same = is_zero(got) if want is None else got == want
            if not same and len(found) < MAX_UNSTABLE:
                found.append(at)
        at += length
        meter.update(before + at - region.start, total, f"again {region.storage}/{region.name}")
    return tuple(found)


def _digest_read(
    store: Store, path: Path, medium: Medium, region: Extent, meter: Meter, before: int, total: int
) -> bool:
    """Compare digests that the board computes; True when any differs."""
    expected = _Expected(store, path)
    end, at = region.start + region.length, region.start
    while at < end:
        length = min(DIGEST_PIECE, end - at)
        running, left = hashlib.sha256(), length
        while left:
            step = min(PIECE, left)
            running.update(expected.take(step) or bytes(step))
            left -= step
        if medium.digest(at, length) != running.hexdigest():
            return True
        at += length
        meter.update(before + at - region.start, total, f"again {region.storage}/{region.name}")
    return False


def check_store(store: Store, backup: Manifest, meter: Meter, regions: list[RegionRecord] | None = None) -> int:
    """Read every chunk of a backup and compare it with its name; returns the bytes read."""
    chosen = list(backup.regions) if regions is None else regions
    total = sum(region.length - region.zeros for region in chosen)
    done = 0
    for region in chosen:
        stored = (piece for piece in RegionReader.of(store, backup, region).pieces() if piece.name)
        with closing(ahead(partial(_whole, store), stored)) as checked:
            for length in checked:
                done += length
                meter.update(done, total, region.label)
    return done


def _whole(store: Store, piece: Piece) -> int:
    """Length of a chunk that is what its name says; KitError (mismatch) otherwise."""
    return len(store.chunks.read(piece.name or "", piece.length))


def check_device(store: Store, backup: Manifest, transport: Transport, meter: Meter) -> Manifest:
    """Read the board again and compare; returns the manifest with the outcome (the caller decides to keep it)."""
    match = compare(backup.identity, transport.identify(), backup.storages())
    if match.verdict is Verdict.OTHER:
        raise KitError(
            ExitCode.REFUSED, f"this is not the board of {backup.id}: {match.reason}", "connect the right one"
        )
    done, total = 0, sum(region.length for region in backup.regions)
    regions = []
    for region in backup.regions:
        info = find(transport, region.storage)
        if info.size != backup.medium(region.storage)["size"]:
            raise KitError(ExitCode.REFUSED, f"{region.storage} has another size than in {backup.id}", "wrong medium?")
        medium = transport.open(region.storage)
        try:
            path = store.directory(backup) / region.index
            unlike = second_read(store, path, medium, region, meter, done, total)
        finally:
            medium.close()
        regions.append(RegionRecord(**{**vars(region), "unstable": unlike}))
        done += region.length
    good = not any(region.unstable for region in regions) and not any(f.fatal for f in backup.findings)
    good = good and (backup.consistency != "crash" or all(region.critical for region in regions))
    return backup.finish(regions=tuple(regions), verified=good, verification=record())
