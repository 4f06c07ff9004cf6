# SPDX-License-Identifier: MIT
"""A chain of convolutions as one program: what a layer writes is what the next one reads, without the host in between.

The output cube of a layer has the layout of an input cube. Its padding channels hold the zero point, where the next
layer's weights hold theirs, so they add nothing. All layers run on one core, as buffers belong to one address space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rknpu_userspace import layout
from rknpu_userspace.backend import Buffer, Context, Job
from rknpu_userspace.formats import INPUTS
from rknpu_userspace.plan import Plan, make_plan
from rknpu_userspace.program import Program, Share, Spec

from . import arguments
from .conv2d import Conv2d
from .convolution import ConvConstants, Place

Array = npt.NDArray[Any]


class Chain:
    """What to compile: convolutions (average pooling included) of one image, each fed by the one before."""

    def __init__(self, layers: Sequence[Conv2d]) -> None:
        if not layers:
            raise ValueError("a chain needs at least one layer")
        for index, layer in enumerate(layers):
            if layer.in_shape[0] != 1:
                raise ValueError(f"layer {index} has {layer.in_shape[0]} images: a chain takes one at a time")
            if layer.groups > 1 and not layer.depthwise:
                raise ValueError(f"layer {index} has {layer.groups} groups: a chain takes direct and depthwise layers")
            if index == 0:
                continue
            before = layers[index - 1]
            if before.out_shape != layer.in_shape:
                raise ValueError(f"layer {index - 1} gives {before.out_shape}, layer {index} takes {layer.in_shape}")
            if before.out != layer.form:
                raise ValueError(f"layer {index - 1} gives {before.out}, layer {index} takes {layer.form}")
        self.layers = tuple(layers)

    def compile(self, contexts: Sequence[Context]) -> Program:
        """Pack all weights and make the program."""
        part = ChainPart(contexts[0], self.layers)
        first, last = self.layers[0], self.layers[-1]
        source = Spec(first.in_shape, np.dtype(INPUTS[first.form].dtype))
        result = Spec(last.out_shape, arguments.dtype_of(last.out))
        return Program([Share(part, lambda x: (x,), lambda y: y)], [source], result)


class ChainPart:
    """The layers on their core: features, constants per layer, and one buffer for all results."""

    def __init__(self, context: Context, layers: Sequence[Conv2d]) -> None:
        self._context = context
        self._layers = layers
        self._plans: list[Plan] = [make_plan(layer.problem(), 1, whole_sums=True) for layer in layers]
        self._buffers: list[Buffer] = []
        try:
            self._features = self._alloc(self._plans[0].problem.in_bytes)
            offsets = np.cumsum([0] + [layout.align(plan.image_bytes, 64) for plan in self._plans]).tolist()
            self._out = self._alloc(offsets[-1])
            self._result = offsets[-2]
            constants: list[ConvConstants] = []
            jobs: list[Job] = []
            source = Place(self._features)
            for layer, plan, offset in zip(layers, self._plans, offsets, strict=False):
                target = Place(self._out, offset)
                label = f"layer {len(constants)}: {layer.label}"
                constants.append(ConvConstants(context, plan, layer.constants, source, target, label))
                self._buffers += constants[-1].buffers
                jobs += constants[-1].jobs
                source = target
            self.jobs = len(jobs)
            self.tasks = sum(len(plan.tiles) for plan in self._plans)
            buffers = [buffer for part in constants for buffer in part.buffers]
            self._submission = context.prepare(jobs, buffers, [self._features], self._out)
        except BaseException:
            self.close()
            raise

    def _alloc(self, size: int) -> Buffer:
        buffer = self._context.alloc(size)
        self._buffers.append(buffer)
        return buffer

    @property
    def dma_bytes(self) -> int:
        """Bytes that all layers move."""
        return sum(plan.dma_bytes for plan in self._plans)

    def pack(self, *operands: Array) -> None:
        """Write the image."""
        problem = self._plans[0].problem
        layout.pack_cube(self._features.view, operands[0].reshape(problem.height * problem.width, problem.channels))

    def start(self) -> None:
        """Hand the jobs to the NPU."""
        self._submission.start()

    def wait(self, timeout: float) -> None:
        """Return when the last layer's output is there."""
        self._submission.wait(timeout)

    def unpack(self, images: Array) -> None:
        """Read the last layer's output."""
        problem = self._plans[-1].problem
        flat = images.reshape(problem.out_height * problem.out_width, problem.out_channels)
        layout.unpack_cube(self._out.view[self._result :], flat)

    def close(self) -> None:
        """Give the buffers back."""
        for buffer in self._buffers:
            self._context.free(buffer)
        self._buffers = []
