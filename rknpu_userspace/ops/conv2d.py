# SPDX-License-Identifier: MIT
"""Two-dimensional convolution over [N, H, W, C] images with weights [OC, KH, KW, C / groups].

Three ways on the hardware: a direct convolution; a depthwise one (one kernel per channel, a mode of its own); and
groups. Groups run as direct convolutions of their own, several at a time with zeros between them as long as they fit
one tile of the MAC array, where the zeros cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.formats import INPUTS
from rknpu_userspace.plan import Problem, split
from rknpu_userspace.plan.tasks import Post
from rknpu_userspace.plan.tiling import Part
from rknpu_userspace.program import Program, Share, Spec

from . import arguments, checks
from .convolution import ConvPart, Weights, build
from .reference import pads, pair

Array = npt.NDArray[Any]
FORMATS = ("int8", "float16", "bfloat16")
IMAGES = {"int8": "int8", "uint8": "int8", "float16": "float16"}
"""Formats of packed images, and of the weights that go with them."""
MAX_IMAGE_CHANNELS = 4


class Conv2d:
    """What to compile: constant weights and the shape of the images, with everything around the convolution.

    ``weights`` [OC, KH, KW, C / groups] int8, float16, or bfloat16 by ``format``; ``in_shape`` (N, H, W, C).
    ``padding`` is a number, (vertical, horizontal) or (top, left, bottom, right); it stands for real zeros, that is,
    the input's zero point. Kernels up to 31, strides up to 7, dilation up to 32, padding up to 15 and less than the
    window. ``bias`` [OC], ``relu``, ``bound``, ``slope``, ``scale`` (a number, or one per output channel) and
    outputs as for a matmul.

    ``image`` ("int8", "uint8" or "float16"): the input has 1 to 4 channels and is read as it lies in numpy, without
    padding its channels to an atom (Mesa rkt_task.c for one channel; more: TRM and Rockchip's compiler). uint8 pixels
    are converted by the NPU, ``x_zero_point`` is 0..255 then. ``insert``: zeros between the pixels of the input,
    that many minus one (see ``transposed``).
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
        groups: int = 1,
        format: str | None = None,
        relu: bool = False,
        bound: float | None = None,
        slope: float | None = None,
        out_dtype: npt.DTypeLike | None = None,
        scale: float | Array | None = None,
        out_zero_point: int = 0,
        x_zero_point: int = 0,
        w_zero_point: int = 0,
        image: str | None = None,
        insert: int | Sequence[int] = 1,
    ) -> None:
        self.weights = arguments.operand("weights", weights, (4,), format)
        self.form = arguments.format_of(self.weights, format)
        if self.form not in FORMATS:
            raise ValueError(f"convolutions take {', '.join(FORMATS)}, not {self.form}")
        self.groups = groups
        self.in_shape = self._checked_shape(in_shape)
        outputs = self.weights.shape[0]
        self.out = arguments.out_format(self.form, out_dtype, scale is not None)
        self.bias = arguments.bias_vector(self.form, bias, outputs)
        self.image = self._checked_image(image)
        lowered = x_zero_point - 128 if image == "uint8" else x_zero_point
        self.x_zero_point = arguments.zero_point(self.form, "x_zero_point", lowered)
        self.insert = pair("insert", insert)
        self.post = Post(
            **arguments.rectifier(self.form, relu, bound, slope),
            requant=arguments.requantisation(self.out, scale, out_zero_point, outputs),
            zero_point=arguments.zero_point(self.form, "w_zero_point", w_zero_point),
            unsigned=image == "uint8",
        )
        self.stride, self.dilation = pair("stride", stride), pair("dilation", dilation)
        self.padding = pads(padding)
        self.problem().check()

    def _checked_shape(self, in_shape: Sequence[int]) -> tuple[int, ...]:
        shape = checks.shape("the input shape", in_shape, "N H W C")
        groups, outputs, per_group = self.groups, self.weights.shape[0], self.weights.shape[3]
        if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)) or groups < 1:
            raise ValueError(f"groups must be a positive integer, not {groups!r}")
        if outputs % groups or shape[3] % groups:
            raise ValueError(f"{groups} groups do not divide {shape[3]} input and {outputs} output channels")
        if per_group * groups != shape[3]:
            raise ValueError(
                f"the weights are for {per_group * groups} input channels, the input has {shape[3]}"
                + (f" ({groups} groups of {per_group})" if groups > 1 else "")
            )
        return shape

    def _checked_image(self, image: str | None) -> str | None:
        """The dtype of a packed image."""
        if image is None:
            return None
        if image not in IMAGES:
            raise ValueError(f"image must be {', '.join(IMAGES)}, not {image!r}")
        if IMAGES[image] != self.form:
            raise TypeError(f"an image of {image} takes {IMAGES[image]} weights, not {self.form}")
        if self.groups > 1 or self.in_shape[3] > MAX_IMAGE_CHANNELS:
            raise ValueError(
                f"a packed image has 1 to {MAX_IMAGE_CHANNELS} channels in one group, "
                f"not {self.in_shape[3]} in {self.groups}"
            )
        return image

    @property
    def in_dtype(self) -> np.dtype[Any]:
        """What the input consists of."""
        return np.dtype(self.image or INPUTS[self.form].dtype)

    @property
    def depthwise(self) -> bool:
        """Whether the depthwise mode does it: a kernel per channel, and an output that fits its writer.

        A group of 64 int8 channels leaves as up to 8 atoms a pixel (3-bit SIZE_E), which int32 and float32 exceed.
        """
        form = INPUTS[self.form]
        one_each = self.groups == self.in_shape[3] == self.weights.shape[0] and self.groups > 1
        size = arguments.dtype_of(self.out).itemsize
        return one_each and self.insert == (1, 1) and form.depthwise_group * size <= 8 * 16

    def problem(self) -> Problem:
        """The convolution of one image; with groups (but not depthwise) that of all channels, for its sizes."""
        out_channels, kernel_height, kernel_width, _ = self.weights.shape
        top, left, bottom, right = self.padding
        return Problem(
            self.form,
            self.out,
            self.in_shape[1],
            self.in_shape[2],
            self.in_shape[3],
            out_channels,
            kernel_height,
            kernel_width,
            *self.stride,
            *self.dilation,
            top,
            left,
            bottom,
            right,
            depthwise=self.depthwise,
            insert_y=self.insert[0],
            insert_x=self.insert[1],
            packed=self.image is not None,
        )

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, OH, OW, OC)."""
        problem = self.problem()
        return self.in_shape[0], problem.out_height, problem.out_width, problem.out_channels

    @property
    def label(self) -> str:
        """What it is, for errors."""
        _, kernel_height, kernel_width, _ = self.weights.shape
        kind = "depthwise conv" if self.depthwise else "conv"
        shape = "x".join(str(size) for size in self.in_shape)
        return (
            f"{kind} {kernel_height}x{kernel_width} stride {self.stride[0]}x{self.stride[1]} {self.form} {shape} "
            f"to {self.weights.shape[0]} channels of {self.out}"
        )

    @property
    def constants(self) -> Weights:
        """Weights as the core of all convolutions takes them (one direct or depthwise convolution)."""
        kernels = self.weights[..., 0].transpose(1, 2, 0) if self.depthwise else self.weights
        return Weights(kernels, self.bias, self.post, self.x_zero_point)

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack the weights and make the program."""
        return Program(
            self.shares(contexts),
            [Spec(self.in_shape, self.in_dtype)],
            Spec(self.out_shape, arguments.dtype_of(self.out)),
        )

    def shares(self, contexts: Sequence[Context]) -> list[Share]:
        """What each core does."""
        if self.groups > 1 and not self.depthwise:
            return self._compile_groups(contexts)
        problem = replace(self.problem(), lines_in=self.image is None)
        units = build(contexts, split(problem, self.in_shape[0], len(contexts)), self.constants, self.label)
        return [Share(unit, _source(unit.part, problem), _target(unit.part)) for unit in units]

    def _compile_groups(self, contexts: Sequence[Context]) -> list[Share]:
        """Bundles of groups, dealt out to the cores."""
        shares: list[Share] = []
        try:
            for index, bundle in enumerate(_bundles(self)):
                problem = replace(
                    self.problem(), channels=bundle.inputs, out_channels=bundle.outputs, lines_in=self.image is None
                )
                part = split(problem, self.in_shape[0], 1)[0]
                everything = Weights(bundle.kernels(self), self.bias, self.post, self.x_zero_point)
                weights = replace(
                    everything.part(bundle.n0, bundle.n0 + bundle.outputs, True), kernels=everything.kernels
                )
                unit = ConvPart(contexts[index % len(contexts)], part, weights, f"{self.label}, {bundle.label}")
                shares.append(Share(unit, bundle.source(part, problem), bundle.target))
        except BaseException:
            for share in shares:
                share.unit.close()
            raise
        return shares


