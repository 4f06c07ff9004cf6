# SPDX-License-Identifier: MIT
"""The kernel's log, read beside the console: every record of ``/dev/kmsg`` with its sequence number.

labgrid's `ShellDriver` silences the kernel on the console when it logs in (``dmesg -n 1``), and what it did not read is
lost; sequence numbers tell here whether a record is missing (Documentation/ABI/testing/dev-kmsg). What a kernel said
before it died is read from pstore after the next boot.
"""

from __future__ import annotations

import base64
import contextlib
import json
import shlex
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import attr
from labgrid.driver.common import Driver
from labgrid.driver.exception import ExecutionError
from labgrid.factory import target_factory
from labgrid.step import step

from lab.process import end
from lab.report.kmsg import fields
from lab.virt.results import results_root

BOOT = "boot "
FOLLOW = (
    f"echo {BOOT}$(cat /proc/sys/kernel/random/boot_id); "
    # cat ends when records that it has not read are overwritten, and begins with the oldest again
    "while [ -r /dev/kmsg ]; do cat /dev/kmsg; sleep 1; done"
)
PSTORE = (
    "grep -qs ' /sys/fs/pstore ' /proc/mounts || mount -t pstore pstore /sys/fs/pstore 2>/dev/null; "
    'for f in /sys/fs/pstore/*; do [ -f "$f" ] && echo "${f##*/} $(base64 "$f" | tr -d \'\\n\')"; done; true'
)


@dataclass(frozen=True)
class Record:
    """One record: ``boot`` is the kernel's boot id, ``seconds`` its time since then, ``level`` 0 (emerg) to 7."""

    boot: str
    sequence: int
    level: int
    facility: int
    seconds: float
    text: str


def parse(line: str, boot: str) -> Record | None:
    """A line of /dev/kmsg; None for a continuation line (a record's dictionary) and for anything else."""
    found = fields(line)
    if found is None:
        return None
    priority, sequence, microseconds, text = found
    return Record(boot, sequence, priority & 7, priority >> 3, microseconds / 1e6, text)


class Journal:
    """The records so far, complete and in order within each boot."""

    def __init__(self, sink: Path | None = None) -> None:
        self.records: list[Record] = []
        self.gaps: list[tuple[int, int]] = []
        self.boot = ""
        self._next: int | None = None
        self._sink = sink
        self._changed = threading.Condition()

    def feed(self, line: str) -> None:
        """A line of the channel."""
        if line.startswith(BOOT):
            boot = line[len(BOOT) :].strip()
            with self._changed:
                if boot != self.boot:
                    self.boot, self._next = boot, None
            return
        record = parse(line, self.boot)
        if record is None:
            return
        with self._changed:
            if self._next is not None:
                if record.sequence < self._next:
                    return  # read again after a new connection
                if record.sequence > self._next:
                    self.gaps.append((self._next, record.sequence - 1))
            self._next = record.sequence + 1
            self.records.append(record)
            if self._sink is not None:
                # a full disk must not stop the test that the log belongs to; the records stay in memory
                with contextlib.suppress(OSError), self._sink.open("a") as stream:
                    stream.write(json.dumps(asdict(record)) + "\n")
            self._changed.notify_all()

    def position(self) -> int:
        """Where the next record will be, for `since`."""
        with self._changed:
            return len(self.records)

    def since(self, position: int) -> list[Record]:
        """Records from a position on."""
        with self._changed:
            return self.records[position:]

    def wait_for(self, text: str, position: int, timeout: float) -> bool:
        """Wait for a record that contains ``text``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not any(text in record.text for record in self.records[position:]):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True


@target_factory.reg_driver
@attr.s(eq=False)
class KernelLogDriver(Driver):
    """Follows the kernel's log over a connection of its own, for as long as it is active.

    Args:
        log: file for the records, a JSON line each; default ``kmsg-<target>.jsonl`` below ``$NPULAB_RESULTS``
    """

    bindings: ClassVar = {"ssh": "SSHDriver"}

    log: str = attr.ib(default="", validator=attr.validators.instance_of(str))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.journal = Journal()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def path(self) -> Path:
        """The file of the records."""
        if self.log:
            return Path(self.target.env.config.resolve_path(self.log) if self.target.env else self.log)
        return results_root() / f"kmsg-{self.target.name}.jsonl"

    def command(self) -> list[str]:
        """The program that prints the log."""
        service = self.ssh.networkservice
        where = ["-p", str(service.port), "-l", self.ssh.username or service.username, service.address]
        return ["ssh", *self.ssh.ssh_prefix, *where, FOLLOW]

    def on_activate(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # one journal for the driver's life: records of an earlier activation stay, and repeated ones are dropped
        self.journal._sink = self.path
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="kmsg", daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.journal.feed(line.decode(errors="replace").rstrip("\r\n"))

    def on_deactivate(self) -> None:
        if self._process is not None:
            end(self._process)
            self._process = None
        if self._reader is not None:
            self._reader.join(2.0)
            self._reader = None

    @property
    def alive(self) -> bool:
        """Whether the log is still being followed (the board's reset ends it)."""
        return self._process is not None and self._process.poll() is None

    @Driver.check_active
    @step(args=["text"], result=True)
    def mark(self, text: str, timeout: float = 10.0) -> int:
        """Put ``text`` into the kernel's log and wait for it to come back; the position after it.

        Everything that the kernel said before is in the journal then.
        """
        position = self.journal.position()
        self.ssh.run_check(f"echo {shlex.quote(text)} > /dev/kmsg")
        if not self.journal.wait_for(text, position, timeout):
            state = "the connection is there" if self.alive else "its connection has ended"
            raise ExecutionError(f"the kernel's log does not show a mark within {timeout:.0f} s; {state}")
        return self.journal.position()

    @Driver.check_active
    @step(result=True)
    def pstore(self) -> dict[str, str]:
        """What the kernel of the boot before left (ramoops and the like), by file name; empty without pstore."""
        return read_pstore(self.ssh)


def read_pstore(command: Any) -> dict[str, str]:
    """The pstore's files, through any labgrid CommandProtocol."""
    found = {}
    for line in command.run_check(PSTORE):
        name, _, text = line.partition(" ")
        found[name] = base64.b64decode(text).decode(errors="replace")
    return found
