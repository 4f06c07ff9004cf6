# SPDX-License-Identifier: MIT
"""Fixtures of the register tests: a freshly started machine per test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

# the tests import the client as `qtest_client`, from wherever pytest runs
sys.path.insert(0, str(Path(__file__).parent))

from board_tree import BOARD, compile_tree
from npu_peer import Peer
from qtest_client import QTest, QTestError, qemu_binary


@pytest.fixture(scope="session", autouse=True)
def _binary() -> None:
    try:
        qemu_binary()
    except QTestError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def start() -> Iterator[Callable[..., QTest]]:
    """Factory of machines with chosen options; every one is ended after the test."""
    with ExitStack() as stack:

        def factory(**options: Any) -> QTest:
            return stack.enter_context(QTest(**options))

        yield factory


@pytest.fixture
def machine(start: Callable[..., QTest]) -> QTest:
    """A machine with default options."""
    return start()


@pytest.fixture
def board_dtb(tmp_path: Path) -> Path:
    """A small RK3588 board's device tree, compiled."""
    return compile_tree(BOARD, tmp_path / "board.dtb")


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer for the links of the NPU cores; start the machine with its `arguments()`."""
    with Peer() as peer:
        yield peer
