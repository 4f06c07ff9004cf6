# SPDX-License-Identifier: MIT
"""Several long tasks at once: the first failure or an interrupt ends all of them, and their programs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from lab.cancel import Group, check_cancelled, enter
from lab.process import end

POLL_SECONDS = 0.5
"""How often the waiting thread lets Python handle signals."""


def run_all(tasks: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run the tasks in threads; their results by name.

    The first exception (a failed task's, or an interrupt of the caller) ends the others and is raised again when they
    have ended, so that nothing is left running.
    """
    group = Group()

    def work(task: Callable[[], Any]) -> Any:
        enter(group)
        check_cancelled()
        return task()

    with ThreadPoolExecutor(max_workers=max(1, len(tasks))) as pool:
        futures: dict[Future[Any], str] = {
            pool.submit(contextvars.copy_context().run, work, task): name for name, task in tasks.items()
        }
        try:
            pending = set(futures)
            while pending:
                check_cancelled()  # these tasks may run inside another group's
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            group.cancel(end)
            raise
    return {name: future.result() for future, name in futures.items()}
