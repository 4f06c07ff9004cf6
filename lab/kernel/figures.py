# SPDX-License-Identifier: MIT
"""Measured figures of kernel builds: one that finds everything done, and one after an edit of the NPU's driver."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lab.assemble import kernel, mirror, sources
from lab.assemble.apt import Apt
from lab.cache import Cache, digest
from lab.figures import Figure
from lab.kernel.driver import DRIVER
from lab.output import Output
from lab.process import run

EDITED = f"{DRIVER}/rocket_job.c"
"""The source that is edited: a line at its end."""
GOAL_UNCHANGED, GOAL_EDIT = 10.0, 120.0


def measure(out: Output, *, quick: bool) -> list[Figure]:
    """The figures; with ``quick`` without the edit, which needs a build tree of its own."""
    bench = _Bench(Cache(), out)
    figures = [bench.unchanged()]
    if not quick:
        figures.append(bench.edited())
    return figures


class _Bench:
    """The virtual board's kernel from a tree like a user's, which is made for this and removed."""

    def __init__(self, cache: Cache, out: Output) -> None:
        self.cache, self.out = cache, out
        self.log = cache.root / "log" / "bench-kernel.log"
        self.apt = Apt(cache, mirror.find(None), self.log)
        self.options = kernel.KernelOptions(rocket_module=False, jobs=os.cpu_count() or 1)

    def _build(self, spec: Path | None) -> Path:
        source = sources.linux(spec, self.cache, self.apt, self.out, self.log)
        return kernel.build(source, self.options, self.apt, self.cache, self.out, self.log)

    def unchanged(self) -> Figure:
        """A build of what is in the cache: nothing runs."""
        self._build(None)
        seconds = _timed(lambda: self._build(None))
        return Figure("build of an unchanged kernel", seconds, "s", GOAL_UNCHANGED, "npulab build virt")

    def edited(self) -> Figure:
        """A build after a line was added to the driver, in a tree of a user's that was built before."""
        stock = sources.linux(None, self.cache, self.apt, self.out, self.log)
        kept, made = self._build(None), list[Path]()
        with self.cache.workdir("bench", "kernel") as place:
            tree = place / "linux"
            try:
                shutil.rmtree(tree, ignore_errors=True)
                with sources.linux_tree(stock, self.cache, self.out, self.log) as original:
                    # links: the edit below makes a file of its own
                    run(["cp", "-al", original, tree], stage="linking Linux", log=self.log)
                made.append(self._build(tree))
                _append(tree / EDITED, f"/* {time.time_ns()} */\n")
                seconds = _timed(lambda: made.append(self._build(tree)))
            finally:
                copy = self.cache.root / "work/linux-tree" / digest(str(tree))
                objects = self.cache.root / "work/kernel-fast" / digest(str(copy), self.options.build_tree)
                for path in (*(entry for entry in made if entry != kept), copy, objects, tree):
                    shutil.rmtree(path, ignore_errors=True)
        command = f"echo >>~/linux/{EDITED}; npulab build virt --source ~/linux"
        return Figure("build after an edit of one line of the driver", seconds, "s", GOAL_EDIT, command)


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _append(path: Path, text: str) -> None:
    """Add to a file that may be a link to one that must stay as it is."""
    whole = path.read_text() + text
    path.unlink()
    path.write_text(whole)
