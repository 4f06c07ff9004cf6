# SPDX-License-Identifier: MIT
"""The Linux transports on a made-up board: a directory with /sys, /proc and /dev, and this host's shell."""

from __future__ import annotations

import functools
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.store import Store, check, create, reader
from lab.firmware.transports import linux, quiesce, serial, sparse, ssh
from lab.firmware.transports.farblock import FarBlockTransport
from lab.firmware.transports.linux import LinuxTransport

BackUp = Callable[..., create.Result]


class Target:
    """The files of a running board."""

    def __init__(self, root: Path, board: boards.Board, media: Path, *, mounted: str = "ro") -> None:
        self.root, self.media = root, media
        base = root / "sys/firmware/devicetree/base"
        for directory in ("sys/class/block", "sys/class/mtd", "proc/self", "proc/device-tree", "dev", "sys/class/net"):
            (root / directory).mkdir(parents=True)
        emmc = self._controller(base, "mmc@fe2e0000", "fe2e0000.mmc") / "mmc_host/mmc0/mmc0:0001"
        disk = self._disk(emmc / "block/mmcblk0", media / "emmc.img", "179:0")
        (emmc / "type").write_text("MMC\n")
        (emmc / "cid").write_text("88010353aabbccddeeff001122334455\n")
        (disk / "device").symlink_to(emmc)
        for number in (0, 1):
            boot = self._disk(disk / f"mmcblk0boot{number}", media / f"emmc.boot{number}.img", f"179:{8 + number}")
            (boot / "force_ro").write_text("1\n")
        part = self._disk(disk / "mmcblk0p2", None, "179:2")
        (part / "partition").write_text("2\n")
        (part / "size").write_text("100\n")
        flash = self._controller(base, "spi@fe2b0000/flash@0", "fe2b0000.spi") / "mtd/mtd0"
        flash.mkdir(parents=True)
        for name, value in (("size", (media / "spi.img").stat().st_size), ("erasesize", 4096), ("type", "nor")):
            (flash / name).write_text(f"{value}\n")
        (root / "sys/class/mtd/mtd0").symlink_to(flash)
        (root / "dev/mtd0").symlink_to(media / "spi.img")
        (root / "proc/device-tree/serial-number").write_bytes(b"c0ffee1234567890\0")
        (root / "proc/device-tree/compatible").write_bytes("\0".join(board.compatible).encode() + b"\0")
        (root / "proc/cmdline").write_text("root=PARTUUID=1 console=ttyS2\n")
        (root / "proc/self/mountinfo").write_text(
            f"22 1 179:2 / / {mounted},relatime shared:1 - ext4 /dev/root {mounted}\n"
        )
        otp = root / "sys/bus/nvmem/devices/rockchip-otp0"
        otp.mkdir(parents=True)
        (otp / "nvmem").write_bytes(bytes(7) + bytes(range(1, 17)) + bytes(9))

    def _controller(self, base: Path, node: str, device: str) -> Path:
        (base / node).mkdir(parents=True)
        path = self.root / "sys/devices/platform" / device
        path.mkdir(parents=True)
        (path / "of_node").symlink_to(base / node)
        return path

    def _disk(self, path: Path, image: Path | None, number: str) -> Path:
        path.mkdir(parents=True)
        (path / "dev").write_text(number + "\n")
        if image:
            (path / "size").write_text(f"{image.stat().st_size // 512}\n")
            (self.root / "dev" / path.name).symlink_to(image)
        (self.root / "sys/class/block" / path.name).symlink_to(path)
        return path


@pytest.fixture
def target(tmp_path: Path, board: boards.Board, drill: Path) -> Target:
    return Target(tmp_path / "target", board, drill)


def local(target: Target) -> ssh.SshRemote:
    remote = ssh.SshRemote("here", prefix=["sh", "-c"])
    remote.root = str(target.root)
    return remote


def test_media_are_found_by_controller(target: Target, board: boards.Board) -> None:
    transport = LinuxTransport(board, local(target))
    found = {info.name: info for info in transport.storages()}
    assert list(found) == ["spi", "emmc", "emmc.boot0", "emmc.boot1"]
    assert found["spi"].size == 1 << 20 and found["spi"].block == 4096
    assert found["emmc"].controller == 0xFE2E0000 and not found["emmc"].mounted
    identity = transport.identify()
    assert identity["cpu-id"] == bytes(range(1, 17)).hex()
    assert identity["emmc-cid:emmc"].startswith("88010353")
    assert identity["dt-serial"] == "c0ffee1234567890"
    assert not any("mmcblk" in value for value in identity.values())


