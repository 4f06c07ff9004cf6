# SPDX-License-Identifier: MIT
"""GUID partition tables: read, check both copies, name the partitions. UEFI specification 2.10, chapter 5.3."""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass

SECTOR = 512
MAGIC = b"EFI PART"
_HEADER = struct.Struct("<8s4sIII QQQQ 16s QIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class Partition:
    """``start`` and ``length`` in bytes."""

    number: int
    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Table:
    """A table with good CRCs: disk GUID, where its other copy should be, its partitions; entries in bytes."""

    guid: str
    lba: int
    other_lba: int
    last_usable: int
    entries: tuple[int, int]
    partitions: tuple[Partition, ...]

    def extents(self) -> list[tuple[int, int]]:
        """Where the bytes of both copies are (start, end), zeros among the entries too: checksums go over them."""
        size = self.entries[1] - self.entries[0]
        if self.lba < self.other_lba:  # MBR, header, entries; at the end entries, header
            return [(0, self.entries[1]), (self.other_lba * SECTOR - size, (self.other_lba + 1) * SECTOR)]
        return [(self.entries[0], (self.lba + 1) * SECTOR)]


class GptError(ValueError):
    """The table is damaged; the text says where."""


def parse(header: bytes, entries: Callable[[int, int], bytes]) -> Table:
    """A table from its 512-byte header; ``entries(offset, length)`` reads the medium.

    Raises GptError when a checksum or a field is wrong.
    """
    if len(header) < _HEADER.size or header[:8] != MAGIC:
        raise GptError("no GPT signature")
    fields = _HEADER.unpack_from(header)
    _, _, size, crc, _, lba, other, _, last, guid, table_lba, count, entry_size, table_crc = fields
    if not _HEADER.size <= size <= SECTOR:
        raise GptError(f"header size {size}")
    if zlib.crc32(header[:16] + bytes(4) + header[20:size]) != crc:
        raise GptError("header checksum is wrong")
    if entry_size < _ENTRY.size or count * entry_size > 1 << 20:
        raise GptError(f"{count} entries of {entry_size} bytes")
    table = entries(table_lba * SECTOR, count * entry_size)
    if zlib.crc32(table) != table_crc:
        raise GptError("checksum of the entries is wrong")
    found = []
    for index in range(count):
        kind, _, first, end, _, name = _ENTRY.unpack_from(table, index * entry_size)
        if kind != bytes(16):
            text = name.decode("utf-16-le", errors="replace").partition("\0")[0]
            found.append(Partition(index + 1, text, first * SECTOR, (end - first + 1) * SECTOR))
    place = (table_lba * SECTOR, table_lba * SECTOR + len(table))
    return Table(str(uuid.UUID(bytes_le=guid)), lba, other, last, place, tuple(sorted(found, key=lambda p: p.start)))


def read(read: Callable[[int, int], bytes], size: int) -> tuple[Table | None, list[str]]:
    """The primary table (or, when it is damaged, the copy) and what is wrong with the pair."""
    problems = []
    tables: list[Table | None] = []
    for label, offset in (("primary", SECTOR), ("copy", size - SECTOR)):
        try:
            if size < 64 * SECTOR:
                raise GptError("no GPT signature")
            tables.append(parse(read(offset, SECTOR), lambda at, n: read(at, n) if at + n <= size else b""))
        except GptError as error:
            tables.append(None)
            problems.append(f"GPT {label}: {error}")
    first, second = tables
    if first is None and second is None and all("no GPT signature" in text for text in problems):
        return None, []
    if first and second and first.guid != second.guid:
        problems.append("GPT: the two copies have different disk GUIDs")
    if first and first.other_lba != size // SECTOR - 1:
        problems.append(
            f"GPT primary: expects its copy at sector {first.other_lba}, the medium ends at {size // SECTOR - 1}"
        )
    return first or second, problems


BOOTABLE = 1 << 2
"""Attribute "legacy BIOS bootable", which U-Boot takes for the mark of the partition to boot from."""


def bootable(read: Callable[[int, int], bytes]) -> list[int]:
    """Numbers of the partitions that carry the mark, by the primary table."""
    header = read(SECTOR, SECTOR)
    parse(header, read)  # its checksums
    fields = _HEADER.unpack_from(header)
    first, count, size = fields[10] * SECTOR, fields[11], fields[12]
    entries = [_ENTRY.unpack(read(first + index * size, _ENTRY.size)) for index in range(count)]
    return [index + 1 for index, entry in enumerate(entries) if entry[0] != bytes(16) and entry[4] & BOOTABLE]


def build(size: int, partitions: list[tuple[str, int, int]], guid: uuid.UUID) -> tuple[bytes, bytes]:
    """Head (MBR, header, entries: 34 sectors) and tail (entries, header: 33 sectors) of a table.

    ``partitions`` are (name, start, length) in bytes. For images that tests and drills make.
    """
    sectors = size // SECTOR
    kind = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    table = bytearray(128 * 128)
    for index, (name, start, length) in enumerate(partitions):
        own = uuid.uuid5(guid, f"{index}{name}").bytes_le
        text = name.encode("utf-16-le").ljust(72, b"\0")
        _ENTRY.pack_into(table, index * 128, kind, own, start // SECTOR, (start + length) // SECTOR - 1, 0, text)
    crc = zlib.crc32(table)

    def header(own: int, other: int, entries: int) -> bytes:
        values = (MAGIC, b"\0\0\1\0", 92, 0, 0, own, other, 34, sectors - 34, guid.bytes_le, entries, 128, 128, crc)
        raw = bytearray(_HEADER.pack(*values))
        struct.pack_into("<I", raw, 16, zlib.crc32(raw[:92]))
        return bytes(raw).ljust(SECTOR, b"\0")

    mbr = bytearray(SECTOR)
    mbr[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    mbr[510:512] = b"\x55\xaa"
    head = bytes(mbr) + header(1, sectors - 1, 2) + bytes(table)
    return head, bytes(table) + header(sectors - 1, 1, sectors - 33)
