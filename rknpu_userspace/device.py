# SPDX-License-Identifier: MIT
"""Devices: the NPU behind /dev/accel/accel*, or its model in this process, and the operations they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .backend import Context
from .errors import DeviceError

if TYPE_CHECKING:
    from .ops.elementwise import Scales

Array = npt.NDArray[Any]
MAX_CORES = 3


Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


class Operation(Protocol[Made_co]):
    """Something that can be compiled: ``ops.matmul.Matmul``, ``ops.conv2d.Conv2d``, ``graph.Graph`` ..."""

    def compile(self, contexts: Sequence[Context]) -> Made_co:
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
        if not 1 <= count <= MAX_CORES:
            raise ValueError(f"cores must be 1..{MAX_CORES}, not {count}")
        return [self._context(index) for index in range(count)]

    def compile(self, operation: Operation[Made], *, cores: int | None = None, core: int | None = None) -> Made:
        """A program that can be run many times.

        It is split over ``cores`` cores, by default the device's. With ``core`` (0..2) it has that one for itself:
        programs on different cores run side by side from different threads. The driver gives every core a file of
        its own and chooses among idle ones; the number only says which programs share one.
        """
        if core is None:
            return operation.compile(self.contexts(cores))
        if cores is not None:
            raise ValueError("a program is either split over cores or has a core of its own, not both")
        if isinstance(core, bool) or not isinstance(core, int) or not 0 <= core < MAX_CORES:
            raise ValueError(f"core must be 0..{MAX_CORES - 1}, not {core!r}: the RK3588 has three NPU cores")
        return operation.compile([self.contexts(core + 1)[core]])

    def matmul(
        self,
        a: Array,
        b: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        format: str | None = None,
        cores: int | None = None,
        **options: Any,
    ) -> Array:
        """``a`` [..., M, K] @ ``b`` [K, N] or [..., K, N]; see ``ops.matmul.Matmul`` for the options.

        With ``transpose_a``, ``a`` is [..., K, M]; with ``transpose_b``, ``b`` is [..., N, K]. Leading dimensions of
        ``a`` are folded into M when ``b`` is a matrix, else the matrices are multiplied pair by pair. Matrices of int16
        give an exact int64 result and take no other options.
        """
        from .ops import arguments
        from .ops.matmul import Matmul

        if np.asarray(a).dtype == np.int16 and np.asarray(b).dtype == np.int16:
            return self._matmul_int16(np.asarray(a), np.asarray(b), transpose_a, transpose_b, cores, options)
        left = arguments.operand("a", a, tuple(range(2 if transpose_a else 1, 33)), format)
        right = arguments.operand("b", b, tuple(range(2, 33)), format)
        arguments.same_format("a", "b", left, right)
        if transpose_a:
            left = left.swapaxes(-1, -2)
        inner = right.shape[-1] if transpose_b else right.shape[-2]
        if left.shape[-1] != inner:
            raise ValueError(f"the inner sizes differ: a has K = {left.shape[-1]}, b has K = {inner}")
        if right.ndim > 2:
            return self._batched(left, right, cores, {**options, "transpose_b": transpose_b, "format": format})
        rows = left.reshape(-1, inner)
        operation = Matmul(right, rows.shape[0], transpose_b=transpose_b, format=format, **options)
        with self.compile(operation, cores=cores) as program:
            result = program(rows)
        return result.reshape(*left.shape[:-1], result.shape[-1])

    def _matmul_int16(
        self, a: Array, b: Array, transpose_a: bool, transpose_b: bool, cores: int | None, options: dict[str, Any]
    ) -> Array:
        from .ops.int16 import Int16Matmul

        if options:
            raise TypeError(f"an int16 matmul takes no {', '.join(options)}")
        left = a.swapaxes(-1, -2) if transpose_a else a
        if left.ndim < 1 or left.size == 0:
            raise ValueError(f"a is empty or a scalar (shape {a.shape})")
        rows = left.reshape(-1, left.shape[-1])
        operation = Int16Matmul(b, rows.shape[0], transpose_b=transpose_b)
        if operation.right.shape[0] != rows.shape[1]:
            raise ValueError(f"the inner sizes differ: a has K = {rows.shape[1]}, b has K = {operation.right.shape[0]}")
        with operation.compile(self.contexts(cores)) as program:
            result = program(rows)
        return result.reshape(*left.shape[:-1], result.shape[-1])

    def elementwise(
        self,
        kind: str,
        a: Array,
        b: Array,
        *,
        relu: bool = False,
        scales: Scales | None = None,
        cores: int | None = None,
    ) -> Array:
        """ "add", "sub", "mul", "max", "min" or "div" of two arrays that broadcast; see ``ops.elementwise``.

        float16, int32, int8 (with ``scales``) or bfloat16 as uint16 bit patterns. A vector over the last axis is fed as
        it is, other shapes are expanded first.
        """
        from .ops.elementwise import Binary

        left, right = np.asarray(a), np.asarray(b)
        if left.dtype != right.dtype:
            raise TypeError(f"a is {left.dtype} and b is {right.dtype}: the NPU combines operands of one format only")
        form = "bfloat16" if left.dtype == np.uint16 else left.dtype.name
        if right.ndim != 1 or left.ndim < 2 or right.shape[0] != left.shape[-1] or kind == "sub":
            left, right = np.broadcast_arrays(left, right)
        operation = Binary(kind, form, left.shape, right.shape, relu=relu, scales=scales)
        with self.compile(operation, cores=cores) as program:
            return program(left, right)

    def _batched(self, a: Array, b: Array, cores: int | None, options: dict[str, Any]) -> Array:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        left = np.broadcast_to(a, batch + a.shape[-2:]).reshape(-1, *a.shape[-2:])
        right = np.broadcast_to(b, batch + b.shape[-2:]).reshape(-1, *b.shape[-2:])
        results = [self.matmul(x, y, cores=cores, **options) for x, y in zip(left, right, strict=True)]
        return np.stack(results).reshape(*batch, *results[0].shape)

    def conv2d(
        self, x: Array, weights: Array, bias: Array | None = None, *, cores: int | None = None, **options: Any
    ) -> Array:
        """``x`` [N, H, W, C] or [H, W, C] with ``weights`` [OC, KH, KW, C]; options: see ``ops.conv2d.Conv2d``."""
        from .ops import arguments
        from .ops.conv2d import Conv2d

        form = options.get("format")
        images = arguments.operand("x", x, (3, 4), form)
        arguments.same_format("x", "weights", images, arguments.operand("weights", weights, (4,), form))
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
