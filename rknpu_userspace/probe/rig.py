# SPDX-License-Identifier: MIT
"""What experiments are made of: buffers, tasks with any register changed, jobs that may hang, and the comparison of
what came out with what each possible answer predicts.

Everything goes through the interface of a device, so that the same experiment runs on a board, whose driver is not
changed, and on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Buffer, Context, Job
from rknpu_userspace.errors import JobError
from rknpu_userspace.isa import BY_NAME, write

Array = npt.NDArray[Any]
Words = npt.NDArray[np.uint64]
TIMEOUT = 10.0
"""Seconds to wait for a job; the driver gives up on one that hangs after half a second."""
DRIVER_TIMEOUT = 0.45
"""A job that took longer has been ended by the driver's timeout."""


@dataclass(frozen=True)
class Run:
    """How a job went. ``done``: its last result is in memory. ``late``: it took the driver's timeout."""

    done: bool
    seconds: float
    error: str = ""

    @property
    def late(self) -> bool:
        """Whether the driver ended it."""
        return self.seconds >= DRIVER_TIMEOUT


@dataclass
class Finding:
    """What an experiment found.

    ``answer`` in words, ``quirks`` the model's switches that it settles, ``observed`` the data it rests on.
    ``confidence``: "certain" when exactly one answer explains every element, "likely" when most of them, "none" when
    the data fits no known answer or several.
    """

    answer: str
    quirks: dict[str, str] = field(default_factory=dict)
    observed: dict[str, Any] = field(default_factory=dict)
    confidence: str = "certain"

    def join(self, other: Finding) -> Finding:
        """Both findings as one; as good as the worse."""
        ranks = ("none", "likely", "certain")
        return Finding(
            f"{self.answer}; {other.answer}",
            {**self.quirks, **other.quirks},
            {**self.observed, **other.observed},
            min(self.confidence, other.confidence, key=ranks.index),
        )


class Rig:
    """Buffers and jobs on one core of a device. Close it to give the memory back."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._buffers: list[Buffer] = []

    def alloc(self, size: int) -> Buffer:
        """A zeroed buffer."""
        buffer = self._context.alloc(size)
        self._buffers.append(buffer)
        return buffer

    def put(self, data: Array) -> Buffer:
        """A buffer with the bytes of an array."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        buffer = self.alloc(raw.size)
        buffer.view[: raw.size] = raw
        self._context.flush(buffer)
        return buffer

    def run(self, tasks: Sequence[Words], out: Buffer, last: int, inputs: Sequence[Buffer], label: str) -> Run:
        """Run tasks as one job. ``last`` is the offset in ``out`` of the 16 bytes that it writes last.

        A job that does not finish is an answer, not an error; only one that never ran raises JobError.
        """
        return self.run_jobs([(tasks, last)], out, inputs, label)

    def run_jobs(
        self, jobs: Sequence[tuple[Sequence[Words], int]], out: Buffer, inputs: Sequence[Buffer], label: str
    ) -> Run:
        """Run jobs (tasks, last offset) that are queued together: the driver keeps them on one core, in order.

        A job that fails does not keep the others from running; which ones did, their output says.
        """
        commands = self.put(np.concatenate([_padded(task) for tasks, _ in jobs for task in tasks]))
        prepared, at = [], commands.iova
        for tasks, last in jobs:
            places = []
            for task in tasks:
                places.append((at, len(task)))
                at += _padded(task).nbytes
            prepared.append(Job(tuple(places), last, label))
        submission = self._context.prepare(prepared, [commands, *inputs], [], out)
        submission.start()
        try:
            submission.wait(TIMEOUT)
        except JobError as error:
            if error.kind in ("dropped", "late"):
                raise
            return Run(False, submission.elapsed, str(error))
        return Run(True, submission.elapsed)

    def close(self) -> None:
        """Give all buffers back."""
        for buffer in self._buffers:
            self._context.free(buffer)
        self._buffers = []


def _padded(words: Words) -> Words:
    """Words up to the next multiple of 64 bytes."""
    return np.concatenate([words, np.zeros(-len(words) % 8, np.uint64)])


def poke(words: Words, register: str, **fields: int) -> Words:
    """The stream with fields of every write to a register changed."""
    entry = BY_NAME[register]
    out = words.copy()
    for index in np.flatnonzero((words & np.uint64(0xFFFF)) == entry.offset).tolist():
        word = int(words[index])
        if word >> 48 != entry.block.target:
            continue
        value = word >> 16 & 0xFFFFFFFF
        for name, number in fields.items():
            value = value & ~entry.field(name).mask | entry.field(name).encode(number)
        out[index] = write(entry, value)
    return out


def only(words: Words, names: Sequence[str]) -> Words:
    """A delta stream: the writes to these registers, the S_POINTERs of the blocks, and the trailer."""
    keep = {BY_NAME[name].offset for name in names}
    body = words[:-4]
    offsets = (body & np.uint64(0xFFFF)).tolist()
    pointers = {0x4004, 0x5004, 0x6004, 0x7004}
    chosen = [word for word, offset in zip(body.tolist(), offsets, strict=True) if offset in keep | pointers]
    chosen += [0] * (len(chosen) % 2)
    return np.concatenate([np.array(chosen, np.uint64), words[-4:]])


def decide(quirk: str, observed: Array, predictions: Mapping[str, Array], least: float = 1.0) -> Finding:
    """Which answer explains what was observed; ``least`` is the share of elements it has to explain."""
    shares = {
        name: float(np.mean(np.asarray(expected).reshape(observed.shape) == observed))
        for name, expected in predictions.items()
    }
    best = max(shares.values())
    found = [name for name, share in shares.items() if share == best]
    explained = {name: round(share, 6) for name, share in shares.items()}
    data = {quirk: {"explained": explained, "values": sample(observed)}}
    if best < least or len(found) > 1:
        why = f"{' and '.join(found)} explain {100 * best:.1f} %" if best else "none of the known answers"
        return Finding(f"{quirk} is open: {why}", {}, data, "none")
    confidence = "certain" if best == 1.0 else "likely"
    return Finding(f"{quirk} is {found[0]}", {quirk: found[0]}, data, confidence)


def sample(values: Array, most: int = 64) -> list[Any]:
    """The first elements of an array, for the record."""
    flat = np.asarray(values).reshape(-1)[:most]
    return [float(value) if flat.dtype.kind == "f" else int(value) for value in flat]


def rounded(values: Array, mode: str) -> Array:
    """Real numbers to integers."""
    exact = np.asarray(values, np.float64)
    if mode == "half_even":
        return np.rint(exact)
    if mode == "half_up":
        return np.floor(exact + 0.5)
    if mode == "half_away":
        return np.copysign(np.floor(np.abs(exact) + 0.5), exact)
    return np.floor(exact)


Measure = Callable[[Rig], Finding]
"""An experiment's program."""


@dataclass(frozen=True)
class Experiment:
    """One open question. ``number`` groups those that a first day on a board would do together.

    ``needs`` says why it can not be done through the device's interface, with ``measure`` None.
    """

    name: str
    number: int
    question: str
    quirks: tuple[str, ...]
    measure: Measure | None = None
    needs: str = ""
