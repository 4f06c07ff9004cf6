# SPDX-License-Identifier: MIT
"""What a flash run will write, in which order, and which backup stands behind it."""

from __future__ import annotations

import datetime
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event

from lab.boards import Board
from lab.cache import digest, file_digest
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware import gpt
from lab.firmware.flash import bmap
from lab.firmware.flash.sources import ImageSource
from lab.firmware.lint import IDBLOCK_MAGICS
from lab.firmware.medium import StorageInfo
from lab.firmware.regions import split_partitions

LOADER_AT = {"spi-nor": 0}
"""Where a loader image begins, by kind of medium; on all others at sector 64."""

SECTOR_64 = 64 * 512


@dataclass(frozen=True)
class Item:
    """Bytes ``start`` to ``end`` of a medium from source number ``source``."""

    storage: str
    name: str
    start: int
    end: int
    critical: bool
    source: int

    @property
    def label(self) -> str:
        """``emmc/p1-boot``."""
        return f"{self.storage}/{self.name}"


@dataclass(frozen=True)
class ImageFile:
    """An image to write, its byte 0 at ``base`` of the medium."""

    path: str
    base: int
    sha256: str


@dataclass(frozen=True)
class FlashPlan:
    """A run. ``identity`` is the board's at planning time, ``backup`` the id of the backup that a rollback uses."""

    id: str
    board: str
    identity: dict[str, str]
    backup: str
    items: tuple[Item, ...]
    images: tuple[ImageFile, ...]
    created: str
    identity_trusted: bool = False
    notes: tuple[str, ...] = field(default=())

    def storages(self) -> list[str]:
        """The media that are written."""
        return list(dict.fromkeys(item.storage for item in self.items))

    @property
    def size(self) -> int:
        """Bytes that may be written."""
        return sum(item.end - item.start for item in self.items)


def ordered(items: list[Item]) -> list[Item]:
    """Payload first, then the copy of the partition table, the table, and the loader last."""
    rank = {"partition-table-copy": 1, "partition-table": 2}
    return sorted(items, key=lambda i: (rank.get(i.name, 3) if i.critical else 0, i.storage, i.start))


