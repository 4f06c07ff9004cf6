# SPDX-License-Identifier: MIT
"""Starting and ending a board: each way in which its programs can fail, and each way in which we can be ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from boards import PROGRAMS, abandoned, make_config, make_dtb, run_directories, wait_until_gone

from lab.errors import ExitCode, KitError
from lab.virt.board import VirtualBoard, check_port
from lab.virt.supervisor import PACKAGE_ROOT


def read_until(board: VirtualBoard, text: bytes, seconds: float = 10.0) -> bytes:
    data = b""
    deadline = time.monotonic() + seconds
    while text not in data and time.monotonic() < deadline:
        data += board.read(1.0)
    assert text in data, data
    return data


def test_console_answers_and_everything_goes(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path), tmp_path) as board:
        assert board.running
        assert board.ssh_port == 45678
        board.power_on()
        read_until(board, b"root@fake:~# ")
        board.write(b"echo $((6*7))\n")
        read_until(board, b"42")
    assert not board.running


def test_large_writes_arrive_whole(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, qemu="count"), tmp_path) as board:
        board.power_on()
        assert board.write(b"x" * 3_999_999 + b"\n") == 4_000_000
        read_until(board, b"4000000 bytes")


@pytest.mark.parametrize(
    ("qemu", "message", "last"),
    [
        ("exit", "QEMU ended with 1", "unsupported machine type"),
        ("close", "QEMU ended with 3", ""),
        ("garbage", "QEMU's monitor: not JSON: b'220 mail", ""),
    ],
)
def test_qemu_failing_at_start(tmp_path: Path, qemu: str, message: str, last: str) -> None:
    with pytest.raises(KitError) as caught, VirtualBoard(make_config(tmp_path, qemu=qemu), tmp_path):
        pass
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert message in caught.value.message
    assert last in caught.value.tail


@pytest.mark.parametrize(
    ("qemu", "message"), [("hang", "did not open its monitor within 1 s"), ("silent", "no answer")]
)
def test_qemu_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qemu: str, message: str) -> None:
    monkeypatch.setattr("lab.virt.board.START_SECONDS", 1.0)
    monkeypatch.setattr("lab.virt.qmp.Qmp.__init__.__defaults__", (1.0,))
    with pytest.raises(KitError, match=message), VirtualBoard(make_config(tmp_path, qemu=qemu), tmp_path):
        pass


def test_qemu_that_is_no_program(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.qemu.chmod(0o644)
    with pytest.raises(KitError, match="QEMU could not be started: Permission denied"), VirtualBoard(config, tmp_path):
        pass


def test_qemu_dying_later_is_seen_with_the_console(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, qemu="die"), tmp_path) as board:
        board.console_log.write_text("Booting Linux\n")
        board.power_on()
        with pytest.raises(KitError) as caught:
            read_until(board, b"never")
    assert "QEMU was killed by SIGSEGV" in caught.value.message
    assert "Booting Linux" in caught.value.tail


def test_guest_switching_itself_off_is_no_failure(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, qemu="poweroff"), tmp_path) as board:
        board.power_on()
        deadline = time.monotonic() + 10
        while not board.powered_off and time.monotonic() < deadline:
            board.read(0.2)
        assert board.powered_off
        assert not board.running
        assert [event["event"] for event in board.events()] == ["SHUTDOWN"]


def test_panic_is_seen_at_once(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, qemu="panic"), tmp_path) as board:
        board.power_on()
        with pytest.raises(KitError, match="kernel panicked: No working init found") as caught:
            read_until(board, b"never")
    assert "Booting Linux" in caught.value.tail and "CPU: 0" in caught.value.tail


def test_qemu_ended_from_outside_is_a_failure(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path), tmp_path) as board:
        board.power_on()
        assert board._supervisor is not None
        pid = board._supervisor.program_pid("qemu")
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        with pytest.raises(KitError, match="QEMU was killed by SIGTERM"):
            read_until(board, b"never")


@pytest.mark.parametrize(
    ("model", "message", "last"),
    [
        ("exit", "the NPU model ended with 1", "No module named 'numpy'"),
        ("slow", "the NPU model was not ready within 1 s", ""),
    ],
)
def test_model_failing_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str, last: str
) -> None:
    if model == "slow":
        monkeypatch.setattr("lab.virt.board.START_SECONDS", 1.0)
    with pytest.raises(KitError) as caught, VirtualBoard(make_config(tmp_path, model=model), tmp_path):
        pass
    assert message in caught.value.message
    assert last in caught.value.tail


def test_model_dying_later_is_seen_at_once(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, model="die"), tmp_path) as board:
        board.power_on()
        started = time.monotonic()
        with pytest.raises(KitError) as caught:
            read_until(board, b"never")
        assert time.monotonic() - started < 4
    assert caught.value.message == "the NPU model ended with 1"
    assert "MemoryError" in caught.value.tail


def test_model_that_does_not_want_to_end(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, model="stubborn"), tmp_path):
        started = time.monotonic()
    assert time.monotonic() - started < 8


def test_writing_to_a_guest_that_does_not_read(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path, qemu="deaf"), tmp_path) as board:
        board.power_on()
        with pytest.raises(KitError, match="takes nothing"):
            board.write(b"x" * (4 << 20), timeout=1.0)


def test_three_boards_at_a_time(tmp_path: Path) -> None:
    places = [tmp_path / str(number) for number in range(3)]
    boards = []
    for place in places:
        place.mkdir()
        boards.append(VirtualBoard(make_config(place), place))
    try:
        for board in boards:
            board.start()
            board.power_on()
        for board in boards:
            read_until(board, b"# ")
    finally:
        for board in boards:
            board.stop()


def test_stop_twice_and_before_start(tmp_path: Path) -> None:
    board = VirtualBoard(make_config(tmp_path), tmp_path)
    board.stop()
    board.start()
    board.stop()
    board.stop()


def test_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = replace(make_config(tmp_path), ssh_port=port)
        with pytest.raises(KitError, match=f"port {port} of 127.0.0.1 cannot be used") as caught:
            VirtualBoard(config, tmp_path).start()
    assert caught.value.code == ExitCode.USAGE
    check_port(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": "12 apples"}, "memory size"),
        ({"memory": "64M"}, "memory size"),
        ({"cpus": 9}, "9 CPUs"),
        ({"ssh_port": 70000}, "port 70000"),
        ({"kernel": Path("/nonexistent/Image")}, "kernel is not there"),
        ({"dtb": Path("/nonexistent/x.dtb")}, "No such file"),
        ({"disks": (Path("/nonexistent/root"),)}, "disk is not there"),
    ],
)
def test_bad_configuration_starts_nothing(tmp_path: Path, change: dict[str, object], message: str) -> None:
    config = replace(make_config(tmp_path), **change)  # type: ignore[arg-type]
    with pytest.raises(KitError, match=message) as caught:
        VirtualBoard(config, tmp_path).start()
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "guard.log").exists()


def test_qemu_gets_what_the_link_page_says(tmp_path: Path) -> None:
    config = replace(make_config(tmp_path), disks=(tmp_path / "a,b.ext4",), strict_supplies=True, memory="1536M")
    board = VirtualBoard(config, tmp_path)
    from lab.virt.runtime import create_runtime

    runtime = create_runtime(256 << 20)
    try:
        line = " ".join(board.qemu_argv(runtime))
    finally:
        runtime.discard()
    assert "-M rk3588,memory-backend=ram0," in line and "strict-supplies=on" in line
    assert f"size={1536 << 20},share=on" in line and "-m 1536" in line
    assert "a,,b.ext4,format=raw,snapshot=on" in line
    assert all(f"socket,id=npu{core},path=" in line for core in range(3))
    assert "hostfwd=tcp:127.0.0.1:0-:22" in line and "-d guest_errors,unimp" in line


RUNNER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from boards import make_config
from lab.cli import _terminate
import signal, time
signal.signal(signal.SIGTERM, _terminate)
from lab.virt.board import VirtualBoard
place = Path({place!r})
try:
    with VirtualBoard(make_config(place, qemu={qemu!r}), place) as board:
        board.power_on()
        print("up", board._supervisor.pid, flush=True)
        time.sleep(600)
except KeyboardInterrupt:
    sys.exit(7)
"""


