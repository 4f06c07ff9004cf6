# SPDX-License-Identifier: MIT
"""Devices: the NPU behind /dev/accel/accel*, or its model in this process, and the operations they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from .backend import Context
from .calls import Calls
from .errors import DeviceError

MAX_CORES = 3


Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


class Operation(Protocol[Made_co]):
    """Something that can be compiled: ``ops.matmul.Matmul``, ``ops.conv2d.Conv2d``, ``graph.Graph`` ..."""

    def compile(self, contexts: Sequence[Context]) -> Made_co:
        """Make it runnable on these contexts."""
        ...


class Device(Calls):
    """An NPU. ``cores`` (1..3) is how many of its cores an operation is split over.

    The rocket driver keeps an open file on one core at a time and buffers can not be shared between files, so every
    core gets a file of its own, opened when it is first needed.
    """

    def __init__(self, name: str, make_context: Callable[[int], Context], cores: int = 1) -> None:
        if isinstance(cores, bool) or not isinstance(cores, int) or not 1 <= cores <= MAX_CORES:
            raise ValueError(f"cores must be 1..{MAX_CORES}, not {cores!r}: the RK3588 has three NPU cores")
        self.name = name
        self.cores = cores
        self._make_context = make_context
        self._contexts: list[Context] = []
        self._closed = False
        self._lock = threading.Lock()
        self._context(0)

    def _context(self, index: int) -> Context:
        with self._lock:
            while len(self._contexts) <= index:
                self._contexts.append(self._make_context(len(self._contexts)))
            return self._contexts[index]

    def contexts(self, cores: int | None = None) -> list[Context]:
        """One context per core that an operation may use."""
        if self._closed:
            raise DeviceError(f"{self.name} is closed")
        count = self.cores if cores is None else cores
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_CORES:
            raise ValueError(f"cores must be 1..{MAX_CORES}, not {count!r}: the RK3588 has three NPU cores")
        return [self._context(index) for index in range(count)]

    def compile(self, operation: Operation[Made], *, cores: int | None = None, core: int | None = None) -> Made:
        """A program that can be run many times.

        It is split over ``cores`` cores, by default the device's. With ``core`` (0..2) it has that one for itself:
        programs on different cores run side by side from different threads. The driver gives every core a file of
        its own and chooses among idle ones; the number only says which programs share one.
        """
        if not callable(getattr(operation, "compile", None)):
            raise TypeError(f"{operation!r} is no operation: give a Matmul, a Conv2d ... (see docs/library.md)")
        if core is None:
            return operation.compile(self.contexts(cores))
        if cores is not None:
            raise ValueError("a program is either split over cores or has a core of its own, not both")
        if isinstance(core, bool) or not isinstance(core, int) or not 0 <= core < MAX_CORES:
            raise ValueError(f"core must be 0..{MAX_CORES - 1}, not {core!r}: the RK3588 has three NPU cores")
        return operation.compile([self.contexts(core + 1)[core]])

    def close(self) -> None:
        """Give all memory back and close the files. Harmless when already closed."""
        self._closed = True
        for context in self._contexts:
            context.close()
        self._contexts = []

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_device(
    path: str = "/dev/accel/accel0", *, cores: int = 1, quirks: Mapping[str, str] | str | Path | None = None
) -> Device:
    """Open an NPU: a device node of the rocket driver, or "model".

    ``quirks``, of the model only: answers to what public sources leave open, by name, or the JSON file of
    ``python3 -m rknpu_userspace probe`` with those that a board gave (``model.quirks``).
    """
    if path == "model":
        from .backend.model import ModelContext
        from .model.quirks import Quirks

        chosen = Quirks.load(Path(quirks)) if isinstance(quirks, str | Path) else Quirks(quirks)
        return Device("model", lambda core: ModelContext(core, quirks=chosen), cores)
    if quirks is not None:
        raise ValueError(f"quirks are for the model: {path} has its own")
    from .backend.rocket import RocketContext

    return Device(path, lambda core: RocketContext(path), cores)
