# SPDX-License-Identifier: MIT
"""The self-test and the job loop as programs, on the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rknpu_userspace import jobloop, selftest


def test_all_workloads_pass_on_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--device", "model", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == [workload.name for workload in selftest.WORKLOADS]
    assert {(row["dtype"], "large" in row["name"]) for row in rows} >= {("int8", True), ("float16", True)}
    for row in rows:
        assert row["ok"]
        assert row["jobs"] == row["cores"] == 3
        assert row["dtype"] != "int8" or row["exact"]
        assert row["macs"] > 0 < row["planned_dma_bytes"]


def test_all_trials_pass_on_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--device", "model", "--trials", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(selftest.trial_names())
    for row in rows:
        assert row["ok"]
        assert 1 <= row["jobs"] <= row["tasks"]
        assert row["npu_seconds"] > 0
    assert selftest.main(["--device", "model", "--trials", "--only", "tanh-float16,max-int8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "max-int8", "int8", "exact"]
    assert "of what is stated" in lines[1]


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rknpu_userspace.program import Program

    real = Program.__call__

    def off_by_one(self: Program, x: object) -> object:
        result = real(self, x)  # type: ignore[arg-type]
        result[..., 0] += 1
        return result

    monkeypatch.setattr(Program, "__call__", off_by_one)
    assert selftest.main(["--device", "model", "--only", "int8-matmul,fp16-conv1x1"]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2
    assert selftest.main(["--device", "model", "--trials", "--only", "conv1d-float16,relu-int8"]) == 1
    assert capsys.readouterr().out.count("FAIL") == 2


def test_list_and_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["--list", "--only", "fp16-matmul"]) == 0
    assert capsys.readouterr().out == "fp16-matmul\n"
    with pytest.raises(SystemExit) as caught:
        selftest.main(["--only", "nonsense"])
    assert caught.value.code == 2
    assert "no workload 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("program", [selftest.main, jobloop.main])
def test_missing_device(program: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["--device", "/nonexistent"]) == 4  # type: ignore[operator]
    assert "error: /nonexistent does not exist" in capsys.readouterr().err


def test_job_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert jobloop.main(["--device", "model", "--jobs", "20"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["ok"]
    assert row["jobs"] == 20
    assert row["min_us"] <= row["p50_us"] <= row["p99_us"] <= row["max_us"]


@pytest.mark.parametrize("module", ["rknpu_userspace.selftest", "rknpu_userspace"])
def test_a_reader_that_goes_away(module: str) -> None:
    """As with ``| head -1``: no traceback."""
    tool = ["selftest"] if module == "rknpu_userspace" else []
    command = [sys.executable, "-m", module, *tool, "--device", "model"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"ok ")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(120) == 1
