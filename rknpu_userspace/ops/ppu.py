# SPDX-License-Identifier: MIT
"""Maximum and minimum pooling on the PPU, a task per image; see ``pool`` for why this is not the default."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout, regcmd
from rknpu_userspace.backend import Context, Job
from rknpu_userspace.formats import ATOM, OUTPUTS
from rknpu_userspace.plan.limits import check_range
from rknpu_userspace.task import Pool, TaskConfig
from rknpu_userspace.unit import BufferUnit

from .reference import Pads, Pair

Array = npt.NDArray[Any]
METHODS = {"max": 1, "min": 2}
MAX_KERNEL, MAX_PAD = 16, 7
PRECISION = {"int8": (0, 1), "float16": (2, 2)}
"""PPU precision, and PPU_RDMA storage size, that work on boards (RN encodings/ppu-pooling.md)."""
_PAD = {
    ("max", "int8"): -128 & 0x7FFFF,
    ("min", "int8"): 127,
    ("max", "float16"): 0xFC00,
    ("min", "float16"): 0x7C00,
}


class Pooling(Protocol):
    """What of a pooling matters here."""

    kind: str
    form: str
    in_shape: tuple[int, ...]
    kernel: Pair
    stride: Pair
    padding: Pads

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, OH, OW, C)."""
        ...


def check(operation: Pooling) -> None:
    """ValueError or TypeError for what the PPU's registers can not say."""
    if operation.form not in PRECISION:
        raise TypeError(f"pooling on the PPU takes {', '.join(PRECISION)}, not {operation.form}")
    for axis, name in enumerate(("vertical", "horizontal")):
        check_range(f"{name} kernel", operation.kernel[axis], 1, MAX_KERNEL, "4-bit register field")
        check_range(f"{name} stride", operation.stride[axis], 1, MAX_KERNEL, "4-bit register field")
    for side, name in enumerate(("top", "left", "bottom", "right")):
        check_range(f"{name} padding", operation.padding[side], 0, MAX_PAD, "3-bit register field")


class PoolPart(BufferUnit):
    """Some channels of a pooling on one core, a task per image."""

    def __init__(self, context: Context, operation: Pooling, channels: int) -> None:
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
        precision, in_size = PRECISION[operation.form]
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
