# SPDX-License-Identifier: MIT
"""Writing a plan: compare, write what differs in the safe order, read everything back, journal each step.

Writing is repeatable: a resumed run compares again and writes what still differs, so the journal needs states only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lab.errors import ExitCode, KitError
from lab.firmware.ahead import ahead
from lab.firmware.flash.plan import FlashPlan, Item
from lab.firmware.flash.sources import Source
from lab.firmware.identity import Verdict, compare
from lab.firmware.medium import Medium, StorageInfo, Transport, find
from lab.firmware.store import disk
from lab.output import Meter

CHUNK = 1 << 20

STATES = ("planned", "writing", "written", "armed", "verified", "committed", "fell-back", "rolling-back", "rolled-back")
"""``armed`` and ``fell-back`` are of boot entries on trial (`lab.firmware.flash.entry`)."""

SourceOf = Callable[[Item, StorageInfo], Source]


class Journal:
    """States of a run, one JSON line each, on the disk before the next step."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.jsonl"

    def add(self, state: str, **more: object) -> None:
        """Record a state."""
        entry = {"state": state, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **more}
        disk.append(self.path, json.dumps(entry).encode() + b"\n")

    def entries(self) -> list[dict[str, Any]]:
        """All lines so far; a torn last line does not count."""
        found = []
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []:
            if line.endswith(b"\n"):
                try:
                    entry = json.loads(line)
                    found.append({**entry, "state": str(entry["state"])})
                except (ValueError, KeyError, TypeError):
                    continue
        return found

    def states(self) -> list[str]:
        """The states of all lines."""
        return [entry["state"] for entry in self.entries()]

    @property
    def state(self) -> str:
        """Where the run is."""
        return (self.states() or ["planned"])[-1]


@dataclass(frozen=True)
class Report:
    """Bytes looked at and written, and chunks that had to be written twice."""

    compared: int
    written: int
    repeated: int


