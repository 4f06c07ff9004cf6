# SPDX-License-Identifier: MIT
"""The farm's figures: jobs that are killed at random leave nothing, two boards next to one, the suite, the boot."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lab.errors import ExitCode, KitError
from lab.farm import state
from lab.farm.client import Client
from lab.farm.server import LocalFarm
from lab.figures import Figure
from lab.output import Output
from lab.process import end, tail
from lab.virt import figures as virt
from lab.virt.select import board_config, find_artifacts
from lab.virt.supervisor import PACKAGE_ROOT, python_environment

COMMAND = "npulab bench farm"
SPARE_CORES = 6
"""Two virtual boards of two CPUs each, and two models: fewer cores are shared."""
SUITE = ("pytest", "tests/board")
SHORT_SUITE = ("pytest", "tests/board/test_npu_probe.py")
SETTLE_SECONDS = 40.0
"""How long what was killed has to be gone: the farm sweeps every 10 s."""
VICTIMS = (("runner",), ("keeper",), ("runner", "keeper"), ("command",))


def measure(kernel: str, results: Path, out: Output, *, quick: bool) -> list[Figure]:
    """All figures; with ``quick`` fewer cycles and a short suite."""
    artifacts = find_artifacts(None, kernel, out)
    cycles, kills = (12, 4) if quick else (100, 30)
    with _farm(results) as coordinator:
        os.environ["NPULAB_ARTIFACTS"] = str(artifacts.root)
        try:
            with out.stage(f"{cycles} cycles with {kills} kills") as meter:
                rows = [_kills(coordinator, results, cycles, kills, meter.update)]
            with out.stage("one board, then two"):
                rows += _ratio(coordinator, results, quick=quick)
        finally:
            del os.environ["NPULAB_ARTIFACTS"]
    with out.stage("boots"):
        boot = virt.boot_to_shell(board_config(artifacts), results)
        rows.append(replace(boot, name="boot to login", goal=15.0, command=COMMAND))
    return rows


@contextmanager
def _farm(results: Path) -> Iterator[str]:
    """A farm of two boards with a state directory of its own."""
    before = {name: os.environ.get(name) for name in ("NPULAB_FARM", "NPULAB_RESULTS", "LG_COORDINATOR")}
    with tempfile.TemporaryDirectory(prefix="npulab-farm-") as folder:
        os.environ["NPULAB_FARM"], os.environ["NPULAB_RESULTS"] = folder, str(results)
        os.environ.pop("LG_COORDINATOR", None)
        try:
            with LocalFarm(2, port=0) as farm:
                yield farm.coordinator
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _start(coordinator: str, log: Path, results: Path, words: Sequence[str], mark: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lab", "farm", "run", "--coordinator", coordinator, "--results", str(results)]
    with log.open("ab") as sink:
        return subprocess.Popen(
            [*command, *words],
            cwd=PACKAGE_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **python_environment(), **({mark: "1"} if mark else {})},
            start_new_session=True,
        )


# jobs that are killed
def _kills(
    coordinator: str, results: Path, cycles: int, kills: int, progress: Callable[[float, float], None]
) -> Figure:
    """Acquire, run, release on two places, again and again, some killed at a random moment; what is left at the end."""
    draw, mark = random.Random(3588), f"NPULAB_BENCH_{secrets.token_hex(6)}"
    doomed = set(draw.sample(range(cycles), kills))
    plans = [(n, draw.choice(VICTIMS) if n in doomed else (), draw.uniform(0.0, 0.5)) for n in range(cycles)]
    folder = results / "cycles"
    folder.mkdir(parents=True)

    def cycle(plan: tuple[int, tuple[str, ...], float]) -> bool:
        number, victims, delay = plan
        return _cycle(coordinator, folder / str(number), victims, delay, mark)

    with ThreadPoolExecutor(max_workers=3) as pool:
        failed = 0
        for done, good in enumerate(pool.map(cycle, plans), start=1):
            failed += not good
            progress(done, cycles)
    left = _leftovers(coordinator, mark)
    note = f"{kills} of {cycles} killed with kill -9: runner, keeper, both, or command; " + (
        "; ".join(left) if left else f"no place, reservation, lease or process left; {failed} of the others failed"
    )
    name = f"left behind by {cycles} farm jobs, {kills} killed at random"
    return Figure(name, len(left) + failed, "", 0, COMMAND, note=note)


def _cycle(coordinator: str, folder: Path, victims: Sequence[str], delay: float, mark: str) -> bool:
    """One job. Killed ones have a command that never ends and a process that left its session."""
    folder.mkdir()
    begun = folder / "begun"
    pause = "setsid sleep 1000 & sleep 1000" if victims else "sleep 0.1"
    words = ["--tag", "board=virt", "--", "sh", "-c", f"echo $$ > {begun}; {pause}"]
    job = _start(coordinator, folder / "run.txt", folder, words, mark)
    try:
        if not victims:
            return job.wait(600) == 0
        deadline = time.monotonic() + 600
        while not (begun.is_file() and begun.read_text().strip()):
            if job.poll() is not None or time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        time.sleep(delay)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                os.kill(_victim(victim, job, folder, begun), signal.SIGKILL)
        try:
            job.wait(120)
        except subprocess.TimeoutExpired:
            return False
        return True
    finally:
        if job.poll() is None:
            end(job)


def _victim(name: str, job: subprocess.Popen[bytes], folder: Path, begun: Path) -> int:
    if name == "runner":
        return job.pid
    if name == "command":
        return int(begun.read_text())
    owner = json.loads((folder / "job.json").read_text())["owner"]
    leases = (json.loads(path.read_text()) for path in (state.root() / "leases").glob("*.json"))
    keeper = next((lease["keeper"] for lease in leases if lease["owner"] == owner), None)
    if keeper is None:
        raise FileNotFoundError
    return int(keeper)


def _leftovers(coordinator: str, mark: str) -> list[str]:
    """Places, reservations, leases and processes that are still there after a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    client = Client(coordinator)
    try:
        while True:
            left = [f"place {place.name} of {place.acquired}" for place in client.places() if place.acquired]
            left += [f"reservation of {entry.owner}" for entry in client.reservations()]
            left += [f"lease {path.name}" for path in (state.root() / "leases").iterdir()]
            left += [f"process {process}" for process in _processes(mark)]
            if not left or time.monotonic() >= deadline:
                return left
            time.sleep(0.5)
    finally:
        client.close()


