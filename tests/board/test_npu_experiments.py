# SPDX-License-Identifier: MIT
"""The library's own tools on the board: what it says there is, what experiments find, what it says of a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from on_board import Board, KernelLog

from rknpu_userspace.info import KNOWN_VERSION
from rknpu_userspace.model.quirks import Quirks
from rknpu_userspace.probe.runner import EXPERIMENTS

pytestmark = pytest.mark.lg_feature("npu")

PROBE_SECONDS = 300.0


def document(board: Board, command: str, timeout: float = 60.0) -> dict[str, Any]:
    """What a tool prints with --json."""
    found: dict[str, Any] = json.loads(board.output(f"python3 -m rknpu_userspace {command} --json", timeout))
    return found


def test_what_there_is(board: Board) -> None:
    found = document(board, "info")
    assert found["ok"]
    assert found["driver"] == "rocket"
    assert [core["number"] for core in found["cores"]] == [0, 1, 2]
    for core in found["cores"]:
        assert core["driver"] == "rocket"
        assert core["iommu_driver"] == "rk_iommu"
        assert core["power"] in ("active", "suspended", "suspending", "resuming")
        assert core["assigned_hz"] == 200_000_000
        assert core["version"] in (None, KNOWN_VERSION), "the kernel's log may no longer have it"


@pytest.fixture(scope="module")
def answers(board: Board) -> dict[str, Any]:
    """All experiments, once."""
    return document(board, "probe", PROBE_SECONDS)


def test_experiments(board: Board, kernel_log: KernelLog, request: pytest.FixtureRequest) -> None:
    """Every one ends, and every one whose question the device can answer finds an answer that is known."""
    for expected in ("NPU job timed out", "Page fault at"):
        kernel_log.announce(expected)
    rows = {row["experiment"]: row for row in request.getfixturevalue("answers")["experiments"]}
    assert list(rows) == [experiment.name for experiment in EXPERIMENTS]
    failed = {name: row for name, row in rows.items() if row["status"] not in ("measured", "undecided", "needs")}
    assert not failed


@pytest.mark.lg_feature(["npu", "virtual"])
def test_answers_of_the_model(answers: dict[str, Any]) -> None:
    """Behind the kernel's driver the model answers as it does without one."""
    undecided = [row["experiment"] for row in answers["experiments"] if row["status"] == "undecided"]
    assert not undecided
    defaults = Quirks()
    assert answers["quirks"] == {name: defaults[name] for name in answers["quirks"]}
    observed = {row["experiment"]: row["observed"] for row in answers["experiments"]}
    assert observed["capture"]["capture"]["wrong"] == 0
    assert observed["after-timeout"] == {"hung": True, "delta_done": False, "next_job_done": True}


def test_a_fault_names_its_address(board: Board, kernel_log: KernelLog) -> None:
    for expected in ("NPU job timed out", "Page fault at"):
        kernel_log.announce(expected)
    found = board.python("faults.py")
    assert found["kind"] == "fault"
    assert found["address"] == 0xF0000000
    assert "a copy" in found["message"]
    assert found["right"] == [True, True]
