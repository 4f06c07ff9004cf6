# SPDX-License-Identifier: MIT
"""Power cuts on the virtual board, one at a time: its own drivers write, and QEMU dies at a chosen access of its eMMC.

Then the board boots again with what is on the chip, and the run is resumed or rolled back there.
`lab.firmware.campaign` has all cuts of a sweep run, on several boards at a time.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.cutboard import CutBoard
from lab.firmware.flash import bmap, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.store import Store, check, create
from lab.firmware.sweep import Cutter, PowerCut, Quiet, cut_at
from lab.firmware.transports.linux import LinuxTransport
from lab.output import Output
from lab.virt import chips
from lab.virt.board import BoardConfig
from lab.virt.select import board_config, find_artifacts

BOARD, DTB = "rock-5-itx", "rk3588-rock-5-itx"
EMMC_SIZE = 32 << 20
PAYLOAD = 17 << 20
"""Where on the eMMC's user area the images differ: past the loader's region."""
TRIES = 3
"""How often a case begins anew when this machine, not the cut, got in its way."""

KINDS = {
    "flash-resume": ("flash, the board's power at a write", "flash run again"),
    "flash-rollback": ("flash, the board's power at a write", "flash rollback"),
    "rollback": ("rollback, the board's power at a write", "flash rollback again"),
    "backup-board": ("backup, the board's power at a read", "backup create again"),
    "backup-host": ("backup, the host's power at a change of the store", "backup create again"),
}
"""What is cut, and the command that follows."""


@dataclass(frozen=True)
class Form:
    """A sweep: ``pieces`` (offset on the user area, length) is what the new image changes, whole sectors.

    ``cuts`` random writes are cut, or without a number every write. Backups are cut at every change of the store (or a
    tenth of ``cuts``), and at a tenth as many reads of the board.
    """

    name: str
    pieces: tuple[tuple[int, int], ...]
    cuts: int | None = None
    seed: int = 3588


SMALL = Form("every write of a small image", ((PAYLOAD, 8192),))
LARGE = Form("random writes of a large image", ((PAYLOAD, 512 << 10), (PAYLOAD + (3 << 20), 512 << 10)), 500)


@dataclass(frozen=True)
class Case:
    """A cut: ``kind`` of `KINDS`, at the access of that ``number``."""

    kind: str
    number: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case: ``problem`` is empty when nothing was lost. ``repeats``: times that it began anew."""

    case: Case
    problem: str
    boots: int
    operations: int
    seconds: float
    repeats: int = 0


