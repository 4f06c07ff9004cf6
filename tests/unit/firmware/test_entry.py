# SPDX-License-Identifier: MIT
"""A kernel beside the old one, on a board made of files: plan, stage, arm, trial with every outcome, commit, rollback.

The board's files are real, its shell is this host's; a power cycle is played: what extlinux.conf says next is what
``/proc`` shows afterwards.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fdt
import pytest

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.flash import bootcount, entry, extlinux, payload, power, trial
from lab.firmware.flash.entry import EntrySession, EntryWish
from lab.firmware.flash.power import Power
from lab.firmware.flash.target import Target
from lab.firmware.flash.trial import Limits, Trial
from lab.firmware.medium import Transport
from lab.firmware.standin.media import make_board
from lab.firmware.store import Store, create
from lab.firmware.transports.linux import LinuxTransport
from lab.firmware.transports.ssh import SshRemote
from lab.output import Output

CONF = """default old
timeout 30

label old
\tlinux /boot/vmlinuz
\tinitrd /boot/initrd
\tappend root=UUID=77 ro quiet
"""
OLD_VERSION = "Linux version 6.1.0 (a@b) (gcc) #1 SMP"
RELEASE = "7.3.4-test"
BANNER = f"Linux version {RELEASE} (npulab@npulab) (gcc 14) #1 SMP PREEMPT"
MODEL = "Radxa ROCK 5 ITX+"


def artifact_set(root: Path, board: boards.Board, *, compatible: str = "", kernel: bytes = b"") -> Path:
    """A set as `npulab build BOARD` leaves it, with a small kernel."""
    root.mkdir()
    tree = fdt.FDT(entries=[])  # the default is one list for all trees
    tree.set_property("compatible", [compatible or board.compatible[0], "rockchip,rk3588"])
    tree.set_property("model", MODEL)
    (root / "board.dtb").write_bytes(tree.to_dtb(version=17))
    image = kernel or b"MZ" + bytes(54) + b"ARM\x64" + bytes(5000) + BANNER.encode() + b"\n\0" + bytes(3 << 20)
    (root / "Image").write_bytes(image)
    module = root / "install/root/usr/lib/modules" / RELEASE / "npulab/rocket.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"\x7fELF module")
    files = {
        str(path.relative_to(root)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
    manifest = {"kind": "board-kernel", "board": board.name, "dtb": "board.dtb", "kernel": {"release": RELEASE}}
    (root / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    return root


class Machine:
    """A running board: its files, and what a power cycle makes of them."""

    def __init__(self, root: Path, board: boards.Board, media: Path) -> None:
        self.root, self.board = root, board
        self.boots = itertools.count(1)
        self.counts = False
        self.dead = self.silent = False
        self.version, self.smoke = BANNER, "true"
        base = root / "sys/firmware/devicetree/base/mmc@fe2e0000"
        platform = root / "sys/devices/platform/fe2e0000.mmc"
        base.mkdir(parents=True)
        platform.mkdir(parents=True)
        (platform / "of_node").symlink_to(base)
        disk = platform / "mmc_host/mmc0/mmc0:0001/block/mmcblk0"
        part = disk / "mmcblk0p1"
        part.mkdir(parents=True)
        (root / "sys/class/block").mkdir(parents=True)
        (root / "dev").mkdir()
        emmc = disk.parents[1]
        (disk / "device").symlink_to(emmc)
        (emmc / "type").write_text("MMC\n")
        (emmc / "cid").write_text("88010353aabbccddeeff001122334455\n")
        size = (media / "emmc.img").stat().st_size // 512
        for path, values in (
            (disk, {"dev": "179:0", "size": size}),
            (
                part,
                {"dev": "179:1", "partition": 1, "start": 32768, "size": size - 32768 - 64, "uevent": "PARTUUID=abc"},
            ),
        ):
            for name, value in values.items():
                (path / name).write_text(f"{value}\n")
            (root / "sys/class/block" / path.name).symlink_to(path)
        (root / "dev/mmcblk0").symlink_to(media / "emmc.img")
        for folder in ("proc/self", "proc/device-tree", "proc/sys/kernel/random", "boot/extlinux", "sys/class/mtd"):
            (root / folder).mkdir(parents=True)
        (root / "proc/device-tree/compatible").write_bytes("\0".join(board.compatible).encode() + b"\0")
        (root / "proc/device-tree/model").write_bytes(MODEL.encode() + b"\0")
        (root / "boot/extlinux/extlinux.conf").write_text(CONF)
        self.mounted("ro")
        self.started("root=UUID=77 ro quiet", OLD_VERSION)

    def mounted(self, mode: str) -> None:
        (self.root / "proc/self/mountinfo").write_text(f"22 1 179:1 / / {mode},relatime - ext4 /dev/root {mode}\n")

    def started(self, cmdline: str, version: str) -> None:
        (self.root / "proc/cmdline").write_text(cmdline + "\n")
        (self.root / "proc/version").write_text(version + "\n")
        (self.root / "proc/sys/kernel/osrelease").write_text(version.split()[2] + "\n")
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{next(self.boots)}\n")

    @property
    def conf(self) -> str:
        return (self.root / "boot/extlinux/extlinux.conf").read_text()

    def cycle(self, _: Transport | None) -> None:
        """The loader and, for a new entry, its first process."""
        if self.silent:
            self.silent = False
            return
        config = extlinux.parse(self.conf)
        fallback = False
        failures = self.root / "boot/failures"
        if self.counts:
            count = bootcount.parse(failures.read_bytes() if failures.exists() else b"").counted()
            failures.write_bytes(count.encode())
            fallback = count.available and count.count > bootcount.LIMIT
        label = config.attempts(fallback=fallback)[0]
        if "init=/usr/lib/npulab" not in label.append:
            self.started(label.append, OLD_VERSION if label.name == "old" else self.version)
        elif self.dead:
            self.cycle(None)  # it panics; panic= starts the loader again
        else:
            shutil.copy(
                self.root / "boot/extlinux/extlinux.conf.npulab-before", self.root / "boot/extlinux/extlinux.conf"
            )
            if failures.exists():
                failures.write_bytes(failures.read_bytes()[:3] + b"\0")
            self.started(label.append, self.version)

    def reach(self) -> LinuxTransport:
        remote = SshRemote("here", prefix=["sh", "-c"])
        remote.root = str(self.root)
        return LinuxTransport(self.board, remote)

    def tree(self) -> dict[str, bytes]:
        """Files that a user would see."""
        folders = [self.root / name for name in ("boot", "usr")]
        found = [path for folder in folders if folder.exists() for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


class Bench:
    """A machine with a verified backup, and a plan for it."""

    def __init__(self, machine: Machine, store: Store, artifacts: Path, meter: Any) -> None:
        self.machine, self.store, self.artifacts, self.meter = machine, store, artifacts, meter
        self.real = Power("a switch", machine.cycle, real=True)

    def plan(self, artifacts: Path | None = None) -> EntrySession:
        wish = EntryWish(artifacts or self.artifacts)
        board = self.machine.board
        plan = entry.prepare(self.store, board, self.machine.reach(), wish, self.meter, "npulab backup create")
        session = EntrySession(self.store, plan)
        session.save()
        return session

    def trial(self, session: EntrySession, switch: Power | None = None, smoke: str = "true") -> Trial:
        limits = Limits(boot_seconds=0.0, smoke=smoke)
        return Trial(session, self.machine.reach, switch or self.real, limits, Output(quiet=True))

    def flash(self, session: EntrySession, **options: Any) -> str:
        return self.trial(session, **options).flash(self.machine.reach()).state

    def rollback(self, session: EntrySession) -> int:
        return trial.rollback(session, self.machine.reach, self.real, Limits(0.0, ""), Output(quiet=True))


@pytest.fixture
def drill(tmp_path: Path, board: boards.Board) -> Path:
    """Smaller media than elsewhere: each test backs them up."""
    root = tmp_path / "board"
    make_board(root, board, sizes={"spi": 65536, "emmc": 18 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536})
    return root


@pytest.fixture
def machine(tmp_path: Path, board: boards.Board, drill: Path) -> Machine:
    return Machine(tmp_path / "machine", board, drill)


@pytest.fixture
def bench(
    machine: Machine,
    board: boards.Board,
    store: Store,
    back_up: Callable[..., create.Result],
    tmp_path: Path,
    meter: Any,
) -> Bench:
    assert back_up(machine.reach()).manifest.verified
    machine.mounted("rw")
    return Bench(machine, store, artifact_set(tmp_path / "set", board), meter)


def refused(bench: Bench, code: ExitCode = ExitCode.REFUSED, artifacts: Path | None = None) -> KitError:
    with pytest.raises(KitError) as caught:
        bench.plan(artifacts)
    assert caught.value.code is code
    return caught.value


def test_a_new_kernel_proves_itself(bench: Bench) -> None:
    machine, before = bench.machine, bench.machine.tree()
    run = bench.plan()
    assert run.plan.old_default == "old" and "NOT COVERED" in " ".join(run.plan.notes)
    assert machine.tree() == before, "a plan writes nothing"
    assert bench.flash(run) == "committed"
    config = extlinux.parse(machine.conf)
    label = config.label(run.plan.payload.name)
    assert label is not None and config.default == label.name and config.fallback == "old"
    assert config.labels[0] == extlinux.parse(CONF).labels[0], "the old entry is as it was"
    # without an initramfs the kernel has to know the device itself, and nothing of the trial is left
    assert label.append.split()[:4] == ["root=PARTUUID=abc", "ro", "quiet", "rootwait"] and "init=" not in label.append
    for file in run.plan.payload.files:
        assert (machine.root / run.plan.path(file)[1:]).read_bytes() == Path(file.source).read_bytes()
    assert (machine.root / "dev" / run.plan.alive).exists()
    assert run.journal.state == "committed"
    assert bench.rollback(run) == len(run.plan.payload.files)
    assert machine.tree() == before and run.journal.state == "rolled-back"
    assert (machine.root / "proc/version").read_text().strip() == OLD_VERSION
    with pytest.raises(KitError, match="rolled-back"):
        bench.flash(run)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("how", ["smoke", "version"])
def test_a_kernel_that_does_not_pass(bench: Bench, counts: bool, how: str) -> None:
    machine, before = bench.machine, bench.machine.tree()
    machine.counts = counts
    if counts:
        machine.cycle(None)
    run = bench.plan()
    if how == "version":
        machine.version = BANNER.replace("#1", "#9")
    with pytest.raises(KitError) as caught:
        bench.flash(run, smoke="echo no device; exit 4" if how == "smoke" else "true")
    assert caught.value.code is ExitCode.FAILED and run.journal.state == "fell-back"
    assert ("ended with 4: no device" if how == "smoke" else "another build") in caught.value.message
    assert machine.conf == CONF and "the board runs old again" in caught.value.message
    machine.version = BANNER
    assert bench.flash(run) == "committed", "a second try of the same run"
    bench.rollback(run)
    assert {name: data for name, data in machine.tree().items() if name != "boot/failures"} == before


def test_a_kernel_that_dies_before_its_first_process(bench: Bench) -> None:
    machine = bench.machine
    machine.counts = True
    machine.cycle(None)
    machine.dead = True
    run = bench.plan()
    assert "counts starts" in " ".join(run.plan.notes) and "NOT COVERED" not in " ".join(run.plan.notes)
    with pytest.raises(KitError, match="did not come up; the board runs old again") as caught:
        bench.flash(run)
    assert caught.value.code is ExitCode.FAILED and machine.conf == CONF
    assert bootcount.parse((machine.root / "boot/failures").read_bytes()) == bootcount.Count(2, available=False)


def test_a_silent_board_is_power_cycled_once_more(bench: Bench) -> None:
    bench.machine.silent = True
    run = bench.plan()
    assert bench.flash(run) == "committed"
    assert "silent" in run.journal.states()


def test_a_silent_board_without_a_switch(bench: Bench) -> None:
    bench.machine.silent = True
    run = bench.plan()
    with pytest.raises(KitError) as caught:
        bench.flash(run, switch=Power("a restart", bench.machine.cycle, real=False))
    assert caught.value.code is ExitCode.LINK and "loader's console" in caught.value.hint
    bench.machine.cycle(None)  # by hand
    assert bench.flash(run) == "committed"


def test_without_any_switch_it_ends_armed_and_goes_on(bench: Bench) -> None:
    run = bench.plan()
    none = Power("nothing", None, real=False)
    assert bench.flash(run, switch=none) == "armed"
    assert extlinux.parse(bench.machine.conf).default == run.plan.payload.name
    bench.machine.cycle(None)
    assert bench.machine.conf == CONF, "one start"
    assert bench.flash(run, switch=none) == "committed"


def test_after_a_start_that_nobody_watched(bench: Bench) -> None:
    run = bench.plan()
    assert bench.flash(run, switch=Power("nothing", None, real=False)) == "armed"
    bench.machine.cycle(None)
    bench.machine.cycle(None)
    with pytest.raises(KitError, match="did not come up"):
        bench.flash(run)
    assert run.journal.state == "fell-back"


def test_power_cuts_between_commands(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the last rename the old configuration stands; each time the same run goes on to the end."""
    machine, before = bench.machine, bench.machine.tree()
    none = Power("nothing", None, real=False)
    real = Target._run
    for number in (0, 1, 4, *range(7, 200, 11)):
        run = bench.plan()
        done = 0

        def cut(self: Target, script: str, stdin: bytes = b"", timeout: float = 120, at: int = number) -> str:
            nonlocal done
            if "command -v gzip" not in script:
                done += 1
                if done > at:
                    raise KitError(ExitCode.LINK, "cut")
            return real(self, script, stdin, timeout)

        monkeypatch.setattr(Target, "_run", cut)
        try:
            bench.flash(run, switch=none)
            finished = True
        except KitError as error:
            assert error.code is ExitCode.LINK and run.plan.id in error.hint
            finished = False
        monkeypatch.setattr(Target, "_run", real)
        assert machine.conf in (CONF, run.plan.armed)
        if number % 2 or finished:
            assert bench.flash(run, switch=none) == "armed"
            assert machine.conf == run.plan.armed
        if run.journal.state != "planned":
            bench.rollback(run)
        assert machine.tree() == before
        if finished:
            break
    assert finished and number > 15


