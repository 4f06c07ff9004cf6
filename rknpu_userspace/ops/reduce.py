# SPDX-License-Identifier: MIT
"""Sums and means over axes, as products with a column of ones: exact for integers, float32 sums for floats.

The axes that go away become the inner size of a matmul; the host moves them there as it packs. A mean of int8 is scaled
by the requantisation; a float sum is divided by the host, as there is one number per row only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.backend import Context
from rknpu_userspace.formats import INPUTS
from rknpu_userspace.program import Program, Share, Spec, Unit

from . import arguments, checks
from .checks import whole
from .matmul import Matmul
from .shares import Around

Array = npt.NDArray[Any]
KINDS = ("sum", "mean")
FORMATS = ("int8", "float16", "bfloat16", "tfloat32", "int4")


class Reduce:
    """What to compile: "sum" or "mean" over ``axis`` (a number, several, or None for all) of a tensor of ``shape``.

    Sums are int32 for int8 and int4, else float32. A mean of int8 is int8: ``scale`` is input scale / output scale,
    with ``x_zero_point`` and ``out_zero_point``; means of floats are float32. int4 has no mean.
    """

    def __init__(
        self,
        kind: str,
        shape: Sequence[int],
        axis: int | Sequence[int] | None = None,
        *,
        form: str = "float16",
        keepdims: bool = False,
        scale: float = 1.0,
        x_zero_point: int = 0,
        out_zero_point: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")
        if form not in FORMATS or (kind, form) == ("mean", "int4"):
            able = FORMATS if kind == "sum" else FORMATS[:-1]
            raise TypeError(f"{kind} takes {', '.join(able)}, not {form}")
        self.kind, self.form, self.shape = kind, form, checks.sizes(shape)
        if not self.shape:
            raise ValueError(f"{kind} needs an axis, a scalar has none")
        self._axes = _axes(axis, len(self.shape))
        self._kept = [index for index in range(len(self.shape)) if index not in self._axes]
        self.count = math.prod(self.shape[index] for index in self._axes)
        rows = math.prod(self.shape[index] for index in self._kept)
        checks.positive("scale", scale)
        integer_mean = kind == "mean" and form == "int8"
        if not integer_mean and (scale != 1.0 or out_zero_point):
            raise ValueError("scale and out_zero_point are for means of int8")
        ones = np.ones((self.count, 1), INPUTS[form].dtype)
        if form == "bfloat16":
            ones = layout.to_bfloat16(ones.astype(np.float32))
        options: dict[str, Any] = {"format": form, "a_zero_point": x_zero_point}
        if integer_mean:
            options |= {"scale": scale / self.count, "out_zero_point": out_zero_point}
        self.matmul = Matmul(ones, rows, **options)
        self.out_shape = tuple(
            1 if index in self._axes else size
            for index, size in enumerate(self.shape)
            if keepdims or index not in self._axes
        )

    def rows(self, x: Array) -> Array:
        """[rows, count]: the axes that go away last."""
        return x.transpose(*self._kept, *self._axes).reshape(-1, self.count)

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program."""
        divisor = self.count if self.kind == "mean" and self.form != "int8" else 1
        shares = [
            Share(_Divided(share.unit, divisor), self._source(share), self._target(share))
            for share in self.matmul.shares(contexts)
        ]
        source = Spec(self.shape, np.dtype(INPUTS[self.form].dtype))
        return Program(shares, [source], Spec(self.out_shape, arguments.dtype_of(self.matmul.out)))

    def _source(self, share: Share) -> Any:
        return lambda x: share.source(self.rows(x))

    @staticmethod
    def _target(share: Share) -> Any:
        return lambda y: share.target(y.reshape(-1, 1))


class _Divided(Around):
    """Results divided by a number."""

    def __init__(self, unit: Unit, divisor: int) -> None:
        super().__init__(unit)
        self._divisor = divisor

    def unpack(self, images: Array) -> None:
        """Read the results."""
        super().unpack(images)
        if self._divisor > 1:
            images /= np.float32(self._divisor)


def _axes(axis: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    several = axis is not None and not isinstance(axis, (str, int)) and np.ndim(axis) > 0
    wanted: Iterable[Any] = range(dimensions) if axis is None else axis if several else [axis]  # type: ignore[assignment]
    chosen = []
    for number in (whole("axis", one) for one in wanted):
        if not -dimensions <= number < dimensions:
            raise ValueError(f"axis {number} is outside -{dimensions}..{dimensions - 1}")
        chosen.append(number % dimensions)
    if len(set(chosen)) != len(chosen) or not chosen:
        raise ValueError(f"axis {axis!r} names no axis, or one twice")
    return tuple(sorted(chosen))


def reference(
    kind: str, x: Array, axis: int | Sequence[int] | None = None, *, keepdims: bool = False, x_zero_point: int = 0
) -> Array:
    """Sum or mean in float64."""
    axes = _axes(axis, x.ndim)
    function = np.sum if kind == "sum" else np.mean
    result: Array = np.asarray(function(x.astype(np.float64) - x_zero_point, axis=axes, keepdims=keepdims))
    return result
