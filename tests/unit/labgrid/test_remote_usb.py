# SPDX-License-Identifier: MIT
"""A place whose board is on the USB of an exporter's host: the drivers take labgrid's resource and its connection."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "firmware"))

import far_host
import labgrid.driver.fake  # noqa: F401  (registers its drivers)
import pytest
from labgrid import Environment
from labgrid.driver.exception import ExecutionError
from labgrid.resource.remote import NetworkRKUSBLoader, NetworkUSBSDMuxDevice, RemotePlaceManager
from labgrid.resource.serialport import NetworkSerialPort, RawSerialPort
from labgrid.util.ssh import sshmanager

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import loaderfile
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.media import make_board
from lab.firmware.standin.server import Server
from lab.labgrid import remotehost

SIZES = {"spi": 1 << 20, "emmc": 24 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536}
ENVIRONMENT = """
imports: [lab.labgrid]
targets:
  main:
    drivers:
      FakePowerDriver: {{}}
      FakeConsoleDriver: {{}}
      ShellDriver: {{prompt: '# ', login_prompt: 'login: ', username: root}}
      RockusbDriver: {{board: rock-5-itx-plus, loader: {root}/loader.bin, loader_sha256: {sha256}}}
      BackupDriver: {{board: rock-5-itx-plus, store: {root}/store}}
      KitStrategy: {{image: {root}/image.raw, storage: emmc}}
"""


class Bench:
    """A target whose USB resource is what a coordinator tells of an exporter's board."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "loader.bin").write_bytes(loaderfile.build(os.urandom(5000), os.urandom(9000)))
        sha256 = hashlib.sha256((root / "loader.bin").read_bytes()).hexdigest()
        (root / "env.yaml").write_text(ENVIRONMENT.format(root=root, sha256=sha256))
        self.environment = Environment(str(root / "env.yaml"))
        self.target = self.environment.get_target()
        nothing = dict.fromkeys(("busnum", "devnum", "path", "vendor_id", "model_id"))
        self.resource = NetworkRKUSBLoader(self.target, name=None, host="far", **nothing)
        self.resource.extra = {"proxy": "gate", "proxy_required": False}

    def arrive(self, port: str) -> None:
        self.resource.path, self.resource.avail = port, True

    def driver(self, name: str) -> Any:
        return self.target.get_driver(name)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(RemotePlaceManager, "poll", lambda self: None)  # there is no coordinator
    made = Bench(tmp_path)
    yield made
    made.environment.cleanup()


def test_a_board_that_is_away_is_absent_and_nobody_connects(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remotehost, "command", lambda resource: pytest.fail("connected"))
    rockusb = bench.driver("RockusbDriver")
    assert rockusb.mode() == "absent" and rockusb.way() == "rockusb+ssh:far"
    with pytest.raises(KitError, match="absent on rockusb\\+ssh:far") as caught:
        rockusb.wait_for("loader", timeout=0.3)
    assert caught.value.code is ExitCode.NO_DEVICE


def test_a_place_without_usb_is_not_looked_for_here(bench: Bench) -> None:
    """Another board may be on this host's USB: it is not the place's."""

    class RemotePlace:
        avail = True

    bench.target.resources.remove(bench.resource)
    rockusb = bench.driver("RockusbDriver")
    assert rockusb.way() == "rockusb", "no place: a board on this desk"
    place: Any = RemotePlace()
    place.poll = lambda: None
    bench.target.resources.append(place)
    try:
        assert rockusb.mode() == "absent"
        with pytest.raises(KitError, match="the place of rock-5-itx-plus has no RKUSBLoader") as caught:
            rockusb.way()
        assert caught.value.code is ExitCode.NO_DEVICE
    finally:
        bench.target.resources.remove(place)