def test_others_changes_of_the_configuration_stay(bench: Bench) -> None:
    run = bench.plan()
    assert bench.flash(run) == "committed"
    conf = bench.machine.root / "boot/extlinux/extlinux.conf"
    conf.write_text(conf.read_text() + "\nlabel theirs\n\tlinux /theirs\n")
    bench.rollback(run)
    found = extlinux.parse(bench.machine.conf)
    assert [label.name for label in found.labels] == ["old", "theirs"] and found.default == found.fallback == "old"


def test_what_a_plan_refuses(bench: Bench, tmp_path: Path, board: boards.Board) -> None:
    machine = bench.machine
    conf = machine.root / "boot/extlinux/extlinux.conf"
    conf.write_text(CONF.replace("timeout 30", "prompt 1"))
    assert "waits for a key" in refused(bench).message
    conf.write_text("label old\n\tlinux /k\n\tappend root=/dev/x\n")
    assert "no default entry" in refused(bench).message
    conf.write_text(CONF.replace("root=UUID=77 ", ""))
    assert "root device" in refused(bench).message
    conf.unlink()
    assert "no /boot/extlinux" in refused(bench).message
    conf.write_text(CONF)
    machine.mounted("ro")
    assert "read-only" in refused(bench).message
    (machine.root / "proc/self/mountinfo").write_text("22 1 0:20 / / rw - overlay overlay rw\n")
    assert "no medium of the board" in refused(bench).message
    machine.mounted("rw")
    other = boards.load("rock-5-itx")
    assert "made for rock-5-itx" in refused(bench, artifacts=artifact_set(tmp_path / "other", other)).message
    wrong = artifact_set(tmp_path / "wrong", board, compatible="xunlong,orangepi-5")
    assert "not of a" in refused(bench, artifacts=wrong).message
    garbage = artifact_set(tmp_path / "garbage", board, kernel=b"garbage" * 1000)
    assert "no arm64 kernel" in refused(bench, ExitCode.USAGE, garbage).message
    damaged = artifact_set(tmp_path / "damaged", board)
    (damaged / "Image").write_bytes(b"x")
    refused(bench, ExitCode.MISMATCH, damaged)
    refused(bench, ExitCode.USAGE, tmp_path / "nowhere")
    shutil.rmtree(bench.store.root)
    assert "npulab backup create" in refused(bench).hint


