# SPDX-License-Identifier: MIT
"""The driver's interface to user space (linux include/uapi/drm/rocket_accel.h), without the library."""

from __future__ import annotations

from typing import Any

import pytest
from on_board import Board

pytestmark = pytest.mark.lg_feature("npu")

WANTED = {
    "name": "rocket",
    "addresses_are_32_bit": True,
    "addresses_are_page_aligned": True,
    "addresses_do_not_overlap": True,
    "handles_differ": True,
    "new_buffer_is_zero": True,
    "contents_survive_fini_and_prep": True,
    "prep_unknown_handle": "ENOENT",
    "prep_closed_handle": "ENOENT",
    "prep_reserved": "EINVAL",
    "prep_idle_without_waiting": "none",
    "fini_unknown_handle": "ENOENT",
    "fini_reserved": "EINVAL",
    "submit_nothing": "none",
    "submit_small_job_struct": "EINVAL",
    "submit_reserved": "EINVAL",
    "submit_bad_pointer": "EFAULT",
    "foreign_handle": "ENOENT",
    "idle_afterwards": "none",
}
DROPPED = ("submit_without_tasks", "submit_task_without_words", "submit_small_task_struct")
"""Up to 7.3 rocket_ioctl_submit drops these errors; a driver that reports them is right too."""


@pytest.fixture(scope="module")
def checks(board: Board) -> dict[str, Any]:
    """All checks of target/uapi.py, run once."""
    return board.python("uapi.py")


@pytest.mark.parametrize("name", WANTED)
def test_uapi(checks: dict[str, Any], name: str) -> None:
    assert checks[name] == WANTED[name]


@pytest.mark.parametrize("name", DROPPED)
def test_rejected_job(checks: dict[str, Any], name: str) -> None:
    assert checks[name] in ("none", "EINVAL")
