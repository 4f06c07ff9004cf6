# SPDX-License-Identifier: MIT
"""The state behind the pytest plugin: one per pytest run."""

from __future__ import annotations

import datetime
import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.errors import ExitCode, KitError, from_os_error
from lab.report import expectations
from lab.report.expectations import Expectation
from lab.report.facts import read_facts, read_state
from lab.report.kmsg import Journal, KernelLog, Record
from lab.report.record import Recorder
from lab.report.trouble import BROKEN, ConsoleWatch, hang, infrastructure

RECORDER: pytest.StashKey[Recorder] = pytest.StashKey()
RECOVERIES = 3
"""How often a board that has gone silent is switched off and on again in a run; a boot takes up to two minutes."""
KEPT_RECORDS = 300
"""Kernel messages kept with a test that did not pass."""
KEPT_DETAIL = 20_000
"""Characters kept of a failure's text: the beginning and the end."""


@dataclass
class Attempt:
    """What is known about one run of one test so far."""

    started: str
    outcome: str = "passed"
    phase: str = ""
    message: str = ""
    detail: str = ""
    seconds: float = 0.0
    silent: str = ""
    log: KernelLog | None = None
    leftover: list[Record] = field(default_factory=list)
    expectation: Expectation | None = None
    number: int = 1


ATTEMPT: pytest.StashKey[Attempt] = pytest.StashKey()


def now() -> str:
    """UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def shorten(text: str, limit: int = KEPT_DETAIL) -> str:
    """A long text without its middle."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


