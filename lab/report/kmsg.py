# SPDX-License-Identifier: MIT
"""The board's kernel log, read from ``/dev/kmsg`` by sequence number, bracketed by markers.

The console is no source for it: labgrid's shell driver quietens the kernel at login, and a message that arrives
between two prompts is lost. Records of ``/dev/kmsg`` carry sequence numbers (linux Documentation/ABI/testing/dev-kmsg):
what the ring buffer dropped is noticed, and a message belongs to exactly one test.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lab.errors import ExitCode, KitError

BAD = re.compile(
    r"WARNING:|BUG:|Oops|Kernel panic|Internal error|Unable to handle|Call trace:|UBSAN|KASAN|KFENCE|KCSAN|SError"
    r"|INFO: task .* blocked|INFO: possible|rcu: INFO|soft lockup|hard LOCKUP|possible recursive locking"
    r"|circular locking|DMA-API: |kmemleak: \d+ new|Memory manager not clean|refcount_t:|list_(add|del) corruption"
    r"|NPU job timed out|Page fault at"
)
"""Kernel messages that no test gets away with unless it announced them: what kernel CI systems look for, and rocket's
and the IOMMU's own words (drivers/accel/rocket/rocket_job.c, drivers/iommu/rockchip-iommu.c)."""

SERIOUS_TAINT = {4: "machine check", 5: "bad page", 7: "died", 9: "warning", 14: "soft lockup"}
"""Bits of linux Documentation/admin-guide/tainted-kernels.rst that only a fault sets."""

READ_SECONDS = 60.0
"""The ring buffer is read in well under a second; a busy host needs ten times that."""


@dataclass(frozen=True)
class Record:
    """One message. ``seconds`` since the kernel's start, ``level`` 0 (emergency) to 7 (debug), ``user`` when a program
    wrote it."""

    sequence: int
    seconds: float
    level: int
    text: str
    user: bool = False

    def __str__(self) -> str:
        return f"[{self.seconds:12.6f}] {self.text}"

    @property
    def bad(self) -> bool:
        """Whether it fails a test that did not announce it."""
        return not self.user and BAD.search(self.text) is not None


class Runner(Protocol):
    """Something that runs a shell command on the board."""

    def run(self, command: str, timeout: float = 60.0) -> tuple[list[str], int]:
        """Lines and exit code."""


def fields(line: str) -> tuple[int, int, int, str] | None:
    """Priority, sequence number, microseconds and text of a line of ``/dev/kmsg``; None for one that is no record."""
    head, semicolon, text = line.partition(";")
    words = head.split(",")
    if not semicolon or len(words) < 4 or not all(word.isdecimal() for word in words[:3]):
        return None
    priority, sequence, microseconds = (int(word) for word in words[:3])
    return priority, sequence, microseconds, text


def parse(lines: Sequence[str]) -> list[Record]:
    """The records among lines of ``/dev/kmsg``; continuation lines (``KEY=value``) and anything else are left out."""
    records = []
    for found in filter(None, map(fields, lines)):
        priority, sequence, microseconds, text = found
        records.append(Record(sequence, microseconds / 1e6, priority & 7, unescape(text), priority >> 3 != 0))
    return records


def unescape(text: str) -> str:
    r"""``/dev/kmsg`` writes unprintable bytes as ``\xHH``, and the backslash too."""
    return re.sub(r"(?:\\x[0-9a-fA-F]{2})+", _bytes, text)


def _bytes(match: re.Match[str]) -> str:
    return bytes.fromhex(match.group().replace("\\x", "")).decode(errors="replace")


@dataclass(frozen=True)
class Slice:
    """Messages between two markers. ``lost`` were overwritten unread; ``restarted``: they begin with a boot."""

    records: tuple[Record, ...]
    taint: int = 0
    lost: int = 0
    restarted: bool = False


