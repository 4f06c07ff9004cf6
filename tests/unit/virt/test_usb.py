# SPDX-License-Identifier: MIT
"""From sockets on the command line to devices in the ports of a board's USB controller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fdt
import pytest
from boards import make_dtb

from lab.errors import ExitCode, KitError
from lab.virt import usb
from lab.virt.dtb import BoardTree, read_board_tree


def with_usb(path: Path, **roles: str) -> BoardTree:
    """A board with USB controllers: address, then dr_mode, ``off`` for a disabled one."""
    tree = fdt.parse_dtb(make_dtb(path).read_bytes())
    for address, role in roles.items():
        node = fdt.Node(f"usb@{address}")
        node.append(fdt.PropStrings("compatible", "rockchip,rk3588-dwc3", "snps,dwc3"))
        node.append(fdt.PropStrings("status", "disabled" if role == "off" else "okay"))
        if role != "off":
            node.append(fdt.PropStrings("dr_mode", role))
        tree.root.append(node)
    path.write_bytes(tree.to_dtb(version=17))
    return read_board_tree(path)


@pytest.mark.parametrize(
    ("roles", "bus"),
    [
        ({"fc000000": "otg", "fc400000": "host"}, 1),
        ({"fc000000": "otg", "fcd00000": "off"}, 0),
        ({"fc000000": "peripheral", "fcd00000": "host"}, 2),
    ],
)
def test_the_port_is_one_that_the_board_has(tmp_path: Path, roles: dict[str, str], bus: int) -> None:
    tree = with_usb(tmp_path / "x.dtb", **roles)
    words = usb.arguments([Path("/run/a,b"), 4000], tree)
    assert words[:2] == ["-chardev", "socket,id=usb0,path=/run/a,,b,reconnect-ms=200"]
    assert words[3] == f"usb-redir,id=usb0,chardev=usb0,bus=usb-bus.{bus},port=1"
    assert words[5] == "socket,id=usb1,host=127.0.0.1,port=4000,reconnect-ms=200"
    assert words[7].endswith("port=2")


def test_boards_without_a_port(tmp_path: Path) -> None:
    tree = with_usb(tmp_path / "x.dtb", fc000000="peripheral")
    assert usb.arguments([], tree) == []
    with pytest.raises(KitError, match="Test board has no USB 3 host port") as caught:
        usb.arguments([4000], tree)
    assert caught.value.code == ExitCode.USAGE


def test_more_devices_than_ports(tmp_path: Path) -> None:
    tree = replace(with_usb(tmp_path / "x.dtb"), usb_hosts=("fc000000",))
    with pytest.raises(KitError, match="5 USB devices"):
        usb.arguments([4000] * 5, tree)


@pytest.mark.parametrize("text", ["tcp:", "tcp:x", "tcp:0", "tcp:65536", "tcp:-1"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(KitError, match="no such port"):
        usb.parse_socket(text)


def test_sockets() -> None:
    assert usb.parse_socket("tcp:4000") == 4000
    assert usb.parse_socket("one") == Path.cwd() / "one"
