# SPDX-License-Identifier: MIT
"""A board that starts from its eMMC: backup, a new kernel, a broken one, and back, with the commands a user types.

New kernels are the board's own with a few bytes changed: another version line, or a parameter's name spoilt so that it
finds no root file system and panics.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from commands import Commands

from lab import cli
from lab.assemble import board as board_set
from lab.assemble import emmc
from lab.assemble.kernel import KernelOptions
from lab.cache import file_digest
from lab.commands.virt import ssh_command
from lab.errors import ExitCode
from lab.firmware.flash.target import Target
from lab.output import Output
from lab.virt import chips
from lab.virt.background import find_board, power_cycle, wait_for_ssh
from lab.virt.select import find_artifacts

BOARD, NAME = "rock-5-itx", "firmware-loop"
DTB = f"rk3588-{BOARD}"
VERSION = (b"#1 SMP PREEMPT", b"#2 SMP PREEMPT")
NO_ROOT = (b"\0root=\0", b"\0rxxt=\0")
"""The name by which the kernel knows its parameter (linux init/do_mounts.c)."""

pytestmark = pytest.mark.timeout(1800)


def changed_set(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """An artifact set with other bytes in its kernel."""
    shutil.copytree(source, target)
    raw = (target / "Image").read_bytes()
    assert old in raw and len(old) == len(new)
    manifest = json.loads((target / "manifest.json").read_text())
    for name in manifest["files"]:
        if Path(name).name == "Image":
            (target / name).unlink()
            (target / name).write_bytes(raw.replace(old, new))
            manifest["files"][name] = {"sha256": file_digest(target / name), "size": len(raw)}
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


class Loop(Commands):
    """The board, its eMMC's file, and a reader that the eMMC can be put into."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        super().__init__(root, capture)
        self.emmc, self.card = root / "emmc.img", root / "reader"
        emmc.make(find_artifacts(None, "fast", Output(quiet=True)), DTB, self.emmc, root / "log")
        self.emmc_before, self.identity = self.emmc.read_bytes(), dict[str, str]()
        options = KernelOptions(rocket_module=False, jobs=os.cpu_count() or 1)
        self.set = board_set.assemble(BOARD, options, None, Output(quiet=True)).root

    def start(self, *options: str) -> None:
        """Power from nothing, and what the chip says of itself, which is the same in a reader."""
        self.run(
            "virt", "up", "--name", NAME, "--dtb", DTB, "--emmc", str(self.emmc), "--boot", "emmc-bootcount", *options
        )
        self.identity = self.run("board", "probe", "--board", BOARD, "--via", f"virt:{NAME}")["identity"]

    def back_up(self) -> None:
        """The chip in the reader, as it was before the board's first start."""
        self.write_card(self.emmc_before)
        made = self.run("backup", "create", "--board", BOARD, "--via", f"file:{self.card}", "--storage", "emmc")
        assert made["verified"]

    def restore(self) -> None:
        """The chip in the reader again, and the backup on it, bit by bit."""
        self.run("virt", "down", NAME)
        self.write_card(self.emmc.read_bytes())
        assert self.on_card() != self.emmc_before
        self.run("backup", "restore", "latest", "--via", f"file:{self.card}", "--yes")
        assert self.on_card() == self.emmc_before

    def shell(self, script: str) -> str:
        """A script on the board."""
        command = [*ssh_command(find_board(NAME)), script]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def write_card(self, raw: bytes) -> None:
        """The eMMC out of the board and in a reader: the same chip, reached as files."""
        self.card.mkdir(exist_ok=True)
        size = chips.EMMC_BOOT_SIZE
        parts = {"emmc.boot0": raw[:size], "emmc.boot1": raw[size : 2 * size], "emmc": raw[2 * size :]}
        media = {}
        for name, data in parts.items():
            (self.card / f"{name}.img").write_bytes(data)
            media[name] = {"kind": "emmc", "size": len(data), "block": 512, "controller": 0xFE2E0000}
        document = {"board": BOARD, "identity": self.identity, "storages": media}
        (self.card / "board.json").write_text(json.dumps(document))

    def on_card(self) -> bytes:
        """The reader's content as the eMMC's file has it."""
        return b"".join((self.card / f"{name}.img").read_bytes() for name in ("emmc.boot0", "emmc.boot1", "emmc"))

    def plan(self, artifacts: Path) -> str:
        """A run's id."""
        made = self.run("flash", "plan", "--board", BOARD, "--via", f"virt:{NAME}", "--artifacts", str(artifacts))
        return str(made["run"])

    def flash(self, run: str, code: int = 0) -> dict[str, Any]:
        """Carry it out."""
        return self.run("flash", "run", run, "--via", f"virt:{NAME}", "--yes", code=code)


