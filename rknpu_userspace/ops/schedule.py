# SPDX-License-Identifier: MIT
"""Steps as one submission: tensors stay in cube layout in one arena, tasks of all steps share jobs.

A job ends where its estimated time reaches ``limits.MAX_JOB_SECONDS``, whatever step that is in, so most networks are
one job. The driver says nothing about a job that failed (see ``backend.rocket``), so the place that a job writes last
must hold its mark or its result until the end: the cube that a job ends in shares its bytes with no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Buffer, Context, Job, Submission
from rknpu_userspace.plan import limits
from rknpu_userspace.task import TaskConfig
from rknpu_userspace.unit import BufferUnit

from .arena import Lifetime, place
from .steps import Addresses, Cube, Step

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Task:
    """A task's number in its step, the step's in the schedule, and whether a job begins with it."""

    step: int
    index: int
    starts_job: bool


def _in_jobs(steps: Sequence[Step]) -> list[_Task]:
    """All tasks in order, cut into jobs."""
    tasks: list[_Task] = []
    total = limits.MAX_JOB_SECONDS
    for number, step in enumerate(steps):
        for index, cost in enumerate(step.seconds()):
            starts = total + cost > limits.MAX_JOB_SECONDS
            total = cost if starts else total + cost
            tasks.append(_Task(number, index, starts))
    return tasks


def _bounds(tasks: Sequence[_Task], by_step: bool) -> list[tuple[int, int]]:
    """Ranges of tasks that form a job; with ``by_step`` no job goes beyond its step."""
    starts = [
        at
        for at, task in enumerate(tasks)
        if task.starts_job or (by_step and (at == 0 or tasks[at - 1].step != task.step))
    ]
    return list(zip(starts, [*starts[1:], len(tasks)], strict=True))


class Schedule(BufferUnit):
    """Steps on one core, in order: the host writes ``inputs``, the NPU everything else, the host reads ``outputs``.

    ``arena_bytes`` is the memory of all results, ``result_bytes`` what they would take without sharing; ``offsets``
    says where each cube lies in it. ``constants`` is the buffer of weights and command words.
    """

    def __init__(
        self, context: Context, inputs: Sequence[Cube], steps: Sequence[Step], outputs: Sequence[Cube]
    ) -> None:
        super().__init__(context)
        self.steps = tuple(steps)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._tasks = _in_jobs(self.steps)
        self._by_step: list[Submission] = []
        try:
            self._features = {cube: self._alloc(cube.nbytes) for cube in self.inputs}
            self.offsets, self.arena_bytes, self.result_bytes = self._place()
            self._out = self._alloc(self.arena_bytes)
            self._refs, self.constants = self._write()
            jobs = self.list_jobs()
            self.jobs, self.tasks = len(jobs), len(self._tasks)
            self._submission = self._prepare(jobs)
        except BaseException:
            self.close()
            raise

    @property
    def dma_bytes(self) -> int:
        """Bytes that all steps move."""
        return sum(step.dma_bytes for step in self.steps)

    def _place(self) -> tuple[dict[Cube, int], int, int]:
        """Offsets of the cubes that own memory in the arena, its size, and the sum of theirs."""
        end = len(self.steps)
        sizes: dict[Cube, int] = {}
        first: dict[Cube, int] = {}
        last: dict[Cube, int] = {}
        for number, step in enumerate(self.steps):
            root = step.writes.root
            sizes[root] = max(sizes.get(root, root.nbytes), step.writes.offset + step.out_bytes)
            first.setdefault(root, number)
            last[root] = number
            for cube in step.reads:
                if cube.root not in self._features:
                    last[cube.root] = number
        for cube in self.outputs:
            last[cube.root] = end
        for _, stop in _bounds(self._tasks, False):
            root = self.steps[self._tasks[stop - 1].step].writes.root
            first[root], last[root] = 0, end
        roots = list(sizes)
        offsets, total = place([Lifetime(sizes[root], first[root], last[root]) for root in roots])
        return dict(zip(roots, offsets, strict=True)), total, sum(sizes.values())

    def _address(self, cube: Cube) -> int:
        root = cube.root
        base = self._features[root].iova if root in self._features else self._out.iova + self.offsets[root]
        return base + cube.offset

    def _write(self) -> tuple[list[tuple[int, int]], Buffer]:
        """Constants and command words of all steps into one buffer; (IOVA, words) of every task, and the buffer."""
        packed = [step.constants() for step in self.steps]
        places: list[list[int]] = []
        at = 0
        for group in packed:
            places.append([])
            for data in group:
                places[-1].append(at)
                at += layout.align(len(data), regcmd.ALIGNMENT)
        commands = at
        lengths = [regcmd.word_count(task, len(prologue)) for task, prologue in self._configs(packed, places, 0)]
        sizes = [layout.align(length * 8, regcmd.ALIGNMENT) for length in lengths]
        buffer = self._alloc(commands + sum(sizes))
        for group, offsets in zip(packed, places, strict=True):
            for data, offset in zip(group, offsets, strict=True):
                buffer.view[offset : offset + len(data)] = data
        refs = []
        words = buffer.view.view(np.uint64)
        at = commands
        for (task, prologue), size in zip(self._configs(packed, places, buffer.iova), sizes, strict=True):
            stream = regcmd.encode(task, prologue)
            words[at // 8 : at // 8 + len(stream)] = stream
            refs.append((buffer.iova + at, len(stream)))
            at += size
        self._context.flush(buffer)
        return refs, buffer

    def _configs(
        self, packed: Sequence[Sequence[Any]], places: Sequence[Sequence[int]], base: int
    ) -> Iterator[tuple[TaskConfig, tuple[int, ...]]]:
        """Every task of every step, its constants ``base`` further on."""
        starts = iter(self._tasks)
        for step, offsets in zip(self.steps, places, strict=True):
            reads = tuple(self._address(cube) for cube in step.reads)
            at = Addresses(reads, tuple(base + offset for offset in offsets), self._address(step.writes))
            for config, prologue in step.tasks(at):
                yield _fetching(config) if next(starts).starts_job else config, prologue

    def _jobs(self, bounds: Sequence[tuple[int, int]]) -> list[Job]:
        jobs = []
        for start, stop in bounds:
            first, last = self._tasks[start], self._tasks[stop - 1]
            step = self.steps[last.step]
            place = self.offsets[step.writes.root] + step.writes.offset + step.last_atom(last.index)
            steps = f"step {first.step + 1}: {self.steps[first.step].label}"
            if last.step != first.step:
                steps += f", to step {last.step + 1}: {step.label}"
            label = f"{steps}; tasks {start + 1}-{stop} of {len(self._tasks)}"
            jobs.append(Job(tuple(self._refs[start:stop]), place, label))
        return jobs

    def list_jobs(self) -> list[Job]:
        """The jobs of a run."""
        return self._jobs(_bounds(self._tasks, False))

    def _prepare(self, jobs: Sequence[Job]) -> Submission:
        return self._context.prepare(jobs, [self.constants], list(self._features.values()), self._out)

    def by_step(self) -> list[Submission]:
        """A submission for every step, to run and time them one after the other."""
        if not self._by_step:
            groups: list[list[tuple[int, int]]] = [[] for _ in self.steps]
            for bounds in _bounds(self._tasks, True):
                groups[self._tasks[bounds[0]].step].append(bounds)
            self._by_step = [self._prepare(self._jobs(group)) for group in groups]
        return self._by_step

    def pack(self, *operands: Array) -> None:
        """Write the inputs: [pixel][channel] each, or anything of that size in C order."""
        for cube, operand in zip(self.inputs, operands, strict=True):
            layout.pack_cube(self._features[cube].view, operand.reshape(cube.pixels, cube.channels))

    def operand_view(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes of an input."""
        return self._features[self.inputs[index]].view

    def result_view(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes from the start of an output on."""
        cube = self.outputs[index]
        return self._out.view[self.offsets[cube.root] + cube.offset :]

    def read(self, cube: Cube, out: Array) -> None:
        """Read a cube that is an output into a contiguous array."""
        start = self.offsets[cube.root] + cube.offset
        layout.unpack_cube(self._out.view[start:], out.reshape(cube.pixels, cube.channels))

    def unpack(self, images: Array) -> None:
        """Read the only output, or each of several along the first dimension."""
        if len(self.outputs) == 1:
            self.read(self.outputs[0], images)
            return
        for cube, image in zip(self.outputs, images, strict=True):
            self.read(cube, image)


def _fetching(config: TaskConfig) -> TaskConfig:
    """A job's first task fetches its weights and features: the core may have run somebody else's job before it."""
    if config.conv is None or not (config.conv.weight_reuse or config.conv.data_reuse):
        return config
    return replace(config, conv=replace(config.conv, weight_reuse=0, data_reuse=0))
