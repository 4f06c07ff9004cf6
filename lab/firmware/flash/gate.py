# SPDX-License-Identifier: MIT
"""The gate: nothing is written without a verified backup of this very board that covers it and can be read now."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from lab.errors import ExitCode, KitError
from lab.firmware.flash.plan import Item
from lab.firmware.identity import Identity, Verdict, compare
from lab.firmware.store import Store, check
from lab.firmware.store.manifest import Manifest
from lab.output import Meter

MAX_AGE_DAYS = 30


def _shortfall(backup: Manifest, items: Iterable[Item], sizes: dict[str, int], max_age: int) -> str:
    """Why a backup is not enough; empty when it is."""
    if not backup.verified:
        return "not verified by a second read"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(backup.created)
    if age > datetime.timedelta(days=max_age):
        return f"{age.days} days old (limit {max_age})"
    for item in items:
        if not backup.covers(item.storage, item.start, item.end):
            return f"does not cover {item.label}"
        if int(backup.medium(item.storage)["size"]) != sizes.get(item.storage):
            return f"{item.storage} had another size"
    for storage in {item.storage for item in items}:
        lost = [text for text in backup.missing if text.startswith(f"{storage}/partition-table") or text == storage]
        if lost:
            return f"incomplete: {lost[0]}"
    return ""


def find_backup(
    store: Store,
    identity: Identity,
    items: list[Item],
    sizes: dict[str, int],
    create_command: str,
    *,
    wanted: str | None = None,
    trust_identity: bool = False,
    max_age: int = MAX_AGE_DAYS,
) -> Manifest:
    """The backup that allows the items to be written, newest first; KitError (refused) says what is missing."""
    storages = list(dict.fromkeys(item.storage for item in items))
    if wanted:
        backup = store.load(wanted)
        match = compare(backup.identity, identity, storages)
        if match.verdict is Verdict.OTHER:
            raise KitError(ExitCode.REFUSED, f"{backup.id} is of another board: {match.reason}", "connect that board")
        if match.verdict is Verdict.UNKNOWN and not trust_identity:
            raise KitError(
                ExitCode.REFUSED,
                f"it cannot be told whether {backup.id} is of this board: {match.reason}",
                "reach the board in a way that shows its identity, or, when sure, add --trust-identity (logged)",
            )
        candidates = [backup]
    else:
        candidates = store.of_device(identity, storages)
    reasons = []
    for backup in candidates:
        why = _shortfall(backup, items, sizes, max_age)
        if not why:
            return backup
        reasons.append(f"{backup.id}: {why}")
    message = "no verified backup of this board covers what would be written"
    if reasons:
        message += f" ({'; '.join(reasons[:3])})"
    raise KitError(ExitCode.REFUSED, message, f"make one: {create_command}")


def assert_readable(store: Store, backup: Manifest, items: Iterable[Item], meter: Meter) -> None:
    """Every chunk that a rollback of the items would need is there and whole."""
    needed = [
        region
        for region in backup.regions
        if any(
            item.storage == region.storage and item.start < region.start + region.length and region.start < item.end
            for item in items
        )
    ]
    try:
        check.check_store(store, backup, meter, needed)
    except KitError as error:
        if error.code is ExitCode.MISMATCH:
            raise KitError(
                ExitCode.REFUSED,
                f"{backup.id} is damaged: {error.message}",
                "make a new backup before flashing",
            ) from error
        raise
