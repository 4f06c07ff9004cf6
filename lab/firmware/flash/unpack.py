# SPDX-License-Identifier: MIT
"""Compressed images, as distributions and BitBake publish them: unpacked once into the cache, zeros as holes.

zstd (RFC 8878), xz, gzip (RFC 1952), bzip2, known by their first bytes, never by the file's name.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from lab.cache import Cache, file_digest
from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.medium import is_zero
from lab.output import Meter

PIECE = 1 << 20
FEED = 2048
"""Bytes for the zstd decoder at once: 4 of them may stand for 128 KiB of zeros, so these are 64 MiB at most."""

FORMATS = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2"}

REFUSED = {
    b"\x3a\xff\x26\xed": ("an Android sparse image", "expand it with simg2img"),
    b"QFI\xfb": ("a qcow2 image", "qemu-img convert -O raw makes a raw one"),
    b"PK\x03\x04": ("a zip archive", "unpack it and name the image in it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it and name the image in it"),
    b"Rar!": ("a RAR archive", "unpack it and name the image in it"),
    b"\x04\x22\x4d\x18": ("compressed with lz4", "unpack it with lz4 -d"),
}
"""What would be written as it is, if nobody looked: first bytes, what they mean, what to do."""


def raw(image: Path, meter: Meter) -> Path:
    """The image itself when it is raw; otherwise its unpacked form in the cache, made if it is not there.

    KitError: usage for a container of another kind, mismatch for a damaged or incomplete file, infrastructure when the
    disk is full.
    """
    try:
        with image.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise from_os_error(error, f"reading {image}") from error
    for magic, (what, cure) in REFUSED.items():
        if start.startswith(magic):
            raise KitError(ExitCode.USAGE, f"{image} is {what}, not a raw image", cure)
    found = next((name for magic, name in FORMATS.items() if start.startswith(magic)), None)
    if found is None:
        return image
    made = Cache().entry(
        "images", file_digest(image)[:20], lambda folder: _unpack(image, found, folder / image.stem, meter)
    )
    return next(made.iterdir())


def _unpack(image: Path, format_name: str, target: Path, meter: Meter) -> None:
    total, size = image.stat().st_size, 0
    try:
        with image.open("rb") as packed, target.open("wb") as out:
            for piece in _pieces(packed, format_name):
                if is_zero(piece):
                    out.seek(len(piece), 1)
                else:
                    out.write(piece)
                size += len(piece)
                meter.update(packed.tell(), total, f"unpacking {image.name}")
            out.truncate(size)
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise _damaged(image, format_name, size, str(error)) from error
    except OSError as error:
        if error.errno is None:  # bz2's word for bad data
            raise _damaged(image, format_name, size, str(error)) from error
        raise


def _damaged(image: Path, format_name: str, size: int, why: str) -> KitError:
    what = f"{image}: damaged or incomplete {format_name} data after {size} bytes ({why})"
    return KitError(ExitCode.MISMATCH, what, "get it again")


def _pieces(packed: IO[bytes], format_name: str) -> Iterator[bytes]:
    """The content in order, at most 1 MiB at a time; EOFError when the file ends within it."""
    if format_name == "zstd":
        yield from _zstd_pieces(packed)
        return
    with _opened(packed, format_name) as content:
        while piece := content.read(PIECE):
            yield piece


def _opened(packed: IO[bytes], format_name: str) -> lzma.LZMAFile | gzip.GzipFile | bz2.BZ2File:
    if format_name == "xz":
        return lzma.LZMAFile(packed)
    if format_name == "gzip":
        return gzip.GzipFile(fileobj=packed)
    return bz2.BZ2File(packed)


def _zstd_pieces(packed: IO[bytes]) -> Iterator[bytes]:
    """All frames; zstandard's own reader does not say when the last one is cut off."""
    frame = None
    while data := packed.read(FEED):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            content = frame.decompress(data)
            for at in range(0, len(content), PIECE):
                yield content[at : at + PIECE]
            data = frame.unused_data
            if frame.eof:
                frame = None
            else:
                break
    if frame is not None:
        raise EOFError("the last frame is cut off")
