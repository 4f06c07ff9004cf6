# SPDX-License-Identifier: MIT
"""Board files: all load, say what the hardware has, and bad ones are refused with the place of the mistake."""

from __future__ import annotations

import pytest

from lab import boards
from lab.errors import ExitCode, KitError


@pytest.mark.parametrize("name", boards.names())
def test_every_board_loads(name: str) -> None:
    board = boards.load(name)
    assert board.name == name
    assert board.console.baud == 1_500_000 and board.console.uart == 0xFEB50000
    assert board.dtb.startswith("rockchip/rk3588")
    for storage in board.storage:
        assert boards.load(name).storage_at(storage.controller) is storage
        covered = 0
        for region in storage.regions:
            start, end = region.resolve(64 << 20)
            assert start == covered, "regions leave no gap"
            covered = end
        assert covered == 64 << 20


def test_known_boards() -> None:
    assert {"rock-5-itx-plus", "rock-5-itx", "orangepi-5", "virt"} <= set(boards.names())
    orange = boards.load("orangepi-5")
    assert [s.name for s in orange.storage] == ["spi", "sd", "nvme"], "the Orange Pi 5 has no eMMC"
    itx = boards.load("rock-5-itx-plus")
    assert itx.storage_named("emmc").controller == 0xFE2E0000
    assert itx.storage_named("emmc").hardware_partitions == ("boot0", "boot1")
    assert itx.storage_named("spi").rockusb == 9


def test_small_media_keep_regions_in_range() -> None:
    region = boards.Region("payload", 0x1000000, -0x4200, False)
    start, end = region.resolve(1 << 20)
    assert 0 <= start <= end <= 1 << 20


@pytest.mark.parametrize(
    ("change", "expect"),
    [
        (("soc: rk3588s", "soc: rk3568"), "soc"),
        (("fe2b0000", "mmcblk0"), "storage/0/controller"),
        (("order: [spi, sd, usb]", "order: [spi, emmc]"), "emmc"),
        (("name: sd", "name: spi"), "same name"),
        (("schema: 1", "schema: 2"), "schema"),
        (("title:", "title: ["), "not YAML"),
    ],
)
def test_bad_file_is_refused(change: tuple[str, str], expect: str) -> None:
    text = (boards.ROOT / "orangepi-5.yaml").read_text()
    assert change[0] in text
    with pytest.raises(KitError) as caught:
        boards.parse(
            text.replace(*change, 1) if change[0] != "name: sd" else text.replace("  - name: sd", "  - name: spi"), "x"
        )
    assert caught.value.code == ExitCode.USAGE
    assert expect in caught.value.message


@pytest.mark.parametrize("name", ["no-such-board", "../../etc/passwd", "/etc/passwd"])
def test_unknown_board(name: str) -> None:
    with pytest.raises(KitError) as caught:
        boards.load(name)
    assert caught.value.code == ExitCode.USAGE
    assert "orangepi-5" in caught.value.hint
