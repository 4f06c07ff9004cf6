# SPDX-License-Identifier: MIT
"""Devices: the NPU behind /dev/accel/accel*, or its model in this process, and the operations they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .backend import Context
from .errors import DeviceError

if TYPE_CHECKING:
    from .program import Program

Array = npt.NDArray[Any]
MAX_CORES = 3


class Operation(Protocol):
    """Something that can be compiled: ``ops.matmul.Matmul``, ``ops.conv2d.Conv2d`` ..."""

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make it runnable on these contexts."""
        ...


class Device:
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
        self._context(0)

    def _context(self, index: int) -> Context:
        while len(self._contexts) <= index:
            self._contexts.append(self._make_context(len(self._contexts)))
        return self._contexts[index]

    def contexts(self, cores: int | None = None) -> list[Context]:
        """One context per core that an operation may use."""
        if self._closed:
            raise DeviceError(f"{self.name} is closed")
        count = self.cores if cores is None else cores
        if not 1 <= count <= MAX_CORES:
            raise ValueError(f"cores must be 1..{MAX_CORES}, not {count}")
        return [self._context(index) for index in range(count)]

    def compile(self, operation: Operation, *, cores: int | None = None) -> Program:
        """A program that can be run many times."""
        return operation.compile(self.contexts(cores))

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``a`` [..., M, K] @ ``b`` [K, N] or [..., K, N]; see ``ops.matmul.Matmul`` for the options.

        With ``transpose_a``, ``a`` is [..., K, M]; with ``transpose_b``, ``b`` is [..., N, K]. Leading dimensions of
        ``a`` are folded into M when ``b`` is a matrix, else the matrices are multiplied pair by pair.
        """
        from .ops import arguments
        from .ops.matmul import Matmul

        left = arguments.operand("a", a, tuple(range(1, 33)))
        right = arguments.operand("b", b, tuple(range(2, 33)))
        arguments.same_format("a", "b", left, right)
        if transpose_a:
            left = arguments.operand("a", left, tuple(range(2, 33))).swapaxes(-1, -2)
        inner = right.shape[-1] if transpose_b else right.shape[-2]
        if left.shape[-1] != inner:
            raise ValueError(f"the inner sizes differ: a has K = {left.shape[-1]}, b has K = {inner}")
        if right.ndim > 2:
            return self._batched(left, right, transpose_b, cores, options)
        rows = left.reshape(-1, inner)
        operation = Matmul(right, rows.shape[0], transpose_b=transpose_b, **options)
        with self.compile(operation, cores=cores) as program:
            result = program(rows)
        return result.reshape(*left.shape[:-1], result.shape[-1])

    def _batched(self, a: Array, b: Array, transpose_b: bool, cores: int | None, options: dict[str, Any]) -> Array:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = np.broadcast_to(a, batch + a.shape[-2:]).reshape(-1, *a.shape[-2:])
        right = np.broadcast_to(b, batch + b.shape[-2:]).reshape(-1, *b.shape[-2:])
        results = [
            self.matmul(x, y, transpose_b=transpose_b, cores=cores, **options) for x, y in zip(left, right, strict=True)
        ]
        return np.stack(results).reshape(*batch, *results[0].shape)

    def conv2d(
        self, x: Array, weights: Array, bias: Array | None = None, *, cores: int | None = None, **options: Any
    ) -> Array:
        """``x`` [N, H, W, C] or [H, W, C] with ``weights`` [OC, KH, KW, C]; options: see ``ops.conv2d.Conv2d``."""
        from .ops import arguments
        from .ops.conv2d import Conv2d

        images = arguments.operand("x", x, (3, 4))
        arguments.same_format("x", "weights", images, arguments.operand("weights", weights, (4,)))
        batch = images if images.ndim == 4 else images[None]
        operation = Conv2d(weights, batch.shape, bias=bias, **options)
        with self.compile(operation, cores=cores) as program:
            result = program(batch)
        return result if images.ndim == 4 else result[0]

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


def open_device(path: str = "/dev/accel/accel0", *, cores: int = 1) -> Device:
    """Open an NPU: a device node of the rocket driver, or "model"."""
    if path == "model":
        from .backend.model import ModelContext

        return Device("model", ModelContext, cores)
    from .backend.rocket import RocketContext

    return Device(path, lambda core: RocketContext(path), cores)
