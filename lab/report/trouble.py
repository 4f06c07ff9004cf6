# SPDX-License-Identifier: MIT
"""Whether a failed test says something about the product, or only that the laboratory was in trouble.

Infrastructure is what stands between the test and the kernel: link, coordinator, QEMU, model, power. It makes a test an
*error* (nothing is known about the product), anything else a *failure*.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect

from lab.errors import ExitCode, KitError

CODES = (ExitCode.INFRASTRUCTURE, ExitCode.LINK, ExitCode.NO_DEVICE)
PANIC = re.compile(r"Kernel panic - not syncing|Unable to handle kernel|Internal error: |BUG: |watchdog: BUG")
"""linux kernel/panic.c, arch/arm64/kernel/traps.c: words after which a silent board is the kernel's fault."""
HANGS = (pexpect.TIMEOUT, subprocess.TimeoutExpired)
"""A command that did not end: the product's fault when the board still answers."""
LINKS = (pexpect.EOF, ConnectionError, TimeoutError, BrokenPipeError)
BROKEN = "is in broken state"
"""labgrid's pytest plugin skips with these words when the strategy has failed once."""
TIMED_OUT = re.compile(r"^Timeout \(?>?\s*[0-9.]+s\)? from pytest-timeout")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def infrastructure(error: BaseException, *, silent: bool) -> bool:
    """Whether an exception of a test is infrastructure trouble; ``silent`` says that the board does not answer now."""
    return silent or any(_is_infrastructure(one) for one in _chain(error))


def _is_infrastructure(error: BaseException) -> bool:
    if isinstance(error, KitError):
        return error.code in CODES
    if isinstance(error, LINKS):
        return True
    module = type(error).__module__.partition(".")[0]
    if module == "grpc":
        return True
    if module != "labgrid":
        return TIMED_OUT.match(str(error)) is not None
    # a command that ended badly carries its output; what has none is the link's
    return getattr(error, "stdout", None) is None and getattr(error, "stderr", None) is None


def hang(error: BaseException) -> bool:
    """Whether a command did not end in its time."""
    return any(isinstance(one, HANGS) for one in _chain(error))


class ConsoleWatch:
    """What the logs of consoles below a directory have gained, for the last words of a board that went silent."""

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._sizes: dict[Path, int] = {}
        self.start()

    def _logs(self) -> list[Path]:
        if self._root is None or not self._root.is_dir():
            return []
        found = [*self._root.glob("console*"), *self._root.glob("*/console*")]
        return sorted(path for path in found if path.is_file())

    def start(self) -> None:
        """From now on."""
        self._sizes = {path: path.stat().st_size for path in self._logs()}

    def gained(self, limit: int = 64 << 10) -> str:
        """At most ``limit`` bytes of each log's new end, as text."""
        parts = []
        for path in self._logs():
            size, before = path.stat().st_size, self._sizes.get(path, 0)
            with path.open("rb") as log:
                log.seek(max(before if before <= size else 0, size - limit))
                parts.append(log.read().decode(errors="replace"))
        return "\n".join(part for part in parts if part)

    def panic(self) -> str:
        """From the first words of a kernel's fault on, or nothing."""
        text = self.gained().replace("\r", "")
        found = PANIC.search(text)
        if found is None:
            return ""
        start = text.rfind("\n", 0, found.start()) + 1
        return "\n".join(text[start:].splitlines()[:60])
