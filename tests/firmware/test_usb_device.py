# SPDX-License-Identifier: MIT
"""The stand-in in a USB port of a virtual board, as the kernel, udev, rkdeveloptool, labgrid and our client see it.

On the virtual board itself, and from here, where it is the host of an exporter that is reached by ssh.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands

import lab
from lab import boards, cli
from lab.assemble import usbtools
from lab.cache import Cache
from lab.commands.virt import ssh_command
from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import loaderfile
from lab.firmware.rockusb.client import Rockusb, Timeouts
from lab.firmware.rockusb.remote import RemoteBus
from lab.firmware.rockusb.usb import UDEV_FILE, UDEV_RULE
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.media import make_board
from lab.firmware.standin.usbport import UsbPorts
from lab.firmware.transports.rockusb import RockusbTransport
from lab.firmware.transports.select import open_transport
from lab.output import Output
from lab.virt.background import find_board

NAME = "usb-test"
TREE = "rk3588-rock-5-itx-plus"
SIZES = {"spi": 256 << 10, "emmc": 2 << 20, "sd": 0, "emmc.boot0": 0, "emmc.boot1": 0}
CARD_SIZE = 32 << 20
"""Of the medium in the virtual board's reader, which is its eMMC controller."""
KIT = "/opt/kit"
PLACE = str(Path(__file__).parent / "place_client.py")
SCRIPT = Path(__file__).parent / "guest" / "usb_host.py"
LISTED = "grep -l 350b /sys/bus/usb/devices/*/idProduct"
USER = "1000"
LEFT_OUT = ("lab/virt/qemu", "lab/assemble", "lab/audit", "lab/commands", "lab/kernel", "lab/report")
"""Parts of the kit that its firmware code does not import."""
ANSWER_SECONDS = 240.0
ENUMERATION_SECONDS = 60.0


def archive_of_the_kit() -> bytes:
    """The kit's Python sources and data, and the script that is run there."""
    root, buffer = Path(lab.__file__).parent, io.BytesIO()

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.endswith(("/__pycache__", *LEFT_OUT)) else member

    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        archive.add(root, "lab", filter=wanted)
        archive.add(SCRIPT, SCRIPT.name)
    return buffer.getvalue()


