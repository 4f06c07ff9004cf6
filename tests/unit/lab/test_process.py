# SPDX-License-Identifier: MIT
"""Programs we run: their end, their output, their failure, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lab.errors import ExitCode, KitError
from lab.process import end, require, run, tail


def test_output_goes_to_log_and_callback(tmp_path: Path) -> None:
    lines: list[str] = []
    run(["printf", "one\\ntwo\\n"], stage="test", log=tmp_path / "log", on_line=lines.append)
    assert lines == ["one", "two"]
    assert (tmp_path / "log").read_text() == "$ printf one\\ntwo\\n\none\ntwo\n"


def test_failure_carries_stage_and_last_lines(tmp_path: Path) -> None:
    with pytest.raises(KitError) as caught:
        run(["sh", "-c", "echo before; echo why >&2; exit 3"], stage="kernel", log=tmp_path / "log", hint="do this")
    assert caught.value.message == "kernel: sh ended with 3"
    assert caught.value.tail.endswith("before\nwhy")
    assert caught.value.hint == "do this"
    assert caught.value.log == tmp_path / "log"


def test_killed_program_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="was killed by SIGKILL"):
        run(["sh", "-c", "kill -9 $$"], stage="x", log=tmp_path / "log")


def test_missing_program_is_clear(tmp_path: Path) -> None:
    with pytest.raises(KitError, match="no-such-program is not there"):
        run(["no-such-program"], stage="x", log=tmp_path / "log")
    with pytest.raises(KitError) as caught:
        require("no-such-program", "some-package")
    assert "apt-get install some-package" in caught.value.hint


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $! > {pids}; trap '' TERM; echo $$ >> {pids}; wait; sleep 60"
    started = time.monotonic()
    with pytest.raises(KitError, match="no end after 1 s"):
        run(["sh", "-c", script], stage="slow", log=tmp_path / "log", timeout=1)
    assert time.monotonic() - started < 15
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_interrupt_ends_the_program(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "from pathlib import Path; from lab.process import run\n"
        f"run(['sh', '-c', 'echo $$ > {pids}; sleep 60'], stage='x', log=Path({str(tmp_path / 'log')!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (pids.exists() and pids.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGINT)
    child.wait(20)
    assert not alive(int(pids.read_text()))


def test_end_of_a_finished_process_is_quiet() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    end(process)


def test_tail_of_nothing_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "absent") == ""
    (tmp_path / "log").write_text("".join(f"{i}\n" for i in range(100)))
    assert tail(tmp_path / "log", 2) == "98\n99"


def test_runs_in_parallel_threads(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            run(["sh", "-c", f"echo {index}"], stage="x", log=tmp_path / f"{index}")
        except BaseException as error:  # noqa: BLE001 - collected for the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert ExitCode.OK == 0
