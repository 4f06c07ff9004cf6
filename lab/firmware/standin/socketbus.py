# SPDX-License-Identifier: MIT
"""Our client's way to stand-ins behind a socket."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.firmware.rockusb.link import Found, LinkError, LinkGone, LinkStall, LinkTimeout
from lab.firmware.standin import wire


class SocketBus:
    """A bus at the other end of a unix socket."""

    def __init__(self, path: Path) -> None:
        self.name, self.path = f"stand-in at {path}", path
        self._stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._stream.connect(str(path))
        except OSError as error:
            raise KitError(
                ExitCode.NO_DEVICE, f"no stand-in answers at {path}", "start it with npulab board standin DIR --serve"
            ) from error
        self._numbers: dict[str, int] = {}

    def call(self, kind: int, device: int = 0, a: int = 0, b: int = 0, data: bytes = b"", timeout: float = 5) -> bytes:
        """One request; LinkError as the answer says."""
        try:
            head = wire.REQUEST.pack(kind, device, a, b, max(1, int(timeout * 1000)), len(data))
            self._stream.sendall(head + data)
            raw = wire.receive(self._stream, wire.ANSWER.size)
            if not raw:
                raise LinkGone("the stand-in has ended")
            status, length = wire.ANSWER.unpack(raw)
            answer = wire.receive(self._stream, length) if length else b""
        except OSError as error:
            raise LinkGone(f"the stand-in has ended ({error})") from error
        if status == wire.PIPE:
            raise LinkStall("the endpoint stalled")
        if status == wire.TIMEOUT:
            raise LinkTimeout(f"no answer within {timeout:g} s")
        if status == wire.NO_DEVICE:
            raise LinkGone("the device left the bus")
        if status:
            raise LinkError(f"transfer error {status}")
        return answer

    def devices(self) -> list[Found]:
        raw, at, found = self.call(wire.LIST), 0, []
        self._numbers.clear()
        while at < len(raw):
            number, _, _, descriptor, length = wire.DEVICE.unpack_from(raw, at)
            at += wire.DEVICE.size + length
            (size,) = wire.PATH.unpack_from(raw, at)
            path = raw[at + 1 : at + 1 + size].decode()
            at += 1 + size
            self._numbers[path] = number
            values = [int.from_bytes(descriptor[i : i + 2], "little") for i in (8, 10, 2)]
            found.append(Found(path, *values))
        return found

    def open(self, path: str) -> SocketLink:
        for device in self.devices():
            if device.path == path:
                return SocketLink(self, self._numbers[path], device)
        raise LinkGone(f"no device at {path}")

    def way(self, path: str) -> str:
        return f"rockusb+unix:{self.path},{path}"

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        return


class SocketLink:
    """An opened device."""

    def __init__(self, bus: SocketBus, number: int, found: Found) -> None:
        self.found, self._bus, self._number = found, bus, number

    def send(self, data: bytes, timeout: float) -> None:
        self._bus.call(wire.OUT, self._number, data=data, timeout=timeout)

    def receive(self, length: int, timeout: float) -> bytes:
        return self._bus.call(wire.IN, self._number, length, timeout=timeout)

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        self._bus.call(wire.CONTROL, self._number, 0x40 | request << 8, value | index << 16, data, timeout)

    def clear(self) -> None:
        self._bus.call(wire.CLEAR, self._number)

    def close(self) -> None:
        return
