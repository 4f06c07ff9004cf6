# SPDX-License-Identifier: MIT
"""Run directories: where they go, when they are refused, and when they are tidied away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.errors import ExitCode, KitError
from lab.virt import runtime as module
from lab.virt.runtime import create_runtime, parse_size, running_boards


@pytest.mark.parametrize(("text", "size"), [("256M", 256 << 20), ("1G", 1 << 30), (" 1536m ", 1536 << 20)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "1T", "-1G", "1.5G", "0G", "255M", "33G", "G", "1G1G"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(KitError) as caught:
        parse_size(text)
    assert caught.value.code == ExitCode.USAGE


def test_directory_is_private_and_its_sockets_fit(tmp_path: Path) -> None:
    runtime = create_runtime(256 << 20)
    try:
        assert runtime.path.stat().st_mode & 0o777 == 0o700
        assert runtime.ram.stat().st_size == 256 << 20
        assert len(str(runtime.socket("monitor"))) <= 107
    finally:
        runtime.discard()
    assert not runtime.path.exists()


def test_dead_runs_are_tidied_and_live_ones_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_bases", lambda: [tmp_path])
    dead, live = create_runtime(256 << 20), create_runtime(256 << 20)
    dead.close()
    other = tmp_path / "somebody-elses"
    other.mkdir()
    new = create_runtime(256 << 20)
    assert not dead.path.exists()
    assert live.path.exists() and new.path.exists() and other.exists()
    for runtime in (live, new):
        runtime.discard()


def test_no_room_anywhere_names_the_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_room", lambda base, promised: 100 << 20)
    with pytest.raises(
        KitError, match=r"no place for the virtual board's 1024 MiB of RAM: .* has room for 100 MiB"
    ) as caught:
        create_runtime(1 << 30)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert "--memory" in caught.value.hint


def test_small_shared_memory_falls_back_to_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small, large = tmp_path / "shm", tmp_path / "disk"
    small.mkdir()
    large.mkdir()
    monkeypatch.setattr(module, "_bases", lambda: [small, large])
    monkeypatch.setattr(module, "_room", lambda base, promised: 0 if base == small else 1 << 40)
    runtime = create_runtime(256 << 20)
    assert runtime.path.parent == large
    runtime.discard()


def test_memory_promised_to_other_boards_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_bases", lambda: [tmp_path])
    first = create_runtime(512 << 20)
    promises: list[int] = []

    def room(base: Path, promised: int) -> int:
        promises.append(promised)
        return 1 << 40

    monkeypatch.setattr(module, "_room", room)
    second = create_runtime(256 << 20)
    assert promises == [512 << 20]
    for runtime in (first, second):
        runtime.discard()


def test_a_path_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(module, "_bases", lambda: [deep])
    with pytest.raises(KitError, match="too long a path"):
        create_runtime(256 << 20)


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "ram")

    monkeypatch.setattr(module, "_bases", lambda: [tmp_path])
    monkeypatch.setattr(module, "_make", full)
    with pytest.raises(KitError, match="the disk is full"):
        create_runtime(256 << 20)


def test_boards_are_listed_oldest_first_with_their_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_bases", lambda: [tmp_path])
    runtimes = [create_runtime(256 << 20) for _ in range(3)]
    for number, runtime in enumerate(runtimes[:2]):
        runtime.write_state({"name": f"board-{number}"})
        os.utime(runtime.path / "board.json", (number, number))
    assert [board["name"] for board in running_boards()] == ["board-0", "board-1"]
    assert running_boards()[0]["runtime"] == str(runtimes[0].path)
    for runtime in runtimes:
        runtime.discard()
    assert running_boards() == []