def chunks(item: Item) -> list[tuple[int, int]]:
    """(offset, length) in the order of writing: critical items backwards, so that the ID block comes last."""
    found = []
    at = item.start
    while at < item.end:
        end = min(item.end, (at // CHUNK + 1) * CHUNK)
        found.append((at, end - at))
        at = end
    return found[::-1] if item.critical else found


def check_board(plan: FlashPlan, transport: Transport) -> dict[str, StorageInfo]:
    """Is this still the board that was planned for, unmounted? The media of the plan by name."""
    match = compare(plan.identity, transport.identify(), plan.storages())
    if match.verdict is Verdict.OTHER or (match.verdict is Verdict.UNKNOWN and not plan.identity_trusted):
        raise KitError(
            ExitCode.REFUSED,
            f"not the board that {plan.id} was planned for: {match.reason}",
            "connect the right one",
        )
    media = {storage: find(transport, storage) for storage in plan.storages()}
    for storage, info in media.items():
        if info.mounted:
            raise KitError(
                ExitCode.REFUSED,
                f"{storage} is mounted read-write at {', '.join(info.mounted)}",
                "boot from another medium (SD card, network, RAM), or flash over USB",
            )
    return media


class _Piece(NamedTuple):
    """A piece of a medium that was read, what belongs there, and what the backup holds."""

    number: int
    item: Item
    offset: int
    have: bytes
    source: Source
    old: Source | None


class Run:
    """One pass over a plan with one source per item. ``ready`` raises KitError when nothing may be written after all.

    The medium is read and written in one thread and in order; sources are read, unpacked and compared beside it.
    """

    def __init__(
        self,
        plan: FlashPlan,
        transport: Transport,
        source_of: SourceOf,
        meter: Meter,
        journal: Journal,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan, self.transport, self.meter, self.journal = plan, transport, meter, journal
        self._sources, self._ready = source_of, ready
        self.done = 0
        self.total = 3 * plan.size

    def _step(self, length: int, text: str) -> None:
        self.done += length
        self.meter.update(self.done, self.total, text)

    def _media(self, *, write: bool) -> Generator[tuple[Item, Medium, Source], None, None]:
        """Each item with its medium open; a medium stays open while consecutive items are on it."""
        medium: Medium | None = None
        try:
            for item in self.plan.items:
                if medium is None or medium.info.name != item.storage:
                    if medium is not None:
                        medium.flush()
                        medium.close()
                    medium = self.transport.open(item.storage, write=write)
                yield item, medium, self._sources(item, medium.info)
            if medium is not None:
                medium.flush()
        finally:
            if medium is not None:
                medium.close()

    def _read(self, known: SourceOf | None, *, back: bool) -> Generator[_Piece, None, None]:
        """All pieces of the items as the media hold them; ``back`` reads each medium freshly opened."""
        fresh: set[str] = set()
        with closing(self._media(write=False)) as media:
            for number, (item, medium, source) in enumerate(media):
                if back and item.storage not in fresh:
                    medium.reopen()
                    fresh.add(item.storage)
                old = known(item, medium.info) if known else None
                for offset, length in chunks(item):
                    yield _Piece(number, item, offset, medium.read(offset, length), source, old)
                    self._step(length, f"{'read back' if back else 'compare'} {item.label}")

    def _differs(self, piece: _Piece) -> tuple[_Piece, bool]:
        length = len(piece.have)
        differs = piece.have != piece.source.read(piece.offset, length)
        if differs and piece.old is not None and piece.have != piece.old.read(piece.offset, length):
            raise KitError(
                ExitCode.REFUSED,
                f"{piece.item.label} changed at byte {piece.offset} since the backup {self.plan.backup}",
                "make a new backup first: a rollback could not bring this content back",
            )
        return piece, differs

    def differing(self, known: SourceOf | None = None, *, back: bool = False) -> list[list[tuple[int, int]]]:
        """Chunks of each item that differ from the source; with ``back`` from freshly opened media.

        With ``known``, content that is neither the source's nor known's is refused: a rollback could not bring it back.
        """
        found: list[list[tuple[int, int]]] = [[] for _ in self.plan.items]
        with closing(self._read(known, back=back)) as pieces, closing(ahead(self._differs, pieces)) as compared:
            for piece, differs in compared:
                if differs:
                    found[piece.number].append((piece.offset, len(piece.have)))
        return found

    def write(self, differ: list[list[tuple[int, int]]]) -> int:
        """Write chunks; returns bytes. What is critical waits until all before it is on the medium."""
        written = 0
        with closing(self._media(write=True)) as media:
            for (item, medium, source), pieces in zip(media, differ, strict=True):
                if pieces and item.critical:
                    medium.flush()

                def content(piece: tuple[int, int], source: Source = source) -> tuple[int, bytes]:
                    return piece[0], source.read(*piece)

                with closing(ahead(content, pieces)) as contents:
                    for offset, data in contents:
                        medium.write(offset, data)
                        written += len(data)
                        self._step(len(data), f"write {item.label}")
        return written

    def execute(self, *, known: SourceOf | None, start: str, end: str) -> Report:
        """Compare, write, read back. ``start`` and ``end`` are the journal's states."""
        differ = self.differing(known)
        self._ready()
        self.journal.add(start, chunks=sum(map(len, differ)))
        written = self.write(differ)
        self.journal.add("written")
        wrong, repeated = self.differing(back=True), 0
        if any(wrong):
            repeated = sum(map(len, wrong))
            written += self.write(wrong)
            wrong = self.differing(back=True)
        if any(wrong):
            item = next(i for i, pieces in zip(self.plan.items, wrong, strict=True) if pieces)
            bad = next(pieces for pieces in wrong if pieces)[0][0]
            raise KitError(
                ExitCode.MISMATCH,
                f"{item.label} does not read back what was written at byte {bad}, twice",
                f"go back with: npulab flash rollback {self.plan.id}",
            )
        self.journal.add(end)
        return Report(self.plan.size, written, repeated)
