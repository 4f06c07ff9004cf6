# SPDX-License-Identifier: MIT
"""Stand-ins for QEMU and the model that misbehave in every way that supervision has to survive.

Run as ``python fake_programs.py qemu|model MODE ARGUMENTS``; they are real processes with real sockets, and the board
launcher is the real one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path


def _option(arguments: list[str], start: str) -> str:
    """The path in the first argument that begins with ``start``."""
    for argument in arguments:
        if argument.startswith(start):
            fields = dict(field.split("=", 1) for field in argument.split(",") if "=" in field)
            return fields.get("path") or argument.split(":", 1)[1].split(",")[0]
    raise SystemExit(f"no {start} among the arguments")


def _listen(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    return server


def _send(stream: socket.socket, message: dict[str, object]) -> None:
    stream.sendall(json.dumps(message).encode() + b"\r\n")


def _guest(console: socket.socket) -> None:
    """A guest that is a shell."""
    console.sendall(b"Linux version 7.3.4-fake\r\n")
    shell = subprocess.Popen(
        ["sh", "-i"],
        stdin=console.fileno(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PS1": "root@fake:~# ", "PATH": os.environ["PATH"]},
    )
    assert shell.stdout is not None
    while data := os.read(shell.stdout.fileno(), 4096):
        # as a terminal does
        console.sendall(data.replace(b"\n", b"\r\n"))


def _count(console: socket.socket) -> None:
    """A guest that says how long each line was, and takes its time reading it."""
    length = 0
    while chunk := console.recv(8192):
        time.sleep(0.002)
        length += len(chunk)
        if chunk.endswith(b"\n"):
            console.sendall(b"%d bytes\r\n" % length)
            length = 0


def _shutdown(monitor: socket.socket) -> None:
    stamp = {"seconds": 1, "microseconds": 0}
    data = {"guest": True, "reason": "guest-shutdown"}
    _send(monitor, {"timestamp": stamp, "event": "SHUTDOWN", "data": data})
    os._exit(0)


def qemu(mode: str, arguments: list[str]) -> None:
    """QEMU as far as the launcher sees it."""
    if mode == "exit":
        print("qemu-system-aarch64: unsupported machine type 'rk3588'", file=sys.stderr)
        sys.exit(1)
    if mode == "hang":
        time.sleep(600)
    monitor_server = _listen(_option(arguments, "unix:"))
    console_server = _listen(_option(arguments, "socket,id=serial0"))
    monitor, _ = monitor_server.accept()
    if mode == "close":
        monitor.close()
        sys.exit(3)
    if mode == "garbage":
        monitor.sendall(b"220 mail.example ESMTP\r\n")
        time.sleep(600)
    if mode == "silent":
        time.sleep(600)
    _send(monitor, {"QMP": {"version": {}, "capabilities": []}})
    console: socket.socket | None = None
    for line in monitor.makefile("rb"):
        request = json.loads(line)
        if request["execute"] == "human-monitor-command":
            answer = "  TCP[HOST_FORWARD]  12       127.0.0.1 45678       10.0.2.15    22     0     0\r\n"
            _send(monitor, {"return": answer})
            continue
        _send(monitor, {"return": {}})
        if request["execute"] == "cont":
            console, _ = console_server.accept()
            _run_guest(mode, monitor, console)
        elif request["execute"] == "quit":
            os._exit(0)
    # the launcher has gone and left the board alone: QEMU lives on, and so does its console
    while True:
        console, _ = console_server.accept()
        threading.Thread(target=_guest, args=(console,), daemon=True).start()


def _run_guest(mode: str, monitor: socket.socket, console: socket.socket) -> None:
    if mode == "die":
        console.sendall(b"Booting Linux\r\n")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "poweroff":
        console.sendall(b"reboot: Power down\r\n")
        _shutdown(monitor)
    elif mode == "panic":
        console.sendall(b"Booting Linux\r\n[    1.0] Kernel pa")
        time.sleep(0.1)
        console.sendall(b"nic - not syncing: No working init found.\r\n[   1.1] CPU: 0\r\n")
    elif mode == "deaf":
        return
    elif mode == "noise":
        # what an adapter at another baud rate makes of a boot
        console.sendall(bytes(range(128, 256)) * 8)
    elif mode == "stopped":
        console.sendall(b"Linux version 7.3.4-fake\r\nYou are in emergency mode\r\nsh-5.2# ")
    elif mode == "count":
        threading.Thread(target=_count, args=(console,), daemon=True).start()
    else:
        threading.Thread(target=_guest, args=(console,), daemon=True).start()


def model(mode: str, arguments: list[str]) -> None:
    """The model as far as the launcher sees it."""
    if mode == "exit":
        print("ModuleNotFoundError: No module named 'numpy'", file=sys.stderr)
        sys.exit(1)
    if mode == "slow":
        time.sleep(600)
    Path(arguments[arguments.index("--ram") + 1]).stat()
    print("ready", flush=True)
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "die":
        time.sleep(1.0)
        print("MemoryError", file=sys.stderr)
        sys.exit(1)
    time.sleep(600)


if __name__ == "__main__":
    {"qemu": qemu, "model": model}[sys.argv[1]](sys.argv[2], sys.argv[3:])
