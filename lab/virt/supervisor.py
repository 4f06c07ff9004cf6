# SPDX-License-Identifier: MIT
"""Our side of the guard (`lab.virt.guard`): start programs, know at once when one ends, end them all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lab
from lab.errors import ExitCode, KitError
from lab.process import end, tail

PACKAGE_ROOT = Path(lab.__file__).resolve().parents[1]
"""Where ``lab`` and ``rknpu_userspace`` are; on PYTHONPATH of every Python program that is started."""


def python_environment() -> dict[str, str]:
    """What makes a Python program find the kit, installed or not."""
    before = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{PACKAGE_ROOT}{os.pathsep}{before}" if before else str(PACKAGE_ROOT)}


@dataclass(frozen=True)
class Program:
    """One program of a board.

    ``title`` is what errors call it, ``log`` takes stdout and stderr, ``ready`` is a line it prints when the next one
    may start, ``logs`` are further files whose last lines explain its death.
    """

    name: str
    title: str
    argv: Sequence[str]
    log: Path
    ready: str | None = None
    ready_timeout: float = 60.0
    env: Mapping[str, str] = field(default_factory=dict)
    logs: Sequence[Path] = ()
    cwd: Path | None = None

    def document(self) -> dict[str, Any]:
        """What the guard needs to know."""
        return {
            "name": self.name,
            "argv": [str(part) for part in self.argv],
            "log": str(self.log),
            "ready": self.ready,
            "ready_timeout": self.ready_timeout,
            "env": dict(self.env),
            "cwd": str(self.cwd) if self.cwd else None,
        }


def how_it_ended(code: int) -> str:
    """The words for an exit code of `subprocess` (negative: a signal)."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Supervisor:
    """Programs under one guard process. Not restartable: make a new one."""

    def __init__(self, programs: Sequence[Program], *, remove: Sequence[Path], log: Path, keep_fds: Sequence[int] = ()):
        """``remove``: directories that go with the programs; ``keep_fds``: descriptors the guard inherits (locks)."""
        self.programs = {program.name: program for program in programs}
        self.log = log
        self._remove = remove
        self._keep_fds = keep_fds
        self._guard: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._over = False
        self._wanted_end = False
        self._detached = False

    @property
    def pid(self) -> int:
        """The guard's process id."""
        assert self._guard is not None
        return self._guard.pid

    def start(self) -> None:
        """Start the guard; programs start one after the other from here on."""
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "lab.virt.guard"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **python_environment()},
                start_new_session=True,
                pass_fds=self._keep_fds,
            )
        spec = {
            "programs": [program.document() for program in self.programs.values()],
            "remove": [str(path) for path in self._remove],
        }
        self._reader = threading.Thread(target=self._read, args=(self._guard,), name="board-guard", daemon=True)
        self._reader.start()
        self._send(json.dumps(spec))

    def _send(self, line: str) -> None:
        assert self._guard is not None and self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(line.encode() + b"\n")
            self._guard.stdin.flush()

    def _read(self, guard: subprocess.Popen[bytes]) -> None:
        assert guard.stdout is not None
        for line in guard.stdout:
            with self._changed:
                self._events.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _find(self, event: str, name: str | None = None) -> dict[str, Any] | None:
        for entry in self._events:
            if entry["event"] == event and (name is None or entry.get("name") == name):
                return entry
        return None

    def exit_code(self, name: str) -> int | None:
        """The exit code of a program that ended by itself."""
        with self._changed:
            entry = self._find("exit", name)
        return None if entry is None else int(entry["code"])

    def program_pid(self, name: str) -> int | None:
        """The process id of a program, once it runs."""
        with self._changed:
            entry = self._find("started", name)
        return None if entry is None else int(entry["pid"])

    @property
    def running(self) -> bool:
        """Whether the programs are there (or on their way) and nothing has ended."""
        with self._changed:
            ended = self._over or any(self._find(event) for event in ("exit", "late", "failed", "end"))
        return self._guard is not None and not ended and not self._wanted_end

    def failure(self) -> KitError | None:
        """Why the programs are not there, if they should be."""
        with self._changed:
            if self._wanted_end:
                return None
            for event in ("failed", "late", "exit"):
                entry = self._find(event)
                if entry is not None:
                    return self._describe(entry)
            if not self._over:
                return None
        return KitError(
            ExitCode.INFRASTRUCTURE,
            "the process that guards the virtual board is gone",
            "somebody killed it; start the board again",
            tail=tail(self.log),
            log=self.log,
        )

    def _describe(self, entry: dict[str, Any]) -> KitError:
        program = self.programs[entry["name"]]
        hint = "the log has the whole story; if it repeats, ./npulab doctor checks this machine"
        if entry["event"] == "failed":
            what = f"{program.title} could not be started: {entry['error']}"
            hint = "npulab build virt makes what it needs"
        elif entry["event"] == "late":
            what = f"{program.title} was not ready within {program.ready_timeout:.0f} s"
        else:
            what = f"{program.title} {how_it_ended(int(entry['code']))}"
            if entry["code"] == -signal.SIGBUS:
                hint = "the file system that holds the board's RAM ran full: free /dev/shm or take less --memory"
        texts = [text for path in (program.log, *program.logs) if (text := tail(path))]
        return KitError(ExitCode.INFRASTRUCTURE, what, hint, tail="\n".join(texts), log=program.log)

    def wait_for(self, event: str, name: str, timeout: float) -> None:
        """Wait for an event of a program; raises what `failure` says as soon as anything ends."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._find(event, name) is None:
                ended = self._over or self._find("exit") or self._find("late") or self._find("failed")
                left = deadline - time.monotonic()
                if ended or left <= 0:
                    break
                self._changed.wait(left)
            else:
                return
        failure = self.failure()
        if failure is not None:
            raise failure
        program = self.programs[name]
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"{program.title}: not {event} within {timeout:.0f} s",
            "the machine may be overloaded; run it again",
            tail=tail(program.log),
            log=program.log,
        )

    def wait_end(self, timeout: float) -> bool:
        """Wait until the programs have ended and their files are gone; false if they have not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, timeout)

    def detach(self) -> None:
        """Let the programs live on when this process ends."""
        self._send("detach")
        self._detached = True

    def stop(self) -> None:
        """End everything and wait for it; safe at any time, any number of times."""
        self._wanted_end = True
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin is not None and guard.stdout is not None
        if guard.poll() is None and self._detached:
            guard.terminate()
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.close()
        try:
            guard.wait(8.0)
        except subprocess.TimeoutExpired:
            # its programs have its process group: none is left behind
            end(guard, grace=1.0)
        if self._reader is not None:
            self._reader.join(2.0)
        guard.stdout.close()