def _clip(info: StorageInfo, ranges: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    found = []
    for first, last in ranges:
        first = max(first // info.block * info.block, start)
        last = min(-(-last // info.block) * info.block, end)
        if first < last:
            found.append((first, last))
    return found


def _union(ranges: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The same bytes up to ``size``, each once, in order."""
    found: list[tuple[int, int]] = []
    for start, end in sorted((max(a, 0), min(b, size)) for a, b in ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found


def image_items(
    board: Board, info: StorageInfo, image: Path, block_map: bmap.BlockMap | None, table: gpt.Table | None, source: int
) -> tuple[list[Item], list[str]]:
    """Items for a whole-disk image; the loader's region is left alone, and the notes say so."""
    size = image.stat().st_size
    if size > info.size:
        raise KitError(
            ExitCode.USAGE,
            f"{image} has {size} bytes, {info.name} only {info.size}",
            "take a smaller image",
        )
    if not size:
        raise KitError(ExitCode.USAGE, f"{image} is empty")
    if block_map:
        # a map may leave out blocks of zeros, which the partition table's checksums go over
        ranges = _union([(a, b) for a, b, _ in block_map.ranges] + (table.extents() if table else []), size)
    else:
        ranges = [(0, size)]
    items, notes = [], []
    for region in board.storage_named(info.name.partition(".")[0]).regions:
        start, end = region.resolve(info.size)
        parts = _clip(info, ranges, start, end)
        if region.magic == "idblock":
            if parts:
                notes.append(f"{info.name}/{region.name} is left alone: name a loader with --loader to write one")
            continue
        pieces = [(region.name, start, end)] if region.critical else split_partitions(start, end, table, region.name)
        for name, a, b in pieces:
            items += [Item(info.name, name, x, y, region.critical, source) for x, y in _clip(info, ranges, a, b)]
    return items, notes


def loader_item(board: Board, info: StorageInfo, path: Path, stated: str | None, source: int) -> tuple[Item, int, str]:
    """The item for a loader image, its place on the medium, and its hash, when it may be written."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    found = file_digest(path)
    known = dict(board.loaders)
    if (stated or "").lower() != found and not (stated is None and found in known):
        raise KitError(
            ExitCode.REFUSED,
            f"{path}: its SHA-256 is {found}, which is not {'the stated one' if stated else 'known to the board file'}",
            "compare it with its publisher's, then state it with --loader-sha256",
        )
    base = LOADER_AT.get(info.kind, SECTOR_64)
    magic_at = 0x8000 - base
    if raw[magic_at : magic_at + 4] not in IDBLOCK_MAGICS:
        where = "u-boot-rockchip-spi.bin" if info.kind == "spi-nor" else "u-boot-rockchip.bin"
        raise KitError(ExitCode.REFUSED, f"{path}: no ID block at {magic_at:#x}, it would not start", f"is it {where}?")
    region = next((r for r in board.storage_named(info.name).regions if r.magic == "idblock"), None)
    start, end = region.resolve(info.size) if region else (0, 0)
    if region is None or base + len(raw) > end or base < start:
        raise KitError(ExitCode.REFUSED, f"{path} ({len(raw)} bytes) does not fit the loader's place on {info.name}")
    last = -(-(base + len(raw)) // info.block) * info.block
    return Item(info.name, region.name, base, last, True, source), base, found


Images = dict[tuple[int, str], ImageSource]
"""The open images of a plan by their number and the kind of medium they are for."""


def open_images(plan: FlashPlan, media: dict[str, StorageInfo], stack: ExitStack) -> Images:
    """The images as they are now, which `check_images` compares with the plan; ``stack`` closes them."""
    opened: Images = {}
    for item in plan.items:
        key = (item.source, media[item.storage].kind)
        if key not in opened:
            image, fill = plan.images[item.source], b"\xff" if key[1] == "spi-nor" else b"\0"
            opened[key] = ImageSource(Path(image.path), image.base, fill)
            stack.callback(opened[key].close)
    return opened


def check_images(plan: FlashPlan, images: Images, over: Event | None = None) -> None:
    """KitError (refused) when an image is not the planned content any more. Reads all of it, unless ``over`` is set."""
    for (number, _), opened in images.items():
        if opened.digest(over) != plan.images[number].sha256:
            raise KitError(ExitCode.REFUSED, f"{opened.path} changed since the plan was made", "plan again")


def make(
    board: Board,
    identity: dict[str, str],
    backup: str,
    items: list[Item],
    images: list[ImageFile],
    notes: list[str],
    *,
    identity_trusted: bool = False,
) -> FlashPlan:
    """A plan with its id."""
    if not items:
        raise KitError(ExitCode.USAGE, "nothing to write", "; ".join(notes) or "name an image or a loader")
    now = datetime.datetime.now(datetime.UTC)
    key = digest(board.name, identity, [asdict(i) for i in items], [asdict(i) for i in images], now.isoformat())
    return FlashPlan(
        f"flash-{now.strftime('%Y%m%dt%H%M%Sz')}-{key[:6]}",
        board.name,
        identity,
        backup,
        tuple(ordered(items)),
        tuple(images),
        now.isoformat(timespec="seconds"),
        identity_trusted,
        tuple(notes),
    )


def dump(plan: FlashPlan) -> bytes:
    """The plan as a file."""
    return json.dumps(asdict(plan), indent=1).encode() + b"\n"


def load(path: Path) -> FlashPlan:
    """The plan of a run."""
    try:
        raw = json.loads(path.read_text())
        raw["items"] = tuple(Item(**item) for item in raw["items"])
        raw["images"] = tuple(ImageFile(**image) for image in raw["images"])
        raw["notes"] = tuple(raw["notes"])
        return FlashPlan(**raw)
    except FileNotFoundError:
        raise KitError(
            ExitCode.USAGE, f"no flash run is called {path.parent.name}", "npulab flash show latest names the newest"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(ExitCode.MISMATCH, f"{path}: damaged plan ({error})", "plan again") from error
