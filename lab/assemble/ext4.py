# SPDX-License-Identifier: MIT
"""ext4 images from a directory, without root: every file belongs to root in the image."""

from __future__ import annotations

import os
from pathlib import Path

from lab.process import require, run

BLOCK = 4096
FEATURES = "^has_journal,^metadata_csum,^64bit,^huge_file,^resize_inode"
"""No journal and no checksums: the image is attached with writes that are thrown away, and they cost boot time."""


def _blocks(tree: Path) -> tuple[int, int]:
    blocks = inodes = 0
    for folder, folders, names in os.walk(tree):
        inodes += 1 + len(names)
        blocks += 1 + len(folders) // 64
        for name in names:
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - thousands of files
            blocks += -(-status.st_size // BLOCK)
    return blocks, inodes


def make_image(tree: Path, image: Path, *, label: str, spare: int, uuid: str, epoch: int, log: Path) -> None:
    """Write ``image`` with the contents of ``tree`` and ``spare`` free bytes.

    ``uuid`` and ``epoch`` are fixed by the caller, so that equal contents give equal images.
    """
    blocks, inodes = _blocks(tree)
    inodes = inodes + 64 + spare // (64 << 10)
    size = blocks + blocks // 50 + inodes // 16 + 256 + spare // BLOCK
    command: list[str | Path] = [
        *(require("fakeroot", "fakeroot"), "--", require("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4"),
        *("-b", str(BLOCK), "-I", "256", "-N", str(inodes), "-m", "0", "-O", FEATURES, "-L", label, "-U", uuid),
        *("-E", f"root_owner=0:0,hash_seed={uuid},lazy_itable_init=0,nodiscard", "-d", tree, image, str(size)),
    ]
    run(command, stage=f"making {image.name}", log=log, env={"E2FSPROGS_FAKE_TIME": str(epoch), "LC_ALL": "C"})