def test_backup_over_a_shell(
    target: Target, board: boards.Board, store: Store, back_up: BackUp, tmp_path: Path
) -> None:
    made = back_up(LinuxTransport(board, local(target)))
    assert made.manifest.verified and made.manifest.complete
    for info in ("spi", "emmc", "emmc.boot0"):
        reader.extract(store, made.manifest, info, tmp_path / "out.img")
        assert (tmp_path / "out.img").read_bytes() == (target.media / f"{info}.img").read_bytes()


def test_mounted_root_is_not_verified(
    tmp_path: Path, board: boards.Board, drill: Path, store: Store, meter: object
) -> None:
    target = Target(tmp_path / "target", board, drill, mounted="rw")
    transport = LinuxTransport(board, local(target))
    assert next(i for i in transport.storages() if i.name == "emmc").mounted == ("/",)
    whole = create.create(store, board, transport, regions.make(board, transport), meter)  # type: ignore[arg-type]
    assert whole.manifest.consistency == "crash" and not whole.manifest.verified
    plan = regions.make(board, transport, firmware_only=True)
    firmware = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert firmware.manifest.verified and not firmware.manifest.complete


@pytest.mark.parametrize("python", [True, False])
def test_zeros_are_not_sent(
    target: Target, board: boards.Board, store: Store, meter: object, tmp_path: Path, python: bool
) -> None:
    """Zero runs cost a letter each; content, also where a piece is half zeros, comes whole."""
    image = target.media / "emmc.img"
    with image.open("r+b") as stream:
        stream.seek((30 << 20) + 70_000)
        stream.write(os.urandom(3_000))
    remote = local(target)
    transport = LinuxTransport(board, remote)
    assert transport.has_python
    transport.has_python = python
    plan = regions.make(board, transport, ["emmc"])
    before = remote.received
    made = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert made.manifest.verified
    reader.extract(store, made.manifest, "emmc", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    content = image.read_bytes()
    data = sum(65536 for at in range(0, 40 << 20, 65536) if content[at : at + 65536] != bytes(65536))
    assert remote.received - before < (data + (3 << 20) if python else 16 << 20) < 40 << 20


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (b"D12", "ended early"),
        (b"ZX", "garbled"),
        (b"ZZX", "digest"),
        (b"ZZH" + b"0" * 64, "digest"),
        (b"ZZ", "ended early"),
    ],
)
def test_a_damaged_stream_is_noticed(stream: bytes, words: str) -> None:
    unpacker = sparse.Unpacker(iter([stream]), 8, 4, "board")
    with pytest.raises(KitError, match=words) as caught:
        unpacker.take(8)
    assert caught.value.code == ExitCode.LINK