def test_a_file_of_that_name_is_not_replaced(bench: Bench) -> None:
    run = bench.plan()
    module = bench.machine.root / "usr/lib/modules" / RELEASE / "npulab/rocket.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"somebody else's")
    with pytest.raises(KitError, match="another file called") as caught:
        bench.flash(run)
    assert caught.value.code is ExitCode.REFUSED and bench.machine.conf == CONF
    bench.rollback(run)
    assert module.read_bytes() == b"somebody else's"


def test_a_medium_that_does_not_keep_what_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.plan()
    monkeypatch.setattr(Target, "digest", lambda *_: "0" * 64)
    with pytest.raises(KitError, match="does not read back") as caught:
        bench.flash(run)
    assert caught.value.code is ExitCode.MISMATCH and bench.machine.conf == CONF


def test_the_first_process_is_a_shell_script(bench: Bench) -> None:
    script = bench.plan().plan.init
    assert "@" not in script.replace('"$@"', "").partition("PATH=")[2]
    subprocess.run(["sh", "-n", "-c", script], check=True)


@pytest.mark.parametrize("text", ["carrier-pigeon", "lg:/nowhere", "lg", "command:"])
def test_bad_switches(text: str) -> None:
    with pytest.raises(KitError) as caught:
        power.choose(text, "ssh:board")
    assert caught.value.code is ExitCode.USAGE


