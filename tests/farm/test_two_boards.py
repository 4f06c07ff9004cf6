# SPDX-License-Identifier: MIT
"""Two virtual boards run two jobs at a time, through labgrid's coordinator, with the board suite's own files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import RunningFarm, wait_for

from lab.farm.junit import counts

CHOSEN = "driver_has_core or device_node or deferred"
"""Tests that need a booted board with three cores and take no time."""


def test_two_boards_run_the_suite_at_the_same_time(farm: RunningFarm, nothing_left: str, tmp_path: Path) -> None:
    if not os.environ.get("NPULAB_ARTIFACTS"):
        pytest.skip("no artifact set: npulab test farm finds or makes one")
    words = ["pytest", "tests/board/test_npu_probe.py", "-q", "-k", CHOSEN]
    jobs = {}
    for name in ("virt-1", "virt-2"):
        jobs[name] = farm.start("--place", name, "--timeout", "240", "--results", str(tmp_path / name), "--", *words)
    wait_for(lambda: len(farm.acquired()) == 2, 60.0)
    third = farm.start("--tag", "board=virt", "--", "true")
    for name, job in jobs.items():
        text, _ = job.communicate(timeout=300)
        assert job.returncode == 0, text
        assert f"{name}: passed" in text
        tests = counts(tmp_path / name / "junit.xml")
        assert tests["tests"] >= 5 and not tests["failures"] + tests["errors"] + tests["skipped"]
        record = json.loads((tmp_path / name / "job.json").read_text())
        assert record["released"] and record["killed"] == 0, "the boards went by themselves"
        assert list((tmp_path / name).glob("board-*/console.log")), "the board's logs lie beside the report"
    text, _ = third.communicate(timeout=120)
    assert third.returncode == 0, text
    assert farm.acquired() == []
