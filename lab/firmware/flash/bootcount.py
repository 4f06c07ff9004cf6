# SPDX-License-Identifier: MIT
"""The file in which U-Boot counts starts: how a board falls back although its new kernel never says a word.

Facts from U-Boot 2026.10-rc2, drivers/bootcount/bootcount_fs.c and include/bootcount.h: four bytes, magic 0xbd, version
1, the count, and ``upgrade_available``. With ``CONFIG_BOOTCOUNT_FS`` each start adds one before anything is loaded, but
only while ``upgrade_available`` is set; a count above ``bootlimit`` makes ``altbootcmd`` run instead of ``bootcmd``. A
missing file counts as ``upgrade_available`` and is made. No mainline configuration of an RK3588 board has this; the
lines to add to one are in docs/firmware.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PLACE = "/boot/failures"
"""Default of CONFIG_SYS_BOOTCOUNT_FS_NAME."""
LIMIT = 1
"""CONFIG_BOOTCOUNT_BOOTLIMIT that the documentation gives: one start without a word, and the next is the fallback's."""
_MAGIC, _VERSION = 0xBD, 1


@dataclass(frozen=True)
class Count:
    """The file's content. ``valid`` is False for a missing file and for one with another magic or version."""

    count: int = 0
    available: bool = True
    valid: bool = True

    def encode(self) -> bytes:
        """The four bytes."""
        return bytes([_MAGIC, _VERSION, self.count & 0xFF, int(self.available)])

    def counted(self) -> Count:
        """After a start."""
        return replace(self, count=(self.count + 1) & 0xFF, valid=True) if self.available else self

    @property
    def proven(self) -> bool:
        """Whether a loader has written it: the kit itself never counts."""
        return self.valid and self.count > 0


def parse(data: bytes) -> Count:
    """What a loader makes of a file's bytes."""
    if len(data) != 4 or data[0] != _MAGIC or data[1] != _VERSION:
        return Count(valid=False)
    return Count(data[2], bool(data[3]))
