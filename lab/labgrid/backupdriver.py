# SPDX-License-Identifier: MIT
"""The backup gate for labgrid: nothing that writes to a board's storage goes on without a verified backup of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attr
from labgrid.binding import BindingState
from labgrid.driver.common import Driver
from labgrid.factory import target_factory
from labgrid.step import step
from labgrid.util.proxy import proxymanager

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.flash import gate, session
from lab.firmware.flash.plan import Item
from lab.firmware.flash.session import Session, Wish
from lab.firmware.medium import Transport
from lab.firmware.store import Store, create, default_root
from lab.firmware.store.manifest import Manifest
from lab.firmware.transports.linux import open_linux
from lab.firmware.transports.select import far_block, open_transport
from lab.firmware.transports.ssh import SshRemote
from lab.labgrid import remotehost
from lab.output import Output

READERS = ("USBMassStorage", "USBSDMuxDevice", "USBSDWireDevice", "USBSDWire3Device")
SERIAL_PORTS = ("RawSerialPort", "USBSerialPort", "NetworkSerialPort")
_text = attr.validators.instance_of(str)


@target_factory.reg_driver
@attr.s(eq=False)
class BackupDriver(Driver):
    """Backups of the target's board, and writes that are allowed by them.

    Reads the medium that is in the target's reader or mux, else over USB when the board is in a loader, else over the
    `SSHDriver`'s connection when Linux runs. Reader and USB may be an exporter's, on another host.

    Args:
        board: one of ``npulab board list``
        via: as in ``--via``, instead of the target's own drivers; ``serial`` is the target's serial port, here or at an
            exporter, with a root shell on it and nobody else who reads it
        medium: which of the board's media the target's `USBSDMuxDevice` or `USBMassStorage` holds, such as ``sd``
        store: directory of the backups; default the user's
        max_age: days
    """

    # a binding would bring both up, and a board is in one of the two states only: they are looked up
    bindings: ClassVar[dict[str, Any]] = {}

    board: str = attr.ib(validator=_text)
    via: str = attr.ib(default="", validator=_text)
    medium: str = attr.ib(default="", validator=_text)
    store: str = attr.ib(default="", validator=_text)
    max_age: int = attr.ib(default=gate.MAX_AGE_DAYS, validator=attr.validators.instance_of(int))

    def _driver(self, name: str) -> Any:
        """The target's driver of that class, active; None when it has none."""
        found = next((driver for driver in self.target.drivers if type(driver).__name__ == name), None)
        if found is not None and found.state is not BindingState.active:
            self.target.activate(found)
        return found

    def _rockusb(self) -> Any:
        """The driver of the board's USB mode, when the board is in it."""
        driver = self._driver("RockusbDriver")
        return driver if driver is not None and driver.mode() != "absent" else None

    def open_store(self) -> Store:
        """The store of this target's backups."""
        chosen = self.target.env.config.resolve_path(self.store) if self.store and self.target.env else self.store
        return Store(Path(chosen) if chosen else default_root())

    def _reader(self) -> Any:
        """The reader or mux that has the medium in it now; None when there is none, or the board has the medium."""
        if not self.medium:
            return None
        self.target.update_resources()
        found = [r for r in self.target.resources if type(r).__name__.removeprefix("Network") in READERS]
        return next((resource for resource in found if resource.avail and resource.path), None)

    def _serial_way(self) -> str:
        port = next((r for r in self.target.resources if type(r).__name__ in SERIAL_PORTS), None)
        if port is None or not port.port:
            raise KitError(
                ExitCode.NO_DEVICE,
                f"{self.board}: no serial port",
                "has the place been acquired? its exporter serves it",
            )
        if not hasattr(port, "host"):
            return f"serial:{port.port}"
        host, number = proxymanager.get_host_and_port(port)
        # the server owns the lines; labgrid's SerialDriver asks for the same
        kind, option = ("socket", "") if port.protocol == "raw" else ("rfc2217", "?ign_set_control")
        return f"serial:{kind}://{host}:{number}{option}"

    def way(self) -> str:
        """How the board is read now, for messages and commands."""
        if self.via == "serial":
            return self._serial_way()
        if self.via:
            return self.via
        reader = self._reader()
        if reader is not None:
            kind = f"block+ssh:{remotehost.name(reader)}," if hasattr(reader, "host") else "block:"
            return f"{kind}{reader.path},{self.medium}"
        rockusb = self._rockusb()
        if rockusb is not None:
            return str(rockusb.way())
        ssh = self._driver("SSHDriver")
        if ssh is not None:
            service = ssh.networkservice
            return f"ssh:{ssh.username or service.username}@{service.address}:{service.port}"
        raise KitError(
            ExitCode.NO_DEVICE,
            f"{self.board}: no way to read it",
            "give the environment a RockusbDriver or an SSHDriver",
        )

    @contextmanager
    def _transport(self) -> Iterator[Transport]:
        board = boards.load(self.board)
        reader = None if self.via else self._reader()
        rockusb = None if self.via or reader is not None else self._rockusb()
        transport: Transport
        if reader is not None and hasattr(reader, "host"):
            there = SshRemote(remotehost.name(reader), prefix=remotehost.command(reader))
            transport = far_block(board, there, reader.path, self.medium)
        elif self.via or reader is not None:
            transport = open_transport(self.way(), board)
        elif rockusb is not None:
            transport = rockusb.transport()
        else:
            transport = open_linux(board, self._remote(self.way()))
        try:
            yield transport
        finally:
            transport.close()

    def _remote(self, way: str) -> SshRemote:
        """labgrid's own connection to the board."""
        ssh = self._driver("SSHDriver")
        service = ssh.networkservice
        where = ["-p", str(service.port), "-l", ssh.username or service.username, service.address]
        return SshRemote(way.removeprefix("ssh:"), prefix=["ssh", *ssh.ssh_prefix, *where])

    def create_command(self) -> str:
        """What makes the backup that is missing."""
        return f"npulab backup create --board {self.board} --via {self.way()}"

    @Driver.check_active
    @step(args=["storages"], result=True)
    def assert_fresh(self, storages: Sequence[str] = ()) -> Manifest:
        """The verified backup that covers these media (all that the board shows, when none is named).

        KitError (refused) says what is missing and which command makes it. Chunks are read again.
        """
        board, store = boards.load(self.board), self.open_store()
        with self._transport() as transport:
            plan = regions.make(board, transport, storages)
            identity = dict(transport.identify())
            sizes = {info.name: info.size for info in transport.storages()}
        items = [Item(r.storage, r.name, r.start, r.start + r.length, r.critical, 0) for r in plan.regions]
        backup = gate.find_backup(store, identity, items, sizes, self.create_command(), max_age=self.max_age)
        with Output(quiet=True).stage("reading the backup") as meter:
            gate.assert_readable(store, backup, items, meter)
        return backup

    @Driver.check_active
    @step(args=["storages"], result=True)
    def create(self, storages: Sequence[str] = ()) -> Manifest:
        """Make a backup and verify it by a second read."""
        board = boards.load(self.board)
        with self._transport() as transport, Output(quiet=True).stage("backing up") as meter:
            plan = regions.make(board, transport, storages)
            return create.create(self.open_store(), board, transport, plan, meter).manifest

    @Driver.check_active
    @step(args=["storage", "image"], result=True)
    def flash(self, storage: str, image: str, **options: Any) -> Session:
        """Write an image through the gate: plan, run, read back. The run can be committed or rolled back."""
        board, store = boards.load(self.board), self.open_store()
        wish = Wish(storage, Path(image), max_age=self.max_age, **options)
        with self._transport() as transport, Output(quiet=True).stage("flashing") as meter:
            plan = session.prepare(store, board, transport, wish, meter, self.create_command())
            with store.lock():
                run = Session(store, plan)
                run.save()
                run.run(transport, meter)
        return run
