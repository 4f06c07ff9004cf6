# SPDX-License-Identifier: MIT
"""Flash runs from the outside: plan one, run or resume it, commit it, roll it back."""

from __future__ import annotations

import errno
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lab.boards import Board
from lab.cache import file_digest
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware import gpt
from lab.firmware.ahead import beside
from lab.firmware.flash import bmap, engine, gate, unpack
from lab.firmware.flash import plan as plans
from lab.firmware.flash.engine import Journal, Report, Run
from lab.firmware.flash.plan import FlashPlan, ImageFile, Item
from lab.firmware.flash.sources import BackupSource, ImageSource, Source
from lab.firmware.medium import StorageInfo, Transport, find
from lab.firmware.store import Store, disk
from lab.firmware.store.manifest import Manifest
from lab.firmware.store.reader import StorageReader
from lab.output import Meter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """What the user wants written to one medium."""

    storage: str
    image: Path | None = None
    block_map: Path | None = None
    loader: Path | None = None
    loader_sha256: str | None = None
    backup: str | None = None
    trust_identity: bool = False
    max_age: int = gate.MAX_AGE_DAYS


def _image_items(
    board: Board, info: StorageInfo, wish: Wish, given: Path, images: list[ImageFile], meter: Meter
) -> tuple[list[Item], list[str]]:
    if not given.is_file():
        raise KitError(ExitCode.USAGE, f"{given} is not an image file", "give a whole-disk image, raw or compressed")
    image = unpack.raw(given, meter)
    map_path = wish.block_map or bmap.find(given, compressed=image != given)
    block_map = bmap.load(map_path) if map_path else None
    if block_map:
        bmap.check(image, block_map)
    images.append(ImageFile(str(image.resolve()), 0, file_digest(image)))
    source = ImageSource(image, 0, b"\0")
    try:
        table = gpt.read(lambda at, n: source.read(at, n) if at + n <= source.size else bytes(n), source.size)[0]
    finally:
        source.close()
    return plans.image_items(board, info, image, block_map, table, len(images) - 1)


def prepare(
    store: Store, board: Board, transport: Transport, wish: Wish, meter: Meter, create_command: str
) -> FlashPlan:
    """A plan that has passed the gate; nothing is written, neither to the board nor to the store."""
    info = find(transport, wish.storage)
    items: list[Item] = []
    images: list[ImageFile] = []
    notes: list[str] = []
    if wish.image:
        found, remarks = _image_items(board, info, wish, wish.image, images, meter)
        items += found
        notes += remarks
    if wish.loader:
        item, base, sha256 = plans.loader_item(board, info, wish.loader, wish.loader_sha256, len(images))
        images.append(ImageFile(str(wish.loader.resolve()), base, sha256))
        items.append(item)
        notes = [note for note in notes if "is left alone" not in note]
    if not items:
        raise KitError(ExitCode.USAGE, "nothing to write", "; ".join(notes) or "name an image or a loader")
    identity = dict(transport.identify())
    sizes = {entry.name: entry.size for entry in transport.storages()}
    backup = gate.find_backup(
        store,
        identity,
        items,
        sizes,
        create_command,
        wanted=wish.backup,
        trust_identity=wish.trust_identity,
        max_age=wish.max_age,
    )
    gate.assert_readable(store, backup, items, meter)
    if wish.trust_identity:
        log.warning("identity of the board is taken on trust for backup %s", backup.id)
        notes.append("THE BOARD'S IDENTITY IS TAKEN ON TRUST")
    return plans.make(board, identity, backup.id, items, images, notes, identity_trusted=wish.trust_identity)


def changes(store: Store, plan: FlashPlan, infos: dict[str, StorageInfo]) -> list[dict[str, object]]:
    """Region by region, how many bytes differ from the backup."""
    backup = store.load(plan.backup)
    readers = {name: StorageReader.of(store, backup, name) for name in plan.storages()}
    rows: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        images = plans.open_images(plan, infos, stack)
        plans.check_images(plan, images)
        for item in plan.items:
            source = images[item.source, infos[item.storage].kind]
            differ = sum(
                length
                for offset, length in engine.chunks(item)
                if source.read(offset, length) != readers[item.storage].read(offset, length)
            )
            row = rows.setdefault(
                item.label, {"region": item.label, "bytes": 0, "changed": 0, "critical": item.critical}
            )
            row["bytes"] = int(str(row["bytes"])) + item.end - item.start
            row["changed"] = int(str(row["changed"])) + differ
    return list(rows.values())


def plan_path(store: Store, run: str) -> Path:
    """The plan's file of the run of that id, or of the newest with ``latest``."""
    if run == "latest":
        known = sorted(store.runs.glob("flash-*/plan.json")) if store.runs.is_dir() else []
        if not known:
            raise KitError(ExitCode.USAGE, "there is no flash run yet", "npulab flash plan makes one")
        return known[-1]
    if "/" in run:
        raise KitError(ExitCode.USAGE, f"{run} is not the id of a flash run")
    return store.runs / run / "plan.json"