class Host:
    """The virtual board, a stand-in in its first USB port, its switched-off twin in the second, an empty third one."""

    def __init__(self, root: Path) -> None:
        self.root, self.board = root, boards.load("rock-5-itx-plus")
        make_board(root / "board", self.board, sizes=SIZES)
        make_board(root / "twin", self.board, serial="0002", sizes=SIZES)
        self.engine, self.twin = Engine(root / "board", "loader"), Engine(root / "twin", "loader")
        self.twin.connected = False
        self.ports = UsbPorts([str(root / name) for name in ("one", "two", "three")], [self.engine, self.twin])
        self.card = root / "card.img"
        self.ssh: list[str] = []
        self.agent: subprocess.Popen[bytes] | None = None

    def image(self, name: str = "emmc") -> bytes:
        return (self.root / "board" / f"{name}.img").read_bytes()

    def start(self) -> None:
        plugs = [word for port in self.ports.ports for word in ("--usbredir", port.where)]
        self.card.write_bytes(bytes(CARD_SIZE - (1 << 20)) + os.urandom(1 << 20))
        card = ["--emmc", str(self.card)]
        assert cli.main(["virt", "--quiet", "up", "--name", NAME, "--dtb", TREE, *plugs, *card]) == 0
        self.ssh = ssh_command(find_board(NAME))
        python = self.shell("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()
        tools = usbtools.archive(python, Cache(), Output(quiet=True))
        self.shell("tar -xz -C /", data=tools.read_bytes())
        self.shell(f"mkdir -p {KIT} && tar -xz -C {KIT}", data=archive_of_the_kit())
        # a normal user's machine has the group; udev is started as an initramfs does it
        self.shell(
            "echo plugdev:x:46: >> /etc/group; /usr/lib/systemd/systemd-udevd --daemon < /dev/null > /dev/null 2>&1;"
            "udevadm trigger --subsystem-match=usb; udevadm settle"
        )

    def shell(self, script: str, data: bytes = b"", code: int = 0, timeout: float = 120) -> str:
        """Run a script on the virtual board."""
        done = subprocess.run([*self.ssh, script], input=data, capture_output=True, timeout=timeout, check=False)
        text = done.stdout.decode(errors="replace")
        assert done.returncode == code, f"{script}: {done.returncode}\n{text}\n{done.stderr.decode(errors='replace')}"
        return text

    def kit(self, *words: str) -> dict[str, Any]:
        """A function of the script, and its answer."""
        if self.agent is None:
            command = [*self.ssh, f"cd {KIT} && exec python3 {SCRIPT.name}"]
            self.agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.agent.stdin is not None and self.agent.stdout is not None
        self.agent.stdin.write(json.dumps(words).encode() + b"\n")
        self.agent.stdin.flush()
        ready, _, _ = select.select([self.agent.stdout], [], [], ANSWER_SECONDS)
        line = self.agent.stdout.readline() if ready else b""
        assert line, f"{words}: no answer"
        document: dict[str, Any] = json.loads(line)
        return document

    def stop(self) -> None:
        """The virtual board goes, and with it the script that runs there."""
        cli.main(["virt", "--quiet", "down", NAME])
        if self.agent is not None:
            self.agent.communicate(timeout=30)

    def named_ssh(self) -> str:
        """A directory with an ``ssh`` that knows this virtual board by its name, for the search path."""
        folder = self.root / "bin"
        if not folder.exists():
            folder.mkdir()
            board = find_board(NAME)
            lines = [f"Host {NAME}", "HostName 127.0.0.1", f"Port {board.ssh_port}", "User root", "LogLevel ERROR"]
            lines += [f"IdentityFile {board.ssh_key}", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known"]
            (folder / "config").write_text("\n".join(lines) + "\n")
            (folder / "ssh").write_text(f'#!/bin/sh\nexec {self.ssh[0]} -F {folder}/config "$@"\n')
            (folder / "ssh").chmod(0o755)
            subprocess.run([folder / "ssh", "-o", "StrictHostKeyChecking=accept-new", NAME, "true"], check=True)
        return f"{folder}:{os.environ['PATH']}"

    def far(self) -> RemoteBus:
        """This virtual board's USB, from here."""
        return RemoteBus(lambda: self.ssh, NAME)

    def agents(self) -> int:
        """How many of the kit's programs run on the virtual board."""
        return int(self.shell("grep -l '[n]pulab-usb' /proc/[0-9]*/cmdline 2> /dev/null | wc -l"))

    def put(self, path: str, data: bytes) -> None:
        self.shell(f"cat > {path}", data=data)

    def get(self, path: str) -> bytes:
        done = subprocess.run([*self.ssh, f"cat {path}"], capture_output=True, timeout=120, check=True)
        return done.stdout

    def wait_until_enumerated(self) -> None:
        deadline = time.monotonic() + ENUMERATION_SECONDS
        while not self.ports.configured(self.engine):
            assert time.monotonic() < deadline, "the kernel has not enumerated it"
            time.sleep(0.02)

    def plug(self, personality: str) -> None:
        """The board, switched on in that mode, in the first port, without faults, and seen by the kernel."""
        engine = self.engine
        engine.options.faults = []
        if engine.connected and not engine.hung:
            self.wait_until_enumerated()
        engine.connected = False
        engine.port, engine.initial = "1-1", personality
        engine.power_on()
        self.wait_until_enumerated()
        self.shell("for i in $(seq 100); do [ -e /sys/bus/usb/devices/3-1:1.0 ] && exit; sleep 0.1; done; exit 1")
        self.shell("udevadm settle")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("usb"))
    with host.ports:
        try:
            host.start()
            yield host
        finally:
            host.stop()


@pytest.fixture
def host(running: Host) -> Host:
    running.plug("loader")
    return running


@pytest.fixture(scope="module")
def loader() -> bytes:
    """A loader file of the vendor's format with nothing of the vendor's in it."""
    return loaderfile.build(os.urandom(6000), os.urandom(9000))


def test_the_kernel_and_udev_see_it(host: Host) -> None:
    folder = host.shell(LISTED).strip().rpartition("/")[0]
    fields = ("idVendor", "idProduct", "version", "bcdDevice", "speed", "bNumInterfaces")
    values = host.shell("; ".join(f"cat {folder}/{name}" for name in fields)).split()
    assert values == ["2207", "350b", "2.01", "0100", "480", "1"]
    assert host.shell(f"readlink -f {folder}").startswith("/sys/devices/platform/fc400000.usb/xhci-hcd")
    described = " ".join(host.shell("lsusb -v -d 2207:350b").split())
    for expected in (
        "bInterfaceClass 255",
        "bInterfaceSubClass 6",
        "bInterfaceProtocol 5",
        "bEndpointAddress 0x81 EP 1 IN",
        "bEndpointAddress 0x02 EP 2 OUT",
        "wMaxPacketSize 0x0200",
    ):
        assert expected in described
    properties = host.shell(f"udevadm info --query=property --path={folder}").splitlines()
    assert {"ID_VENDOR_ID=2207", "ID_MODEL_ID=350b"} <= set(properties)


def test_rkdeveloptool(host: Host, loader: bytes) -> None:
    """List, start a loader (the device comes back as another one), read and write."""
    host.plug("maskrom")
    host.put("/tmp/loader.bin", loader)
    assert "Vid=0x2207,Pid=0x350b" in (listed := host.shell("rkdeveloptool ld")) and "Maskrom" in listed
    assert "Downloading bootloader succeeded" in host.shell("rkdeveloptool db /tmp/loader.bin")
    assert host.engine.mode == "usbplug"
    host.shell("for i in $(seq 50); do sleep 0.1; rkdeveloptool td && exit; done; exit 1")
    # trixie's rl counts its length in bytes, where bookworm's counts sectors
    host.shell(f"rkdeveloptool rl 0 {1 << 20} /tmp/out.img")
    assert host.get("/tmp/out.img") == host.image()[: 1 << 20]
    data = os.urandom(200 * 512)
    host.put("/tmp/in.img", data)
    host.shell("rkdeveloptool wl 3500 /tmp/in.img")
    assert host.image()[3500 * 512 :][: len(data)] == data


def test_our_client_over_usbfs(host: Host, loader: bytes) -> None:
    """The same as rkdeveloptool, byte for byte; and a backup that its second read confirms."""
    host.plug("maskrom")
    assert host.kit("find") == {"found": [{"path": "3-1", "maskrom": True}], "ready": False}
    host.put("/tmp/loader.bin", loader)
    started = host.kit("start_loader", "/tmp/loader.bin")
    assert "identity" in started, started
    assert started["identity"]["cpu-id"] == host.engine.board.identify()["cpu-id"]
    known = host.kit("identify")
    assert known["media"] == {"spi": SIZES["spi"], "emmc": SIZES["emmc"]}
    ours = host.kit("read", "emmc", str(SIZES["emmc"]), "/tmp/ours.img")
    host.shell(f"rkdeveloptool rl 0 {SIZES['emmc']} /tmp/tool.img && cmp /tmp/ours.img /tmp/tool.img")
    assert ours["sha256"] == hashlib.sha256(host.image()).hexdigest()
    data = os.urandom(300 * 512)
    host.put("/tmp/in.img", data)
    host.kit("write", "emmc", str(3000 * 512), "/tmp/in.img")
    assert host.image()[3000 * 512 :][: len(data)] == data
    assert host.kit("backup", "/tmp/store")["verified"]


def test_a_normal_user_is_told_the_udev_rule(host: Host) -> None:
    refused = host.kit("as_user", USER, USER, "find")
    assert refused["error"] == "no permission for the USB device" and refused["code"] == ExitCode.NO_DEVICE
    assert UDEV_RULE in refused["hint"]
    host.put(UDEV_FILE, UDEV_RULE.encode() + b"\n")
    try:
        host.shell("udevadm control --reload")
        host.plug("loader")
        assert host.kit("as_user", USER, "46", "find")["ready"], "with the rule, as one of the group"
        node = "$(udevadm info --query=name /sys/bus/usb/devices/3-1)"
        assert host.shell(f"stat -c '%a %g' /dev/{node}").split() == ["660", "46"], "and nobody else"
    finally:
        host.shell(f"rm {UDEV_FILE}; udevadm control --reload")


def test_leaving_the_bus_in_the_middle_of_a_read(host: Host) -> None:
    """A device that comes back is read on; one that does not is an error in time; rkdeveloptool notices too."""
    image = hashlib.sha256(host.image()).hexdigest()
    size = str(SIZES["emmc"])
    host.engine.options.faults = [faults.Fault("disconnect", "read", after=8)]
    assert host.kit("read", "emmc", size, "/tmp/ours.img")["sha256"] == image
    host.engine.options.faults = [faults.Fault("move", "read", after=8)]
    assert host.kit("read", "emmc", size, "/tmp/ours.img")["sha256"] == image, "at another port"
    assert host.kit("find")["found"] == [{"path": "3-3", "maskrom": False}]
    host.plug("loader")
    host.engine.options.faults = [faults.Fault("disconnect", "read", after=8)]
    host.shell(f"rkdeveloptool rl 0 {SIZES['emmc']} /tmp/x.img", code=1)


def test_two_identical_boards(host: Host) -> None:
    """rkdeveloptool will not choose; our client asks which, and finds each at its port."""
    host.twin.power_on()
    try:
        host.shell("for i in $(seq 100); do [ -e /sys/bus/usb/devices/3-2 ] && exit; sleep 0.1; done; exit 1")
        assert host.shell("rkdeveloptool ld").count("Pid=0x350b") == 2
        host.shell("rkdeveloptool rl 0 512 /tmp/x.img", code=1)
        refused = host.kit("identify")
        assert refused["code"] == ExitCode.NO_DEVICE and "rockusb:3-1, rockusb:3-2" in refused["hint"]
        for port, engine in (("3-1", host.engine), ("3-2", host.twin)):
            assert host.kit("identify", port)["identity"]["cpu-id"] == engine.board.identify()["cpu-id"]
    finally:
        host.twin.connected = False
        host.shell("for i in $(seq 100); do [ -e /sys/bus/usb/devices/3-2 ] || exit 0; sleep 0.1; done; exit 1")


def test_a_silent_device_is_given_up(host: Host) -> None:
    host.engine.options.faults = [faults.Fault("hang", "read", after=8)]
    lost = host.kit("read_impatiently", "emmc", str(SIZES["emmc"]))
    assert lost["code"] == ExitCode.LINK and lost["seconds"] < 60


def test_from_another_host(
    host: Host, loader: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From mask ROM on, over ssh: a backup, damage and its repair, a boot loader that is flashed and undone."""
    host.plug("maskrom")
    monkeypatch.setenv("PATH", host.named_ssh())
    (tmp_path / "loader.bin").write_bytes(loader)
    user, via = Commands(tmp_path, capsys), ("--via", f"rockusb+ssh:{NAME},3-1")
    words = ("--board", host.board.name, *via)
    digest = hashlib.sha256(loader).hexdigest()
    start = ("--usb-loader", str(tmp_path / "loader.bin"), "--usb-loader-sha256", digest)
    assert user.run("board", "probe", *words)["mode"] == "maskrom"
    assert host.engine.mode == "maskrom", "it was looked at only"
    before = host.image()
    assert user.run("backup", "create", *words, *start)["verified"]
    assert host.engine.mode == "usbplug"
    with (host.root / "board" / "emmc.img").open("r+b") as medium:
        medium.seek(1 << 20)
        medium.write(os.urandom(100 << 10))
    user.run("backup", "verify", "latest", *via, code=ExitCode.MISMATCH)
    user.run("backup", "restore", "latest", *via, "--yes")
    assert host.image() == before
    nor, boot = host.image("spi"), tmp_path / "u-boot-rockchip-spi.bin"
    boot.write_bytes(b"\xff" * 0x8000 + b"RKNS" + os.urandom(100_001))
    stated = ("--loader", str(boot), "--loader-sha256", hashlib.sha256(boot.read_bytes()).hexdigest())
    run = str(user.run("flash", "plan", *words, "--storage", "spi", *stated)["run"])
    host.engine.options.faults = [faults.Fault("disconnect", "write", after=2)]
    assert user.run("flash", "run", run, *via, "--yes")["state"] == "verified"
    assert host.image("spi").startswith(boot.read_bytes())
    assert user.run("flash", "rollback", run, *via, "--yes")["state"] == "rolled-back"
    assert (host.image(), host.image("spi")) == (before, nor)
    assert host.agents() == 0


def test_from_another_host_with_faults(host: Host) -> None:
    """A device that leaves and comes back, one that hangs, a connection that is lost: in time, and nothing is left."""
    image, bus = host.image(), host.far()
    transport = RockusbTransport(host.board, Rockusb(bus, timeouts=Timeouts(2.0, 2.0)))
    try:
        medium = transport.open("emmc")
        assert medium.read(0, len(image)) == image
        for kind in ("disconnect", "move"):
            host.engine.options.faults = [faults.Fault(kind, "read", after=3)]
            assert medium.read(0, len(image)) == image, kind
        connection = bus._connection
        assert connection is not None
        connection._child.kill()
        assert medium.read(0, len(image)) == image, "over a second connection"
        assert host.agents() == 1, "the first one's program has ended"
        host.engine.options.faults = [faults.Fault("hang", "read", after=3)]
        started = time.monotonic()
        with pytest.raises(KitError) as caught:
            medium.read(0, len(image))
        assert caught.value.code is ExitCode.LINK and time.monotonic() - started < 60
    finally:
        transport.close()
    assert host.agents() == 0


def test_killed_here_nothing_stays_there(host: Host) -> None:
    """The program on the other host ends and frees the device, even while a transfer waits for a silent one."""
    host.engine.options.faults = [faults.Fault("hang", "query")]
    lines = [
        "from lab.firmware.rockusb.client import Rockusb, Timeouts",
        "from lab.firmware.rockusb.remote import RemoteBus",
        f"device = Rockusb(RemoteBus(lambda: {host.ssh!r}, 'x'), timeouts=Timeouts(20.0, 20.0))",
        "print('open', flush=True)",
        "device.ready()",
    ]
    child = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"open\n"
    time.sleep(0.5)
    assert host.agents() == 1
    child.kill()
    child.communicate()
    host.shell("for i in $(seq 50); do grep -q '[n]pulab-usb' /proc/[0-9]*/cmdline || exit 0; sleep 0.1; done; exit 1")
    host.plug("loader")
    assert host.kit("find")["ready"]


def test_a_place_on_another_host(host: Host, loader: bytes, tmp_path: Path) -> None:
    """labgrid's coordinator and exporter here; the board is on the USB of the virtual board, which they name."""
    host.plug("maskrom")
    (tmp_path / "loader.bin").write_bytes(loader)
    resource = {"host": NAME, "busnum": 3, "devnum": 1, "path": "3-1", "vendor_id": 0x2207, "model_id": 0x350B}
    (tmp_path / "exporter.yaml").write_text(json.dumps({"usb": {"NetworkRKUSBLoader": resource}}))
    environment = {**os.environ, "PATH": host.named_ssh(), "PYTHONPATH": str(Path(lab.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, PLACE, tmp_path, hashlib.sha256(loader).hexdigest()],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    way = f"rockusb+ssh:{NAME},3-1"
    assert told["modes"] == ["maskrom", "loader"] and told["way"] == way
    assert told["command"] == f"npulab backup create --board {host.board.name} --via {way}"
    assert told["verified"] and told["fresh"] == told["id"]
    assert host.agents() == 0


def test_a_medium_in_the_reader_of_another_host(running: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and written by ssh and dd; not while something there holds the device, as that kernel says."""
    monkeypatch.setenv("PATH", running.named_ssh())
    before, piece = running.card.read_bytes(), os.urandom(64 << 10)
    transport = open_transport(f"block+ssh:{NAME},/dev/mmcblk0,sd", running.board)
    try:
        (info,) = transport.storages()
        area = before[-info.size :]  # its boot partitions come before it
        end = info.size - len(piece)
        assert not info.mounted and transport.open("sd").read(end, len(piece)) == area[end:]
        hold = "import os,time;os.open('/dev/mmcblk0',os.O_EXCL);print(flush=True);time.sleep(600)"
        holder = subprocess.Popen([*running.ssh, f'exec python3 -c "{hold}"'], stdout=subprocess.PIPE)
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        with pytest.raises(KitError, match="is in use") as caught:
            transport.open("sd", write=True)
        assert caught.value.code is ExitCode.REFUSED
        running.shell("kill $(grep -l '[O]_EXCL' /proc/[0-9]*/cmdline | cut -d/ -f3)")
        holder.communicate(timeout=60)
        medium = transport.open("sd", write=True)
        medium.write(end, piece)
        medium.flush()
        medium.reopen()
        assert medium.read(end, len(piece)) == piece == running.card.read_bytes()[-len(piece) :]
    finally:
        transport.close()


def test_labgrid_finds_and_writes_it(host: Host, loader: bytes) -> None:
    """labgrid's RKUSBLoader through udev, and its RKUSBDriver with the real tool."""
    host.plug("maskrom")
    data = os.urandom(100 * 512)
    host.put("/tmp/loader.bin", loader)
    host.put("/tmp/image.bin", data)
    assert host.kit("labgrid", "/tmp/loader.bin", "/tmp/image.bin") == {
        "path": "3-1",
        "vendor": "2207",
        "model": "350b",
    }
    assert host.engine.mode == "usbplug" and host.image()[64 * 512 :][: len(data)] == data