@pytest.fixture
def loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Loop]:
    try:
        yield Loop(tmp_path, capsys)
    finally:
        cli.main(["virt", "--quiet", "down", NAME])


def test_from_backup_to_a_new_kernel_a_broken_one_and_back(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = changed_set(loop.set, tmp_path / "good", *VERSION)
    broken = changed_set(loop.set, tmp_path / "broken", *NO_ROOT)
    via = f"virt:{NAME}"

    # no backup, no flashing
    loop.start()
    refused = loop.run("flash", "plan", "--board", BOARD, "--via", via, "--artifacts", str(good), code=ExitCode.REFUSED)
    assert "npulab backup create" in refused["error"]["hint"]
    loop.back_up()

    # the power goes while the kernel is brought over; the same command goes on where it was
    run = loop.plan(good)
    put = Target._run
    pieces = 0

    def cut(self: Target, script: str, stdin: bytes = b"", timeout: float = 120) -> str:
        nonlocal pieces
        pieces += "dd of=" in script and bool(stdin)
        if pieces == 4:
            power_cycle(find_board(NAME))
            pieces += 1
        return put(self, script, stdin, timeout)

    monkeypatch.setattr(Target, "_run", cut)
    assert "npulab flash run" in loop.flash(run, code=ExitCode.LINK)["error"]["hint"]
    monkeypatch.setattr(Target, "_run", put)
    assert loop.run("flash", "show", run)["state"] == "writing"
    assert wait_for_ssh(find_board(NAME).ssh_port, 300)
    assert loop.flash(run)["state"] == "committed"
    assert "#2 SMP" in loop.shell("cat /proc/version")
    assert "npulab: the entry before this one is the default again" in loop.shell("dmesg")

    # a kernel that dies before its first process: the loader's count leads back
    second = loop.plan(broken)
    failed = loop.flash(second, code=ExitCode.FAILED)
    assert "was given up" in failed["error"]["message"]
    assert "#2 SMP" in loop.shell("cat /proc/version")
    assert loop.run("flash", "show", second)["state"] == "fell-back"
    assert "Kernel panic - not syncing" in find_board(NAME).log.read_text(errors="replace")
    loop.run("flash", "rollback", second, "--via", via, "--yes")

    # back to the first kernel, with nothing left of the second
    assert loop.run("flash", "rollback", run, "--via", via, "--yes")["state"] == "rolled-back"
    assert "#1 SMP" in loop.shell("cat /proc/version")
    left = loop.shell("find /boot /usr/lib/npulab/npulab-* /usr/lib/modules -type f 2>/dev/null; true").split()
    assert sorted(left) == sorted(
        ["/boot/extlinux/extlinux.conf", "/boot/factory/Image", f"/boot/factory/{DTB}.dtb", "/boot/failures"]
    )

    loop.restore()


def test_a_whole_image_starts_from_the_emmc_and_is_taken_back(loop: Loop, tmp_path: Path) -> None:
    user = loop.emmc_before[2 * chips.EMMC_BOOT_SIZE :]
    image = tmp_path / "new.wic.zst"
    assert VERSION[0] in user
    image.write_bytes(zstandard.compress(user.replace(*VERSION)))
    loop.start("--rescue")  # from its own disk, so that nothing is mounted from the eMMC
    loop.back_up()
    plan = ["--board", BOARD, "--via", f"virt:{NAME}", "--storage", "emmc", "--image", str(image)]
    run = str(loop.run("flash", "plan", *plan)["run"])
    done = loop.run("flash", "run", run, "--via", f"virt:{NAME}", "--power", "virt", "--yes")
    assert done["state"] == "committed"
    assert "#2 SMP" in loop.shell("cat /proc/version")
    loop.restore()
