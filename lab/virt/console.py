# SPDX-License-Identifier: MIT
"""The user's terminal on the serial console of a background board."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.errors import ExitCode, KitError

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and `virsh console`."""


@contextmanager
def _raw_terminal(descriptor: int) -> Iterator[None]:
    """Keys go through as they are, and the terminal is as before afterwards."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def attach(path: Path) -> None:
    """Connect stdin and stdout to the console until Ctrl-], end of input, or the board's end."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise KitError(
            ExitCode.LINK, f"the board's console does not answer: {error.strerror}", "npulab virt list"
        ) from error
    print("connected; Ctrl-] leaves, Enter shows the prompt", file=sys.stderr)
    with connection, _raw_terminal(sys.stdin.fileno()):
        _pump(connection, sys.stdin.fileno(), sys.stdout.fileno())
    print(file=sys.stderr)


def _pump(connection: socket.socket, keys: int, screen: int, linger: float = 1.0) -> None:
    """Copy both ways. After the end of ``keys`` (a pipe), what the board still says within ``linger`` is shown."""
    sources: list[int] = [connection.fileno(), keys]
    while True:
        ready, _, _ = select.select(sources, [], [], None if keys in sources else linger)
        if not ready:
            return
        if connection.fileno() in ready:
            data = connection.recv(4096)
            if not data:
                return
            os.write(screen, data)
        if keys in ready:
            data = os.read(keys, 4096)
            before, leave, _ = data.partition(LEAVE)
            connection.sendall(before)
            if leave:
                return
            if not data:
                sources.remove(keys)
