# SPDX-License-Identifier: MIT
"""Pooling over [N, H, W, C] images.

The average is a depthwise convolution with ones, so that it is exact up to one requantisation and ends with the
interrupt that the mainline driver waits for. Maximum and minimum run on the PPU.

The PPU ends a task with interrupt bits of its own, which the driver does not look at (linux
drivers/accel/rocket/rocket_job.c: mask 0x300). Sources disagree on whether the RK3588 sets the DPU's bits as well;
where it does not, the driver gives up on a maximum after half a second, with the result in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Context, Job
from rknpu_userspace.formats import ATOM, OUTPUTS
from rknpu_userspace.plan.limits import check_range
from rknpu_userspace.program import Program, Share, Spec
from rknpu_userspace.task import Pool, TaskConfig
from rknpu_userspace.unit import BufferUnit

from .conv2d import Conv2d
from .reference import Pads, Pair, pads, pair

Array = npt.NDArray[Any]
METHODS = {"max": 1, "min": 2}
MAX_KERNEL, MAX_PAD = 16, 7
_PRECISION = {"int8": (0, 1), "float16": (2, 2)}
"""PPU precision, and PPU_RDMA storage size, that work on boards (RN encodings/ppu-pooling.md)."""
_PAD = {
    ("max", "int8"): -128 & 0x7FFFF,
    ("min", "int8"): 127,
    ("max", "float16"): 0xFC00,
    ("min", "float16"): 0x7C00,
}


class Pool2d:
    """Maximum or minimum: int8 or float16, kernels and strides up to 16, padding up to 7 and less than the kernel."""

    def __init__(
        self,
        kind: str,
        form: str,
        in_shape: Sequence[int],
        kernel: int | Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        if kind not in METHODS:
            raise ValueError(f"pooling can {', '.join(METHODS)}, not {kind!r}; for the average see average_pool")
        if form not in _PRECISION:
            raise TypeError(f"pooling takes {', '.join(_PRECISION)}, not {form}")
        self.kind, self.form = kind, form
        self.in_shape = tuple(int(size) for size in in_shape)
        if len(self.in_shape) != 4 or min(self.in_shape) < 1:
            raise ValueError(f"the input shape must be (N, H, W, C) without zeros, not {tuple(in_shape)}")
        self.kernel: Pair = pair("kernel", kernel)
        self.stride: Pair = self.kernel if stride is None else pair("stride", stride)
        self.padding: Pads = pads(padding)
        for axis, name in enumerate(("vertical", "horizontal")):
            check_range(f"{name} kernel", self.kernel[axis], 1, MAX_KERNEL, "4-bit register field")
            check_range(f"{name} stride", self.stride[axis], 1, MAX_KERNEL, "4-bit register field")
        for side, name in enumerate(("top", "left", "bottom", "right")):
            most = min(MAX_PAD, self.kernel[side % 2] - 1)
            check_range(f"{name} padding", self.padding[side], 0, most, "3-bit register field, less than the kernel")
        if min(self.out_shape) < 1:
            raise ValueError(f"the {self.kernel} window is larger than the padded input {self.in_shape[1:3]}")

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

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Make the program, the channels split over the cores."""
        lanes = OUTPUTS[self.form].atom_channels
        channels = self.in_shape[3]
        step = layout.align(layout.ceil_div(channels, len(contexts)), lanes)
        shares: list[Share] = []
        try:
            for context, start in zip(contexts, range(0, channels, step), strict=False):
                stop = min(start + step, channels)
                shares.append(Share(PoolPart(context, self, stop - start), _input(start, stop), _slice(start, stop)))
        except BaseException:
            for share in shares:
                share.unit.close()
            raise
        dtype = np.dtype(OUTPUTS[self.form].dtype)
        return Program(shares, [Spec(self.in_shape, dtype)], Spec(self.out_shape, dtype))


def _slice(start: int, stop: int) -> Callable[[Array], Array]:
    return lambda y: y[..., start:stop]


def _input(start: int, stop: int) -> Callable[[Array], tuple[Array, ...]]:
    return lambda x: (x[..., start:stop],)


