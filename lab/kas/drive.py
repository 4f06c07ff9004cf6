# SPDX-License-Identifier: MIT
"""``kas build`` for a request: checks before, progress while it runs, one clear line when it fails."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.cache import Cache
from lab.kas import faults, host, session
from lab.kas.progress import Progress, Watch
from lab.kas.request import Request
from lab.output import Output

SHOW_SECONDS = 1.0
OLD_TOOLS = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "TMPDIR")
"""Variables of the kit's own Python, and one that means something else to BitBake: they must not reach the build."""


@dataclass(frozen=True)
class Places:
    """Where kas works: ``work`` holds the layers, ``build`` BitBake's directory, ``log`` takes everything printed."""

    work: Path
    build: Path
    log: Path

    def deploy(self, machine: str) -> Path:
        """Where BitBake puts a machine's results."""
        return self.build / "tmp/deploy/images" / machine


@dataclass(frozen=True)
class Outcome:
    """A build that succeeded."""

    progress: Progress
    seconds: float
    places: Places

    @property
    def beyond_parse(self) -> float:
        """Seconds after the recipes were parsed and the tasks known."""
        return self.seconds - self.progress.parse_seconds


def places(cache: Cache, name: str, environment: Mapping[str, str] = os.environ) -> Places:
    """KAS_WORK_DIR and KAS_BUILD_DIR where they are set, else a directory of the cache."""
    work = Path(environment.get("KAS_WORK_DIR") or cache.root / "kas").absolute()
    build = Path(environment.get("KAS_BUILD_DIR") or work / "build").absolute()
    return Places(work, build, cache.root / "log" / f"kas-{name}.log")


def preflight(request: Request, where: Places) -> Path:
    """What can be known before anything is downloaded or started; the program kas."""
    return host.check(request, where.build, build_environment(where, {}))


def build(kas: Path, request: Request, where: Places, out: Output, extra: Mapping[str, str]) -> Outcome:
    """Run ``kas build`` with the program that `preflight` found; ``extra``: variables for BitBake.

    Raises KitError; BitBake keeps what was finished, so the next run goes on there.
    """
    command: list[str | Path] = [kas, "build", request.config]
    return run_kas(command, request, where, out, build_environment(where, extra))


def run_kas(
    command: Sequence[str | Path], request: Request, where: Places, out: Output, environment: Mapping[str, str]
) -> Outcome:
    """Run kas with its progress shown; KitError with the decisive lines when it fails."""
    progress, started = Progress(), time.monotonic()
    where.work.mkdir(parents=True, exist_ok=True)
    where.build.mkdir(parents=True, exist_ok=True)
    with (
        out.stage(f"kas build {request.machine}") as meter,
        shown(Watch(meter, progress, where.build, request.kernel_options.expected_steps)),
    ):
        code = session.run(command, cwd=request.project, log=where.log, environment=environment, on_line=progress.feed)
    for warning in progress.warnings:
        out.note(f"BitBake warns: {warning}")
    if code:
        raise faults.explain(progress, request, where.log, code)
    return Outcome(progress, time.monotonic() - started, where)


def build_environment(where: Places, extra: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without the kit's own Python, which would become a tool of the build."""
    environment = {name: value for name, value in os.environ.items() if name not in OLD_TOOLS}
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join(part for part in environment.get("PATH", os.defpath).split(os.pathsep) if part != own)
    if shutil.which("python3", path=path):
        environment["PATH"] = path
    return {**environment, "KAS_WORK_DIR": str(where.work), "KAS_BUILD_DIR": str(where.build), **extra}


@contextmanager
def shown(watch: Watch) -> Iterator[None]:
    """Update the display all along: long tasks print nothing."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(SHOW_SECONDS):
            watch.show()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