def start_runner(place: Path, *, qemu: str = "normal", wait: bool = True) -> tuple[subprocess.Popen[str], int]:
    code = RUNNER.format(tests=str(PROGRAMS.parent), root=str(PACKAGE_ROOT), place=str(place), qemu=qemu)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    if not wait:
        return process, 0
    words = process.stdout.readline().split()
    assert words[0] == "up"
    return process, int(words[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_ending_the_run_leaves_nothing(tmp_path: Path, number: signal.Signals, nothing_left: str) -> None:
    before = run_directories()
    process, _ = start_runner(tmp_path)
    assert run_directories() - before
    process.send_signal(number)
    assert process.wait(10) == (7 if number in (signal.SIGINT, signal.SIGTERM) else -number)
    assert wait_until_gone(nothing_left) == []
    assert abandoned(before) == set()


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4, 0.7])
def test_ending_the_run_while_it_starts(tmp_path: Path, delay: float, nothing_left: str) -> None:
    before = run_directories()
    process, _ = start_runner(tmp_path, qemu="silent", wait=False)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert wait_until_gone(nothing_left) == []
    # a run killed between making its directory and starting its guard leaves that to the next start
    with VirtualBoard(make_config(tmp_path), tmp_path):
        pass
    assert abandoned(before) == set()


def test_killing_the_guard_kills_its_programs_and_the_next_start_tidies(tmp_path: Path, nothing_left: str) -> None:
    before = run_directories()
    process, guard = start_runner(tmp_path)
    os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait(10)
    assert wait_until_gone(nothing_left) == []
    with VirtualBoard(make_config(tmp_path), tmp_path):
        pass
    assert abandoned(before) == set()


def test_guard_killed_under_us_is_named(tmp_path: Path) -> None:
    with VirtualBoard(make_config(tmp_path), tmp_path) as board:
        board.power_on()
        assert board._supervisor is not None
        os.kill(board._supervisor.pid, signal.SIGKILL)
        with pytest.raises(KitError, match=r"guards the virtual board is gone|closed the console"):
            read_until(board, b"never")


def test_state_of_a_detached_board(tmp_path: Path) -> None:
    from lab.virt.background import boards_in_background, stop_board

    board = VirtualBoard(make_config(tmp_path), tmp_path)
    board.start()
    board.power_on()
    board.detach({"name": "test", "results": str(tmp_path)})
    found = [entry for entry in boards_in_background() if entry.results == tmp_path]
    assert len(found) == 1 and found[0].ssh_port == 45678
    assert json.loads((found[0].runtime / "board.json").read_text())["name"] == "test"
    stop_board(found[0])
    assert [entry for entry in boards_in_background() if entry.results == tmp_path] == []


def test_dtb_of_another_soc(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    make_dtb(config.dtb, compatible="rockchip,rk3399")
    with pytest.raises(KitError, match="not an RK3588 board"):
        VirtualBoard(config, tmp_path).start()
