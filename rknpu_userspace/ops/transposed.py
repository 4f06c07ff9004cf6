# SPDX-License-Identifier: MIT
"""Transposed convolution: every input pixel adds a copy of the kernel to the output, ``stride`` apart.

Two ways. The NPU can insert zeros between the pixels of the input (DECONV, RN encodings/conv-transpose.md): one
convolution, for strides 1, 2, 4 and 8 and an input whose zero point is 0, as what it inserts is zero. Otherwise the
output pixels are taken by their remainder modulo the stride: each such phase is an ordinary convolution with every
stride-th tap of the kernel (``pieces``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace.backend import Context
from rknpu_userspace.plan import limits
from rknpu_userspace.plan.limits import check_range
from rknpu_userspace.program import Program

from . import arguments, checks
from .conv2d import Conv2d
from .pieces import Piece, Pieces
from .reference import Pads, Pair, pads, pair
from .steps import ConvStep, Cube, Step

Array = npt.NDArray[Any]


class ConvTranspose2d:
    """What to compile: ``weights`` [OC, KH, KW, C / groups] and the input's shape (N, H, W, C).

    ``padding`` is what is cut off the edges (a number, (vertical, horizontal) or (top, left, bottom, right), less than
    the kernel), ``output_padding`` what is added at bottom and right again (at most what was cut there, less than the
    stride). OH = (H - 1) stride + KH - top - bottom + output_padding. int8, float16 or bfloat16; other options as for
    ``Conv2d``. ``inserted`` is the convolution that does it in one piece, None where phases are needed.
    """

    def __init__(
        self,
        weights: Array,
        in_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        **options: Any,
    ) -> None:
        self._kernels = arguments.operand("weights", weights, (4,), options.get("format"))
        self._options = options
        self._stride = pair("stride", stride)
        self._cut = pads(padding)
        more = pair("output_padding", output_padding)
        self.in_shape = checks.shape("the input shape", in_shape, "N H W C")
        for name in ("dilation", "image", "insert"):
            if name in options:
                raise TypeError(f"a transposed convolution takes no {name}")
        size = self._kernels.shape[1:3]
        for axis, name in enumerate(("vertical", "horizontal")):
            check_range(f"{name} stride", self._stride[axis], 1, limits.MAX_KERNEL, "the kernel's limit")
            for side in (axis, axis + 2):
                check_range(f"{name} padding", self._cut[side], 0, size[axis] - 1, "less than the kernel")
            most = min(self._cut[axis + 2], self._stride[axis] - 1)
            check_range(f"{name} output padding", more[axis], 0, most, "at most the padding, less than the stride")
        self._out = tuple(
            (self.in_shape[1 + axis] - 1) * self._stride[axis]
            + size[axis]
            - self._cut[axis]
            - self._cut[axis + 2]
            + more[axis]
            for axis in (0, 1)
        )
        if min(self._out) < 1:
            raise ValueError(f"nothing is left of the output after cutting {self._cut}")
        self.inserted = self._whole(more)
        phases = [] if self.inserted is not None else [_phase(self, rest) for rest in np.ndindex(*self._stride)]
        self._phases: Pieces | None = None
        if self.inserted is None:
            self._phases = Pieces([phase for phase in phases if phase is not None], self.in_shape, self.out_shape)
        one = self.inserted or self._phases
        assert one is not None
        self.form, self.out = one.form, one.out

    def _whole(self, more: Pair) -> Conv2d | None:
        """The convolution with inserted zeros, if the hardware can do it."""
        if any(step not in limits.INSERTIONS for step in self._stride):
            return None
        if self._options.get("x_zero_point", 0) and self._stride != (1, 1):
            return None
        size = self._kernels.shape[1:3]
        longer = [max(0, step - length) for step, length in zip(self._stride, size, strict=True)]
        # every window has to see a pixel of the input, so short kernels get zeros, which come first once it is flipped
        fill = self._options.get("w_zero_point", 0)
        kernels = np.pad(self._kernels, ((0, 0), (0, longer[0]), (0, longer[1]), (0, 0)), constant_values=fill)
        top, left, bottom, right = self._cut
        edges = (
            size[0] - 1 - top + longer[0],
            size[1] - 1 - left + longer[1],
            size[0] - 1 - bottom + more[0],
            size[1] - 1 - right + more[1],
        )
        for axis in (0, 1):
            most = limits.MAX_PAD_INSERTED if self._stride[axis] == 2 else limits.MAX_PAD
            if max(edges[axis], edges[axis + 2]) > most:
                return None
        return Conv2d(kernels[:, ::-1, ::-1], self.in_shape, padding=edges, insert=self._stride, **self._options)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, OH, OW, OC)."""
        return (self.in_shape[0], *self._out, self._kernels.shape[0])

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The steps for one image, from one cube to another: phases are put together by the NPU then."""
        if self._phases is not None:
            return self._phases.steps(source, target)
        assert self.inserted is not None
        return [ConvStep(self.inserted.label, self.inserted, source, target)]

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack the weights and make the program."""
        operation = self.inserted or self._phases
        assert operation is not None
        return operation.compile(contexts)


def _axis(
    size: int, out: int, kernel: int, stride: int, cut: int, rest: int
) -> tuple[int, int, int, Pair, slice] | None:
    """(first output, taps, padding before, input range, rest of padding) of a phase along one axis."""
    first = (rest - cut) % stride
    if first >= out:
        return None
    start = (first + cut) // stride
    end = (out - 1 - first) // stride + start
    taps = max(1, -(-(kernel - rest) // stride))
    low, high = start - (taps - 1), end + 1
    return taps, max(0, -low), max(0, high - size), (max(0, low), min(size, high)), slice(first, out, stride)


def _phase(operation: ConvTranspose2d, rest: tuple[int, ...]) -> Piece | None:
    """The phase of one remainder; None if the output is too small to have a pixel of it."""
    kernels = operation._kernels
    sides = []
    for axis in (0, 1):
        side = _axis(
            operation.in_shape[1 + axis],
            operation._out[axis],
            kernels.shape[1 + axis],
            operation._stride[axis],
            operation._cut[axis],
            rest[axis],
        )
        if side is None:
            return None
        sides.append(side)
    (rows, top, bottom, lines, out_y), (columns, left, right, range_x, out_x) = sides
    fill = operation._options.get("w_zero_point", 0)
    chosen = np.full((kernels.shape[0], rows, columns, kernels.shape[3]), fill, kernels.dtype)
    taps = kernels[:, rest[0] :: operation._stride[0], rest[1] :: operation._stride[1]]
    chosen[:, : taps.shape[1], : taps.shape[2]] = taps
    images, _, _, channels = operation.in_shape
    shape = (images, lines[1] - lines[0], range_x[1] - range_x[0], channels)
    padding: Pads = (top, left, bottom, right)
    convolution = Conv2d(chosen[:, ::-1, ::-1], shape, padding=padding, **operation._options)
    return Piece(convolution, (slice(*lines), slice(*range_x)), (out_y, out_x))
