# SPDX-License-Identifier: MIT
"""Every change that the store makes to the disk goes through here, so that a test can cut the power at each of them.

``observer`` sees an event before it happens: ``write PATH``, ``sync PATH``, ``rename PATH``, ``syncdir PATH``,
``unlink PATH``. Files are made with mode 0600, directories with 0700: images hold keys.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SYNC_THREADS = 16

observer: Callable[[str, Path], None] | None = None


def _event(kind: str, path: Path) -> None:
    if observer is not None:
        observer(kind, path)


def make_dir(path: Path) -> None:
    """A directory with its parents, only for the user."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_new(path: Path, data: bytes) -> None:
    """A file's content, not yet on the disk; replaces what an interrupted run left under that name.

    When it cannot be written (OSError: the disk is full), nothing of it stays.
    """
    _event("write", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, data)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _named(error, path) from error
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the name of the file, which errors of descriptors do not have."""
    return OSError(error.errno, error.strerror, str(path))


def sync(path: Path) -> None:
    """The file's content is on the disk when this returns."""
    _event("sync", path)
    _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(files: Sequence[Path]) -> None:
    """`sync` for many files at a time: a journalling file system then commits them together."""
    for path in files:
        _event("sync", path)
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync_file, files))


def sync_dirs(directories: Sequence[Path]) -> None:
    """`sync_dir` for many directories at a time."""
    for path in directories:
        _event("syncdir", path)
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync_directory, directories))


def sync_dir(path: Path) -> None:
    """The directory's names are on the disk when this returns."""
    _event("syncdir", path)
    _sync_directory(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Put a complete file or directory under its final name."""
    _event("rename", target)
    source.rename(target)


def replace(path: Path, data: bytes) -> None:
    """Atomically give a file new content."""
    partial = path.with_name(path.name + ".partial")
    write_new(partial, data)
    sync(partial)
    rename(partial, path)
    sync_dir(path.parent)


def append(path: Path, data: bytes) -> None:
    """Add whole lines to a journal and bring them to the disk; all of them or, when the disk is full (OSError), none.

    The end of a line that an earlier run was torn away from goes first: nothing may be added to it.
    """
    _event("write", path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = _whole_lines(descriptor)
        try:
            _write_all(descriptor, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise _named(error, path) from error
        _event("sync", path)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _whole_lines(descriptor: int) -> int:
    """Cut off what follows the last line's end; returns the size."""
    size = end = os.fstat(descriptor).st_size
    while end and (found := os.pread(descriptor, min(end, 4096), end - min(end, 4096))).rfind(b"\n") < 0:
        end -= len(found)
    if end:
        end = end - len(found) + found.rfind(b"\n") + 1
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def truncate(path: Path, length: int) -> None:
    """Cut a journal's torn end off."""
    _event("write", path)
    os.truncate(path, length)


def unlink(path: Path) -> None:
    """Remove a file; fine when it is gone."""
    _event("unlink", path)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a directory that no longer counts."""
    _event("unlink", path)
    shutil.rmtree(path, ignore_errors=True)
