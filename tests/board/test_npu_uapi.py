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


REFUSED = {
    "create_nothing": ("EINVAL", "ENOSPC"),
    "unknown_ioctl": ("EINVAL", "ENOTTY"),
    "closed_file": ("EBADF",),
    "map_elsewhere": ("EINVAL",),
    "map_too_much": ("EINVAL",),
    "many_jobs_at_a_bad_address": ("EFAULT",),
    # a structure may grow: what an older kernel does not know is ignored
    "job_struct_of_a_later_kernel": ("none",),
    # see DROPPED
    "tasks_at_a_bad_address": ("none", "EFAULT"),
    "inputs_at_a_bad_address": ("none", "EFAULT"),
    "outputs_at_a_bad_address": ("none", "EFAULT"),
    "unknown_input": ("none", "ENOENT"),
    "unknown_output": ("none", "ENOENT"),
    "idle_afterwards": ("none",),
}
OPENS = 100
ROUNDS, LONG_ROUNDS = 500, 5_000
"""Each makes and drops five buffers and a file; the long form belongs to ``--soak``."""
LOST_KIB = 2 << 10
"""A page lost per round would be 2000 KiB."""


@pytest.fixture(scope="module")
def arguments(board: Board) -> dict[str, Any]:
    """All checks of bad arguments, run once."""
    return board.python("limits.py", "arguments")


@pytest.mark.parametrize("name", REFUSED)
def test_bad_argument(arguments: dict[str, Any], name: str) -> None:
    assert arguments[name] in REFUSED[name]


def test_more_tasks_than_memory(board: Board) -> None:
    assert board.python("limits.py", "beyond")["answer"] in ("none", "EINVAL", "ENOMEM", "EOVERFLOW")


def test_buffers_and_files_leave_nothing_behind(board: Board, request: pytest.FixtureRequest, measure: Any) -> None:
    rounds = LONG_ROUNDS if request.config.getoption("--soak") else ROUNDS
    found = board.python("limits.py", "leaks", str(rounds), timeout=30.0 + rounds / 5)
    measure("memory lost by buffers", found["lost_kib"], "KiB", rounds=rounds)
    assert found["address_space_later"] == found["address_space"], "addresses are not given back"
    assert found["lost_kib"] < LOST_KIB, found
    assert found["files"] < 10, "files are left open"


def test_many_files_at_once(board: Board) -> None:
    found = board.python("limits.py", "opens", str(OPENS))
    assert found["addresses"] == 1, "every file has an address space of its own, which begins at the same place"
    assert found["kept"] and found["answers"] == ["none"], found


def test_node_is_for_root_and_its_group(board: Board) -> None:
    found = board.python("limits.py", "access")
    assert found["stranger"] == "EACCES", found
    assert found["member"] == "none", found
    assert not found["world"], f"everybody may use the NPU: {found['mode']}"
