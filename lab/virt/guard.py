# SPDX-License-Identifier: MIT
"""The process that owns a virtual board's programs: ``python -m lab.virt.guard``.

It exists so that nothing outlives the run that started it, whatever happens to that run: the guard holds one end of a
pipe, and when the other end closes (also by ``kill -9``) it ends its programs and removes their files. When the guard
itself is killed, the kernel kills the programs (``PR_SET_PDEATHSIG``); the files then go at the next start, because
their lock is free (`lab.virt.runtime`).

stdin: one JSON line ``{"programs": [...], "remove": [...], "kill_after": s}``, later the line ``detach`` (go on when
stdin closes). A program is ``{"name", "argv", "log", "ready", "ready_timeout", "env", "cwd"}``; programs start in
order, one with ``ready`` has to print that line before the next one starts. stdout: one JSON line per event:
``started``, ``ready``, ``late`` (not ready in time), ``failed`` (could not be started), ``exit`` and ``end``. The end
of any program is the end of all.

Only the standard library, one thread: it starts in some 30 ms, and `preexec_fn` is safe in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _emit(**event: Any) -> None:
    """Tell whoever started us; nobody may be there any more."""
    with contextlib.suppress(OSError):
        os.write(1, (json.dumps(event) + "\n").encode())


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """In a child, between fork and exec: get signal ``number`` when the parent's thread that forked it ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class _Program:
    """One program of the list."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.ready: str | None = spec.get("ready")
        self.deadline = time.monotonic() + float(spec.get("ready_timeout", 60.0))
        self.output = b""
        me = os.getpid()
        with Path(spec["log"]).open("ab") as log:
            self.process = subprocess.Popen(
                spec["argv"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.ready else log,
                stderr=log,
                cwd=spec.get("cwd"),
                env={**os.environ, **spec.get("env", {})},
                preexec_fn=lambda: die_with(me),
            )
        _emit(event="started", name=self.name, pid=self.process.pid)

    def read(self) -> bool:
        """Take what it printed (also after its line: a full pipe would stop it); true once its output is closed."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 4096)
        self.output = (self.output + chunk)[-4096:]
        if self.ready is not None and self.ready.encode() in self.output.splitlines():
            self.ready = None
            _emit(event="ready", name=self.name)
        return not chunk


class Guard:
    """Runs the list until one of its programs ends or nobody wants it any more."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.todo: list[dict[str, Any]] = list(spec["programs"])
        self.remove = [Path(path) for path in spec.get("remove", [])]
        self.kill_after = float(spec.get("kill_after", 3.0))
        self.programs: list[_Program] = []
        self.detached = False
        self.stopping = False
        self.selector = selectors.DefaultSelector()
        self._stdin = b""

    def run(self) -> None:
        """Everything, from the first start to the last file removed."""
        wake, alarm = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(alarm, False)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.selector.register(wake, selectors.EVENT_READ, "wake")
        self.selector.register(0, selectors.EVENT_READ, "stdin")
        try:
            while not self.stopping and not self._ended():
                self._start_next()
                for key, _ in self.selector.select(self._patience()):
                    self._handle(key)
        finally:
            self._end_all()
            for path in self.remove:
                shutil.rmtree(path, ignore_errors=True)
            _emit(event="end")

    def _waiting(self) -> _Program | None:
        """The program whose line is awaited."""
        last = self.programs[-1] if self.programs else None
        return last if last is not None and last.ready is not None else None

    def _patience(self) -> float | None:
        waiting = self._waiting()
        return max(0.0, waiting.deadline - time.monotonic()) if waiting else None

    def _start_next(self) -> None:
        waiting = self._waiting()
        if waiting is not None and time.monotonic() >= waiting.deadline:
            _emit(event="late", name=waiting.name)
            self.stopping = True
        while self.todo and not self.stopping and self._waiting() is None:
            spec = self.todo.pop(0)
            try:
                program = _Program(spec)
            except OSError as error:
                _emit(event="failed", name=spec["name"], error=f"{error.strerror} ({error.filename})")
                self.stopping = True
                return
            self.programs.append(program)
            if program.ready is not None:
                assert program.process.stdout is not None
                self.selector.register(program.process.stdout, selectors.EVENT_READ, program)

    def _handle(self, key: selectors.SelectorKey) -> None:
        if key.data == "wake":
            os.read(key.fd, 4096)
        elif key.data == "stdin":
            chunk = os.read(0, 4096)
            self._stdin = (self._stdin + chunk)[-4096:]
            self.detached |= b"detach\n" in self._stdin
            if not chunk:
                self.selector.unregister(0)
                self.stopping |= not self.detached
        elif isinstance(key.data, _Program) and key.data.read():
            self.selector.unregister(key.fileobj)

    def _ended(self) -> bool:
        """Report the programs that have ended; true if there was one."""
        ended = [program for program in self.programs if program.process.poll() is not None]
        for program in ended:
            _emit(event="exit", name=program.name, code=program.process.returncode)
        return bool(ended)

    def _end_all(self) -> None:
        """End them one by one in the reverse order of starting: TERM, and KILL to whoever does not go in time."""
        deadline = time.monotonic() + self.kill_after
        for program in reversed(self.programs):
            process = program.process
            if process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    """Read the list, run it."""
    # binary and unbuffered: later lines of stdin have to stay for the selector
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return 2
        line += byte
    Guard(json.loads(line)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
