# SPDX-License-Identifier: MIT
"""Failures of devices and jobs. Bad arguments are ValueError or TypeError and never get this far."""

from __future__ import annotations


class NpuError(RuntimeError):
    """Base of what can go wrong between this library and an NPU."""


class DeviceError(NpuError):
    """The device can not be opened or used: missing node, no permission, wrong driver, closed, lost, out of memory."""


class JobError(NpuError):
    """A job was submitted and its results are not there.

    The rocket driver reports neither a job that it rejected nor one that ran into its timeout, so both are found by
    looking at the output. ``kind`` is "dropped" (nothing ran), "timed out" (the NPU did not finish), "fault" (the NPU
    touched memory it may not) or "late" (still not finished when the caller's patience ended). ``submitted`` says what
    was asked for, one line per job. ``address`` is the IOVA of a fault, None when it is not known.
    """

    def __init__(
        self, kind: str, message: str, submitted: str, elapsed: float = 0.0, address: int | None = None
    ) -> None:
        super().__init__(f"{message} (submitted: {submitted})")
        self.kind = kind
        self.submitted = submitted
        self.elapsed = elapsed
        self.address = address
