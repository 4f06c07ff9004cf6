# SPDX-License-Identifier: MIT
"""What belongs into a backup: the board file's regions laid over the media that a transport shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware import gpt
from lab.firmware.medium import StorageInfo, Transport


@dataclass(frozen=True)
class Planned:
    """A region to read: bytes ``start`` to ``start + length`` of a medium."""

    storage: str
    name: str
    start: int
    length: int
    critical: bool


@dataclass(frozen=True)
class Plan:
    """Regions to read, the media they are on, and what the transport cannot reach (with the reason)."""

    regions: tuple[Planned, ...]
    media: tuple[StorageInfo, ...]
    missing: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(region.length for region in self.regions)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def split_partitions(start: int, end: int, table: gpt.Table | None, name: str) -> list[tuple[str, int, int]]:
    """A region cut at partition borders: (name, start, end) without gaps or overlaps."""
    pieces: list[tuple[str, int, int]] = []
    at = start
    for partition in table.partitions if table else ():
        first, last = max(partition.start, at), min(partition.start + partition.length, end)
        if first >= last:
            continue
        if first > at:
            pieces.append((f"{name}-gap-{at:x}", at, first))
        label = _slug(partition.name)
        pieces.append((f"p{partition.number}-{label}" if label else f"p{partition.number}", first, last))
        at = last
    if at < end:
        pieces.append((f"{name}-gap-{at:x}" if pieces else name, at, end))
    return pieces


def _medium_regions(board: Board, info: StorageInfo, read: Callable[[int, int], bytes]) -> list[Planned]:
    base, _, part = info.name.partition(".")
    if part:
        return [Planned(info.name, "whole", 0, info.size, True)]
    visible = info.size if info.readable is None else min(info.size, info.readable)
    table = gpt.read(lambda at, n: read(at, n) if at + n <= visible else bytes(n), info.size)[0]
    regions = []
    for region in board.storage_named(base).regions:
        start, end = region.resolve(info.size)
        pieces = [(region.name, start, end)] if region.critical else split_partitions(start, end, table, region.name)
        regions += [Planned(info.name, name, a, b - a, region.critical) for name, a, b in pieces if b > a]
    return regions


def make(board: Board, transport: Transport, storages: Iterable[str] = (), *, firmware_only: bool = False) -> Plan:
    """The plan of a backup; ``storages`` limits it to some media, ``firmware_only`` to boot-critical regions."""
    chosen = set(storages)
    for name in chosen:
        board.storage_named(name.partition(".")[0])
    known = {storage.name for storage in board.storage}
    media = [info for info in transport.storages() if info.name.partition(".")[0] in known]
    if chosen:
        media = [info for info in media if info.name in chosen or info.name.partition(".")[0] in chosen]
    missing = []
    seen = {info.name for info in media}
    for storage in board.storage:
        if chosen and storage.name not in chosen:
            continue
        expected = [storage.name, *(f"{storage.name}.{part}" for part in storage.hardware_partitions)]
        if storage.optional and storage.name not in seen:
            continue
        missing += [f"{name}: {transport.name} does not show it" for name in expected if name not in seen]
    regions: list[Planned] = []
    for info in media:
        medium = transport.open(info.name)
        try:
            found = _medium_regions(board, info, medium.read)
        finally:
            medium.close()
        limit = info.size if info.readable is None else info.readable
        for region in found:
            if firmware_only and not region.critical:
                missing.append(f"{region.storage}/{region.name}: left out, only firmware was asked for")
            elif region.start + region.length > limit:
                reads = f"this loader reads {limit >> 20} MiB truthfully"
                missing.append(f"{region.storage}/{region.name}: {reads}; save it from Linux, ums or a card reader")
                if region.critical and region.start < limit:
                    regions.append(Planned(region.storage, region.name, region.start, limit - region.start, True))
            else:
                regions.append(region)
    if not regions:
        raise KitError(
            ExitCode.NO_DEVICE,
            f"{transport.name} shows nothing of {board.title} that can be saved",
            "; ".join(missing) or "is it the right board?",
        )
    return Plan(tuple(regions), tuple(media), tuple(missing))
