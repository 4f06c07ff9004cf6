# SPDX-License-Identifier: MIT
"""Files of an ext4 partition inside an eMMC image, through e2fsprogs: no root, nothing mounted.

They are read as a boot loader reads them: what stands in the journal only is not seen (U-Boot's fs/ext4 does not look
at the journal when it reads; debugfs neither).
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.firmware import gpt
from lab.process import require
from lab.virt import chips

LINKS = 8
"""Symbolic links at which U-Boot takes a name for a loop (fs/ext4/ext4_common.c)."""

READ_LIMIT = 1 << 30
"""U-Boot takes files of up to 1 GiB (boot/bootmeth_extlinux.c)."""


@dataclass(frozen=True)
class Partition:
    """One partition of an image: its number and where it begins, in bytes of the file."""

    image: Path
    number: int
    start: int

    @property
    def _place(self) -> str:
        return f"{self.image}?offset={self.start}"

    def _debugfs(self, request: str) -> tuple[bytes, str]:
        command = [require("debugfs", "e2fsprogs"), "-R", request, self._place]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
        # its first line on stderr is its version; its exit code says nothing
        return done.stdout, "\n".join(done.stderr.decode(errors="replace").splitlines()[1:])

    def read(self, path: str) -> bytes | None:
        """A regular file's content, symbolic links followed; None when there is none of that name."""
        found = self._followed(path)
        if found is None:
            return None
        data, problem = self._debugfs(f'cat "{found}"')
        if problem:
            raise KitError(ExitCode.FAILED, f"{self.image}, partition {self.number}: {path}: {problem}")
        return data

    def _followed(self, path: str) -> str | None:
        """The regular file to which links lead from a name; None when they lead to none, or in a loop."""
        for _ in range(LINKS):
            if '"' in path or "\n" in path:
                return None
            answer = self._stat(path)
            if "Type: symlink" not in answer:
                return path if "Type: regular" in answer else None
            short = re.search(r'Fast link dest: "(.*)"', answer)
            target = short[1] if short else self._debugfs(f'cat "{path}"')[0].decode(errors="replace")
            path = posixpath.join(posixpath.dirname(path), target)
        return None

    def _stat(self, path: str) -> str:
        return self._debugfs(f'stat "{path}"')[0].decode(errors="replace")

    def inode(self, path: str) -> str | None:
        """What debugfs says of a regular file; None when there is none."""
        answer = self._stat(path)
        return answer if "Type: regular" in answer else None

    def is_ext4(self) -> bool:
        """Whether there is a file system that can be read here."""
        with self.image.open("rb") as stream:
            stream.seek(self.start + 1024 + 0x38)
            return stream.read(2) == b"\x53\xef"

    def overwrite(self, path: str, data: bytes) -> bool:
        """Give a file of the same length, within one block, other bytes in its place; False when there is none."""
        found = self.inode(path)
        if found is None or f"Size: {len(data)}" not in found:
            return False
        block, _ = self._debugfs(f'bmap "{path}" 0')
        number = int(block.split()[0])
        text, _ = self._debugfs("show_super_stats -h")
        size = re.search(r"Block size:\s+(\d+)", text.decode(errors="replace"))
        if not number or size is None or len(data) > int(size[1]):
            return False
        with self.image.open("r+b") as stream:
            stream.seek(self.start + number * int(size[1]))
            stream.write(data)
        return True

    def create(self, path: str, data: bytes) -> None:
        """Make a file; like U-Boot's ext4 when it writes, after bringing the journal's content to its place."""
        with tempfile.TemporaryDirectory(prefix="npulab-loader-") as folder:
            source = Path(folder) / "file"
            source.write_bytes(data)
            # 1: something was corrected
            command = [require("e2fsck", "e2fsprogs"), "-p", "-E", "journal_only", self._place]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
            words = [f'rm "{path}"'] if self.inode(path) else []
            for request in (*words, f'write {source} "{path}"', f'sif "{path}" uid 0', f'sif "{path}" gid 0'):
                command = [require("debugfs", "e2fsprogs"), "-w", "-R", request, self._place]
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
        if self.read(path) != data:
            raise KitError(ExitCode.FAILED, f"{self.image}, partition {self.number}: {path} cannot be written")


def boot_partitions(emmc: Path) -> list[Partition]:
    """The partitions that U-Boot's standard boot looks at: those marked bootable, else the first.

    ``emmc`` is a chip's file with boot0 and boot1 in front. boot/bootdev-uclass.c, bootdev_find_in_blk. KitError
    (failed) when the user area has no partition table.
    """
    base = 2 * chips.EMMC_BOOT_SIZE
    size = emmc.stat().st_size - base
    with emmc.open("rb") as stream:

        def read(at: int, length: int) -> bytes:
            stream.seek(base + at)
            return stream.read(length)

        try:
            table = gpt.parse(read(gpt.SECTOR, gpt.SECTOR), read)
            marked = gpt.bootable(read) or [1]
        except gpt.GptError:
            copy, _ = gpt.read(read, size)
            if copy is None:
                raise KitError(
                    ExitCode.FAILED, f"{emmc}: no partition table, so no loader would start from it", "flash an image"
                ) from None
            table, marked = copy, [1]
    return [Partition(emmc, part.number, base + part.start) for part in table.partitions if part.number in marked]
