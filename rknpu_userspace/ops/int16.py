# SPDX-License-Identifier: MIT
"""Exact int16 matmul: four int8 products in one matmul, put together on the host.

The array multiplies int16 itself, but its sums clamp at 32 bits, which two terms can exceed. Here operands are cut into
bytes, ``a = 256 h + l + 128`` with h the high byte and l the low byte minus 128; the sums of their products stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.program import Program, RunStats, Spec

from .matmul import Matmul

Array = npt.NDArray[Any]
MAX_INNER = 131071
"""Terms of a sum of int8 products that can not leave the int32 range."""


def split_bytes(values: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """High bytes, and low bytes minus 128: ``value = 256 high + low + 128``."""
    pairs = np.ascontiguousarray(values, "<i2").view(np.int8).reshape(*values.shape, 2)
    return pairs[..., 1], pairs[..., 0] ^ np.int8(-128)


class Int16Matmul:
    """``b`` [K, N] int16 (or [N, K] with ``transpose_b``), ``rows`` is M; the result is int64 and exact."""

    def __init__(self, b: Array, rows: int, *, transpose_b: bool = False) -> None:
        if b.dtype != np.int16 or b.ndim != 2 or b.size == 0:
            raise TypeError(f"b must be a matrix of int16, not {b.dtype} of shape {b.shape}")
        self.right = b.T if transpose_b else b
        if self.right.shape[0] > MAX_INNER:
            raise ValueError(f"K = {self.right.shape[0]} exceeds {MAX_INNER}, beyond which byte sums may leave int32")
        self.rows = rows

    def compile(self, contexts: Sequence[Context]) -> Int16Program:
        """Pack both bytes of ``b``."""
        high, low = split_bytes(self.right)
        inner = Matmul(np.concatenate([high, low], axis=1), 2 * self.rows).compile(contexts)
        return Int16Program(inner, self.right, self.rows)


class Int16Program:
    """As ``program.Program``, over one int8 program of twice the rows and columns."""

    def __init__(self, inner: Program, right: Array, rows: int) -> None:
        self._inner = inner
        self._columns = right.sum(axis=0, dtype=np.int64)
        depth, columns = right.shape
        self.inputs = (Spec((rows, depth), np.dtype(np.int16)),)
        self.output = Spec((rows, columns), np.dtype(np.int64))

    @property
    def last(self) -> RunStats:
        """Cost of the last run."""
        return self._inner.last

    def __call__(self, a: Array) -> Array:
        """Multiply: [M, K] int16 to [M, N] int64."""
        spec = self.inputs[0]
        if a.dtype != spec.dtype or a.shape != spec.shape:
            raise ValueError(f"the program takes {spec.dtype} {spec.shape}, not {a.dtype} {a.shape}")
        rows, depth = spec.shape
        columns = self.output.shape[1]
        high, low = split_bytes(a)
        sums = self._inner(np.concatenate([high, low])).astype(np.int64)
        top, bottom = sums[:rows], sums[rows:]
        result: Array = top[:, :columns] << 16
        result += (top[:, columns:] + bottom[:, :columns]) << 8
        result += bottom[:, columns:]
        # What the 128 in both operands add: 128 sum(b) + 128 sum(a) - 128 * 128 K.
        result += 128 * self._columns
        result += 128 * a.sum(axis=1, dtype=np.int64)[:, None] - (depth << 14)
        return result

    def close(self) -> None:
        """Give the buffers back."""
        self._inner.close()

    def __enter__(self) -> Int16Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