class Journal:
    """The kernel log of one board from its boot on, handed out in pieces that leave nothing out.

    Raises KitError (infrastructure) when the board does not say what it is asked for; what the transport raises passes
    through.
    """

    def __init__(self, board: Runner) -> None:
        self._board = board
        self._marker = ""
        self._next = 0
        self._boot = ""
        self.taint = 0

    def cut(self, title: str) -> Slice:
        """Write a marker that says ``title``; return what came since the last one, the first time since the boot."""
        marker = f"npulab-{secrets.token_hex(6)}"
        words = re.sub(r"[^\w \[\]().,:/=+-]", "_", title)[:200]
        lines, code = self._board.run(self._command(marker, words), timeout=READ_SECONDS)
        fields = next((line.split() for line in lines if line.startswith(f"state-{marker} ")), [])
        if len(fields) != 3 or not fields[1].isdecimal():
            last = "\n".join(lines[-5:])
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"the board's kernel log cannot be read (exit code {code})",
                "it takes root on the board, and /dev/kmsg",
                tail=last,
            )
        return self._slice(parse(lines), marker, int(fields[1]), fields[2])

    def _command(self, marker: str, words: str) -> str:
        # two lines: busybox's sed reads one line ahead, and the log's last line has none after it
        write = f"for line in {shlex.quote(f'<14>{marker} {words}')} '<15>npulab'; do echo \"$line\" > /dev/kmsg; done"
        # everything when the last marker was overwritten: sed then prints nothing before the new one
        since = f"/{self._marker}/" if self._marker else "1"
        read = f"timeout 20 sed -n '{since},$p;/{marker}/q' /dev/kmsg"
        state = "cat /proc/sys/kernel/tainted /proc/sys/kernel/random/boot_id"
        return f"{write}; {read}; echo state-{marker} $({state})"

    def _slice(self, records: list[Record], marker: str, taint: int, boot: str) -> Slice:
        restarted = bool(self._boot) and boot != self._boot
        first = 0 if restarted else self._next
        new = sorted({record.sequence: record for record in records if record.sequence >= first}.items())
        end = next((number for number, record in new if record.user and marker in record.text), None)
        if end is None:
            # the old marker is gone from the buffer: read what there is
            if self._marker:
                self._marker = ""
                return self._again(restarted)
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                "the board's kernel log does not take markers",
                "boot it without printk.devkmsg=off",
            )
        kept = tuple(record for number, record in new if number < end)
        lost = end - first - len(kept) if first or self._boot else 0
        before, self.taint = (0 if restarted else self.taint), taint
        self._marker, self._next, self._boot = marker, end + 1, boot
        kept = tuple(record for record in kept if not (record.user and record.text == "npulab"))
        return Slice(kept, taint & ~before, max(0, lost), restarted)

    def _again(self, restarted: bool) -> Slice:
        slice_ = self.cut("the ring buffer was overwritten")
        return Slice(slice_.records, slice_.taint, slice_.lost, slice_.restarted or restarted)


class KernelLog:
    """The kernel's messages of one test: what it announced, and what came."""

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal = journal
        self._name = name
        self._announced: list[re.Pattern[str]] = []
        self._records: list[Record] = []
        self._restart_announced = False
        self.taint = 0
        self.lost = 0
        self.restarted = False

    def announce(self, pattern: str) -> None:
        """A message that this test means to cause."""
        self._announced.append(re.compile(pattern))

    def announce_restart(self) -> None:
        """This test restarts the board."""
        self._restart_announced = True

    def refresh(self, title: str = "") -> None:
        """Read what has come."""
        piece = self._journal.cut(title or f"during {self._name}")
        self._records += piece.records
        self.taint |= piece.taint
        self.lost += piece.lost
        self.restarted |= piece.restarted

    @property
    def records(self) -> list[Record]:
        """What has been read so far, without what programs wrote."""
        return [record for record in self._records if not record.user]

    def lines(self) -> list[str]:
        """Messages since the test began."""
        self.refresh()
        return [record.text for record in self.records]

    def matching(self, pattern: str) -> list[str]:
        """Messages since the test began that contain ``pattern``."""
        return [line for line in self.lines() if re.search(pattern, line)]

    def unannounced(self) -> list[str]:
        """Bad messages that have been read and that the test did not announce."""
        bad = [record.text for record in self._records if record.bad]
        return [line for line in bad if not self._expected(line)]

    def _expected(self, line: str) -> bool:
        return any(pattern.search(line) for pattern in self._announced)

    def problems(self) -> list[str]:
        """What is wrong with what has been read, a line each."""
        found = self.unannounced()
        announced = any(record.bad and self._expected(record.text) for record in self._records)
        if not announced:
            bits = [f"{bit} ({name})" for bit, name in SERIOUS_TAINT.items() if self.taint >> bit & 1]
            found += [f"the kernel is newly tainted: bit {', '.join(bits)}"] if bits else []
        if self.restarted and not self._restart_announced:
            found.append("the board restarted during the test; what its kernel said last is in the console's log")
        return found
