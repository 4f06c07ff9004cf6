# SPDX-License-Identifier: MIT
"""Fixtures of the board suite. Nothing here knows whether the board is virtual: the labgrid environment does.

pytest --lg-env lab/labgrid/env/virt.yaml tests/board
pytest --lg-env my-orangepi-5.yaml tests/board
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# the tests import their helpers from here, wherever pytest runs
sys.path.insert(0, str(Path(__file__).parent))

from on_board import Board

from lab.report.session import SESSION, attach

pytest_plugins = ["lab.report.plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Long forms of tests that are short otherwise."""
    group = parser.getgroup("board suite")
    group.addoption("--soak", type=float, default=0.0, metavar="MINUTES", help="run jobs for so long (default 6 s)")
    group.addoption(
        "--soak-floor", type=float, default=10.0, metavar="JOBS", help="jobs per second that a soak has to reach"
    )


@pytest.fixture(scope="session")
def board(env: Any, target: Any, strategy: Any) -> Board:
    """The board, booted, with a way to run commands on it: ssh where the environment has it, else the console."""
    state = "ssh" if "ssh" in env.get_features() | env.get_target_features() else "shell"
    strategy.transition(state)
    files = target.get_active_driver("FileTransferProtocol") if state == "ssh" else None
    return Board(target.get_active_driver("CommandProtocol"), files)


@pytest.fixture(scope="session", autouse=True)
def _tested_board(
    board: Board, strategy: Any, request: pytest.FixtureRequest, record_testsuite_property: Any
) -> Iterator[None]:
    """What is tested, for the report; from here on the kernel's log is watched for every test."""
    attach(request.config, board, strategy)
    record_testsuite_property("kernel", board.output("uname -r"))
    record_testsuite_property("board", board.output("tr -d '\\0' < /proc/device-tree/model"))
    yield
    # labgrid switches the board off when its own fixtures end
    request.config.stash[SESSION].last_look()
