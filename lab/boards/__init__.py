# SPDX-License-Identifier: MIT
"""Boards: one yaml file each, the only place where facts about a board are written down.

``load("orangepi-5")`` gives a `Board`; backup plans, labgrid environments, kas files and pages of the documentation
derive from it. Storage is named by the address of its controller: a device name such as ``mmcblk0`` means the eMMC on
one board and the SD card on another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from lab.errors import ExitCode, KitError

ROOT = Path(__file__).parent

SECTOR = 512


@dataclass(frozen=True)
class Region:
    """A part of a medium that is backed up and written as one: ``start`` and ``end`` in bytes, end exclusive."""

    name: str
    start: int
    end: int | None
    critical: bool
    magic: str | None = None
    magic_at: int = 0

    def resolve(self, size: int) -> tuple[int, int]:
        """Start and end in bytes on a medium of ``size`` bytes; an empty range when the medium is too small."""
        start = self.start if self.start >= 0 else max(0, size + self.start)
        end = size if self.end is None else self.end if self.end >= 0 else max(0, size + self.end)
        end = min(end, size)
        return min(start, end), end


@dataclass(frozen=True)
class Storage:
    """A medium of a board. ``rockusb`` is the bit index of the storage in the rockusb protocol."""

    name: str
    kind: str
    controller: int
    regions: tuple[Region, ...]
    span: int = 1
    removable: bool = False
    optional: bool = False
    rockusb: int | None = None
    size: int | None = None
    hardware_partitions: tuple[str, ...] = ()

    def at(self, address: int) -> bool:
        """Whether a controller at ``address`` is this storage's."""
        return self.controller <= address < self.controller + self.span


@dataclass(frozen=True)
class Console:
    """The debug UART: Linux device, baud rate, controller address."""

    device: str
    baud: int
    uart: int


@dataclass(frozen=True)
class Board:
    """Everything the kit knows about a board."""

    name: str
    title: str
    virtual: bool
    soc: str
    compatible: tuple[str, ...]
    dtb: str
    notes: tuple[str, ...]
    console: Console
    usb: tuple[int, int]
    storage: tuple[Storage, ...]
    boot_order: tuple[str, ...]
    button: str
    loaders: tuple[tuple[str, str], ...]
    features: tuple[str, ...]
    target: str
    places: tuple[str, ...]
    kas: str

    def storage_named(self, name: str) -> Storage:
        """The storage called ``name``; KitError (usage) when the board has none."""
        for storage in self.storage:
            if storage.name == name:
                return storage
        known = ", ".join(storage.name for storage in self.storage)
        raise KitError(ExitCode.USAGE, f"{self.name} has no storage called {name}", f"it has: {known}")

    def storage_at(self, address: int) -> Storage | None:
        """The storage whose controller is at ``address``."""
        return next((storage for storage in self.storage if storage.at(address)), None)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of board files."""
    document: dict[str, Any] = json.loads((ROOT / "board.schema.json").read_text())
    return document


def names() -> list[str]:
    """The boards the kit knows, sorted."""
    return sorted(path.stem for path in ROOT.glob("*.yaml"))


def load(name: str) -> Board:
    """The board of that name, or of a yaml file when ``name`` ends in ``.yaml``."""
    if name.endswith(".yaml"):
        return _load(Path(name).resolve(), name)
    if name not in names():
        raise KitError(ExitCode.USAGE, f"no board is called {name}", f"boards: {', '.join(names())}")
    return _load(ROOT / f"{name}.yaml", name)


@cache
def _load(path: Path, name: str) -> Board:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise KitError(ExitCode.USAGE, f"no board is called {name}", f"boards: {', '.join(names())}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Board:
    """A board from the text of its file; ``where`` names it in errors."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = str(error).replace("\n", " ")
        raise KitError(ExitCode.USAGE, f"{where}: not YAML: {line}", "correct the file") from error
    try:
        jsonschema.validate(raw, schema())
    except jsonschema.ValidationError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "top level"
        raise KitError(
            ExitCode.USAGE, f"{where}: {place}: {error.message}", "see lab/boards/board.schema.json"
        ) from error
    _check(raw, where)
    return _board(raw)


def _check(raw: dict[str, Any], where: str) -> None:
    stored = [entry["name"] for entry in raw["storage"]]
    addresses = [entry["controller"] for entry in raw["storage"]]
    for what, values in (("name", stored), ("controller", addresses)):
        if len(set(values)) != len(values):
            raise KitError(ExitCode.USAGE, f"{where}: storage: the same {what} twice", "correct the file")
    unknown = [name for name in raw["boot"]["order"] if name != "usb" and name not in stored]
    if unknown:
        raise KitError(ExitCode.USAGE, f"{where}: boot/order: no storage called {unknown[0]}", f"it has: {stored}")


def _board(raw: dict[str, Any]) -> Board:
    console, usb = raw["console"], raw.get("usb", {"vendor": 0x2207, "product": 0x350B})
    return Board(
        name=raw["name"],
        title=raw["title"],
        virtual=raw.get("virtual", False),
        soc=raw["soc"],
        compatible=tuple(raw["compatible"]),
        dtb=raw["dtb"],
        notes=tuple(raw.get("notes", ())),
        console=Console(console["device"], console["baud"], int(console["uart"], 16)),
        usb=(usb["vendor"], usb["product"]),
        storage=tuple(_storage(entry) for entry in raw["storage"]),
        boot_order=tuple(raw["boot"]["order"]),
        button=raw["boot"].get("button", ""),
        loaders=tuple((entry["sha256"], entry["note"]) for entry in raw["boot"].get("loaders", ())),
        features=tuple(raw["features"]),
        target=raw["labgrid"]["target"],
        places=tuple(raw["labgrid"]["places"]),
        kas=raw["kas"],
    )


def _storage(entry: dict[str, Any]) -> Storage:
    return Storage(
        name=entry["name"],
        kind=entry["kind"],
        controller=int(entry["controller"], 16),
        regions=tuple(Region(**region) for region in entry["regions"]),
        span=entry.get("span", 1),
        removable=entry.get("removable", False),
        optional=entry.get("optional", False),
        rockusb=entry.get("rockusb"),
        size=entry.get("size"),
        hardware_partitions=tuple(entry.get("hardware_partitions", ())),
    )
