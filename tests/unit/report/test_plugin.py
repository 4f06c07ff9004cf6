# SPDX-License-Identifier: MIT
"""The pytest plugin, in a pytest of its own, with a board that is a list of kernel messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.report import document
from lab.report.record import Recorder
from lab.virt.supervisor import python_environment

HERE = Path(__file__).parent

CONFTEST = f"""
import sys
import pytest

sys.path.insert(0, {str(HERE)!r})
from fake_board import FakeBoard
from lab.report.session import attach

BOARD = FakeBoard()
BOARD.say("Booting Linux")

@pytest.fixture(scope="session", autouse=True)
def board(request):
    attach(request.config, BOARD)
    return BOARD
"""

TESTS = """
import pexpect, pytest, subprocess
from lab.errors import ExitCode, KitError
import labgrid.driver.exception as exception

def test_passes(measure, numerics):
    measure("rate", 41.5, "jobs/s", cores=2)
    numerics("matmul", "int8", 0, None, 0, 4096)

def test_wrong():
    assert 1 == 2, "one is not two"

def test_warns(board):
    board.say("WARNING: CPU: 0 PID: 1 at x.c:1")
    board.taint = 1 << 9

@pytest.mark.expect_kernel("job timed .ut")
def test_announces(board, kernel_log):
    board.say("NPU job timed out")
    assert kernel_log.matching("timed out") == ["NPU job timed out"]

@pytest.fixture
def untidy(board):
    yield
    board.say("BUG: after the test")

def test_leaves_a_bug(untidy):
    pass

def test_finds_the_bug():
    raise AssertionError("never reached")

@pytest.mark.parametrize("error", [
    KitError(ExitCode.INFRASTRUCTURE, "QEMU has died"), pexpect.EOF("gone"), ConnectionResetError("gone"),
    exception.ExecutionError("Keepalive no longer running"),
], ids=["kit", "eof", "reset", "labgrid"])
def test_laboratory(error):
    raise error

@pytest.mark.parametrize("error", [
    KitError(ExitCode.FAILED, "wrong result"), pexpect.TIMEOUT("the board answers"),
    exception.ExecutionError("failed", ["output"], []), subprocess.TimeoutExpired("x", 1),
], ids=["kit", "timeout", "labgrid", "hang"])
def test_product(error):
    raise error

@pytest.fixture
def broken():
    raise AssertionError("the product, in a fixture")

def test_fixture(broken):
    pass

def test_skipped():
    pytest.skip("no such feature")

def test_broken_strategy():
    pytest.skip("KitStrategy is in broken state")

@pytest.mark.xfail(strict=True, reason="known")
def test_xfail():
    assert False

def test_goes_silent(board):
    board.dead = True
    assert False, "ssh: connection refused"

def test_after_silence():
    pass
"""


def run_pytest(place: Path, tests: str, *options: str, conftest: str = CONFTEST) -> tuple[int, str]:
    """A pytest in ``place``: its exit code and what it printed."""
    suite = place / "tests" / "board"
    suite.mkdir(parents=True, exist_ok=True)
    (place / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\n")
    (suite / "conftest.py").write_text(conftest)
    (suite / "test_it.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "lab.report.plugin", "-p", "no:cacheprovider", "tests/board"]
    command += ["--npulab-results", str(place), "--npulab-repeat", "npulab test board --test", *options]
    # other plugins take longer to load than these tests to run
    variables = {**os.environ, **python_environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "tests-board.jsonl").read_text().splitlines()]


def outcomes(place: Path) -> dict[str, dict[str, Any]]:
    return {line["id"].partition("::")[2]: line for line in lines(place) if line["kind"] == "test"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    place = tmp_path_factory.mktemp("plugin")
    code, text = run_pytest(place, TESTS)
    assert code == 1, text
    return place, text


OUTCOMES = {
    "test_passes": "passed",
    "test_wrong": "failed",
    "test_warns": "failed",
    "test_announces": "passed",
    "test_leaves_a_bug": "passed",
    "test_finds_the_bug": "failed",
    **{f"test_laboratory[{name}]": "error" for name in ("kit", "eof", "reset", "labgrid")},
    **{f"test_product[{name}]": "failed" for name in ("kit", "timeout", "labgrid", "hang")},
    "test_fixture": "failed",
    "test_skipped": "skipped",
    "test_broken_strategy": "error",
    "test_xfail": "xfailed",
    "test_goes_silent": "error",
    "test_after_silence": "error",
}


def test_outcomes(ran: tuple[Path, str]) -> None:
    found = {name: line["outcome"] for name, line in outcomes(ran[0]).items()}
    assert found == OUTCOMES


def test_pytest_itself_calls_errors_errors(ran: tuple[Path, str]) -> None:
    text = ran[1]
    assert "ERROR tests/board/test_it.py::test_laboratory[kit]" in text
    assert "ERROR tests/board/test_it.py::test_broken_strategy" in text
    assert "FAILED tests/board/test_it.py::test_warns" in text


def test_the_kernels_words_stand_beside_the_test(ran: tuple[Path, str]) -> None:
    found = outcomes(ran[0])
    assert [r["text"] for r in found["test_warns"]["kernel_log"]] == ["WARNING: CPU: 0 PID: 1 at x.c:1"]
    assert "newly tainted: bit 9" in found["test_warns"]["detail"]
    assert found["test_announces"]["kernel_log"][0]["bad"]
    after = found["test_finds_the_bug"]
    assert "after tests/board/test_it.py::test_leaves_a_bug had ended" in after["detail"]
    assert after["phase"] == "setup"
    assert found["test_passes"]["kernel_log"] == []


def test_values_and_the_command_that_repeats(ran: tuple[Path, str]) -> None:
    found = outcomes(ran[0])["test_passes"]
    assert found["measurements"] == [{"name": "rate", "value": 41.5, "unit": "jobs/s", "labels": {"cores": 2}}]
    assert found["numerics"][0]["elements"] == 4096
    assert outcomes(ran[0])["test_product[kit]"]["repeat"] == (
        "npulab test board --test 'tests/board/test_it.py::test_product[kit]'"
    )


def test_the_end_of_the_run_is_marked(ran: tuple[Path, str]) -> None:
    last = lines(ran[0])[-1]
    assert last["kind"] == "end"
    assert "does not answer" in last["trailing"][0]


def test_a_bug_after_the_last_test_fails_the_run(tmp_path: Path) -> None:
    tests = """
