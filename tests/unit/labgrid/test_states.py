# SPDX-License-Identifier: MIT
"""The strategy's USB states, the backup gate and the kernel's log, with labgrid's fakes and the rockusb stand-in."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import labgrid.driver.fake  # noqa: F401  (registers its drivers)
import pytest
from labgrid import Environment
from labgrid.strategy.common import StrategyError

from lab import boards
from lab.errors import ExitCode, KitError
from lab.firmware.rockusb import loaderfile
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.media import make_board
from lab.firmware.standin.server import Server
from lab.labgrid import Status, strategy
from lab.labgrid.diagnosis import garbage_share
from lab.labgrid.kernellog import Journal, parse, read_pstore

SIZES = {"spi": 1 << 20, "emmc": 24 << 20, "sd": 0, "emmc.boot0": 65536, "emmc.boot1": 65536}
ENVIRONMENT = """
imports: [lab.labgrid]
targets:
  main:
    drivers:
      FakePowerDriver: {{}}
      FakeConsoleDriver: {{}}
      FileDigitalOutputDriver: {{name: {button}, filepath: {root}/button}}
      ShellDriver: {{prompt: '# ', login_prompt: 'login: ', username: root}}
      RockusbDriver:
        board: rock-5-itx-plus
        via: 'rockusb+unix:{root}/usb.sock'
        loader: {root}/loader.bin
        loader_sha256: {sha256}
      BackupDriver: {{board: rock-5-itx-plus, store: {root}/store}}
      KitStrategy: {{image: {root}/image.raw, storage: emmc}}
"""


class Bench:
    """A board of files behind a served stand-in, and a labgrid target that reaches it."""

    def __init__(self, root: Path, personality: str, button: str = "maskrom") -> None:
        self.root = root
        make_board(root / "board", boards.load("rock-5-itx-plus"), sizes=SIZES)
        self.engine = Engine(root / "board", personality)
        (root / "button").write_text("0\n")
        (root / "loader.bin").write_bytes(loaderfile.build(os.urandom(5000), os.urandom(9000)))
        sha256 = hashlib.sha256((root / "loader.bin").read_bytes()).hexdigest()
        path = root / "env.yaml"
        path.write_text(ENVIRONMENT.format(root=root, sha256=sha256, button=button))
        self.environment = Environment(str(path))
        self.target = self.environment.get_target()
        self.strategy: Any = self.target.get_driver("KitStrategy")

    def driver(self, name: str) -> Any:
        return self.target.get_driver(name)


@pytest.fixture
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(strategy, "BUTTON_SECONDS", 0.05)
    made: list[tuple[Bench, Server]] = []

    def make(personality: str, button: str = "maskrom") -> Bench:
        bench = Bench(tmp_path, personality, button)
        server = Server(tmp_path / "usb.sock", [bench.engine])
        server.__enter__()
        made.append((bench, server))
        return bench

    yield make
    for bench, server in made:
        bench.environment.cleanup()
        server.close()


def test_maskrom_by_the_button_then_loader(make_bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench("maskrom")
    pressed: list[str] = []
    power = bench.driver("FakePowerDriver")
    monkeypatch.setattr(power, "on", lambda: pressed.append((bench.root / "button").read_text()))
    bench.strategy.transition("maskrom")
    assert pressed == ["1\n"], "the button was held when power came"
    assert (bench.root / "button").read_text() == "0\n"
    assert bench.driver("RockusbDriver").mode() == "maskrom"
    bench.strategy.transition("loader")
    assert bench.driver("RockusbDriver").mode() == "loader" and bench.engine.mode == "usbplug"


def test_loader_by_the_recovery_button(make_bench: Any) -> None:
    bench = make_bench("loader", button="recovery")
    bench.strategy.transition("loader")
    assert bench.strategy.status is Status.loader


def test_no_button_no_maskrom(make_bench: Any) -> None:
    bench = make_bench("maskrom", button="reset")
    with pytest.raises(StrategyError):
        bench.strategy.transition("maskrom")
    assert "called maskrom" in str(bench.strategy.broken)


def test_a_board_that_stays_away_is_not_waited_for_for_ever(make_bench: Any) -> None:
    bench = make_bench("loader")
    driver = bench.driver("RockusbDriver")
    started = time.monotonic()
    with pytest.raises(KitError, match="not in maskrom mode after 0 s: loader") as caught:
        driver.wait_for("maskrom", timeout=0.3)
    assert caught.value.code is ExitCode.NO_DEVICE and time.monotonic() - started < 5


def test_unknown_states(make_bench: Any) -> None:
    bench = make_bench("loader")
    with pytest.raises(StrategyError):
        bench.strategy.transition("flying")
    assert "states: off shell ssh maskrom" in str(bench.strategy.broken)


def test_states_that_the_environment_cannot_reach_say_so(make_bench: Any) -> None:
    bench = make_bench("loader")
    with pytest.raises(StrategyError):
        bench.strategy.transition("uboot")
    assert "no UBootDriver" in str(bench.strategy.broken)


def image_of(bench: Bench) -> bytes:
    """The board's eMMC with other bytes in its payload."""
    content = bytearray((bench.root / "board" / "emmc.img").read_bytes())
    content[17 << 20 : (17 << 20) + 4096] = b"new!" * 1024
    (bench.root / "image.raw").write_bytes(content)
    return bytes(content)