class Session:
    """One pytest run: the board it watches, and the lines it writes."""

    def __init__(self, config: pytest.Config) -> None:
        self.suite: str = config.getoption("--npulab-suite")
        self._repeat: str = config.getoption("--npulab-repeat")
        self._config = config
        self._journal: Journal | None = None
        self._board: Any = None
        self._strategy: Any = None
        self._previous = "the board's start"
        self._trailing: list[str] | None = None
        self._lost = False
        self._fast = False
        self._recoveries = 0
        self._sink: Path | None = None
        self.facts: dict[str, Any] = {}
        self._chosen: Path | None = config.getoption("--npulab-expectations")
        self._known: list[Expectation] = []
        results: Path | None = config.getoption("--npulab-results")
        self._flaky: list[Expectation] = []
        self._watch = ConsoleWatch(results)
        if results is not None:
            self._sink = results / f"tests-{self.suite}.jsonl"
            try:
                results.mkdir(parents=True, exist_ok=True)
                self._sink.write_text("")
            except OSError as error:
                raise pytest.UsageError(from_os_error(error, f"writing {self._sink}").message) from error
            self.write({"kind": "start", "suite": self.suite, "time": now()})

    # the lines
    def write(self, document: dict[str, Any]) -> None:
        """Append a line; it is complete or not there."""
        if self._sink is None:
            return
        with self._sink.open("a") as sink:
            sink.write(json.dumps(document, default=str) + "\n")

    # the board
    def attach(self, board: Any, strategy: Any) -> None:
        """Watch this board from now on."""
        self._board, self._strategy = board, strategy
        self._journal = Journal(board)
        boot = self._journal.cut("beginning of a test run")
        environment = getattr(getattr(strategy, "target", None), "env", None)
        features = environment.get_features() | environment.get_target_features() if environment else set()
        state = getattr(getattr(strategy, "status", None), "name", "")
        self._fast = state == "ssh"
        self.facts = read_facts(board, boot.records, fast=self._fast, virtual="virtual" in features)
        self.facts["board"] |= {"features": sorted(features), "place": _place(strategy)}
        seconds = getattr(strategy, "boot_seconds", None)
        self.facts["boot"] = {
            "seconds": None if seconds is None else round(seconds, 2),
            "bad": [str(record) for record in boot.records if record.bad],
        }
        self.facts["kernel"]["patches"] = getattr(strategy, "kernel_patches", None)
        self.write({"kind": "facts", **self.facts})
        if self._chosen is None:
            name = self.facts["board"]["name"]
            self._known = expectations.load(name) if name in expectations.names() else []

    def recover(self) -> None:
        """Switch a board that has gone silent off and on again, so that the tests that follow say something."""
        self._recoveries += 1
        if self._strategy is None or self._recoveries > RECOVERIES:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"the board went silent and was given up before this test ({self._previous} was the last)",
                "see the first test that failed, and the console's log",
            )
        state = self._strategy.status
        message = f"the board went silent during {self._previous} and was switched off and on"
        self.write({"kind": "trouble", "message": message})
        self._strategy.transition("off")
        self._strategy.transition(state)
        forget = getattr(self._board, "forget", None)
        if forget is not None:
            forget()
        self._journal = Journal(self._board)
        self._journal.cut("after the board went silent")
        self._lost = False

    def _cut(self, log: KernelLog, title: str) -> None:
        """Read the kernel's log; what the transport raises passes through, and the board counts as lost."""
        try:
            log.refresh(title)
        except Exception:
            self._lost = True
            raise

    def log(self, item: pytest.Item) -> KernelLog | None:
        """The test's part of the kernel's log."""
        attempt = item.stash.get(ATTEMPT, None)
        return attempt.log if attempt else None

    def _attempt(self, item: pytest.Item) -> Attempt:
        return item.stash.setdefault(ATTEMPT, Attempt(now()))

    # expectations
    def check_expectations(self, items: list[pytest.Item], args: list[str]) -> None:
        """All expectation files have to be right and to speak of tests that there are."""
        found = [entry for name in expectations.names() for entry in expectations.load(name)]
        if self._chosen is not None:
            self._known = expectations.read(self._chosen)
            found += self._known
        tests = [item.nodeid for item in items]
        whole = not any("::" in word for word in args)
        expectations.check_ids(found, tests, {test.partition("::")[0] for test in tests} if whole else ())
        self._flaky = [entry for entry in found if entry.expect == "flaky"]

    def may_be_flaky(self, test: str) -> bool:
        """Whether any board's file says so."""
        return any(entry.is_for(test) for entry in self._flaky)

    def flaky(self, item: pytest.Item) -> bool:
        """Whether the test may be run once more after the failure it has had."""
        attempt = self._attempt(item)
        entry = attempt.expectation
        return (
            attempt.outcome == "failed"
            and entry is not None
            and entry.expect == "flaky"
            and attempt.number < entry.attempts
        )

    def again(self, item: pytest.Item) -> None:
        """Forget what the last attempt has left."""
        before = self._attempt(item)
        item.stash[ATTEMPT] = Attempt(before.started, number=before.number + 1, seconds=before.seconds)
        item.stash.setdefault(RECORDER, Recorder()).clear()

    def begin(self, item: pytest.Item) -> None:
        """Mark the test's begin in the kernel's log, once; what came since the last test has ended fails this one."""
        attempt = self._attempt(item)
        if self._journal is None or attempt.log is not None or any(item.iter_markers("skip")):
            return
        kernel = self.facts["kernel"]
        attempt.expectation = expectations.select(self._known, item.nodeid, kernel["release"], kernel["patches"] or ())
        if attempt.expectation is not None and attempt.expectation.expect == "skip":
            pytest.skip(attempt.expectation.reason)
        self._watch.start()
        if self._lost:
            self.recover()
        between = KernelLog(self._journal, self._previous)
        self._cut(between, f"begin {item.nodeid}")
        attempt.log = KernelLog(self._journal, item.nodeid)
        for mark in item.iter_markers("expect_kernel"):
            for pattern in mark.args:
                attempt.log.announce(pattern)
                between.announce(pattern)
        found = between.problems()
        if found:
            attempt.leftover = between.records
            pytest.fail(f"after {self._previous} had ended, the kernel said:\n" + "\n".join(found), pytrace=False)

    def look(self, item: pytest.Item) -> None:
        """After a failure: read the kernel's log, and see thereby whether the board answers."""
        attempt = self._attempt(item)
        if attempt.log is None:
            return
        try:
            self._cut(attempt.log, f"failed {item.nodeid}")
        except Exception as error:  # noqa: BLE001 - any transport's own error means the same: it does not answer
            attempt.silent = str(error) or type(error).__name__

    def judge(self, item: pytest.Item) -> None:
        """After a test that has passed: what the kernel says of it."""
        log = self._attempt(item).log
        if log is None:
            return
        self._cut(log, f"end {item.nodeid}")
        found = log.problems()
        if found:
            pytest.fail("the kernel said:\n" + "\n".join(found), pytrace=False)
        if log.lost:
            raise KitError(
                ExitCode.INFRASTRUCTURE,
                f"{log.lost} kernel messages were overwritten before they were read",
                "boot with a larger log_buf_len=",
            )

    # outcomes
    def settle(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Give a phase's report its final outcome and take it down."""
        attempt = self._attempt(item)
        attempt.seconds += report.duration
        if report.skipped and call.excinfo is not None and BROKEN in str(call.excinfo.value):
            report.outcome = "failed"
            report.longrepr = "the board could not be brought into the state that the tests need; see the first error"
            self._note(attempt, report, "error", str(report.longrepr))
        elif report.failed and call.excinfo is not None:
            self._failed(attempt, call.excinfo, report)
        elif report.skipped and attempt.outcome == "passed":
            attempt.outcome = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            reason = getattr(report, "wasxfail", "") or _skip_reason(report)
            attempt.phase, attempt.message = report.when or "", reason
        elif report.when == "call" and report.passed and _expects_failure(attempt):
            assert attempt.expectation is not None
            message = f"unexpected pass: take it out of {attempt.expectation.file} ({attempt.expectation.reason})"
            report.outcome, report.longrepr = "failed", message
            self._note(attempt, report, "failed", message)

    def _failed(self, attempt: Attempt, info: pytest.ExceptionInfo[BaseException], report: pytest.TestReport) -> None:
        error = info.value
        panic = self._watch.panic() if attempt.silent or infrastructure(error, silent=False) else ""
        trouble = infrastructure(error, silent=bool(attempt.silent))
        if hang(error) and not attempt.silent:
            trouble = attempt.log is None
        detail, message = report.longreprtext, _first_line(error)
        if panic:
            trouble = False
            message = f"the board's kernel died: {panic.splitlines()[0]}"
            detail = f"the board's kernel died:\n{panic}\n\n{detail}"
        elif attempt.silent:
            message = f"the board does not answer: {attempt.silent}"
            detail = f"{message}\n\n{detail}"
        if detail != report.longreprtext:
            report.sections.append(("the board", detail.split("\n\n")[0]))
        outcome = "error" if trouble else "failed"
        if outcome == "failed" and _expects_failure(attempt) and attempt.outcome == "passed":
            assert attempt.expectation is not None
            report.outcome, report.wasxfail = "skipped", attempt.expectation.reason
            attempt.outcome, attempt.phase, attempt.message = "xfailed", report.when or "", message
            attempt.detail = shorten(detail)
            return
        self._note(attempt, report, outcome, message, detail)

    def _note(self, attempt: Attempt, report: pytest.TestReport, outcome: str, message: str, detail: str = "") -> None:
        report.infrastructure = outcome == "error"  # type: ignore[attr-defined]
        if attempt.outcome in ("failed", "error"):
            return
        attempt.outcome, attempt.phase, attempt.message = outcome, report.when or "", message
        attempt.detail = shorten(detail)

    def finish(self, item: pytest.Item) -> None:
        """Write the test's line."""
        attempt = self._attempt(item)
        recorder = item.stash.get(RECORDER, Recorder())
        expectation = attempt.expectation
        flaky = attempt.number > 1 and attempt.outcome == "passed"
        self.write(
            {
                "kind": "test",
                "id": item.nodeid,
                "outcome": "flaky" if flaky else attempt.outcome,
                "attempts": attempt.number,
                "expectation": expectation.brief() if expectation else None,
                "phase": attempt.phase,
                "message": attempt.message,
                "detail": attempt.detail,
                "started": attempt.started,
                "seconds": round(attempt.seconds, 3),
                "properties": {str(name): value for name, value in item.user_properties},
                "kernel_log": _kept(attempt),
                "repeat": self._repeat_command(item.nodeid),
                **recorder.documents(),
            }
        )
        self._previous = item.nodeid

    def not_collected(self, report: pytest.CollectReport) -> None:
        """A file whose tests could not even be listed: nothing is known about any of them."""
        text = report.longreprtext
        words = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
        self.write(
            {
                "kind": "test",
                "id": report.nodeid or self.suite,
                "outcome": "error",
                "phase": "collect",
                "message": f"its tests cannot be read: {words[-1] if words else text.strip()[-200:]}",
                "detail": shorten(text),
                "started": now(),
                "seconds": 0.0,
                "properties": {},
                "kernel_log": [],
                "repeat": self._repeat_command(report.nodeid),
                **Recorder().documents(),
            }
        )

    def _repeat_command(self, test: str) -> str:
        return f"{self._repeat or 'python -m pytest'} {shlex.quote(test)}"

    def last_look(self) -> None:
        """Read the kernel's log for the last time; once, while the board is still there."""
        if self._trailing is not None:
            return
        self._trailing = []
        if self._journal is not None and self._previous:
            try:
                last = KernelLog(self._journal, self._previous)
                last.refresh("end of a test run")
                self._trailing = last.problems()
                self.write({"kind": "state", **read_state(self._board, fast=self._fast)})
            except Exception as error:  # noqa: BLE001 - reported below, whatever the transport calls it
                self._trailing = [f"the board does not answer at the end of the run: {error}"]

    def end(self, session: pytest.Session, exitstatus: int) -> None:
        """The run is over."""
        self.last_look()
        trailing = self._trailing or []
        if trailing and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.write({"kind": "end", "time": now(), "exit": int(session.exitstatus), "trailing": trailing})


def _place(strategy: Any) -> str:
    """The labgrid place that the board was acquired at, or nothing when it is local."""
    resources = getattr(getattr(strategy, "target", None), "resources", [])
    name = next((str(resource.name) for resource in resources if type(resource).__name__ == "RemotePlace"), "")
    # "+" is labgrid's word for the place that is chosen by the environment
    return os.environ.get("LG_PLACE", name) if name == "+" else name


def _expects_failure(attempt: Attempt) -> bool:
    return attempt.expectation is not None and attempt.expectation.expect == "fail"


def _skip_reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _first_line(error: BaseException) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    name = "" if type(error).__name__ in ("AssertionError", "Failed", "KitError") else f"{type(error).__name__}: "
    return f"{name}{lines[0]}" + (f" {lines[1].strip()}" if lines[0].endswith(":") and len(lines) > 1 else "")


def _kept(attempt: Attempt) -> list[dict[str, Any]]:
    """The kernel messages that are worth keeping: all of a test that did not pass, else those that are bad."""
    records = [*attempt.leftover, *(attempt.log.records if attempt.log else [])]
    if attempt.outcome in ("passed", "skipped"):
        records = [record for record in records if record.bad]
    if len(records) > KEPT_RECORDS:
        records = records[: KEPT_RECORDS // 3] + records[-2 * KEPT_RECORDS // 3 :]
    return [
        {"sequence": r.sequence, "seconds": r.seconds, "level": r.level, "text": r.text, "bad": r.bad} for r in records
    ]


SESSION: pytest.StashKey[Session] = pytest.StashKey()


def attach(config: pytest.Config, board: Any, strategy: Any = None) -> None:
    """From now on watch this board's kernel log. ``board.run(command, timeout)`` gives lines and an exit code;
    ``strategy`` brings it back when it has gone silent."""
    config.stash[SESSION].attach(board, strategy)
