# SPDX-License-Identifier: MIT
"""Running things on the board, and reading its kernel log, through any labgrid CommandProtocol."""

from __future__ import annotations

import base64
import json
import re
import secrets
import shlex
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "target"
SCRIPT_SECONDS = 180.0
"""A script imports numpy first: 6 s on the virtual board, up to 15 s on a busy host."""

BAD = re.compile(
    r"WARNING:|BUG:|Oops|Kernel panic|Internal error|Unable to handle|Call trace:|UBSAN|KASAN|KFENCE|SError"
    r"|INFO: task .* blocked|rcu: INFO|soft lockup|hard LOCKUP|possible recursive locking|circular locking"
    r"|Memory manager not clean|refcount_t:|list_(add|del) corruption|NPU job timed out|Page fault at"
)
"""Kernel messages that no test gets away with unless it announced them: what kernel CI systems look for, and rocket's
and the IOMMU's own words (drivers/accel/rocket/rocket_job.c, drivers/iommu/rockchip-iommu.c)."""


class Board:
    """A booted board."""

    def __init__(self, command: Any) -> None:
        self._command = command

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        """Lines and exit code of a shell command."""
        lines, _, code = self._command.run(command, timeout=timeout)
        return [line.rstrip("\r") for line in lines], code

    def output(self, command: str, timeout: float = 60.0) -> str:
        """What a command that has to succeed prints."""
        lines, code = self.run(command, timeout)
        assert code == 0, f"`{command}` ended with {code}:\n" + "\n".join(lines)
        return "\n".join(lines)

    def exists(self, path: str) -> bool:
        """Whether a path exists."""
        return self.run(f"test -e {shlex.quote(path)}")[1] == 0

    def read(self, path: str) -> str:
        """A file of /proc or /sys as text, without final newlines and zeros."""
        return self.output(f"tr -d '\\000' < {shlex.quote(path)}")

    def python(self, script: str, *arguments: str, timeout: float = SCRIPT_SECONDS) -> dict[str, Any]:
        """Run ``target/<script>`` with the board's Python; its last line is a JSON document.

        The script goes through the command line, in pieces short enough for a serial console's line buffer (4096).
        """
        text = base64.b64encode((SCRIPTS / script).read_bytes()).decode()
        place = f"/tmp/{script}"
        self.output(f": > {place}.b64")
        for start in range(0, len(text), 3000):
            self.output(f"echo {text[start : start + 3000]} >> {place}.b64")
        self.output(f"base64 -d {place}.b64 > {place}")
        words = " ".join(shlex.quote(word) for word in arguments)
        lines, code = self.run(f"python3 {place} {words} 2>&1", timeout)
        assert code == 0 and lines, f"{script} ended with {code}:\n" + "\n".join(lines)
        document: dict[str, Any] = json.loads(lines[-1])
        return document


class KernelLog:
    """The kernel's messages since a marker that this puts into /dev/kmsg, as kernel selftests do."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self._announced: list[re.Pattern[str]] = []
        # without spaces at its ends: ssh hands the words to a shell once more
        self._marker = f"npulab-test-{secrets.token_hex(4)}"
        self._board.output(f"echo {self._marker} {shlex.quote(name)} > /dev/kmsg")

    def announce(self, pattern: str) -> None:
        """A message that this test means to cause."""
        self._announced.append(re.compile(pattern))

    def lines(self) -> list[str]:
        """Messages since the marker, without their prefixes."""
        # each read of /dev/kmsg gives one record; it ends with EAGAIN when there is no more
        records, _ = self._board.run(
            f"dd if=/dev/kmsg iflag=nonblock bs=8192 2>/dev/null | sed -n '/{self._marker}/,$p'", timeout=60.0
        )
        messages = [record.split(";", 1)[1] for record in records if ";" in record and not record.startswith(" ")]
        assert messages and self._marker in messages[0], "the kernel's log was overwritten during the test"
        return messages[1:]

    def matching(self, pattern: str) -> list[str]:
        """Messages since the marker that contain ``pattern``."""
        return [line for line in self.lines() if re.search(pattern, line)]

    def unannounced(self) -> list[str]:
        """Bad messages that the test did not announce."""
        bad = [line for line in self.lines() if BAD.search(line)]
        return [line for line in bad if not any(pattern.search(line) for pattern in self._announced)]
