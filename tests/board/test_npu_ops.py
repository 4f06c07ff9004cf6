# SPDX-License-Identifier: MIT
"""The operations of ``rknpu_userspace`` through the kernel driver, compared with numpy on the board."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from on_board import Board

from rknpu_userspace.selftest import WORKLOADS, trial_names

pytestmark = pytest.mark.lg_feature("npu")

Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(board: Board) -> Rows:
    """All workloads in one process: importing numpy takes longer than any of them."""
    return board.selftest()


@pytest.mark.parametrize("name", [workload.name for workload in WORKLOADS])
def test_workload(
    rows: Rows,
    name: str,
    record_property: Callable[[str, object], None],
    measure: Callable[..., None],
    numerics: Callable[..., None],
) -> None:
    assert name in rows, f"the self-test ended before it: {list(rows)}"
    row = rows[name]
    for key in ("jobs", "tasks"):
        record_property(key, row.get(key))
    assert "error" not in row, row
    integer = row["dtype"] == "int8"
    ulp = None if integer else row["max_ulp"]
    numerics(name, row["dtype"], row["max_abs"], ulp, row["mismatches"], row["elements"], out=row["out"])
    operations = 2 * row["macs"]
    intensity = round(operations / row["planned_dma_bytes"], 1)
    speed = operations / row["npu_seconds"] / 1e9
    measure("throughput", speed, "GOP/s", dtype=row["dtype"], operations_per_byte=intensity, workload=name)
    assert row["ok"], row
    if row["dtype"] == "int8":
        assert row["exact"], row
    # a job per core at most, and every tile a task
    assert 1 <= row["jobs"] <= row["tasks"]


@pytest.fixture(scope="module")
def trials(board: Board) -> Rows:
    """Every operation in every format, small, in one process."""
    lines, code = board.run("python3 -m rknpu_userspace.selftest --trials --json 2>&1", timeout=300.0)
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert rows, f"the self-test ended with {code}:\n" + "\n".join(lines)
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("dtype", sorted({dtype for _, dtype in trial_names().values()}))
def test_operations(trials: Rows, dtype: str) -> None:
    """One test for a format: the kernel's log is read around each, which takes longer than an operation."""
    names = [name for name, (_, form) in trial_names().items() if form == dtype]
    assert set(names) <= set(trials), f"the self-test ended before {set(names) - set(trials)}"
    wrong = [trials[name] for name in names if not trials[name]["ok"]]
    assert not wrong, wrong


def test_pooling_does_not_wait_for_the_timeout_of_the_driver(trials: Rows) -> None:
    """The pooling block's interrupts are none of the driver's business: it would give up after 500 ms."""
    pools = [row for name, row in trials.items() if "pool2d" in name]
    assert len(pools) >= 8
    for row in pools:
        assert row["npu_seconds"] < 0.4 * row["jobs"], row


def test_a_program_is_right_again_and_again(board: Board) -> None:
    lines, code = board.run("python3 -m rknpu_userspace.jobloop --jobs 100", timeout=180.0)
    assert code == 0, lines
