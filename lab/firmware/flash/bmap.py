# SPDX-License-Identifier: MIT
"""Block maps (``.bmap``): which blocks of an image hold data, with checksums. Format 2.0, as bmap-tools writes it."""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error


@dataclass(frozen=True)
class BlockMap:
    """Ranges in bytes (start, end, checksum) of an image of ``size`` bytes."""

    size: int
    algorithm: str
    ranges: tuple[tuple[int, int, str], ...]


def find(image: Path, *, compressed: bool) -> Path | None:
    """The map that lies beside an image: its name with ``.bmap``, for a compressed one also without its last suffix."""
    names = [image.name, image.stem] if compressed else [image.name]
    candidates = [image.with_name(f"{name}.bmap") for name in names]
    return next((path for path in candidates if path.is_file()), None)


def load(path: Path) -> BlockMap:
    """A block map; KitError when it is not one or its own checksum is wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    if b"<!ENTITY" in raw or len(raw) > 64 << 20:
        raise KitError(ExitCode.USAGE, f"{path}: not a block map")
    try:
        root = ElementTree.fromstring(raw)
        version = root.attrib.get("version", "")
        if root.tag != "bmap" or not version.startswith("2."):
            raise ValueError(f"version {version or 'unknown'}")
        size, block = int(_text(root, "ImageSize")), int(_text(root, "BlockSize"))
        algorithm = _text(root, "ChecksumType") if root.find("ChecksumType") is not None else "sha256"
        own = _text(root, "BmapFileChecksum") if root.find("BmapFileChecksum") is not None else ""
        if own and hashlib.new(algorithm, raw.replace(own.encode(), b"0" * len(own), 1)).hexdigest() != own:
            raise ValueError("its own checksum is wrong")
        mapped = root.find("BlockMap")
        ranges = []
        for entry in mapped if mapped is not None else ():
            first, _, last = (entry.text or "").strip().partition("-")
            start, end = int(first) * block, (int(last or first) + 1) * block
            ranges.append((start, min(end, size), entry.attrib.get("chksum", "")))
    except (ElementTree.ParseError, ValueError) as error:
        raise KitError(
            ExitCode.USAGE, f"{path}: not a usable block map ({error})", "make it again with the image"
        ) from error
    return BlockMap(size, algorithm, tuple(ranges))


def _text(root: ElementTree.Element, tag: str) -> str:
    found = root.findtext(tag)
    if found is None:
        raise ValueError(f"{tag} is missing")
    return found.strip()


def check(image: Path, block_map: BlockMap) -> None:
    """Compare an image with its map; KitError (mismatch) names the first bad range."""
    if image.stat().st_size != block_map.size:
        raise KitError(
            ExitCode.MISMATCH,
            f"{image} has {image.stat().st_size} bytes, its block map says {block_map.size}",
            "image and map do not belong together, or a download is incomplete",
        )
    with image.open("rb") as stream:
        for start, end, expected in block_map.ranges:
            if not expected:
                continue
            digest = hashlib.new(block_map.algorithm)
            stream.seek(start)
            left = end - start
            while left:
                part = stream.read(min(1 << 20, left))
                if not part:
                    break
                digest.update(part)
                left -= len(part)
            if digest.hexdigest() != expected:
                raise KitError(
                    ExitCode.MISMATCH, f"{image}: bytes {start}..{end} do not match the block map", "get it again"
                )


def make(image: Path) -> bytes:
    """A block map of a sparse image, from the holes of its file."""
    size, block = image.stat().st_size, 4096
    ranges: list[list[int]] = []
    with image.open("rb") as stream:
        at = 0
        while at < size:
            try:
                first = os.lseek(stream.fileno(), at, os.SEEK_DATA) // block
                at = os.lseek(stream.fileno(), first * block, os.SEEK_HOLE)
            except OSError:
                break
            ranges.append([first, -(-at // block) - 1])
        lines = []
        for first, last in ranges:
            stream.seek(first * block)
            digest = hashlib.sha256(stream.read((last - first + 1) * block)).hexdigest()
            lines.append(f'    <Range chksum="{digest}"> {first}-{last} </Range>')
    count = sum(last - first + 1 for first, last in ranges)
    body = "\n".join(lines)
    text = (
        f'<?xml version="1.0" ?>\n<bmap version="2.0">\n  <ImageSize> {size} </ImageSize>\n'
        f"  <BlockSize> {block} </BlockSize>\n  <BlocksCount> {-(-size // block)} </BlocksCount>\n"
        f"  <MappedBlocksCount> {count} </MappedBlocksCount>\n  <ChecksumType> sha256 </ChecksumType>\n"
        f"  <BmapFileChecksum> {'0' * 64} </BmapFileChecksum>\n  <BlockMap>\n{body}\n  </BlockMap>\n</bmap>\n"
    )
    own = hashlib.sha256(text.encode()).hexdigest()
    return text.replace("0" * 64, own, 1).encode()
