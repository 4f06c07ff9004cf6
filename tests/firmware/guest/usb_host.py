# SPDX-License-Identifier: MIT
"""What runs on the virtual board that has a board in USB download mode in its port.

Reads lines, each a JSON list of a function of this file and its arguments, and prints a JSON document for each. Errors
of the kit come out as ``{"error": ..., ...}``. With arguments it calls that one function and ends. Modules are imported
where they are used: that takes seconds on a virtual processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import KitError

if TYPE_CHECKING:
    from lab.firmware.medium import Transport

BOARD = "rock-5-itx-plus"


def connect(port: str = "", **loader: Any) -> Transport:
    """The board, over this machine's USB: the only one, or the one at a port."""
    from lab import boards
    from lab.firmware.transports.select import Loader, open_transport

    return open_transport(f"rockusb:{port}" if port else "rockusb", boards.load(BOARD), Loader(**loader))


class Quiet:
    """No progress."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        return


def find() -> dict[str, Any]:
    """Devices that the kit finds, and whether the one answers."""
    from lab.firmware.rockusb.client import Rockusb
    from lab.firmware.rockusb.usb import UsbBus

    bus = UsbBus()
    found = [{"path": d.path, "maskrom": d.maskrom} for d in bus.devices()]
    device = Rockusb(bus)
    try:
        return {"found": found, "ready": device.ready()}
    finally:
        device.close()


def start_loader(path: str) -> dict[str, Any]:
    """From mask ROM to usbplug."""
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    transport = connect(path=Path(path), sha256=digest)
    try:
        return {"identity": dict(transport.identify())}
    finally:
        transport.close()


def identify(port: str = "") -> dict[str, Any]:
    """Who the board is, and its media."""
    transport = connect(port)
    try:
        media = {info.name: info.size for info in transport.storages()}
        return {"identity": dict(transport.identify()), "media": media}
    finally:
        transport.close()


def read(storage: str, length: str, target: str) -> dict[str, Any]:
    """A medium's start into a file."""
    transport = connect()
    try:
        start = time.monotonic()
        data = transport.open(storage).read(0, int(length))
        Path(target).write_bytes(data)
        return {"sha256": hashlib.sha256(data).hexdigest(), "seconds": time.monotonic() - start}
    finally:
        transport.close()


def read_impatiently(storage: str, length: str) -> dict[str, Any]:
    """The same with short timeouts; how long it took to give up is in the error."""
    from lab import boards
    from lab.firmware.rockusb.client import Rockusb, Timeouts
    from lab.firmware.rockusb.usb import UsbBus
    from lab.firmware.transports.rockusb import RockusbTransport

    transport = RockusbTransport(boards.load(BOARD), Rockusb(UsbBus(), timeouts=Timeouts(1.0, 1.0)))
    try:
        return {"sha256": hashlib.sha256(transport.open(storage).read(0, int(length))).hexdigest()}
    finally:
        transport.close()


def write(storage: str, offset: str, source: str) -> dict[str, Any]:
    """A file onto a medium."""
    transport = connect()
    try:
        transport.open(storage, write=True).write(int(offset), Path(source).read_bytes())
        return {}
    finally:
        transport.close()


def backup(folder: str) -> dict[str, Any]:
    """A backup of everything, read twice."""
    from lab import boards
    from lab.firmware import regions
    from lab.firmware.store import Store, create

    board, transport = boards.load(BOARD), connect()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        made = create.create(Store(Path(folder)), board, transport, regions.make(board, transport), Quiet())
        return {"id": made.manifest.id, "verified": made.manifest.verified}
    finally:
        transport.close()


def as_user(uid: str, gid: str, *words: str) -> dict[str, Any]:
    """Another of these as a normal user, in a process of its own."""
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, user=int(uid), group=int(gid), extra_groups=[], capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout or json.dumps({"failed": done.stderr}))
    return answer


def labgrid(loader: str, image: str) -> dict[str, Any]:
    """labgrid's own resource and driver: found through udev, started and written with rkdeveloptool."""
    from labgrid import Environment

    config = Path("/tmp/usb.yaml")
    lines = [
        "targets:",
        "  main:",
        "    resources:",
        "      RKUSBLoader:",
        f"        match: {{'ID_PATH': '{id_path()}'}}",
        "    drivers:",
        "      RKUSBDriver:",
        "        image: image",
        "        usb_loader: loader",
        f"images: {{image: {image}, loader: {loader}}}",
        "tools: {rk-usb-loader: /usr/bin/rkdeveloptool}",
    ]
    config.write_text("\n".join(lines))
    target = Environment(str(config)).get_target("main")
    resource = target.get_resource("RKUSBLoader")
    found = {"path": resource.path, "vendor": f"{resource.vendor_id:04x}", "model": f"{resource.model_id:04x}"}
    driver = target.get_driver("RKUSBDriver")
    driver.load()
    return found


def id_path() -> str:
    """udev's name of the port."""
    import pyudev

    devices = pyudev.Context().list_devices(subsystem="usb").match_property("ID_VENDOR_ID", "2207")
    return next(str(d.properties["ID_PATH"]) for d in devices if d.device_type == "usb_device")


def call(what: str, *arguments: str) -> dict[str, Any]:
    """The function of that name."""
    function = globals()[what]
    start = time.monotonic()
    try:
        answer: dict[str, Any] = function(*arguments)
    except KitError as error:
        seconds = time.monotonic() - start
        answer = {"error": error.message, "hint": error.hint, "code": int(error.code), "seconds": seconds}
    return answer


if __name__ == "__main__":
    # what others print, such as the tools that labgrid runs, is not an answer
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if sys.argv[1:]:
        print(json.dumps(call(*sys.argv[1:])), file=answers)
    else:
        for line in sys.stdin:
            print(json.dumps(call(*json.loads(line))), file=answers)
