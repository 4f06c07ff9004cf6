# SPDX-License-Identifier: MIT
"""A rockusb device, opened: commands with timeouts, retries and re-enumeration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lab.errors import ExitCode, KitError
from lab.firmware.medium import link_error
from lab.firmware.rockusb import SECTOR, protocol
from lab.firmware.rockusb.link import Bus, FarLink, Found, Link, LinkError, LinkGone, LinkLost
from lab.firmware.rockusb.loaderfile import LoaderFile
from lab.firmware.rockusb.protocol import CommandFailed, Op, ProtocolError

T = TypeVar("T")

RETRIES = 2
ENUMERATION_SECONDS = 10.0
STEP_SECONDS = 0.25


@dataclass(frozen=True)
class Timeouts:
    """Seconds that one transfer may take; a request makes at most ``1 + RETRIES`` attempts of three transfers."""

    quick: float = 2.0
    data: float = 10.0


def choose(bus: Bus, path: str | None) -> Found:
    """The one device, or the one at ``path``; KitError (no device) when there is none or more than one."""
    found = bus.devices()
    if path is not None:
        chosen = [device for device in found if device.path == path]
        if chosen:
            return chosen[0]
        seen = ", ".join(device.path for device in found) or "none"
        raise KitError(ExitCode.NO_DEVICE, f"no Rockchip device at {bus.way(path)}", f"devices: {seen}")
    if not found:
        raise KitError(
            ExitCode.NO_DEVICE,
            f"no board in USB download mode ({bus.name})",
            "hold the maskrom button while powering it on, and connect the USB-C port; npulab board probe shows more",
        )
    if len(found) > 1:
        paths = ", ".join(bus.way(device.path) for device in found)
        raise KitError(ExitCode.NO_DEVICE, f"{len(found)} boards in USB download mode", f"name one: {paths}")
    return found[0]


class Rockusb:
    """Commands on one device. ``on_return`` is called after the device came back, to check that it is the same."""

    def __init__(self, bus: Bus, path: str | None = None, timeouts: Timeouts | None = None) -> None:
        self.bus, self.timeouts = bus, timeouts or Timeouts()
        self.found = choose(bus, path)
        self._link: Link | None = self._open(self.found.path)
        self._tag = 0
        self.on_return: Callable[[], None] | None = None
        self._returning = False

    def _open(self, path: str) -> Link:
        try:
            return self.bus.open(path)
        except LinkError as error:
            raise link_error(f"rockusb {path}: {error}") from error

    def close(self) -> None:
        """Release the device."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _next_tag(self) -> int:
        self._tag += 1
        return self._tag

    # ---- driving commands

    def _drive(self, command: protocol.Command, timeout: float) -> bytes:
        link = self._link
        if link is None:
            raise LinkGone("the device is closed")
        answer = b""
        try:
            step = next(command)
            while True:
                if isinstance(step, protocol.Send):
                    link.send(step.data, timeout)
                    step = next(command)
                else:
                    answer = link.receive(step.length, timeout)
                    step = command.send(answer)
        except StopIteration as end:
            return bytes(end.value)

    def run(self, make: Callable[[int], protocol.Command], what: str, timeout: float | None = None) -> bytes:
        """Run a command. Lost or garbled transfers are repeated; a refusal by the device is not."""
        problem: Exception = LinkGone("not tried")
        for attempt in range(1 + RETRIES):
            try:
                return self._drive(make(self._next_tag()), timeout or self.timeouts.data)
            except CommandFailed:
                raise
            except (ProtocolError, LinkError) as error:
                problem = error
                if attempt < RETRIES:
                    self._recover(error)
        raise link_error(f"rockusb {self.found.path}: {what}: {problem}") from problem

    def _recover(self, error: Exception) -> None:
        if not isinstance(error, LinkGone) and self._link is not None:
            try:
                self._link.clear()
                return
            except LinkError:
                pass
        self.reconnect()

    def reconnect(self) -> None:
        """Find the device again: at its port, or as the only one on the bus; whoever it is must prove itself."""
        if self._returning:
            raise link_error(f"rockusb {self.found.path}: the device keeps leaving the bus")
        self.close()
        waited = 0.0
        while True:
            devices = self.bus.devices()
            at_port = [device for device in devices if device.path == self.found.path]
            chosen = at_port or (devices if len(devices) == 1 else [])
            if chosen:
                try:
                    self._link = self.bus.open(chosen[0].path)
                    self.found = chosen[0]
                    break
                except LinkError:
                    pass
            if waited >= ENUMERATION_SECONDS:
                raise link_error(f"rockusb {self.found.path}: the device left the bus and did not come back")
            self.bus.wait(STEP_SECONDS)
            waited += STEP_SECONDS
        if self.on_return is not None:
            self._returning = True
            try:
                self.on_return()
            finally:
                self._returning = False

    # ---- commands

    def ready(self) -> bool:
        """Whether the full protocol is spoken (not by the boot ROM)."""
        try:
            self._drive(protocol.simple(Op.TEST_UNIT_READY, self._next_tag()), self.timeouts.quick)
        except LinkLost as error:
            raise link_error(f"rockusb {self.found.path}: {error}") from error
        except (LinkError, ProtocolError, CommandFailed):
            return False
        return True

    def max_transfer(self) -> int:
        """Bytes per data phase that the device takes."""
        residue = self.run(lambda tag: protocol.simple(Op.TEST_UNIT_READY, tag), "asking for readiness")
        return min(protocol.max_transfer(residue), 256 << 10)

    def ask(self, op: Op, length: int, what: str) -> bytes | None:
        """Data of a query; None when the device does not offer it."""
        try:
            return self.run(lambda tag: protocol.data_in(op, tag, length, exact=False), what, self.timeouts.quick)
        except CommandFailed:
            return None

    def flash_id(self) -> str:
        """Kind of the current storage: ``EMMC``, ``NOR`` ..."""
        return (self.ask(Op.READ_FLASH_ID, 5, "reading the flash id") or b"").decode("ascii", errors="replace").strip()

    def sectors(self) -> int | None:
        """Size of the current storage, when the device tells."""
        raw = self.ask(Op.READ_FLASH_INFO, 11, "reading the flash info")
        return protocol.flash_info(raw).sectors if raw and len(raw) >= 6 else None

    def capability(self) -> protocol.Capability | None:
        """What the loader offers; None for U-Boot's rockusb."""
        raw = self.ask(Op.READ_CAPABILITY, 8, "reading the capabilities")
        return protocol.Capability.decode(raw) if raw and len(raw) == 8 else None

    def storage(self) -> int | None:
        """Bit index of the current storage."""
        raw = self.ask(Op.GET_STORAGE, 4, "asking for the storage")
        if raw is None or len(raw) != 4:
            return None
        return int.from_bytes(raw, "little").bit_length() - 1

    def switch_storage(self, bit: int) -> bool:
        """Select a storage and read back which one is selected: some loaders report success and stay."""
        try:
            self.run(
                lambda tag: protocol.simple(Op.SWITCH_STORAGE, tag, bit), "switching the storage", self.timeouts.quick
            )
        except CommandFailed:
            return False
        return self.storage() == bit

    def read(self, sector: int, count: int) -> bytes:
        """Read sectors in one request; CommandFailed outside the medium."""
        return self.run(
            lambda tag: protocol.data_in(Op.READ_LBA, tag, count * SECTOR, address=sector, count=count),
            f"reading {count} sectors at {sector}",
        )

    def ahead(self, sector: int, counts: Sequence[int]) -> None:
        """These reads follow, one after another: a far link asks for all of them at once. Errors show when they do."""
        if not isinstance(self._link, FarLink):
            return
        steps: list[protocol.Send | protocol.Receive] = []
        for tag, count in enumerate(counts, self._tag + 1):
            command = protocol.data_in(Op.READ_LBA, tag, count * SECTOR, address=sector, count=count)
            steps += protocol.foreseen(command, count * SECTOR)
            sector += count
        self._link.post(steps, self.timeouts.data)

    def write(self, sector: int, data: bytes) -> None:
        """Write sectors in one request."""
        count = len(data) // SECTOR
        self.run(
            lambda tag: protocol.data_out(Op.WRITE_LBA, tag, data, address=sector, count=count),
            f"writing {count} sectors at {sector}",
        )

    def erase(self, sector: int, count: int) -> None:
        """Erase sectors in one request."""
        self.run(lambda tag: protocol.erase(tag, sector, count), f"erasing {count} sectors at {sector}")

    def reset(self, sub: int = 0) -> None:
        """Restart the board (0) or restart it into mask ROM (3)."""
        try:
            self._drive(protocol.simple(Op.RESET, self._next_tag(), sub), self.timeouts.quick)
        except LinkLost as error:
            raise link_error(f"rockusb {self.found.path}: restarting: {error}") from error
        except LinkGone:
            return  # it may be gone before its status is fetched
        except (LinkError, ProtocolError, CommandFailed) as error:
            raise link_error(f"rockusb {self.found.path}: restarting: {error}") from error

    def download(self, loader: LoaderFile) -> None:
        """Start the loader's usbplug from mask ROM: DRAM initialisation, then usbplug, then re-enumeration."""
        for kind, index in ((1, 0x471), (2, 0x472)):
            for entry in loader.of_kind(kind):
                self._download(index, entry.data)
                self.bus.wait(entry.delay_ms / 1000)
        # for a moment the mask ROM's device is still on the bus
        end = time.monotonic() + ENUMERATION_SECONDS
        for _ in range(round(ENUMERATION_SECONDS / STEP_SECONDS)):
            self.reconnect()
            if self.ready():
                return
            if time.monotonic() >= end:
                break
            self.bus.wait(STEP_SECONDS)
        raise link_error(
            f"rockusb {self.found.path}: the loader was taken, but does not answer", "power-cycle, try again"
        )

    def _download(self, index: int, data: bytes) -> None:
        assert self._link is not None
        try:
            for piece in protocol.download_pieces(data):
                self._link.control(0x0C, 0, index, piece, self.timeouts.data)
        except LinkGone as error:
            if index != 0x472 or isinstance(error, LinkLost):
                raise link_error(f"rockusb {self.found.path}: the device left the bus during the download") from None
        except LinkError as error:
            raise link_error(
                f"rockusb {self.found.path}: download {index:#x} refused: {error}", "power-cycle, try again"
            ) from error
