# SPDX-License-Identifier: MIT
"""Backend over the kernel's rocket driver.

The driver reports neither a job that it rejected (SUBMIT returns 0 and nothing runs) nor one that it gave up on after
its timeout of half a second (the wait succeeds). So every run marks the place where each job's last result goes: if the
mark is still there after the wait, the job has not run to its end, and the elapsed time tells which of the two it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.uapi import Accel, Bo, JobList

from . import Buffer, Bytes, Job, command_bytes, place_of
from .kernel_log import last_fault
from .verdict import broken_rule

DRIVER_TIMEOUT = 0.5
"""Seconds after which the driver gives up on a job (JOB_TIMEOUT_MS in rocket_job.c)."""
_POOL_GRAIN = 64 * 1024
_POOL_BYTES = 64 << 20
"""Most memory of released buffers that is kept for later ones: creating and mapping a buffer costs several calls."""


class RocketSubmission:
    """Jobs over fixed buffers; a run makes four or so system calls."""

    def __init__(
        self, context: RocketContext, jobs: Sequence[Job], constants: Sequence[Bo], reads: Sequence[Bo], out: Bo
    ) -> None:
        self._context = context
        self._accel = context.accel
        self.jobs = tuple(jobs)
        self.elapsed = 0.0
        self._constants = tuple(constants)
        self._reads = tuple(reads)
        self._out = out
        handles = [bo.handle for bo in (*constants, *reads)]
        self._list = JobList([(job.tasks, handles, [out.handle]) for job in jobs])
        self._places = np.array([job.sentinel // 16 for job in jobs])
        self._mark = np.frombuffer(np.random.default_rng().bytes(16), np.uint8)
        self._begin = 0.0

    def start(self) -> None:
        """See Submission."""
        self._out.view.reshape(-1, 16)[self._places] = self._mark
        for bo in self._reads:
            self._accel.fini_bo(bo)
        self._accel.fini_bo(self._out)
        self._begin = time.monotonic()
        self._accel.submit(self._list.argument)

    def wait(self, timeout: float) -> None:
        """See Submission."""
        try:
            self._accel.prep_bo(self._out, timeout)
        except TimeoutError as error:
            self._context.abandon()
            submitted = self._describe(range(len(self.jobs)))
            raise JobError("late", f"the NPU is not done after {timeout:g} s", submitted, timeout) from error
        except BaseException:  # an interrupt: the jobs go on without us
            self._context.abandon()
            raise
        self.elapsed = elapsed = time.monotonic() - self._begin
        bad = np.flatnonzero((self._out.view.reshape(-1, 16)[self._places] == self._mark).all(axis=1)).tolist()
        if not bad:
            return
        submitted = self._describe(bad)
        fault = last_fault(self._begin) if elapsed >= DRIVER_TIMEOUT * 0.9 else None
        if fault is not None:
            way = "writing" if fault.write else "reading"
            where = place_of(fault.address, self._context.places())
            message = f"the NPU faulted {way} {fault.address:#010x}, {where}; the driver gave up after {elapsed:.2f} s"
            raise JobError("fault", message, submitted, elapsed, fault.address)
        if elapsed >= DRIVER_TIMEOUT * 0.9:
            why = broken_rule(command_bytes([self.jobs[index] for index in bad], self._constants))
            message = f"the NPU did not finish and the driver gave up after {elapsed:.2f} s (see the kernel log)"
            raise JobError("timed out", f"{message}; {why}" if why else message, submitted, elapsed)
        raise JobError("dropped", f"the driver rejected the job: nothing ran in {elapsed:.3f} s", submitted, elapsed)

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """See Submission."""
        return command_bytes(self.jobs, self._constants)

    def _describe(self, indices: Sequence[int]) -> str:
        return "; ".join(
            f"{self.jobs[index].label}, commands at {self.jobs[index].tasks[0][0]:#x}" for index in indices
        )


class RocketContext:
    """A file of the driver, with a pool of released buffers. Allocation is safe from several threads."""

    def __init__(self, path: str) -> None:
        self.accel = Accel(path)
        self._lock = threading.Lock()
        self._pool: list[Bo] = []
        self._keep = True
        self._sizes: dict[int, int] = {}
        self._closed = False

    def alloc(self, size: int) -> Buffer:
        """A zeroed buffer object, a released one of the same size if there is one."""
        need = -(-max(size, 1) // _POOL_GRAIN) * _POOL_GRAIN
        with self._lock:
            for index, bo in enumerate(self._pool):
                if bo.size == need:
                    del self._pool[index]
                    bo.view[:] = 0
                    return bo
            try:
                bo = self.accel.create_bo(need)
            except DeviceError:
                if not self._pool:
                    raise
                self._drain()
                bo = self.accel.create_bo(need)
            self._sizes[bo.iova] = bo.size
            return bo

    def free(self, buffer: Buffer) -> None:
        """Keep the buffer for later, or release it when enough are kept."""
        bo = as_bo(buffer)
        with self._lock:
            if self._closed:
                return
            if self._keep and bo.size + sum(kept.size for kept in self._pool) <= _POOL_BYTES:
                self._pool.append(bo)
            else:
                self._release(bo)

    def places(self) -> list[tuple[int, int]]:
        """IOVA and size of every buffer that the file has."""
        return list(self._sizes.items())

    def abandon(self) -> None:
        """Jobs were left running: buffers given back from now on are the kernel's to release when it is done."""
        with self._lock:
            self._keep = False

    def _drain(self) -> None:
        for bo in self._pool:
            self._release(bo)
        self._pool = []

    def _release(self, bo: Bo) -> None:
        self._sizes.pop(bo.iova, None)
        self.accel.free_bo(bo)

    def flush(self, buffer: Buffer) -> None:
        """See Context."""
        self.accel.fini_bo(as_bo(buffer))

    def prepare(
        self, jobs: Sequence[Job], constants: Sequence[Buffer], reads: Sequence[Buffer], out: Buffer
    ) -> RocketSubmission:
        """See Context."""
        return RocketSubmission(
            self, jobs, [as_bo(buffer) for buffer in constants], [as_bo(buffer) for buffer in reads], as_bo(out)
        )

    def close(self) -> None:
        """Close the file; the kernel releases what was allocated through it."""
        with self._lock:
            self._closed = True
            self._pool = []
        self.accel.close()


def as_bo(buffer: Buffer) -> Bo:
    """A buffer of this backend; TypeError for another's."""
    if not isinstance(buffer, Bo):
        raise TypeError(f"{type(buffer).__name__} is not a buffer of the rocket driver")
    return buffer
