# SPDX-License-Identifier: MIT
"""The commands around the virtual board: background boards, the console, the soak, the suites."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from boards import make_config

from lab.cli import main
from lab.commands import test as suites
from lab.errors import ExitCode, KitError
from lab.output import Output
from lab.virt import background, console
from lab.virt.board import VirtualBoard
from lab.virt.soak import soak

# labgrid 26 cannot log a write to a console that nothing was read from yet (SerialLoggingReporter.flush)
pytestmark = pytest.mark.filterwarnings("ignore:unhandled exception during event notification")


@pytest.fixture
def background_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two boards in the background, of which only this test knows."""
    names = [f"test-{os.getpid()}-{number}" for number in range(2)]
    for name in names:
        place = tmp_path / name
        place.mkdir()
        with VirtualBoard(make_config(place), place) as board:
            board.power_on()
            board.detach({"name": name, "board": "Test board", "results": str(place)})
    every = background.boards_in_background

    def ours() -> list[background.BackgroundBoard]:
        return [board for board in every() if board.name in names]

    monkeypatch.setattr(background, "boards_in_background", ours)
    monkeypatch.setattr("lab.commands.virt.boards_in_background", ours)
    return names


def test_list_shell_and_down(background_boards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["virt", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["boards"]
    assert [board["name"] for board in found] == background_boards
    assert main(["virt", "shell", "--", "true"]) == ExitCode.NO_DEVICE
    assert "2 virtual boards are running" in capsys.readouterr().err
    # nothing listens where the stand-in says that ssh is
    assert main(["virt", "shell", "--name", background_boards[0], "--", "true"]) == ExitCode.LINK
    assert main(["virt", "up", "--name", background_boards[0]]) == ExitCode.USAGE
    assert "is running already" in capsys.readouterr().err
    assert main(["virt", "down", background_boards[0]]) == 0
    assert main(["virt", "down", "nobody"]) == ExitCode.NO_DEVICE
    assert main(["virt", "down", "--all"]) == 0
    capsys.readouterr()
    assert main(["virt", "list"]) == 0
    assert "no virtual board is running" in capsys.readouterr().out


def test_console_of_a_background_board(background_boards: list[str]) -> None:
    board = background.find_board(background_boards[1])
    keys_out, keys_in = os.pipe()
    screen_out, screen_in = os.pipe()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(board.console))
    pump = threading.Thread(target=console._pump, args=(connection, keys_out, screen_in))
    pump.start()
    os.write(keys_in, b"echo $((6*7))\n")
    text, deadline = b"", time.monotonic() + 10
    while b"42" not in text and time.monotonic() < deadline:
        text += os.read(screen_out, 4096)
    os.write(keys_in, b"exit" + console.LEAVE + b"never sent")
    pump.join(5)
    assert not pump.is_alive() and b"42" in text
    for name in background_boards:
        background.stop_board(background.find_board(name))
    for descriptor in (keys_in, keys_out, screen_in, screen_out):
        os.close(descriptor)
    connection.close()


def test_console_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="does not answer") as caught:
        console.attach(tmp_path / "console.sock")
    assert caught.value.code == ExitCode.LINK


def test_soak_counts_and_keeps_what_failed(tmp_path: Path) -> None:
    # the stand-in's shell runs on this host, which has no NPU
    document = soak(make_config(tmp_path), 2, tmp_path / "soak", Output(quiet=True))
    assert (document["ok"], document["boots"], document["failed"]) == (False, 2, 2)
    assert document["failures"][0]["reason"] == "/dev/accel/accel0 is not there"
    assert Path(document["failures"][1]["logs"], "qemu.log").exists()


def test_soak_goes_on_after_a_board_that_does_not_start(tmp_path: Path) -> None:
    document = soak(make_config(tmp_path, model="exit"), 2, tmp_path / "soak", Output(quiet=True))
    assert [entry["reason"] for entry in document["failures"]] == ["the NPU model ended with 1"] * 2


@pytest.mark.parametrize("boots", ["0", "-3"])
def test_soak_of_no_boots(boots: str) -> None:
    assert main(["virt", "soak", f"--boots={boots}"]) == ExitCode.USAGE


def test_which_suites() -> None:
    assert suites._chosen([]) == list(suites.SUITES)
    assert suites._chosen(["board", "unit"]) == ["unit", "board"]
    assert suites._chosen(["all"]) == list(suites.SUITES)
    with pytest.raises(KitError, match="no suite is called x"):
        suites._chosen(["unit", "x"])


def test_suites_run_report_and_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_x.py").write_text("def test_a(): pass\ndef test_b(): assert 0\n")
    monkeypatch.setattr(suites, "PACKAGE_ROOT", tmp_path)
    results = tmp_path / "results"
    assert main(["test", "unit", "--json", "--results", str(results)]) == ExitCode.FAILED
    captured = capfd.readouterr()
    document = json.loads(captured.out)
    assert (document["ok"], document["suites"][0]["tests"], document["suites"][0]["failures"]) == (False, 2, 1)
    assert "1 failed, 1 passed" in captured.err
    assert (results / "junit-unit.xml").exists()
    assert main(["test", "unit", "-k", "test_a", "--results", str(results), "--", "-q"]) == 0
    # nothing selected at all is no success
    assert main(["test", "unit", "-k", "nothing", "--results", str(results)]) == ExitCode.FAILED


def test_quirks_that_can_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "board.json"
    bad.write_text('{"quirks": {"bn_order": "sideways"}}', encoding="utf-8")
    assert main(["virt", "up", "--quirks", str(bad)]) == 2
    assert "'sideways' is not one of mul_alu, alu_mul" in capsys.readouterr().err
