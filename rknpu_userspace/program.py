# SPDX-License-Identifier: MIT
"""Programs: an operation compiled once, with weights packed and resident and buffers reused, to be run many times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from .backend import Bytes
from .errors import DeviceError, JobError

Array = npt.NDArray[Any]
DEFAULT_TIMEOUT = 60.0
"""Seconds that a run may take; the driver itself ends a job that hangs after half a second."""


class Unit(Protocol):
    """One core's share of a program."""

    jobs: int
    tasks: int

    @property
    def dma_bytes(self) -> int:
        """Bytes that the NPU moves in a run, by the plan."""
        ...

    def pack(self, *operands: Array) -> None:
        """Write the operands."""
        ...

    def start(self) -> None:
        """Hand the jobs over."""
        ...

    def wait(self, timeout: float) -> None:
        """Wait for the results."""
        ...

    def unpack(self, images: Array) -> None:
        """Read the results."""
        ...

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """Label, IOVA and command words of every task."""
        ...

    def close(self) -> None:
        """Give memory back."""
        ...


@dataclass(frozen=True)
class Share:
    """A unit, and how to cut its operands out of the input and its results out of the output."""

    unit: Unit
    source: Callable[..., tuple[Array, ...]]
    target: Callable[[Array], Array]


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass
class RunStats:
    """Cost of the last run: jobs and tasks, wall time of the NPU part and of the whole call, seconds."""

    jobs: int = 0
    tasks: int = 0
    npu_seconds: float = 0.0
    seconds: float = 0.0


class Program:
    """A compiled operation: call it with arrays as in ``inputs``, get one as in ``output``.

    Safe to use from several threads, one run at a time. ``last`` holds the cost of the last run. ``close`` gives the
    buffers back; so does leaving a ``with`` block, and closing the device.
    """

    def __init__(self, shares: Sequence[Share], inputs: Sequence[Spec], output: Spec) -> None:
        self.inputs = tuple(inputs)
        self.output = output
        self.last = RunStats()
        self.timeout = DEFAULT_TIMEOUT
        self._shares = list(shares)
        self._lock = threading.Lock()
        self.jobs = sum(share.unit.jobs for share in self._shares)
        self.tasks = sum(share.unit.tasks for share in self._shares)
        self.dma_bytes = sum(share.unit.dma_bytes for share in self._shares)

    def __call__(self, *operands: Array, out: Array | None = None) -> Array:
        """Run. ``out`` receives the result if given. ValueError or TypeError for an array that does not fit."""
        checked = self._checked(operands)
        shape, dtype = self.output.shape, self.output.dtype
        if out is None:
            out = np.empty(shape, dtype)
        else:
            _check_out(out, shape, dtype)
        with self._lock:
            if not self._shares:
                raise DeviceError("the program is closed")
            begin = time.perf_counter()
            npu = self._run(checked)
            for share in self._shares:
                share.unit.unpack(share.target(out))
            self.last = RunStats(self.jobs, self.tasks, npu, time.perf_counter() - begin)
        return out

    def _checked(self, operands: Sequence[Array]) -> list[Array]:
        if len(operands) != len(self.inputs):
            raise TypeError(f"the program takes {len(self.inputs)} arrays, not {len(operands)}")
        if any(isinstance(operand, np.ma.MaskedArray) for operand in operands):
            raise TypeError("an operand is a masked array: fill its gaps first, with .filled(value)")
        arrays = [np.asarray(operand) for operand in operands]
        for array, spec in zip(arrays, self.inputs, strict=True):
            if array.dtype != spec.dtype:
                raise TypeError(f"the program takes {spec.dtype}, not {array.dtype}")
            if array.shape != spec.shape:
                raise ValueError(f"the program takes shape {spec.shape}, not {array.shape}")
        return arrays

    def _run(self, operands: Sequence[Array]) -> float:
        """Pack and start one core after the other, then wait for all, whatever fails; seconds from first start."""
        started: list[Share] = []
        begin = 0.0
        try:
            for share in self._shares:
                share.unit.pack(*share.source(*operands))
                begin = begin or time.perf_counter()
                share.unit.start()
                started.append(share)
        except BaseException:
            self._wait_for(started)
            raise
        failure = self._wait_for(started)
        if failure is not None:
            raise failure
        return time.perf_counter() - begin

    def _wait_for(self, shares: Sequence[Share]) -> JobError | None:
        """Wait for all that was started; the first failed job.

        After anything but a failed job (an interrupt, a lost device) nobody waits for the rest, but each is told, so
        that buffers which the NPU may still write to are not used for something else.
        """
        failure: JobError | None = None
        stopped: BaseException | None = None
        for share in shares:
            try:
                share.unit.wait(self.timeout if stopped is None else 0.0)
            except JobError as error:
                failure = failure or error
            except BaseException as error:  # noqa: BLE001 - raised below, when all have been told
                stopped = stopped or error
        if stopped is not None:
            raise stopped
        return failure

    def commands(self) -> list[tuple[str, int, Bytes]]:
        """Label, IOVA and command words of every task, core by core, as they stand in memory. Copy what you keep."""
        return [row for unit in self._units() for row in unit.commands()]

    def _units(self) -> Sequence[Unit]:
        """What runs."""
        return [share.unit for share in self._shares]

    def close(self) -> None:
        """Give the buffers back. Harmless when already closed."""
        with self._lock:
            for share in self._shares:
                share.unit.close()
            self._shares = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_out(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """TypeError or ValueError that says what of it is not as the result needs it."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, not {type(out).__name__}")
    if out.dtype != dtype:
        raise TypeError(f"out must be {dtype}, not {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, not {out.shape}")
    flags = out.flags
    faults = (flags.writeable, "read-only"), (flags.c_contiguous, "not contiguous"), (flags.aligned, "not aligned")
    for fine, what in faults:
        if not fine:
            raise ValueError(f"out is {what}: it must be a writable contiguous {dtype} array of shape {shape}")
