# SPDX-License-Identifier: MIT
"""Images of the virtual board's flash chips: made erased when they are not there, refused when they cannot be a chip.

The SPI NOR is 16 MiB. An eMMC is one file: boot0 and boot1, 4 MiB each, then the user area; together a power of two, as
QEMU's card wants it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error

NOR_SIZE = 16 << 20
EMMC_BOOT_SIZE = 4 << 20
EMMC_DEFAULT_SIZE = 1 << 30
EMMC_MINIMUM = 32 << 20
ERASED = b"\xff" * (1 << 20)


def nor(path: Path) -> Path:
    """The NOR's file, absolute; KitError (usage) when it is not 16 MiB."""
    path = path.expanduser().absolute()
    try:
        if not path.exists():
            partial = path.with_name(f".{path.name}.partial")
            with partial.open("wb") as file:
                for _ in range(NOR_SIZE // len(ERASED)):
                    file.write(ERASED)
            partial.replace(path)
        size = path.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"{path}") from error
    if size != NOR_SIZE:
        raise KitError(
            ExitCode.USAGE, f"{path} has {size} bytes; the SPI NOR has {NOR_SIZE} (16 MiB)", "give another file"
        )
    return path


def emmc(path: Path, size: int = EMMC_DEFAULT_SIZE) -> Path:
    """The eMMC's file, absolute, made sparse; KitError (usage) when its size is no power of two from 32 MiB up."""
    path = path.expanduser().absolute()
    try:
        if not path.exists():
            partial = path.with_name(f".{path.name}.partial")
            with partial.open("wb") as file:
                file.truncate(size)
            partial.replace(path)
        found = path.stat().st_size
    except OSError as error:
        raise from_os_error(error, f"{path}") from error
    if found < EMMC_MINIMUM or found & (found - 1):
        raise KitError(
            ExitCode.USAGE,
            f"{path} has {found} bytes; an eMMC with its boot partitions has a power of two, 32 MiB or more",
            f"truncate -s 1G {path}",
        )
    return path


def board_serial(nor: Path | None, emmc: Path | None) -> str:
    """The serial number of a board with these chips, empty for one without: the same chips are the same board."""
    chip = nor or emmc
    return f"{serial(chip):08x}" if chip else ""


def serial(path: Path) -> int:
    """The serial number of the chip whose content is in a file, 1 to 2**32 - 1: the same whenever it is used.

    It belongs to the file's place, as a chip's belongs to the chip: a copy elsewhere is another chip of equal content.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).digest()
    return int.from_bytes(digest[:4], "big") or 1
