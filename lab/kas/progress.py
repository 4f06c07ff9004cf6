# SPDX-License-Identifier: MIT
"""What BitBake's plain output says: how far it is, which tasks ran, and which lines tell why it failed.

The form is that of its user interface "knotty" on a pipe (bitbake lib/bb/ui/knotty.py), each line behind kas's time and
level. Long tasks print nothing there, so a watcher counts the compiler's steps in the task's own log.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from lab.output import Meter

_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - [A-Z]+ +- ?")
_RUNNING = re.compile(r"NOTE: Running (setscene |noexec )?task (\d+) of (\d+) \((.*):(do_\w+)\)")
_TASK = re.compile(r"NOTE: recipe (\S+): task (do_\w+): (Started|Succeeded|Failed)")
_PARSED = re.compile(r"Parsing of (\d+) \.bb files complete \((\d+) cached, (\d+) parsed\)")
_SUMMARY = re.compile(r"Tasks Summary: Attempted (\d+) tasks of which (\d+) didn't need to be rerun")
_STEP = re.compile(rb"^  (CC|AS|LD|AR|HOSTCC|GEN|DTC|OBJCOPY|KSYMS|CC \[M\]|LD \[M\])\b", re.MULTILINE)
_FAILED_LOG = re.compile(r"ERROR: Logfile of failure stored in: (\S+)")
_NOISE = re.compile(r"ERROR: (Task \(|Logfile of failure|.*ExecutionError\(|.*Execution of '.*' failed with exit code)")
LOG_TAIL = 12


@dataclass
class Progress:
    """Fed with lines; everything else is what they said."""

    seconds_of_tasks: float = 0.0
    parse_seconds: float = 0.0
    recipes: int = 0
    attempted: int = 0
    kept: int = 0
    ran: list[tuple[str, str]] = field(default_factory=list)
    """Recipe with version, task: those that were executed, in order of their start; sstate's setscene tasks too."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kas_errors: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    """The last lines of no particular form: programs that end before BitBake's messages work say why there."""
    task_log: Path | None = None
    excerpt: list[str] = field(default_factory=list)
    active: dict[str, float] = field(default_factory=dict)
    stage: str = "repositories"
    total: float | None = None
    done: float = 0.0
    _started: float = field(default_factory=time.monotonic)
    _open: str = ""

    def feed(self, raw: str) -> None:
        """One line of kas's output."""
        line = _PREFIX.sub("", raw)
        if line.startswith("ERROR:"):
            self._error(line)
        elif " - ERROR " in raw[:40]:
            # what BitBake writes on stderr is an error to kas, the lines below one too
            if self._open == "error":
                self.errors.append(line)
            else:
                self.kas_errors.append(line)
                self._open = "kas"
        elif self._open == "kas" and line == raw and line:
            # what git said, below kas's own line
            self.kas_errors.append(line)
        elif line.startswith("WARNING:"):
            self.warnings.append(line.removeprefix("WARNING:").strip())
            self._open = ""
        elif line.startswith("| "):
            self.excerpt = [*self.excerpt[1 - LOG_TAIL :], line[2:]]
        elif line.startswith(("NOTE:", "Summary:")) or not line:
            self._open = ""
            self._note(line)
        elif self._open == "error" and self.errors:
            self.errors.append(line)
        elif self._open != "known":
            self._plain(line)

    def _error(self, line: str) -> None:
        log = _FAILED_LOG.match(line)
        if log:
            self.task_log = Path(log[1])
        text = line.removeprefix("ERROR:").strip()
        # kas repeats all of them at its end
        self._open = "known" if text in self.errors else "" if _NOISE.match(line) else "error"
        if self._open == "error":
            self.errors.append(text)

    def _note(self, line: str) -> None:
        running, task, summary = _RUNNING.match(line), _TASK.match(line), _SUMMARY.search(line)
        if running:
            self.stage = "tasks" if running[1] != "setscene " else "results of earlier builds"
            self.done, self.total = float(running[2]) - 1, float(running[3])
        elif task:
            name = f"{task[1]} {task[2]}"
            if task[3] == "Started":
                self.ran.append((task[1], task[2]))
                self.active[name] = time.monotonic()
            else:
                self.active.pop(name, None)
        elif summary:
            self.attempted, self.kept = int(summary[1]), int(summary[2])
        elif "Executing Tasks" in line:
            self.parse_seconds = time.monotonic() - self._started

    def _plain(self, line: str) -> None:
        self.last = [*self.last[1 - LOG_TAIL :], line]
        parsed = _PARSED.match(line)
        if parsed:
            self.recipes = int(parsed[1])
        elif line.startswith(("Loading cache", "Parsing recipes", "Loaded ")):
            self.stage = "parse recipes"

    @property
    def text(self) -> str:
        """What it does now."""
        if self.active:
            name, since = next(iter(self.active.items()))
            recipe, task = name.rsplit(" ", 1)
            return f"{recipe.split('-r')[0]} {task.removeprefix('do_')} {time.monotonic() - since:.0f} s"
        return self.stage

    def rebuilt(self) -> dict[str, list[str]]:
        """Recipe (name and version) to its tasks that ran, setscene tasks of earlier results left out."""
        found: dict[str, list[str]] = {}
        for recipe, task in self.ran:
            if not task.endswith("_setscene"):
                found.setdefault(recipe, []).append(task)
        return found


class CompileLog:
    """Compiler steps in the log of the kernel's compile task, which says nothing to BitBake while it runs."""

    def __init__(self, build: Path) -> None:
        self.build = build
        self.steps = 0
        self._path: Path | None = None
        self._offset = 0

    def count(self) -> int:
        """Steps so far; looks at what the log got since the last call."""
        with contextlib.suppress(OSError):
            found = max(self.build.glob("tmp/work/*/linux-rocket/*/temp/log.do_compile"), default=None)
            if found is None:
                return self.steps
            path = found.resolve()
            if path != self._path:
                self._path, self._offset, self.steps = path, 0, 0
            with path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
            whole = data.rfind(b"\n") + 1
            self._offset += whole
            self.steps += len(_STEP.findall(data[:whole]))
        return self.steps


class Watch:
    """Shows a `Progress` on a stage's meter."""

    def __init__(self, meter: Meter, progress: Progress, build: Path, compile_steps: int) -> None:
        self.meter, self.progress = meter, progress
        self.log, self.compile_steps = CompileLog(build), compile_steps

    def show(self) -> None:
        """Once."""
        progress = self.progress
        if any(name.endswith(" do_compile") and name.startswith("linux-rocket") for name in progress.active):
            steps = self.log.count()
            if steps:
                self.meter.update(min(steps, self.compile_steps), self.compile_steps, progress.text)
                return
        self.meter.update(progress.done, progress.total, progress.text)
