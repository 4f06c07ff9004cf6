# SPDX-License-Identifier: MIT
"""Measured figures of the product path: the kernel alone, with this machine's compiler, through the real BitBake.

The builds are of a copy of the files that kas and BitBake read, in a directory of their own, so that one of them can be
changed. They need the layers' repositories (network, or KAS_REPO_REF_DIR); without, rows say what is missing and have
no value.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.assemble import mirror
from lab.assemble.apt import Apt
from lab.assemble.sources import REPOSITORY
from lab.assemble.virt import BuildOptions
from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.figures import Figure
from lab.kas import build, drive
from lab.kas.drive import Places
from lab.kas.request import PARTS, Request
from lab.output import Output
from lab.process import run

TIER_A = ("test_files.py", "test_recipes.py", "test_stub_build.py")
FRAGMENT = "recipes/recipes-kernel/linux/files/virt.cfg"
CHANGE = ("CONFIG_MAGIC_SYSRQ=y", "CONFIG_MAGIC_SYSRQ=n")
"""A line of that fragment on which nothing else depends."""
GOAL_TESTS, GOAL_COLD, GOAL_UNCHANGED, GOAL_OTHERS = 30.0, 900.0, 60.0, 0.0
COMMAND = "npulab build virt --with kas --image kernel --option host-toolchain"
NAMES = (
    "kernel through BitBake, cold",
    "the same again, beyond parsing",
    "other recipes built after a change of a fragment",
)


def measure(out: Output, *, quick: bool) -> list[Figure]:
    """The figures; with ``quick`` only the tests', which need no layers."""
    figures = [_tests(out)]
    if quick:
        return figures
    bench = _Bench(Cache(), out)
    try:
        return [*figures, *bench.run()]
    except KitError as error:
        if error.code not in (ExitCode.INFRASTRUCTURE, ExitCode.REFUSED):
            raise
        units, goals = ("s", "s", ""), (GOAL_COLD, GOAL_UNCHANGED, GOAL_OTHERS)
        missing = f"{error.message}; {error.hint}" if error.hint else error.message
        rows = zip(NAMES[len(bench.figures) :], units[len(bench.figures) :], goals[len(bench.figures) :], strict=True)
        out.note(f"not measured: {missing}")
        return [*figures, *bench.figures, *(Figure(n, 0.0, u, g, COMMAND, missing=missing) for n, u, g in rows)]


def _tests(out: Output) -> Figure:
    """The tests of kas files and recipes that need nothing but packages."""
    tests = [str(REPOSITORY / "tests/kas" / name) for name in TIER_A]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    started = time.monotonic()
    with out.stage("tests of kas files and recipes"):
        answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if answer.returncode:
        tail = "\n".join(answer.stdout.splitlines()[-12:])
        raise KitError(ExitCode.FAILED, "tests of kas files and recipes fail", "npulab test kas", tail=tail)
    seconds = time.monotonic() - started
    return Figure("tests of kas files and recipes", seconds, "s", GOAL_TESTS, f"pytest {' '.join(TIER_A)}")


class _Bench:
    """Three builds, one after the other; ``figures`` are those of the builds that were made."""

    def __init__(self, cache: Cache, out: Output) -> None:
        self.cache, self.out = cache, out
        self.top = cache.root / "kas" / "bench"
        self.project = self.top / "project"
        layers = drive.places(cache, "bench")
        self.places = Places(layers.work, self.top / "build", layers.log)
        self.figures: list[Figure] = []

    def run(self) -> list[Figure]:
        """Cold, unchanged, changed."""
        self._project()
        for name in ("tmp", "sstate-cache", "cache"):
            shutil.rmtree(self.places.build / name, ignore_errors=True)
        first = self._build()
        self._row(first.seconds, "s", GOAL_COLD, first)
        second = self._build()
        self._row(second.beyond_parse, "s", GOAL_UNCHANGED, second)
        fragment = self.project / FRAGMENT
        text = fragment.read_text()
        if CHANGE[0] not in text:
            raise KitError(ExitCode.FAILED, f"{FRAGMENT} has no line {CHANGE[0]}", "correct lab/kas/figures.py")
        fragment.write_text(text.replace(*CHANGE))
        third = self._build()
        rebuilt = third.progress.rebuilt()
        if not any("do_configure" in tasks for tasks in rebuilt.values()):
            message = f"a change of {FRAGMENT} did not configure the kernel again"
            raise KitError(ExitCode.FAILED, message, "look at the recipe's SRC_URI", log=self.places.log)
        others = [name for name in rebuilt if not name.startswith("linux-rocket-")]
        self._row(float(len(others)), "", GOAL_OTHERS, third)
        return self.figures

    def _row(self, value: float, unit: str, goal: float, outcome: drive.Outcome) -> None:
        ran = {name: tasks for name, tasks in outcome.progress.rebuilt().items() if tasks}
        told = "; ".join(f"{name}: {' '.join(tasks)}" for name, tasks in ran.items()) or "no task ran"
        note = f"{outcome.seconds:.0f} s, {outcome.progress.parse_seconds:.0f} s to the first task; {told}"
        name = NAMES[len(self.figures)]
        self.out.say(f"{name}: {note}")
        self.figures.append(Figure(name, value, unit, goal, COMMAND, note=note))

    def _build(self) -> drive.Outcome:
        request = Request("virt", image="kernel", options=("host-toolchain",), project=self.project)
        options = BuildOptions()
        apt = Apt(self.cache, mirror.find(options.debian_mirror), self.places.log)
        return build.run(request, options, self.cache, apt, self.out, self.places)[0]

    def _project(self) -> None:
        """A fresh copy; a repository of its own, as kas looks for the top of one."""
        shutil.rmtree(self.project, ignore_errors=True)
        for name in PARTS:
            shutil.copytree(REPOSITORY / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        log = Path(self.places.log)
        run(["git", "init", "-q", self.project], stage="making a copy of the kas files", log=log)