class Session:
    """A run that has a directory in the store."""

    def __init__(self, store: Store, plan: FlashPlan) -> None:
        self.store, self.plan = store, plan
        self.directory = store.runs / plan.id
        self.journal = Journal(self.directory)

    @staticmethod
    def load(store: Store, run: str) -> Session:
        """The run of that id, or the newest with ``latest``."""
        return Session(store, plans.load(plan_path(store, run)))

    def save(self) -> None:
        """Keep the plan; the journal begins."""
        disk.make_dir(self.directory)
        disk.replace(self.directory / "plan.json", plans.dump(self.plan))
        self.journal.add("planned", backup=self.plan.backup, trusted=self.plan.identity_trusted)

    def _backup_sources(self, backup: Manifest, *, checked: bool = False) -> engine.SourceOf:
        readers: dict[str, StorageReader] = {}

        def source(item: Item, info: StorageInfo) -> Source:
            if item.storage not in readers:
                readers[item.storage] = StorageReader.of(self.store, backup, item.storage, checked=checked)
            return BackupSource(readers[item.storage])

        return source

    def run(self, transport: Transport, meter: Meter, *, lose_changes: bool = False) -> Report:
        """Write the plan, or go on after an interruption.

        Content that changed since the backup is refused unless ``lose_changes``: a rollback could not restore it.
        """
        state = self.journal.state
        if state in ("verified", "committed"):
            return Report(self.plan.size, 0, 0)
        if state in ("rolling-back", "rolled-back"):
            raise KitError(ExitCode.USAGE, f"{self.plan.id} was rolled back", "plan again")
        media = engine.check_board(self.plan, transport)
        backup = self.store.load(self.plan.backup)
        # After an interruption a chunk may be torn: neither old nor new, and still ours.
        careful = not (lose_changes or "writing" in self.journal.states())
        # What is compared has passed the gate by then.
        known = self._backup_sources(backup, checked=True) if careful else None
        with ExitStack() as stack:
            images = plans.open_images(self.plan, media, stack)
            checked = stack.enter_context(beside(partial(plans.check_images, self.plan, images)))
            gate.assert_readable(self.store, backup, self.plan.items, meter)

            def source(item: Item, info: StorageInfo) -> Source:
                return images[item.source, info.kind]

            run = Run(self.plan, transport, source, meter, self.journal, checked.result)
            return self._execute(run, known, "writing", "verified")

    def rollback(self, transport: Transport, meter: Meter) -> Report:
        """Bring back what the backup holds for everything that the plan covers."""
        if self.journal.state == "planned":
            raise KitError(ExitCode.USAGE, f"{self.plan.id} has written nothing", "there is nothing to roll back")
        engine.check_board(self.plan, transport)
        backup = self.store.load(self.plan.backup)
        run = Run(self.plan, transport, self._backup_sources(backup), meter, self.journal)
        return self._execute(run, None, "rolling-back", "rolled-back")

    def _execute(self, run: Run, known: engine.SourceOf | None, start: str, end: str) -> Report:
        go_on = f"go on with `npulab flash run {self.plan.id}` or back with `npulab flash rollback {self.plan.id}`"
        try:
            return run.execute(known=known, start=start, end=end)
        except KeyboardInterrupt:
            raise KitError(
                ExitCode.ABORTED, f"{self.plan.id} was interrupted; the board may hold a mixture", go_on
            ) from None
        except KitError as error:
            if error.code is ExitCode.LINK:
                raise KitError(error.code, f"{self.plan.id}: {error.message}", go_on) from error
            raise
        except OSError as error:  # the journal, or an image file
            found = from_os_error(error, self.plan.id)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise KitError(found.code, found.message, f"free space, then {go_on}" if full else go_on) from error

    def commit(self) -> None:
        """The new content has proven itself: the run is over, its backup stays."""
        if self.journal.state == "committed":
            return
        if self.journal.state != "verified":
            raise KitError(
                ExitCode.USAGE, f"{self.plan.id} is {self.journal.state}, not verified", "finish the run first"
            )
        self.journal.add("committed")


def restore_plan(
    store: Store,
    board: Board,
    transport: Transport,
    backup: Manifest,
    storages: list[str],
    *,
    trust_identity: bool = False,
) -> FlashPlan:
    """A plan that writes media of a backup back; it is its own backup."""
    known = {info.name: info for info in transport.storages()}
    items = []
    for region in backup.regions:
        if storages and region.storage not in storages and region.storage.partition(".")[0] not in storages:
            continue
        if region.storage not in known:
            raise KitError(
                ExitCode.NO_DEVICE, f"{transport.name} does not reach {region.storage}", "name media with --storage"
            )
        if known[region.storage].size != int(backup.medium(region.storage)["size"]):
            raise KitError(ExitCode.REFUSED, f"{region.storage} has another size than in {backup.id}", "wrong medium?")
        if region.unstable:
            raise KitError(
                ExitCode.REFUSED, f"{backup.id}: {region.label} was unstable when it was read", "use another backup"
            )
        items.append(Item(region.storage, region.name, region.start, region.start + region.length, region.critical, -1))
    identity = dict(backup.identity)
    return plans.make(board, identity, backup.id, items, [], [], identity_trusted=trust_identity)


def restore(store: Store, plan: FlashPlan, transport: Transport, meter: Meter) -> Report:
    """Run a restore plan; only chunks that differ are written."""
    session = Session(store, plan)
    engine.check_board(plan, transport)
    backup = store.load(plan.backup)
    gate.assert_readable(store, backup, plan.items, meter)
    session.save()
    run = Run(plan, transport, session._backup_sources(backup), meter, session.journal)
    return session._execute(run, None, "rolling-back", "rolled-back")
