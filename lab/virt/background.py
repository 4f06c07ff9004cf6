# SPDX-License-Identifier: MIT
"""Boards that live on in the background: what ``npulab virt up`` leaves and ``shell``, ``list`` and ``down`` find."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import ExitCode, KitError
from lab.process import tail
from lab.virt.loader import LABEL, RESCUE
from lab.virt.qmp import Qmp
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
    loader: str = ""
    """What starts it from its eMMC; empty when QEMU is given its kernel."""

    @property
    def console(self) -> Path:
        """The unix socket of the console."""
        return self.runtime / "console.sock"

    @property
    def log(self) -> Path:
        """Everything that its console said, the loader's words included."""
        return self.results / "console.log"

    @property
    def ssh_options(self) -> list[str]:
        """Options of ssh for this board."""
        return ssh_options(self.ssh_key)

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


def ssh_options(key: Path) -> list[str]:
    """Options of ssh for a virtual board: its own key, no trace in the user's known_hosts."""
    words = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes"]
    return ["-F", "none", *(part for word in words for part in ("-o", word)), "-i", str(key)]


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
            loader=str(state.get("loader", "")),
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


def wait_for_ssh(port: int, patience: float = 30.0) -> bool:
    """Whether an SSH server greets behind that port in time; it starts beside the console's log-in."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
            if connection.recv(4) == b"SSH-":
                return True
        time.sleep(0.1)
    return False


def power_cycle(board: BackgroundBoard, label: str = "", *, rescue: bool = False) -> None:
    """Take the power away from a board that starts from its eMMC and give it back; what it had not written is lost.

    ``label``: the entry to start this once, as somebody at the loader's prompt would choose it; ``rescue``: start from
    the virtual board's own disks, as from a card.
    """
    if not board.loader:
        raise KitError(
            ExitCode.USAGE,
            f"{board.name} was not started from its eMMC: without power nothing of it would be left",
            "npulab virt up --emmc FILE --boot emmc starts such a board",
        )
    if label:
        (board.runtime / LABEL).write_text(label)
    if rescue:
        (board.runtime / RESCUE).touch()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(board.runtime / "monitor.sock"))
        monitor = Qmp(connection)
        # its inode tells the old QEMU's socket from the new one's
        before = (board.runtime / "monitor.sock").stat().st_ino
        monitor.execute("quit")
    except OSError as error:
        raise KitError(ExitCode.LINK, f"the monitor of {board.name} does not answer: {error}") from error
    finally:
        connection.close()
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if (board.runtime / "monitor.sock").stat().st_ino != before:
                return
        time.sleep(0.02)
    raise KitError(
        ExitCode.LINK,
        f"{board.name} does not start again",
        "its console.log and qemu.log say why",
        tail=tail(board.log),
    )


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
