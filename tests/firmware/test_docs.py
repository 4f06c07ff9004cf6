# SPDX-License-Identifier: MIT
"""The walk-throughs of docs/firmware.md, line by line, as a newcomer types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "firmware.md"


def lines(section: str) -> list[tuple[str, int]]:
    """Commands of the first block of a section, and the exit code that its comment announces."""
    text = PAGE.read_text().partition(f"## {section}\n")[2]
    block = text.partition("```sh\n")[2].partition("```")[0]
    found = []
    for line in block.splitlines():
        command, _, comment = line.partition("  #")
        announced = re.search(r"exit code (\d)", comment)
        found.append((command.strip(), int(announced[1]) if announced else 0))
    return found


def walk(section: str, folder: Path) -> int:
    environment = {**os.environ, "NPULAB_BACKUPS": str(folder / "store"), "PYTHONPATH": str(PAGE.parents[1])}
    environment["NPULAB_RESULTS"] = str(folder / "results")
    steps = lines(section)
    for command, code in steps:
        typed = command.replace("./npulab", f"{shlex.quote(sys.executable)} -m lab", 1)
        done = subprocess.run(
            ["sh", "-c", typed], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    return len(steps)


def test_walk_through_on_a_board_of_files(tmp_path: Path) -> None:
    before = tmp_path / "my-board/emmc.img"
    assert walk("Walk through: a board of files", tmp_path) >= 15
    assert before.read_bytes()[512:520] == b"EFI PART", "it ends as it began"


@pytest.fixture
def virtual(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    subprocess.run(
        [sys.executable, "-m", "lab", "virt", "--quiet", "down", "walk"], cwd=PAGE.parents[1], capture_output=True
    )


def test_walk_through_on_a_virtual_board(virtual: Path) -> None:
    assert walk("Walk through: a virtual board", virtual) >= 12
