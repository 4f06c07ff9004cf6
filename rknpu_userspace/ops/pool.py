# SPDX-License-Identifier: MIT
"""Pooling over [N, H, W, C] images.

The average is a depthwise convolution with ones, so that it is exact up to one requantisation. Maximum and minimum are
element-wise maxima of shifted views on the DPU: along each axis, doubling windows (1, 2, 4 ... pixels) of which any two
overlapping ones make up a window of any size, as the maximum of a pixel with itself is the pixel. No padding is needed:
a window that reaches into it is a smaller one. Both end with the interrupt that the mainline driver waits for.

The PPU does a maximum in one task, but ends it with interrupt bits of its own, which the driver does not look at (linux
drivers/accel/rocket/rocket_job.c: mask 0x300); and it can not be chained to a task of the DPU, as the driver starts
every task with TASK_NUMBER 1. Sources disagree on whether the RK3588 sets the DPU's bits as well; where it does not,
the driver gives up after half a second, with the result in memory. ``engine="ppu"`` selects it nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.backend import Context
from rknpu_userspace.formats import OUTPUTS
from rknpu_userspace.plan.limits import check_range
from rknpu_userspace.program import Program, Share, Spec
from rknpu_userspace.task import ALU_MAX, ALU_MIN, Elementwise

from . import checks, ppu
from .conv2d import Conv2d
from .flying import Flow
from .pieces import Piece, Pieces
from .reference import Pads, Pair, pads, pair
from .schedule import Schedule
from .shares import collected
from .steps import Cube, Step
from .views import View, ViewStep, Window, surfaces_of

Array = npt.NDArray[Any]
FORMATS = ("int8", "int32", "float16", "bfloat16")
_ALGORITHM = {"max": ALU_MAX, "min": ALU_MIN}
_SIZE = {1: 1, 2: 2, 4: 3}


class Pool2d:
    """Maximum or minimum over windows of [N, H, W, C] images.

    ``form``: int8, int32, float16 or bfloat16 (uint16 bit patterns). ``kernel``, ``stride`` (default: the kernel) and
    ``padding`` (a number, (vertical, horizontal) or (top, left, bottom, right), less than the kernel; it never wins)
    are not limited by the DPU. ``engine="ppu"``: int8 and float16, kernels and strides up to 16, padding up to 7.
    """

    def __init__(
        self,
        kind: str,
        form: str,
        in_shape: Sequence[int],
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        engine: str = "dpu",
    ) -> None:
        if kind not in _ALGORITHM:
            raise ValueError(f"pooling can {', '.join(_ALGORITHM)}, not {kind!r}; for the average see average_pool")
        if form not in FORMATS:
            raise TypeError(f"pooling takes {', '.join(FORMATS)}, not {form}")
        if engine not in ("dpu", "ppu"):
            raise ValueError(f"engine must be dpu or ppu, not {engine!r}")
        self.kind, self.form, self.engine = kind, form, engine
        self.in_shape = checks.shape("the input shape", in_shape, "N H W C")
        self.kernel: Pair = pair("kernel", kernel)
        self.stride: Pair = self.kernel if stride is None else pair("stride", stride)
        self.padding: Pads = pads(padding)
        for axis, name in enumerate(("vertical", "horizontal")):
            most = self.in_shape[1 + axis] + self.padding[axis] + self.padding[axis + 2]
            check_range(f"{name} kernel", self.kernel[axis], 1, most, "the padded input")
            if self.stride[axis] < 1:
                raise ValueError(f"{name} stride {self.stride[axis]} is not positive; the nearest legal value is 1")
        for side, name in enumerate(("top", "left", "bottom", "right")):
            check_range(f"{name} padding", self.padding[side], 0, self.kernel[side % 2] - 1, "less than the kernel")
        if engine == "ppu":
            ppu.check(self)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, OH, OW, C)."""
        sizes = [
            (self.in_shape[1 + axis] + self.padding[axis] + self.padding[axis + 2] - self.kernel[axis])
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        ]
        return (self.in_shape[0], *sizes, self.in_shape[3])

    @property
    def label(self) -> str:
        """What it is, for errors."""
        return f"{self.kind} pool {self.kernel} stride {self.stride} {self.form} of {self.in_shape}"

    def steps(self, source: Cube, target: Cube) -> list[Step]:
        """The steps for one image: ``source`` of H x W pixels to ``target`` of OH x OW."""
        _, height, width, _ = self.in_shape
        _, out_height, out_width, _ = self.out_shape
        plain = [self.kernel[axis] == self.stride[axis] == 1 for axis in (0, 1)]
        if plain[0] and plain[1]:
            return _along(self, 0, source, target, (height, width), height)
        middle = target if plain[1] else Cube(out_height * width, source.channels, self.form)
        steps: list[Step] = []
        if not plain[0]:
            steps = _along(self, 0, source, middle, (height, width), out_height)
        if not plain[1]:
            before = source if plain[0] else middle
            steps += _along(self, 1, before, target, (out_height, width), out_width)
        return steps

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program, the channels split over the cores."""
        lanes = OUTPUTS[self.form].atom_channels
        channels = self.in_shape[3]
        step = layout.align(layout.ceil_div(channels, len(contexts)), lanes)
        shares = collected(
            self._share(context, start, min(start + step, channels))
            for context, start in zip(contexts, range(0, channels, step), strict=False)
        )
        dtype = np.dtype(OUTPUTS[self.form].dtype)
        return Program(shares, [Spec(self.in_shape, dtype)], Spec(self.out_shape, dtype))

    def _share(self, context: Context, start: int, stop: int) -> Share:
        if self.engine == "ppu":
            return Share(ppu.PoolPart(context, self, stop - start), _input(start, stop), _slice(start, stop))
        images, height, width, _ = self.in_shape
        _, out_height, out_width, _ = self.out_shape
        sources = [Cube(height * width, stop - start, self.form) for _ in range(images)]
        targets = [Cube(out_height * out_width, stop - start, self.form) for _ in range(images)]
        steps = [step for pair in zip(sources, targets, strict=True) for step in self.steps(*pair)]
        unit = Schedule(context, sources, steps, targets)
        return Share(unit, lambda x: tuple(x[..., start:stop]), _slice(start, stop))


def _slice(start: int, stop: int) -> Callable[[Array], Array]:
    return lambda y: y[..., start:stop]


def _input(start: int, stop: int) -> Callable[[Array], tuple[Array, ...]]:
    return lambda x: (x[..., start:stop],)


def extreme_flow(kind: str, form: str) -> Flow:
    """The greater or lesser of two tensors, bit for bit: the operand converter is live but for int32 (see ``ew``)."""
    size = _SIZE[OUTPUTS[form].nbytes]
    ew = Elementwise(
        bypass=0,
        op_bypass=0,
        from_memory=1,
        convert_bypass=int(form == "int32"),
        algorithm=_ALGORITHM[kind],
        operand_size=0 if form == "bfloat16" else size,
        data_mode=1,
        convert_type=int(form == "int8"),
    )
    return Flow(form, form, ew=ew, operand="pixel")


def _half(size: int) -> int:
    """The power of two of which one or two overlapping windows make up one of ``size``."""
    return 1 << max(0, (size - 1).bit_length() - 1)


def _along(operation: Pool2d, axis: int, source: Cube, target: Cube, sizes: Pair, count: int) -> list[Step]:
    """Pool along one axis (0: lines) of an image of ``sizes``; ``count`` outputs along it."""
    flow = extreme_flow(operation.kind, operation.form)
    length, kernel, stride = sizes[axis], operation.kernel[axis], operation.stride[axis]
    first = operation.padding[axis]
    edges = [(max(0, at - first), min(length, at - first + kernel)) for at in range(0, count * stride, stride)]
    levels = {1: source}
    steps: list[Step] = []
    half = 1
    while half < max(_half(b - a) for a, b in edges):
        level = Cube(source.pixels, source.channels, source.form)
        window = _window(axis, sizes, source, (0, half), length - 2 * half + 1, 1, (0, sizes[1]))
        steps.append(ViewStep(operation.label, flow, (levels[half], levels[half]), level, [window]))
        half *= 2
        levels[half] = level
    out_line = count if axis else sizes[1]
    windows: dict[int, list[Window]] = {}
    at = 0
    while at < count:
        a, b = edges[at]
        more = 1
        while at + more < count and edges[at + more] == (a + more * stride, b + more * stride):
            more += 1
        half = _half(b - a)
        window = _window(axis, sizes, source, (a, b - half), more, stride, (at, out_line))
        windows.setdefault(half, []).append(window)
        at += more
    for half, parts in sorted(windows.items()):
        steps.append(ViewStep(operation.label, flow, (levels[half], levels[half]), target, parts))
    return steps


def _window(axis: int, sizes: Pair, source: Cube, taps: Pair, count: int, stride: int, out: Pair) -> Window:
    """``count`` outputs from index ``out[0]`` on, in lines of ``out[1]`` pixels: taps at two places of the input."""
    height, width = sizes
    unit = 1 if axis else width
    views = [View(tap * unit, width, stride) if axis else View(tap * unit, width * stride) for tap in taps]
    target = View(out[0], out[1]) if axis else View(out[0] * width, width)
    lines, columns = (height, count) if axis else (count, width)
    return Window(lines, columns, surfaces_of(source), views[0], target, views[1])


def average_pool(
    form: str,
    in_shape: Sequence[int],
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    scale: float = 1.0,
    x_zero_point: int = 0,
    out_zero_point: int = 0,
) -> Conv2d:
    """The mean over windows up to 31 x 31, padding counted as zeros: int8, float16 or bfloat16 to the same.

    ``scale`` is input scale / output scale (int8). In floats the weights are 1 / count rounded to the format.
    """
    size = pair("kernel", kernel)
    channels = int(in_shape[3])
    step = size if stride is None else pair("stride", stride)
    edges = pads(padding)
    spare = [int(in_shape[1 + axis]) + edges[axis] + edges[axis + 2] - size[axis] for axis in (0, 1)]
    step = (step[0] if spare[0] else 1, step[1] if spare[1] else 1)  # a single window has no stride to speak of
    shape = (channels, *size, 1)
    count = size[0] * size[1]
    options: dict[str, Any] = {"groups": channels, "stride": step, "padding": padding}
    if form == "int8":
        options |= {"scale": scale / count, "x_zero_point": x_zero_point, "out_zero_point": out_zero_point}
        return Conv2d(np.ones(shape, np.int8), in_shape, **options)
    if form not in ("float16", "bfloat16"):
        raise TypeError(f"average pooling takes int8, float16, bfloat16, not {form}")
    weights = np.full(shape, 1 / count, np.float32 if form == "bfloat16" else np.float16)
    return Conv2d(weights, in_shape, format=form, out_dtype=form, **options)


def average_pool_inside(
    form: str,
    in_shape: Sequence[int],
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    **options: Any,
) -> Pieces:
    """As ``average_pool``, but padding does not count: a window at the border is the mean of what it has of the image.

    Borders whose windows are cut alike are average poolings of their own.
    """
    size = pair("kernel", kernel)
    step = size if stride is None else pair("stride", stride)
    edges = pads(padding)
    shape = tuple(int(number) for number in in_shape)
    sides = []
    for axis, name in enumerate(("vertical", "horizontal")):
        for side in (axis, axis + 2):
            check_range(f"{name} padding", edges[side], 0, size[axis] - 1, "less than the kernel")
        room = shape[1 + axis] + edges[axis] + edges[axis + 2]
        check_range(f"{name} kernel", size[axis], 1, room, "the padded input")
        sides.append(_runs(shape[1 + axis], (room - size[axis]) // step[axis] + 1, size[axis], step[axis], edges[axis]))
    pieces = []
    for lines, window_y, out_y in sides[0]:
        for columns, window_x, out_x in sides[1]:
            part = (shape[0], lines.stop - lines.start, columns.stop - columns.start, shape[3])
            operation = average_pool(form, part, (window_y, window_x), stride=step, **options)
            pieces.append(Piece(operation, (lines, columns), (out_y, out_x)))
    counts = [side[-1][2].stop for side in sides]
    return Pieces(pieces, shape, (shape[0], *counts, shape[3]))


def _runs(size: int, count: int, kernel: int, stride: int, pad: int) -> list[tuple[slice, int, slice]]:
    """Input range, length of the window and output range of runs of outputs whose windows are of one length."""
    windows = [(max(0, at - pad), min(size, at - pad + kernel)) for at in range(0, count * stride, stride)]
    runs: list[tuple[slice, int, slice]] = []
    at = 0
    while at < count:
        first, stop = windows[at]
        more = 1
        while at + more < count and windows[at + more] == (first + more * stride, stop + more * stride):
            more += 1
        runs.append((slice(first, windows[at + more - 1][1]), stop - first, slice(at, at + more, 1)))
        at += more
    return runs


def reference(kind: str, x: Array, kernel: Pair, stride: Pair, padding: Pads) -> Array:
    """Maximum or minimum in numpy, bit for bit."""
    top, left, bottom, right = padding
    limits = (-np.inf, np.inf) if x.dtype.kind == "f" else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
    lowest, highest = np.array(limits, x.dtype)
    edges = ((0, 0), (top, bottom), (left, right), (0, 0))
    wide = np.pad(x, edges, constant_values=lowest if kind == "max" else highest)
    windows = np.lib.stride_tricks.sliding_window_view(wide, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    result: Array = windows.max(axis=(-2, -1)) if kind == "max" else windows.min(axis=(-2, -1))
    return result
