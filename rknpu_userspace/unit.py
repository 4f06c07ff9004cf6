# SPDX-License-Identifier: MIT
"""What every share of a program has: buffers of its own on one core, and jobs over them."""

from __future__ import annotations

from .backend import Buffer, Bytes, Context, Submission


class BufferUnit:
    """Buffers that live as long as the unit, and the submission that works on them.

    Subclasses allocate and set ``_submission`` in their constructor, and ``close`` what they have if that fails.
    """

    _submission: Submission

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buffers: list[Buffer] = []

    def _alloc(self, size: int) -> Buffer:
        """A zeroed buffer that ``close`` gives back."""
        buffer = self._context.alloc(size)
        self._buffers.append(buffer)
        return buffer

    def start(self) -> None:
        """Hand the jobs to the NPU."""
        self._submission.start()

    def wait(self, timeout: float) -> None:
        """Return when the output is there; JobError when a job failed or is not done in ``timeout`` seconds."""
        self._submission.wait(timeout)

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """Label, IOVA and command words of every task, as they stand in memory."""
        return self._submission.commands()

    def close(self) -> None:
        """Give the buffers back. Harmless when already closed."""
        for buffer in self._buffers:
            self._context.free(buffer)
        self._buffers = []
