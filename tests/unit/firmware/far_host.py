# SPDX-License-Identifier: MIT
"""Another host, made of a process: the kit's program runs in it as over ssh; its usbfs leads to a served stand-in.

``far_host.py SOCKET FOLDER SCRIPT``: SCRIPT is what a shell there would have run. FOLDER is its /sys and /dev, and gets
the process's number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from pathlib import Path
from typing import Any

from lab.firmware.rockusb import agent
from lab.firmware.rockusb.link import LinkError, LinkGone, LinkStall, LinkTimeout
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.socketbus import SocketBus, SocketLink

NUMBERS = {LinkTimeout: errno.ETIMEDOUT, LinkStall: errno.EPIPE, LinkGone: errno.ENODEV, LinkError: errno.EIO}


def make_folder(folder: Path, engine: Engine) -> None:
    """What the kernel shows of the stand-in."""
    device = folder / "sys" / engine.port
    device.mkdir(parents=True)
    (device / "idVendor").write_text("2207\n")
    (device / "bConfigurationValue").write_text("1\n")
    (device / "busnum").write_text("1\n")
    (device / "devnum").write_text("7\n")
    (device / "descriptors").write_bytes(engine.descriptor() + engine.configuration())
    (folder / "sys" / f"{engine.port}:1.0").mkdir()
    (folder / "sys" / "usb1").mkdir()
    node = folder / "dev" / "001" / "007"
    node.parent.mkdir(parents=True)
    node.touch()


class Kernel:
    """The ioctls, on a stand-in; ``fds`` are devices that were opened."""

    def __init__(self, socket: Path) -> None:
        self.bus = SocketBus(socket)
        self.links: dict[int, SocketLink] = {}

    def ioctl(self, fd: int, code: int, buffer: bytearray, mutate: bool = True) -> int:
        try:
            return self._ioctl(fd, code, buffer)
        except LinkError as error:
            number = next(number for kind, number in NUMBERS.items() if isinstance(error, kind))
            raise OSError(number, str(error)) from error

    def _ioctl(self, fd: int, code: int, buffer: bytearray) -> int:
        if code == agent.USB_CLAIM:
            self.links[fd] = self.bus.open(self.bus.devices()[0].path)
            return 0
        link = self.links[fd]
        if code == agent.USB_BULK:
            end, length, timeout, address = agent.BULK_TRANSFER.unpack(buffer)
            assert timeout > 0 and (length % 512 == 0 or not end & 0x80)
            if end & 0x80:
                data = link.receive(length, timeout / 1000)
                ctypes.memmove(address, data, len(data))
                return len(data)
            link.send(ctypes.string_at(address, length), timeout / 1000)
            return length
        if code == agent.USB_CONTROL:
            _, request, value, index, length, timeout, address = agent.CONTROL_TRANSFER.unpack(buffer)
            link.control(request, value, index, ctypes.string_at(address, length), timeout / 1000)
        elif code == agent.USB_CLEAR_HALT:
            link.clear()
        return 0


def main() -> None:
    """Run the program as the script says."""
    socket, folder, script = sys.argv[1:]
    (Path(folder) / "pid").write_text(str(os.getpid()))
    expected = re.fullmatch(r"exec python3 -I -S -c '(.*)'", script)
    assert expected is not None, script
    kernel = Kernel(Path(socket))
    names: dict[str, Any] = {}

    def execute(code: Any) -> None:
        exec(code, names)

    def serve(vendor: int) -> None:
        names["serve"](vendor, f"{folder}/sys", f"{folder}/dev", kernel.ioctl)

    print("Welcome to this host.", flush=True)
    exec(expected[1], {"exec": execute, "serve": serve})


if __name__ == "__main__":
    main()
