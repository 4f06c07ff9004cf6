# SPDX-License-Identifier: MIT
"""Running other programs: own process group, output in a log, ended with us, errors with their last lines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lab.cancel import Cancelled, current
from lab.errors import ExitCode, KitError

TAIL_LINES = 15
"""Lines of a failed program's output that a user sees."""


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 32768))
            text = stream.read(32768).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def require(program: str, package: str) -> str:
    """Path of a program, or the error that names the Debian package it comes in."""
    # users' paths often leave out the tools of file systems
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if found is None:
        raise KitError(
            ExitCode.INFRASTRUCTURE,
            f"the program {program} is not installed",
            f"apt-get install {package}, or run ./npulab --install-deps",
        )
    return found


def end(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """End a process group we started: TERM, then KILL after ``grace`` seconds."""
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            continue
        break
    process.wait()


def run(
    command: Sequence[str | Path],
    *,
    stage: str,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    timeout: float | None = None,
    hint: str = "",
) -> None:
    """Run a program to its end, its output appended to ``log`` and given line by line to ``on_line``.

    ``env`` adds to the environment. Raises KitError with the last lines when it fails, is not found or takes longer
    than ``timeout`` seconds, Cancelled when the task that called it is to end. Whatever ends this call ends the
    program's whole process group.
    """
    arguments = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(("$ " + " ".join(arguments) + "\n").encode())
        sink.flush()
        try:
            process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env={**os.environ, **env} if env else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise KitError(
                ExitCode.INFRASTRUCTURE, f"{stage}: {arguments[0]} is not there", "run ./npulab --install-deps"
            ) from error
        group = current()
        if group is not None and not group.add(process):
            group.discard(process)
            end(process)
            raise Cancelled
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            end(process)

        timer = threading.Timer(timeout, expire) if timeout else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                sink.write(line)
                if on_line:
                    on_line(line.decode(errors="replace").rstrip("\n"))
            process.wait()
        finally:
            if timer:
                timer.cancel()
            end(process)
            if group is not None:
                group.discard(process)
    if group is not None and group.cancelled:
        raise Cancelled
    if expired.is_set():
        raise KitError(ExitCode.INFRASTRUCTURE, f"{stage}: no end after {timeout:.0f} s", hint, tail=tail(log), log=log)
    if process.returncode:
        how = f"ended with {process.returncode}"
        if process.returncode < 0:
            how = f"was killed by {signal.Signals(-process.returncode).name}"
        raise KitError(
            ExitCode.INFRASTRUCTURE, f"{stage}: {Path(arguments[0]).name} {how}", hint, tail=tail(log), log=log
        )