class PoolPart(BufferUnit):
    """Some channels of a pooling on one core, a task per image."""

    def __init__(self, context: Context, operation: Pool2d, channels: int) -> None:
        super().__init__(context)
        self._channels = channels
        self._operation = operation
        form = OUTPUTS[operation.form]
        images, height, width, _ = operation.in_shape
        _, out_height, out_width, _ = operation.out_shape
        self._pixels, self._out_pixels = height * width, out_height * out_width
        self._image = layout.cube_bytes(self._pixels, channels, form)
        self._out_image = layout.cube_bytes(self._out_pixels, channels, form)
        self.jobs = self.tasks = images
        try:
            self._features = self._alloc(self._image * images)
            self._out = self._alloc(self._out_image * images)
            encoded = [regcmd.encode(self._task(image)) for image in range(images)]
            stride = layout.align(len(encoded[0]) * 8, regcmd.ALIGNMENT)
            commands = self._alloc(stride * images)
            jobs = []
            for image, words in enumerate(encoded):
                commands.view[image * stride : image * stride + len(words) * 8] = words.view(np.uint8)
                label = f"{operation.kind} pool {operation.kernel} of {operation.in_shape}, image {image + 1}"
                place = (image + 1) * self._out_image - ATOM
                jobs.append(Job(((commands.iova + image * stride, len(words)),), place, label))
            context.flush(commands)
            self._submission = context.prepare(jobs, [commands], [self._features], self._out)
        except BaseException:
            self.close()
            raise

    @property
    def dma_bytes(self) -> int:
        """Bytes of input and output."""
        return (self._image + self._out_image) * self.tasks

    def _task(self, image: int) -> TaskConfig:
        operation = self._operation
        _, height, width, _ = operation.in_shape
        _, out_height, out_width, _ = operation.out_shape
        precision, in_size = _PRECISION[operation.form]
        top, left, bottom, right = operation.padding
        return TaskConfig(
            pool=Pool(
                method=METHODS[operation.kind],
                precision=precision,
                in_size=in_size,
                height=height,
                width=width,
                channels=layout.align(self._channels, OUTPUTS[operation.form].atom_channels),
                out_height=out_height,
                out_width=out_width,
                kernel_height=operation.kernel[0],
                kernel_width=operation.kernel[1],
                stride_y=operation.stride[0],
                stride_x=operation.stride[1],
                source_address=self._features.iova + image * self._image,
                source_line=width * ATOM,
                source_surface=self._pixels * ATOM,
                address=self._out.iova + image * self._out_image,
                surface_stride=self._out_pixels * ATOM,
                pad_top=top,
                pad_left=left,
                pad_bottom=bottom,
                pad_right=right,
                pad_value=_PAD[operation.kind, operation.form],
            )
        )

    def pack(self, *operands: Array) -> None:
        """Write the images."""
        for image, pixels in enumerate(operands[0]):
            target = self._features.view[image * self._image : (image + 1) * self._image]
            layout.pack_cube(target, pixels.reshape(self._pixels, self._channels))

    def unpack(self, images: Array) -> None:
        """Read the result."""
        for image, pixels in enumerate(images):
            source = self._out.view[image * self._out_image : (image + 1) * self._out_image]
            layout.unpack_cube(source, pixels.reshape(self._out_pixels, self._channels))


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
    """The mean over windows, padding counted as zeros: int8 to int8, or float16 to float16.

    ``scale`` is input scale / output scale (int8). In float16 the weights are 1 / count rounded to float16.
    """
    size = pair("kernel", kernel)
    channels = int(in_shape[3])
    step = size if stride is None else pair("stride", stride)
    edges = pads(padding)
    spare = [int(in_shape[1 + axis]) + edges[axis] + edges[axis + 2] - size[axis] for axis in (0, 1)]
    step = (step[0] if spare[0] else 1, step[1] if spare[1] else 1)  # a single window has no stride to speak of
    shape = (channels, *size, 1)
    count = size[0] * size[1]
    if form == "int8":
        return Conv2d(
            np.ones(shape, np.int8),
            in_shape,
            groups=channels,
            stride=step,
            padding=padding,
            scale=scale / count,
            x_zero_point=x_zero_point,
            out_zero_point=out_zero_point,
        )
    if form != "float16":
        raise TypeError(f"pooling takes {', '.join(_PRECISION)}, not {form}")
    weights = np.full(shape, 1 / count, np.float16)
    return Conv2d(weights, in_shape, groups=channels, stride=step, padding=padding, out_dtype="float16")


def reference(kind: str, x: Array, kernel: Pair, stride: Pair, padding: Pads) -> Array:
    """Maximum or minimum in numpy, bit for bit."""
    top, left, bottom, right = padding
    lowest = np.array(-np.inf if x.dtype.kind == "f" else -128, x.dtype)
    highest = np.array(np.inf if x.dtype.kind == "f" else 127, x.dtype)
    edges = ((0, 0), (top, bottom), (left, right), (0, 0))
    wide = np.pad(x, edges, constant_values=lowest if kind == "max" else highest)
    windows = np.lib.stride_tricks.sliding_window_view(wide, kernel, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    result: Array = windows.max(axis=(-2, -1)) if kind == "max" else windows.min(axis=(-2, -1))
    return result
