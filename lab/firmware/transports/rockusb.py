# SPDX-License-Identifier: MIT
"""Media over rockusb, and only as much of them as the loader reads truthfully."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from lab.boards import Board, Storage
from lab.errors import ExitCode, KitError
from lab.firmware.identity import Identity, Verdict, clean, compare
from lab.firmware.medium import Medium, StorageInfo, check_range, link_error
from lab.firmware.rockusb import PRODUCTS, SECTOR
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.rockusb.protocol import CommandFailed, Op

WINDOW = 32 * 2048
"""Sectors a vendor loader reads truthfully."""

AHEAD = 64
"""Reads that are asked for at once where answers come from afar."""

KINDS = {"spi-nor": ("NOR",), "emmc": ("EMMC",), "sd": ("EMMC", "SD"), "nvme": ("PCIE", "NVME")}
OTP_CPU_ID = slice(7, 23)


def _all_cc(data: bytes) -> bool:
    return data.count(0xCC) == len(data)


def probe_size(device: Rockusb) -> int:
    """Sectors of the current storage: what the device says, or the end found by reading."""
    told = device.sectors()
    if told:
        return told
    good, bad = 0, 1
    while _readable(device, bad):
        good, bad = bad, bad * 2
        if bad > 1 << 31:
            raise link_error(f"rockusb {device.found.path}: the medium has no end")
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _readable(device, middle) else (good, middle)
    return good + 1 if _readable(device, good) else 0


def _readable(device: Rockusb, sector: int) -> bool:
    try:
        device.read(sector, 1)
    except CommandFailed:
        return False
    return True


def probe_window(device: Rockusb, sectors: int) -> int:
    """Sectors from the start that the device reads truthfully, found by reading; never assumed.

    A loader with a window answers 0xCC beyond it and for a whole request that crosses its end.
    """
    if sectors < 2 or not _all_cc(device.read(sectors - 1, 1)):
        return sectors
    if sectors > WINDOW and _border(device, WINDOW):
        return WINDOW
    low, high = 0, sectors - 1  # sector ``high`` reads 0xCC; find where that begins
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _all_cc(device.read(middle, 1)) else (middle + 1, high)
    return low if low == 0 or _border(device, low) or low <= WINDOW else sectors


def _border(device: Rockusb, sector: int) -> bool:
    """Whether reads change at ``sector`` as a window makes them: good before it, 0xCC across it."""
    inside = device.read(sector - 1, 1)
    return _all_cc(device.read(sector, 1)) and (_all_cc(inside) or _all_cc(device.read(sector - 1, 2)))


class RockusbMedium:
    """The storage that is selected; selected again whenever the device came back."""

    def __init__(self, transport: RockusbTransport, info: StorageInfo, bit: int | None, transfer: int) -> None:
        self.info, self._transport, self._bit = info, transport, bit
        self._step = transfer // info.block * info.block

    @property
    def _device(self) -> Rockusb:
        return self._transport.select(self._bit)

    def read(self, offset: int, length: int) -> bytes:
        check_range(self.info, offset, length, write=False)
        limit = self.info.size if self.info.readable is None else self.info.readable
        if offset + length > limit:
            raise KitError(
                ExitCode.REFUSED,
                f"{self.info.name}: byte {offset + length} lies past the truthful {limit >> 20} MiB of this loader",
                "use Linux over ssh, U-Boot's ums, or a card reader",
            )
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        step = self._step // SECTOR
        parts, pieces = [], [(sector, min(step, last - sector)) for sector in range(first, last, step)]
        for number, (sector, count) in enumerate(pieces):
            device = self._device
            if number % AHEAD == 0:
                device.ahead(sector, [count for _, count in pieces[number : number + AHEAD]])
            parts.append(self._guard(partial(device.read, sector, count), "reading"))
        whole = b"".join(parts)
        skip = offset - first * SECTOR
        return whole[skip : skip + length] if skip or len(whole) != length else whole

    def _guard(self, action: Callable[[], bytes | None], what: str) -> bytes:
        try:
            return bytes(action() or b"")
        except CommandFailed as error:
            raise link_error(f"{self.info.name}: {what}: {error}") from error

    def write(self, offset: int, data: bytes) -> None:
        check_range(self.info, offset, len(data), write=True)
        for at in range(0, len(data), self._step):
            part = data[at : at + self._step]
            self._guard(partial(self._device.write, (offset + at) // SECTOR, part), "writing")

    def erase(self, offset: int, length: int) -> None:
        check_range(self.info, offset, length, write=True)
        for at in range(offset, offset + length, 16 << 20):
            count = min(16 << 20, offset + length - at) // SECTOR
            self._guard(partial(self._device.erase, at // SECTOR, count), "erasing")

    def flush(self) -> None:
        return  # a write is acknowledged when it is on the medium

    def reopen(self) -> None:
        """Another storage and back: the loader keeps no cache, and a lying switch shows."""
        self._transport.forget()

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        if start < end:
            yield start, end

    def digest(self, offset: int, length: int) -> str | None:
        return None

    def close(self) -> None:
        return


class RockusbTransport:
    """A board in USB download mode that speaks the full protocol."""

    def __init__(self, board: Board, device: Rockusb, *, keep_bus: bool = False) -> None:
        self.board, self.device, self._keep_bus = board, device, keep_bus
        self.name = device.bus.way(device.found.path)
        if PRODUCTS.get(device.found.product) is None:
            raise KitError(ExitCode.REFUSED, f"{self.name} is not an RK3588 (product {device.found.product:04x})")
        if not device.ready():
            raise KitError(
                ExitCode.NO_DEVICE,
                f"{self.name} is in mask ROM: it reads nothing until a loader runs",
                "give one with --usb-loader FILE --usb-loader-sha256 HASH (the board vendor's rk3588_spl_loader)",
            )
        self._capability = device.capability()
        self._selected: int | None = None
        self._identity = self._read_identity()
        self._media: dict[str, tuple[StorageInfo, int | None, int]] = {}
        device.on_return = self._returned

    def _read_identity(self) -> dict[str, str]:
        values: dict[str, str | None] = {"soc": None}
        if self._capability and self._capability.otp:
            raw = self.device.ask(Op.READ_OTP_CHIP, 64, "reading the chip id")
            if raw and len(raw) >= 23:
                values["cpu-id"] = raw[OTP_CPU_ID].hex()
        return clean(values)

    def _returned(self) -> None:
        """A device came back: is it the same board? Select the storage again before anything is repeated."""
        bit, self._selected = self._selected, None
        if not self.device.ready():
            raise link_error(
                f"{self.name}: the board does not answer any more, or restarted into mask ROM",
                "power-cycle it, start the loader again with the same command: it goes on",
            )
        if compare(self._identity, self._read_identity()).verdict is Verdict.OTHER:
            raise KitError(ExitCode.REFUSED, f"{self.name}: another board came back", "connect the first one and go on")
        if bit is not None:
            self.select(bit)

    def identify(self) -> Identity:
        return dict(self._identity)

    def forget(self) -> None:
        """Select the storage again before the next access."""
        self._selected = None

    def select(self, bit: int | None) -> Rockusb:
        """The device with storage ``bit`` selected, proven by reading back."""
        if bit is not None and self._selected != bit:
            if self.device.storage() != bit and not self.device.switch_storage(bit):
                raise link_error(
                    f"{self.name}: the loader does not switch to storage {bit} (it may have reported success)",
                    "use another loader, or reach this storage from Linux",
                )
            self._selected = bit
        return self.device

    def storages(self) -> list[StorageInfo]:
        if not self._media:
            for storage in self.board.storage:
                try:
                    found = self._look(storage)
                except CommandFailed as error:
                    raise link_error(f"{self.name}: looking at {storage.name}: {error}") from error
                if found is not None:
                    self._media[storage.name] = found
        return [info for info, _, _ in self._media.values()]

    def _look(self, storage: Storage) -> tuple[StorageInfo, int | None, int] | None:
        """Size, window and transfer size of a storage; None when it cannot be selected."""
        bit = storage.rockusb
        if bit is None:
            return None
        current = self.device.storage()
        if current is None:  # U-Boot's rockusb: one storage, fixed by its command line
            bit = None
            if self._media:
                return None
        elif current != bit and not self.device.switch_storage(bit):
            return None
        if self.device.flash_id() not in KINDS[storage.kind]:
            return None
        self._selected = bit
        transfer, sectors = self.device.max_transfer(), probe_size(self.device)
        if not sectors:
            return None
        window = probe_window(self.device, sectors)
        block = 4096 if storage.kind == "spi-nor" else SECTOR
        info = StorageInfo(
            storage.name,
            storage.kind,
            sectors * SECTOR,
            block,
            storage.controller,
            window * SECTOR if window < sectors else None,
            detail={"flash-id": self.device.flash_id()},
        )
        return info, bit, transfer

    def open(self, storage: str, *, write: bool = False) -> Medium:
        self.storages()
        if storage not in self._media:
            raise KitError(
                ExitCode.NO_DEVICE, f"{self.name} does not reach {storage}", f"it shows: {', '.join(self._media)}"
            )
        info, bit, transfer = self._media[storage]
        return RockusbMedium(self, info, bit, transfer)

    def reset(self) -> None:
        self.device.reset()

    def close(self) -> None:
        self.device.close()
        if not self._keep_bus:
            self.device.bus.close()
