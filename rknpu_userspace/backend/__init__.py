# SPDX-License-Identifier: MIT
"""What runs jobs: the kernel's rocket driver (``rocket``) or the model in this process (``model``).

A *context* is one address space on one core at a time; a device has one or more. Buffers belong to their context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class Buffer(Protocol):
    """Memory that CPU and NPU share."""

    @property
    def iova(self) -> int:
        """Address as the NPU sees it; a multiple of 4096."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def view(self) -> Bytes:
        """The bytes as the CPU sees them."""
        ...


@dataclass(frozen=True)
class Job:
    """Tasks that run one after the other on one core: (IOVA, number of command words) each.

    ``sentinel`` is the offset in the output buffer of the 16 bytes that the last task writes last: if they are not
    written, the job has not run to its end. ``label`` says what the job computes.
    """

    tasks: tuple[tuple[int, int], ...]
    sentinel: int
    label: str


class Submission(Protocol):
    """Jobs that can be run again and again over the same buffers.

    ``elapsed``: seconds between start and the end of the last run as a board has or would have them, the driver's
    timeout included.
    """

    elapsed: float

    @property
    def jobs(self) -> Sequence[Job]:
        """What runs."""
        ...

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """Label, IOVA and bytes of the command words of every task, as they stand in memory."""
        ...

    def start(self) -> None:
        """Hand the jobs over. What the CPU wrote to the buffers before is seen by the NPU."""
        ...

    def wait(self, timeout: float) -> None:
        """Return when the output can be read. JobError when a job failed or is not done within ``timeout`` seconds."""
        ...


_NEAR = 16 * 4096
"""Bytes after a buffer within which an address is taken for an overrun of it."""


def place_of(iova: int, buffers: Iterable[tuple[int, int]]) -> str:
    """Where an address lies among buffers (IOVA, size), in words."""
    for start, size in sorted(buffers):
        if start <= iova < start + size:
            return f"inside the buffer of {size} bytes at {start:#x}"
    for start, size in sorted(buffers, reverse=True):
        if 0 <= iova - start - size < _NEAR:
            return f"{iova - start - size} bytes behind the buffer of {size} bytes at {start:#x}"
    return "in no buffer"


def command_bytes(jobs: Sequence[Job], buffers: Sequence[Buffer]) -> list[tuple[str, int, Bytes]]:
    """See ``Submission.commands``; ``buffers`` are those that hold the commands, among others."""
    found = []
    for job in jobs:
        for iova, words in job.tasks:
            for buffer in buffers:
                at = iova - buffer.iova
                if at >= 0 and at + 8 * words <= buffer.size:
                    found.append((job.label, iova, buffer.view[at : at + 8 * words]))
                    break
    return found


class Context(Protocol):
    """One address space and queue."""

    def alloc(self, size: int) -> Buffer:
        """A zeroed buffer of at least ``size`` bytes. DeviceError when there is no memory."""
        ...

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back."""
        ...

    def flush(self, buffer: Buffer) -> None:
        """Let the NPU see what the CPU wrote to a buffer that changes rarely (weights, commands)."""
        ...

    def prepare(
        self, jobs: Sequence[Job], constants: Sequence[Buffer], reads: Sequence[Buffer], out: Buffer
    ) -> Submission:
        """Make jobs ready to run over fixed buffers.

        ``constants`` were flushed when they were written, ``reads`` are written by the CPU before every run, ``out`` is
        written by the NPU. A buffer belongs to one of them only.
        """
        ...

    def close(self) -> None:
        """Give everything back. Harmless when already closed."""
        ...
