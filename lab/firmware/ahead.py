# SPDX-License-Identifier: MIT
"""Work beside the reading and writing of a medium, in threads: hashing, unpacking and reading files let others run.

A medium is used by one thread, always: its transport may be one connection.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Event
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

WORKERS = max(2, min(4, os.cpu_count() or 2))

DEPTH = 2 * WORKERS
"""Results that wait at most: with three pieces of 1 MiB in the hands of each, 24 MiB."""


def ahead(work: Callable[[Thing], Result], things: Iterable[Thing]) -> Generator[Result, None, None]:
    """``work(thing)`` for each thing, some ahead of what is asked for; results in the order of the things.

    The things are taken by the caller's thread. What ``things`` or ``work`` raises is raised here, in its turn. Once
    this has ended, or is closed, no thread works any more: use it with `contextlib.closing`.
    """
    keep_memory()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for thing in things:
                waiting.append(pool.submit(work, thing))
                if len(waiting) > DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def beside(work: Callable[[Event], Result]) -> Iterator[Future[Result]]:
    """Run ``work`` in a thread within the block, which asks for its result; it ends early when its event is set."""
    over = Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, over)
        try:
            yield future
        finally:
            over.set()


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 64 << 20
"""Bytes of freed memory that stay with the process."""


@cache
def keep_memory() -> None:
    """Let the C library keep what it frees: pieces of a MiB come and go all the time, each for 256 page faults.

    They are a fourth of the processor time of a flash run. Only where the C library can do it (glibc); the first call
    does it for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEEP)
        mallopt(M_MMAP_THRESHOLD, KEEP // 2)
