# SPDX-License-Identifier: MIT
"""A board in USB download mode, by the kit's own rockusb client: every transfer has a time limit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import attr
from labgrid.driver.common import Driver
from labgrid.driver.exception import ExecutionError
from labgrid.factory import target_factory
from labgrid.step import step

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.medium import Transport
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.rockusb.link import Bus
from lab.firmware.transports.select import Loader, open_bus, open_transport

POLL_SECONDS = 0.25
_text = attr.validators.instance_of(str)


@target_factory.reg_driver
@attr.s(eq=False)
class RockusbDriver(Driver):
    """Finds the board on USB and says in which mode it is; starts a loader from mask ROM.

    Args:
        board: one of ``npulab board list``
        via: as in ``--via``; default ``rockusb``, at the port of the target's `RKUSBLoader` if it has one
        loader: file to start from mask ROM
        loader_sha256: its hash, when the board file does not list it
    """

    # labgrid waits for resources that are bound, and a board is on USB now and then only: the resource is looked up
    bindings: ClassVar[dict[str, Any]] = {}

    board: str = attr.ib(validator=_text)
    via: str = attr.ib(default="", validator=_text)
    loader: str = attr.ib(default="", validator=_text)
    loader_sha256: str = attr.ib(default="", validator=_text)

    def _resource(self) -> Any:
        """The target's USB loader resource, as it is now; None when the environment has none."""
        found = [r for r in self.target.resources if type(r).__name__ in ("RKUSBLoader", "NetworkRKUSBLoader")]
        if not found:
            return None
        if type(found[0]).__name__ == "NetworkRKUSBLoader":
            raise KitError(
                ExitCode.NO_DEVICE,
                f"{self.board} is on the USB of {found[0].host}, another host",
                "run the backup or flash on that host, or give the driver a `via`",
            )
        self.target.update_resources()
        return found[0]

    def way(self) -> str:
        """The ``--via`` of this board."""
        if self.via:
            return self.via
        resource = self._resource()
        return f"rockusb:{resource.path}" if resource is not None and resource.avail else "rockusb"

    def _loader(self) -> Loader:
        path = self.target.env.config.resolve_path(self.loader) if self.loader and self.target.env else self.loader
        return Loader(Path(path) if path else None, self.loader_sha256 or None)

    def _bus(self) -> tuple[Bus, str | None]:
        kind, _, rest = self.way().partition(":")
        where, _, extra = rest.partition(",")
        return open_bus(kind, where, extra)

    @Driver.check_active
    @step(result=True)
    def mode(self) -> str:
        """``absent``, ``maskrom`` or ``loader``."""
        resource = None if self.via else self._resource()
        if resource is not None and not resource.avail:
            return "absent"
        bus, path = self._bus()
        if not [found for found in bus.devices() if path in (None, found.path)]:
            return "absent"
        device = Rockusb(bus, path)
        try:
            return "loader" if device.ready() else "maskrom"
        finally:
            device.close()

    @Driver.check_active
    @step(args=["wanted"])
    def wait_for(self, wanted: str, timeout: float = 15.0, hint: str = "") -> None:
        """Wait until the board is in a mode; KitError (no device) when it is not in time."""
        deadline, mode = time.monotonic() + timeout, "absent"
        while (mode := self.mode()) != wanted:
            if time.monotonic() >= deadline:
                what = f"{self.board} is not in {wanted} mode after {timeout:.0f} s: {mode} on {self.way()}"
                raise KitError(ExitCode.NO_DEVICE, what, hint or "check button, cable and power")
            time.sleep(POLL_SECONDS)

    @Driver.check_active
    @step()
    def start_loader(self) -> None:
        """From mask ROM to the loader; nothing when it runs already."""
        if self.mode() == "loader":
            return
        if not self.loader:
            raise ExecutionError(f"{self.board} is in mask ROM and the environment names no loader to start")
        self.transport().close()
        self.wait_for("loader")

    def transport(self) -> Transport:
        """An open transport of `lab.firmware`; whoever asks closes it."""
        return open_transport(self.way(), boards.load(self.board), self._loader())

    @Driver.check_active
    @step(args=["maskrom"])
    def reset(self, maskrom: bool = False) -> None:
        """Let the loader start the board again, into mask ROM when that is asked for."""
        bus, path = self._bus()
        device = Rockusb(bus, path)
        try:
            device.reset(3 if maskrom else 0)
        finally:
            device.close()
