# SPDX-License-Identifier: MIT
"""Archives that a board unpacks: equal contents give equal archives, and every file belongs to root."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path


def pack(tree: Path, path: Path, name: str) -> None:
    """Write the directory ``tree`` as ``name`` into the compressed archive ``path``."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with (
        path.open("wb") as sink,
        gzip.GzipFile("", "wb", 6, sink, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as package,
    ):
        package.add(tree, name, filter=plain)
