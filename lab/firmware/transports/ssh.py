# SPDX-License-Identifier: MIT
"""A shell on the board over OpenSSH."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab import process
from lab.errors import ExitCode, KitError
from lab.firmware.medium import link_error

SILENCE_SECONDS = 30.0
"""A stream that brings nothing for this long is taken for dead."""


def check_destination(destination: str) -> None:
    """KitError (usage) for what is not ``[USER@]HOST[:PORT]``."""
    if not re.fullmatch(r"([A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?", destination):
        raise KitError(ExitCode.USAGE, f"{destination} is not [USER@]HOST[:PORT]")


def arguments(destination: str, options: Sequence[str] = (), control: str = "none") -> list[str]:
    """The ssh command for a destination, up to what is run there. ``control``: path of a shared connection."""
    check_destination(destination)
    host, _, port = destination.partition(":")
    words = [process.require("ssh", "openssh-client"), "-o", f"ControlPath={control}"]
    for option in ("BatchMode=yes", "StrictHostKeyChecking=accept-new", "ConnectTimeout=10", "ServerAliveInterval=5"):
        words += ["-o", option]
    return [*words, *options, *(["-p", port] if port else []), host]


def explain(name: str, code: int, text: str) -> KitError:
    """Why ssh, or what it ran, ended with ``code``; ``text`` is what it said."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if "HOST IDENTIFICATION HAS CHANGED" in text:
        return KitError(
            ExitCode.REFUSED,
            f"{name}: the host key changed: another board, or a new system on it",
            "if you installed it anew, remove the old key with ssh-keygen -R HOST, then run this again",
        )
    if "Permission denied (" in text:
        return KitError(ExitCode.LINK, f"{name}: the login is refused", "put your key on the board: ssh-copy-id")
    if "Permission denied" in text or "Operation not permitted" in text:
        return KitError(ExitCode.LINK, f"{name}: {lines[-1]}", "log in as root, or raise the user's rights")
    return link_error(f"{name}: {lines[-1] if lines else f'the command ended with {code}'}")


class SshRemote:
    """Runs scripts through ``ssh``; one connection is shared by all of them. ``received`` counts the bytes that came.

    ``prefix`` replaces the ssh command, for labgrid's own connection or for a shell on this host.
    """

    step = 1 << 20

    def __init__(self, destination: str, options: Sequence[str] = (), prefix: Sequence[str] | None = None) -> None:
        self.name = f"ssh:{destination}"
        self._directory: Path | None = None
        self.root = ""
        self.received = 0
        if prefix is not None:
            self._prefix = list(prefix)
            return
        check_destination(destination)
        self._directory = Path(tempfile.mkdtemp(prefix="npulab-ssh-"))
        self._prefix = arguments(destination, options, f"{self._directory}/%C")
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Start the shared connection. It outlives this call, so it must not hold a pipe of ours: a file instead."""
        assert self._directory is not None
        messages = self._directory / "messages"
        command = [self._prefix[0], "-fNM", *self._prefix[1:]]
        with messages.open("wb") as sink:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, timeout=30, check=False
                )
            except subprocess.TimeoutExpired:
                raise link_error(f"{self.name}: no connection within 30 s") from None
        if done.returncode:
            raise self._explain(done.returncode, messages.read_text(errors="replace"))

    def _command(self, script: str) -> list[str]:
        return [*self._prefix, f"NPULAB_ROOT={self.root}; export NPULAB_ROOT; {script}"]

    def run(self, script: str, stdin: bytes = b"", *, timeout: float = 30) -> bytes:
        try:
            done = subprocess.run(
                self._command(script),
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise link_error(f"{self.name}: no answer within {timeout:.0f} s") from None
        if done.returncode:
            raise self._explain(done.returncode, done.stderr.decode(errors="replace"))
        self.received += len(done.stdout)
        return done.stdout

    def _explain(self, code: int, text: str) -> KitError:
        return explain(self.name, code, text)

    def stream(self, script: str) -> Iterator[bytes] | None:
        return self._pieces(script)

    def _pieces(self, script: str) -> Iterator[bytes]:
        child = subprocess.Popen(
            self._command(script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdout is not None and child.stderr is not None
        try:
            while True:
                if not select.select([child.stdout], [], [], SILENCE_SECONDS)[0]:
                    raise link_error(f"{self.name}: silent for {SILENCE_SECONDS:.0f} s")
                data = os.read(child.stdout.fileno(), 1 << 18)
                if not data:
                    break
                self.received += len(data)
                yield data
            code = child.wait(10)
            if code:
                raise self._explain(code, child.stderr.read().decode(errors="replace"))
        finally:
            if child.poll() is None:
                process.end(child, 1)
            child.stdout.close()
            child.stderr.close()

    def close(self) -> None:
        if self._directory is None:
            return
        command = [self._prefix[0], "-O", "exit", *self._prefix[1:]]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False)
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
        self._directory.rmdir()
        self._directory = None
