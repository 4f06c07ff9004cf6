# SPDX-License-Identifier: MIT
"""Running kas so that nothing of it stays: BitBake's server leaves its caller's session, yet ends with us.

kas starts BitBake in a process group of its own, and BitBake's server makes itself a daemon. This process becomes the
parent of every descendant that loses its own (`lab.farm.processes`), so all of them are found again. On an interrupt
kas and the server are told; the server stops its tasks, removes its socket and frees ``bitbake.lock``. What does not go
in time is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.farm.processes import adopt_orphans, descendants
from lab.virt.guard import die_with

SERVER = b"bitbake-server"
QUIET_END, TOLD, KILLED = 40.0, 30.0, 5.0
"""Seconds: for BitBake's server after its last command, for everything after it was told to end, after SIGKILL."""
LOG_LIMIT = 32 << 20


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    log: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> int:
    """Run a command to its end, its output appended to ``log`` and given line by line; its exit code.

    However this call ends, no process of it is left.
    """
    arguments = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.is_file() and log.stat().st_size > LOG_LIMIT:
        log.unlink()
    adopt_orphans()
    me = os.getpid()
    before = set(descendants(me))
    with log.open("ab") as sink:
        sink.write(("$ " + " ".join(arguments) + "\n").encode())
        sink.flush()
        try:
            process = subprocess.Popen(
                arguments,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # kas passes a SIGTERM on; when we are killed it is the kernel that sends it
                preexec_fn=lambda: die_with(me, signal.SIGTERM),
            )
        except FileNotFoundError as error:
            raise KitError(ExitCode.INFRASTRUCTURE, f"{arguments[0]} is not there", "pip install kas") from error
        patience = 0.0
        try:
            assert process.stdout is not None
            for line in process.stdout:
                sink.write(line)
                sink.flush()
                on_line(line.decode(errors="replace").rstrip())
            process.wait()
            patience = QUIET_END
        finally:
            with _undisturbed():
                _end_all(process, before, patience)
    return process.returncode


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the clearing up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _end_all(process: subprocess.Popen[bytes], before: set[int], patience: float) -> None:
    """Wait for all that was started; tell it to end, then kill it. ``before``: processes of others."""
    if _gone(process, before, patience):
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    for other in _left(before):
        # tasks and workers are the server's to end
        if SERVER in _command_line(other):
            _send(other, signal.SIGTERM)
    if _gone(process, before, TOLD):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        for other in _left(before):
            _send(other, number)
        if _gone(process, before, KILLED):
            return


def _left(before: set[int]) -> list[int]:
    return [other for other in descendants(os.getpid()) if other not in before]


def _gone(process: subprocess.Popen[bytes], before: set[int], patience: float) -> bool:
    """Whether nothing of it runs any more; waits ``patience`` seconds for that."""
    deadline = time.monotonic() + patience
    while True:
        process.poll()
        left = _left(before)
        if not left and process.returncode is not None:
            _reap(before)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _reap(before: set[int]) -> None:
    """Collect orphans that have ended as our children, and no child of anybody else's."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in before:
            continue
        with contextlib.suppress(OSError, ChildProcessError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                os.waitpid(int(entry.name), os.WNOHANG)


def _command_line(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
