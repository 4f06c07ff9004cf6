# SPDX-License-Identifier: MIT
"""Backup, break, restore on a running virtual board: real SPI NOR and eMMC drivers, ssh, the commands a user types."""

from __future__ import annotations

import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Commands

from lab import cli
from lab.commands.virt import ssh_command
from lab.errors import ExitCode
from lab.firmware.transports.linux import LinuxMedium
from lab.virt import chips
from lab.virt.background import find_board, wait_for_ssh
from lab.virt.qmp import Qmp

BOARD = "rock-5-itx"
NAME = "firmware-test"
EMMC_SIZE = 32 << 20
LINK_SECONDS = 60.0
"""In which a board that is gone must be noticed: the longest silence of a link is 30 s; room for a busy machine."""
ERASE_FIRST_BLOCK = (
    "import fcntl,os,struct; fcntl.ioctl(os.open('/dev/mtd0',os.O_RDWR),0x40084d02,struct.pack('II',0,0x10000))"
)
"""MEMERASE of linux include/uapi/mtd/mtd-abi.h."""


class Bench(Commands):
    """A virtual board whose flash chips are files of this test."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(root, capture)
        self.nor, self.emmc = root / "nor.img", root / "emmc.img"
        rng = random.Random(3)
        loader = b"RKNS" + rng.randbytes(200_000)
        self.nor.write_bytes((b"\xff" * 0x8000 + loader).ljust(chips.NOR_SIZE, b"\xff"))
        with self.emmc.open("wb") as file:
            file.write(rng.randbytes(100_000))
            file.seek(chips.EMMC_BOOT_SIZE)
            file.write(rng.randbytes(100_000))
            file.truncate(EMMC_SIZE)

    def shell(self, script: str) -> str:
        """Run a script on the board."""
        command = [*self.ssh, script]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def start(self) -> None:
        """Switch it on."""
        chips_of = ["--nor", str(self.nor), "--emmc", str(self.emmc)]
        self.run("virt", "up", "--name", NAME, "--dtb", f"rk3588-{BOARD}", *chips_of)
        self.ssh = ssh_command(find_board(NAME))

    def wait(self) -> None:
        """Until it is back from a restart that was held up."""
        monitor("cont")
        assert wait_for_ssh(find_board(NAME).ssh_port, 120)

    def stop(self) -> None:
        """Switch it off: what the guest has written is in the files."""
        self.run("virt", "down", NAME)


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    bench = Bench(tmp_path, capsys)
    bench.start()
    try:
        yield bench
    finally:
        cli.main(["virt", "--quiet", "down", NAME])


def monitor(*commands: str) -> None:
    """What QEMU's monitor does to the running board."""
    board = find_board(NAME)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(board.runtime / "monitor.sock"))
        qmp = Qmp(connection)
        for command in commands:
            qmp.execute(command)


def reset() -> None:
    """The reset button. Held up until `Bench.wait`: a board that is back before ssh gives up is none that was away."""
    monitor("stop", "system_reset")


class Failing:
    """Presses a button of the board while the n-th piece of a medium is on its way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, at: int, press: Callable[[], None]) -> None:
        self.left, self.pressed, real = at, 0.0, getattr(LinuxMedium, method)

        def watched(medium: LinuxMedium, *given: Any) -> Any:
            self.left -= 1
            if not self.left:
                press()
                self.pressed = time.monotonic()
            return real(medium, *given)

        monkeypatch.setattr(LinuxMedium, method, watched)

    @property
    def seconds(self) -> float:
        """Since then."""
        assert self.pressed, "nothing failed"
        return time.monotonic() - self.pressed


def test_board_that_restarts_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset, and a power loss, while it is read and while it is written: said in time, and the same command goes on.

    The link's own timeouts bound the wait: 15 s without an answer of the board, 30 s without data.
    """
    via, medium = ("--via", f"virt:{NAME}"), ("--board", BOARD, "--storage", "emmc")
    seen = {entry["name"]: entry for entry in bench.run("board", "probe", "--board", BOARD, *via)["media"]}
    assert seen["spi"]["size"] == chips.NOR_SIZE
    assert seen["emmc"]["size"] == EMMC_SIZE - 2 * chips.EMMC_BOOT_SIZE
    assert seen["emmc.boot0"]["size"] == seen["emmc.boot1"]["size"] == chips.EMMC_BOOT_SIZE

    # restarts while it is read: no backup, least of all a verified one
    before = bench.emmc.read_bytes()
    with monkeypatch.context() as patch:
        failing = Failing(patch, "_exact", 12, reset)
        bench.run("backup", "create", *medium, *via, code=ExitCode.LINK)
        assert failing.seconds < LINK_SECONDS
    assert bench.run("backup", "list")["backups"] == []
    bench.wait()
    assert bench.run("backup", "create", *medium, *via)["verified"]
    assert not list((bench.root / "store/partial").iterdir()), "the partial one became the backup"

    # loses its power while it is written
    image = bench.root / "new.img"
    draw = random.Random(7)
    wanted = before[2 * chips.EMMC_BOOT_SIZE :][: 18 << 20] + draw.randbytes(3 << 20)
    image.write_bytes(wanted)
    run = bench.run("flash", "plan", *medium, *via, "--image", str(image))["run"]
    with monkeypatch.context() as patch:
        failing = Failing(patch, "write", 3, bench.stop)
        failed = bench.run("flash", "run", run, *via, "--yes", code=ExitCode.LINK)
        assert failing.seconds < LINK_SECONDS and f"npulab flash run {run}" in failed["error"]["hint"]
    torn = bench.emmc.read_bytes()[2 * chips.EMMC_BOOT_SIZE :][: len(wanted)]
    assert torn not in (wanted, before[2 * chips.EMMC_BOOT_SIZE :][: len(wanted)]), "in the middle"
    bench.start()
    assert bench.run("flash", "run", run, *via, "--yes")["state"] == "verified"

    # restarts while it is rolled back
    with monkeypatch.context() as patch:
        failing = Failing(patch, "write", 2, reset)
        bench.run("flash", "rollback", run, *via, "--yes", code=ExitCode.LINK)
        assert failing.seconds < LINK_SECONDS
    bench.wait()
    bench.run("flash", "rollback", run, *via, "--yes")
    bench.stop()
    assert bench.emmc.read_bytes() == before


