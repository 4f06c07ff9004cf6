# SPDX-License-Identifier: MIT
"""Parallel tasks: results by name; a failure or an interrupt ends the others and their programs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lab.cancel import check_cancelled
from lab.errors import ExitCode, KitError
from lab.parallel import run_all
from lab.process import run


def _sleep(tmp_path: Path, name: str) -> None:
    run(["sh", "-c", f"echo $$ > {tmp_path}/{name}; exec sleep 60"], stage="sleeping", log=tmp_path / f"{name}.log")


def _wait_for(path: Path) -> int:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if path.is_file() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results() -> None:
    assert run_all({"a": lambda: 1, "b": lambda: "two"}) == {"a": 1, "b": "two"}
    assert run_all({}) == {}


def test_first_failure_ends_the_others(tmp_path: Path) -> None:
    def fail() -> None:
        _wait_for(tmp_path / "pid")
        raise KitError(ExitCode.FAILED, "this one failed")

    started = time.monotonic()
    with pytest.raises(KitError, match="this one failed"):
        run_all({"sleep": lambda: _sleep(tmp_path, "pid"), "fail": fail})
    assert time.monotonic() - started < 30
    assert not _alive(_wait_for(tmp_path / "pid"))


def test_interrupt_ends_all(tmp_path: Path) -> None:
    def interrupt() -> None:
        _wait_for(tmp_path / "a")
        _wait_for(tmp_path / "b")
        os.kill(os.getpid(), signal.SIGINT)

    helper = threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        run_all({"a": lambda: _sleep(tmp_path, "a"), "b": lambda: _sleep(tmp_path, "b")})
    helper.join()
    assert not _alive(_wait_for(tmp_path / "a")) and not _alive(_wait_for(tmp_path / "b"))


def test_nested_groups_end_with_the_outer_one(tmp_path: Path) -> None:
    def inner() -> None:
        run_all({"sleep": lambda: _sleep(tmp_path, "pid")})

    def fail() -> None:
        _wait_for(tmp_path / "pid")
        raise ValueError("outer")

    with pytest.raises(ValueError, match="outer"):
        run_all({"inner": inner, "fail": fail})
    assert not _alive(_wait_for(tmp_path / "pid"))


def test_loops_can_ask() -> None:
    ended = threading.Event()

    def loop() -> None:
        try:
            while True:
                check_cancelled()
                time.sleep(0.01)
        finally:
            ended.set()

    def fail() -> None:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run_all({"loop": loop, "fail": fail})
    assert ended.is_set()
    check_cancelled()  # outside of any group: nothing to end
