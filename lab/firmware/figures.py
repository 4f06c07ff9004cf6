# SPDX-License-Identifier: MIT
"""The figures of backup and flash. Ratios compare with the plain tools on the same image in the same run."""

from __future__ import annotations

import dataclasses
import filecmp
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab import boards, process
from lab.figures import Figure
from lab.firmware import boardsweep, campaign, faultsweep, regions, sweep
from lab.firmware.flash import bmap, session
from lab.firmware.flash.session import Session, Wish
from lab.firmware.rockusb.client import Rockusb
from lab.firmware.standin import faults
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.media import make_board, noise
from lab.firmware.standin.server import Server
from lab.firmware.standin.shim import rkdeveloptool
from lab.firmware.standin.socketbus import SocketBus
from lab.firmware.store import Store, create, reader
from lab.firmware.sweep import Quiet, Sweep
from lab.firmware.transports.block import BlockTransport, DrillTransport
from lab.firmware.transports.rockusb import RockusbTransport
from lab.output import Meter, Output

COMMAND = "npulab bench firmware"
PAIRS = 5
"""Measurements of each side, in turn."""
MIB = 1 << 20


def _figure(name: str, value: float, unit: str, goal: float, at_least: bool = False, note: str = "") -> Figure:
    return Figure(name, value, unit, goal, COMMAND, at_least, note)