class CutLab:
    """A running board, its verified backup, and the plan of an image that differs in the form's pieces.

    Between cases the chip holds the old image, or the new one of ``flashed``.
    """

    def __init__(self, root: Path, config: BoardConfig, form: Form) -> None:
        self.root, self.board, self.store = root, boards.load(BOARD), Store(root / "store")
        draw, user = random.Random(form.seed), 2 * chips.EMMC_BOOT_SIZE
        image = root / "emmc.img"
        with image.open("wb") as stream:
            for at, length in ((0, 1 << 16), *((user + at, max(length, 1 << 16)) for at, length in form.pieces)):
                stream.seek(at)
                stream.write(draw.randbytes(length))
            stream.truncate(EMMC_SIZE)
        self.old = image.read_bytes()
        new = bytearray(self.old)
        target, ranges = root / "new.img", root / "new.img.bmap"
        with target.open("wb") as stream:  # holes but for what changes: the block map has that alone
            for at, length in form.pieces:
                content = draw.randbytes(length)
                new[user + at : user + at + length] = content
                stream.seek(at)
                stream.write(content)
            stream.truncate(EMMC_SIZE - user)
        self.new = bytes(new)
        ranges.write_bytes(bmap.make(target))
        self.operations = 0
        self.flashed: Session | None = None
        self._number = 0
        self.device = CutBoard(root, config, image)
        try:
            self.device.power_on()
            transport = self.reach()
            self.regions = regions.make(self.board, transport, ["emmc"])
            create.create(self.store, self.board, transport, self.regions, Quiet())
            wish = Wish("emmc", target, ranges)
            self.plan = session.prepare(self.store, self.board, transport, wish, Quiet(), "")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Switch the board off."""
        self.device.close()

    def reach(self) -> LinuxTransport:
        """A transport to the running board."""
        return self.device.reach(self.board)

    def _fresh(self) -> Session:
        """The same plan as a new run."""
        self._number += 1
        made = Session(self.store, dataclasses.replace(self.plan, id=f"{self.plan.id}-{self._number}"))
        made.save()
        return made

    def _run(self, run: Session) -> None:
        self.operations += 1
        run.run(self.reach(), Quiet())

    def _roll_back(self, run: Session) -> None:
        self.operations += 1
        run.rollback(self.reach(), Quiet())

    def _create(self, store: Store) -> create.Result:
        self.operations += 1
        return create.create(store, self.board, self.reach(), self.regions, Quiet())

    def _settle(self, *, new: bool) -> None:
        """The image that a case begins with, written without a cut."""
        if new and self.flashed is None:
            run = self._fresh()
            self._run(run)
            self.flashed = run
        elif not new and self.flashed is not None:
            self._roll_back(self.flashed)
            self.flashed = None

    def measure(self) -> dict[str, int]:
        """Accesses that the operations make: writes of a flash and a rollback, reads and store changes of a backup."""
        page, found = self.device.page, {}
        self._settle(new=False)
        for name, new in (("flash", True), ("rollback", False)):
            before = page.count("write")
            self._settle(new=new)
            found[name] = page.count("write") - before
        before, cutter, store = page.count("read"), Cutter(-1), Store(self.root / "again")
        with cut_at(cutter):
            self._create(store)
        shutil.rmtree(store.root)
        return {**found, "reads": page.count("read") - before, "changes": cutter.count}

    def _cut(self, which: str, number: int, action: Callable[[], object]) -> bool:
        """Whether the power failed in it; if so, the board boots again from what is on the chip."""
        with self.device.armed(which, number):
            try:
                action()
            except KitError as error:
                if error.code is not ExitCode.LINK:
                    raise
                if not self.device.dead():
                    raise KitError(
                        ExitCode.INFRASTRUCTURE, f"the link failed, not the power: {error.message}", error.hint
                    ) from error
            else:
                return False
        self.device.power_on()
        return True

    def _flash_resume(self, number: int) -> str:
        self._settle(new=False)
        run = self._fresh()
        if not self._cut("write", number, lambda: self._run(run)):
            return "the power did not fail"
        self.flashed = Session.load(self.store, run.plan.id)
        self._run(self.flashed)
        return self._unlike(self.new)

    def _flash_rollback(self, number: int) -> str:
        self._settle(new=False)
        run = self._fresh()
        if not self._cut("write", number, lambda: self._run(run)):
            return "the power did not fail"
        self._roll_back(Session.load(self.store, run.plan.id))
        return self._unlike(self.old)

    def _rollback(self, number: int) -> str:
        self._settle(new=True)
        assert self.flashed is not None
        run = self.flashed
        if not self._cut("write", number, lambda: self._roll_back(run)):
            return "the power did not fail"
        self._roll_back(Session.load(self.store, run.plan.id))
        self.flashed = None
        return self._unlike(self.old)

    def _unlike(self, wanted: bytes) -> str:
        """What is wrong with the chip or the store; empty when nothing is."""
        if self.device.image.read_bytes() != wanted:
            return "the medium is not what it should be"
        check.check_store(self.store, self.store.load(self.plan.backup), Quiet())
        return ""

    def _backed_up(self, store: Store) -> str:
        """The backup made anew after a cut: what is wrong with it, or with what the cut left in the store."""
        if not all(entry.manifest is not None and entry.manifest.verified for entry in store.entries()):
            return "the cut left a backup that is not whole"
        made = self._create(store).manifest
        check.check_store(store, made, Quiet())
        if not made.verified:
            return "the backup after the cut is not verified"
        return self._unlike(self.old)

    def _backup_board(self, number: int) -> str:
        self._settle(new=False)
        store = Store(self.root / "again")
        if not self._cut("read", number, lambda: self._create(store)):
            return "the power did not fail"
        return self._backed_up(store)

    def _backup_host(self, number: int) -> str:
        self._settle(new=False)
        store, cutter = Store(self.root / "again"), Cutter(number - 1)
        try:
            with cut_at(cutter):
                self._create(store)
        except PowerCut:
            cutter.lose()
        else:
            return "the power did not fail"
        return self._backed_up(store)

    def run(self, case: Case) -> Outcome:
        """One case. What this machine is to blame for (too busy for a timeout) makes it begin anew, a few times."""
        steps: dict[str, Callable[[int], str]] = {
            "flash-resume": self._flash_resume,
            "flash-rollback": self._flash_rollback,
            "rollback": self._rollback,
            "backup-board": self._backup_board,
            "backup-host": self._backup_host,
        }
        boots, operations, start = self.device.boots, self.operations, time.monotonic()
        for repeats in range(TRIES):
            try:
                problem = steps[case.kind](case.number)
            except KitError as error:
                self._reset()
                if error.code in (ExitCode.LINK, ExitCode.INFRASTRUCTURE) and repeats + 1 < TRIES:
                    continue
                if error.code is ExitCode.INFRASTRUCTURE:
                    raise
                problem = f"{error.message} (exit code {int(error.code)})"
            else:
                if problem:
                    self._reset()
            break
        shutil.rmtree(self.root / "again", ignore_errors=True)
        seconds = round(time.monotonic() - start, 2)
        return Outcome(case, problem, self.device.boots - boots, self.operations - operations, seconds, repeats)

    def _reset(self) -> None:
        """After a case that ended wrong: the old image, by hand, and a fresh boot."""
        self.device.power_off()
        self.device.image.write_bytes(self.old)
        self.flashed = None
        shutil.rmtree(self.root / "again", ignore_errors=True)
        self.device.power_on()


def config(kernel: str, out: Output) -> BoardConfig:
    """What the sweeps boot: the cached artifact set, with the tree of a board that has an eMMC."""
    artifacts = find_artifacts(os.environ.get("NPULAB_ARTIFACTS"), kernel, out)
    return board_config(artifacts, DTB)
