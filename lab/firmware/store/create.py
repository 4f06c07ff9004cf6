# SPDX-License-Identifier: MIT
"""Making a backup: copy, look whether it is plausible, read a second time, then give it its name.

Until the last step everything lives in ``partial/<key>``; an interrupted run leaves that, and the next run of the same
board and the same regions goes on from the last line of each index.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from lab import __version__, cache
from lab.boards import Board
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware import gpt, lint
from lab.firmware.identity import Identity, Verdict, compare, device_key
from lab.firmware.lint import Finding
from lab.firmware.medium import Medium, Quiescer, Stillness, StorageInfo, Transport, is_zero
from lab.firmware.regions import Plan, Planned
from lab.firmware.store import check, disk, index, manifest
from lab.firmware.store.chunks import CHUNK
from lab.firmware.store.manifest import Manifest, RegionRecord
from lab.firmware.store.reader import RegionReader, StorageReader
from lab.firmware.store.store import Store
from lab.output import Meter

BATCH = 96 << 20
"""Bytes read between two checkpoints; a cut loses at most this much work."""

BATCH_SECONDS = 20.0
"""The same for slow links, in time."""

WORKERS = max(2, min(4, os.cpu_count() or 2))


@dataclass(frozen=True)
class Result:
    """The backup and what it cost."""

    manifest: Manifest
    read: int
    added: int
    resumed: bool


def spans(medium: Medium, start: int, length: int, piece: int = CHUNK) -> Iterator[tuple[int, int, bool]]:
    """Cut a region into pieces of a grid: (offset, length, may hold data); holes come as one long piece."""
    end, at = start + length, start
    for first, last in medium.data_ranges(start, end):
        first = start + (first - start) // piece * piece
        last = min(end, start + -(-(last - start) // piece) * piece)
        if first > at:
            yield at, first - at, False
        at = max(at, first)
        while at < last:
            take = min(piece, end - at)
            yield at, take, True
            at += take
    if at < end:
        yield at, end - at, False


class _RegionWriter:
    """Copies one region into chunks and its index, batch by batch."""

    def __init__(self, store: Store, path: Path, pool: ThreadPoolExecutor) -> None:
        self.store, self.path, self.pool = store, path, pool
        self.added = 0
        self._queue: deque[tuple[int, Future[tuple[str | None, Path | None]] | None]] = deque()
        self._lines: list[tuple[str | None, int]] = []
        self._pending: list[tuple[str, Path]] = []
        self._bytes, self._last = 0, time.monotonic()

    def _work(self, data: bytes) -> tuple[str | None, Path | None]:
        return (None, None) if is_zero(data) else self.store.chunks.prepare(data)

    def add(self, data: bytes) -> None:
        self._queue.append((len(data), self.pool.submit(self._work, data)))
        self._bytes += len(data)
        while len(self._queue) > 3 * WORKERS:
            self._take()
        if self._bytes >= BATCH or time.monotonic() - self._last > BATCH_SECONDS:
            self.checkpoint()

    def hole(self, length: int) -> None:
        self._queue.append((length, None))

    def _take(self) -> None:
        length, future = self._queue.popleft()
        name, partial = future.result() if future else (None, None)
        self._lines.append((name, length))
        if name is not None and partial is not None:
            self._pending.append((name, partial))

    def checkpoint(self) -> None:
        """Chunks first, then the lines that name them."""
        while self._queue:
            self._take()
        self.added += self.store.chunks.commit(self._pending)
        if self._lines:
            disk.append(self.path, index.encode(self._lines))
        self._pending, self._lines, self._bytes, self._last = [], [], 0, time.monotonic()

    def drain(self) -> None:
        """Wait for the workers after an error, so that none of them still writes."""
        for _, future in self._queue:
            if future is not None:
                future.cancel() or future.exception()

    def discard(self) -> None:
        """Remove what waits for a checkpoint that cannot be made: on a full disk it would be in the way."""
        self.drain()
        ready = [future.result() for _, future in self._queue if _came_to_something(future)]
        for name, partial in [*self._pending, *ready]:
            if name is not None and partial is not None:
                disk.unlink(partial)
        self._queue.clear()
        self._pending.clear()


def _came_to_something(future: Future[tuple[str | None, Path | None]] | None) -> TypeGuard[Future[Any]]:
    return future is not None and not future.cancelled() and future.exception() is None


def _resume_point(store: Store, path: Path, medium: Medium, region: Planned) -> int:
    """Bytes of the region that need not be read again; 0 when the medium does not match what was saved."""
    found = index.recover(path)
    if not found:
        return 0
    done = found[-1].offset + found[-1].length
    try:
        agree = done <= region.length and all(
            medium.read(region.start + piece.offset, piece.length) == store.chunks.read(piece.name, piece.length)
            for piece in found
            if piece.name
        )
    except KitError as error:
        if error.code is ExitCode.LINK:
            raise
        agree = False
    if not agree:
        disk.unlink(path)
        return 0
    return done


def index_name(region: Planned) -> str:
    """File name of a region's index."""
    return f"{region.storage}.{region.name}.idx"


