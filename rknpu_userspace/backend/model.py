# SPDX-License-Identifier: MIT
"""Backend over the model of the NPU in this process: it replaces the kernel driver, not the command stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rknpu_userspace.errors import DeviceError, JobError
from rknpu_userspace.model.machine import ModelMachine
from rknpu_userspace.model.results import TaskStats

from . import Buffer, Bytes, Job

PAGE = 4096
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

    def __init__(self, context: ModelContext, jobs: Sequence[Job]) -> None:
        self._context = context
        self._jobs = tuple(jobs)
        self._failure: JobError | None = None

    def start(self) -> None:
        """Run all jobs; a failure is kept for ``wait``, as with the driver."""
        self._failure = None
        for index, job in enumerate(self._jobs):
            failure = self._context.run(job, index, len(self._jobs))
            if failure is not None:
                self._failure = failure
                return

    def wait(self, timeout: float) -> None:
        """Raise what ``start`` ran into."""
        if self._failure is not None:
            raise self._failure


class ModelContext:
    """One core of a machine of its own, so that buffers can not be shared between contexts, as with the driver."""

    def __init__(self, core: int, arena_bytes: int = DEFAULT_ARENA, log: Callable[[str], None] | None = None) -> None:
        self.core = core
        self.machine: ModelMachine | None = ModelMachine(arena_bytes, log=log)
        self.stats = TaskStats()
        self._end = self.machine.memory.size
        self._free: list[tuple[int, int]] = [(PAGE, self._end - PAGE)]  # page 0 stays unmapped: null addresses fault

    def _open(self) -> ModelMachine:
        if self.machine is None:
            raise DeviceError("the device is closed")
        return self.machine

    def alloc(self, size: int) -> Buffer:
        """First fit, whole pages, zeroed."""
        machine = self._open()
        need = -(-max(size, 1) // PAGE) * PAGE
        for index, (start, length) in enumerate(self._free):
            if length >= need:
                self._free[index : index + 1] = [(start + need, length - need)] if length > need else []
                view = machine.memory.map(start, need)
                view[:] = 0
                return ModelBuffer(start, view)
        raise DeviceError(f"out of memory: {need} bytes do not fit the model's arena of {self._end} bytes")

    def free(self, buffer: Buffer) -> None:
        """Unmap the range: a later access faults."""
        if self.machine is None:
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
        return ModelSubmission(self, jobs)

    def run(self, job: Job, index: int, count: int) -> JobError | None:
        """Run one job; on a failure the core is reset as the kernel does after its timeout."""
        machine = self._open()
        for number, (iova, words) in enumerate(job.tasks):
            result = machine.run_task(self.core, iova, words)
            _add(self.stats, result.stats)
            if result.outcome != "done":
                machine.reset(self.core)
                where = f"task {number + 1} of {len(job.tasks)}, job {index + 1} of {count}"
                kind = "fault" if result.outcome == "fault" else "timed out"
                return JobError(kind, f"the NPU did not finish {where}: {result.reason}", job.label)
        return None

    def close(self) -> None:
        """Drop the machine and its memory."""
        self.machine = None


def _add(total: TaskStats, stats: TaskStats) -> None:
    total.tasks += stats.tasks
    total.macs += stats.macs
    total.mac_cycles += stats.mac_cycles
    total.cycles += stats.cycles
    total.ns += stats.ns
    total.op = stats.op
    for unit, count in stats.dma_bytes.items():
        total.dma_bytes[unit] = total.dma_bytes.get(unit, 0) + count
