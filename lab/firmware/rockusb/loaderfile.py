# SPDX-License-Identifier: MIT
"""Loader files (``rk3588_spl_loader_*.bin``): parse, check, and refuse what would not run.

The kit never ships one. The user gives a path and its SHA-256; the board file may list known ones.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error

HEAD = struct.Struct("<4sHII7sIBIBBIBBIBBB57x")
ENTRY = struct.Struct("<BI40sIII")
MAGICS = (b"LDR ", b"BOOT")
CHIPS = {b"3588": "rk3588", b"8853": "rk3588"}
POLYNOMIAL = 0x04C10DB7


@dataclass(frozen=True)
class Entry:
    """A part of the file: kind 1 is downloaded as 0x471 (DRAM), 2 as 0x472 (usbplug), 4 goes to the storage."""

    kind: int
    name: str
    data: bytes
    delay_ms: int


@dataclass(frozen=True)
class LoaderFile:
    """A loader file whose checksum holds."""

    sha256: str
    chip: str
    entries: tuple[Entry, ...]

    def of_kind(self, kind: int) -> list[Entry]:
        """Entries in the order of the file."""
        return [entry for entry in self.entries if entry.kind == kind]


def checksum(data: bytes) -> int:
    """The file's CRC32: polynomial 0x04C10DB7, not reflected, start 0."""
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _TABLE[crc >> 24 ^ byte]
    return crc


def _table() -> list[int]:
    values = []
    for index in range(256):
        crc = index << 24
        for _ in range(8):
            crc = (crc << 1 ^ POLYNOMIAL if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        values.append(crc)
    return values


_TABLE = _table()


def refuse(path: Path, why: str, hint: str) -> KitError:
    """The error for a loader that must not be used."""
    return KitError(ExitCode.REFUSED, f"{path}: {why}", hint)


def parse(path: Path, known: dict[str, str], stated: str | None = None) -> LoaderFile:
    """A loader file that may be used: its SHA-256 is stated by the user or listed by the board, its checksum holds."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading the loader {path}") from error
    digest = hashlib.sha256(raw).hexdigest()
    if stated is not None and stated.lower() != digest:
        raise refuse(
            path, f"its SHA-256 is {digest}, not the stated one", "get the file again, or state the right hash"
        )
    if stated is None and digest not in known:
        raise refuse(
            path,
            f"the board file does not list a loader with SHA-256 {digest}",
            "compare the hash with its publisher's, then state it with --usb-loader-sha256",
        )
    return decode(raw, path, digest)


def decode(raw: bytes, path: Path, digest: str) -> LoaderFile:
    """Check and take apart the bytes of a loader file."""
    again = "get the file again"
    if len(raw) < HEAD.size + 4 or raw[:4] not in MAGICS:
        raise refuse(path, "not a loader file (no LDR or BOOT header)", "it is named rk3588_spl_loader_*.bin")
    if checksum(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise refuse(path, "its checksum is wrong: the file is damaged", again)
    fields = HEAD.unpack_from(raw)
    chip = fields[5].to_bytes(4, "big")
    if chip not in CHIPS:
        raise refuse(path, f"made for chip {chip!r}, not for the RK3588", "take the loader of this board")
    if not fields[16]:
        raise refuse(path, "its parts are scrambled with RC4, which the RK3588's boot ROM does not undo", again)
    entries = []
    for group in (6, 9, 12):
        count, offset, size = fields[group : group + 3]
        for index in range(count):
            at = offset + index * size
            if size < ENTRY.size or at + ENTRY.size > len(raw):
                raise refuse(path, "an entry lies outside the file", again)
            _, kind, name, start, length, delay = ENTRY.unpack_from(raw, at)
            if start + length > len(raw) - 4:
                raise refuse(path, "the data of an entry lies outside the file", again)
            text = name.decode("utf-16-le", errors="replace").partition("\0")[0]
            entries.append(Entry(kind, text, raw[start : start + length], delay))
    found = LoaderFile(digest, CHIPS[chip], tuple(entries))
    if not found.of_kind(1) or not found.of_kind(2):
        raise refuse(path, "it has no parts for the boot ROM (0x471 and 0x472)", again)
    return found


def build(ddr: bytes, usbplug: bytes, loader: bytes = b"", *, rc4: bool = False, chip: bytes = b"3588") -> bytes:
    """A loader file with made-up contents, for the stand-in and tests."""
    parts = [(1, "ddr", ddr), (2, "usbplug", usbplug), *([(4, "FlashBoot", loader)] if loader else [])]
    groups = [[i for i, part in enumerate(parts) if part[0] == kind] for kind in (1, 2, 4)]
    offsets = [HEAD.size + ENTRY.size * sum(len(g) for g in groups[:n]) for n in range(3)]
    counts: list[int] = []
    for group, offset in zip(groups, offsets, strict=True):
        counts += [len(group), offset, ENTRY.size]
    code = int.from_bytes(chip, "big")
    head = HEAD.pack(b"LDR ", HEAD.size, 0x100, 0x100, bytes(7), code, *counts, 0, 0 if rc4 else 1)
    start = HEAD.size + ENTRY.size * len(parts)
    table = body = b""
    for kind, name, data in parts:
        table += ENTRY.pack(
            ENTRY.size, kind, name.encode("utf-16-le").ljust(40, b"\0"), start + len(body), len(data), 0
        )
        body += data
    whole = head + table + body
    return whole + checksum(whole).to_bytes(4, "little")
