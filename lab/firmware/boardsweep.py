# SPDX-License-Identifier: MIT
"""Power cuts on the virtual board: its own drivers write a real file system's way, and QEMU dies at a chosen write.

The board's eMMC is a file; a small library preloaded into QEMU counts the reads and writes of that file and ends QEMU
at the n-th, a write half done (powercut.c). What the guest still had in its caches is lost, as when the plug is pulled.
Then the board boots again from what is on the chip and the run is resumed, or rolled back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lab import boards, process
from lab.cache import Cache, digest, file_digest
from lab.errors import ExitCode, KitError
from lab.firmware import regions
from lab.firmware.flash import bmap, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.store import Store, check, create
from lab.firmware.sweep import PHASES, Cutter, PowerCut, Quiet, Sweep, cut_at
from lab.firmware.transports.linux import LinuxTransport
from lab.firmware.transports.ssh import SshRemote
from lab.output import Meter, Output
from lab.virt import chips
from lab.virt.background import ssh_options, wait_for_ssh
from lab.virt.board import BoardConfig, VirtualBoard
from lab.virt.select import board_config, find_artifacts

BOARD, DTB = "rock-5-itx", "rk3588-rock-5-itx"
SOURCE = Path(__file__).with_name("powercut.c")
EMMC_SIZE = 32 << 20
BOOT_SECONDS = 120.0
PAYLOAD = 17 << 20
"""Where on the eMMC's user area the images differ: past the loader's region."""


def build_library(cache: Cache | None = None) -> Path:
    """The library; compiled once per content."""
    compiler = process.require("gcc", "gcc")

    def make(directory: Path) -> None:
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        command: list[str | Path] = [compiler, *flags, "-o", directory / "powercut.so", SOURCE]
        process.run(command, stage="compiling the power cut", log=directory / "log")

    return (cache or Cache()).entry("powercut", digest(file_digest(SOURCE)), make) / "powercut.so"


class CutPage:
    """The numbers that the library and we share."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(32))
        with path.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), 32)

    def count(self, which: str) -> int:
        """Reads or writes so far."""
        found: int = struct.unpack_from("<Q", self._map, 0 if which == "write" else 16)[0]
        return found

    def set(self, which: str, ahead: int | None) -> None:
        """Cut at the ``ahead``-th access from now (1 is the next); None: not at all."""
        number = 0 if ahead is None else self.count(which) + ahead
        struct.pack_into("<Q", self._map, 8 if which == "write" else 24, number)

    def close(self) -> None:
        """Let go of the page."""
        self._map.close()


