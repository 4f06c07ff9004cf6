# SPDX-License-Identifier: MIT
"""Kernel modules and images as files: what they say about themselves, what they need, what they offer."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import zstandard
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from lab.errors import ExitCode, KitError

IMAGE_MAGIC = b"ARM\x64"
"""At byte 56 of an arm64 Image (linux Documentation/arch/arm64/booting.rst); booti refuses a file without it."""
ZBOOT_MAGIC = b"zimg"
"""At offset 4 of a compressed EFI image (linux drivers/firmware/efi/libstub/zboot-header.S)."""
_BANNER = re.compile(rb"Linux version (\d+\.\d+\.\d+\S*) \([ -~]{0,400}")
"""linux init/version.c: the text of /proc/version."""


@dataclass(frozen=True)
class Module:
    """A kernel module."""

    name: str
    vermagic: str
    aliases: tuple[str, ...]
    depends: tuple[str, ...]
    undefined: frozenset[str]
    exports: frozenset[str]
    words: frozenset[int]
    """32-bit words of its read-only data: the ioctl table is among them."""

    @property
    def release(self) -> str:
        """The kernel it is for."""
        return self.vermagic.split()[0] if self.vermagic else ""


def unpack(path: Path) -> bytes:
    """A file's bytes, decompressed when its content says xz, zstd or gzip."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KitError(ExitCode.USAGE, f"{path}: {error.strerror}", "check the path") from error
    try:
        if data[:6] == b"\xfd7zXZ\0":
            return lzma.decompress(data)
        if data[:4] == b"\x28\xb5\x2f\xfd":
            return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
        if data[:2] == b"\x1f\x8b":
            return zlib.decompress(data, wbits=31)
    except (lzma.LZMAError, zstandard.ZstdError, zlib.error) as error:
        raise KitError(ExitCode.USAGE, f"{path}: cut off or damaged ({error})", "fetch or build it again") from error
    return data


def module(path: Path) -> Module:
    """Read a module (``.ko``, also compressed); KitError (usage) when it is not one for arm64."""
    try:
        elf = ELFFile(io.BytesIO(unpack(path)))
        machine = elf["e_machine"]
        info = elf.get_section_by_name(".modinfo")
        table = elf.get_section_by_name(".symtab")
        if machine != "EM_AARCH64":
            raise KitError(
                ExitCode.USAGE, f"{path}: for {machine.removeprefix('EM_')}, not arm64", "build it for arm64"
            )
        if info is None or not isinstance(table, SymbolTableSection):
            raise KitError(ExitCode.USAGE, f"{path}: no kernel module: it has no .modinfo", "check the path")
        fields = modinfo(info.data())
        undefined, exports = _symbols(table)
        words = _words(elf)
    except (ELFError, struct.error, AssertionError) as error:
        raise KitError(ExitCode.USAGE, f"{path}: no kernel module, or cut off ({error})", "build it again") from error
    depends = tuple(name for name in fields.get("depends", [""])[0].split(",") if name)
    return Module(
        fields.get("name", [path.name.split(".")[0]])[0],
        fields.get("vermagic", [""])[0],
        tuple(fields.get("alias", [])),
        depends,
        undefined,
        exports,
        words,
    )


def modinfo(data: bytes) -> dict[str, list[str]]:
    """Fields of a ``.modinfo`` section or of ``modules.builtin.modinfo``."""
    fields: dict[str, list[str]] = {}
    for item in data.split(b"\0"):
        name, separator, value = item.decode(errors="replace").partition("=")
        if separator:
            fields.setdefault(name, []).append(value)
    return fields


def _symbols(table: SymbolTableSection) -> tuple[frozenset[str], frozenset[str]]:
    undefined, exports = set(), set()
    for symbol in table.iter_symbols():
        if symbol["st_shndx"] == "SHN_UNDEF" and symbol.name and symbol["st_info"]["bind"] != "STB_WEAK":
            undefined.add(symbol.name)
        if symbol.name.startswith("__ksymtab_"):
            exports.add(symbol.name.removeprefix("__ksymtab_"))
    return frozenset(undefined), frozenset(exports)


def _words(elf: ELFFile) -> frozenset[int]:
    words: set[int] = set()
    for section in elf.iter_sections():
        if section.name.startswith((".rodata", ".data.rel.ro", ".data")) and section["sh_type"] == "SHT_PROGBITS":
            data = section.data()
            words.update(struct.unpack(f"<{len(data) // 4}I", data[: len(data) // 4 * 4]))
    return frozenset(words)


def exported_symbols(path: Path) -> frozenset[str]:
    """What a kernel offers to modules, from its ``Module.symvers``, ``System.map`` or ``vmlinux``."""
    if path.name == "Module.symvers":
        rows = (line.split("\t") for line in path.read_text(errors="replace").splitlines())
        return frozenset(row[1] for row in rows if len(row) > 1)
    if path.name.startswith("System.map"):
        names = (line.split()[-1] for line in path.read_text(errors="replace").splitlines() if line.strip())
        return frozenset(name.removeprefix("__ksymtab_") for name in names if name.startswith("__ksymtab_"))
    try:
        elf = ELFFile(io.BytesIO(unpack(path)))
        table = elf.get_section_by_name(".symtab")
    except ELFError as error:
        raise KitError(ExitCode.USAGE, f"{path}: no vmlinux ({error})", "give vmlinux or Module.symvers") from error
    if not isinstance(table, SymbolTableSection):
        raise KitError(ExitCode.USAGE, f"{path}: its symbols were stripped", "give Module.symvers instead")
    prefix = "__ksymtab_"
    return frozenset(s.name.removeprefix(prefix) for s in table.iter_symbols() if s.name.startswith(prefix))


def is_image(data: bytes) -> bool:
    """Whether the bytes, not compressed, are an arm64 Image."""
    return data[56:60] == IMAGE_MAGIC


@dataclass(frozen=True)
class Image:
    """A kernel image. ``kind`` is ``Image`` or ``zboot``; ``release`` is empty when it cannot be read from it, and so
    is ``banner``, what /proc/version will say."""

    kind: str
    release: str
    banner: str


def image(path: Path) -> Image:
    """Read an arm64 kernel image (also compressed by gzip, xz or zstd); KitError (usage) when it is none."""
    data = unpack(path)
    found = _BANNER.search(data)
    release, banner = (found[1].decode(), found[0].decode()) if found else ("", "")
    if is_image(data):
        size = struct.unpack_from("<Q", data, 16)[0]
        if size and len(data) < size // 2:
            message = f"{path}: cut off at {len(data)} bytes (it says that it needs {size})"
            raise KitError(ExitCode.USAGE, message, "fetch or build it again")
        return Image("Image", release, banner)
    if data[:2] == b"MZ" and data[4:8] == ZBOOT_MAGIC:
        return Image("zboot", release, banner)
    what = "an x86 kernel" if data[514:518] == b"HdrS" else "no arm64 kernel image"
    raise KitError(ExitCode.USAGE, f"{path}: {what}", "give the Image of an arm64 kernel")
