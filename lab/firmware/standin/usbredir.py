# SPDX-License-Identifier: MIT
"""The USB redirection protocol without any I/O: messages as structures, and a parser that takes bytes as they come.

Two parties: the *host* owns the device (here: the stand-in), the *guest* uses it (here: QEMU's ``usb-redir``). Numbers
and layouts are those of the protocol's description, version 0.7 (usbredir, ``docs/usb-redirection-protocol.md`` and
``usbredirproto.h``); only what a device with control and bulk endpoints needs is here. Little-endian throughout.

A message is a header (type, length, id), the type's own fixed part, and data. Both parties say hello first, with the
capabilities they have; the width of ids and of some fixed parts depends on what both have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum


class Kind(IntEnum):
    """Message types."""

    HELLO = 0
    DEVICE_CONNECT = 1
    DEVICE_DISCONNECT = 2
    RESET = 3
    INTERFACE_INFO = 4
    EP_INFO = 5
    SET_CONFIGURATION = 6
    GET_CONFIGURATION = 7
    CONFIGURATION_STATUS = 8
    SET_ALT_SETTING = 9
    GET_ALT_SETTING = 10
    ALT_SETTING_STATUS = 11
    CANCEL_DATA_PACKET = 21
    FILTER_REJECT = 22
    FILTER_FILTER = 23
    DEVICE_DISCONNECT_ACK = 24
    CONTROL_PACKET = 100
    BULK_PACKET = 101


class Cap(IntEnum):
    """Capabilities: bit numbers of the hello message's words."""

    CONNECT_DEVICE_VERSION = 1
    FILTER = 2
    DEVICE_DISCONNECT_ACK = 3
    EP_INFO_MAX_PACKET_SIZE = 4
    IDS_64_BITS = 5
    BULK_LENGTH_32_BITS = 6


class Status(IntEnum):
    """How a transfer ended."""

    SUCCESS = 0
    CANCELLED = 1
    INVALID = 2
    IO_ERROR = 3
    STALL = 4
    TIMEOUT = 5
    BABBLE = 6


class EndpointType(IntEnum):
    """Transfer types of USB; INVALID marks an endpoint that is not there."""

    CONTROL = 0
    BULK = 2
    INVALID = 255


SPEED_HIGH = 2
OUR_CAPS = frozenset(
    {
        Cap.CONNECT_DEVICE_VERSION,
        Cap.DEVICE_DISCONNECT_ACK,
        Cap.EP_INFO_MAX_PACKET_SIZE,
        Cap.IDS_64_BITS,
        Cap.BULK_LENGTH_32_BITS,
    }
)
VERSION = b"npulab stand-in"

HEADER_32 = struct.Struct("<III")
"""Type, length of what follows the header, id."""
HEADER_64 = struct.Struct("<IIQ")
HELLO_VERSION = 64
DEVICE_CONNECT = struct.Struct("<BBBBHH")
"""Speed, class, subclass, protocol, vendor, product; with CONNECT_DEVICE_VERSION a 16-bit bcdDevice follows."""
INTERFACES = 32
INTERFACE_INFO = struct.Struct(f"<I{4 * INTERFACES}x")
"""Number of interfaces, then for each of 32 its number, class, subclass and protocol (four tables)."""
ENDPOINTS = 32
EP_INFO_BYTES = 3 * ENDPOINTS
"""Tables of type, interval and interface; with EP_INFO_MAX_PACKET_SIZE a table of 16-bit sizes follows."""
CONFIGURATION = struct.Struct("<B")
CONFIGURATION_STATUS = struct.Struct("<BB")
"""Status, configuration."""
ALT_SETTING = struct.Struct("<BB")
"""Interface, alternate setting."""
ALT_SETTING_STATUS = struct.Struct("<BBB")
"""Status, interface, alternate setting."""
CONTROL_PACKET = struct.Struct("<BBBBHHH")
"""Endpoint, request, request type, status, value, index, length."""
BULK_PACKET_16 = struct.Struct("<BBHI")
"""Endpoint, status, length, stream."""
BULK_PACKET_32 = struct.Struct("<BBHIH")
"""As above, then the upper half of the length."""

DATA_LIMIT = 16 << 20
"""Most bytes of one transfer that we take: Linux's usbfs gives out no more at a time."""
HELLO_LIMIT = HELLO_VERSION + 4 * 64
FILTER_LIMIT = 64 << 10


class RedirError(Exception):
    """The peer does not keep to the protocol; the connection cannot go on."""