class CutBoard:
    """A virtual board that can be cut off. ``image`` is its eMMC."""

    def __init__(self, root: Path, config: BoardConfig, image: Path) -> None:
        self.image, self.root = image, root
        self.page = CutPage(root / "page")
        wrapper = root / "qemu"
        wrapper.write_text(
            f"#!/bin/sh\nLD_PRELOAD={build_library()} NPULAB_CUT_FILE={image} NPULAB_CUT_PAGE={root / 'page'} "
            f'exec {config.qemu} "$@"\n'
        )
        wrapper.chmod(0o700)
        self._config = dataclasses.replace(config, qemu=wrapper, emmc=image, model=())
        self._board: VirtualBoard | None = None
        self._transport: LinuxTransport | None = None
        self.boots = 0

    def power_on(self) -> None:
        """Boot, until its ssh server greets."""
        self.power_off()
        self.boots += 1
        results = self.root / "logs"
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        self._board = board = VirtualBoard(self._config, results)
        board.start()
        board.power_on()
        deadline = time.monotonic() + BOOT_SECONDS
        while not wait_for_ssh(board.ssh_port, 0.1):
            board.read(0.2)
            if time.monotonic() >= deadline:
                raise KitError(ExitCode.INFRASTRUCTURE, f"the virtual board did not boot in {BOOT_SECONDS:.0f} s")

    def power_off(self) -> None:
        """End what is left of it."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._board is not None:
            self._board.stop()
            self._board = None

    def reach(self, board: boards.Board) -> LinuxTransport:
        """A transport to it, one per boot."""
        if self._transport is None:
            assert self._board is not None and self._config.ssh_key is not None
            remote = SshRemote(f"root@127.0.0.1:{self._board.ssh_port}", ssh_options(self._config.ssh_key))
            self._transport = LinuxTransport(board, remote)
        return self._transport

    def close(self) -> None:
        """Nothing stays."""
        self.power_off()
        self.page.close()


class _Lab:
    """A running board, its verified backup, and the plan of an image that differs in ``changed`` bytes."""

    def __init__(self, root: Path, config: BoardConfig, changed: int) -> None:
        self.board, self.store = boards.load(BOARD), Store(root / "store")
        draw = random.Random(3588)
        image = root / "emmc.img"
        with image.open("wb") as stream:
            for at in (0, 2 * chips.EMMC_BOOT_SIZE + PAYLOAD):
                stream.seek(at)
                stream.write(draw.randbytes(max(changed, 1 << 16)))
            stream.truncate(EMMC_SIZE)
        self.old = image.read_bytes()
        content, at = draw.randbytes(changed), 2 * chips.EMMC_BOOT_SIZE + PAYLOAD
        self.new = self.old[:at] + content + self.old[at + changed :]
        target, ranges = root / "new.img", root / "new.img.bmap"
        with target.open("wb") as stream:  # holes but for what changes: the block map has that alone
            stream.seek(PAYLOAD)
            stream.write(content)
            stream.truncate(EMMC_SIZE - 2 * chips.EMMC_BOOT_SIZE)
        ranges.write_bytes(bmap.make(target))
        self.device = CutBoard(root, config, image)
        self.device.power_on()
        transport = self.device.reach(self.board)
        self.regions = regions.make(self.board, transport, ["emmc"])
        create.create(self.store, self.board, transport, self.regions, Quiet())
        wish = Wish("emmc", target, ranges)
        self.plan = session.prepare(self.store, self.board, transport, wish, Quiet(), "")
        self._number = 0

    def fresh(self) -> Session:
        """The same plan as a new run, on a board that holds the old content."""
        self._number += 1
        made = Session(self.store, dataclasses.replace(self.plan, id=f"{self.plan.id}-{self._number}"))
        made.save()
        return made

    def steps(self, action: Callable[[], object]) -> int:
        """Writes to the chip that an action makes."""
        before = self.device.page.count("write")
        action()
        return self.device.page.count("write") - before

    def until_cut(self, action: Callable[[], object]) -> bool:
        """Whether the power failed in it; afterwards the board runs again, uncut."""
        cut = False
        try:
            action()
        except KitError as error:
            if error.code is not ExitCode.LINK:
                raise
            cut = True
        finally:
            self.device.page.set("write", None)
            self.device.page.set("read", None)
        if cut:
            self.device.power_on()
        return cut

    def content(self) -> bytes:
        """What is on the chip."""
        return self.device.image.read_bytes()


def _flash_case(lab: _Lab, phase: str, end: str, number: int, result: Sweep) -> None:
    run, quiet = lab.fresh(), Quiet()
    if phase == "rollback":
        run.run(lab.device.reach(lab.board), quiet)
    lab.device.page.set("write", number)
    write = run.rollback if phase == "rollback" else run.run
    what = f"virtual board, {phase}, cut {number}, {end}"
    if not lab.until_cut(partial(write, lab.device.reach(lab.board), quiet)):
        result.judge(False, f"{what}: the power did not fail")
        return
    again = Session.load(lab.store, run.plan.id)
    if end == "resume":
        again.run(lab.device.reach(lab.board), quiet)
        good = lab.content() == lab.new
        again.rollback(lab.device.reach(lab.board), quiet)
    else:
        again.rollback(lab.device.reach(lab.board), quiet)
        good = True
    good = good and lab.content() == lab.old
    check.check_store(lab.store, lab.store.load(lab.plan.backup), quiet)
    result.judge(good, what)


def _backup_case(lab: _Lab, root: Path, number: int, result: Sweep) -> None:
    """The board loses its power at its n-th read."""
    store = Store(root)
    make = partial(create.create, store, lab.board, plan=lab.regions, meter=Quiet())
    what = f"virtual board, backup, cut at read {number}"
    lab.device.page.set("read", number)
    cut = lab.until_cut(lambda: make(transport=lab.device.reach(lab.board)))
    whole = all(entry.manifest is not None and entry.manifest.verified for entry in store.entries())
    made = make(transport=lab.device.reach(lab.board)).manifest
    check.check_store(store, made, Quiet())
    result.judge(cut and whole and made.verified and lab.content() == lab.old, what)
    shutil.rmtree(root)


def _host_case(lab: _Lab, root: Path, number: int, result: Sweep) -> None:
    """This host loses its power at the n-th change of the store's disk, while it backs the board up."""
    store, cutter = Store(root), Cutter(number)
    make = partial(create.create, store, lab.board, plan=lab.regions, meter=Quiet())
    try:
        with cut_at(cutter):
            make(transport=lab.device.reach(lab.board))
    except PowerCut:
        cutter.lose()
    whole = all(entry.manifest is not None and entry.manifest.verified for entry in store.entries())
    made = make(transport=lab.device.reach(lab.board)).manifest
    check.check_store(store, made, Quiet())
    result.judge(whole and made.verified, f"virtual board, backup, the host's cut {number}")
    shutil.rmtree(root)


