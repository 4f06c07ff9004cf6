# SPDX-License-Identifier: MIT
"""A guest of the USB redirection protocol that is driven step by step, and our rockusb client on top of it."""

from __future__ import annotations

from lab.firmware.rockusb import PRODUCTS, VENDOR
from lab.firmware.rockusb.link import Found, LinkError, LinkGone, LinkStall, LinkTimeout
from lab.firmware.standin import usbredir
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.usbdevice import RedirectedDevice
from lab.firmware.standin.usbredir import Cap, Kind, Message, Parser, Status

QEMU_CAPS = frozenset(Cap) - {Cap.DEVICE_DISCONNECT_ACK}
USB_PIECE = 16384
"""libusb cuts longer transfers into such."""


class Guest:
    """Bytes go to the device at once; what it sends is kept."""

    def __init__(self, engine: Engine | None, caps: frozenset[Cap] = QEMU_CAPS) -> None:
        self.device, self.parser, self.now = RedirectedDevice(engine), Parser(caps), 0.0
        self.seen: list[Message] = []
        self._numbers = 0
        self.take(self.device.start())
        self.send(self.parser.hello())

    def take(self, data: bytes) -> None:
        self.seen += self.parser.feed(data)

    def send(self, data: bytes) -> None:
        self.take(self.device.received(data, self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.device.poll(self.now))

    def kinds(self) -> list[int]:
        kinds = [message.kind for message in self.seen]
        self.seen.clear()
        return kinds

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def answer(self, number: int) -> Message | None:
        return next((message for message in self.seen if message.id == number and message.kind >= 100), None)

    def control(
        self, kind: int, request: int, value: int = 0, index: int = 0, length: int = 0, data: bytes = b""
    ) -> usbredir.Control | None:
        number = self.number()
        length = length or len(data)
        head = usbredir.CONTROL_PACKET.pack(kind & 0x80, request, kind, 0, value, index, length)
        self.send(self.parser.encode(Kind.CONTROL_PACKET, number, head + data))
        found = self.answer(number)
        return None if found is None else self.parser.control(found)

    def start_bulk(self, endpoint: int, length: int, data: bytes = b"") -> int:
        number = self.number()
        head = usbredir.BULK_PACKET_32.pack(endpoint, 0, length & 0xFFFF, 0, length >> 16)
        self.send(self.parser.encode(Kind.BULK_PACKET, number, head + data))
        return number

    def end_bulk(self, number: int) -> usbredir.Bulk | None:
        found = self.answer(number)
        return None if found is None else self.parser.bulk(found)


class RedirLink:
    """Our client's way through the protocol: what libusb and the kernel do, without waiting."""

    def __init__(self, guest: Guest, found: Found) -> None:
        self.guest, self.found = guest, found
        guest.seen.clear()

    def _bulk(self, endpoint: int, length: int, data: bytes = b"") -> bytes:
        number = self.guest.start_bulk(endpoint, length, data)
        done = self.guest.end_bulk(number)
        if done is None:
            self.guest.send(self.guest.parser.encode(Kind.CANCEL_DATA_PACKET, number))
            done = self.guest.end_bulk(number)
            assert done is not None and done.status == Status.CANCELLED
            raise LinkTimeout("no answer")
        self._check(done.status)
        return done.data

    def _check(self, status: int) -> None:
        if status == Status.STALL:
            raise LinkStall("stalled")
        if status == Status.IO_ERROR:
            raise LinkGone("gone")
        if status:
            raise LinkError(f"status {status}")

    def send(self, data: bytes, timeout: float) -> None:
        for at in range(0, len(data), USB_PIECE):
            piece = data[at : at + USB_PIECE]
            self._bulk(0x02, len(piece), piece)

    def receive(self, length: int, timeout: float) -> bytes:
        whole, wanted = b"", -(-length // 512) * 512
        while len(whole) < wanted:
            room = min(USB_PIECE, wanted - len(whole))
            piece = self._bulk(0x81, room)
            whole += piece
            if len(piece) < room:
                break
        return whole

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        done = self.guest.control(0x40, request, value, index, data=data)
        if done is None:
            raise LinkTimeout("no answer")
        self._check(done.status)

    def clear(self) -> None:
        for endpoint in (0x81, 0x02):
            if self.guest.control(0x02, 1, 0, endpoint) is None:
                raise LinkTimeout("no answer")

    def close(self) -> None:
        return


class RedirBus:
    """The bus that a guest sees: one port."""

    name = "redirected"

    def __init__(self, engine: Engine) -> None:
        self.engine, self.guest = engine, Guest(engine)

    def devices(self) -> list[Found]:
        done = self.guest.control(0x80, 6, 0x0100, 0, 18)
        if done is None or done.status:
            return []
        return [Found("1-1", VENDOR, next(iter(PRODUCTS)), int.from_bytes(done.data[2:4], "little"))]

    def open(self, path: str) -> RedirLink:
        return RedirLink(self.guest, self.devices()[0])

    def way(self, path: str) -> str:
        return f"redir:{path}"

    def close(self) -> None:
        return

    def wait(self, seconds: float) -> None:
        self.guest.wait(seconds)
