# SPDX-License-Identifier: MIT
"""All processes that a command started, whatever sessions they made: found, and ended.

The process that calls `adopt_orphans` becomes the parent of every descendant whose own parent ends
(``PR_SET_CHILD_SUBREAPER``, prctl(2)), so nothing can leave the tree.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)


def _parents() -> dict[int, int]:
    """The parent of every process that is not a zombie."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has just ended
        if fields[0] != "Z":
            found[int(entry.name)] = int(fields[1])
    return found


def descendants(ancestor: int) -> list[int]:
    """Processes below ``ancestor``, parents before children."""
    children: dict[int, list[int]] = {}
    for process, parent in _parents().items():
        children.setdefault(parent, []).append(process)
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _reap() -> None:
    """Collect what has ended (ours and adopted)."""
    while True:
        try:
            process, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if process == 0:
            return


def end_descendants(patience: float, spare: Collection[int] = ()) -> int:
    """Wait for all descendants of this process to end, after ``patience`` seconds kill them; how many were killed.

    ``spare`` are those that have work to do afterwards. What a killed
    command leaves ends by itself as a rule (a guard sees its pipe close and ends QEMU).
    """
    me, deadline, killed = os.getpid(), time.monotonic() + patience, set[int]()
    while True:
        _reap()
        left = [process for process in descendants(me) if process not in spare]
        if not left:
            return len(killed)
        if time.monotonic() >= deadline:
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.add(process)
        time.sleep(0.02)
