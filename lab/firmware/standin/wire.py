# SPDX-License-Identifier: MIT
"""The frames between a stand-in's server and its clients (the libusb replacement in C, and `SocketBus`).

Request: kind, device, a, b, timeout in ms (0: for ever), length, then data. Answer: status (0 or a negative libusb
error code), length, data. All numbers are 32-bit little-endian.
"""

from __future__ import annotations

import socket
import struct

REQUEST = struct.Struct("<IIIIII")
ANSWER = struct.Struct("<iI")

LIST, CONTROL, OUT, IN, CLEAR = 1, 2, 3, 4, 5

IO, NO_DEVICE, TIMEOUT, PIPE = -1, -4, -7, -9
"""Error codes of libusb.h."""

DEVICE = struct.Struct("<IBB6x18sH")
"""In an answer to LIST: device number, bus, port, device descriptor, length of the configuration that follows."""

PATH = struct.Struct("<B")
"""After the configuration: length of the port path, then the path."""


def receive(stream: socket.socket, length: int) -> bytes:
    """Exactly ``length`` bytes; empty when the peer is gone."""
    parts = []
    while length:
        part = stream.recv(min(length, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
