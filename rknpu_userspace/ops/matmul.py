# SPDX-License-Identifier: MIT
"""Matrix multiplication: ``a`` [M, K] times constant ``b`` [K, N], as a 1x1 convolution over an M x 1 image.

Both ``a`` and the result stay row-major in memory (GROUP_LINE_OFF with a line per row; writer with a surface per atom),
so aligned operands are moved with one plain copy each way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.formats import INPUTS
from rknpu_userspace.plan import Problem, split
from rknpu_userspace.plan.tasks import Post
from rknpu_userspace.plan.tiling import Part
from rknpu_userspace.program import Program, Share, Spec

from . import arguments
from .convolution import Weights, build

Array = npt.NDArray[Any]


class Matmul:
    """What to compile: the constant right operand and everything around the product.

    ``b`` [K, N] (or [N, K] with ``transpose_b``); ``rows`` is M. ``format`` is "int8" or "float16", which the dtype
    says by itself; "bfloat16" (uint16 bit patterns, or float32 that is rounded), "tfloat32" (float32; the NPU drops the
    low 13 bits of the mantissa) or "int4" (int8 in -8..7). ``bias`` [N] is added to the sums: int32 in accumulator
    units, or float. ``relu`` is applied after it, up to ``bound`` if given; or ``slope`` is what negative values are
    multiplied by (of integers both are in the units that the requantisation starts from, see ``arguments.rectifier``).

    Output: int32, int8 (needs ``scale``, the real multiplier or one per column, and takes ``out_zero_point``) or
    float32 for int8 operands; float32 or float16 for float16; float32 or bfloat16 (bit patterns) for bfloat16; float32
    for tfloat32; int32 for int4.
    """

    def __init__(
        self,
        b: Array,
        rows: int,
        *,
        format: str | None = None,
        transpose_b: bool = False,
        bias: Array | None = None,
        relu: bool = False,
        bound: float | None = None,
        slope: float | None = None,
        out_dtype: npt.DTypeLike | None = None,
        scale: float | Array | None = None,
        out_zero_point: int = 0,
        a_zero_point: int = 0,
        b_zero_point: int = 0,
        native: bool = False,
    ) -> None:
        right = arguments.operand("b", b, (2,), format)
        self.kernels = right if transpose_b else right.T
        self.form = arguments.format_of(right, format)
        self.rows = rows
        if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
            raise ValueError(f"rows must be a positive integer, not {rows!r}")
        self.outputs, self.inner = self.kernels.shape
        self.out = arguments.out_format(self.form, out_dtype, scale is not None)
        self.bias = arguments.bias_vector(self.form, bias, self.outputs)
        self.a_zero_point = arguments.zero_point(self.form, "a_zero_point", a_zero_point)
        self.post = Post(
            **arguments.rectifier(self.form, relu, bound, slope),
            requant=arguments.requantisation(self.out, scale, out_zero_point, self.outputs),
            zero_point=arguments.zero_point(self.form, "b_zero_point", b_zero_point),
        )
        self.native = native

    def problem(self) -> Problem:
        """The convolution that computes it."""
        return Problem.matmul(self.form, self.out, self.rows, self.inner, self.outputs, self.native)

    def shares(self, contexts: Sequence[Context]) -> list[Share]:
        """What each core does."""
        parts = split(self.problem(), 1, len(contexts))
        kernels = self.kernels[:, None, None, :]
        weights = Weights(kernels, self.bias, self.post, self.a_zero_point)
        label = f"matmul {self.form} {self.rows}x{self.inner} by {self.inner}x{self.outputs} to {self.out}"
        units = build(contexts, parts, weights, label)
        return [Share(unit, _source(unit.part), _target(unit.part)) for unit in units]

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack ``b`` and make the program: [M, K] in, [M, N] out."""
        source = Spec((self.rows, self.inner), np.dtype(INPUTS[self.form].dtype))
        result = Spec((self.rows, self.outputs), arguments.dtype_of(self.out))
        return Program(self.shares(contexts), [source], result)


def _source(part: Part) -> Any:
    return lambda a: (a[None, part.y0 : part.y1, None, :],)


def _target(part: Part) -> Any:
    return lambda c: c[None, part.y0 : part.y1, None, part.n0 : part.n1]
