# SPDX-License-Identifier: MIT
"""A client of QEMU's machine protocol (QMP) with deadlines, and with the events that tell of the guest's end."""

from __future__ import annotations

import json
import select
import socket
import time
from collections import deque
from typing import Any

from lab.errors import ExitCode, KitError


class QmpError(KitError):
    """QEMU refused a command, answered nonsense, or not at all."""

    def __init__(self, message: str) -> None:
        hint = "see QEMU's log in the results directory"
        super().__init__(ExitCode.INFRASTRUCTURE, f"QEMU's monitor: {message}", hint)


class Qmp:
    """One connection. Events are kept in ``events`` in the order in which they came."""

    def __init__(self, connection: socket.socket, timeout: float = 10.0) -> None:
        """Shake hands; KitError if the other side does not speak QMP within ``timeout`` seconds."""
        self._connection = connection
        self._connection.setblocking(False)
        self._buffer = b""
        self._timeout = timeout
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        greeting = self._next(time.monotonic() + timeout)
        if "QMP" not in greeting:
            raise QmpError(f"no greeting, but {str(greeting)[:80]}")
        self.execute("qmp_capabilities")

    def _next(self, deadline: float) -> dict[str, Any]:
        """The next message, whatever it is."""
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._connection], [], [], left)[0]:
                raise QmpError("no answer")
            try:
                chunk = self._connection.recv(65536)
            except ConnectionError as error:
                raise QmpError("connection lost") from error
            if not chunk:
                raise QmpError("connection closed")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise QmpError(f"not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise QmpError(f"not a message: {line[:80]!r}")
        return message

    def execute(self, command: str, arguments: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        """Run a command and return its result; KitError when QEMU refuses it or does not answer."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            self._connection.settimeout(self._timeout)
            self._connection.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: connection lost") from error
        finally:
            if self._connection.fileno() >= 0:
                self._connection.setblocking(False)
        deadline = time.monotonic() + (timeout or self._timeout)
        while True:
            message = self._next(deadline)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error'].get('desc', message['error'])}")
            elif "return" in message:
                return message["return"]
            else:
                raise QmpError(f"{command}: answer without result: {str(message)[:80]}")

    def human(self, line: str) -> str:
        """A line for QEMU's human monitor, and what it prints."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def poll(self) -> None:
        """Take the events that have come, without waiting."""
        while b"\n" in self._buffer or select.select([self._connection], [], [], 0)[0]:
            message = self._next(time.monotonic() + 1.0)
            if "event" in message:
                self.events.append(message)

    def wait(self) -> None:
        """Wait for the next message and keep it if it is an event; QmpError when the connection ends."""
        select.select([self._connection], [], [])
        message = self._next(time.monotonic() + self._timeout)
        if "event" in message:
            self.events.append(message)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
