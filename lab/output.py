# SPDX-License-Identifier: MIT
"""What a user sees: results on stdout, progress on stderr, one JSON document with ``--json``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 10.0
"""Interval between progress lines when stderr is not a terminal."""


class Meter(Protocol):
    """A running stage: how far it is, and what it does now."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """``done`` of ``total`` units; without a total the stage only shows that it is alive."""


class _LineMeter:
    """A line every ten seconds, for logs."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.last = time.monotonic()

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        now = time.monotonic()
        if now - self.last < LINE_SECONDS:
            return
        self.last = now
        spent = now - self.started
        share = f" {100 * done / total:3.0f} %" if total else ""
        left = f", about {spent / done * (total - done):.0f} s left" if total and 0 < done < total else ""
        print(f"{self.label}:{share} {spent:.0f} s{left} {text}".rstrip(), file=sys.stderr, flush=True)


class _QuietMeter:
    """Shows nothing."""

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        """Nobody watches."""


class _BarMeter:
    """One line of the shared bar display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def update(self, done: float, total: float | None = None, text: str = "") -> None:
        self.progress.update(self.task, completed=done, total=total, text=text[:40])


class Output:
    """Where commands write; one object per run."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        # a pipe or file has no width of its own: wide enough that no table is folded
        width = None if sys.stdout.isatty() else 160
        self._stdout = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
        self._stderr = Console(file=sys.stderr, highlight=False)
        self._progress: Progress | None = None
        self._users = 0
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """A line of the result for people."""
        if not self.as_json:
            self._stdout.print(text, markup=False)

    def note(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            self._stderr.print(text, markup=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table for people; numbers are aligned to the right."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(column, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self._stdout.print(table)

    def document(self, document: dict[str, Any]) -> None:
        """The one document of ``--json``."""
        if self.as_json:
            print(json.dumps(document, indent=2, sort_keys=False, default=str), flush=True)

    @contextmanager
    def stage(self, label: str) -> Iterator[Meter]:
        """Show a stage while the block runs; stages of several threads stand below each other."""
        if self.quiet:
            yield _QuietMeter()
            return
        if not self._stderr.is_terminal:
            started = time.monotonic()
            yield _LineMeter(label)
            if time.monotonic() - started >= 1:
                print(f"{label}: done in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            return
        progress = self._acquire()
        task = progress.add_task(label, total=None, text="")
        try:
            yield _BarMeter(progress, task)
        finally:
            progress.remove_task(task)
            self._release()

    def _acquire(self) -> Progress:
        with self._lock:
            if self._progress is None:
                self._progress = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[text]}"),
                    console=self._stderr,
                    transient=True,
                )
                self._progress.start()
            self._users += 1
            return self._progress

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._progress is not None:
                self._progress.stop()
                self._progress = None