@contextlib.contextmanager
def _running(root: Path, config: BoardConfig, changed: int) -> Iterator[_Lab]:
    lab: _Lab | None = None
    try:
        lab = _Lab(root, config, changed)
        yield lab
    finally:
        if lab is not None:
            lab.device.close()


def power_cuts(
    root: Path, config: BoardConfig, meter: Meter, *, changed: int, cuts: int | None, seed: int = 3588
) -> Sweep:
    """Cut at every write of an image that changes ``changed`` bytes, or at ``cuts`` random ones of all phases.

    Phases: flash then resume, flash then rollback, rollback then rollback, and backup at the board's reads and at the
    host's writes (a tenth of ``cuts`` each, at least one).
    """
    result, draw = Sweep(), random.Random(seed)
    with _running(root, config, changed) as lab:
        run = lab.fresh()
        transport = lab.device.reach(lab.board)
        steps = {"flash": lab.steps(lambda: run.run(transport, Quiet()))}
        steps["rollback"] = lab.steps(lambda: run.rollback(transport, Quiet()))
        cases = [(phase, end, n) for phase, end in PHASES for n in range(1, steps[phase] + 1)]
        if cuts is not None:
            per_phase = [draw.sample([c for c in cases if c[:2] == p], -(-cuts // len(PHASES))) for p in PHASES]
            cases = [case for chosen in per_phase for case in chosen][:cuts]
        others = max(1, len(cases) // 10)
        reads = sorted(draw.randrange(1, 400) for _ in range(others))
        changes = sorted(draw.randrange(1, 30) for _ in range(others))
        total = len(cases) + 2 * others
        for phase, end, number in cases:
            _flash_case(lab, phase, end, number, result)
            meter.update(result.cases, total, f"{lab.device.boots} boots, {result.lost} losses")
        for case, numbers in ((_backup_case, reads), (_host_case, changes)):
            for number in numbers:
                case(lab, root / "again", number, result)
                meter.update(result.cases, total, f"{lab.device.boots} boots, {result.lost} losses")
    return result


def config(kernel: str, out: Output) -> BoardConfig:
    """What the sweeps boot: the cached artifact set, with the tree of a board that has an eMMC."""
    artifacts = find_artifacts(os.environ.get("NPULAB_ARTIFACTS"), kernel, out)
    return board_config(artifacts, DTB)
