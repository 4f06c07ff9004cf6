# SPDX-License-Identifier: MIT
"""Clients and cores that go away at a bad time: killed or closed in the middle of a job, unbound and bound again.

Each test runs with the board's own kernel, and on a virtual board also with the kit's fixes of the driver
(`kernel-patches`). What mainline's driver gets wrong is in the expectation files; after a test that shows it the board
is switched off and on, since its kernel can not be trusted any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from on_board import Board, KernelLog
from own_board import MODULES, fixed_board

from lab.report.kmsg import Journal

pytestmark = [pytest.mark.lg_feature("npu"), pytest.mark.timeout(3600)]
"""The first test of a cold cache builds a kernel."""

CORES = ("fdab0000", "fdac0000", "fdad0000")
DRIVER = "/sys/bus/platform/drivers/rocket"
SECONDS = 90.0


@dataclass
class Subject:
    """A board and what its kernel says during this test."""

    board: Board
    log: KernelLog
    fine: bool = False

    def announce(self) -> None:
        """What becomes of a job whose client has gone: its command words may be unmapped before they are fetched."""
        self.log.announce("NPU job timed out")
        self.log.announce("Page fault at")

    def calm(self) -> None:
        """Fail as soon as the kernel has said something bad: a job on a broken kernel may never end."""
        self.log.refresh()
        found = self.log.problems()
        assert not found, "the kernel said:\n" + "\n".join(found)

    def works(self, cores: set[str], processes: int) -> None:
        """Jobs of that many processes are right, and exactly these cores ran them."""
        found = self.board.python("concurrency.py", "processes", str(processes), "10", timeout=SECONDS)
        assert found["done"] == [10] * processes and not any(found["wrong"]), found
        assert {core for core, count in found["interrupts"].items() if count} == cores, found
        self.calm()


@pytest.fixture(scope="module")
def fixed(env: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, Journal]]:
    """A virtual board with the kit's driver."""
    if "virtual" not in env.get_features():
        pytest.skip("the driver with the kit's fixes is tried on a virtual board only")
    with fixed_board(tmp_path_factory.mktemp("fixed")) as board:
        yield board, Journal(board)


@pytest.fixture(params=["running", "fixed"])
def subject(request: pytest.FixtureRequest, board: Board, strategy: Any, kernel_log: KernelLog) -> Iterator[Subject]:
    """The board with the kernel that runs on it, or one with the kit's fixes."""
    if request.param == "fixed":
        own, journal = request.getfixturevalue("fixed")
        log = KernelLog(journal, request.node.nodeid)
        log.refresh()
        yield Subject(own, KernelLog(journal, request.node.nodeid))
        return
    running = Subject(board, kernel_log)
    yield running
    if not running.fine or kernel_log.problems():
        state = strategy.status.name
        strategy.transition("off")
        strategy.transition(state)
        board.forget()
        kernel_log.announce_restart()
        kernel_log.refresh("switched off and on")


def test_file_closed_in_the_middle_of_a_job(subject: Subject) -> None:
    subject.announce()
    for count in ("1", "5"):
        subject.board.python("process_end.py", "close", count, timeout=SECONDS)
        subject.calm()
    subject.works(set(CORES), 6)
    subject.fine = True


def test_process_killed_in_the_middle_of_a_job(subject: Subject) -> None:
    subject.announce()
    for count in ("1", "7"):
        subject.board.python("process_end.py", "kill", count, timeout=SECONDS)
        subject.calm()
    subject.works(set(CORES), 6)
    subject.fine = True


@pytest.mark.parametrize("core", CORES[::-1])
def test_core_can_be_unbound_and_bound(subject: Subject, core: str) -> None:
    try:
        subject.board.output(f"echo {core}.npu > {DRIVER}/unbind")
        subject.works(set(CORES) - {core}, 4)
    finally:
        subject.board.output(f"echo {core}.npu > {DRIVER}/bind")
    subject.works(set(CORES), 6)
    subject.fine = True


def test_jobs_leave_nothing_behind(
    fixed: tuple[Board, Journal], request: pytest.FixtureRequest, measure: Callable[..., None]
) -> None:
    """References to the IOMMU's group, and memory, before and after many jobs; mainline's driver leaks a reference per
    job (`test_rocket_fixes.py`)."""
    board, _ = fixed
    each = 2_500 if request.config.getoption("--soak") else 250
    references = "cat /sys/module/groupref/parameters/references"
    board.output(f"insmod {MODULES}/groupref.ko")
    try:
        before = int(board.output(references))
        found = board.python("concurrency.py", "processes", "4", str(each), timeout=60.0 + each)
        assert found["done"] == [each] * 4 and not any(found["wrong"]), found
        measure("references gained", int(board.output(references)) - before, "references", jobs=4 * each)
        assert int(board.output(references)) == before
    finally:
        board.output("rmmod groupref")
