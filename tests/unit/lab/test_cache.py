# SPDX-License-Identifier: MIT
"""The content cache: whole entries or none."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from lab.cache import Cache, cache_root, digest, tree_digest
from lab.errors import ExitCode, KitError


def test_entry_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls: list[Path] = []

    def make(directory: Path) -> None:
        calls.append(directory)
        (directory / "file").write_text("content")

    first = cache.entry("kind", "key", make)
    second = cache.entry("kind", "key", make)
    assert first == second == cache.lookup("kind", "key")
    assert (first / "file").read_text() == "content"
    assert len(calls) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken"), OSError(errno.EIO, "input/output error")])
def test_nothing_is_left_of_a_failed_entry(tmp_path: Path, error: BaseException) -> None:
    cache = Cache(tmp_path)

    def make(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise error

    with pytest.raises((type(error), KitError)):
        cache.entry("kind", "key", make)
    assert cache.lookup("kind", "key") is None
    assert list((tmp_path / "kind").iterdir()) == []
    assert (cache.entry("kind", "key", lambda d: (d / "whole").touch()) / "whole").exists()


def test_full_disk_says_so(tmp_path: Path) -> None:
    def make(directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "big"))

    with pytest.raises(KitError) as caught:
        Cache(tmp_path).entry("kind", "key", make)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
    assert "disk is full" in caught.value.message
    assert "NPULAB_CACHE" in caught.value.hint


def test_a_stale_partial_directory_does_not_end_up_in_the_entry(tmp_path: Path) -> None:
    stale = tmp_path / "kind" / "key.partial"
    stale.mkdir(parents=True)
    (stale / "old").touch()
    entry = Cache(tmp_path).entry("kind", "key", lambda d: (d / "new").touch())
    assert [p.name for p in entry.iterdir()] == ["new"]


def test_two_threads_make_it_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    count = 0
    gate = threading.Barrier(4)

    def make(directory: Path) -> None:
        nonlocal count
        count += 1
        (directory / "f").touch()

    def work() -> None:
        gate.wait()
        cache.entry("kind", "key", make)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 1


def test_digests_see_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = tree_digest(tmp_path)
    (tmp_path / "a").write_text("2")
    changed = tree_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({before, changed, tree_digest(tmp_path)}) == 3
    assert digest("a", 1) != digest("a1")


def test_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPULAB_CACHE", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x"
    monkeypatch.delenv("NPULAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "npulab"


def test_an_unwritable_root_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KitError) as caught:
        Cache(tmp_path / "file").entry("kind", "key", lambda d: None)
    assert caught.value.code == ExitCode.INFRASTRUCTURE
