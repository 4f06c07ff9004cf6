# SPDX-License-Identifier: MIT
"""What runs on the host that a board's USB cable is in, when that is another host than the kit's.

`lab.firmware.rockusb.remote` sends this file over its connection; it is run from memory, by whatever Python 3.7 or
later that host has, with the standard library alone. It finds devices in sysfs and uses them through usbfs (ioctls of
linux ``include/uapi/linux/usbdevice_fs.h``). It ends, and lets go of all devices, when its input ends or stays silent.

Both directions carry frames of a header and data, numbers little-endian: `REQUEST` and `ANSWER`. Answers come in the
order of the requests. A request with the flag `CHAINED` is skipped unless the one before it was done in full (for `IN`:
as many bytes came as were asked for), so a client can send several ahead.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import queue
import select
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELLO = b"\0npulab usb 1\n"
"""What is printed first; anything before it is a log-in script's."""

REQUEST = struct.Struct("<IBBHIIII")
"""Number, operation, flags, device, timeout in ms, two arguments, length of the data that follows."""
ANSWER = struct.Struct("<IiI")
"""Number of the request, 0 or an errno (`SKIPPED`: not tried), length of the data that follows."""

ALIVE, LIST, OPEN, CLOSE, OUT, IN, CONTROL, CLEAR = range(8)
"""Operations. `ALIVE` has no answer. `OPEN` takes a port, such as ``3-1.2``. `IN` takes a length; `CONTROL` takes
request type and request in the first argument, value and index in the second."""
CHAINED = 1
SKIPPED = -1
LONGEST = 16 << 20
"""Bytes of data in a request, at most: what usbfs holds at a time."""

QUIET_SECONDS = 60.0
"""Silence of the other side after which it is taken for lost."""
SETTLE_SECONDS = 2.0
"""A device that has just come may be root's for a moment, until udev has seen it; another agent may just be ending."""
PIECE = 64 << 10
"""Bytes of one ioctl; the kernel wants its memory in one piece, so less when it has none."""
SMALLEST = 4096
PACKET = 512

CONTROL_TRANSFER = struct.Struct("@BBHHHIP")
BULK_TRANSFER = struct.Struct("@IIIP")
GET_DRIVER = struct.Struct("@I256s")
DRIVER_IOCTL = struct.Struct("@iiP")
NUMBER = struct.Struct("@I")


def _code(direction: int, number: int, size: int) -> int:
    """An ioctl's number as arm and x86 make it (asm-generic/ioctl.h): 1 writes, 2 reads, as user space sees it."""
    return direction << 30 | size << 16 | ord("U") << 8 | number


USB_CONTROL = _code(3, 0, CONTROL_TRANSFER.size)
USB_BULK = _code(3, 2, BULK_TRANSFER.size)
USB_GETDRIVER = _code(1, 8, GET_DRIVER.size)
USB_CLAIM = _code(2, 15, NUMBER.size)
USB_RELEASE = _code(2, 16, NUMBER.size)
USB_IOCTL = _code(3, 18, DRIVER_IOCTL.size)
USB_CLEAR_HALT = _code(2, 21, NUMBER.size)
USB_DISCONNECT = _code(0, 22, 0)
USB_CONNECT = _code(0, 23, 0)


class Parser:
    """Frames out of a stream: ``header`` ends with the length of the data that follows it."""

    def __init__(self, header: struct.Struct) -> None:
        self._header, self._got = header, bytearray()

    def feed(self, data: bytes) -> list[tuple[tuple[int, ...], bytes]]:
        """The frames that are complete now; ValueError for one that cannot be."""
        self._got += data
        frames = []
        while len(self._got) >= self._header.size:
            fields = self._header.unpack_from(self._got)
            if fields[-1] > LONGEST:
                raise ValueError(f"a frame of {fields[-1]} bytes")
            end = self._header.size + fields[-1]
            if len(self._got) < end:
                break
            frames.append((fields, bytes(self._got[self._header.size : end])))
            del self._got[:end]
        return frames