@dataclass(frozen=True)
class Message:
    """A message's type, id and everything after its header."""

    kind: int
    id: int
    body: bytes = b""


@dataclass(frozen=True)
class Control:
    """A control transfer: the fields of a setup packet; ``data`` of one to the device."""

    endpoint: int
    request: int
    request_type: int
    status: int
    value: int
    index: int
    length: int
    data: bytes = b""


@dataclass(frozen=True)
class Bulk:
    """A bulk transfer: ``length`` bytes wanted, sent, or transferred."""

    endpoint: int
    status: int
    length: int
    data: bytes = b""


def endpoint_index(address: int) -> int:
    """Place of an endpoint in the tables: OUT endpoints first, then IN endpoints."""
    return (address & 0x80) >> 3 | address & 0x0F


class Parser:
    """One end of a connection: bytes in, messages out; and messages to bytes."""

    def __init__(self, caps: frozenset[Cap] = OUR_CAPS) -> None:
        self.own = caps
        self.peer: frozenset[Cap] | None = None
        """The peer's capabilities; None before its hello."""
        self.peer_version = ""
        self._buffer = bytearray()

    def both(self, cap: Cap) -> bool:
        """Whether both parties have a capability."""
        return cap in self.own and self.peer is not None and cap in self.peer

    @property
    def _header(self) -> struct.Struct:
        return HEADER_64 if self.both(Cap.IDS_64_BITS) else HEADER_32

    @property
    def _bulk(self) -> struct.Struct:
        return BULK_PACKET_32 if self.both(Cap.BULK_LENGTH_32_BITS) else BULK_PACKET_16

    # ---- from the peer

    def feed(self, data: bytes) -> Iterator[Message]:
        """Complete messages, in order; RedirError at the first that cannot be one. Keeps what is not complete."""
        self._buffer += data
        while len(self._buffer) >= self._header.size:
            header = self._header
            kind, length, number = header.unpack_from(self._buffer)
            self._check_length(kind, length)
            end = header.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[header.size : end])
            del self._buffer[:end]
            if kind == Kind.HELLO:
                self._take_hello(body)
            yield Message(kind, number, body)

    def _check_length(self, kind: int, length: int) -> None:
        """RedirError unless a guest may send such a message now, of such a length."""
        if self.peer is None and kind != Kind.HELLO:
            raise RedirError(f"a message of type {kind} before the hello")
        if self.peer is not None and kind == Kind.HELLO:
            raise RedirError("a second hello")
        least, most = self._lengths().get(kind, (None, 0))
        if least is None:
            raise RedirError(f"a message of type {kind}, which a device of bulk endpoints has no use for")
        if not least <= length <= most:
            raise RedirError(f"a message of type {kind} with {length} bytes, not {least} to {most}")

    def _lengths(self) -> dict[int, tuple[int, int]]:
        """Shortest and longest body of what may come."""
        control, bulk = CONTROL_PACKET.size, self._bulk.size
        return {
            Kind.HELLO: (HELLO_VERSION, HELLO_LIMIT),
            Kind.DEVICE_CONNECT: (DEVICE_CONNECT.size, DEVICE_CONNECT.size + 2),
            Kind.DEVICE_DISCONNECT: (0, 0),
            Kind.INTERFACE_INFO: (INTERFACE_INFO.size, INTERFACE_INFO.size),
            Kind.EP_INFO: (EP_INFO_BYTES, EP_INFO_BYTES + 6 * ENDPOINTS),
            Kind.RESET: (0, 0),
            Kind.SET_CONFIGURATION: (1, 1),
            Kind.GET_CONFIGURATION: (0, 0),
            Kind.CONFIGURATION_STATUS: (2, 2),
            Kind.SET_ALT_SETTING: (2, 2),
            Kind.GET_ALT_SETTING: (1, 1),
            Kind.ALT_SETTING_STATUS: (3, 3),
            Kind.CANCEL_DATA_PACKET: (0, 0),
            Kind.FILTER_REJECT: (0, 0),
            Kind.FILTER_FILTER: (1, FILTER_LIMIT),
            Kind.DEVICE_DISCONNECT_ACK: (0, 0),
            Kind.CONTROL_PACKET: (control, control + 0xFFFF),
            Kind.BULK_PACKET: (bulk, bulk + DATA_LIMIT),
        }

    def _take_hello(self, body: bytes) -> None:
        words = body[HELLO_VERSION:]
        if len(words) % 4:
            raise RedirError(f"a hello with {len(words)} bytes of capabilities, which are words of four")
        self.peer_version = body[:HELLO_VERSION].partition(b"\0")[0].decode("ascii", errors="replace")
        bits = int.from_bytes(words, "little")
        self.peer = frozenset(cap for cap in Cap if bits >> cap & 1)

    def control(self, message: Message) -> Control:
        """A control transfer; RedirError when its data is not what its setup packet says."""
        endpoint, request, kind, status, value, index, length = CONTROL_PACKET.unpack_from(message.body)
        data = message.body[CONTROL_PACKET.size :]
        found = Control(endpoint, request, kind, status, value, index, length, data)
        if (found.request_type ^ found.endpoint) & 0x80:
            raise RedirError("a control transfer whose endpoint and request type go different ways")
        return found

    def bulk(self, message: Message) -> Bulk:
        """A bulk transfer."""
        endpoint, status, length, _, *high = self._bulk.unpack_from(message.body)
        length |= high[0] << 16 if high else 0
        if length > DATA_LIMIT:
            raise RedirError(f"a bulk transfer of {length} bytes; {DATA_LIMIT} is the most")
        return Bulk(endpoint, status, length, message.body[self._bulk.size :])

    # ---- to the peer

    def encode(self, kind: Kind, number: int = 0, body: bytes = b"") -> bytes:
        """A message's bytes."""
        return self._header.pack(kind, len(body), number) + body

    def hello(self) -> bytes:
        """The first message; its header is always the short one."""
        bits = sum(1 << cap for cap in self.own)
        body = VERSION.ljust(HELLO_VERSION, b"\0") + bits.to_bytes(4, "little")
        return HEADER_32.pack(Kind.HELLO, len(body), 0) + body

    def device_connect(self, descriptor: bytes) -> bytes:
        """A device with that device descriptor is plugged in, at high speed."""
        _, _, _, *triple, _, vendor, product, version = struct.unpack_from("<BBHBBBBHHH", descriptor)
        body = DEVICE_CONNECT.pack(SPEED_HIGH, *triple, vendor, product)
        if self.both(Cap.CONNECT_DEVICE_VERSION):
            body += version.to_bytes(2, "little")
        return self.encode(Kind.DEVICE_CONNECT, body=body)

    def interface_info(self, interfaces: list[tuple[int, int, int, int]]) -> bytes:
        """Number, class, subclass and protocol of each interface."""
        tables = [bytes(column).ljust(INTERFACES, b"\0") for column in zip(*interfaces, strict=True)]
        return self.encode(Kind.INTERFACE_INFO, body=len(interfaces).to_bytes(4, "little") + b"".join(tables))

    def ep_info(self, endpoints: dict[int, int]) -> bytes:
        """Largest packet of each bulk endpoint, by address; endpoint 0 is always there."""
        types = bytearray([EndpointType.INVALID] * ENDPOINTS)
        sizes = [0] * ENDPOINTS
        for address in (0x00, 0x80):
            types[endpoint_index(address)], sizes[endpoint_index(address)] = EndpointType.CONTROL, 64
        for address, size in endpoints.items():
            types[endpoint_index(address)], sizes[endpoint_index(address)] = EndpointType.BULK, size
        body = bytes(types) + bytes(2 * ENDPOINTS)
        if self.both(Cap.EP_INFO_MAX_PACKET_SIZE):
            body += struct.pack(f"<{ENDPOINTS}H", *sizes)
        return self.encode(Kind.EP_INFO, body=body)

    def control_done(self, number: int, asked: Control, status: Status, data: bytes = b"", sent: int = 0) -> bytes:
        """A control transfer has ended, with ``data`` from the device or ``sent`` bytes to it."""
        head = CONTROL_PACKET.pack(
            asked.endpoint, asked.request, asked.request_type, status, asked.value, asked.index, len(data) or sent
        )
        return self.encode(Kind.CONTROL_PACKET, number, head + data)

    def bulk_done(self, number: int, endpoint: int, status: Status, data: bytes = b"", sent: int = 0) -> bytes:
        """A bulk transfer has ended, with ``data`` from the device or ``sent`` bytes to it."""
        length = len(data) or sent
        fields = [endpoint, status, length & 0xFFFF, 0]
        if self._bulk is BULK_PACKET_32:
            fields.append(length >> 16)
        return self.encode(Kind.BULK_PACKET, number, self._bulk.pack(*fields) + data)
