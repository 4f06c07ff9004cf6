# SPDX-License-Identifier: MIT
"""Many clients at once: every result right, all cores used, nobody sees another's memory, and it stays that way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from on_board import Board, KernelLog

pytestmark = pytest.mark.lg_feature("npu")

PROCESSES, JOBS = 6, 30
TIMEOUT = 0.5
"""JOB_TIMEOUT_MS of linux drivers/accel/rocket/rocket_job.c"""
SCALE = ("512", "1024", "1024", "3")
"""Rows, inner size, columns and repetitions of the job that is timed: 5 ms for one core at 200 MHz."""
SOAK_SECONDS, SOAK_PROCESSES = 6, 3
WORST_WINDOW = 0.1
"""No tenth of a soak is slower than this share of the median: a busy host steals time, a stuck core more than that."""
LOST_KIB = 16 << 10
"""Memory that may be gone after a soak: caches grow."""

Measure = Callable[..., None]


def test_processes_at_once(board: Board, measure: Measure) -> None:
    found = board.python("concurrency.py", "processes", str(PROCESSES), str(JOBS))
    measure("small jobs", PROCESSES * JOBS / found["seconds"], "jobs/s", processes=PROCESSES)
    assert found["done"] == [JOBS] * PROCESSES, found
    assert found["wrong"] == [0] * PROCESSES, found
    # a job of one task each: one interrupt
    assert sum(found["interrupts"].values()) == PROCESSES * JOBS, found
    assert all(found["interrupts"].values()), "a core had nothing to do"


def test_cores_work_at_the_same_time(board: Board, kernel_log: KernelLog) -> None:
    """Three jobs that hang are given up in the time of one: an upper bound that a slow host does not blur."""
    kernel_log.announce("NPU job timed out")
    seconds = board.python("concurrency.py", "hang")["seconds"]
    cores = {line.split()[1] for line in kernel_log.matching("NPU job timed out")}
    assert len(cores) == 3, cores
    assert TIMEOUT <= seconds < 2.8 * TIMEOUT


def test_scaling_over_cores(board: Board, env: Any, measure: Measure) -> None:
    """The same job on one, two, three cores. On the virtual board a slow CPU's share of the time does not scale, so
    that only the results count there; what was measured is recorded."""
    found = board.python("concurrency.py", "scale", *SCALE)
    seconds = {int(cores): value for cores, value in found["seconds"].items()}
    for cores, value in seconds.items():
        measure("scaling of a matmul", cores * seconds[1] / value, "x", cores=cores)
    assert found["right"], found
    assert found["cores_used"]["3"] == 3, found
    if "virtual" not in env.get_features():
        assert seconds[2] < 1.2 * seconds[1], found
        assert seconds[3] < 1.3 * seconds[1], found


def test_clients_are_isolated(board: Board, kernel_log: KernelLog) -> None:
    kernel_log.announce("Page fault at")
    kernel_log.announce("NPU job timed out")
    found = board.python("concurrency.py", "isolation")
    assert found["addresses_shared"], "the test needs two files with the same addresses"
    assert all(found["turns"]), "two files with the same addresses disturb each other"
    assert found["untouched"], "a job changed memory of another client"
    faults = kernel_log.matching("Page fault at")
    assert any(f"{found['address']:#x}".removeprefix("0x") in line for line in faults), faults


# as long as is asked for; what it waits for has time limits of its own
@pytest.mark.timeout(0)
def test_soak(board: Board, request: pytest.FixtureRequest, measure: Measure) -> None:
    seconds = round(request.config.getoption("--soak") * 60) or SOAK_SECONDS
    found = board.python("concurrency.py", "soak", str(seconds), str(SOAK_PROCESSES), timeout=seconds + 180.0)
    measure("soak", found["done"], "jobs", seconds=seconds)
    for tenth, rate in enumerate(found["rates"], 1):
        measure("soak, by tenth", rate, "jobs/s", tenth=tenth)
    measure("soak, memory lost", found["lost_kib"], "KiB", seconds=seconds)
    assert (found["died"], found["wrong"]) == (0, 0), found
    floor = max(request.config.getoption("--soak-floor"), WORST_WINDOW * found["median"])
    assert min(found["rates"]) >= floor, found
    assert found["lost_kib"] < LOST_KIB, found