class Freezer:
    """Programs that say what would be frozen; the real ones would freeze this host."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> None:
        self.log, self.memory = root / "freezer.log", root / "memory"
        programs = root / "programs"
        for directory in (programs, self.memory):
            directory.mkdir()
        script = (
            f'#!/bin/sh\necho "${{0##*/}} $*" >> {self.log}\ncase "$2" in *{refuses or "nothing"}*) exit 1;; esac\n'
        )
        for name in ("fsfreeze", "mount", "python3"):
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def run(self, script: str) -> bytes:
        return subprocess.run(["sh", "-c", script], check=True, capture_output=True, timeout=20).stdout


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_file_systems_stand_still_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer = Freezer(tmp_path, monkeypatch)
    with quiesce.hold(freezer.run, str(freezer.memory), ["/", "/a b", "/a b/c"]) as held:
        assert held.mounts == {"/a b/c": "frozen", "/a b": "frozen", "/": "frozen"}
        assert freezer.lines() == ["fsfreeze -f /a b/c", "fsfreeze -f /a b", "fsfreeze -f /"]
    assert held.kept
    assert {"fsfreeze -u /a b/c", "fsfreeze -u /a b", "fsfreeze -u /"} <= set(freezer.lines())
    wait_for(lambda: not list(freezer.memory.iterdir()))


def test_an_error_thaws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer = Freezer(tmp_path, monkeypatch)
    with pytest.raises(KeyboardInterrupt), quiesce.hold(freezer.run, str(freezer.memory), ["/data"]):
        raise KeyboardInterrupt
    assert "fsfreeze -u /data" in freezer.lines()


def test_the_board_thaws_itself_when_the_link_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer, dead = Freezer(tmp_path, monkeypatch), False
    monkeypatch.setattr(quiesce, "GUARD_SECONDS", 1)

    def run(script: str) -> bytes:
        if dead:
            raise KitError(ExitCode.LINK, "gone")
        return freezer.run(script)

    with quiesce.hold(run, str(freezer.memory), ["/data"]) as held:
        dead = True
        wait_for(lambda: "fsfreeze -u /data" in freezer.lines())
    assert not held.kept


def test_signs_of_life_keep_the_guard_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer = Freezer(tmp_path, monkeypatch)
    monkeypatch.setattr(quiesce, "GUARD_SECONDS", 2)
    monkeypatch.setattr(quiesce, "BEAT_SECONDS", 0.2)
    with quiesce.hold(freezer.run, str(freezer.memory), ["/data"]) as held:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            held.beat()
            time.sleep(0.1)
        assert "fsfreeze -u /data" not in freezer.lines()
    assert held.kept


def test_what_cannot_be_frozen_is_made_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for mount refuses nothing but a path of its own second argument."""
    freezer = Freezer(tmp_path, monkeypatch, refuses="boot")
    for name in ("fsfreeze", "python3"):
        path = tmp_path / "programs" / name
        path.write_text(path.read_text().replace('"$2"', '"$*"'))
    with quiesce.hold(freezer.run, str(freezer.memory), ["/boot", "/data"]) as held:
        assert held.mounts == {"/boot": "read-only", "/data": "frozen"}
    assert held.kept and "mount -o remount,rw /boot" in freezer.lines()


def test_one_that_cannot_stand_still_lets_all_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezer = Freezer(tmp_path, monkeypatch, refuses="busy")
    for path in (tmp_path / "programs").iterdir():
        path.write_text(path.read_text().replace('"$2"', '"$*"'))
    with quiesce.hold(freezer.run, str(freezer.memory), ["/busy", "/data"]) as held:
        assert held.mounts == {}
        assert "fsfreeze -u /data" in freezer.lines()
    assert not held.kept


def test_digest_is_computed_on_the_board(target: Target, board: boards.Board, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = LinuxTransport(board, local(target))
    monkeypatch.setattr(linux.LinuxMedium, "read", None)
    medium = transport.open("spi")
    import hashlib

    data = (target.media / "spi.img").read_bytes()
    assert medium.digest(512, 99_840) == hashlib.sha256(data[512 : 512 + 99_840]).hexdigest()
    transport.has_sha256 = False
    assert medium.digest(0, 512) is None


def test_boot_partition_is_unlocked_and_locked_again(target: Target, board: boards.Board) -> None:
    transport = LinuxTransport(board, local(target))
    lock = target.root / "sys/class/block/mmcblk0boot0/force_ro"
    medium = transport.open("emmc.boot0", write=True)
    assert lock.read_text() == "0\n"
    medium.write(512, b"\x5a" * 512)
    medium.close()
    assert lock.read_text() == "1\n"
    assert (target.media / "emmc.boot0.img").read_bytes()[512:1024] == b"\x5a" * 512
    assert (target.media / "emmc.boot0.img").stat().st_size == 65536


def test_other_board_is_refused(target: Target) -> None:
    with pytest.raises(KitError, match="radxa,rock-5-itx") as caught:
        LinuxTransport(boards.load("orangepi-5"), local(target))
    assert caught.value.code == ExitCode.REFUSED


def test_board_that_restarts_while_it_is_read(target: Target, board: boards.Board, store: Store, meter: object) -> None:
    transport = LinuxTransport(board, local(target))
    plan = regions.make(board, transport, ["emmc"])
    os.truncate(target.media / "emmc.img", 30 << 20)
    with pytest.raises(KitError) as caught:
        create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.LINK
    assert store.entries() == []


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@", ExitCode.REFUSED),
        ("root@x: Permission denied (publickey).", ExitCode.LINK),
        ("ssh: connect to host x port 22: Connection refused", ExitCode.LINK),
    ],
)
def test_ssh_errors_are_explained(stderr: str, code: ExitCode) -> None:
    remote = ssh.SshRemote("x", prefix=["sh", "-c", f"echo '{stderr}' >&2; exit 255 #"])
    with pytest.raises(KitError) as caught:
        remote.run("true")
    assert caught.value.code == code and caught.value.hint


