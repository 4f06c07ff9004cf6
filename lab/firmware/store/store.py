# SPDX-License-Identifier: MIT
"""The store's root: find backups, lock it, remove what is no longer wanted."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.identity import Identity, Verdict, compare
from lab.firmware.store import disk, index, manifest
from lab.firmware.store.chunks import Chunks
from lab.firmware.store.manifest import Manifest

FORMAT = 1


def default_root() -> Path:
    """``$NPULAB_BACKUPS`` or ``npulab/backups`` in the user's data directory."""
    chosen = os.environ.get("NPULAB_BACKUPS")
    return Path(chosen).expanduser().absolute() if chosen else platformdirs.user_data_path("npulab") / "backups"


@dataclass(frozen=True)
class Entry:
    """A backup of the list: its manifest, or why it cannot be read."""

    id: str
    path: Path
    manifest: Manifest | None
    problem: KitError | None


class Store:
    """A store. Reading needs no write permission; changing needs the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.chunks = Chunks(root / "chunks")
        self.backups = root / "backups"
        self.partial = root / "partial"
        self.runs = root / "runs"
        self._check_format()

    def _check_format(self) -> None:
        path = self.root / "store.json"
        if not path.exists():
            return
        try:
            version = int(json.loads(path.read_text())["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise KitError(ExitCode.MISMATCH, f"{path}: damaged ({error})", "is this a backup store?") from error
        if version > FORMAT:
            raise KitError(ExitCode.FAILED, f"{self.root}: a store of a newer kit (format {version})", "use that kit")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to change the store, held by one run at a time; makes the store if it is not there."""
        try:
            disk.make_dir(self.root)
            for directory in (self.chunks.root, self.backups, self.partial, self.runs):
                disk.make_dir(directory)
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise from_os_error(error, f"opening the backup store {self.root}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise KitError(
                    ExitCode.INFRASTRUCTURE, f"another run is using the backup store {self.root}", "wait for it to end"
                ) from None
            if not (self.root / "store.json").exists():
                disk.replace(self.root / "store.json", json.dumps({"format": FORMAT}).encode() + b"\n")
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """All backups, oldest first; unreadable ones too."""
        found = []
        for path in sorted(self.backups.iterdir()) if self.backups.is_dir() else []:
            if path.name.endswith(".removed"):
                continue
            try:
                found.append(Entry(path.name, path, manifest.load(path / manifest.NAME), None))
            except KitError as error:
                found.append(Entry(path.name, path, None, error))
            except OSError as error:
                found.append(Entry(path.name, path, None, from_os_error(error, f"reading backup {path.name}")))
        return sorted(found, key=lambda e: (e.manifest.created if e.manifest else "", e.id))

    def load(self, backup: str) -> Manifest:
        """The manifest of a backup; ``backup`` may be a prefix of the id, or ``latest``."""
        known = self.entries()
        if backup == "latest":
            found = [entry for entry in known if entry.manifest][-1:]
        else:
            found = [entry for entry in known if entry.id.startswith(backup)] if backup else []
            found = [entry for entry in found if entry.id == backup] or found
        if len(found) != 1:
            what = "no backup" if not found else "several backups"
            raise KitError(ExitCode.USAGE, f"{what} called {backup} in {self.root}", "see npulab backup list")
        if found[0].manifest is None:
            assert found[0].problem is not None
            raise found[0].problem
        return found[0].manifest

    def directory(self, backup: Manifest) -> Path:
        """Where a backup's files are."""
        return self.backups / backup.id

    def of_device(self, identity: Identity, storages: list[str]) -> list[Manifest]:
        """Readable backups of that very board, newest first."""
        same = [
            entry.manifest
            for entry in self.entries()
            if entry.manifest and compare(entry.manifest.identity, identity, storages).verdict is Verdict.SAME
        ]
        return same[::-1]

    def rewrite(self, backup: Manifest) -> None:
        """Replace a manifest in one step."""
        disk.replace(self.directory(backup) / manifest.NAME, manifest.dump(backup))

    def prunable(self, keep: int) -> list[Manifest]:
        """Backups beyond the newest ``keep`` of their board, never a board's newest verified one."""
        if keep < 1:
            raise KitError(ExitCode.USAGE, "prune keeps at least one backup of each board")
        boards: dict[str, list[Manifest]] = {}
        for entry in self.entries():
            if entry.manifest:
                boards.setdefault(entry.manifest.device, []).append(entry.manifest)
        removable = []
        for backups in boards.values():
            newest = next((b.id for b in reversed(backups) if b.verified and b.complete), None)
            newest_any = next((b.id for b in reversed(backups) if b.verified), None)
            removable += [b for b in backups[: max(0, len(backups) - keep)] if b.id not in (newest, newest_any)]
        return removable

    def prune(self, keep: int) -> tuple[list[str], int]:
        """Remove what `prunable` lists, then chunks that nothing refers to; returns ids and bytes freed."""
        removed = []
        for backup in self.prunable(keep):
            path = self.directory(backup)
            disk.rename(path, path.with_name(path.name + ".removed"))
            disk.sync_dir(self.backups)
            removed.append(backup.id)
        for path in self.backups.glob("*.removed"):
            disk.remove_tree(path)
        return removed, self._collect()

    def _collect(self) -> int:
        """Remove unreferenced chunks, unless a backup or a partial one cannot be read: it may need any of them."""
        entries = self.entries()
        if any(entry.manifest is None for entry in entries):
            return 0
        used: set[bytes] = set()
        for path in [*self.backups.glob("*/*.idx"), *self.partial.glob("*/*.idx")]:
            if path.parent.parent == self.partial:
                index.recover(path)
            used.update(bytes.fromhex(piece.name) for piece in index.pieces(path) if piece.name)
        freed = 0
        for path in self.chunks.leftovers():
            freed += path.stat().st_size
            disk.unlink(path)
        for name, path in self.chunks.names():
            if bytes.fromhex(name) not in used:
                freed += path.stat().st_size
                disk.unlink(path)
        return freed
