# SPDX-License-Identifier: MIT
"""Ending tasks that run beside each other: which group a task belongs to, and whether it is to end."""

from __future__ import annotations

import contextvars
import subprocess
import threading
from collections.abc import Callable


class Cancelled(Exception):
    """This task was ended because another one failed or the user stopped the run."""


class Group:
    """The tasks of one `run_all`, and the programs that they run at the moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._processes: set[subprocess.Popen[bytes]] = set()

    def add(self, process: subprocess.Popen[bytes]) -> bool:
        """Register a program; False when the group was cancelled (the caller ends the program then)."""
        with self._lock:
            self._processes.add(process)
            return not self._cancelled

    def discard(self, process: subprocess.Popen[bytes]) -> None:
        """The program has ended."""
        with self._lock:
            self._processes.discard(process)

    @property
    def cancelled(self) -> bool:
        """Whether the tasks are to end."""
        return self._cancelled

    def cancel(self, end: Callable[[subprocess.Popen[bytes]], None]) -> None:
        """End every program of the group, now and from now on."""
        with self._lock:
            self._cancelled = True
            running = list(self._processes)
        for process in running:
            end(process)


_current: contextvars.ContextVar[Group | None] = contextvars.ContextVar("group", default=None)


def current() -> Group | None:
    """The group whose task calls this, if any."""
    return _current.get()


def enter(group: Group) -> None:
    """The calling task belongs to ``group`` from now on."""
    _current.set(group)


def check_cancelled() -> None:
    """Raise `Cancelled` when the calling task is to end; call it in long loops."""
    group = _current.get()
    if group is not None and group.cancelled:
        raise Cancelled
