# SPDX-License-Identifier: MIT
"""The virtual board's figures: how each is measured, and what it should be on two cores."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lab.cache import Cache
from lab.errors import ExitCode, KitError
from lab.figures import Figure
from lab.output import Output
from lab.process import end, tail
from lab.virt import qemu_build
from lab.virt.board import BoardConfig
from lab.virt.results import new_results_dir
from lab.virt.select import board_config, find_artifacts
from lab.virt.session import BoardSession
from lab.virt.soak import soak
from lab.virt.supervisor import python_environment

JOBS = 1000
JOBLOOP = "python3 -m rknpu_userspace.jobloop"
BOOTS = 3
EDITED = "hw/rk3588/rk3588_npu.c"
"""The machine source that the rebuild edits."""


def measure(kernel: str, results: Path, out: Output, *, quick: bool, soak_boots: int | None) -> list[Figure]:
    """All figures, the long ones only without ``quick``."""
    boots = soak_boots if soak_boots is not None else BOOTS if quick else 200
    steps: list[tuple[str, Callable[[], Figure]]] = []
    if not quick:
        steps.append(("cold demo", lambda: cold_demo(kernel, results)))
    steps.append(("warm demo", lambda: warm_demo(kernel, results)))
    steps.append(("boots to the shell", lambda: boot_to_shell(_config(kernel, out), results)))
    steps.append((f"{JOBS} jobs", lambda: job_time(_config(kernel, out), results)))
    steps.append(("rebuild of the machine", lambda: rebuild(kernel, out)))
    steps.append((f"soak, {boots} boots", lambda: soak_figure(_config(kernel, out), boots, results, out)))
    figures = []
    # once, so that no figure contains the assembling
    find_artifacts(None, kernel, out)
    for name, step in steps:
        with out.stage(name):
            figures.append(step())
    return figures


def _config(kernel: str, out: Output) -> BoardConfig:
    return board_config(find_artifacts(None, kernel, out))


def _demo(kernel: str, log: Path, environment: dict[str, str], timeout: float) -> float:
    """Seconds of a demo in a process of its own; KitError with its last lines when it fails."""
    started = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "lab", "demo", "--json", "--kernel", kernel],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **python_environment(), **environment},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise KitError(
                ExitCode.FAILED, f"a demo did not end within {timeout:.0f} s", tail=tail(log), log=log
            ) from None
        finally:
            end(process, grace=20.0)
    if code:
        raise KitError(ExitCode.FAILED, f"a demo ended with {code}", tail=tail(log), log=log)
    return time.monotonic() - started


def cold_demo(kernel: str, results: Path) -> Figure:
    """A demo with an empty cache, downloads included."""
    with tempfile.TemporaryDirectory(prefix="npulab-cold-", dir=os.environ.get("NPULAB_BENCH_DIR")) as cache:
        # a compiler cache of the user's would make it warm
        environment = {"NPULAB_CACHE": cache, "CCACHE_DISABLE": "1", "NPULAB_RESULTS": str(results)}
        seconds = _demo(kernel, results / "demo-cold.log", environment, 4 * 3600)
    return Figure("cold demo, downloads included", seconds / 60, "min", 25, "NPULAB_CACHE=$(mktemp -d) npulab demo")


def warm_demo(kernel: str, results: Path) -> Figure:
    """A demo with everything in the cache; the second of two."""
    environment = {"NPULAB_RESULTS": str(results)}
    seconds = min(_demo(kernel, results / f"demo-warm-{number}.log", environment, 600) for number in (1, 2))
    return Figure("warm demo", seconds, "s", 45, "npulab demo")


def boot_to_shell(config: BoardConfig, results: Path) -> Figure:
    """From power to the first prompt, median of some boots."""
    seconds = []
    for number in range(BOOTS):
        place = results / f"boot-{number}"
        place.mkdir()
        with BoardSession(config, place) as session:
            session.to("shell")
            seconds.append(session.strategy.boot_seconds)
    return Figure("boot to shell", statistics.median(seconds), "s", 10, "npulab virt soak --boots 3")


def job_time(config: BoardConfig, results: Path) -> Figure:
    """Host time of a 64x64x64 int8 job through library, driver, QEMU and model, average over many.

    Two runs of different length are subtracted, so that starting Python does not count.
    """
    place = results / "jobs"
    place.mkdir()
    seconds = {}
    with BoardSession(config, place) as session:
        session.to("shell")
        for jobs in (10, JOBS + 10):
            started = time.monotonic()
            lines, code = session.run(f"{JOBLOOP} --jobs {jobs}", timeout=600)
            seconds[jobs] = time.monotonic() - started
            if code:
                last = "\n".join(lines[-10:])
                raise KitError(ExitCode.FAILED, f"{JOBLOOP} ended with {code}", tail=last, log=place / "console.log")
    average = (seconds[JOBS + 10] - seconds[10]) / JOBS
    return Figure("64x64x64 int8 job, host time", 1000 * average, "ms", 10, f"{JOBLOOP} --jobs {JOBS} (on the board)")


def _entries(root: Path) -> set[Path]:
    """The results in a cache; build trees, logs and locks are none."""
    kinds = (path for path in root.iterdir() if path.name not in ("work", "locks", "log", "ccache", "apt"))
    return {entry for kind in kinds if kind.is_dir() for entry in kind.iterdir()}


def rebuild(kernel: str, out: Output) -> Figure:
    """Assemble after an edit of one source of the machine: QEMU's object, its link, and the artifact set around it.

    The edit is made on a copy of the sources; what it leaves in the cache is removed.
    """
    cache = Cache()
    find_artifacts(None, kernel, out)
    before, original = _entries(cache.root), qemu_build.SOURCES
    with tempfile.TemporaryDirectory(prefix="npulab-rebuild-") as folder:
        copy = Path(folder) / "qemu"
        shutil.copytree(original, copy)
        with (copy / EDITED).open("a") as source:
            source.write(f"\n/* {time.time_ns()} */\n")
        try:
            qemu_build.SOURCES = copy
            started = time.monotonic()
            find_artifacts(None, kernel, out)
            seconds = time.monotonic() - started
        finally:
            qemu_build.SOURCES = original
            for entry in _entries(cache.root) - before:
                shutil.rmtree(entry, ignore_errors=True)
    name = "build after an edit of one machine source"
    return Figure(name, seconds, "s", 15, f"echo >>lab/virt/qemu/{EDITED}; npulab build virt")


def soak_figure(config: BoardConfig, boots: int, results: Path, out: Output) -> Figure:
    """Failures among boots in a row."""
    place = new_results_dir("soak", results)
    document = soak(config, boots, place, Output(quiet=True, as_json=True))
    (place / "soak.json").write_text(json.dumps(document, indent=2))
    return Figure(f"failures in {boots} boots in a row", document["failed"], "", 0, f"npulab virt soak --boots {boots}")
