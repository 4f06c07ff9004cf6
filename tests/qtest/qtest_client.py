# SPDX-License-Identifier: MIT
"""Drive the `rk3588` machine with QEMU's qtest protocol: no CPU runs, time moves only by `clock_step`.

The protocol is line based ("readl 0xADDR" -> "OK 0xVALUE"; "IRQ raise N" at any time), as described at the top
of system/qtest.c in the QEMU sources. QOM is reached through a second socket that speaks QMP.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 60.0


class QTestError(RuntimeError):
    """QEMU refused a command, or died; the message carries what it printed."""


def qemu_binary() -> Path:
    """Path of the QEMU under test, from NPULAB_QEMU; QTestError that says what to set when it is missing."""
    value = os.environ.get("NPULAB_QEMU", "")
    if not value:
        raise QTestError("NPULAB_QEMU is not set: it must name the kit's qemu-system-aarch64")
    path = Path(value)
    if not os.access(path, os.X_OK):
        raise QTestError(f"NPULAB_QEMU names {path}, which is not an executable file")
    return path


class QTest:
    """One QEMU under qtest. Use as a context manager; `irqs` maps intercepted line numbers to their level."""

    def __init__(
        self, args: Sequence[str] = (), machine: str = "rk3588", memory: str = "64M", accel: str = "qtest"
    ) -> None:
        self._dir = tempfile.TemporaryDirectory(prefix="npulab-qtest-")
        root = Path(self._dir.name)
        self.log_path, self._stderr_path = root / "qemu.log", root / "stderr"
        self.irqs: dict[int, bool] = {}
        self._events: Counter[str] = Counter()
        listeners = [self._listen(root / name) for name in ("qtest", "qmp")]
        command = [
            str(qemu_binary()), "-machine", machine, "-m", memory, "-accel", accel, "-display", "none",
            "-qtest", f"unix:{root}/qtest", "-qtest-log", "none", "-serial", "null",
            "-chardev", f"socket,id=qmp,path={root}/qmp", "-mon", "chardev=qmp,mode=control",
            "-d", "guest_errors,unimp", "-D", str(self.log_path), *args,
        ]  # fmt: skip
        with self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        try:
            self._qtest, self._qmp = (self._accept(listener) for listener in listeners)
            self._rx, self._qmp_rx = self._qtest.makefile("rb"), self._qmp.makefile("rb")
            self._qmp_rx.readline()  # the greeting
            self.qmp("qmp_capabilities")
        except BaseException:
            self.close()
            raise
        finally:
            for listener in listeners:
                listener.close()

    # -- life cycle --------------------------------------------------------------------------------
    @staticmethod
    def _listen(path: Path) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(0.2)
        return listener

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                link = listener.accept()[0]
                link.settimeout(ANSWER_TIMEOUT_S)
                return link
            except TimeoutError:
                continue
        raise QTestError(f"QEMU did not connect: {self.stderr()}")

    def stderr(self) -> str:
        """What QEMU printed so far."""
        return self._stderr_path.read_text(errors="replace")

    def log(self) -> str:
        """The guest-error and unimplemented-access log so far (every line is flushed as it is written)."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def close(self) -> None:
        """End QEMU and remove its files; safe to call twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for name in ("_rx", "_qmp_rx", "_qtest", "_qmp"):
            if hasattr(self, name):
                getattr(self, name).close()
        self._dir.cleanup()

    def __enter__(self) -> QTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- qtest -------------------------------------------------------------------------------------
    def command(self, *words: object) -> str:
        """Send one qtest command; the text after OK. Interrupt notices that come before it are recorded."""
        self._send(self._qtest, " ".join(map(str, words)) + "\n", str(words))
        while True:
            line = self._line(self._rx).decode().split()
            if not line:
                raise QTestError(f"QEMU ended during {words}: {self.stderr()}")
            if line[0] == "IRQ":
                self.irqs[int(line[2])] = line[1] == "raise"
            elif line[0] == "OK":
                return " ".join(line[1:])
            else:
                raise QTestError(f"{words}: {' '.join(line)}")

    def readl(self, address: int) -> int:
        """32-bit read of guest physical memory."""
        return int(self.command("readl", hex(address)), 0)

    def writel(self, address: int, value: int) -> None:
        """32-bit write of guest physical memory."""
        self.command("writel", hex(address), hex(value))

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes of guest physical memory."""
        return bytes.fromhex(self.command("read", hex(address), hex(size)).removeprefix("0x"))

    def write(self, address: int, data: bytes) -> None:
        """Write bytes to guest physical memory."""
        self.command("write", hex(address), hex(len(data)), "0x" + data.hex())

    def irq_intercept(self, qom_path: str, direction: str = "out", name: str | None = None) -> None:
        """Report the gpio lines of one device in `irqs`: its inputs ("in"), its outputs or, with a name, one
        array of named outputs. QEMU allows one intercepted device at a time; only changes are reported."""
        self.command(f"irq_intercept_{direction}", qom_path, *([] if name is None else [name]))

    def irq(self, line: int) -> bool:
        """Level of an intercepted line (a round trip first, so that notices under way have arrived)."""
        self.command("endianness")
        return self.irqs.get(line, False)

    def set_irq(self, qom_path: str, name: str, line: int, level: int) -> None:
        """Drive a device's named gpio input ("unnamed-gpio-in" for the unnamed ones)."""
        self.command("set_irq_in", qom_path, name, line, level)

    def clock_step(self, nanoseconds: int | None = None) -> int:
        """Advance the virtual clock (to the next timer when None); the new time in ns."""
        return int(self.command("clock_step", *([] if nanoseconds is None else [nanoseconds])))

    # -- QMP ---------------------------------------------------------------------------------------
    def qmp(self, execute: str, **arguments: Any) -> Any:
        """One QMP command; its return value. Events that come before it are kept."""
        self._send(self._qmp, json.dumps({"execute": execute, "arguments": arguments}), execute)
        while True:
            answer = self._qmp_message(execute)
            if "error" in answer:
                raise QTestError(f"{execute} {arguments}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def _send(self, link: socket.socket, text: str, what: str) -> None:
        try:
            link.sendall(text.encode())
        except ConnectionError:
            raise QTestError(f"QEMU ended before {what}: {self.stderr()}") from None

    @staticmethod
    def _line(stream: IO[bytes]) -> bytes:
        """A line, or b"" when QEMU has gone (which the kernel may report as an error)."""
        try:
            return stream.readline()
        except ConnectionError:
            return b""

    def _qmp_message(self, during: str) -> dict[str, Any]:
        """The next message; one that is an event is counted."""
        line = self._line(self._qmp_rx)
        if not line:
            raise QTestError(f"QEMU ended during {during}: {self.stderr()}")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self._events[message["event"]] += 1
        return message

    def qom_get(self, path: str, prop: str) -> Any:
        """A QOM property."""
        return self.qmp("qom-get", path=path, property=prop)

    def qom_set(self, path: str, prop: str, value: Any) -> None:
        """Set a QOM property."""
        self.qmp("qom-set", path=path, property=prop, value=value)

    def wait_event(self, event: str) -> None:
        """Return when QEMU has reported this event, now or before."""
        while not self._events[event]:
            self._qmp_message(f"the wait for {event}")

    def system_reset(self) -> None:
        """Reset the machine, and return when it has happened."""
        before = self._events["RESET"]
        self.qmp("system_reset")
        while self._events["RESET"] == before:  # it may have come ahead of the command's answer
            self._qmp_message("a reset")