def _processes(mark: str) -> list[str]:
    """Processes with the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name} ({(entry / 'comm').read_text().strip()})")
    return found


# one board, then two
def _suite(coordinator: str, results: Path, places: Sequence[str], words: Sequence[str], name: str) -> float:
    """Seconds of the suite on all these places at a time; KitError when one fails."""
    started = time.monotonic()
    folders = [results / f"{name}-{place}" for place in places]
    logs = [results / f"{name}-{place}.log" for place in places]
    jobs = [
        _start(coordinator, log, folder, ["--place", place, "--", *words])
        for place, folder, log in zip(places, folders, logs, strict=True)
    ]
    try:
        for job, log in zip(jobs, logs, strict=True):
            if job.wait(7200):
                what = f"the suite on {', '.join(places)} ended with {job.returncode}"
                raise KitError(ExitCode.FAILED, what, "its log says why", tail=tail(log), log=log)
    finally:
        for job in jobs:
            if job.poll() is None:
                end(job, grace=60.0)
    return time.monotonic() - started


def _ratio(coordinator: str, results: Path, *, quick: bool) -> list[Figure]:
    """The board suite on one board, and on two at a time."""
    words, cores = SHORT_SUITE if quick else SUITE, os.cpu_count() or 1
    # the first run finds nothing in the page cache
    _suite(coordinator, results, ["virt-1"], SHORT_SUITE, "warm")
    one = _suite(coordinator, results, ["virt-1"], words, "one")
    two = _suite(coordinator, results, ["virt-1", "virt-2"], words, "two")
    shared = cores < SPARE_CORES
    note = f"{cores} cores, {one:.0f} s and {two:.0f} s"
    # without cores to spare the boards share them: then two at a time must not be worse than one after the other
    goal, note = (2.0, f"{note}, shared") if shared else (1.3, note)
    rows = [Figure("two boards at a time / one board, suite time", two / one, "ratio", goal, COMMAND, note=note)]
    if not quick:
        rows.append(Figure("board suite on the virtual board, warm", one / 60, "min", 12.0, "npulab test board"))
    return rows