def endpoints(descriptors: bytes, configuration: int) -> tuple[int, int, int]:
    """Interface, bulk IN and bulk OUT of the rockusb interface (ff/06/05); OSError (ENXIO) when there is none."""
    at, active, interface = 0, False, -1
    ends: dict[bool, int] = {}
    while at + 2 <= len(descriptors) and descriptors[at] >= 2:
        length, kind = descriptors[at], descriptors[at + 1]
        field = descriptors[at : at + length]
        if len(field) < length:
            break
        if kind == 2 and length >= 9:
            active = field[5] == configuration
            interface = -1
        elif kind == 4 and length >= 9:
            found = active and not ends and field[3] == 0 and bytes(field[5:8]) == b"\xff\x06\x05"
            interface = field[2] if found else -1
        elif kind == 5 and length >= 7 and interface >= 0 and field[3] & 3 == 2:
            ends[bool(field[2] & 0x80)] = field[2]
            if len(ends) == 2:
                return interface, ends[True], ends[False]
        at += length
    raise OSError(errno.ENXIO, "the device has no rockusb interface")


class Device:
    """An opened and claimed device."""

    def __init__(self, folder: Path, nodes: Path, ioctl: Callable[..., Any] = fcntl.ioctl) -> None:
        self.descriptors, self._ioctl = (folder / "descriptors").read_bytes(), ioctl
        chosen = (folder / "bConfigurationValue").read_bytes().strip()
        if not chosen:
            raise OSError(errno.ENODEV, "the device is not configured yet")
        numbers = [int((folder / name).read_bytes()) for name in ("busnum", "devnum")]
        self._interface, self._in, self._out = endpoints(self.descriptors, int(chosen))
        self._detached = False
        self._piece = PIECE
        self._fd = self._open(nodes / f"{numbers[0]:03}/{numbers[1]:03}")
        try:
            self._claim()
        except OSError:
            os.close(self._fd)
            raise

    def _open(self, node: Path) -> int:
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return os.open(node, os.O_RDWR | os.O_CLOEXEC)
            except PermissionError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.1)

    def _claim(self) -> None:
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                self._ioctl(self._fd, USB_CLAIM, bytearray(NUMBER.pack(self._interface)), True)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= end:
                    raise
            if self._driver() in ("", "usbfs"):
                time.sleep(0.1)
            else:
                self._of_driver(USB_DISCONNECT)
                self._detached = True

    def _driver(self) -> str:
        """Who has the interface; ``usbfs`` is another program."""
        buffer = bytearray(GET_DRIVER.pack(self._interface, b""))
        try:
            self._ioctl(self._fd, USB_GETDRIVER, buffer, True)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            return ""
        return bytes(GET_DRIVER.unpack(buffer)[1]).split(b"\0")[0].decode(errors="replace")

    def _of_driver(self, code: int) -> None:
        self._ioctl(self._fd, USB_IOCTL, bytearray(DRIVER_IOCTL.pack(self._interface, code, 0)), True)

    def close(self) -> None:
        """Let go of it; a driver that was there before comes back."""
        try:
            self._ioctl(self._fd, USB_RELEASE, bytearray(NUMBER.pack(self._interface)), True)
            if self._detached:
                self._of_driver(USB_CONNECT)
        except OSError:
            return  # it has left the bus: nothing is held
        finally:
            os.close(self._fd)

    def _bulk(self, endpoint: int, address: int, length: int, end: float) -> int:
        # a timeout of 0 would be none
        left = max(1, int((end - time.monotonic()) * 1000))
        buffer = bytearray(BULK_TRANSFER.pack(endpoint, length, left, address))
        return int(self._ioctl(self._fd, USB_BULK, buffer, True))

    def _transfer(self, endpoint: int, data: array.array[int], timeout: float) -> int:
        """In pieces of whole packets that usbfs takes; how many bytes went, or came until a short packet."""
        address, end, done = data.buffer_info()[0], time.monotonic() + timeout, 0
        while done < len(data):
            size = min(self._piece, len(data) - done)
            try:
                moved = self._bulk(endpoint, address + done, size, end)
            except OSError as error:
                if error.errno != errno.ENOMEM or self._piece <= SMALLEST:
                    raise
                self._piece //= 2
                continue
            done += moved
            if moved < size:
                break
        return done

    def send(self, data: bytes, timeout: float) -> None:
        """Bulk out."""
        if self._transfer(self._out, array.array("B", data), timeout) != len(data):
            raise OSError(errno.EIO, "a part was sent")

    def receive(self, length: int, timeout: float) -> bytes:
        """Bulk in; whole packets are asked for, since a longer answer than that would be lost."""
        data = array.array("B", bytes(-(-length // PACKET) * PACKET))
        return memoryview(data)[: self._transfer(self._in, data, timeout)].tobytes()

    def control(self, first: int, second: int, data: bytes, timeout: float) -> None:
        """A control request to the device."""
        body = array.array("B", data)
        fields = (first & 0xFF, first >> 8 & 0xFF, second & 0xFFFF, second >> 16, len(data))
        address = body.buffer_info()[0] if data else 0
        buffer = CONTROL_TRANSFER.pack(*fields, max(1, int(timeout * 1000)), address)
        self._ioctl(self._fd, USB_CONTROL, bytearray(buffer), True)

    def clear(self) -> None:
        """Clear both endpoints' halts."""
        for end in (self._in, self._out):
            self._ioctl(self._fd, USB_CLEAR_HALT, bytearray(NUMBER.pack(end)), True)


class Agent:
    """Carries out requests, one after another."""

    def __init__(self, vendor: int, sysfs: Path, nodes: Path, ioctl: Callable[..., Any] = fcntl.ioctl) -> None:
        self._vendor, self._sysfs, self._nodes, self._ioctl = vendor, sysfs, nodes, ioctl
        self._devices: dict[int, Device] = {}
        self._opened = 0
        self._whole = True

    def answer(self, fields: tuple[int, ...], data: bytes) -> bytes:
        """The answer to a request, as a frame."""
        number, operation, flags, device, timeout, first, second, _ = fields
        code, out = 0, b""
        if flags & CHAINED and not self._whole:
            code = SKIPPED
        else:
            try:
                out = self._do(operation, device, timeout / 1000, first, second, data)
            except OSError as error:
                code, out = error.errno or errno.EIO, str(error.strerror or error).encode()
            self._whole = not code and (operation != IN or len(out) == first)
        return ANSWER.pack(number, code, len(out)) + out

    def _do(self, operation: int, device: int, timeout: float, first: int, second: int, data: bytes) -> bytes:
        if operation == LIST:
            return self._list()
        if operation == OPEN:
            return self._open(data.decode())
        if device not in self._devices:
            raise OSError(errno.ENODEV, "the device is not open")
        chosen = self._devices[device]
        if operation == IN:
            return chosen.receive(first, timeout)
        if operation == OUT:
            chosen.send(data, timeout)
        elif operation == CONTROL:
            chosen.control(first, second, data, timeout)
        elif operation == CLEAR:
            chosen.clear()
        elif operation == CLOSE:
            self._devices.pop(device).close()
        else:
            raise OSError(errno.ENOSYS, "no such operation")
        return b""

    def _list(self) -> bytes:
        """Devices of the vendor: length of the port's name, name, device descriptor (18 bytes)."""
        found = []
        for folder in self._sysfs.iterdir():
            if "-" not in folder.name or ":" in folder.name:
                continue
            try:
                if int((folder / "idVendor").read_bytes(), 16) == self._vendor:
                    descriptor = (folder / "descriptors").read_bytes()[:18]
                    found.append(bytes([len(folder.name)]) + folder.name.encode() + descriptor)
            except (OSError, ValueError):
                continue  # it left while it was looked at
        return b"".join(found)

    def _open(self, name: str) -> bytes:
        """A device by its port; answers with its number, and its descriptor."""
        try:
            device = Device(self._sysfs / name, self._nodes, self._ioctl)
        except FileNotFoundError:
            raise OSError(errno.ENODEV, "no device at " + name) from None
        self._opened = self._opened % 0xFFFF + 1
        self._devices[self._opened] = device
        return struct.pack("<H", self._opened) + device.descriptors[:18]


def _listen(source: int, requests: queue.Queue[tuple[tuple[int, ...], bytes]]) -> None:
    """Requests into the queue. The end of the input ends the program at once, whatever it does: the device is free."""
    parser = Parser(REQUEST)
    try:
        while select.select([source], [], [], QUIET_SECONDS)[0]:
            data = os.read(source, 1 << 18)
            if not data:
                break
            for fields, body in parser.feed(data):
                if fields[1] != ALIVE:
                    requests.put((fields, body))
    finally:
        os._exit(0)


def serve(
    vendor: int,
    sysfs: str = "/sys/bus/usb/devices",
    nodes: str = "/dev/bus/usb",
    ioctl: Callable[..., Any] = fcntl.ioctl,
) -> None:
    """Answer on standard output until standard input ends."""
    agent = Agent(vendor, Path(sysfs), Path(nodes), ioctl)
    requests: queue.Queue[tuple[tuple[int, ...], bytes]] = queue.Queue()
    threading.Thread(target=_listen, args=(0, requests), daemon=True).start()
    out = HELLO
    while True:
        view = memoryview(out)
        while view:
            view = view[os.write(1, view) :]
        fields, body = requests.get()
        out = agent.answer(fields, body)
