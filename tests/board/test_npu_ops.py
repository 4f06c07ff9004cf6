# SPDX-License-Identifier: MIT
"""Matmul and convolution by ``rknpu_userspace`` through the kernel driver, compared with numpy on the board."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from on_board import Board

from rknpu_userspace.selftest import WORKLOADS

pytestmark = pytest.mark.lg_feature("npu")

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(board: Board) -> Rows:
    """All workloads in one process: importing numpy takes longer than any of them."""
    return board.selftest()


@pytest.mark.parametrize("name", [workload.name for workload in WORKLOADS])
def test_workload(rows: Rows, name: str, record_property: Callable[[str, object], None]) -> None:
    assert name in rows, f"the self-test ended before it: {list(rows)}"
    row = rows[name]
    for key in ("max_ulp", "jobs", "tasks", "npu_seconds"):
        record_property(key, row.get(key))
    assert row["ok"], row
    if row["dtype"] == "int8":
        assert row["exact"], row
    # a job per core at most, and every tile a task
    assert 1 <= row["jobs"] <= row["tasks"]


def test_a_program_is_right_again_and_again(board: Board) -> None:
    lines, code = board.run("python3 -m rknpu_userspace.jobloop --jobs 100", timeout=180.0)
    assert code == 0, lines
