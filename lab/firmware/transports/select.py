# SPDX-License-Identifier: MIT
"""``--via``: one word that says how to reach a board.

file:DIR                    a board directory (drills, stand-in)
block:PATH[,STORAGE]        a medium in a reader of this host, or an image file
block+ssh:[USER@]HOST[:PORT],PATH[,STORAGE]  a medium in a reader of another host
ssh:[USER@]HOST[:PORT]      a running Linux
virt[:NAME]                 a virtual board that runs in the background (npulab virt up)
serial:PORT                 a root shell on the console (a device, or a URL of pyserial)
rockusb[:BUS-PORT]          a board in USB download mode
rockusb+ssh:[USER@]HOST[:PORT][,BUS-PORT]  the same, on the USB of another host
rockusb+unix:SOCKET[,PORT]  the same, played by a served stand-in
standin:DIR[,PERSONALITY]   the same within this process
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware.medium import Transport
from lab.firmware.rockusb import loaderfile
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.rockusb.link import Bus
from lab.firmware.rockusb.remote import RemoteBus
from lab.firmware.standin.engine import PERSONALITIES, Engine
from lab.firmware.standin.inprocess import EngineBus
from lab.firmware.standin.socketbus import SocketBus
from lab.firmware.transports.block import BlockTransport, DrillTransport
from lab.firmware.transports.farblock import FarBlockTransport
from lab.firmware.transports.linux import open_linux
from lab.firmware.transports.rockusb import RockusbTransport
from lab.firmware.transports.serial import SerialRemote, open_port
from lab.firmware.transports.ssh import SshRemote, arguments, check_destination

FORMS = (
    "file:DIR, block:PATH[,STORAGE], ssh:[USER@]HOST[:PORT], virt[:NAME], serial:PORT, rockusb[:BUS-PORT], "
    "rockusb+ssh:[USER@]HOST[:PORT][,BUS-PORT], block+ssh:[USER@]HOST[:PORT],PATH[,STORAGE]"
)
USB_WAYS = ("rockusb", "rockusb+ssh", "rockusb+unix", "standin")


@dataclass(frozen=True)
class Loader:
    """A loader file for boards in mask ROM, and the hash that the user states."""

    path: Path | None = None
    sha256: str | None = None


def open_transport(via: str, board: Board, loader: Loader | None = None) -> Transport:
    """The transport that ``via`` names; KitError when it is none or the board is not there."""
    kind, _, rest = via.partition(":")
    where, _, extra = rest.partition(",")
    if kind in USB_WAYS:
        return _rockusb(kind, where, extra, board, loader or Loader())
    if kind == "virt":
        from lab.virt.background import find_board  # much comes with it

        running = find_board(where or None)
        return open_linux(board, SshRemote(f"root@127.0.0.1:{running.ssh_port}", running.ssh_options))
    if not where:
        raise KitError(ExitCode.USAGE, f"--via {via}: not a way to a board", f"one of {FORMS}")
    if kind == "file":
        return DrillTransport(Path(where))
    if kind == "block":
        storage = board.storage_named(extra or _only_removable(board))
        return BlockTransport(Path(where), storage.name, storage.kind)
    if kind == "block+ssh":
        path, _, name = extra.partition(",")
        return far_block(board, SshRemote(where), path, name)
    if kind == "ssh":
        return open_linux(board, SshRemote(where))
    if kind == "serial":
        return open_linux(board, SerialRemote(open_port(rest, board.console.baud), f"serial:{rest}"))
    raise KitError(ExitCode.USAGE, f"--via {via}: not a way to a board", f"one of {FORMS}")


def far_block(board: Board, remote: SshRemote, path: str, name: str = "") -> FarBlockTransport:
    """The medium ``name`` of the board in a reader of the host behind ``remote``."""
    try:
        storage = board.storage_named(name or _only_removable(board))
        return FarBlockTransport(remote, path, storage.name, storage.kind)
    except BaseException:
        remote.close()
        raise


def _only_removable(board: Board) -> str:
    names = [storage.name for storage in board.storage if storage.removable]
    if len(names) != 1:
        raise KitError(
            ExitCode.USAGE, "say which of the board's media it is", f"block:PATH,STORAGE with one of {', '.join(names)}"
        )
    return names[0]


def open_bus(kind: str, where: str, extra: str) -> tuple[Bus, str | None]:
    """The bus that rockusb devices are looked for on, and the chosen port."""
    if kind == "standin":
        personality = extra or "loader"
        if personality not in PERSONALITIES:
            raise KitError(
                ExitCode.USAGE, f"no personality is called {personality}", f"one of {', '.join(PERSONALITIES)}"
            )
        return EngineBus([Engine(Path(where), personality)]), None
    if kind == "rockusb+unix":
        return SocketBus(Path(where)), extra or None
    if kind == "rockusb+ssh":
        check_destination(where)
        return RemoteBus(lambda: arguments(where), where), extra or None
    from lab.firmware.rockusb.usb import UsbBus

    return UsbBus(), where or None


def _rockusb(kind: str, where: str, extra: str, board: Board, loader: Loader) -> Transport:
    bus, path = open_bus(kind, where, extra)
    return over_usb(bus, path, board, loader)


def over_usb(bus: Bus, path: str | None, board: Board, loader: Loader, *, keep_bus: bool = False) -> RockusbTransport:
    """The board at that port, or the only one; a loader is started when it is in mask ROM.

    The bus is closed with the transport, or when there is none, unless ``keep_bus``.
    """
    try:
        device = Rockusb(bus, path)
        try:
            if loader.path is not None and not device.ready():
                device.download(loaderfile.parse(loader.path, dict(board.loaders), loader.sha256))
            return RockusbTransport(board, device, keep_bus=keep_bus)
        except BaseException:
            device.close()
            raise
    except BaseException:
        if not keep_bus:
            bus.close()
        raise
