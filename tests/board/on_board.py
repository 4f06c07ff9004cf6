# SPDX-License-Identifier: MIT
"""Running things on the board, and reading its kernel log, through any labgrid CommandProtocol."""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from lab.report.kmsg import KernelLog

__all__ = ["Board", "KernelLog"]

SCRIPTS = Path(__file__).parent / "target"
PLACE = "/tmp/npulab-tests"
SCRIPT_SECONDS = 180.0
"""A script imports numpy first: 6 s on the virtual board, up to 15 s on a busy host."""

SELFTEST_SECONDS = 600.0


class Board:
    """A booted board: labgrid's command protocol, and its file transfer where there is one."""

    def __init__(self, command: Any, files: Any = None) -> None:
        self._command = command
        self._files = files
        self._pushed: set[str] = set()

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
        """Run ``target/<script>`` with the board's Python; its last line is a JSON document."""
        self.push_scripts()
        words = " ".join(shlex.quote(word) for word in arguments)
        lines, code = self.run(f"python3 {PLACE}/{script} {words} 2>&1", timeout)
        assert code == 0 and lines, f"{script} ended with {code}:\n" + "\n".join(lines)
        document: dict[str, Any] = json.loads(lines[-1])
        return document

    def selftest(self, *names: str) -> dict[str, dict[str, Any]]:
        """Run the library's self-test, all workloads or those named: its rows by name."""
        chosen = " ".join(f"--only {name}" for name in names)
        lines, code = self.run(f"python3 -m rknpu_userspace.selftest --json {chosen} 2>&1", SELFTEST_SECONDS)
        found = [json.loads(line) for line in lines if line.startswith("{")]
        assert found, f"the self-test ended with {code}:\n" + "\n".join(lines)
        return {row["name"]: row for row in found}

    def put(self, path: Path, target: str) -> None:
        """Copy a file or directory to the board; needs a file transfer (ssh) in the environment."""
        assert self._files is not None, "this environment has no file transfer: ask for the feature ssh"
        self.output(f"mkdir -p {shlex.quote(str(PurePosixPath(target).parent))}; rm -rf {shlex.quote(target)}")
        self._files.put(str(path), target)

    def forget(self) -> None:
        """The board has started again: nothing that was copied to it is there."""
        self._pushed.clear()

    def push_scripts(self) -> None:
        """Have ``target/*.py`` on the board."""
        for path in sorted(SCRIPTS.glob("*.py")):
            self.push(path)

    def push(self, path: Path) -> None:
        """Have a small file on the board, in `PLACE`.

        Through command lines that fit every shell's line editor (busybox: 1024), so that a console is enough.
        """
        if path.name in self._pushed:
            return
        text = base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()
        target = f"{PLACE}/{path.name}"
        self.output(f"mkdir -p {PLACE}; : > {target}.b64")
        for start in range(0, len(text), 600):
            self.output(f"printf %s {text[start : start + 600]} >> {target}.b64")
        unpack = "import base64,sys,zlib;sys.stdout.buffer.write(zlib.decompress(base64.b64decode(sys.stdin.read())))"
        self.output(f"python3 -c {shlex.quote(unpack)} < {target}.b64 > {target}")
        self._pushed.add(path.name)
