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

from on_board import Board, KernelLog


@pytest.fixture(scope="session")
def board(env: Any, target: Any, strategy: Any) -> Board:
    """The board, booted, with a way to run commands on it: ssh where the environment has it, else the console."""
    state = "ssh" if "ssh" in env.get_features() | env.get_target_features() else "shell"
    strategy.transition(state)
    files = target.get_active_driver("FileTransferProtocol") if state == "ssh" else None
    return Board(target.get_active_driver("CommandProtocol"), files)


@pytest.fixture(scope="session", autouse=True)
def _record_board(board: Board, record_testsuite_property: Any) -> None:
    """What was tested, for the report."""
    record_testsuite_property("kernel", board.output("uname -r"))
    record_testsuite_property("board", board.output("tr -d '\\0' < /proc/device-tree/model"))


@pytest.fixture(autouse=True)
def kernel_log(board: Board, request: pytest.FixtureRequest) -> Iterator[KernelLog]:
    """What the kernel says during the test; anything bad that the test has not announced fails it."""
    log = KernelLog(board, request.node.nodeid)
    yield log
    bad = log.unannounced()
    assert not bad, "the kernel said:\n" + "\n".join(bad)