def test_broken_loader_is_restored(bench: Bench) -> None:
    before = bench.nor.read_bytes()
    made = bench.run("backup", "create", "--board", BOARD, "--via", f"virt:{NAME}", "--storage", "spi")
    assert made["verified"]
    # erase the block with the loader's start, as a wrong flash_erase does
    bench.shell(f'python3 -c "{ERASE_FIRST_BLOCK}"')
    assert bench.nor.read_bytes()[0x8000:0x8004] == b"\xff" * 4
    restore = ("backup", "restore", "latest", "--via", f"virt:{NAME}", "--storage", "spi", "--yes")
    bench.stop()
    broken = bench.nor.read_bytes()
    # the same content in another chip is another board: the loader tells its serial number
    first, bench.nor = bench.nor, bench.root / "twin.img"
    bench.nor.write_bytes(broken)
    bench.start()
    refused = bench.run(*restore, "--trust-identity", code=ExitCode.REFUSED)
    assert "dt-serial" in refused["error"]["message"]
    bench.stop()
    assert bench.nor.read_bytes() == broken
    bench.nor = first
    bench.start()
    bench.run(*restore)  # the same board, although it was off meanwhile
    bench.stop()
    assert bench.nor.read_bytes() == before


def test_boot_partitions_are_written_in_spite_of_their_lock(bench: Bench) -> None:
    before = bench.emmc.read_bytes()
    made = bench.run("backup", "create", "--board", BOARD, "--via", f"virt:{NAME}", "--storage", "emmc")
    assert made["verified"]
    bench.shell("echo 0 > /sys/block/mmcblk0boot0/force_ro; head -c 65536 /dev/zero > /dev/mmcblk0boot0; sync")
    bench.shell("echo 1 > /sys/block/mmcblk0boot0/force_ro")
    bench.run("backup", "restore", "latest", "--via", f"virt:{NAME}", "--storage", "emmc", "--yes")
    assert re.match(r"1\s", bench.shell("cat /sys/block/mmcblk0boot0/force_ro"))
    bench.stop()
    assert bench.emmc.read_bytes() == before


def test_another_virtual_board_is_another_board(bench: Bench) -> None:
    """Same content, other chip: its serial number tells, and nothing is written to it."""
    made = bench.run("backup", "create", "--board", BOARD, "--via", f"virt:{NAME}", "--storage", "emmc")
    assert made["verified"]
    bench.stop()
    before = bench.emmc.read_bytes()
    image, bench.emmc = bench.root / "new.img", bench.root / "twin.img"
    image.write_bytes(bytes(24 << 20))
    bench.emmc.write_bytes(before)
    bench.start()
    via = ("--via", f"virt:{NAME}")
    wish = ("--storage", "emmc", "--image", str(image))
    refused = bench.run("flash", "plan", "--board", BOARD, *via, *wish, code=ExitCode.REFUSED)
    assert "backup create" in refused["error"]["hint"]
    refused = bench.run("flash", "plan", "--board", BOARD, *via, *wish, "--backup", made["backup"], code=3)
    assert "emmc-cid:emmc" in refused["error"]["message"]
    refused = bench.run("backup", "restore", "latest", *via, "--yes", "--trust-identity", code=ExitCode.REFUSED)
    assert "emmc-cid:emmc" in refused["error"]["message"]
    bench.stop()
    assert bench.emmc.read_bytes() == before


BUSY = """
mount /dev/mmcblk0 /mnt || exit 1
( trap '' HUP; i=0; while :; do i=$((i + 1)); echo $i > /tmp/count
  head -c 40000 /dev/urandom > /mnt/f$((i % 9)); mkdir /mnt/d$i; rm -rf /mnt/d$((i - 9)); done
) < /dev/null > /dev/null 2>&1 &
"""


@pytest.mark.skipif(shutil.which("mke2fs") is None, reason="needs e2fsprogs")
def test_file_system_under_load_stands_still(bench: Bench) -> None:
    """The backup of a system at work is as clean as one that was shut down, and the work goes on."""
    user = bench.root / "user.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", user, "24M"], check=True)
    with bench.emmc.open("r+b") as chip:
        chip.seek(2 * chips.EMMC_BOOT_SIZE)
        chip.write(user.read_bytes())
    bench.shell("echo 3 > /proc/sys/vm/drop_caches")
    bench.shell(BUSY)
    create = ("backup", "create", "--board", BOARD, "--via", f"virt:{NAME}", "--storage", "emmc")
    made = bench.run(*create)
    assert made["verified"] and made["consistency"] == "quiesced"
    bench.run("backup", "restore", "latest", "--storage", "emmc", "--to", str(bench.root / "out"))
    checked = subprocess.run(
        ["e2fsck", "-fn", bench.root / "out/emmc.img"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    counts = [int(bench.shell("sleep 1; cat /tmp/count")) for _ in range(2)]
    assert counts[1] > counts[0], "thawed"
    refused = bench.run(*create, "--no-quiesce", code=ExitCode.MISMATCH)
    assert "written meanwhile" in refused["error"]["message"]
    states = [backup["consistency"] for backup in bench.run("backup", "list")["backups"]]
    assert states == ["quiesced", "crash"]
