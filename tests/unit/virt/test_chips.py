# SPDX-License-Identifier: MIT
"""Images of the flash chips."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.errors import ExitCode, KitError
from lab.virt import chips


def test_nor_is_made_erased_and_kept(tmp_path: Path) -> None:
    path = chips.nor(tmp_path / "nor.img")
    assert path.read_bytes() == b"\xff" * chips.NOR_SIZE
    path.write_bytes(b"x" * chips.NOR_SIZE)
    assert chips.nor(path).read_bytes()[:1] == b"x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["nor.img"]


@pytest.mark.parametrize("size", [0, 1, chips.NOR_SIZE - 1, chips.NOR_SIZE + 1])
def test_nor_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "nor.img"
    path.write_bytes(b"x" * size)
    with pytest.raises(KitError) as caught:
        chips.nor(path)
    assert caught.value.code == ExitCode.USAGE
    assert path.stat().st_size == size


def test_emmc_is_made_sparse(tmp_path: Path) -> None:
    path = chips.emmc(tmp_path / "emmc.img")
    assert path.stat().st_size == chips.EMMC_DEFAULT_SIZE
    assert path.stat().st_blocks < 100


@pytest.mark.parametrize("size", [0, 16 << 20, (64 << 20) - 512, (64 << 20) + 512, 3 << 30])
def test_emmc_of_an_impossible_size_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "emmc.img"
    with path.open("wb") as file:
        file.truncate(size)
    with pytest.raises(KitError, match="power of two"):
        chips.emmc(path)


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KitError):
        chips.nor(tmp_path / "no" / "nor.img")
