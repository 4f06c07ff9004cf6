# SPDX-License-Identifier: MIT
"""Where a running board keeps its sockets and its RAM: one short-lived directory, locked while the board lives.

``<shared memory>/npulab-<uid>-<id>/`` holds the RAM file, the unix sockets (whose paths may have 107 bytes at most,
unix(7)), a lock, and ``board.json`` once the board is up. A directory whose lock is free belongs to a dead run and is
removed at the next start.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lab.errors import ExitCode, KitError, from_os_error

SOCKET_PATH_MAX = 107
"""sun_path has 108 bytes, one of them the final zero (unix(7))."""
_LONGEST_SOCKET = "monitor.sock"
_MARGIN = 64 << 20
"""Bytes to leave free beside the RAM files."""


def parse_size(text: str) -> int:
    """Bytes of ``512M`` or ``4G``; KitError (usage) if it is anything else or outside 256 MiB to 32 GiB."""
    match = re.fullmatch(r"(\d+)([MG])", text.strip().upper())
    size = int(match[1]) << (20 if match[2] == "M" else 30) if match else 0
    if not 256 << 20 <= size <= 32 << 30:
        raise KitError(ExitCode.USAGE, f"memory size {text!r} cannot be used", "give 256M to 32G, for example 1536M")
    return size


def _bases() -> list[Path]:
    """Where run directories may be, best first."""
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    return [place for place in places if place.is_dir() and os.access(place, os.W_OK)]


def _ours(base: Path) -> list[Path]:
    """This user's run directories in a base."""
    return [path for path in base.glob(f"{_prefix()}*") if path.is_dir() and path.stat().st_uid == os.getuid()]


def _prefix() -> str:
    return f"npulab-{os.getuid()}-"


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """One process at a time makes, looks at or removes run directories in a base (whose own lock this takes)."""
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _alive(directory: Path) -> bool:
    """Whether somebody holds the directory's lock."""
    try:
        with (directory / "lock").open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sweep(base: Path) -> int:
    """Remove what dead runs left; returns the bytes that live boards may still take. The base is locked."""
    promised = 0
    for directory in _ours(base):
        if not _alive(directory):
            shutil.rmtree(directory, ignore_errors=True)
            continue
        ram = directory / "ram"
        if ram.exists():
            state = ram.stat()
            promised += max(0, state.st_size - 512 * state.st_blocks)
    return promised


@dataclass
class Runtime:
    """One board's directory, and the lock that says it lives (``lock.fileno()`` goes to the guard)."""

    path: Path
    lock: IO[str]

    @property
    def ram(self) -> Path:
        """The guest's memory; QEMU and the model map it."""
        return self.path / "ram"

    def socket(self, name: str) -> Path:
        """Path of a unix socket."""
        return self.path / f"{name}.sock"

    def write_state(self, document: dict[str, Any]) -> None:
        """Say what runs here, for ``npulab virt list``."""
        partial = self.path / "board.json.partial"
        partial.write_text(json.dumps(document, indent=2))
        partial.rename(self.path / "board.json")

    def close(self) -> None:
        """Forget the lock; the guard's copy still holds it."""
        self.lock.close()

    def discard(self) -> None:
        """Remove everything (no guard has been started)."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


def _room(base: Path, promised: int) -> int:
    state = os.statvfs(base)
    return state.f_bavail * state.f_frsize - promised - _MARGIN


def create_runtime(memory: int) -> Runtime:
    """A new directory with a RAM file of ``memory`` bytes, in shared memory if it fits there.

    Removes what dead runs left first. KitError (infrastructure) when the file fits nowhere.
    """
    tried: list[str] = []
    for base in _bases():
        if len(str(base / f"{_prefix()}00000000" / _LONGEST_SOCKET)) > SOCKET_PATH_MAX:
            tried.append(f"{base} is too long a path for a socket")
            continue
        try:
            with _locked(base):
                room = _room(base, _sweep(base))
                if room >= memory:
                    return _make(base, memory)
        except OSError as error:
            raise from_os_error(error, "making the virtual board's RAM file") from error
        tried.append(f"{base} has room for {max(0, room) >> 20} MiB")
    raise KitError(
        ExitCode.INFRASTRUCTURE,
        f"no place for the virtual board's {memory >> 20} MiB of RAM: {'; '.join(tried) or 'no temporary directory'}",
        "free space there, stop other boards (npulab virt list), or give less with --memory",
    )


def _make(base: Path, memory: int) -> Runtime:
    path = base / f"{_prefix()}{secrets.token_hex(4)}"
    path.mkdir(mode=0o700)
    lock = (path / "lock").open("w")
    runtime = Runtime(path, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with runtime.ram.open("wb") as stream:
            stream.truncate(memory)
    except BaseException:
        runtime.discard()
        raise
    return runtime


def running_boards() -> list[dict[str, Any]]:
    """The state documents of the boards that live in the background, oldest first; dead runs are removed."""
    found: list[tuple[float, dict[str, Any]]] = []
    for base in _bases():
        with _locked(base):
            _sweep(base)
            for state in (path / "board.json" for path in _ours(base)):
                if not state.exists():
                    continue
                document = json.loads(state.read_text())
                found.append((state.stat().st_mtime, {**document, "runtime": str(state.parent)}))
    return [document for _, document in sorted(found, key=lambda pair: pair[0])]
