# SPDX-License-Identifier: MIT
"""Sweeps over power failures on the stand-in: of this host while it backs up, of the board while it is written.

Each function returns counts; ``lost`` must be zero. The short forms run in the tests, the full ones in ``npulab bench
firmware``. Faults of the device are in `lab.firmware.faultsweep`, the virtual board in `lab.firmware.boardsweep`.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab.boards import Board
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.flash import session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.inprocess import EngineBus
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, check, create, disk, reader
from lab.firmware.transports.block import DrillTransport
from lab.firmware.transports.rockusb import RockusbTransport
from lab.output import Meter

PHASES = (("flash", "resume"), ("flash", "rollback"), ("rollback", "rollback"))
"""What is cut, and what is done afterwards."""


@dataclass
class Sweep:
    """``cases`` tried, ``lost`` of them ended wrong; ``problems`` says which."""

    cases: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Cases in which data, or the truth about it, was lost."""
        return len(self.problems)

    def judge(self, good: bool, what: str) -> None:
        """Count a case."""
        self.cases += 1
        if not good:
            self.problems.append(what)


class Quiet:
    """A meter for runs that nobody watches."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """Nothing to show."""


class PowerCut(BaseException):
    """The power is gone; nothing may catch this on the way."""


class Cutter:
    """Cuts at the n-th change of the disk, and halves the files that were not synced."""

    def __init__(self, at: int) -> None:
        self.left, self.count, self.unsynced = at, 0, set[Path]()

    def __call__(self, kind: str, path: Path) -> None:
        if self.count == self.left:
            raise PowerCut
        self.count += 1
        if kind == "write":
            self.unsynced.add(path)
        elif kind == "sync":
            self.unsynced.discard(path)

    def lose(self) -> None:
        """What was not synced is half there."""
        for path in self.unsynced:
            if path.exists():
                with path.open("r+b") as stream:
                    stream.truncate(path.stat().st_size // 2)


@contextmanager
def cut_at(cutter: Cutter) -> Iterator[None]:
    """Within the block the store's disk is cut."""
    disk.observer = cutter
    try:
        yield
    finally:
        disk.observer = None


def chosen_cuts(steps: int, count: int, seed: int) -> list[int]:
    """``count`` of ``steps`` steps at random, all different; repeated only when there are fewer steps."""
    draw = random.Random(seed)
    whole, rest = divmod(count, steps)
    return sorted([*range(steps)] * whole + draw.sample(range(steps), rest))


def backup_steps(root: Path, board: Board, size: int) -> int:
    """Changes of the store's disk that one backup makes."""
    make_board(root / "board", board, sizes={"spi": size, "emmc": 0, "sd": 0})
    transport, cutter = DrillTransport(root / "board"), Cutter(-1)
    with cut_at(cutter):
        create.create(Store(root / "store"), board, transport, regions.make(board, transport, ["spi"]), Quiet())
    shutil.rmtree(root / "store")
    return cutter.count


def flash_steps(root: Path, board: Board, size: int) -> int:
    """Writes that one flash run makes."""
    lab = FlashLab(root, board, size)
    engine = Engine(lab.root, "loader")
    run = lab.planned(lab.reach(engine))
    run.run(lab.reach(engine), Quiet())
    engine.close()
    return engine.writes


def backup_power_cuts(
    root: Path, board: Board, size: int, cuts: Iterable[int] | None = None, meter: Meter | None = None
) -> Sweep:
    """Cut the power while a backup is made, at every change of the store's disk or at the given ones."""
    result, image = Sweep(), root / "board"
    make_board(image, board, sizes={"spi": size, "emmc": 0, "sd": 0})
    good = (image / "spi.img").read_bytes()
    transport = DrillTransport(image)
    plan = regions.make(board, transport, ["spi"])
    for number in cuts if cuts is not None else range(10_000):
        store, cutter = Store(root / "store"), Cutter(number)
        try:
            with cut_at(cutter):
                create.create(store, board, transport, plan, Quiet())
            if cuts is None:
                break
        except PowerCut:
            cutter.lose()
        whole = all(entry.manifest is not None and entry.manifest.verified for entry in store.entries())
        made = create.create(store, board, transport, plan, Quiet()).manifest
        check.check_store(store, made, Quiet())
        reader.extract(store, made, "spi", root / "out.img")
        same = (root / "out.img").read_bytes() == good
        result.judge(whole and made.verified and same, f"backup, cut {number}")
        if meter:
            meter.update(result.cases, None, f"{result.lost} losses")
        shutil.rmtree(store.root)
    return result


class FlashLab:
    """A board with a NOR, its backup, and a new loader to flash."""

    def __init__(self, root: Path, board: Board, size: int) -> None:
        self.root, self.board, self.store = root / "board", board, Store(root / "store")
        none = {"emmc": 0, "sd": 0, "emmc.boot0": 0, "emmc.boot1": 0}
        make_board(self.root, board, sizes={"spi": size, **none})
        self.image = self.root / "spi.img"
        self.old = self.image.read_bytes()
        transport = self.reach(Engine(self.root, "loader"))
        create.create(self.store, board, transport, regions.make(board, transport), Quiet())
        self.loader = root / "loader.bin"
        self.loader.write_bytes(b"\xff" * 0x8000 + b"RKNS" + random.Random(7).randbytes(size // 2))
        raw = self.loader.read_bytes()
        self.digest = hashlib.sha256(raw).hexdigest()
        padded = raw + b"\xff" * (-len(raw) % 4096)
        self.new = padded + self.old[len(padded) :]

    def reach(self, engine: Engine) -> RockusbTransport:
        """A transport to a stand-in."""
        return RockusbTransport(self.board, Rockusb(EngineBus([engine])))

    def planned(self, transport: RockusbTransport) -> Session:
        """A run from the old content."""
        wish = Wish("spi", loader=self.loader, loader_sha256=self.digest)
        made = Session(self.store, session.prepare(self.store, self.board, transport, wish, Quiet(), ""))
        made.save()
        return made


def flash_power_cuts(
    root: Path, board: Board, size: int, cuts: Iterable[int] | None = None, meter: Meter | None = None
) -> Sweep:
    """Cut the board's power while it is flashed, or while it is rolled back; then resume, or roll back."""
    result, lab = Sweep(), FlashLab(root, board, size)
    for phase, end in PHASES:
        for number in cuts if cuts is not None else range(10_000):
            lab.image.write_bytes(lab.old)
            engine = Engine(lab.root, "loader")
            run = lab.planned(lab.reach(engine))
            if phase == "rollback":
                run.run(lab.reach(engine), Quiet())
            engine.options.faults = [faults.Fault("power", "write", number)]
            write = run.rollback if phase == "rollback" else run.run
            cut = _interrupted(partial(write, lab.reach(engine), Quiet()))
            if not cut and cuts is None:
                break
            engine.power_on()
            engine.options.faults = []
            again = Session.load(lab.store, run.plan.id)
            if end == "resume":
                again.run(lab.reach(engine), Quiet())
            else:
                again.rollback(lab.reach(engine), Quiet())
            wanted = lab.new if end == "resume" else lab.old
            result.judge(lab.image.read_bytes() == wanted, f"{phase}, cut {number}, {end}")
            if meter:
                meter.update(result.cases, None, f"{result.lost} losses")
            engine.close()
    check.check_store(lab.store, lab.store.load("latest"), Quiet())
    return result


def _interrupted(step: Callable[[], object]) -> bool:
    try:
        step()
    except KitError as error:
        if error.code is not ExitCode.LINK:
            raise
        return True
    return False