@dataclass(frozen=True)
class _Bundle:
    """Groups [first, last) as one direct convolution with zeros off the diagonal."""

    first: int
    last: int
    inputs: int
    outputs: int
    c0: int
    n0: int

    @property
    def label(self) -> str:
        return f"groups {self.first + 1}-{self.last}"

    def kernels(self, operation: Conv2d) -> Array:
        """[kernel][kh][kw][channel]; what is off the diagonal holds the weights' zero point, a real zero."""
        _, height, width, per_group = operation.weights.shape
        count = self.last - self.first
        step = self.outputs // count
        shape = (self.outputs, height, width, self.inputs)
        wide = np.full(shape, operation.post.zero_point, operation.weights.dtype)
        for group in range(count):
            rows, columns = slice(group * step, (group + 1) * step), slice(group * per_group, (group + 1) * per_group)
            wide[rows, :, :, columns] = operation.weights[self.n0 + rows.start : self.n0 + rows.stop]
        return wide

    def source(self, part: Part, problem: Problem) -> Callable[[Array], tuple[Array, ...]]:
        lines = _source(part, problem)
        return lambda x: lines(x[..., self.c0 : self.c0 + self.inputs])

    def target(self, y: Array) -> Array:
        return y[..., self.n0 : self.n0 + self.outputs]


def _bundles(operation: Conv2d) -> list[_Bundle]:
    """As many groups together as one tile of the array holds."""
    form = INPUTS[operation.form]
    groups = operation.groups
    inputs, outputs = operation.in_shape[3] // groups, operation.weights.shape[0] // groups
    size = max(1, min(form.channel_group // inputs, form.kernel_group // outputs))
    bundles = []
    for first in range(0, groups, size):
        last = min(first + size, groups)
        count = last - first
        bundles.append(_Bundle(first, last, count * inputs, count * outputs, first * inputs, first * outputs))
    return bundles


def _source(part: Part, problem: Problem) -> Callable[[Array], tuple[Array, ...]]:
    top, bottom = problem.input_lines(part.y0, part.y1)
    channels = slice(part.n0, part.n1) if problem.depthwise else slice(None)
    return lambda x: (x[part.i0 : part.i1, top:bottom, :, channels],)


def _target(part: Part) -> Callable[[Array], Array]:
    return lambda y: y[part.i0 : part.i1, part.y0 : part.y1, :, part.n0 : part.n1]
