# SPDX-License-Identifier: MIT
"""Rockusb without any I/O: command and status blocks, and each command as a generator of transfers.

A command yields `Send` and `Receive`; whoever drives it performs the transfer and sends the received bytes in. The
same code therefore serves USB, a simulated device and tests. Wire facts: U-Boot ``drivers/usb/gadget/f_rockusb.c`` and
``doc/README.rockusb``, and what the vendor's loaders are seen to answer.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum

CBW = struct.Struct("<4sIIBBB")
"""Signature, tag, transfer length, direction flag, LUN, command length; 16 command bytes follow."""

CBW_LENGTH = 31
CSW = struct.Struct("<4sIIB")
CSW_LENGTH = 13
PACKET = 512
DEVICE_TO_HOST = 0x80
DEFAULT_TRANSFER = 64 << 10


class Op(IntEnum):
    """Operation codes, the first byte of a command block."""

    TEST_UNIT_READY = 0x00
    READ_FLASH_ID = 0x01
    READ_LBA = 0x14
    WRITE_LBA = 0x15
    READ_FLASH_INFO = 0x1A
    READ_CHIP_INFO = 0x1B
    ERASE_LBA = 0x25
    SWITCH_STORAGE = 0x2A
    GET_STORAGE = 0x2B
    READ_OTP_CHIP = 0x2C
    READ_CAPABILITY = 0xAA
    RESET = 0xFF


class ProtocolError(Exception):
    """The answer is not what the protocol allows."""


class CommandFailed(Exception):
    """The device answered with status 1: it refuses or cannot do it."""


class Unsupported(CommandFailed):
    """The device does not know the command."""


@dataclass(frozen=True)
class Send:
    """Transfer ``data`` to the device."""

    data: bytes


@dataclass(frozen=True)
class Receive:
    """Take up to ``length`` bytes from the device; a short packet ends the transfer."""

    length: int


Command = Generator[Send | Receive, bytes, bytes]


@dataclass(frozen=True)
class Request:
    """A command block, decoded."""

    op: int
    sub: int
    address: int
    count: int
    length: int
    tag: int
    to_host: bool


def encode(
    op: int, tag: int, *, sub: int = 0, address: int = 0, count: int = 0, length: int = 0, to_host: bool = False
) -> bytes:
    """A command block wrapper, 31 bytes."""
    flags = DEVICE_TO_HOST if to_host else 0
    block = struct.pack(">BBIBH7x", op, sub, address, 0, count)
    size = 10 if op in (Op.READ_LBA, Op.WRITE_LBA, Op.ERASE_LBA) else 6
    return CBW.pack(b"USBC", tag, length, flags, 0, size) + block + bytes(CBW_LENGTH - CBW.size - len(block))


def decode(raw: bytes) -> Request:
    """The request in a command block wrapper; ProtocolError when it is none."""
    if len(raw) != CBW_LENGTH or raw[:4] != b"USBC":
        raise ProtocolError("not a command block")
    _, tag, length, flags, _, _ = CBW.unpack_from(raw)
    op, sub, address, _, count = struct.unpack_from(">BBIBH", raw, CBW.size)
    return Request(op, sub, address, count, length, tag, bool(flags & DEVICE_TO_HOST))


def status(tag: int, code: int, residue: int = 0) -> bytes:
    """A command status wrapper, 13 bytes."""
    return CSW.pack(b"USBS", tag, residue, code)


def _check_status(raw: bytes, tag: int) -> int:
    """Residue of a good status."""
    if len(raw) != CSW_LENGTH or raw[:4] != b"USBS":
        raise ProtocolError(f"expected a status, got {len(raw)} bytes {raw[:16].hex()}")
    _, answered, residue, code = CSW.unpack(raw)
    if answered != tag:
        raise ProtocolError(f"the answer belongs to request {answered:08x}, not to {tag:08x}")
    if code == 1:
        raise CommandFailed("the device reports failure")
    if code:
        raise ProtocolError(f"status {code}")
    return int(residue)


def simple(op: int, tag: int, sub: int = 0) -> Command:
    """A command without data; gives the residue, four bytes."""
    yield Send(encode(op, tag, sub=sub))
    raw = yield Receive(CSW_LENGTH)
    _no_text(raw)
    return _check_status(raw, tag).to_bytes(4, "little")


def _no_text(raw: bytes) -> None:
    # U-Boot answers an unknown operation with text, as in fastboot.
    if raw[:4] == b"FAIL":
        raise Unsupported(raw[4:].split(b"\0")[0].decode(errors="replace") or "unknown command")


def data_in(op: int, tag: int, length: int, *, address: int = 0, count: int = 0, exact: bool = True) -> Command:
    """A command that answers with data.

    Some loaders skip the data phase and fail at once, others answer with text: both are told apart from data.
    """
    yield Send(encode(op, tag, address=address, count=count, length=length, to_host=True))
    data = b""
    while len(data) < length:
        part = yield Receive(-(-(length - len(data)) // PACKET) * PACKET)
        if not data and len(part) == CSW_LENGTH and part[:4] == b"USBS" and length != CSW_LENGTH:
            _check_status(part, tag)
            raise ProtocolError("status without data")
        if not data and op not in (Op.READ_LBA,):
            _no_text(part)
        data += part
        if len(part) % PACKET or not part:
            break
    if len(data) > length or (exact and len(data) != length):
        raise ProtocolError(f"expected {length} bytes of data, got {len(data)}")
    _check_status((yield Receive(CSW_LENGTH)), tag)
    return data


def foreseen(command: Command, length: int) -> list[Send | Receive]:
    """The transfers of a `data_in` whose ``length`` bytes of data, whole packets, all come."""
    first = next(command)
    command.close()
    return [first, Receive(length), Receive(CSW_LENGTH)]


def data_out(op: int, tag: int, data: bytes, *, address: int = 0, count: int = 0) -> Command:
    """A command that takes data."""
    yield Send(encode(op, tag, address=address, count=count, length=len(data)))
    yield Send(data)
    _check_status((yield Receive(CSW_LENGTH)), tag)
    return b""


def erase(tag: int, address: int, count: int) -> Command:
    """ERASE_LBA: no data, the range is in the command."""
    yield Send(encode(Op.ERASE_LBA, tag, address=address, count=count))
    _check_status((yield Receive(CSW_LENGTH)), tag)
    return b""


@dataclass(frozen=True)
class FlashInfo:
    """READ_FLASH_INFO: size of the current storage in sectors."""

    sectors: int
    block: int


def flash_info(raw: bytes) -> FlashInfo:
    """Decode 11 bytes."""
    sectors, block = struct.unpack_from("<IH", raw)
    return FlashInfo(sectors, block)


@dataclass(frozen=True)
class Capability:
    """READ_CAPABILITY: what the loader offers."""

    direct_lba: bool
    switch_storage: bool
    otp: bool

    @staticmethod
    def decode(raw: bytes) -> Capability:
        """Decode 8 bytes."""
        return Capability(bool(raw[0] & 1), bool(raw[1] & 2), bool(raw[1] & 8))


def max_transfer(residue: bytes) -> int:
    """Largest data phase in bytes, from the residue of TEST_UNIT_READY: its last byte is log2 of 4 KiB units."""
    exponent = residue[3]
    return 4096 << exponent if 0 < exponent <= 8 else DEFAULT_TRANSFER


def crc16(data: bytes) -> int:
    """CRC16-CCITT (start 0xffff), which the boot ROM checks at the end of a download."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


DOWNLOAD_PIECE = 4096


def download_pieces(data: bytes) -> list[bytes]:
    """A boot ROM download: data and CRC in pieces; a short piece ends it, so a full last one needs an empty one."""
    whole = data + crc16(data).to_bytes(2, "big")
    pieces = [whole[at : at + DOWNLOAD_PIECE] for at in range(0, len(whole), DOWNLOAD_PIECE)]
    if len(whole) % DOWNLOAD_PIECE == 0:
        pieces.append(b"\0")
    return pieces
