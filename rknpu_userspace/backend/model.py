# SPDX-License-Identifier: MIT
"""Backend over the model of the NPU in this process: it replaces the kernel driver, not the command stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.model.machine import ModelMachine
from rknpu_userspace.model.quirks import Quirks
from rknpu_userspace.model.results import TaskResult, TaskStats

from . import Buffer, Bytes, Job, command_bytes, place_of

PAGE = 4096
DRIVER_TIMEOUT = 0.5
"""Seconds after which the driver gives up on a job (JOB_TIMEOUT_MS in linux drivers/accel/rocket/rocket_job.c)."""
DPU_IRQ = 0x300
"""The interrupts that end a task for the driver: it looks at no others."""
DEFAULT_ARENA = 1 << 30
"""Bytes of a context's address space; the operating system allocates what is touched."""


class ModelBuffer:
    """A range of the arena."""

    def __init__(self, iova: int, view: Bytes) -> None:
        self.iova = iova
        self.view = view

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.view)


class ModelSubmission:
    """Runs the jobs when they are started, in this thread."""

    def __init__(self, context: ModelContext, jobs: Sequence[Job], constants: Sequence[Buffer]) -> None:
        self._context = context
        self.jobs = tuple(jobs)
        self._constants = tuple(constants)
        self._failure: JobError | None = None
        self.elapsed = 0.0

    def start(self) -> None:
        """Run all jobs; a failure is kept for ``wait``, as with the driver.

        A job that fails does not keep the ones after it from running: the driver's scheduler goes on as well.
        """
        self._failure = None
        before = self._context.seconds
        for index, job in enumerate(self.jobs):
            failure = self._context.run(job, index, len(self.jobs))
            self._failure = self._failure or failure
        self.elapsed = self._context.seconds - before

    def wait(self, timeout: float) -> None:
        """Raise what ``start`` ran into."""
        if self._failure is not None:
            raise self._failure

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """See Submission."""
        return command_bytes(self.jobs, self._constants)


class ModelContext:
    """One core of a machine of its own, so that buffers can not be shared between contexts, as with the driver."""

    def __init__(
        self,
        core: int,
        arena_bytes: int = DEFAULT_ARENA,
        log: Callable[[str], None] | None = None,
        quirks: Quirks | None = None,
    ) -> None:
        self.core = core
        self.machine: ModelMachine | None = ModelMachine(arena_bytes, log=log, quirks=quirks)
        self.stats = TaskStats()
        self.seconds = 0.0
        """Time that the jobs would have taken on a board by the model's estimate, the driver's timeouts included."""
        self._lock = threading.Lock()
        self._end = self.machine.memory.size
        self._used: dict[int, int] = {}
        self._free: list[tuple[int, int]] = [(PAGE, self._end - PAGE)]  # page 0 stays unmapped: null addresses fault

    def _open(self) -> ModelMachine:
        if self.machine is None:
            raise DeviceError("the device is closed")
        return self.machine

    def alloc(self, size: int) -> Buffer:
        """First fit, whole pages, zeroed. Safe from several threads."""
        with self._lock:
            return self._alloc(size)

    def _alloc(self, size: int) -> Buffer:
        machine = self._open()
        need = -(-max(size, 1) // PAGE) * PAGE
        for index, (start, length) in enumerate(self._free):
            if length >= need:
                self._free[index : index + 1] = [(start + need, length - need)] if length > need else []
                self._used[start] = need
                view = machine.memory.map(start, need)
                view[:] = 0
                return ModelBuffer(start, view)
        raise DeviceError(f"out of memory: {need} bytes do not fit the model's arena of {self._end} bytes")

    def free(self, buffer: Buffer) -> None:
        """Unmap the range: a later access faults."""
        with self._lock:
            self._release(buffer)

    def _release(self, buffer: Buffer) -> None:
        if self.machine is None or self._used.pop(buffer.iova, None) is None:
            return
        self.machine.memory.unmap(buffer.iova, buffer.size)
        ranges: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (buffer.iova, buffer.size)]):
            if ranges and sum(ranges[-1]) == start:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
            else:
                ranges.append((start, length))
        self._free = ranges

    def flush(self, buffer: Buffer) -> None:
        """Nothing to do: CPU and model see the same bytes."""

    def prepare(
        self, jobs: Sequence[Job], constants: Sequence[Buffer], reads: Sequence[Buffer], out: Buffer
    ) -> ModelSubmission:
        """See Context."""
        return ModelSubmission(self, jobs, constants)

    def run(self, job: Job, index: int, count: int) -> JobError | None:
        """Run one job as the driver does, from one thread at a time.

        The driver starts each task when the one before has raised a DPU interrupt. A task that raises none (a failure,
        or one of the PPU alone) ends the job by the driver's timeout: the core is reset, the tasks after it never run.
        """
        with self._lock:
            machine = self._open()
            for number, (iova, words) in enumerate(job.tasks, 1):
                result = machine.run_task(self.core, iova, words)
                _add(self.stats, result.stats)
                self.seconds += result.stats.ns * 1e-9
                if result.outcome == "done" and result.irq_bits & DPU_IRQ:
                    continue
                machine.reset(self.core)
                self.seconds += DRIVER_TIMEOUT
                if result.outcome == "done" and number == len(job.tasks):
                    break  # its results are in memory all the same
                where = f"task {number} of {len(job.tasks)}, job {index + 1} of {count}"
                fault = result.fault.address if result.fault else None
                return JobError(*self._why(result, where), _submitted(job, iova), DRIVER_TIMEOUT, fault)
        return None

    def _why(self, result: TaskResult, where: str) -> tuple[str, str]:
        """Kind and message of a failure."""
        if result.outcome == "done":
            return "timed out", f"the NPU never raised the driver's interrupt after {where}: no DPU in it"
        if result.fault is None:
            return "timed out", f"the NPU did not finish {where}: {result.reason}"
        near = place_of(result.fault.address, self._used.items())
        return "fault", f"the NPU did not finish {where}: {result.reason}, {near}"

    def close(self) -> None:
        """Drop the machine and its memory."""
        self.machine = None


def _submitted(job: Job, iova: int) -> str:
    return f"{job.label}, commands at {iova:#x}"


def _add(total: TaskStats, stats: TaskStats) -> None:
    total.tasks += stats.tasks
    total.macs += stats.macs
    total.mac_cycles += stats.mac_cycles
    total.cycles += stats.cycles
    total.ns += stats.ns
    total.op = stats.op
    for unit, count in stats.dma_bytes.items():
        total.dma_bytes[unit] = total.dma_bytes.get(unit, 0) + count
