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
from lab.firmware.rockusb.remote import RemoteBus
from lab.firmware.transports.select import Loader, open_bus, over_usb
from lab.labgrid import remotehost

POLL_SECONDS = 0.25
NEAR, FAR = "RKUSBLoader", "NetworkRKUSBLoader"
_text = attr.validators.instance_of(str)


@target_factory.reg_driver
@attr.s(eq=False)
class RockusbDriver(Driver):
    """Finds the board on USB and says in which mode it is; starts a loader from mask ROM.

    Args:
        board: one of ``npulab board list``
        via: as in ``--via``; default the port of the target's `RKUSBLoader`, on this host or on an exporter's (over
            labgrid's own ssh connection), or ``rockusb`` when the environment has none
        loader: file to start from mask ROM
        loader_sha256: its hash, when the board file does not list it
    """

    # labgrid waits for resources that are bound, and a board is on USB now and then only: the resource is looked up
    bindings: ClassVar[dict[str, Any]] = {}

    board: str = attr.ib(validator=_text)
    via: str = attr.ib(default="", validator=_text)
    loader: str = attr.ib(default="", validator=_text)
    loader_sha256: str = attr.ib(default="", validator=_text)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._far: RemoteBus | None = None

    def on_deactivate(self) -> None:
        """Let go of the other host."""
        if self._far is not None:
            self._far.close()
            self._far = None

    def _resource(self) -> Any:
        """The target's USB loader resource, as it is now; None when the environment has none."""
        self.target.update_resources()
        kinds = [(type(resource).__name__, resource) for resource in self.target.resources]
        found = [resource for kind, resource in kinds if kind in (NEAR, FAR)]
        if not found and any(kind == "RemotePlace" for kind, _ in kinds):
            raise KitError(
                ExitCode.NO_DEVICE,
                f"the place of {self.board} has no {NEAR}",
                "add one to the exporter's file (lab/labgrid/examples/exporter.yaml), or give the driver a `via`",
            )
        return found[0] if found else None

    def way(self) -> str:
        """The ``--via`` of this board."""
        if self.via:
            return self.via
        resource = self._resource()
        port = str(resource.path) if resource is not None and resource.avail and resource.path else ""
        if type(resource).__name__ == FAR:
            return f"rockusb+ssh:{remotehost.name(resource)}" + (f",{port}" if port else "")
        return f"rockusb:{port}" if port else "rockusb"

    def _loader(self) -> Loader:
        path = self.target.env.config.resolve_path(self.loader) if self.loader and self.target.env else self.loader
        return Loader(Path(path) if path else None, self.loader_sha256 or None)

    def _bus(self) -> tuple[Bus, str | None]:
        kind, _, rest = self.way().partition(":")
        where, _, extra = rest.partition(",")
        if self.via or kind != "rockusb+ssh":
            return open_bus(kind, where, extra)
        resource = self._resource()
        if self._far is None or self._far.destination != where:
            self.on_deactivate()
            self._far = RemoteBus(lambda: remotehost.command(resource), where)
        return self._far, extra or None

    def exported(self) -> bool:
        """Whether labgrid sees the board on USB, as far as the environment lets it look."""
        try:
            resource = self._resource()
        except KitError:
            return False
        return resource is None or bool(resource.avail)

    @Driver.check_active
    @step(result=True)
    def mode(self) -> str:
        """``absent``, ``maskrom`` or ``loader``."""
        if not self.via and not self.exported():
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
        bus, path = self._bus()
        return over_usb(bus, path, boards.load(self.board), self._loader(), keep_bus=bus is self._far)

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
