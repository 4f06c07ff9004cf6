# SPDX-License-Identifier: MIT
"""pytest plugin of all suites: ``-p lab.report.plugin``, or ``pytest_plugins`` in a conftest.

* fixtures ``measure`` and ``numerics`` record values for the report, ``kernel_log`` is the kernel's log of this test;
* once a conftest has called `lab.report.session.attach`, the kernel's log is bracketed for every test, and what the
  kernel said and the test did not announce (``@pytest.mark.expect_kernel("regular expression")``) fails it;
* trouble of the laboratory is an error, trouble of the product a failure (`lab.report.trouble`);
* with ``--npulab-results DIR`` each finished test is a line of ``DIR/tests-SUITE.jsonl`` as soon as it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import pytest
from _pytest import runner

from lab.errors import KitError
from lab.report.kmsg import KernelLog
from lab.report.record import Recorder
from lab.report.session import RECORDER, SESSION, Session

Wrapper = Generator[None, Any, Any]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the report."""
    group = parser.getgroup("npulab", "results for npulab report")
    group.addoption("--npulab-results", type=Path, metavar="DIR", help="write tests-SUITE.jsonl there")
    group.addoption("--npulab-suite", default="board", metavar="NAME", help="the suite's name in the results")
    group.addoption(
        "--npulab-expectations", type=Path, metavar="FILE", help="a file instead of lab/boards/expectations/BOARD.yaml"
    )
    group.addoption("--npulab-repeat", default="", metavar="COMMAND", help="how to repeat a test; its id is appended")


def pytest_configure(config: pytest.Config) -> None:
    """Markers and state."""
    config.addinivalue_line("markers", "expect_kernel(regex): a kernel message that this test means to cause")
    session = config.stash[SESSION] = Session(config)
    config.pluginmanager.register(_Hooks(session), "npulab-hooks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Expectations that cannot be right stop the run before it begins."""
    try:
        config.stash[SESSION].check_expectations(items, config.args)
    except KitError as error:
        raise pytest.UsageError(f"{error.message}\n{error.hint}") from None


class _Hooks:
    """Hooks that get no configuration, or stand beside others of their name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """What cannot be collected is an error of its own."""
        if report.failed:
            self._session.not_collected(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test that is known as flaky again when it fails; the last attempt's reports are the test's."""
        session = self._session
        if not session.may_be_flaky(item.nodeid):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        while True:
            # as if a test of the same module came next: only the test's own fixtures end
            reports = runner.runtestprotocol(item, nextitem=cast(pytest.Item, item.parent), log=False)
            if not session.flaky(item):
                break
            session.again(item)
            cast(pytest.Function, item)._initrequest()
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        # what the module's fixtures say when they end
        state = item.session._setupstate
        end = pytest.CallInfo.from_call(lambda: state.teardown_exact(nextitem), when="teardown")
        report = item.ihook.pytest_runtest_makereport(item=item, call=end)
        if report.failed:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin the test's part of the kernel's log before any of its fixtures."""
    item.config.stash[SESSION].begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Wrapper:
    """Judge the kernel's log while the test still can fail."""
    session = item.config.stash[SESSION]
    # the first test's session fixtures have attached the board by now
    session.begin(item)
    try:
        result = yield
    except (KeyboardInterrupt, SystemExit, pytest.skip.Exception, pytest.exit.Exception):
        raise
    except BaseException:
        session.look(item)
        raise
    session.judge(item)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Wrapper:
    """Tell trouble of the laboratory from trouble of the product."""
    report: pytest.TestReport = yield
    item.config.stash[SESSION].settle(item, call, report)
    return report


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """An error is called one, also when it came while the test ran; and a failure in a fixture is a failure."""
    if getattr(report, "infrastructure", False) and report.failed:
        return "error", "E", "ERROR"
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Wrapper:
    """Write the test's line when all its phases have ended."""
    result = yield
    item.config.stash[SESSION].finish(item)
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Look at the kernel's log for the last time."""
    session.config.stash[SESSION].end(session, int(exitstatus))


@pytest.fixture
def kernel_log(request: pytest.FixtureRequest) -> KernelLog:
    """The kernel's log since this test began: ``announce``, ``lines``, ``matching``."""
    session = request.config.stash[SESSION]
    session.begin(request.node)
    log: KernelLog | None = session.log(request.node)
    if log is None:
        raise pytest.UsageError("kernel_log: no board is attached (lab.report.session.attach in a conftest)")
    return log


@pytest.fixture(scope="session")
def boot_messages(request: pytest.FixtureRequest) -> list[str]:
    """Bad messages of the kernel from its start to the first test."""
    found: list[str] = request.config.stash[SESSION].facts["boot"]["bad"]
    return found


def _recorder(request: pytest.FixtureRequest) -> Recorder:
    recorder: Recorder = request.node.stash.setdefault(RECORDER, Recorder())
    return recorder


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``measure("matmul", 41.5, "GOP/s", cores=2)``: a value for the report's tables and plots."""
    return _recorder(request).measure


@pytest.fixture
def numerics(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``numerics(op, dtype, max_abs, max_ulp, mismatches, elements)``: error statistics of one result."""
    return _recorder(request).add_numerics
