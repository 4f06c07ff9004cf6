# SPDX-License-Identifier: MIT
"""What a clone gets is what the kit was tested with."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_nothing_relies_on_empty_directories() -> None:
    """git keeps none, so one in a working tree is missing in every clone of it."""
    folders = [path for name in ("lab", "recipes", "rknpu_userspace", "dts") for path in (ROOT / name).rglob("*/")]
    empty = [str(path.relative_to(ROOT)) for path in folders if path.is_dir() and not any(path.iterdir())]
    assert empty == []
