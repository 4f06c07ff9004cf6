# SPDX-License-Identifier: MIT
"""Boards that live on in the background: what ``npulab virt up`` leaves and ``shell``, ``list`` and ``down`` find."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.virt.runtime import running_boards


@dataclass(frozen=True)
class BackgroundBoard:
    """A running board, as its state file describes it."""

    name: str
    board: str
    ssh_port: int
    ssh_key: Path
    guard: int
    runtime: Path
    results: Path

    @property
    def console(self) -> Path:
        """The unix socket of the console."""
        return self.runtime / "console.sock"

    @property
    def ssh_options(self) -> list[str]:
        """Options of ssh for this board: its own key, no trace in the user's known_hosts."""
        words = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes"]
        return ["-F", "none", *(part for word in words for part in ("-o", word)), "-i", str(self.ssh_key)]

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "board": self.board,
            "ssh_port": self.ssh_port,
            "ssh_key": str(self.ssh_key),
            "console": str(self.console),
            "results": str(self.results),
        }


def boards_in_background() -> list[BackgroundBoard]:
    """All boards of this user that run in the background, oldest first."""
    return [
        BackgroundBoard(
            name=str(state["name"]),
            board=str(state.get("board", "")),
            ssh_port=int(state["ssh_port"]),
            ssh_key=Path(state.get("ssh_key", "")),
            guard=int(state["guard"]),
            runtime=Path(state["runtime"]),
            results=Path(state["results"]),
        )
        for state in running_boards()
    ]


def find_board(name: str | None) -> BackgroundBoard:
    """The board of that name, or the only one; KitError (no device) when there is none or no telling which."""
    boards = boards_in_background()
    if name is None and len(boards) > 1:
        names = " ".join(board.name for board in boards)
        raise KitError(ExitCode.NO_DEVICE, f"{len(boards)} virtual boards are running", f"name one of: {names}")
    for board in boards:
        if name in (None, board.name):
            return board
    what = f"no virtual board called {name} is running" if name else "no virtual board is running"
    raise KitError(ExitCode.NO_DEVICE, what, "npulab virt up starts one, npulab virt list shows them")


def stop_board(board: BackgroundBoard, patience: float = 10.0) -> None:
    """End a board and wait until its files are gone (its guard removes them last)."""
    # the directory's lock was held a moment ago, so the guard's process id is still the guard's
    with contextlib.suppress(ProcessLookupError):
        os.kill(board.guard, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while board.runtime.exists():
        if time.monotonic() >= deadline:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"virtual board {board.name} (process {board.guard}) did not end within {patience:.0f} s",
                f"kill -9 {board.guard}; its files go at the next start of a board",
            )
        time.sleep(0.05)
