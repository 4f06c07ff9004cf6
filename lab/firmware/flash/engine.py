# SPDX-License-Identifier: MIT
"""Writing a plan: compare, write what differs in the safe order, read everything back, journal each step.

Writing is repeatable: a resumed run compares again and writes what still differs, so the journal needs states only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.firmware.flash.plan import FlashPlan, Item
from lab.firmware.flash.sources import Source
from lab.firmware.identity import Verdict, compare
from lab.firmware.medium import Medium, StorageInfo, Transport, find, is_zero
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


def check_board(plan: FlashPlan, transport: Transport) -> None:
    """Is this still the board that was planned for, unmounted?"""
    match = compare(plan.identity, transport.identify(), plan.storages())
    if match.verdict is Verdict.OTHER or (match.verdict is Verdict.UNKNOWN and not plan.identity_trusted):
        raise KitError(
            ExitCode.REFUSED,
            f"not the board that {plan.id} was planned for: {match.reason}",
            "connect the right one",
        )
    for storage in plan.storages():
        info = find(transport, storage)
        if info.mounted:
            raise KitError(
                ExitCode.REFUSED,
                f"{storage} is mounted read-write at {', '.join(info.mounted)}",
                "boot from another medium (SD card, network, RAM), or flash over USB",
            )


class Run:
    """One pass over a plan with one source per item."""

    def __init__(
        self, plan: FlashPlan, transport: Transport, source_of: SourceOf, meter: Meter, journal: Journal
    ) -> None:
        self.plan, self.transport, self.meter, self.journal = plan, transport, meter, journal
        self._sources = source_of
        self.done = 0
        self.total = 3 * plan.size

    def _step(self, length: int, text: str) -> None:
        self.done += length
        self.meter.update(self.done, self.total, text)

    def _media(self, *, write: bool) -> Iterator[tuple[Item, Medium, Source]]:
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

    def differing(self, known: SourceOf | None) -> list[list[tuple[int, int]]]:
        """Chunks of each item that differ from the source.

        With ``known``, content that is neither the source's nor known's is refused: a rollback could not bring it back.
        """
        found: list[list[tuple[int, int]]] = []
        for item, medium, source in self._media(write=False):
            old = known(item, medium.info) if known else None
            differ = []
            for offset, length in chunks(item):
                have = medium.read(offset, length)
                if have != source.read(offset, length):
                    if old is not None and have != old.read(offset, length):
                        raise KitError(
                            ExitCode.REFUSED,
                            f"{item.label} changed at byte {offset} since the backup {self.plan.backup}",
                            "make a new backup first: a rollback could not bring this content back",
                        )
                    differ.append((offset, length))
                self._step(length, f"compare {item.label}")
            found.append(differ)
        return found

    def write(self, differ: list[list[tuple[int, int]]]) -> int:
        """Write chunks; returns bytes."""
        written = 0
        for (item, medium, source), pieces in zip(self._media(write=True), differ, strict=True):
            for offset, length in pieces:
                medium.write(offset, source.read(offset, length))
                written += length
                self._step(length, f"write {item.label}")
            medium.flush()
        return written

    def read_back(self) -> list[list[tuple[int, int]]]:
        """Chunks that do not read back as they should, from a freshly opened medium."""
        found: list[list[tuple[int, int]]] = []
        fresh: set[str] = set()
        for item, medium, source in self._media(write=False):
            if item.storage not in fresh:
                medium.reopen()
                fresh.add(item.storage)
            wrong = []
            for offset, length in chunks(item):
                want, got = source.read(offset, length), medium.read(offset, length)
                if got != want and not (is_zero(want) and is_zero(got)):
                    wrong.append((offset, length))
                self._step(length, f"read back {item.label}")
            found.append(wrong)
        return found

    def execute(self, *, known: SourceOf | None, start: str, end: str) -> Report:
        """Compare, write, read back. ``start`` and ``end`` are the journal's states."""
        differ = self.differing(known)
        self.journal.add(start, chunks=sum(map(len, differ)))
        written = self.write(differ)
        self.journal.add("written")
        wrong, repeated = self.read_back(), 0
        if any(wrong):
            repeated = sum(map(len, wrong))
            written += self.write(wrong)
            wrong = self.read_back()
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
