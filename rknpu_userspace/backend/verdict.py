# SPDX-License-Identifier: MIT
"""Why a job may not have finished, by the rules that the model knows: the hardware itself says nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import Bytes

_MOST_TASKS = 64
"""Tasks that are looked at; each takes some milliseconds."""


def broken_rule(commands: Sequence[tuple[str, int, Bytes]]) -> str:
    """The first rule that one of the tasks (label, IOVA, command words) breaks, in words; empty if all keep them."""
    from rknpu_userspace.isa.stream_tasks import tasks

    for _, iova, data in commands[:_MOST_TASKS]:
        for task in tasks(np.frombuffer(data.tobytes(), "<u8").astype(np.uint64)):
            for rule in task.verdict.broken:
                return f"by the model's rules the task at {iova:#x} can not finish: {rule}"
    return ""