def test_nothing_is_written_without_a_backup(make_bench: Any) -> None:
    bench = make_bench("loader")
    image_of(bench)
    before = (bench.root / "board" / "emmc.img").read_bytes()
    bench.strategy.force("loader")
    with pytest.raises(StrategyError):
        bench.strategy.transition("flashed")
    refused = bench.strategy.broken
    assert isinstance(refused, KitError) and refused.code is ExitCode.REFUSED
    assert "no verified backup" in refused.message and "npulab backup create --board rock-5-itx-plus" in refused.hint
    assert (bench.root / "board" / "emmc.img").read_bytes() == before


def test_backup_then_flash_then_rollback(make_bench: Any) -> None:
    bench = make_bench("loader")
    new = image_of(bench)
    before = (bench.root / "board" / "emmc.img").read_bytes()
    bench.strategy.force("loader")
    backup = bench.driver("BackupDriver")
    made = backup.create(["emmc"])
    assert made.verified and backup.assert_fresh(["emmc"]).id == made.id
    bench.strategy.transition("flashed")
    assert bench.strategy.status is Status.flashed
    written = (bench.root / "board" / "emmc.img").read_bytes()
    assert written[17 << 20 : (17 << 20) + 4096] == new[17 << 20 : (17 << 20) + 4096] != before[17 << 20 :][:4096]


# the kernel's log
def test_records_are_parsed() -> None:
    record = parse("6,339,5140900,-;NET: Registered PF_INET6", "b")
    assert record is not None
    assert (record.level, record.facility, record.sequence, record.seconds) == (6, 0, 339, 5.1409)
    assert parse(" SUBSYSTEM=acpi", "b") is None and parse("nonsense", "b") is None and parse("a,b,c;x", "b") is None


def test_journal_sees_gaps_repetitions_and_new_boots(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    lines = ["boot one", "6,1,10,-;first", " KEY=value", "6,2,20,-;second", "6,5,50,-;fifth", "6,5,50,-;fifth"]
    for line in [*lines, "boot one", "6,1,10,-;first", "boot two", "6,0,1,-;again"]:
        journal.feed(line)
    assert [(record.boot, record.text) for record in journal.records] == [
        ("one", "first"),
        ("one", "second"),
        ("one", "fifth"),
        ("two", "again"),
    ]
    assert journal.gaps == [(3, 4)]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    position = journal.position()
    assert not journal.wait_for("later", position, 0.05)
    journal.feed("6,1,2,-;later")
    assert journal.wait_for("later", position, 0.05)


def test_a_full_disk_does_not_lose_records() -> None:
    journal = Journal(Path("/dev/full"))
    journal.feed("6,1,10,-;kept in memory")
    assert journal.records[0].text == "kept in memory"


def test_pstore_is_read_through_any_command() -> None:
    class Command:
        def run_check(self, command: str) -> list[str]:
            assert "pstore" in command
            return ["dmesg-ramoops-0 T29wcyMxIFBhcnQx"]

    assert read_pstore(Command()) == {"dmesg-ramoops-0": "Oops#1 Part1"}


def test_garbage_is_told_from_text() -> None:
    assert garbage_share(b"") == 0.0
    assert garbage_share(b"\x1b[0;32m[  OK  ]\x1b[0m Started \xe2\x80\x9cthing\xe2\x80\x9d\r\n") == 0.0
    assert garbage_share(bytes(range(128, 256))) > 0.9
