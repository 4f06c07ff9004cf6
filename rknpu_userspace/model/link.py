# SPDX-License-Identifier: MIT
"""Frames of the NPU link, see docs/npu-link.md."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

MAGIC = 0x4C4E4B52
VERSION = 1
HELLO, RESET, WRITE, READ, JOB = 1, 2, 3, 4, 5
ANSWER = 0x80
DONE = ANSWER | JOB
MAX_CORE = 2

HEADER = struct.Struct("<IHHII")
HELLO_HEAD = struct.Struct("<II")
HELLO_REGION = struct.Struct("<QQQ")
WRITE_BODY = struct.Struct("<II")
READ_BODY = struct.Struct("<I")
JOB_BODY = struct.Struct("<IIIIIIII")
DONE_BODY = struct.Struct("<IIIIIIQ")
FIXED_LENGTH = {RESET: 0, WRITE: WRITE_BODY.size, READ: READ_BODY.size, JOB: JOB_BODY.size}

BANK_PAGING, BANK_STALLED, BANK_EXISTS = 1, 2, 4


class LinkError(Exception):
    """The peer broke the protocol; the connection can not go on."""


class Frame(NamedTuple):
    """A request."""

    kind: int
    core: int
    sequence: int
    payload: bytes


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, or b"" at an orderly end before the first one."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            if parts:
                raise LinkError(f"the peer closed in the middle of a frame, {len(parts)} of {size} bytes came")
            return b""
        parts += part
    return bytes(parts)


def receive(connection: socket.socket) -> Frame | None:
    """The next request, or None when the peer has closed."""
    head = _receive(connection, HEADER.size)
    if not head:
        return None
    magic, kind, length, core, sequence = HEADER.unpack(head)
    if magic != MAGIC:
        raise LinkError(f"bad magic {magic:#010x}")
    if kind != HELLO and kind not in FIXED_LENGTH:
        raise LinkError(f"unknown frame type {kind}")
    if core > MAX_CORE:
        raise LinkError(f"core {core} does not exist")
    if kind in FIXED_LENGTH and length != FIXED_LENGTH[kind]:
        raise LinkError(f"frame type {kind} with {length} bytes, {FIXED_LENGTH[kind]} expected")
    payload = _receive(connection, length) if length else b""
    if len(payload) != length:
        raise LinkError("the peer closed in the middle of a frame")
    return Frame(kind, core, sequence, payload)


def answer(kind: int, core: int, sequence: int, payload: bytes = b"") -> bytes:
    """The bytes of an answer."""
    return HEADER.pack(MAGIC, kind | ANSWER, len(payload), core, sequence) + payload


def parse_hello(payload: bytes) -> list[tuple[int, int, int]]:
    """Regions (guest physical address, offset in the RAM file, size) of a HELLO."""
    if len(payload) < HELLO_HEAD.size:
        raise LinkError(f"HELLO with {len(payload)} bytes")
    version, count = HELLO_HEAD.unpack_from(payload)
    if version != VERSION:
        raise LinkError(f"HELLO version {version}, this model speaks {VERSION}")
    if len(payload) != HELLO_HEAD.size + count * HELLO_REGION.size or not count:
        raise LinkError(f"HELLO with {len(payload)} bytes for {count} regions")
    return [HELLO_REGION.unpack_from(payload, HELLO_HEAD.size + i * HELLO_REGION.size) for i in range(count)]
