# SPDX-License-Identifier: MIT
"""A root shell on the serial console, when there is nothing else: slow, framed, checksummed, repeated when damaged.

A script's output comes back as base64 between two marks, followed by its POSIX checksum; a frame that does not match is
asked for again. Good for the SPI NOR (16 MiB take about four minutes at 1.5 Mbaud), not for disks.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import os
import re
import time
from collections.abc import Iterator
from typing import Any, Protocol

from lab.errors import ExitCode, KitError
from lab.firmware.medium import link_error

ATTEMPTS = 4
LINE = 512
"""Characters of a line sent; a terminal in line mode takes 4095 at most."""


class Port(Protocol):
    """The part of a serial port that is used."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; empty when nothing came within the port's timeout."""

    def write(self, data: bytes) -> int | None:
        """Send."""

    def close(self) -> None:
        """Release."""


def _table() -> list[int]:
    rows = []
    for index in range(256):
        crc = index << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
        rows.append(crc)
    return rows


_TABLE = _table()


def cksum(data: bytes) -> int:
    """The checksum that POSIX ``cksum`` prints."""
    crc, length = 0, len(data)
    tail = length.to_bytes(-(-length.bit_length() // 8), "little")
    for byte in itertools.chain(data, tail):
        crc = (crc << 8 & 0xFFFFFFFF) ^ _TABLE[crc >> 24 ^ byte]
    return crc ^ 0xFFFFFFFF


class SerialRemote:
    """Runs scripts on a console that has a shell prompt."""

    step = 16 << 10

    def __init__(self, port: Port, name: str) -> None:
        self.name, self._port = name, port
        self.root = ""
        self._numbers = itertools.count(1)
        self._session = f"{os.getpid():x}"
        self._prepare()

    def _prepare(self) -> None:
        """No echo, no line editing, no kernel messages in between; then prove that a shell answers."""
        self._port.write(b"\x03\n stty -echo -onlcr 2>/dev/null; dmesg -n 1 2>/dev/null; PS1= PS2=\n")
        time.sleep(0.2)
        try:
            answer = self.run("echo npulab", timeout=5)
        except KitError as error:
            raise KitError(
                ExitCode.LINK,
                f"{self.name}: no shell answers on the console",
                "log in as root on it first, then leave it alone",
            ) from error
        if answer != b"npulab\n":
            raise link_error(f"{self.name}: the console garbles its answers", "check the baud rate and the adapter")

    def run(self, script: str, stdin: bytes = b"", *, timeout: float = 30) -> bytes:
        problem = "no answer"
        for _ in range(ATTEMPTS):
            number = f"{self._session}x{next(self._numbers)}"
            self._send(number, script, stdin)
            text = self._collect(number, timeout + (len(stdin) + self.step) / 5000)
            match = re.search(rf"<{number}\r?\n(.*)\n?\r?{number}:(\d+):(\d+):(\d+)>", text, re.S)
            if match is None:
                problem = "the answer is incomplete"
                continue
            if int(match[2]):
                raise link_error(f"{self.name}: the command ended with {match[2]}")
            try:
                data = base64.b64decode(re.sub(r"\s+", "", match[1]), validate=True)
            except (binascii.Error, ValueError):
                problem = "the answer is garbled"
                continue
            if (cksum(data), len(data)) == (int(match[3]), int(match[4])):
                return data
            problem = "the checksum is wrong"
        raise link_error(f"{self.name}: {problem}, {ATTEMPTS} times")

    def _send(self, number: str, script: str, stdin: bytes) -> None:
        """The script as a here-document, so that no line is longer than a terminal takes."""
        # in memory: the file system behind /tmp may be frozen, or read-only
        where = "S=/tmp; for D in /dev/shm /run; do [ -d $D ] && [ -w $D ] && S=$D && break; done"
        lines = [where, f"S=$S/.npulab-{number}; cat > $S.sh <<'end-{number}'"]
        lines += [f"NPULAB_ROOT={self.root}", *script.strip().splitlines(), f"end-{number}"]
        if stdin:
            text = base64.b64encode(stdin).decode()
            lines.append(f"base64 -d > $S.in <<'end-{number}'")
            lines += [text[at : at + LINE] for at in range(0, len(text), LINE)] + [f"end-{number}"]
            lines.append(f'[ "$(cksum < $S.in)" = "{cksum(stdin)} {len(stdin)}" ] || echo exit 99 > $S.sh')
        else:
            lines.append(": > $S.in")
        lines.append(
            f"sh $S.sh < $S.in > $S.out 2>/dev/null; R=$?; printf '<%s\\n' {number}; base64 < $S.out; "
            f"printf '%s:%s:%s:%s>\\n' {number} $R $(cksum < $S.out | tr ' ' :); rm -f $S.*"
        )
        # The colon between checksum and length comes from tr; printf repeats its format for what is left over.
        lines[-1] = lines[-1].replace("'%s:%s:%s:%s>\\n'", "'%s:%s:%s>\\n'")
        for line in lines:
            self._port.write(line.encode() + b"\n")

    def _collect(self, number: str, timeout: float) -> str:
        end = time.monotonic() + timeout
        got = bytearray()
        while time.monotonic() < end:
            got += self._port.read(65536)
            if re.search(rb"%b:\d+:\d+:\d+>" % number.encode(), got[-256:]):
                break
        return got.decode(errors="replace").replace("\r", "")

    def stream(self, script: str) -> Iterator[bytes] | None:
        return None

    def close(self) -> None:
        self._port.write(b"stty echo onlcr 2>/dev/null\n")
        self._port.close()


def open_port(url: str, baud: int) -> Port:
    """A port of this host, or one of pyserial's URLs (``rfc2217://``, ``socket://``)."""
    try:
        import serial
    except ImportError:
        raise KitError(
            ExitCode.INFRASTRUCTURE, "pyserial is not installed", "run ./npulab again: labgrid brings it"
        ) from None
    try:
        port: Any = serial.serial_for_url(url, baudrate=baud, timeout=0.2, exclusive=True if url[:1] == "/" else None)
    except (OSError, ValueError) as error:
        raise KitError(
            ExitCode.NO_DEVICE, f"{url}: {error}", "is the adapter plugged in, and nobody else using it?"
        ) from error
    found: Port = port
    return found