def _copy(store: Store, work: Path, medium: Medium, region: Planned, meter: Meter, before: int, total: int) -> int:
    path = work / index_name(region)
    done = _resume_point(store, path, medium, region)
    with ThreadPoolExecutor(WORKERS) as pool:
        writer = _RegionWriter(store, path, pool)
        try:
            for offset, length, data in spans(medium, region.start + done, region.length - done):
                if data:
                    writer.add(medium.read(offset, length))
                else:
                    writer.hole(length)
                meter.update(before + offset + length - region.start, total, f"{region.storage}/{region.name}")
            writer.checkpoint()
        except (KitError, KeyboardInterrupt):
            writer.checkpoint()  # the board is gone, or the user wants to be: what was read is kept
            raise
        except OSError:
            writer.discard()
            raise
        finally:
            writer.drain()
    return writer.added


def _describe(
    store: Store, work: Path, regions: list[Planned], info: StorageInfo
) -> tuple[dict[str, Any], list[Finding]]:
    """The manifest's record of a medium and what is odd about its content, from what was just saved of it."""
    saved = StorageReader(info.name, [RegionReader(store, work / index_name(region), region) for region in regions])
    limit = info.size if info.readable is None else min(info.size, info.readable)

    def read(offset: int, length: int) -> bytes:
        try:
            return saved.read(offset, length)
        except KitError as error:
            if error.code is not ExitCode.FAILED:
                raise
            return bytes(length)  # not part of this backup

    table, _ = gpt.read(read, info.size)
    firmware = info.kind == "spi-nor" or "." in info.name
    findings = lint.check_medium(info.name, read, limit, firmware=firmware)
    partitions = [asdict(partition) for partition in table.partitions] if table else []
    return {
        "name": info.name,
        "kind": info.kind,
        "size": info.size,
        "block": info.block,
        "controller": info.controller,
        "detail": dict(info.detail),
        "gpt": {"guid": table.guid, "partitions": partitions} if table else None,
        "idblock": lint.idblock(read, 0x8000) if limit >= 0x8200 else "empty",
    }, findings


def _work_directory(store: Store, board: Board, plan: Plan, identity: Identity) -> tuple[Path, bool]:
    """The partial backup to work in and whether it is a resumed one."""
    key = cache.digest(board.name, device_key(identity), [asdict(region) for region in plan.regions])
    work = store.partial / key
    state = work / "state.json"
    if state.exists():
        known = json.loads(state.read_text())["identity"]
        if compare(known, identity, [info.name for info in plan.media]).verdict is not Verdict.OTHER:
            return work, True
    disk.remove_tree(work)
    disk.make_dir(work)
    disk.replace(state, json.dumps({"board": board.name, "identity": dict(identity)}).encode())
    return work, False


def _check_space(store: Store, plan: Plan, resumed: bool) -> None:
    free = os.statvfs(store.root)
    if not resumed and free.f_bavail * free.f_frsize < min(plan.size // 50, 64 << 20):
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"{store.root}: {free.f_bavail * free.f_frsize >> 20} MiB free, too little for {plan.size >> 20} MiB",
            "free space, or name another store with --store",
        )


def _unwritten(error: OSError) -> KitError:
    """The store cannot be written. What other backups hold is untouched, and what was read so far is kept."""
    found = from_os_error(error, "writing the backup")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return found
    hint = "free space and run it again: it goes on where it was; or name another store with --store"
    return KitError(found.code, found.message, hint)


