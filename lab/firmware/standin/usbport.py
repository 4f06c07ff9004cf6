# SPDX-License-Identifier: MIT
"""USB ports that virtual machines plug into: each is a socket, and a stand-in sits at one of them."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lab.errors import ExitCode, KitError, from_os_error
from lab.firmware.standin.engine import Engine
from lab.firmware.standin.usbdevice import RedirectedDevice
from lab.firmware.standin.usbredir import RedirError

POLL_SECONDS = 0.05
CHUNK = 1 << 18


def listen(where: str) -> socket.socket:
    """A listening socket: a path, or ``tcp:PORT`` of this machine alone (0 for any free port)."""
    kind, _, port = where.partition(":")
    try:
        if kind == "tcp" and port.isdecimal():
            return socket.create_server(("127.0.0.1", int(port)))
        Path(where).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(where)
        Path(where).chmod(0o600)
        listener.listen()
    except OverflowError as error:
        raise KitError(ExitCode.USAGE, f"{where}: there is no such port", "0 to 65535") from error
    except OSError as error:
        raise from_os_error(error, f"listening on {where}") from error
    return listener


class _Port:
    """One socket and the guest that is connected to it; ``engine`` is what is plugged in."""

    def __init__(self, where: str, listener: socket.socket) -> None:
        self.where, self.listener = where, listener
        self.engine: Engine | None = None
        self.guest: socket.socket | None = None
        self.device: RedirectedDevice | None = None
        self.unsent = bytearray()


class UsbPorts:
    """Serves engines to virtual machines; use as a context manager.

    Engines are plugged into the sockets in order. One that moves to another port goes to the next empty socket, or
    comes back at its own when there is none.
    """

    def __init__(self, where: list[str], engines: list[Engine], say: Callable[[str], None] = lambda text: None) -> None:
        if len(engines) > len(where):
            raise ValueError("fewer sockets than devices")
        self.engines, self._say = engines, say
        self.ports: list[_Port] = []
        try:
            for text in where:
                self.ports.append(_Port(text, listen(text)))
        except KitError:
            self._remove_sockets()
            raise
        self._names: dict[int, str] = {}
        for port, engine in zip(self.ports, engines, strict=False):
            port.engine = engine
            engine.delay = time.sleep
            self._names[id(engine)] = engine.port
        self._selector = selectors.DefaultSelector()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> UsbPorts:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Unplug everything and remove the sockets."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._selector.close()
        for port in self.ports:
            self._hang_up(port)
        self._remove_sockets()
        for engine in self.engines:
            engine.close()

    def configured(self, engine: Engine) -> bool:
        """Whether a guest has enumerated an engine since it last came to the bus.

        Who unplugs it before that leaves Linux waiting: QEMU's xHCI answers no transfer that a detach interrupts, and
        each of them takes 5 s to time out, where a real host reports a transaction error at once.
        """
        return any(port.device is not None and port.engine is engine and port.device.configured for port in self.ports)

    def _remove_sockets(self) -> None:
        for port in self.ports:
            port.listener.close()
            if not port.where.startswith("tcp:"):
                Path(port.where).unlink(missing_ok=True)

    def _run(self) -> None:
        for port in self.ports:
            port.listener.setblocking(False)
            self._selector.register(port.listener, selectors.EVENT_READ, port)
        while not self._closing.is_set():
            for key, events in self._selector.select(POLL_SECONDS):
                if key.fileobj is key.data.listener:
                    self._accept(key.data)
                elif key.fileobj is key.data.guest:
                    self._serve(key.data, bool(events & selectors.EVENT_READ))
            self._move()
            for port in self.ports:
                self._poll(port)

    def _move(self) -> None:
        """Engines whose port has changed go to an empty one."""
        for port in self.ports:
            engine = port.engine
            if engine is None or self._names[id(engine)] == engine.port:
                continue
            self._names[id(engine)] = engine.port
            empty = next((other for other in self.ports if other.engine is None), None)
            if empty is not None:
                port.engine, empty.engine = None, engine
                for changed in (port, empty):
                    if changed.device is not None:
                        changed.device.engine = changed.engine

    def _accept(self, port: _Port) -> None:
        with contextlib.suppress(OSError):
            guest, _ = port.listener.accept()
            if port.guest is not None:
                self._serve(port, True)  # it may have left a moment ago
            if port.guest is not None:
                self._say(f"{port.where}: a second guest is turned away")
                guest.close()
                return
            guest.setblocking(False)
            port.guest, port.device = guest, RedirectedDevice(port.engine, lambda text: self._say(text))
            port.unsent += port.device.start()
            self._selector.register(guest, selectors.EVENT_READ, port)

    def _serve(self, port: _Port, readable: bool) -> None:
        assert port.guest is not None and port.device is not None
        try:
            if readable:
                data = port.guest.recv(CHUNK)
                if not data:
                    self._hang_up(port)
                    return
                port.unsent += port.device.received(data, time.monotonic())
        except BlockingIOError:
            return
        except RedirError as error:
            self._say(f"{port.where}: the guest breaks the protocol: {error}")
            self._hang_up(port)
        except OSError:
            self._hang_up(port)

    def _poll(self, port: _Port) -> None:
        """Send what there is, as much as is taken."""
        if port.guest is None or port.device is None:
            return
        port.unsent += port.device.poll(time.monotonic())
        try:
            while port.unsent:
                del port.unsent[: port.guest.send(port.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._hang_up(port)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.unsent else 0)
        self._selector.modify(port.guest, events, port)

    def _hang_up(self, port: _Port) -> None:
        """The guest is gone."""
        if port.guest is not None:
            with contextlib.suppress(KeyError, RuntimeError, ValueError):
                self._selector.unregister(port.guest)
            port.guest.close()
        port.guest, port.device = None, None
        port.unsent.clear()