def test_loader_backup_flash(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bench.root
    make_board(root / "board", boards.load("rock-5-itx-plus"), sizes=SIZES)
    engine = Engine(root / "board", "maskrom")
    far_host.make_folder(root / "host", engine)
    words = [sys.executable, far_host.__file__, str(root / "usb.sock"), str(root / "host")]
    monkeypatch.setattr(remotehost, "command", lambda resource: words)
    before = (root / "board" / "emmc.img").read_bytes()
    new = before[: 17 << 20] + b"new!" * 1024 + before[(17 << 20) + 4096 :]
    (root / "image.raw").write_bytes(new)
    with Server(root / "usb.sock", [engine]):
        bench.arrive("1-1")
        rockusb, backup = bench.driver("RockusbDriver"), bench.driver("BackupDriver")
        strategy: Any = bench.driver("KitStrategy")
        assert rockusb.mode() == "maskrom"
        strategy.force("maskrom")
        strategy.transition("loader")
        assert engine.mode == "usbplug"
        assert backup.create_command() == "npulab backup create --board rock-5-itx-plus --via rockusb+ssh:far,1-1"
        made = backup.create(["emmc"])
        assert made.verified and backup.assert_fresh(["emmc"]).id == made.id
        strategy.transition("flashed")
        assert (root / "board" / "emmc.img").read_bytes()[17 << 20 :][:4096] == b"new!" * 1024
        bench.target.deactivate(rockusb)
        pid = int((root / "host" / "pid").read_text())
        assert not Path(f"/proc/{pid}").exists()


def test_a_medium_in_the_exporters_reader(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the mux gives the card to the exporter, it is read there; else the board's other ways are taken."""
    nothing = dict.fromkeys(("busnum", "devnum", "path", "vendor_id", "model_id"))
    mux = NetworkUSBSDMuxDevice(bench.target, name=None, host="far", control_path="/dev/sg1", **nothing)
    mux.extra = {}
    backup: Any = bench.driver("BackupDriver")
    mux.path, mux.avail = "/dev/sda", True
    with pytest.raises(KitError, match="no way to read it"):
        backup.way()  # nobody said what the mux holds
    backup.medium = "sd"
    assert backup.way() == "block+ssh:far,/dev/sda,sd"
    assert backup.create_command().endswith("--via block+ssh:far,/dev/sda,sd")
    monkeypatch.setattr(remotehost, "command", lambda resource: ["sh", "-c", "echo no; exit 1; #"])
    with pytest.raises(KitError, match="ssh:far: the command ended with 1") as caught:
        backup.create(["sd"])
    assert caught.value.code is ExitCode.LINK
    mux.path, mux.avail = None, False
    with pytest.raises(KitError, match="no way to read it"):
        backup.way()


def test_the_serial_port_of_a_place(bench: Bench) -> None:
    backup: Any = bench.driver("BackupDriver")
    backup.via = "serial"
    with pytest.raises(KitError, match="no serial port"):
        backup.way()
    port = NetworkSerialPort(bench.target, name=None, host="127.0.0.1", port=None, speed=1500000)
    with pytest.raises(KitError, match="no serial port"):
        backup.way()  # nobody has acquired the place
    port.port = 4321
    assert backup.way() == "serial:rfc2217://127.0.0.1:4321?ign_set_control"
    port.protocol = "raw"
    assert backup.way() == "serial:socket://127.0.0.1:4321"
    bench.target.resources.remove(port)
    RawSerialPort(bench.target, name=None, port="/dev/ttyUSB7", speed=1500000)
    assert backup.way() == "serial:/dev/ttyUSB7"


class Connection:
    """labgrid's connection to a host."""

    def __init__(self, host: str, alive: bool = True) -> None:
        self.host, self.alive = host, alive

    def isconnected(self) -> bool:
        return self.alive

    def get_prefix(self) -> list[str]:
        return ["ssh", "-o", "ControlPath=/x/control", self.host]


def test_labgrids_connection_its_proxies_and_its_failures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    known = {"far": Connection("far"), "gate": Connection("gate"), "jump": Connection("jump")}
    monkeypatch.setattr(sshmanager, "get", lambda host: (asked.append(host), known[host])[1])
    assert remotehost.command(bench.resource) == ["ssh", "-o", "ControlPath=/x/control", "far", "--"]
    bench.resource.extra["proxy_required"] = True
    assert remotehost.name(bench.resource) == "gate"
    assert remotehost.command(bench.resource)[-2:] == ["gate", "--"]
    bench.resource.extra["proxy_required"] = False
    monkeypatch.setenv("LG_PROXY", "jump")
    words = remotehost.command(bench.resource)
    assert words[-1] == "far" and "ProxyCommand=ssh -o ControlPath=/x/control jump -W %h:%p" in words
    monkeypatch.delenv("LG_PROXY")
    # a connection that was lost is replaced
    dropped: list[str] = []

    def drop(host: str) -> None:
        dropped.append(host)
        known[host] = Connection(host)

    known["far"].alive = False
    monkeypatch.setattr(sshmanager, "remove_by_name", drop)
    assert remotehost.command(bench.resource)[-2:] == ["far", "--"] and dropped == ["far"]

    def fail(host: str) -> Connection:
        raise ExecutionError(f"failed to connect to {host}")

    monkeypatch.setattr(sshmanager, "get", fail)
    with pytest.raises(KitError, match="far: failed to connect") as caught:
        remotehost.command(bench.resource)
    assert caught.value.code is ExitCode.LINK
