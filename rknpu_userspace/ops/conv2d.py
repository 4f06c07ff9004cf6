# SPDX-License-Identifier: MIT
"""Two-dimensional convolution over [N, H, W, C] images with weights [OC, KH, KW, C]."""

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
from rknpu_userspace.program import Program, Share

from . import arguments
from .convolution import Weights, build
from .reference import pads, pair

Array = npt.NDArray[Any]


class Conv2d:
    """What to compile: constant weights and the shape of the images, with everything around the convolution.

    ``weights`` [OC, KH, KW, C] int8 or float16; ``in_shape`` (N, H, W, C). ``padding`` is a number, (vertical,
    horizontal) or (top, left, bottom, right); it stands for real zeros, that is, the input's zero point. Kernels up to
    31, strides up to 7, dilation up to 32, padding up to 15 and less than the window. ``bias`` [OC], ``relu`` and the
    outputs are those of a matmul.
    """

    def __init__(
        self,
        weights: Array,
        in_shape: Sequence[int],
        *,
        bias: Array | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        relu: bool = False,
        out_dtype: npt.DTypeLike | None = None,
        scale: float | None = None,
        out_zero_point: int = 0,
        x_zero_point: int = 0,
        w_zero_point: int = 0,
    ) -> None:
        self.weights = arguments.operand("weights", weights, (4,))
        self.form = str(self.weights.dtype.name)
        self.in_shape = tuple(int(size) for size in in_shape)
        if len(self.in_shape) != 4:
            raise ValueError(f"the input shape must be (N, H, W, C), not {tuple(in_shape)}")
        if min(self.in_shape) < 1:
            raise ValueError(f"the input is empty (shape {self.in_shape}): the NPU has no empty tensors")
        if self.weights.shape[3] != self.in_shape[3]:
            raise ValueError(
                f"the weights are for {self.weights.shape[3]} input channels, the input has {self.in_shape[3]}"
            )
        self.out = arguments.out_format(self.form, out_dtype, scale is not None)
        self.bias = arguments.bias_vector(self.form, bias, self.weights.shape[0])
        self.x_zero_point = arguments.zero_point(self.form, "x_zero_point", x_zero_point)
        self.post = Post(
            relu=relu,
            requant=arguments.requantisation(self.form, self.out, scale, out_zero_point),
            zero_point=arguments.zero_point(self.form, "w_zero_point", w_zero_point),
        )
        self.stride, self.dilation = pair("stride", stride), pair("dilation", dilation)
        self.padding = pads(padding)
        self.problem().check()

    def problem(self) -> Problem:
        """The convolution of one image."""
        out_channels, kernel_height, kernel_width, channels = self.weights.shape
        top, left, bottom, right = self.padding
        return Problem(
            self.form,
            self.out,
            self.in_shape[1],
            self.in_shape[2],
            channels,
            out_channels,
            kernel_height,
            kernel_width,
            *self.stride,
            *self.dilation,
            top,
            left,
            bottom,
            right,
        )

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, OH, OW, OC)."""
        problem = self.problem()
        return self.in_shape[0], problem.out_height, problem.out_width, problem.out_channels

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack the weights and make the program."""
        problem = self.problem()
        parts = split(problem, self.in_shape[0], len(contexts))
        weights = Weights(self.weights, self.bias, self.post, self.x_zero_point)
        shape = "x".join(str(size) for size in self.in_shape)
        label = (
            f"conv {problem.kernel_height}x{problem.kernel_width} stride {problem.stride_y}x{problem.stride_x} "
            f"{self.form} {shape} to {problem.out_channels} channels of {self.out}"
        )
        units = build(contexts, parts, weights, label)
        shares = [Share(unit, _source(unit.part, problem), _target(unit.part)) for unit in units]
        dtype = np.dtype(INPUTS[self.form].dtype)
        return Program(shares, self.in_shape, dtype, self.out_shape, arguments.dtype_of(self.out))


def _source(part: Part, problem: Problem) -> Any:
    top, bottom = problem.input_lines(part.y0, part.y1)
    return lambda x: x[part.i0 : part.i1, top:bottom]


def _target(part: Part) -> Any:
    return lambda y: y[part.i0 : part.i1, part.y0 : part.y1, :, part.n0 : part.n1]
