# SPDX-License-Identifier: MIT
"""Stand-ins behind a unix socket: one bus that several programs can use, one after the other.

``python -m lab.firmware.standin.server --socket PATH DIR[,personality[,port]] ...`` serves until it is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from lab.errors import KitError
from lab.firmware.standin import faults, wire
from lab.firmware.standin.engine import Engine, Gone, Options, Silence, Stall


class Server:
    """Serves engines; use as a context manager."""

    def __init__(self, path: Path, engines: list[Engine]) -> None:
        self.path, self.engines = path, engines
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        self._clients: set[socket.socket] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections and remove the socket."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.path.unlink(missing_ok=True)
        for engine in self.engines:
            engine.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            seen: dict[int, int] = {}
            try:
                while True:
                    head = wire.receive(client, wire.REQUEST.size)
                    if not head:
                        break
                    kind, device, a, b, timeout, length = wire.REQUEST.unpack(head)
                    data = wire.receive(client, length) if length else b""
                    status, answer = self._answer(seen, kind, device, (a, b), data)
                    if status == wire.TIMEOUT and not timeout:
                        # A transfer without a timeout on a silent device never ends.
                        client.recv(1)
                        break
                    client.sendall(wire.ANSWER.pack(status, len(answer)) + answer)
            except OSError:
                pass
            finally:
                self._clients.discard(client)

    def _answer(
        self, seen: dict[int, int], kind: int, device: int, numbers: tuple[int, int], data: bytes
    ) -> tuple[int, bytes]:
        with self._lock:
            if kind == wire.LIST:
                return 0, self._list(seen)
            if device >= len(self.engines):
                return wire.NO_DEVICE, b""
            engine = self.engines[device]
            if seen.get(device) != engine.generation and not engine.answering:
                return wire.NO_DEVICE, b""
            try:
                return 0, self._transfer(engine, kind, numbers, data)
            except Stall:
                return wire.PIPE, b""
            except Silence:
                return wire.TIMEOUT, b""
            except Gone:
                return wire.NO_DEVICE, b""
            except KitError as error:
                print(f"stand-in: {error.message}", file=sys.stderr, flush=True)
                return wire.IO, b""

    def _transfer(self, engine: Engine, kind: int, numbers: tuple[int, int], data: bytes) -> bytes:
        a, b = numbers
        if kind == wire.CONTROL:
            return engine.control(a & 0xFF, a >> 8 & 0xFF, b & 0xFFFF, b >> 16, data)
        if kind == wire.OUT:
            engine.bulk_out(data)
            return b""
        if kind == wire.IN:
            return engine.bulk_in(a)
        engine.clear_halt()
        return b""

    def _list(self, seen: dict[int, int]) -> bytes:
        rows = []
        for number, engine in enumerate(self.engines):
            if not engine.connected:
                continue
            seen[number] = engine.generation
            configuration, path = engine.configuration(), engine.port.encode()
            bus, port = int(engine.port.partition("-")[0]), int(engine.port.rpartition("-")[2].rpartition(".")[2])
            rows.append(wire.DEVICE.pack(number, bus, port, engine.descriptor(), len(configuration)))
            rows.append(configuration + wire.PATH.pack(len(path)) + path)
        return b"".join(rows)


def _wait_for_stdin(done: threading.Event) -> None:
    while os.read(0, 4096):
        continue
    done.set()


def main() -> int:
    """Serve until the process is ended, or its standard input closes with ``--exit-with-stdin``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--fault", action="append", default=[], help="KIND[:OPERATION[:AFTER[:TIMES]]]")
    parser.add_argument("--lying-switch", action="store_true")
    parser.add_argument("--no-window", action="store_true")
    parser.add_argument("--exit-with-stdin", action="store_true")
    parser.add_argument("board", nargs="+", help="DIR[,PERSONALITY[,PORT]]")
    args = parser.parse_args()
    try:
        engines = []
        for number, text in enumerate(args.board):
            root, _, rest = text.partition(",")
            personality, _, port = rest.partition(",")
            options = Options(
                windowed=not args.no_window,
                lying_switch=args.lying_switch,
                faults=[faults.parse(fault) for fault in args.fault],
                port=port or f"1-{number + 1}",
            )
            engines.append(Engine(Path(root), personality or "maskrom", options))
    except (KitError, ValueError) as error:
        print(f"stand-in: {error}", file=sys.stderr)
        return 2
    done = threading.Event()
    for number_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number_, lambda *_: done.set())
    with Server(args.socket, engines):
        print("ready", flush=True)
        if args.exit_with_stdin:
            threading.Thread(target=_wait_for_stdin, args=(done,), daemon=True).start()
        done.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