@pytest.mark.parametrize("destination", ["-oProxyCommand=x", "a b", "host;rm", "user@"])
def test_destination_cannot_be_an_option(destination: str) -> None:
    with pytest.raises(KitError) as caught:
        ssh.SshRemote(destination)
    assert caught.value.code == ExitCode.USAGE


def test_silence_ends(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "SILENCE_SECONDS", 0.2)
    pieces = local(target).stream("sleep 30")
    assert pieces is not None
    started = time.monotonic()
    with pytest.raises(KitError, match="silent"):
        next(pieces)
    with pytest.raises(KitError, match="no answer"):
        local(target).run("sleep 30", timeout=0.2)
    assert time.monotonic() - started < 5


def test_a_medium_in_another_hosts_reader(
    target: Target, board: boards.Board, store: Store, meter: object, tmp_path: Path
) -> None:
    """As `block:` on this host: backup, restore, identity; not while it is mounted there."""
    (target.root / "sys/class/block/mmcblk0/device/wwid").write_text("t10.CARD 0001\n")
    open_it = functools.partial(FarBlockTransport, storage="sd", kind="sd")
    transport = open_it(local(target), "/dev/mmcblk0")
    assert transport.name == "block+ssh:here,/dev/mmcblk0" and transport.storages()[0].mounted == ("/",)
    assert transport.identify()["disk-serial:sd"] == "t10.card 0001"
    with pytest.raises(KitError, match="mounted at /") as caught:
        transport.open("sd", write=True)
    assert caught.value.code is ExitCode.REFUSED
    (target.root / "proc/self/mountinfo").write_text("")
    transport = open_it(local(target), "/dev/mmcblk0")
    made = create.create(store, board, transport, regions.make(board, transport), meter)  # type: ignore[arg-type]
    assert made.manifest.verified and not any("mmcblk" in value for value in made.manifest.identity.values())
    image = (target.media / "emmc.img").read_bytes()
    reader.extract(store, made.manifest, "sd", tmp_path / "out.img")
    assert (tmp_path / "out.img").read_bytes() == image
    medium = transport.open("sd", write=True)
    data = os.urandom(70_000 // 512 * 512)
    medium.write(1 << 20, data)
    medium.reopen()
    assert medium.read(1 << 20, len(data)) == data == (target.media / "emmc.img").read_bytes()[1 << 20 :][: len(data)]
    for path, words in (("/dev/mmcblk7", "is not there"), ("/dev/x;reboot", "not a path"), ("sda", "not a path")):
        with pytest.raises(KitError, match=words):
            open_it(local(target), path)
    transport.has_python = False
    with pytest.raises(KitError, match="no python3 there"):
        transport.open("sd", write=True)


def test_a_reader_that_is_in_use_is_not_written(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other host's kernel says so, whatever holds it."""
    (target.root / "proc/self/mountinfo").write_text("")
    remote = local(target)
    transport = FarBlockTransport(remote, "/dev/mmcblk0", "sd", "sd")
    run = remote.run

    def busy(script: str, *rest: bytes, timeout: float = 30) -> bytes:
        said = b"OSError: [Errno 16] Device or resource busy: '/dev/mmcblk0'\n"
        return said if "O_EXCL" in script else run(script, *rest, timeout=timeout)

    monkeypatch.setattr(remote, "run", busy)
    with pytest.raises(KitError, match="is in use") as caught:
        transport.open("sd", write=True)
    assert caught.value.code is ExitCode.REFUSED


class Console:
    """A shell on a pseudo terminal behind the interface of a serial port, with noise when asked for."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.child = subprocess.Popen(
            ["sh"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env={**os.environ, "PS1": "# "}
        )
        os.close(slave)
        self.damage = 0

    def read(self, size: int) -> bytes:
        if not select.select([self.master], [], [], 0.2)[0]:
            return b""
        data = os.read(self.master, size)
        if self.damage and len(data) > 100:
            self.damage -= 1
            data = data[:50] + bytes([data[50] ^ 1]) + data[51:]
        return data

    def write(self, data: bytes) -> int:
        return os.write(self.master, data)

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
            os.close(self.master)


@pytest.fixture
def console() -> Iterator[Console]:
    made = Console()
    yield made
    made.close()


def test_checksum_is_cksum() -> None:
    for data in (b"", b"a", os.urandom(300)):
        printed = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout.split()[0]
        assert serial.cksum(data) == int(printed)


def test_backup_over_a_console(
    target: Target, board: boards.Board, console: Console, store: Store, meter: object
) -> None:
    remote = serial.SerialRemote(console, "serial:test")
    remote.root = str(target.root)
    transport = LinuxTransport(board, remote)
    console.damage = 2
    plan = regions.make(board, transport, ["spi"])
    made = create.create(store, board, transport, plan, meter)  # type: ignore[arg-type]
    assert made.manifest.verified and console.damage == 0
    reader.extract(store, made.manifest, "spi", target.root / "out.img")
    assert (target.root / "out.img").read_bytes() == (target.media / "spi.img").read_bytes()
    medium = transport.open("emmc", write=True)
    data = os.urandom(20_480)
    medium.write(1 << 20, data)
    assert (target.media / "emmc.img").read_bytes()[1 << 20 : (1 << 20) + len(data)] == data


@pytest.mark.parametrize("kind", ["socket", "rfc2217"])
def test_a_console_of_another_host(target: Target, board: boards.Board, console: Console, kind: str) -> None:
    """What an exporter's serial server speaks, at its URL."""
    import serial as pyserial
    from serial.rfc2217 import PortManager

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        lines = PortManager(pyserial.serial_for_url("loop://"), connection.makefile("wb", buffering=0))
        while True:
            ready = select.select([connection, console.master], [], [])[0]
            if connection in ready:
                data = connection.recv(65536)
                if not data:
                    return
                console.write(b"".join(lines.filter(data)) if kind == "rfc2217" else data)
            if console.master in ready:
                data = os.read(console.master, 65536)
                connection.sendall(b"".join(lines.escape(data)) if kind == "rfc2217" else data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    option = "?ign_set_control" if kind == "rfc2217" else ""
    url = f"{kind}://127.0.0.1:{listener.getsockname()[1]}{option}"
    remote = serial.SerialRemote(serial.open_port(url, 1_500_000), f"serial:{url}")
    remote.root = str(target.root)
    transport = LinuxTransport(board, remote)
    spi = (target.media / "spi.img").read_bytes()
    assert transport.open("spi").read(3000, 40_000) == spi[3000:43_000]
    transport.close()
    thread.join(10)
    listener.close()
    assert not thread.is_alive()


def test_dead_console(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def read(self, size: int) -> bytes:
            time.sleep(0.01)
            return b""

        def write(self, data: bytes) -> int:
            return len(data)

        def close(self) -> None:
            return

    monkeypatch.setattr(serial.SerialRemote, "step", 0)
    monkeypatch.setattr(serial, "ATTEMPTS", 1)
    with pytest.raises(KitError, match="no shell answers"):
        serial.SerialRemote(Dead(), "serial:x")


SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@pytest.mark.skipif(not os.access(SSHD, os.X_OK), reason="needs an sshd to start privately")
def test_over_a_real_ssh(target: Target, board: boards.Board, store: Store, meter: object, tmp_path: Path) -> None:
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"HostKey {tmp_path}/host", f"AuthorizedKeysFile {tmp_path}/authorized", "StrictModes no", "UsePAM no"]
    settings += [f"ListenAddress 127.0.0.1:{port}", "PidFile none"]
    (tmp_path / "config").write_text("\n".join(settings) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    child = subprocess.Popen([SSHD, "-D", "-e", "-f", tmp_path / "config"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        known = tmp_path / "known"
        options = ["-i", str(tmp_path / "user"), "-o", f"UserKnownHostsFile={known}", "-F", "none"]
        remote = ssh.SshRemote(f"127.0.0.1:{port}", options)
        remote.root = str(target.root)
        transport = LinuxTransport(board, remote)
        made = create.create(store, board, transport, regions.make(board, transport), meter)  # type: ignore[arg-type]
        assert made.manifest.verified
        check.check_store(store, made.manifest, meter)  # type: ignore[arg-type]
        transport.close()
        assert not list(Path("/tmp").glob(f"npulab-ssh-*/{port}*"))
        known.write_text(f"[127.0.0.1]:{port} " + (tmp_path / "user.pub").read_text())
        with pytest.raises(KitError) as caught:
            ssh.SshRemote(f"127.0.0.1:{port}", options).run("true")
        assert caught.value.code == ExitCode.REFUSED, caught.value.message
    finally:
        child.terminate()
        child.wait(10)
    assert threading.active_count() < 20