@dataclass
class _Reading:
    """What reading the media has given."""

    added: int = 0
    done: int = 0
    media: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unstable: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _read_media(store: Store, work: Path, transport: Transport, plan: Plan, meter: Meter, twice: bool) -> _Reading:
    """Each medium: copy its regions, look at what came, and with ``twice`` read them again."""
    found, total = _Reading(), plan.size * (2 if twice else 1)
    for info in plan.media:
        regions = [region for region in plan.regions if region.storage == info.name]
        medium = transport.open(info.name)
        try:
            for region in regions:
                found.added += _copy(store, work, medium, region, meter, found.done, total)
                found.done += region.length
            record, odd = _describe(store, work, regions, info)
            found.media.append(record)
            found.findings += odd
            for region in regions if twice else ():
                path = work / index_name(region)
                found.unstable[path.name] = check.second_read(store, path, medium, region, meter, found.done, total)
                found.done += region.length
        finally:
            medium.close()
    return found


@contextmanager
def standing_still(
    transport: Transport, media: Sequence[StorageInfo], *, wanted: bool
) -> Iterator[tuple[list[str], Stillness | None]]:
    """Hold still what is mounted read-write of ``media``: the mount points, and what holds them (None: nothing)."""
    mounted = [target for info in media for target in info.mounted]
    if mounted and wanted and isinstance(transport, Quiescer):
        with transport.quiesce([info.name for info in media]) as held:
            yield mounted, held
    else:
        yield mounted, None


def _consistency(mounted: Sequence[str], held: Stillness | None) -> str:
    if not mounted:
        return "offline"
    return "quiesced" if held is not None and held.kept else "crash"


def create(
    store: Store,
    board: Board,
    transport: Transport,
    plan: Plan,
    meter: Meter,
    *,
    second_read: bool = True,
    quiesce: bool = True,
    context: dict[str, str] | None = None,
) -> Result:
    """Make a backup. Unless ``second_read`` is off, the medium is read twice and the manifest says so.

    With ``quiesce`` mounted file systems of the payload stand still meanwhile; the manifest says whether they did.
    """
    identity = dict(transport.identify())
    payload = any(not region.critical for region in plan.regions)
    try:
        with store.lock():
            work, resumed = _work_directory(store, board, plan, identity)
            _check_space(store, plan, resumed)
            with standing_still(transport, plan.media, wanted=quiesce and payload) as (mounted, held):
                found = _read_media(store, work, transport, plan, meter, second_read)
            consistency = _consistency(mounted, held)
            backup = _manifest(board, transport, plan, identity, work, found)
            verified = second_read and not any(found.unstable.values()) and not any(f.fatal for f in found.findings)
            # A file system that is written while it is read cannot be trusted to start again.
            verified = verified and (consistency != "crash" or not payload)
            more = {"held still": ", ".join(f"{path} ({how})" for path, how in held.mounts.items())} if held else {}
            backup = backup.finish(
                consistency=consistency,
                context={**(context or {}), **more},
                verified=verified,
                verification=check.record() if second_read else None,
            )
            _publish(store, work, backup)
    except OSError as error:
        raise _unwritten(error) from error
    return Result(backup, plan.size, found.added, resumed)


def _manifest(
    board: Board,
    transport: Transport,
    plan: Plan,
    identity: dict[str, str],
    work: Path,
    found: _Reading,
) -> Manifest:
    now = datetime.datetime.now(datetime.UTC)
    records = []
    for region in plan.regions:
        path = work / index_name(region)
        zeros = sum(piece.length for piece in index.pieces(path) if piece.name is None)
        records.append(
            RegionRecord(
                region.storage,
                region.name,
                region.start,
                region.length,
                region.critical,
                path.name,
                index.digest(path),
                zeros,
                found.unstable.get(path.name, ()),
            )
        )
    stamp = now.strftime("%Y%m%dt%H%M%Sz")
    tail = cache.digest(identity, [record.index_sha256 for record in records], now.isoformat())[:6]
    return Manifest(
        id=f"{board.name}-{stamp}-{tail}",
        board=board.name,
        created=now.isoformat(timespec="microseconds"),
        kit=__version__,
        transport=transport.name,
        device=device_key(identity),
        identity=identity,
        consistency="offline",
        complete=not plan.missing,
        missing=plan.missing,
        verified=False,
        verification=None,
        media=tuple(found.media),
        regions=tuple(records),
        findings=tuple(found.findings),
    )


def _publish(store: Store, work: Path, backup: Manifest) -> None:
    """The manifest last, then one rename: the backup is there as a whole or not at all."""
    disk.replace(work / manifest.NAME, manifest.dump(backup))
    disk.unlink(work / "state.json")
    disk.sync_dir(work)
    disk.rename(work, store.backups / backup.id)
    disk.sync_dir(store.backups)
    disk.sync_dir(store.partial)