def test_switches(tmp_path: Path) -> None:
    made = power.choose(f"command:touch {tmp_path}/cycled", "ssh:board")
    made.cycle(None)
    assert (tmp_path / "cycled").exists() and made.real
    with pytest.raises(KitError, match="ended with 3: no"):
        power.choose("command:echo no >&2; exit 3", "ssh:board").cycle(None)
    default = power.choose(None, "ssh:board")
    assert default.available and not default.real
    with pytest.raises(KitError, match="no switch for its power"):
        default.cycle(None)
    assert not power.choose(None, "rockusb").available and not power.choose("none", "ssh:x").available


def test_payload_of_a_compressed_kernel(tmp_path: Path, board: boards.Board) -> None:
    import gzip

    kernel = gzip.compress(b"MZ" + bytes(54) + b"ARM\x64" + BANNER.encode())
    made = payload.load(artifact_set(tmp_path / "set", board, kernel=kernel), board)
    assert made.banner == BANNER and made.model == MODEL and made.release == RELEASE


def test_labgrids_power_driver(tmp_path: Path) -> None:
    environment = tmp_path / "env.yaml"
    commands = {f"cmd_{word}": f"touch {tmp_path}/{word}" for word in ("on", "off", "cycle")}
    environment.write_text(json.dumps({"targets": {"main": {"drivers": {"ExternalPowerDriver": commands}}}}))
    made = power.choose(f"lg:{environment}", "ssh:board")
    made.cycle(None)
    assert made.real and (tmp_path / "cycle").exists()


