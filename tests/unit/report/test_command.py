# SPDX-License-Identifier: MIT
"""``npulab test`` leaves a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.report import document
from lab.virt.supervisor import PACKAGE_ROOT, python_environment

TEST = "tests/unit/report/test_kmsg.py::test_a_silent_board_is_infrastructure"


def npulab(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **python_environment(), "NPULAB_RESULTS": str(place)}
    command = [sys.executable, "-m", "lab", *words]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not (PACKAGE_ROOT / "tests").is_dir(), reason="not a checkout")
def test_a_run_leaves_everything(tmp_path: Path) -> None:
    done = npulab(tmp_path, "test", "unit", "--test", TEST, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    place = Path(found["results"])
    assert {path.name for path in place.iterdir()} == {
        "report.html", "results.json", "junit-unit.xml", "tests-unit.jsonl",
    }  # fmt: skip
    run = document.load(place)
    assert [test["id"] for test in run["tests"]] == [TEST]
    assert run["tests"][0]["repeat"] == f"npulab test unit --test {TEST}"
    assert run["command"][:3] == ["npulab", "test", "unit"]
    assert document.verdict(run) == ("passed", "1 passed")
    again = npulab(tmp_path, "report", "show")
    assert again.returncode == 0
    assert "passed: 1 passed" in again.stdout


@pytest.mark.skipif(not (PACKAGE_ROOT / "tests").is_dir(), reason="not a checkout")
def test_a_selection_of_nothing_is_no_success(tmp_path: Path) -> None:
    done = npulab(tmp_path, "test", "unit", "--test", TEST, "--", "-k", "no_such_test")
    assert done.returncode == 1
    assert "no test ran" in done.stdout
    done = npulab(tmp_path, "test", "unit", "--keep", "0")
    assert done.returncode == 2
    assert "--keep 0" in done.stderr
