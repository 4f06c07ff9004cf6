# SPDX-License-Identifier: MIT
"""What the rockusb client needs of a USB stack, and the errors it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lab.firmware.rockusb.protocol import Receive, Send


class LinkError(Exception):
    """A transfer failed."""


class LinkTimeout(LinkError):
    """No answer in time."""


class LinkStall(LinkError):
    """The endpoint stalled: the device refuses this request."""


class LinkGone(LinkError):
    """The device left the bus."""


class LinkLost(LinkGone):
    """The way to the device broke; the device itself may be where it was."""


@dataclass(frozen=True)
class Found:
    """A device on the bus: where it is plugged in, and what its descriptor says."""

    path: str
    vendor: int
    product: int
    bcd_usb: int

    @property
    def maskrom(self) -> bool:
        """What the descriptor claims; usbplug claims it too."""
        return not self.bcd_usb & 1


class Link(Protocol):
    """An opened device."""

    found: Found

    def send(self, data: bytes, timeout: float) -> None:
        """Bulk out."""

    def receive(self, length: int, timeout: float) -> bytes:
        """Bulk in; ends with a short packet."""

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        """Vendor control request to the device."""

    def clear(self) -> None:
        """Clear both endpoints' halts."""

    def close(self) -> None:
        """Release the device."""


@runtime_checkable
class FarLink(Protocol):
    """A link on which each answer takes a while to arrive."""

    def post(self, steps: Sequence[Send | Receive], timeout: float) -> None:
        """Send ahead what will be asked for next; whoever asks for something else gets that instead."""


class Bus(Protocol):
    """Where devices are found."""

    name: str

    def devices(self) -> list[Found]:
        """Rockchip devices in USB download mode."""

    def open(self, path: str) -> Link:
        """Open the device plugged in at ``path``; LinkGone when there is none."""

    def way(self, path: str) -> str:
        """How a user names that port, as in ``--via``."""

    def wait(self, seconds: float) -> None:
        """Let time pass while a device enumerates."""

    def close(self) -> None:
        """Let go of what it takes to look for devices; it comes back by itself when it is needed."""
