# SPDX-License-Identifier: MIT
"""Programs: an operation compiled once, with weights packed and resident and buffers reused, to be run many times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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

    def pack(self, images: Array) -> None:
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

    def close(self) -> None:
        """Give memory back."""
        ...


@dataclass(frozen=True)
class Share:
    """A unit, and how to cut its operands out of the input and its results out of the output."""

    unit: Unit
    source: Callable[[Array], Array]
    target: Callable[[Array], Array]


@dataclass
class RunStats:
    """Cost of the last run: jobs and tasks, wall time of the NPU part and of the whole call, seconds."""

    jobs: int = 0
    tasks: int = 0
    npu_seconds: float = 0.0
    seconds: float = 0.0


class Program:
    """A compiled operation: call it with an array of ``in_shape`` and ``in_dtype``, get one of ``out_shape``.

    Safe to use from several threads, one run at a time. ``last`` holds the cost of the last run. ``close`` gives the
    buffers back; so does leaving a ``with`` block, and closing the device.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        in_shape: tuple[int, ...],
        in_dtype: npt.DTypeLike,
        out_shape: tuple[int, ...],
        out_dtype: npt.DTypeLike,
    ) -> None:
        self.in_shape = in_shape
        self.in_dtype = np.dtype(in_dtype)
        self.out_shape = out_shape
        self.out_dtype = np.dtype(out_dtype)
        self.last = RunStats()
        self.timeout = DEFAULT_TIMEOUT
        self._shares = list(shares)
        self._lock = threading.Lock()
        self.jobs = sum(share.unit.jobs for share in self._shares)
        self.tasks = sum(share.unit.tasks for share in self._shares)
        self.dma_bytes = sum(share.unit.dma_bytes for share in self._shares)

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """Run. ``out`` receives the result if given. ValueError or TypeError for an array that does not fit."""
        x = self._checked(x)
        if out is None:
            out = np.empty(self.out_shape, self.out_dtype)
        elif out.shape != self.out_shape or out.dtype != self.out_dtype or not out.flags.carray:
            raise ValueError(f"out must be a writable contiguous {self.out_dtype} array of shape {self.out_shape}")
        with self._lock:
            if not self._shares:
                raise DeviceError("the program is closed")
            begin = time.perf_counter()
            npu = self._run(x)
            for share in self._shares:
                share.unit.unpack(share.target(out))
            self.last = RunStats(self.jobs, self.tasks, npu, time.perf_counter() - begin)
        return out

    def _checked(self, x: Array) -> Array:
        array = np.asarray(x)
        if array.dtype != self.in_dtype:
            raise TypeError(f"the program takes {self.in_dtype}, not {array.dtype}")
        if array.shape != self.in_shape:
            raise ValueError(f"the program takes shape {self.in_shape}, not {array.shape}")
        return array

    def _run(self, x: Array) -> float:
        """Pack and start one core after the other, then wait for all, whatever fails; seconds from first start."""
        failure: JobError | None = None
        started: list[Share] = []
        begin = 0.0
        try:
            for share in self._shares:
                share.unit.pack(share.source(x))
                begin = begin or time.perf_counter()
                share.unit.start()
                started.append(share)
        finally:
            for share in started:
                try:
                    share.unit.wait(self.timeout)
                except JobError as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return time.perf_counter() - begin

    def close(self) -> None:
        """Give the buffers back. Harmless when already closed."""
        with self._lock:
            for share in self._shares:
                share.unit.close()
            self._shares = []

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
