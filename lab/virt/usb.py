# SPDX-License-Identifier: MIT
"""Devices in the virtual board's USB ports: each is somebody else's, behind a socket (USB redirection)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.virt.dtb import BoardTree

CONTROLLERS = ("fc000000", "fc400000", "fcd00000")
"""Addresses of usb_host0_xhci to usb_host2_xhci (linux rk3588-base.dtsi), in the order of QEMU's buses."""
PORTS = 4
"""USB 2 ports of a controller: QEMU's, the SoC's have one."""
RECONNECT_MS = 200


def parse_socket(text: str) -> Path | int:
    """A socket's absolute path, or from ``tcp:PORT`` the port of this machine; KitError (usage) for no such port."""
    kind, _, port = text.partition(":")
    if kind != "tcp":
        return Path(text).absolute()
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise KitError(ExitCode.USAGE, f"{text}: there is no such port", "tcp:1 to tcp:65535, or the path of a socket")
    return int(port)


def arguments(sockets: Sequence[Path | int], tree: BoardTree) -> list[str]:
    """QEMU's arguments: a port of the board's first USB 3 host for each socket, whether or not anybody listens yet."""
    if not sockets:
        return []
    if not tree.usb_hosts:
        what = f"{tree.model} has no USB 3 host port: its device tree enables none of {', '.join(CONTROLLERS)}"
        raise KitError(ExitCode.USAGE, what, "choose another board's device tree")
    if len(sockets) > PORTS:
        raise KitError(ExitCode.USAGE, f"{len(sockets)} USB devices: there are {PORTS} ports", "give fewer sockets")
    bus = f"usb-bus.{CONTROLLERS.index(tree.usb_hosts[0])}"
    found = []
    for number, where in enumerate(sockets):
        path = str(where).replace(",", ",,")
        place = f"host=127.0.0.1,port={where}" if isinstance(where, int) else f"path={path}"
        found += ["-chardev", f"socket,id=usb{number},{place},reconnect-ms={RECONNECT_MS}"]
        found += ["-device", f"usb-redir,id=usb{number},chardev=usb{number},bus={bus},port={number + 1}"]
    return found
