# SPDX-License-Identifier: MIT
"""The USB of another host: a small program (`agent`) runs there for as long as the connection lasts.

Nothing is installed on that host: the program goes through the connection and is run from memory. It needs Python 3.7
and the right to use the device, no libusb. Transfers are asked for without waiting where the protocol allows it, and
reads are sent ahead (`RemoteLink.post`), so that distance costs one round trip per megabyte and not three per transfer.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import process
from lab.errors import ExitCode, KitError
from lab.firmware.medium import link_error
from lab.firmware.rockusb import PRODUCTS, VENDOR, agent
from lab.firmware.rockusb.link import Found, LinkError, LinkLost
from lab.firmware.rockusb.protocol import Receive, Send
from lab.firmware.rockusb.usb import explain, position

START_SECONDS = 30.0
GRACE_SECONDS = 10.0
"""What a connection may take to bring an answer, beyond what the request may take on USB."""
ALIVE_SECONDS = 15.0
"""How often the other side is told that we are there: well below its `agent.QUIET_SECONDS`."""
CLOSE_SECONDS = 1.0
CHUNK = 1 << 18
NOT_FOUND = 127
"""Exit code of a shell that does not find a program."""
START = (
    "exec python3 -I -S -c '"
    'exec(compile(open(0,"rb",closefd=False).read({size}),"npulab-usb","exec"));serve({vendor})'
    "'"
)
"""Nothing but the program itself is sent until it has answered, so reading ahead loses nothing."""


DESCRIPTOR = 18
"""Bytes of a device descriptor."""


@dataclass(frozen=True)
class Request:
    """What the program is asked for; its two numbers are those of `agent`'s operations. ``timeout`` is USB's."""

    operation: int
    device: int = 0
    timeout: float = 5.0
    first: int = 0
    second: int = 0
    data: bytes = b""

    def frame(self, number: int, flags: int) -> bytes:
        """As it goes over the connection."""
        limit = max(1, round(self.timeout * 1000))
        fields = (number, self.operation, flags, self.device, limit, self.first, self.second, len(self.data))
        return agent.REQUEST.pack(*fields) + self.data


class Connection:
    """The running program: frames out, frames in. ``command`` runs a shell's command line on the other host."""

    def __init__(self, command: Sequence[str], where: str) -> None:
        self.where = where
        source = Path(agent.__file__).read_bytes()
        self._errors = os.memfd_create("npulab-ssh")
        self._child = subprocess.Popen(
            [*command, START.format(size=len(source), vendor=VENDOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            bufsize=0,
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._to, self._from = self._child.stdin.fileno(), self._child.stdout.fileno()
        os.set_blocking(self._to, False)
        self._unsent, self._lock = bytearray(source), threading.Lock()
        self._parser, self._answers = agent.Parser(agent.ANSWER), deque[tuple[tuple[int, ...], bytes]]()
        self._number, self._expected = 0, 0
        self._ended = threading.Event()
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def _greet(self) -> None:
        """Wait for the first words, past what log-in scripts print."""
        end, got = time.monotonic() + START_SECONDS, b""
        while agent.HELLO not in got:
            try:
                got += self._move(end)
            except TimeoutError:
                raise link_error(f"{self.where}: no connection within {START_SECONDS:.0f} s") from None
            except EOFError:
                raise self._why() from None
        self._take(got.partition(agent.HELLO)[2])

    def _why(self) -> KitError:
        """Why it ended before it began."""
        from lab.firmware.transports.ssh import explain as explain_ssh

        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(CLOSE_SECONDS)
        code = self._child.poll()
        if code == NOT_FOUND:
            return KitError(
                ExitCode.INFRASTRUCTURE, f"{self.where} has no python3", f"install it on {self.where}: 3.7 or later"
            )
        return explain_ssh(self.where, -1 if code is None else code, self._complaints())

    def _complaints(self) -> str:
        """What ssh and the program said on the side."""
        return os.pread(self._errors, 65536, 0).decode(errors="replace")

    # ---- bytes

    def _move(self, end: float) -> bytes:
        """Send what is taken; what has come, perhaps nothing. TimeoutError at ``end``, EOFError when it has ended."""
        left = max(0.0, end - time.monotonic())
        readable, writable, _ = select.select([self._from], [self._to] if self._unsent else [], [], left)
        if writable:
            self._flush()
        if readable:
            data = os.read(self._from, CHUNK)
            if not data:
                raise EOFError
            return data
        if not writable:
            raise TimeoutError
        return b""

    def _flush(self) -> None:
        """Send what is taken at once; that it has ended shows where answers are read."""
        with self._lock, contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                del self._unsent[: os.write(self._to, self._unsent[:CHUNK])]

    def _take(self, data: bytes) -> None:
        try:
            self._answers += self._parser.feed(data)
        except ValueError as error:
            raise self._lost(f"it garbles what it sends ({error})") from error

    def _lost(self, what: str) -> LinkLost:
        lines = [line for line in self._complaints().splitlines() if line.strip() and "Permanently added" not in line]
        self.close()
        return LinkLost(f"the connection to {self.where} is lost: {lines[-1] if lines else what}")

    def _keep_alive(self) -> None:
        frame = agent.REQUEST.pack(0, agent.ALIVE, 0, 0, 0, 0, 0, 0)
        while not self._ended.wait(ALIVE_SECONDS):
            with self._lock, contextlib.suppress(OSError):
                if self.alive and not self._unsent:  # else there is more on its way than this
                    self._unsent += frame
                    del self._unsent[: os.write(self._to, self._unsent)]

    # ---- requests and answers

    @property
    def alive(self) -> bool:
        """Whether it can be used."""
        return not self._ended.is_set()

    def ask(self, request: Request, chained: bool = False) -> None:
        """Send a request; its answer comes after those of the requests before it."""
        if not self.alive:
            raise LinkLost(f"the connection to {self.where} is closed")
        self._number = self._number % 0xFFFFFFFF + 1
        flags = agent.CHAINED if chained else 0
        with self._lock:
            self._unsent += request.frame(self._number, flags)
        self._flush()

    @property
    def pending(self) -> bool:
        """Whether answers are due."""
        return self._number != self._expected

    def answer(self, timeout: float, grace: float | None = None) -> tuple[int, bytes]:
        """The next answer: 0 or an errno, and data. LinkLost when none comes in time, or the connection ends."""
        grace = GRACE_SECONDS if grace is None else grace
        end = time.monotonic() + timeout + grace
        while not self._answers:
            if not self.alive:
                raise LinkLost(f"the connection to {self.where} is closed")
            try:
                data = self._move(end)
            except TimeoutError:
                raise self._lost(f"no answer within {timeout + grace:.0f} s") from None
            except EOFError:
                raise self._lost("it ended") from None
            self._take(data)
            if data:
                end = max(end, time.monotonic() + grace)
        (number, code, _), data = self._answers.popleft()
        self._expected = self._expected % 0xFFFFFFFF + 1
        if number != self._expected:
            raise self._lost(f"it answers request {number} instead of {self._expected}")
        return code, data

    def call(self, request: Request) -> tuple[int, bytes]:
        """A request and its answer, when no other is due."""
        self.ask(request)
        return self.answer(request.timeout)

    def close(self) -> None:
        """End the program there; nothing of it is left."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(CLOSE_SECONDS)
        if self._child.poll() is None:
            process.end(self._child, 1)
        os.close(self._errors)


class RemoteLink:
    """An opened device. What is sent is answered for by the next transfer that waits."""

    def __init__(self, connection: Connection, number: int, found: Found) -> None:
        self.found, self._connection, self._number = found, connection, number
        self._owed: deque[float] = deque()
        self._posted: deque[Send | Receive] = deque()

    def post(self, steps: Sequence[Send | Receive], timeout: float) -> None:
        """Send ahead. A step that does not bring all that it is asked for keeps the rest from being tried."""
        if self._owed or self._posted:
            return
        for step in steps:
            self._connection.ask(self._request(step, timeout), chained=bool(self._posted))
            self._posted.append(step)

    def send(self, data: bytes, timeout: float) -> None:
        self._ask(Send(data), timeout)
        self._owed.append(timeout)

    def receive(self, length: int, timeout: float) -> bytes:
        self._ask(Receive(length), timeout)
        self._owed.append(timeout)
        return self._collect()

    def control(self, request: int, value: int, index: int, data: bytes, timeout: float) -> None:
        self._call(Request(agent.CONTROL, self._number, timeout, 0x40 | request << 8, value | index << 16, data))

    def clear(self) -> None:
        self._call(Request(agent.CLEAR, self._number))

    def close(self) -> None:
        """In order, when that is quick; else the connection goes, which frees the device too."""
        with contextlib.suppress(LinkLost):
            while self._connection.pending:
                self._connection.answer(0.0, CLOSE_SECONDS)
            self._connection.ask(Request(agent.CLOSE, self._number))
            self._connection.answer(0.0, CLOSE_SECONDS)

    def _request(self, step: Send | Receive, timeout: float) -> Request:
        if isinstance(step, Send):
            return Request(agent.OUT, self._number, timeout, data=step.data)
        return Request(agent.IN, self._number, timeout, step.length)

    def _ask(self, step: Send | Receive, timeout: float) -> None:
        """Ask for a transfer, unless that was done ahead."""
        if self._posted and self._posted[0] == step:
            self._posted.popleft()
            return
        if self._posted:
            self._collect()
            self._drop()
        self._connection.ask(self._request(step, timeout), chained=bool(self._owed))

    def _collect(self) -> bytes:
        """Take the answers that are due; the data of the last one. The first error is raised once all are there."""
        problem, data = None, b""
        while self._owed:
            code, data = self._connection.answer(self._owed.popleft())
            if code and problem is None:
                problem = self._error(code, data)
        if problem is not None:
            raise problem
        return data

    def _drop(self) -> None:
        """Take the answers to what was sent ahead and is not wanted any more."""
        while self._posted:
            self._posted.popleft()
            self._connection.answer(GRACE_SECONDS)

    def _call(self, request: Request) -> None:
        """A request of its own; what was under way before it is of no interest any more."""
        try:
            self._collect()
        except LinkLost:
            raise
        except LinkError:
            self._owed.clear()
        self._drop()
        code, data = self._connection.call(request)
        if code:
            raise self._error(code, data)

    def _error(self, code: int, data: bytes) -> Exception:
        if code == agent.SKIPPED:
            return LinkError("skipped after a short transfer")
        return explain(code, data.decode(errors="replace"), self._connection.where)


class RemoteBus:
    """The USB of the host that ``command`` leads to; ``destination`` is its name in ``--via``.

    Connects when it is used, and again after the connection was lost or closed.
    """

    def __init__(self, command: Callable[[], Sequence[str]], destination: str) -> None:
        self._command, self.destination = command, destination
        self.where = destination.rpartition("@")[2]
        self.name = f"USB of {self.where}"
        self._connection: Connection | None = None

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.alive:
            self._connection = None
            self._connection = Connection(self._command(), self.where)
        return self._connection

    def _call(self, request: Request) -> tuple[Connection, int, bytes]:
        """A request, in a second connection when the one that was there proves to be lost."""
        for _ in range(2):
            try:
                connection = self._connected()
                return (connection, *connection.call(request))
            except LinkLost as error:
                problem = error
        raise link_error(f"{self.where}: {problem}") from problem

    def devices(self) -> list[Found]:
        _, code, raw = self._call(Request(agent.LIST))
        if code:
            what = f"{self.where}: USB cannot be used: {raw.decode(errors='replace')}"
            raise KitError(ExitCode.INFRASTRUCTURE, what, "it has to run Linux, with /sys and /dev/bus/usb")
        found, at = [], 0
        while at < len(raw):
            name, at = raw[at + 1 : at + 1 + raw[at]].decode(), at + 1 + raw[at]
            found.append(_found(name, raw[at : at + DESCRIPTOR]))
            at += DESCRIPTOR
        return sorted((device for device in found if device.product in PRODUCTS), key=position)

    def open(self, path: str) -> RemoteLink:
        connection, code, raw = self._call(Request(agent.OPEN, data=path.encode()))
        if code:
            raise explain(code, raw.decode(errors="replace"), self.where)
        return RemoteLink(connection, int.from_bytes(raw[:2], "little"), _found(path, raw[2:]))

    def way(self, path: str) -> str:
        return f"rockusb+ssh:{self.destination},{path}"

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _found(path: str, descriptor: bytes) -> Found:
    bcd_usb, vendor, product = (int.from_bytes(descriptor[at : at + 2], "little") for at in (2, 8, 10))
    return Found(path, vendor, product, bcd_usb)
