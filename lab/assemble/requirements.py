# SPDX-License-Identifier: MIT
"""What a build needs of the host, checked before it starts: packages and free space."""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.commands.doctor import missing_packages
from lab.errors import ExitCode, KitError

OPTIONAL = frozenset({"ccache", "git"})
"""Packages that builds go without."""


def check_packages() -> None:
    """KitError naming the Debian packages that are not installed."""
    missing = [package for package in missing_packages() if package not in OPTIONAL]
    if missing:
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"Debian packages are missing: {' '.join(missing)}",
            "./npulab --install-deps doctor   (or apt-get install them)",
        )


def check_space(root: Path, need: int, what: str) -> None:
    """KitError when the file system of the cache has less than ``need`` bytes free."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < need:
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"{what} needs {need / 1e9:.1f} GB in {root}, {free / 1e9:.1f} GB are free",
            "free space, or point NPULAB_CACHE at a larger file system",
        )
