# SPDX-License-Identifier: MIT
"""A small RK3588 board whose device tree tests take apart."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("board.dts")
Compile = Callable[..., Path]


@pytest.fixture
def board(tmp_path: Path) -> Compile:
    """``board(("old", "new"), ...)``: the board's dtb after these replacements, each of which must match."""
    if shutil.which("dtc") is None:
        pytest.skip("dtc is not installed (device-tree-compiler)")

    def make(*changes: tuple[str, str], name: str = "board") -> Path:
        text = SOURCE.read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        source, target = tmp_path / f"{name}.dts", tmp_path / f"{name}.dtb"
        source.write_text(text)
        subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", target, source], check=True)
        return target

    return make
