# SPDX-License-Identifier: MIT
"""A device that behaves like an RK3588 on its USB-C port, down to the known traps; front ends bring the USB.

Four personalities: ``maskrom`` (boot ROM: control requests only, a download of 0x471 and 0x472 starts usbplug),
``usbplug`` (full protocol, its descriptor still says mask ROM), ``loader`` (the vendor's U-Boot) and ``uboot``
(mainline U-Boot's ``rockusb`` command). Sources: U-Boot ``drivers/usb/gadget/f_rockusb.c``, the published source of
the vendor's U-Boot for the read window, what the packaged tools are seen to do. No timing, no DRAM, no signatures.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lab.errors import KitError
from lab.firmware.medium import Medium
from lab.firmware.rockusb import PRODUCTS, SECTOR, VENDOR, protocol
from lab.firmware.rockusb.protocol import Op, Request
from lab.firmware.standin.faults import Fault
from lab.firmware.transports.block import DrillTransport

PERSONALITIES = ("maskrom", "usbplug", "loader", "uboot")
WINDOW = 32 * 2048
"""Sectors that the vendor's loaders read truthfully."""

STORAGE_BITS = {"emmc": 1, "sd": 2, "spi": 9, "nvme": 11}
OTP_CPU_ID = 7
"""Offset of the 16-byte chip id in the OTP (linux rk3588-base.dtsi, ``id@7``)."""


class Stall(Exception):
    """The endpoint is halted."""


class Silence(Exception):
    """The device does not answer."""


class Gone(Exception):
    """The device is not on the bus (any more)."""


@dataclass
class Options:
    """How this individual behaves."""

    windowed: bool = True
    lying_switch: bool = False
    has_otp: bool = True
    faults: list[Fault] = field(default_factory=list)
    slow_seconds: float = 0.2
    port: str = "1-1"


