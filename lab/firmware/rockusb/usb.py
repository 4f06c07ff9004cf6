# SPDX-License-Identifier: MIT
"""Real USB through pyusb and libusb."""

from __future__ import annotations

import errno
import re
import time
from typing import Any

from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import PRODUCTS, VENDOR
from lab.firmware.rockusb.link import Found, LinkError, LinkGone, LinkStall, LinkTimeout

UDEV_RULE = (
    'SUBSYSTEM=="usb", ATTR{idVendor}=="2207", MODE="0660", GROUP="plugdev", TAG+="uaccess", '
    'ENV{ID_MM_DEVICE_IGNORE}="1", ENV{MTP_NO_PROBE}="1"'
)
UDEV_FILE = "/etc/udev/rules.d/70-npulab.rules"


GONE = (errno.ENODEV, errno.ENOENT, errno.EIO, errno.EPROTO, errno.EILSEQ, errno.ETIME, errno.ESHUTDOWN)
"""What the kernel says of a device that has left, or is about to (Documentation/driver-api/usb/error-codes.rst)."""

LIBUSB = "libusb-1.0.so.0"


def _backend() -> Any:
    """libusb; by its name where Python's own search, which asks ldconfig or a compiler, finds nothing."""
    import usb.backend.libusb1 as libusb

    return libusb.get_backend() or libusb.get_backend(find_library=lambda name: LIBUSB)


def explain(number: int | None, text: str, where: str = "") -> Exception:
    """What an errno of usbfs or libusb means. ``where`` is the host, when it is another one."""
    on = f" on {where}" if where else ""
    if number == errno.ETIMEDOUT:
        return LinkTimeout("no answer in time")
    if number == errno.EPIPE:
        return LinkStall("the endpoint stalled")
    if number in GONE:
        return LinkGone("the device left the bus")
    if number in (errno.EACCES, errno.EPERM):
        return KitError(
            ExitCode.NO_DEVICE,
            f"no permission for the USB device{on}",
            f"put this line into {UDEV_FILE}{on}, run `udevadm control --reload` there and plug the board in again: "
            f"{UDEV_RULE}",
        )
    if number == errno.EBUSY:
        return KitError(ExitCode.NO_DEVICE, f"another program uses the USB device{on}", "end it and try again")
    return LinkError(text)


def _translate(error: Any) -> Exception:
    import usb.core

    return explain(errno.ETIMEDOUT if isinstance(error, usb.core.USBTimeoutError) else error.errno, str(error))


class UsbLink:
    """A claimed device."""

    def __init__(self, device: Any, found: Found) -> None:
        import usb.core
        import usb.util

        self.found, self._device = found, device
        try:
            configuration = device.get_active_configuration()
            interface = next(
                i
                for i in configuration
                if (i.bInterfaceClass, i.bInterfaceSubClass, i.bInterfaceProtocol) == (0xFF, 6, 5)
            )
            usb.util.claim_interface(device, interface)
            ends = {bool(end.bEndpointAddress & 0x80): end.bEndpointAddress for end in interface}
            self._interface, self._in, self._out = interface, ends[True], ends[False]
        except usb.core.USBError as error:
            raise _translate(error) from error
        except (StopIteration, KeyError) as error:
            raise LinkError("the device has no rockusb interface") from error

    def send(self, data: bytes, timeout: float) -> None:
        import usb.core

        try:
            done = self._device.write(self._out, data, int(timeout * 1000))
        except usb.core.USBError as error:
            raise _translate(error) from error
        if done != len(data):
            raise LinkError(f"{done} of {len(data)} bytes were sent")

    def receive(self, length: int, timeout: float) -> bytes:
        import usb.core

        try:
            # libusb wants whole packets: a longer answer than asked for would be an overflow.
            raw = self._device.read(self._in, -(-length // 512) * 512, int(timeout * 1000))
        except usb.core.USBError as error:
            raise _translate(error) from error
        return bytes(raw)

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        import usb.core

        try:
            self._device.ctrl_transfer(0x40, request, value, index, data, int(timeout * 1000))
        except usb.core.USBError as error:
            raise _translate(error) from error

    def clear(self) -> None:
        import usb.core

        try:
            for end in (self._in, self._out):
                self._device.clear_halt(end)
        except usb.core.USBError as error:
            raise _translate(error) from error

    def close(self) -> None:
        import usb.util

        usb.util.dispose_resources(self._device)


def position(found: Found) -> list[int]:
    """For sorting: bus and ports, as numbers."""
    return [int(number) for number in re.split("[-.]", found.path)]


class UsbBus:
    """This host's USB."""

    name = "this host's USB"

    def _all(self) -> list[tuple[Any, Found]]:
        import usb.core

        try:
            devices = list(usb.core.find(find_all=True, backend=_backend(), idVendor=VENDOR))
        except usb.core.NoBackendError as error:
            raise KitError(
                ExitCode.INFRASTRUCTURE, "libusb is not installed", "apt-get install libusb-1.0-0"
            ) from error
        except usb.core.USBError as error:
            hint = "is /dev/bus/usb there?"
            raise KitError(ExitCode.INFRASTRUCTURE, f"USB cannot be used: {error}", hint) from error
        found = []
        for device in devices:
            if device.idProduct in PRODUCTS and device.port_numbers:
                path = f"{device.bus}-{'.'.join(map(str, device.port_numbers))}"
                found.append((device, Found(path, device.idVendor, device.idProduct, device.bcdUSB)))
        return sorted(found, key=lambda pair: position(pair[1]))

    def devices(self) -> list[Found]:
        return [found for _, found in self._all()]

    def open(self, path: str) -> UsbLink:
        for device, found in self._all():
            if found.path == path:
                return UsbLink(device, found)
        raise LinkGone(f"no device at {path}")

    def way(self, path: str) -> str:
        return f"rockusb:{path}"

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        return
