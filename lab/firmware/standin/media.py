# SPDX-License-Identifier: MIT
"""A made-up board in files: media with a partition table, an ID block magic and repeatable content.

The content is not bootable and holds no vendor code; it has the structure that the checks look at.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import numpy as np

from lab.boards import Board
from lab.firmware import gpt
from lab.firmware.transports.block import make_drill

SIZES = {"spi-nor": 16 << 20, "emmc": 64 << 20, "sd": 64 << 20, "nvme": 64 << 20, "virtio": 64 << 20}
BOOT_PARTITION = 4 << 20
NOR_BLOCK = 4096


def noise(seed: str, length: int) -> bytes:
    """Repeatable bytes that do not compress."""
    value = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(value)).bytes(length)


def _fill_nor(path: Path, size: int, seed: str) -> None:
    with path.open("r+b") as stream:
        stream.seek(0x8000)
        stream.write(b"RKNS" + noise(seed + "idblock", min(200_000, size // 4)))
        if size > 0x60000 + 300_000:
            stream.seek(0x60000)
            stream.write(noise(seed + "uboot", 300_000))


def _fill_disk(path: Path, size: int, seed: str) -> None:
    guid = uuid.uuid5(uuid.NAMESPACE_OID, seed)
    boot = 16 << 20
    parts = [("boot", boot, 8 << 20), ("rootfs", boot + (8 << 20), size - boot - (8 << 20) - (1 << 20))]
    head, tail = gpt.build(size, parts if size >= 32 << 20 else [], guid)
    with path.open("r+b") as stream:
        stream.write(head)
        stream.seek(64 * 512)
        stream.write(b"RKNS" + noise(seed + "idblock", min(150_000, size // 8)))
        for offset, length in ((8 << 20, 400_000), (boot + 4096, 2 << 20), (boot + (9 << 20), 3 << 20)):
            if offset + length < size - len(tail):
                stream.seek(offset)
                stream.write(noise(f"{seed}{offset}", length))
        stream.seek(size - len(tail))
        stream.write(tail)


def make_board(root: Path, board: Board, serial: str = "0001", sizes: dict[str, int] | None = None) -> None:
    """A board directory with all media that the board has fixed, and an SD card; ``serial`` makes it an individual.

    ``sizes`` gives bytes per storage name; a size of 0 leaves that storage out.
    """
    media: dict[str, tuple[str, int, int]] = {}
    controllers = {}
    chosen = sizes or {}
    for storage in board.storage:
        size = chosen.get(storage.name, storage.size or (0 if storage.kind == "nvme" else SIZES[storage.kind]))
        if not size:
            continue
        media[storage.name] = (storage.kind, size, NOR_BLOCK if storage.kind == "spi-nor" else 512)
        controllers[storage.name] = storage.controller
        for part in storage.hardware_partitions:
            boot = chosen.get(f"{storage.name}.{part}", BOOT_PARTITION)
            if boot:
                media[f"{storage.name}.{part}"] = (storage.kind, boot, 512)
    unique = hashlib.sha256(f"{board.name}{serial}".encode()).hexdigest()
    identity = {
        "cpu-id": unique[:32],
        "dt-serial": unique[32:48],
        "soc": board.soc,
        "compatible": board.compatible[0],
    }
    if "emmc" in media:
        identity["emmc-cid:emmc"] = "88010353" + unique[8:32]
    if "sd" in media:
        identity["sd-cid:sd"] = "03534453" + unique[16:40]
    if "spi" in media:
        identity["spi-jedec:spi"] = "c22018"
    make_drill(root, media, identity, board.name, controllers)
    for name, (kind, size, _) in media.items():
        if kind == "spi-nor":
            _fill_nor(root / f"{name}.img", size, f"{board.name}{serial}{name}")
        elif "." not in name and size >= 64 * 1024:
            _fill_disk(root / f"{name}.img", size, f"{board.name}{serial}{name}")
