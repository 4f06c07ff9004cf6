# SPDX-License-Identifier: MIT
"""The stand-in in a USB port of a virtual board, as the kernel, udev, rkdeveloptool, labgrid and our client see it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lab
from lab import boards, cli
from lab.assemble import usbtools
from lab.cache import Cache
from lab.commands.virt import ssh_command
from lab.errors import ExitCode
from lab.firmware.rockusb import loaderfile
from lab.firmware.rockusb.usb import UDEV_FILE, UDEV_RULE
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.media import make_board
from lab.firmware.standin.usbport import UsbPorts
from lab.output import Output
from lab.virt.background import find_board

NAME = "usb-test"
TREE = "rk3588-rock-5-itx-plus"
SIZES = {"spi": 256 << 10, "emmc": 2 << 20, "sd": 0, "emmc.boot0": 0, "emmc.boot1": 0}
KIT = "/opt/kit"
SCRIPT = Path(__file__).parent / "guest" / "usb_host.py"
LISTED = "grep -l 350b /sys/bus/usb/devices/*/idProduct"
USER = "1000"
LEFT_OUT = ("lab/virt/qemu", "lab/assemble", "lab/audit", "lab/commands", "lab/kernel", "lab/report")
"""Parts of the kit that its firmware code does not import."""
ANSWER_SECONDS = 120.0


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
        self.sockets = [str(root / name) for name in ("one", "two", "three")]
        self.ssh: list[str] = []
        self.agent: subprocess.Popen[bytes] | None = None

    def image(self, name: str = "emmc") -> bytes:
        return (self.root / "board" / f"{name}.img").read_bytes()

    def start(self) -> None:
        plugs = [word for where in self.sockets for word in ("--usbredir", where)]
        assert cli.main(["virt", "--quiet", "up", "--name", NAME, "--dtb", TREE, *plugs]) == 0
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

    def put(self, path: str, data: bytes) -> None:
        self.shell(f"cat > {path}", data=data)

    def get(self, path: str) -> bytes:
        done = subprocess.run([*self.ssh, f"cat {path}"], capture_output=True, timeout=120, check=True)
        return done.stdout

    def plug(self, personality: str) -> None:
        """The board, switched on in that mode, in the first port, without faults, and seen by the kernel."""
        self.engine.options.faults = []
        self.engine.port = "1-1"
        self.engine.initial = personality
        seen = "$(dmesg | grep -c 'New USB device found')"
        devices = self.shell(f"echo {seen}").strip()
        self.engine.power_on()
        arrived = f"[ {seen} -gt {devices} ] && {LISTED} > /dev/null"
        self.shell(f"for i in $(seq 100); do {arrived} && udevadm settle && exit; sleep 0.1; done; exit 1")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("usb"))
    with UsbPorts(host.sockets, [host.engine, host.twin]):
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
    assert host.kit("start_loader", "/tmp/loader.bin")["identity"]["cpu-id"] == host.engine.board.identify()["cpu-id"]
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
