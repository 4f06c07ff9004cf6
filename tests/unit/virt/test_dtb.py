# SPDX-License-Identifier: MIT
"""Device trees that the launcher takes and those it refuses, each with one clear line."""

from __future__ import annotations

from pathlib import Path

import fdt
import pytest
from boards import make_dtb
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import ExitCode, KitError
from lab.virt.dtb import read_board_tree, require_npu, with_serial
from lab.virt.select import with_console


def test_a_good_tree(tmp_path: Path) -> None:
    tree = require_npu(make_dtb(tmp_path / "x.dtb"))
    assert tree.model == "Test board"
    assert tree.compatible == ("test,board", "rockchip,rk3588s")
    assert tree.enabled_cores == ("/npu@fdab0000", "/npu@fdac0000", "/npu@fdad0000")


@pytest.mark.parametrize(
    ("cores", "status", "message"), [(0, "okay", "it has no NPU node"), (3, "disabled", "its 3 NPU nodes are disabled")]
)
def test_without_npu(tmp_path: Path, cores: int, status: str, message: str) -> None:
    path = make_dtb(tmp_path / "x.dtb", cores=cores, status=status)
    with pytest.raises(KitError, match=message) as caught:
        require_npu(path)
    assert caught.value.code == ExitCode.USAGE
    assert str(path) in caught.value.message


def test_another_soc(tmp_path: Path) -> None:
    with pytest.raises(KitError, match=r"not an RK3588 board \(compatible: test,board, rockchip,rk3399\)"):
        read_board_tree(make_dtb(tmp_path / "x.dtb", compatible="rockchip,rk3399"))


@pytest.mark.parametrize(
    ("stdout", "console"),
    [
        ("serial9:115200n8", "ttyS9,115200n8"),
        ("/serial@febc0000:1500000n8", "ttyS9,1500000n8"),
        ("serial2", "ttyS2"),
        ("/serial@feb50000", ""),
        ("", ""),
    ],
)
def test_console(tmp_path: Path, stdout: str, console: str) -> None:
    assert read_board_tree(make_dtb(tmp_path / "x.dtb", stdout=stdout)).console == console


def test_command_line_follows_the_console() -> None:
    line = "root=/dev/vda console=ttyS2,1500000n8 panic=-1"
    assert with_console(line, "") == line
    assert with_console(line, "ttyS9,115200n8") == "root=/dev/vda panic=-1 console=ttyS9,115200n8"


@pytest.mark.parametrize("data", [b"", b"hello", b"/dts-v1/; / { };" * 10, b"\xd0\x0d\xfe\xed", b"\x7fELF" + bytes(99)])
def test_no_tree_at_all(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.dtb"
    path.write_bytes(data)
    with pytest.raises(KitError, match="not a compiled device tree"):
        read_board_tree(path)


def test_directory_and_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.dtb"):
        with pytest.raises(KitError, match="device tree"):
            read_board_tree(path)


def test_cut_off(tmp_path: Path) -> None:
    path = make_dtb(tmp_path / "x.dtb")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(KitError, match="cut off at"):
        read_board_tree(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_trees_never_trace_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = make_dtb(tmp_path_factory.getbasetemp() / "fuzz.dtb")
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(4, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(blob))
    try:
        read_board_tree(path)
    except KitError as error:
        assert error.code == ExitCode.USAGE


def test_serial_number_is_added_once(tmp_path: Path) -> None:
    plain = make_dtb(tmp_path / "x.dtb").read_bytes()
    found = with_serial(plain, "c0ffee12")
    tree, before = fdt.parse_dtb(found), fdt.parse_dtb(plain)
    assert tree.get_property("serial-number").data == ["c0ffee12"]
    tree.remove_property("serial-number")
    assert tree.to_dts() == before.to_dts()
    assert with_serial(found, "00000001") == found, "the number that it has stays"
    with_path = tmp_path / "y.dtb"
    with_path.write_bytes(found)
    assert require_npu(with_path) == require_npu(tmp_path / "x.dtb")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_serial_number_of_damaged_trees(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """What is no tree goes on as it is: whoever starts it says what is wrong."""
    blob = bytearray(make_dtb(tmp_path_factory.getbasetemp() / "fuzz.dtb").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, 39))] = data.draw(st.integers(0, 255))
    damaged = bytes(blob[: data.draw(st.integers(0, len(blob)))])
    assert with_serial(damaged, "1").endswith(b"serial-number\0") or with_serial(damaged, "1") == damaged
    for text in (b"", b"hello", bytes(99)):
        assert with_serial(text, "1") == text
