# SPDX-License-Identifier: MIT
"""Where a run leaves its logs, tables and reports."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error
from lab.virt.supervisor import PACKAGE_ROOT


def results_root() -> Path:
    """``$NPULAB_RESULTS``, or ``results`` in the checkout the kit runs from, or in the current directory."""
    chosen = os.environ.get("NPULAB_RESULTS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    checkout = (PACKAGE_ROOT / "npulab").is_file() and os.access(PACKAGE_ROOT, os.W_OK)
    return (PACKAGE_ROOT if checkout else Path.cwd()) / "results"


def new_results_dir(noun: str, root: Path | None = None) -> Path:
    """A new directory ``<root>/<noun>-<date>-<time>[-n]``."""
    parent = root or results_root()
    stem = f"{noun}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = parent / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise from_os_error(error, "making the results directory") from error
    raise KitError(ExitCode.INFRASTRUCTURE, f"{parent / stem} and its successors are taken", f"tidy up {parent}")
