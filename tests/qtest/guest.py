# SPDX-License-Identifier: MIT
"""A guest CPU that does one memory access at a time, for what the qtest protocol cannot show.

A monitor of some thirty A64 instructions runs on CPU 0 under TCG at EL3, with the MMU off. It waits for a command
in a mailbox in RAM, does the access, and notes the CPU's counter and the syndrome of the exception, if one was
taken.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from qtest_client import QTest

CODE, VECTORS, MAILBOX = 0x0, 0x1000, 0x2000
# offsets in the mailbox
COMMAND, ADDRESS, VALUE, SYNDROME, COUNTER = 0x00, 0x08, 0x10, 0x18, 0x20
LOAD, STORE = 1, 3  # bit 0: there is a command; bit 1: it stores
COUNTER_HZ = 24_000_000
ANSWER_S = 20.0

VBAR_EL3, ESR_EL3, ELR_EL3, CNTPCT_EL0 = (
    op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
    for op0, op1, crn, crm, op2 in ((3, 6, 12, 0, 0), (3, 6, 5, 2, 0), (3, 6, 4, 0, 1), (3, 3, 14, 0, 1))
)


def _movz(rd: int, value: int) -> int:
    return 0xD2800000 | value << 5 | rd


def _msr(system: int, rt: int) -> int:
    return 0xD5000000 | system | rt


def _mrs(rt: int, system: int) -> int:
    return 0xD5200000 | system | rt


def _ldr_w(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB9400000 | offset // 4 << 10 | rn << 5 | rt


def _ldr_x(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9400000 | offset // 8 << 10 | rn << 5 | rt


def _str_w(rt: int, rn: int, offset: int = 0) -> int:
    return 0xB9000000 | offset // 4 << 10 | rn << 5 | rt


def _str_x(rt: int, rn: int, offset: int = 0) -> int:
    return 0xF9000000 | offset // 8 << 10 | rn << 5 | rt


def _branch(distance: int) -> int:
    return 0x14000000 | (distance & 0x3FFFFFF)


def _cbz_w(rt: int, distance: int) -> int:
    return 0x34000000 | (distance & 0x7FFFF) << 5 | rt


def _tbz(rt: int, bit: int, distance: int) -> int:
    return 0x36000000 | bit << 19 | (distance & 0x3FFF) << 5 | rt


XZR = 31
DSB_SY, ERET, YIELD = 0xD5033F9F, 0xD69F03E0, 0xD503203F


def monitor_image() -> bytes:
    """The monitor: code at 0, exception vectors at VECTORS."""
    code = [
        _movz(10, MAILBOX),
        _movz(11, VECTORS),
        _msr(VBAR_EL3, 11),
        # wait:
        YIELD,
        _ldr_w(0, 10, COMMAND),
        _cbz_w(0, -2),
        _str_x(XZR, 10, SYNDROME),
        _ldr_x(1, 10, ADDRESS),
        _ldr_w(2, 10, VALUE),
        _tbz(0, 1, 4),
        _str_w(2, 1),
        DSB_SY,
        _branch(2),
        _ldr_w(2, 1),
        # done:
        _str_w(2, 10, VALUE),
        _mrs(3, CNTPCT_EL0),
        _str_x(3, 10, COUNTER),
        _str_w(XZR, 10, COMMAND),
        _branch(-15),
    ]
    # synchronous exception of the current EL, and SError: note the syndrome, go on after the access
    handler = [
        _mrs(4, ESR_EL3),
        _str_x(4, 10, SYNDROME),
        _mrs(5, ELR_EL3),
        0x91000000 | 4 << 10 | 5 << 5 | 5,  # add x5, x5, #4
        _msr(ELR_EL3, 5),
        ERET,
    ]
    image = bytearray(VECTORS + 0x400)
    struct.pack_into(f"<{len(code)}I", image, CODE, *code)
    for vector in (0x200, 0x380):
        struct.pack_into(f"<{len(handler)}I", image, VECTORS + vector, *handler)
    return bytes(image)


@dataclass(frozen=True)
class Access:
    """What came of one access: the value read, the exception syndrome (0: none), the 24 MHz counter after it."""

    value: int
    syndrome: int
    counter: int

    @property
    def external_abort(self) -> bool:
        """A synchronous external abort on a data access at the same exception level (EC 0x25, DFSC 0x10)."""
        return self.syndrome >> 26 == 0x25 and self.syndrome & 0x3F == 0x10


class Guest:
    """Accesses by the CPU of a machine that was started with ARGUMENTS and accel="tcg"."""

    ARGUMENTS = ("-S",)

    def __init__(self, machine: QTest) -> None:
        self.machine = machine
        machine.write(CODE, monitor_image())
        machine.qmp("cont")

    def begin(self, command: int, address: int, value: int = 0) -> None:
        """Have the CPU start an access."""
        self.machine.write(MAILBOX + ADDRESS, struct.pack("<QI", address, value))
        self.machine.writel(MAILBOX + COMMAND, command)

    def end(self) -> Access:
        """Wait for the access to end."""
        deadline = time.monotonic() + ANSWER_S
        while self.machine.readl(MAILBOX + COMMAND):
            assert time.monotonic() < deadline, "the guest's CPU does not answer"
            time.sleep(0.001)
        return Access(*struct.unpack("<IxxxxQQ", self.machine.read(MAILBOX + VALUE, 24)))

    def load(self, address: int) -> Access:
        """A 32-bit load."""
        self.begin(LOAD, address)
        return self.end()

    def store(self, address: int, value: int) -> Access:
        """A 32-bit store."""
        self.begin(STORE, address, value)
        return self.end()

    def seconds(self) -> float:
        """The guest's clock."""
        return self.load(MAILBOX).counter / COUNTER_HZ
