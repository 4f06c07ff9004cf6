# SPDX-License-Identifier: MIT
"""Jobs that cannot end: the driver gives them up, says so, and the next job is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from on_board import Board, KernelLog

pytestmark = pytest.mark.lg_feature("npu")

TIMEOUT = 0.5
"""JOB_TIMEOUT_MS of linux drivers/accel/rocket/rocket_job.c"""
CHECK = "int8-matmul"
"""A workload that is split over the three cores."""


def right_result(board: Board) -> None:
    """The next job, on every core, is what numpy says."""
    rows = board.selftest(CHECK)
    assert rows[CHECK]["ok"], rows


def test_hung_job_times_out_and_the_next_is_right(board: Board, kernel_log: KernelLog) -> None:
    kernel_log.announce("NPU job timed out")
    found = board.python("recovery.py", "hang")
    assert TIMEOUT <= found["seconds"][0] < 10 * TIMEOUT
    assert found["untouched"]
    assert len(kernel_log.matching("NPU job timed out")) == 1
    right_result(board)


def test_hung_jobs_on_every_core(board: Board, kernel_log: KernelLog) -> None:
    kernel_log.announce("NPU job timed out")
    found = board.python("recovery.py", "hang", "6")
    assert all(TIMEOUT <= seconds < 10 * TIMEOUT for seconds in found["seconds"])
    messages = kernel_log.matching("NPU job timed out")
    assert len(messages) == 6
    right_result(board)


def test_page_fault_is_reported_and_the_next_job_is_right(board: Board, kernel_log: KernelLog) -> None:
    kernel_log.announce("NPU job timed out")
    kernel_log.announce("Page fault at")
    found = board.python("recovery.py", "fault")
    assert found["untouched"]
    reports = kernel_log.matching("Page fault at")
    # the bank may report it again until the core is reset
    assert reports
    assert all(f"{found['address']:#x}".removeprefix("0x") in line and "of type read" in line for line in reports)
    right_result(board)


def test_garbage_is_given_up_and_the_next_job_is_right(board: Board, kernel_log: KernelLog) -> None:
    """Command words that no client writes: nothing but the job is lost."""
    kernel_log.announce("NPU job timed out")
    kernel_log.announce("Page fault at")
    found = board.python("recovery.py", "garbage", "3")
    assert all(seconds < 10 * TIMEOUT for seconds in found["seconds"])
    assert found["untouched"]
    assert len(kernel_log.matching("NPU job timed out")) == 3
    right_result(board)


def test_other_cores_go_on_while_one_hangs(board: Board, kernel_log: KernelLog, measure: Callable[..., None]) -> None:
    kernel_log.announce("NPU job timed out")
    found = board.python("recovery.py", "neighbour")
    measure("jobs on other cores while one hangs", found["inside"], "jobs")
    assert found["wrong"] == 0
    assert found["inside"] >= 3, found
    assert TIMEOUT <= found["seconds"] < 10 * TIMEOUT
    right_result(board)