import pytest

from lab.report import document
from lab.report.record import Recorder
from lab.virt.supervisor import python_environment

@pytest.fixture
def untidy(board):
    yield
    board.say("BUG: too late")

def test_last(untidy):
    pass
"""
    code, text = run_pytest(tmp_path, tests)
    assert code == 1, text
    assert lines(tmp_path)[-1]["trailing"] == ["BUG: too late"]


EXPECTED = """
def test_known():
    assert False

def test_mended():
    pass

COUNT = []

def test_now_and_then():
    COUNT.append(1)
    assert len(COUNT) == 3

def test_never():
    assert False

def test_left_out():
    raise SystemExit("hangs the board")

def test_on_other_kernels():
    assert False

def test_fixed():
    pass

def test_fixed_elsewhere():
    assert False
"""

FILE = """
schema: 1
board: mine
expectations:
  - {{test: "tests/board/test_it.py::test_known", expect: fail, reason: the driver is wrong, evidence: commit 1234}}
  - {{test: "tests/board/test_it.py::test_mended", expect: fail, reason: it was wrong once, evidence: commit 1234}}
  - {{test: "tests/board/test_it.py::test_now*", expect: flaky, reason: a race in the test, evidence: commit 1234}}
  - {{test: "tests/board/test_it.py::test_never", expect: flaky, reason: a race in the test, evidence: commit 12,
      attempts: 2}}
  - {{test: "tests/board/test_it.py::test_left_out", expect: skip, reason: hangs the SoC's bus, evidence: commit 12}}
  - {{test: "tests/board/test_it.py::{other}", expect: fail, reason: only there it fails, evidence: commit 1234,
      kernels: ["6.18*"]}}
  - {{test: "tests/board/test_it.py::test_fixed", expect: fail, reason: without the patch, evidence: commit 12,
      fixed_by: [0005-not-there.patch, 0001-here.patch]}}
  - {{test: "tests/board/test_it.py::test_fixed_elsewhere", expect: fail, reason: without the patch, evidence: commit 1,
      fixed_by: [0002-not-there.patch]}}
"""


def test_expectations(tmp_path: Path) -> None:
    strategy = "type('Strategy', (), {'kernel_patches': ['0001-here.patch']})()"
    conftest = CONFTEST.replace("config, BOARD", f"config, BOARD, {strategy}")
    (tmp_path / "mine.yaml").write_text(FILE.format(other="test_on_other_kernels"))
    code, text = run_pytest(tmp_path, EXPECTED, "--npulab-expectations", "mine.yaml", conftest=conftest)
    assert code == 1, text
    found = outcomes(tmp_path)
    assert {name: line["outcome"] for name, line in found.items()} == {
        "test_known": "xfailed",
        "test_mended": "failed",
        "test_now_and_then": "flaky",
        "test_never": "failed",
        "test_left_out": "skipped",
        "test_on_other_kernels": "failed",
        "test_fixed": "passed",
        "test_fixed_elsewhere": "xfailed",
    }
    assert found["test_mended"]["message"].startswith("unexpected pass: take it out of mine.yaml")
    assert found["test_now_and_then"]["attempts"] == 3
    assert found["test_never"]["attempts"] == 2
    assert found["test_known"]["expectation"]["reason"] == "the driver is wrong"


def test_an_expectation_of_no_test_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILE.format(other="test_on_other_kernel"))
    code, text = run_pytest(tmp_path, EXPECTED, "--npulab-expectations", "mine.yaml")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "there is no test tests/board/test_it.py::test_on_other_kernel" in text
    assert "do you mean tests/board/test_it.py::test_on_other_kernels?" in text
    assert outcomes(tmp_path) == {}
    # part of a file says nothing about the rest of it
    code, text = run_pytest(tmp_path, EXPECTED, "tests/board/test_it.py::test_never")
    assert "there is no test" not in text


RECOVERING = """
class State:
    name = "shell"

class Strategy:
    status = State
    switched = []

    def transition(self, state):
        self.switched.append(state)
        if state is State:
            BOARD.dead = len(self.switched) > LIMIT
            BOARD.restart()

LIMIT = 100
STRATEGY = Strategy()

@pytest.fixture(scope="session", autouse=True)
def board(request):
    attach(request.config, BOARD, STRATEGY)
    return BOARD
"""

FRAGILE = """
import pytest

def test_panics(board):
    with open(PLACE + "/console_main", "a") as log:
        log.write("[    9.0] Kernel panic - not syncing: Oops: Fatal exception\\r\\n")
    board.dead = True
    raise ConnectionResetError("gone")

def test_next():
    pass

def test_silent(board):
    board.dead = True

@pytest.mark.parametrize("number", range(6))
def test_more(number):
    pass
"""


def test_a_silent_board_is_brought_back(tmp_path: Path) -> None:
    (tmp_path / "console_main").write_text("booted\n")
    tests = f"PLACE = {str(tmp_path)!r}\n{FRAGILE}"
    code, text = run_pytest(tmp_path, tests, conftest=CONFTEST + RECOVERING)
    assert code == 1, text
    found = outcomes(tmp_path)
    assert [line["outcome"] for line in found.values()] == ["failed", "passed", "error", *["passed"] * 6], text
    assert "the board's kernel died: [    9.0] Kernel panic - not syncing" in found["test_panics"]["message"]
    trouble = [line["message"] for line in lines(tmp_path) if line["kind"] == "trouble"]
    assert len(trouble) == 2
    assert "test_panics and was switched off and on" in trouble[0]


def test_a_board_that_stays_silent_is_given_up(tmp_path: Path) -> None:
    tests = f"PLACE = {str(tmp_path)!r}\n{FRAGILE}"
    conftest = CONFTEST + RECOVERING.replace("LIMIT = 100", "LIMIT = 0")
    code, text = run_pytest(tmp_path, tests, conftest=conftest)
    assert code == 1, text
    found = list(outcomes(tmp_path).values())
    assert [line["outcome"] for line in found] == ["failed", *["error"] * 8]
    assert "was given up" in found[-1]["message"]
    assert sum(line["kind"] == "trouble" for line in lines(tmp_path)) == 3


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    code, text = run_pytest(tmp_path, "import there_is_no_such_module\n")
    assert code == pytest.ExitCode.INTERRUPTED, text
    (found,) = [line for line in lines(tmp_path) if line["kind"] == "test"]
    assert (found["id"], found["outcome"]) == ("tests/board/test_it.py", "error")
    assert "No module named 'there_is_no_such_module'" in found["message"]
    row, tests, _ = document.suite_of(tmp_path / "tests-board.jsonl", seconds=1.0, exit_code=code)
    assert document.verdict({"tests": tests, "suites": [row]})[0] == "error"


def test_a_value_that_is_no_number_is_the_tests_fault(tmp_path: Path) -> None:
    code, text = run_pytest(tmp_path, 'def test_x(measure):\n    measure("rate", float("nan"), "jobs/s")\n')
    assert code == 1
    assert "rate is nan" in text


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, text = run_pytest(tmp_path, TESTS, "--npulab-results", str(tmp_path / "file" / "below"))
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "writing" in text
    assert "Traceback" not in text


def test_statistics_that_are_not_finite_have_no_value() -> None:
    recorder = Recorder()
    recorder.add_numerics("matmul", "float16", float("nan"), float("inf"), 4, 4)
    assert recorder.documents()["numerics"][0] == {
        "op": "matmul", "dtype": "float16", "max_abs": None, "max_ulp": None, "mismatches": 4, "elements": 4,
        "labels": {},
    }  # fmt: skip
