# SPDX-License-Identifier: MIT
"""The kernel's log over a connection of its own: complete, in order, and with the levels that a console drops."""

from __future__ import annotations

from typing import Any

import pytest
from on_board import Board


def test_log_beside_the_console(board: Board, target: Any, env: Any) -> None:
    if "ssh" not in env.get_features() | env.get_target_features():
        pytest.skip("the environment reaches the board by its console only")
    driver = target.get_driver("KernelLogDriver")
    try:
        begin = driver.mark("npulab-log-begin")
        # below the console's level after labgrid's `dmesg -n 1`
        board.output("for n in 1 2 3 4 5; do echo '<6>npulab-log-line' $n > /dev/kmsg; done")
        driver.mark("npulab-log-end")
        records = driver.journal.since(begin)
        ours = [record for record in records if record.text.startswith("npulab-log-line")]
        assert [record.text[-1] for record in ours] == list("12345") and {record.level for record in ours} == {6}
        assert [record.sequence for record in ours] == sorted({record.sequence for record in ours})
        assert driver.journal.gaps == []
        # nothing died in an earlier boot: the virtual board has no pstore, a real one has an empty one
        assert isinstance(driver.pstore(), dict)
    finally:
        target.deactivate(driver)
