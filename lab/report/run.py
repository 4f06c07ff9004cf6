# SPDX-License-Identifier: MIT
"""A finished run: results of its suites, what was tested and with what, and the files made of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import __version__
from lab.assemble.artifacts import ArtifactSet
from lab.errors import KitError
from lab.report import document, junit
from lab.report.document import Document
from lab.report.session import now
from lab.virt.supervisor import PACKAGE_ROOT

PAGE = "report.html"


@dataclass
class Run:
    """A run in progress; `row` after each suite, `finish` at the end."""

    results: Path
    command: Sequence[str]
    artifacts: ArtifactSet | None = None
    environment: str | None = None
    dtb: str = ""
    started: str = field(default_factory=now)
    suites: list[Document] = field(default_factory=list)
    tests: list[Document] = field(default_factory=list)
    facts: Document = field(default_factory=dict)
    _begin: float = field(default_factory=time.monotonic)

    def row(self, suite: str, *, seconds: float, exit_code: int) -> Document:
        """Take in what a suite has written; its row."""
        path = self.results / f"tests-{suite}.jsonl"
        row, tests, facts = document.suite_of(path, seconds=seconds, exit_code=exit_code)
        self.suites.append(row)
        self.tests += tests
        self.facts |= facts
        return row

    def document(self) -> Document:
        """The results so far."""
        ok = bool(self.suites) and all(suite["ok"] for suite in self.suites)
        facts = {"temperatures": {}, **dict.fromkeys(("board", "kernel", "npu", "boot", "end")), **self.facts}
        return {
            "schema": "npulab-results",
            "version": document.VERSION,
            "id": self.results.name,
            "started": self.started,
            "ended": now(),
            "seconds": round(time.monotonic() - self._begin, 1),
            "ok": ok,
            "command": list(self.command),
            "kit": kit(),
            "host": host(),
            "environment": self.environment,
            "artifacts": describe(self.artifacts, self.dtb) if self.artifacts else None,
            **facts,
            "suites": self.suites,
            "tests": self.tests,
        }

    def finish(self) -> Document:
        """Write results, JUnit and the page into the results directory."""
        found = self.document()
        document.save(found, self.results)
        for suite in found["suites"]:
            junit.write(found, self.results / f"junit-{suite['name']}.xml", suite["name"])
        # matplotlib and jinja2 take longer to import than most commands run
        from lab.report import page

        document.write_text(self.results / PAGE, page.render(found))
        return found


@contextmanager
def finishing(run: Run) -> Iterator[None]:
    """Whatever ends the suites, what they have found is written."""
    try:
        yield
    except BaseException:
        if run.tests or run.suites:
            # what ended the suites is what the user has to know
            with suppress(KitError):
                run.finish()
        raise


def kit() -> Document:
    """This kit's version and, in a checkout, its commit."""
    commit, modified = "", False
    if (PACKAGE_ROOT / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        modified = bool(commit) and bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"version": __version__, "commit": commit, "modified": modified}


def _git(*words: str) -> str:
    command = ["git", "-C", str(PACKAGE_ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def host() -> Document:
    """The host that ran the tests."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def describe(artifacts: ArtifactSet, dtb: str) -> Document:
    """What of the artifact set's manifest belongs into results: hashes of all files, where kernel and QEMU are from."""
    manifest = artifacts.manifest
    kernel: dict[str, Any] = {key: value for key, value in manifest["kernel"].items() if key not in ("packages",)}
    kernel["modules"] = [module["name"] for module in kernel["modules"]]
    trees = {entry["file"] for entry in manifest["dtbs"].values()}
    chosen = f"dtbs/{Path(dtb).name}" if dtb else ""
    files = {name: entry for name, entry in manifest["files"].items() if name not in trees or name == chosen}
    return {
        "key": manifest["key"],
        "board": manifest["board"],
        "kit_version": manifest["kit_version"],
        "dtb": chosen,
        "kernel": kernel,
        "qemu": manifest["qemu"],
        "rootfs": f"{manifest['rootfs']['suite']}, Python {manifest['rootfs']['python']}",
        "files": {name: files[name] for name in sorted(files)},
    }


def write_static(results: Path, name: str, ok: bool, seconds: float, repeat: str) -> None:
    """A line for a static check, which is no pytest."""
    line: Document = {
        "kind": "test",
        "id": f"static::{name}",
        "outcome": "passed" if ok else "failed",
        "phase": "call",
        "message": "" if ok else f"{name} found something; its words are on the terminal",
        "detail": "",
        "started": now(),
        "seconds": round(seconds, 3),
        "properties": {},
        "kernel_log": [],
        "repeat": repeat,
        "measurements": [],
        "numerics": [],
    }
    with (results / "tests-static.jsonl").open("a") as sink:
        sink.write(json.dumps(line) + "\n")


def end_static(results: Path) -> None:
    """The static checks are through."""
    with (results / "tests-static.jsonl").open("a") as sink:
        sink.write(json.dumps({"kind": "end", "time": now(), "trailing": []}) + "\n")


def command_line() -> list[str]:
    """How this run was asked for."""
    return ["npulab", *sys.argv[1:]]