def _system_image(path: Path, size: int, content: int) -> None:
    """A sparse image with ``content`` bytes of data in it, half of them compressible."""
    with path.open("wb") as stream:
        stream.truncate(size)
        step = max(4 * MIB, size // max(1, content // (4 * MIB)))
        for number, at in enumerate(range(0, size - 4 * MIB, step)):
            block = noise(f"{number}", 2 * MIB)
            stream.seek(at // 4096 * 4096)
            stream.write(block + block[: MIB // 2] * 4)
        stream.flush()
        os.fsync(stream.fileno())


def _timed(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


@dataclass
class _Pairs:
    """Seconds of a plain tool and of ours, measured in turn: whatever else the machine does hits both."""

    plain: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Our speed as a part of the tool's, the best time of each."""
        return min(self.plain) / min(self.ours)

    def words(self) -> str:
        """The numbers behind it."""
        middle = statistics.median(plain / ours for plain, ours in zip(self.plain, self.ours, strict=True))
        best = f"best of {len(self.ours)}: {min(self.plain):.2f} s and ours {min(self.ours):.2f} s"
        return f"{best}; median of the pairs {middle:.2f}"


def _dd_zstd(image: Path, target: Path) -> None:
    zstd = process.require("zstd", "zstd")
    with target.open("wb") as sink:
        reader = subprocess.Popen(["dd", f"if={image}", "bs=1M", "status=none"], stdout=subprocess.PIPE)
        try:
            subprocess.run([zstd, "-T0", "-q", "-c"], stdin=reader.stdout, stdout=sink, check=True)
        finally:
            process.end(reader) if reader.poll() is None else reader.wait()


def _throughput(root: Path, quick: bool) -> list[Figure]:
    """Create against dd and zstd, the second backup, restore, flash against bmaptool."""
    board = boards.load("orangepi-5")
    size = (256 if quick else 2048) * MIB
    image, root_store = root / "card.img", root / "store"
    _system_image(image, size, size // 2)
    card = BlockTransport(image, "sd", "sd")
    plan = regions.make(board, card, ["sd"])
    pairs = _Pairs()
    for number in range(PAIRS):
        pairs.plain.append(_timed(lambda: _dd_zstd(image, root / "plain.zst")))
        fresh = Store(root / f"store{number}")
        pairs.ours.append(_timed(partial(create.create, fresh, board, card, plan, Quiet(), second_read=False)))
        shutil.rmtree(fresh.root)
    store = Store(root_store)
    note = f"{size // MIB} MiB, {pairs.words()}"
    rows = [_figure("backup create / dd | zstd -T0, speed", pairs.ratio, "ratio", 0.6, True, note=note)]
    rows += _flash_against_bmaptool(root, board, store, card, image)
    return rows


def _flash_against_bmaptool(
    root: Path, board: boards.Board, store: Store, card: BlockTransport, image: Path
) -> list[Figure]:
    """The same image on the same kind of target, both reading their input through the block map."""
    tool = shutil.which("bmaptool")
    if tool is None:
        missing = "bmaptool is not installed"
        return [Figure("flash / bmaptool copy, speed", 0.0, "ratio", 0.8, COMMAND, at_least=True, missing=missing)]
    plan = regions.make(board, card, ["sd"])
    create.create(store, board, card, plan, Quiet())
    new, block_map = root / "new.img", root / "new.img.bmap"
    shutil.copyfile(image, new)
    with new.open("r+b") as stream:
        for at in range(17 * MIB, new.stat().st_size - 8 * MIB, 8 * MIB):
            stream.seek(at)
            stream.write(random.Random(at).randbytes(4 * MIB))
    block_map.write_bytes(bmap.make(new))
    other = root / "other.img"
    with other.open("wb") as stream:
        stream.truncate(new.stat().st_size)
    copy = [tool, "copy", "--bmap", str(block_map), str(new), str(other)]
    wish, pairs = Wish("sd", new, block_map), _Pairs()
    for _ in range(PAIRS):
        pairs.plain.append(_timed(lambda: subprocess.run(copy, check=True, capture_output=True)))
        run = Session(store, session.prepare(store, board, card, wish, Quiet(), ""))
        run.save()
        pairs.ours.append(_timed(partial(run.run, card, Quiet())))
        back = run.rollback(card, Quiet())
    note = "ours checks the backup, compares, writes the half that differs and reads back; bmaptool writes all; "
    note += pairs.words()
    rows = [_figure("flash / bmaptool copy, speed", pairs.ratio, "ratio", 0.8, True, note=note)]
    changed = sum(4 * MIB for _ in range(17 * MIB, new.stat().st_size - 8 * MIB, 8 * MIB))
    rows.append(_figure("restore: bytes written per byte that differs", back.written / changed, "ratio", 1.5))
    return rows


def _sparse(root: Path, quick: bool) -> list[Figure]:
    """A large sparse medium, backed up twice with little changed, in a process whose memory is measured."""
    root.mkdir()
    size = 8 << 30
    image, store = root / "large.img", root / "store"
    _system_image(image, size, (128 if quick else 1024) * MIB)
    first = _child(image, store)
    with image.open("r+b") as stream:
        for at in range(10):
            stream.seek(at * 700 * MIB + 5000)
            stream.write(b"a few changed bytes")
    second = _child(image, store)
    return [
        _figure("second backup of a nearly unchanged 8 GiB image, new bytes", 100 * second[0] / first[0], "%", 2.0),
        _figure("peak memory of a backup of 8 GiB", max(first[1], second[1]) / 1024, "MiB", 200.0),
        _figure("backup with second read of a sparse 8 GiB image", first[2], "s", 600.0),
    ]


def _child(image: Path, store: Path) -> tuple[int, int, float]:
    """Bytes added, peak resident KiB, seconds."""
    command = [sys.executable, "-m", "lab.firmware.figures", str(image), str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    added, memory, seconds = done.stdout.split()
    return int(added), int(memory), float(seconds)


def main(arguments: list[str]) -> None:
    """Back up one image and print what it took; run by ``_child`` so that its memory is its own."""
    board = boards.load("orangepi-5")
    card = BlockTransport(Path(arguments[0]), "sd", "sd")
    start = time.monotonic()
    made = create.create(Store(Path(arguments[1])), board, card, regions.make(board, card, ["sd"]), Quiet())
    seconds = time.monotonic() - start
    assert made.manifest.verified
    status = Path("/proc/self/status").read_text()
    # Not getrusage: its maximum includes the parent's memory at the time of the fork.
    peak = int(status.partition("VmHWM:")[2].split()[0])
    print(made.added, peak, seconds)


RANDOM_CUTS = 500
"""Per operation, of a large image."""


def _sweeps(root: Path, quick: bool, meter: Meter) -> list[Figure]:
    """Power cuts on the stand-in: every step of a small image, with the full form 500 random ones of a large one."""
    board, small, large = boards.load("rock-5-itx-plus"), 256 << 10, 16 * MIB
    steps: list[tuple[str, Callable[[Path], Sweep]]] = [
        ("power cuts while backing up, every step", lambda path: sweep.backup_power_cuts(path, board, small)),
        (
            "power cuts while flashing and rolling back, every write",
            lambda path: sweep.flash_power_cuts(path, board, small),
        ),
    ]
    if not quick:

        def backup_cuts(path: Path) -> Sweep:
            cuts = sweep.chosen_cuts(sweep.backup_steps(path, board, large), RANDOM_CUTS, 3588)
            return sweep.backup_power_cuts(path, board, large, cuts, meter)

        def flash_cuts(path: Path) -> Sweep:
            (path / "count").mkdir()
            writes = sweep.flash_steps(path / "count", board, large)
            cuts = sweep.chosen_cuts(writes, -(-RANDOM_CUTS // len(sweep.PHASES)), 3588)
            return sweep.flash_power_cuts(path, board, large, cuts, meter)

        steps += [
            (f"power cuts while backing up 16 MiB, {RANDOM_CUTS} random", backup_cuts),
            (f"power cuts while flashing and rolling back 16 MiB, {RANDOM_CUTS} random", flash_cuts),
        ]
    return [_sweep_row(root, name, run) for name, run in steps]


def _sweep_row(root: Path, name: str, run: Callable[[Path], Sweep]) -> Figure:
    path = root / "sweep"
    path.mkdir()
    try:
        done = run(path)
    finally:
        shutil.rmtree(path)
    note = f"{done.cases} cases" + (f"; {'; '.join(done.problems[:3])}" if done.problems else "")
    return _figure(f"losses in: {name}", done.lost, "cases", 0, note=note)


def _faults(root: Path, out: Output, meter: Meter) -> list[Figure]:
    """Every fault at every operation, and the table of what came of it."""
    root.mkdir()
    done = faultsweep.fault_matrix(root, boards.load("rock-5-itx-plus"), 128 << 10, meter)
    out.table("what comes of a fault", ["operation", *faults.KINDS], list(done.rows()))
    note = f"{done.cases} cases" + (f"; {'; '.join(done.problems[:3])}" if done.problems else "")
    limit = faultsweep.LIMIT_SECONDS
    return [
        _figure("losses in: every fault at every operation", done.lost, "cases", 0, note=note),
        _figure("longest wait for a device with a fault, by the timeouts", done.waited, "s", limit),
    ]


QUICK = dataclasses.replace(boardsweep.SMALL, name="a few of a small image", cuts=3)


def _board_sweeps(root: Path, quick: bool, options: BoardOptions, out: Output, meter: Meter) -> list[Figure]:
    """Power cuts on the virtual board: few, or every write of a small image and random ones of a large one."""
    found = boardsweep.config("fast", out)
    large = dataclasses.replace(boardsweep.LARGE, cuts=options.cuts)
    forms = {"quick": QUICK} if quick else {"small": boardsweep.SMALL, "large": large}
    rows = []
    if options.state and not quick:
        out.note(f"stopped at any time, it goes on with --state {options.state}")
    for name, form in forms.items():
        path = root / "board"
        path.mkdir()
        state = options.state / f"{name}.jsonl" if options.state else None
        try:
            done = campaign.power_cuts(path, found, meter, form, state=state, at_a_time=1 if quick else campaign.BOARDS)
        finally:
            shutil.rmtree(path)
        title = f"power cuts on the virtual board, {form.name}"
        out.table(f"{title}: {done.words()}", campaign.COLUMNS, list(done.rows()))
        note = "; ".join([done.words(), *done.problems[:3]])
        rows.append(_figure(f"losses in: {title}", done.lost, "cases", 0, note=note))
    return rows


def _interoperability(root: Path) -> list[Figure]:
    """The same bytes by the distribution's rkdeveloptool and by our client, and by the plain restore commands."""
    root.mkdir()
    board = boards.load("rock-5-itx-plus")
    make_board(root / "board", board, sizes={"spi": MIB, "emmc": 32 * MIB, "sd": 0})
    rows = []
    if shutil.which("rkdeveloptool") and shutil.which("gcc"):
        with Server(root / "socket", [Engine(root / "board", "loader")]):
            done = rkdeveloptool(root / "socket", "rl", "0", str(32 * 2048), "tool.img", cwd=root)
            device = RockusbTransport(board, Rockusb(SocketBus(root / "socket")))
            ours = device.open("emmc").read(0, 32 * MIB)
            device.close()
        same = done.returncode == 0 and ours == (root / "tool.img").read_bytes()
        rows.append(_figure("images by rkdeveloptool and by us that differ", float(not same), "images", 0))
    transport, store = DrillTransport(root / "board"), Store(root / "store")
    made = create.create(store, board, transport, regions.make(board, transport), Quiet()).manifest
    script = "\n".join(reader.plain_restore(store, made))
    subprocess.run(["sh", "-c", script], cwd=root, check=True, timeout=300)
    names = [info.name for info in transport.storages()]
    differ = sum(not filecmp.cmp(root / f"{name}.img", root / "board" / f"{name}.img", shallow=False) for name in names)
    rows.append(_figure("media restored by zstd and dd alone that differ", differ, "media", 0, note=f"{len(names)}"))
    return rows


def _drill(root: Path) -> list[Figure]:
    """The stand-in's media come back from their backup bit by bit."""
    board = boards.load("rock-5-itx-plus")
    make_board(root / "board", board)
    transport, store = DrillTransport(root / "board"), Store(root / "store")
    seconds = _timed(lambda: create.create(store, board, transport, regions.make(board, transport), Quiet()))
    return [_figure("backup of a board with 16 MiB NOR and two 64 MiB media, verified", seconds, "s", 30.0)]


PARTS = ("sweeps", "faults", "board", "throughput", "sparse", "interoperability", "drill")


@dataclass(frozen=True)
class BoardOptions:
    """Of the power cuts on the virtual board: how many random ones, and the directory in which to keep what ran."""

    cuts: int = RANDOM_CUTS
    state: Path | None = None


def measure(out: Output, *, quick: bool, parts: Sequence[str] = (), board: BoardOptions | None = None) -> list[Figure]:
    """All figures or those of ``parts``; with ``quick`` on small images and with fewer cuts."""
    options = board or BoardOptions()
    rows: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="npulab-bench-") as name:
        root = Path(name)
        known: dict[str, Callable[[Meter], list[Figure]]] = {
            "sweeps": lambda meter: _sweeps(root, quick, meter),
            "faults": lambda meter: _faults(root / "faults", out, meter),
            "board": lambda meter: _board_sweeps(root, quick, options, out, meter),
            "throughput": lambda meter: _throughput(root, quick),
            "sparse": lambda meter: _sparse(root / "sparse", quick),
            "interoperability": lambda meter: _interoperability(root / "interoperability"),
            "drill": lambda meter: _drill(root / "drill"),
        }
        for title in parts or PARTS:
            with out.stage(title) as meter:
                rows += known[title](meter)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