class Engine:
    """One device, its media in a board directory."""

    def __init__(self, root: Path, personality: str = "maskrom", options: Options | None = None) -> None:
        if personality not in PERSONALITIES:
            raise ValueError(personality)
        self.board = DrillTransport(root)
        self.initial = self.mode = personality
        self.options = options or Options()
        self.port = self.options.port
        self.connected = True
        self.generation = 0
        self.delay: Callable[[float], None] = lambda seconds: None
        self.writes = 0
        self.log: list[str] = []
        self._media: dict[str, Medium] = {}
        self._order = [i.name for i in self.board.storages() if i.name in STORAGE_BITS]
        self._reset_session()

    # ---- what the bus sees

    @property
    def bcd_usb(self) -> int:
        """0x0201 says "loader"; usbplug still says what the mask ROM says."""
        return 0x0201 if self.mode in ("loader", "uboot") else 0x0200

    def descriptor(self) -> bytes:
        """The device descriptor, 18 bytes."""
        product = next(iter(PRODUCTS))
        return struct.pack("<BBHBBBBHHHBBBB", 18, 1, self.bcd_usb, 0, 0, 0, 64, VENDOR, product, 0x0100, 0, 0, 0, 1)

    def configuration(self) -> bytes:
        """Configuration, interface ff/06/05 and two bulk endpoints."""
        interface = struct.pack("<BBBBBBBBB", 9, 4, 0, 0, 2, 0xFF, 6, 5, 0)
        ends = struct.pack("<BBBBHB", 7, 5, 0x81, 2, 512, 0) + struct.pack("<BBBBHB", 7, 5, 0x02, 2, 512, 0)
        total = 9 + len(interface) + len(ends)
        return struct.pack("<BBHBBBBB", 9, 2, total, 1, 1, 0, 0x80, 200) + interface + ends

    @property
    def answering(self) -> bool:
        """Whether the host has something to fetch; the status of a reset is fetched after the reset."""
        return bool(self._answers)

    @property
    def hung(self) -> bool:
        """Whether it has stopped to answer."""
        return self._hung

    @property
    def halted(self) -> bool:
        """Whether its endpoints are halted."""
        return self._halted

    def power_on(self) -> None:
        """Power comes back: the device starts in its first personality."""
        self.mode = self.initial
        self._come_back()

    def _come_back(self) -> None:
        self._reset_session()
        self.connected = True
        self.generation += 1

    def _reset_session(self) -> None:
        self._expect: tuple[Request, int] | None = None
        self._received = bytearray()
        self._answers: list[bytes] = []
        self._halted = self._hung = False
        self._download: dict[int, bytearray] = {0x471: bytearray(), 0x472: bytearray()}
        self._dram = False
        # The loader's default is its boot medium: eMMC first.
        self._current = next((n for n in ("emmc", "spi", "sd", "nvme") if n in self._order), "")

    def close(self) -> None:
        """Close the media."""
        for medium in self._media.values():
            medium.close()
        self._media.clear()

    # ---- control requests

    def control(self, kind: int, request: int, value: int, index: int, data: bytes) -> bytes:
        """A vendor control request: the boot ROM's downloads."""
        self._alive()
        if kind != 0x40 or request != 0x0C or index not in self._download or self.mode != "maskrom":
            raise Stall
        buffer = self._download[index]
        buffer += data
        if len(data) < protocol.DOWNLOAD_PIECE:
            self._finish_download(index, bytes(buffer))
            buffer.clear()
        return b""

    def _finish_download(self, index: int, whole: bytes) -> None:
        if len(whole) > 1 and len(whole) % protocol.DOWNLOAD_PIECE == 1:
            whole = whole[:-1]  # the byte that ends a download whose last piece was full
        good = len(whole) >= 2 and protocol.crc16(whole[:-2]) == int.from_bytes(whole[-2:], "big")
        self.log.append(f"download {index:x} {len(whole)} {'good' if good else 'bad'}")
        if not good or (index == 0x472 and not self._dram):
            raise Stall
        if index == 0x471:
            self._dram = True
        else:
            self.mode = "usbplug"
            self._come_back()

    # ---- bulk endpoints

    def _alive(self) -> None:
        if not self.connected:
            raise Gone
        if self._hung:
            raise Silence

    def clear_halt(self) -> None:
        """CLEAR_FEATURE(ENDPOINT_HALT); also ends the request in progress."""
        self._alive()
        self._halted = False
        self._expect = None
        self._received.clear()
        self._answers.clear()

    def bulk_out(self, data: bytes) -> None:
        """The host sends."""
        self._alive()
        if self.mode == "maskrom" or self._halted:
            raise Stall
        if self._expect is None:
            try:
                request = protocol.decode(data)
            except protocol.ProtocolError:
                self._halted = True
                raise Stall from None
            self._answers.clear()
            self._command(request)
            return
        request, length = self._expect
        self._received += data
        if len(self._received) >= length:
            self._expect = None
            self._write(request, bytes(self._received[:length]))
            self._received.clear()

    def bulk_in(self, length: int) -> bytes:
        """The host asks for up to ``length`` bytes; one packet run per call."""
        self._alive()
        if self._halted or (self.mode == "maskrom" and not self._answers):
            raise Stall
        if not self._answers:
            raise Silence
        answer = self._answers.pop(0)
        if len(answer) > length:
            self._answers.insert(0, answer[length:])
            return answer[:length]
        return answer

    # ---- commands

    def _status(self, request: Request, code: int = 0, residue: int = 0) -> None:
        self._answers.append(protocol.status(request.tag, code, residue))

    def _command(self, request: Request) -> None:
        handlers: dict[int, Callable[[Request], None]] = {
            Op.TEST_UNIT_READY: self._ready,
            Op.READ_FLASH_ID: lambda r: self._data(r, self._flash_id()),
            Op.READ_LBA: self._read,
            Op.WRITE_LBA: self._start_write,
            Op.ERASE_LBA: self._erase,
            Op.READ_CHIP_INFO: lambda r: self._data(r, b"8853" + bytes(12)),
            Op.RESET: self._reset,
        }
        if self.mode != "uboot":
            handlers |= {
                Op.READ_FLASH_INFO: lambda r: self._data(r, self._flash_info()),
                Op.READ_CAPABILITY: lambda r: self._data(
                    r, bytes([0x45, 0x02 | (8 if self.options.has_otp else 0)]) + bytes(6)
                ),
                Op.SWITCH_STORAGE: self._switch,
                Op.GET_STORAGE: lambda r: self._data(r, struct.pack("<I", 1 << STORAGE_BITS[self._current])),
                Op.READ_OTP_CHIP: self._otp,
            }
        handler = handlers.get(request.op)
        if handler is not None and request.op not in (Op.READ_LBA, Op.WRITE_LBA, Op.ERASE_LBA):
            self._struck_query(request, handler)
        elif handler is not None:
            handler(request)
        elif self.mode == "uboot" and request.op != Op.READ_FLASH_INFO:
            self._answers.append(b"FAILunknown command\0")
        else:
            self._status(request, 1)

    def _struck_query(self, request: Request, handler: Callable[[Request], None]) -> None:
        """A command without a medium, with what the fault plan makes of its answer."""
        fault = self._strike("reset" if request.op == Op.RESET else "query")
        self._break(fault)
        if fault == "drop":  # reports success and does nothing
            self._status(request)
            return
        handler(request)
        data, code = self._answers[:-1], self._answers[-1][-1]
        if fault == "flip" and data:
            self._answers[0] = data[0][:-1] + bytes([data[0][-1] ^ 0x10])
        elif fault == "short" and data:
            self._answers[0] = data[0][: len(data[0]) // 2]
        elif fault == "fail":
            self._answers = [protocol.status(request.tag, 1)]
        elif fault == "tag":
            self._answers[-1] = protocol.status(request.tag ^ 0x5A5A, code)

    def _ready(self, request: Request) -> None:
        exponent = 0 if self.mode == "uboot" else 3 if self._current == "spi" else 6
        self._status(request, 0, exponent << 24)

    def _data(self, request: Request, data: bytes) -> None:
        self._answers.append(data[: request.length])
        self._status(request)

    def _flash_id(self) -> bytes:
        return b"NOR  " if self._current == "spi" else b"EMMC "

    def _flash_info(self) -> bytes:
        return struct.pack("<IHBBBBB", self._sectors(), 1024, 4, 0, 40, 0, 1)

    def _otp(self, request: Request) -> None:
        if not self.options.has_otp:
            self._status(request, 1)
            return
        raw = bytearray(64)
        raw[OTP_CPU_ID : OTP_CPU_ID + 16] = bytes.fromhex(self.board.identify().get("cpu-id", "").ljust(32, "0"))
        self._data(request, bytes(raw))

    def _switch(self, request: Request) -> None:
        name = next((n for n in self._order if STORAGE_BITS[n] == request.sub), None)
        if name is None:
            self._status(request, 1)
            return
        if not self.options.lying_switch:
            self._current = name
        self._status(request)

    def _reset(self, request: Request) -> None:
        self.log.append(f"reset {request.sub}")
        self._status(request)
        answer = self._answers
        self.mode = "maskrom" if request.sub == 3 else self.initial
        self._come_back()
        self._answers = answer

    # ---- media

    def _medium(self) -> Medium:
        name = self._current
        if name not in self._media:
            self._media[name] = self.board.open(name, write=True)
        return self._media[name]

    def _sectors(self) -> int:
        return self._medium().info.size // SECTOR if self._current else 0

    def _outside(self, request: Request) -> bool:
        return not request.count or request.address + request.count > self._sectors()

    def _strike(self, operation: str) -> str | None:
        for fault in self.options.faults:
            if fault.strikes(operation):
                self.log.append(f"fault {fault.kind} {operation}")
                return fault.kind
        return None

    def _read(self, request: Request) -> None:
        if self._outside(request) or request.length != request.count * SECTOR:
            self._status(request, 1)
            return
        fault = self._strike("read")
        self._break(fault)
        windowed = self.options.windowed and self.mode in ("usbplug", "loader")
        if windowed and request.address + request.count > WINDOW:
            data = b"\xcc" * request.length
        else:
            data = self._medium().read(request.address * SECTOR, request.length)
        if fault == "flip":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
        if fault == "short":
            data = data[: len(data) - SECTOR] if len(data) > SECTOR else data[:100]
        self._answers.append(data)
        if fault == "short" and len(data) % protocol.PACKET == 0:
            self._answers.append(b"")
        self._end(request, fault)

    def _end(self, request: Request, fault: str | None) -> None:
        tag = request.tag ^ 0x5A5A if fault == "tag" else request.tag
        self._answers.append(protocol.status(tag, 1 if fault == "fail" else 0))

    def _break(self, fault: str | None) -> None:
        """Faults that end a request before its data phase."""
        if fault == "slow":
            self.delay(self.options.slow_seconds)
        elif fault == "power":
            self.connected = False
            self.close()
            raise Gone
        elif fault == "hang":
            self._hung = True
            raise Silence
        elif fault == "stall":
            self._halted = True
            raise Stall
        elif fault in ("disconnect", "move"):
            if fault == "move":
                self.port = f"{self.port}.4"
            self.mode = self.initial if self.initial != "maskrom" else self.mode
            self._come_back()
            raise Gone

    def _start_write(self, request: Request) -> None:
        if self._outside(request) or request.length != request.count * SECTOR:
            self._status(request, 1)
        else:
            self._expect = (request, request.length)

    def _write(self, request: Request, data: bytes) -> None:
        fault = self._strike("write")
        self.writes += 1
        offset, medium = request.address * SECTOR, self._medium()
        if fault == "power":
            self._store(offset, data[: len(data) // 2 // SECTOR * SECTOR])
            if self._current == "spi":  # erased, not yet programmed
                half = len(data) // 2 // medium.info.block * medium.info.block
                self._store(offset + half, b"\xff" * min(medium.info.block, len(data) - half))
            self.connected = False
            self.close()
            raise Gone
        self._break(fault)
        if fault == "short":
            data = data[: len(data) - SECTOR]
        if fault != "drop":
            self._store(offset, data)
        self._end(request, "fail" if fault == "short" else fault)

    def _store(self, offset: int, data: bytes) -> None:
        """Write sectors; NOR is changed in whole erase blocks."""
        medium = self._medium()
        block = medium.info.block
        start, end = offset // block * block, -(-(offset + len(data)) // block) * block
        if not data:
            return
        whole = (
            bytearray(medium.read(start, end - start))
            if (start, end) != (offset, offset + len(data))
            else bytearray(data)
        )
        whole[offset - start : offset - start + len(data)] = data
        medium.write(start, bytes(whole))

    def _erase(self, request: Request) -> None:
        if self._outside(request):
            self._status(request, 1)
            return
        fault = self._strike("erase")
        self._break(fault)
        if fault != "drop":
            nor = self._current == "spi"
            try:
                self._store(request.address * SECTOR, (b"\xff" if nor else b"\0") * (request.count * SECTOR))
            except KitError:
                self._status(request, 1)
                return
        self._end(request, fault)