def test_the_end_of_an_image_run(machine: Machine, board: boards.Board) -> None:
    """Power cycle, an answer from another start, the NPU's test."""
    switch, limits = Power("a switch", machine.cycle, real=True), Limits(0.0, "true")

    def prove(limits: Limits) -> str:
        out = Output(quiet=True)
        return trial.prove_image(board, machine.reach(), machine.reach, switch, limits, out).boot_id

    before = (machine.root / "proc/sys/kernel/random/boot_id").read_text().strip()
    assert prove(limits) != before
    with pytest.raises(KitError, match="ended with 9") as caught:
        prove(Limits(0.0, "exit 9"))
    assert caught.value.code is ExitCode.FAILED and "rollback" in caught.value.hint
    machine.silent = True
    with pytest.raises(KitError, match="does not answer") as caught:
        prove(limits)
    assert caught.value.code is ExitCode.LINK


def test_the_commands(
    bench: Bench, board: boards.Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user types, with what it prints."""
    from lab import cli
    from lab.commands import flash
    from lab.firmware import cli as firmware_cli

    machine = bench.machine
    for module in (flash, firmware_cli):
        monkeypatch.setattr(module, "open_transport", lambda *_: machine.reach())
    monkeypatch.setattr(power, "_restart", machine.cycle)

    def run(verb: str, *words: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = cli.main(["flash", "--json", "--quiet", verb, "--store", str(bench.store.root), *words])
        captured = capsys.readouterr()
        assert found == code, captured.err
        assert "Traceback" not in captured.err
        document: dict[str, Any] = json.loads(captured.out)
        return document

    where = ("--board", board.name, "--via", "ssh:board")
    run("plan", *where, code=ExitCode.USAGE)
    run("plan", *where, "--artifacts", str(bench.artifacts), "--storage", "emmc", code=ExitCode.USAGE)
    run("plan", *where, "--artifacts", str(bench.artifacts), "--heartbeat", "3", code=ExitCode.USAGE)
    made = run("plan", *where, "--artifacts", str(bench.artifacts))
    again, smoke = ("--via", "ssh:board", "--yes", "--boot-seconds", "0"), ("--smoke", "true")
    assert run("run", made["run"], "--via", "ssh:board", "--dry-run")["state"] == "planned"
    run("run", made["run"], "--via", "ssh:board", code=ExitCode.REFUSED)
    run("run", made["run"], *again, "--smoke", "false", code=ExitCode.FAILED)
    assert run("run", made["run"], *again, *smoke, "--no-commit")["state"] == "verified"
    assert machine.conf == CONF, "not committed: the next start is the old entry's"
    run("commit", made["run"], code=ExitCode.USAGE)
    assert run("commit", "latest", "--via", "ssh:board")["state"] == "committed"
    assert run("show", "latest")["state"] == "committed"
    assert run("rollback", "latest", *again)["removed"] == len(made["files"])
    assert machine.conf == CONF
